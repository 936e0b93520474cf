"""TPM 2.0 commands and responses as bytes.

Source: *TCG TPM 2.0 Library Specification*, Part 3 (Commands); the chapter is given with each command. Headers are
those of Part 1, 18; response codes those of Part 2, 6.6. Pure: a transport (a socket, a device) carries the bytes.

Every function of a command returns the bytes to send; :func:`answer` checks what came back and gives what it holds.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from quoreduce.errors import AttestationError, EvidenceError, HostError
from quoreduce.trust import wire
from quoreduce.trust.wire import PcrSelection, Public, TpmReader, sized

HEADER_BYTES: Final = 10
MESSAGE_BYTES_MAX: Final = 4096  # of a command or response: TPM_PT_MAX_COMMAND_SIZE of every TPM known
NO_SESSIONS: Final = 0x8001  # Part 2, 6.9: TPM_ST
SESSIONS: Final = 0x8002

# Part 2, 6.5.2: TPM_CC
_EXTEND: Final = 0x182
_NAMES: Final = {
    0x131: "CreatePrimary", 0x139: "DictionaryAttackLockReset", 0x13A: "DictionaryAttackParameters", 0x13D: "PCR_Reset",
    0x145: "Shutdown", 0x147: "ActivateCredential", 0x14E: "NV_Read", 0x151: "PolicySecret",
    0x153: "Create", 0x157: "Load", 0x158: "Quote", 0x15E: "Unseal", 0x165: "FlushContext", 0x169: "NV_ReadPublic",
    0x173: "ReadPublic", 0x176: "StartAuthSession", 0x17A: "GetCapability", 0x17B: "GetRandom", 0x17E: "PCR_Read",
    0x17F: "PolicyPCR", _EXTEND: "PCR_Extend", 0x189: "PolicyGetDigest",
}  # fmt: skip
_CODES: Final = {name: code for code, name in _NAMES.items()}

# Part 2, 6.6.3: response codes, those with a parameter, handle or session number ("format one") and the others
RC_LOCKOUT: Final = 0x921
SEND_AGAIN: Final = frozenset({0x908, 0x90A, 0x922})  # YIELDED, TESTING, RETRY: the TPM did not start the command
_FORMAT_ONE: Final = {
    0x82: "ATTRIBUTES", 0x83: "HASH", 0x84: "VALUE", 0x85: "HIERARCHY", 0x87: "KEY_SIZE", 0x8A: "TYPE", 0x8B: "HANDLE",
    0x8E: "AUTH_FAIL", 0x92: "SCHEME", 0x95: "SIZE", 0x96: "SYMMETRIC", 0x97: "TAG", 0x98: "SELECTOR",
    0x9A: "INSUFFICIENT", 0x9C: "KEY", 0x9D: "POLICY_FAIL", 0x9F: "INTEGRITY", 0xA1: "RESERVED_BITS",
    0xA2: "BAD_AUTH", 0xA4: "POLICY_CC",
    0xA6: "CURVE", 0xA7: "ECC_POINT",
}  # fmt: skip
_FORMAT_ZERO: Final = {
    0x100: "INITIALIZE", 0x101: "FAILURE", 0x120: "DISABLED", 0x125: "AUTH_MISSING", 0x126: "POLICY", 0x127: "PCR",
    0x128: "PCR_CHANGED", 0x12F: "AUTH_UNAVAILABLE", 0x142: "COMMAND_SIZE", 0x143: "COMMAND_CODE", 0x146: "NV_RANGE",
    0x148: "NV_LOCKED", 0x149: "NV_AUTHORIZATION", 0x14A: "NV_UNINITIALIZED", 0x902: "OBJECT_MEMORY",
    0x903: "SESSION_MEMORY", 0x904: "MEMORY", 0x905: "SESSION_HANDLES", 0x906: "OBJECT_HANDLES", 0x907: "LOCALITY",
    0x908: "YIELDED", 0x90A: "TESTING", 0x920: "NV_RATE", RC_LOCKOUT: "LOCKOUT", 0x922: "RETRY",
    0x923: "NV_UNAVAILABLE",
}  # fmt: skip

RH_NULL: Final = 0x40000007
RH_PASSWORD: Final = 0x40000009  # TPM_RS_PW
PERSISTENT: Final = 0x81000000
_CAPABILITY_HANDLES: Final = 1
_HANDLES_MAX: Final = 254
_DIGESTS_MAX: Final = 8  # TPML_DIGEST
_SE_POLICY: Final = 1

# EK templates of the TCG EK Credential Profile 2.5, B.3.3 and B.3.4 (L-1: RSA-2048, L-2: ECC P-256); authorized by
# PolicySecret of the endorsement hierarchy
_EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_EK_ATTRIBUTES: Final = (
    wire.FIXED_TPM
    | wire.FIXED_PARENT
    | wire.SENSITIVE_DATA_ORIGIN
    | wire.ADMIN_WITH_POLICY
    | wire.RESTRICTED
    | wire.DECRYPT
)
_AES_128: Final = (wire.ALG_AES, 128, wire.ALG_CFB)
EK_RSA: Final = Public(
    wire.ALG_RSA, wire.ALG_SHA256, _EK_ATTRIBUTES, _EK_POLICY, _AES_128, wire.ALG_NULL, 0, (bytes(256),), bits=2048
)
EK_P256: Final = Public(
    wire.ALG_ECC, wire.ALG_SHA256, _EK_ATTRIBUTES, _EK_POLICY, _AES_128, wire.ALG_NULL, 0, (bytes(32), bytes(32)),
    curve=wire.CURVE_P256,
)  # fmt: skip
# NO_DA: its authorization is empty, so there is nothing to guess; without it a TPM whose owner was killed while it was
# in use would count a failure each time, and end in lockout (Part 1, 19.8).
_AK_ATTRIBUTES: Final = wire.RESTRICTED_SIGNING | wire.NO_DA
AK_TEMPLATES: Final = {
    "ecdsa": Public(
        wire.ALG_ECC, wire.ALG_SHA256, _AK_ATTRIBUTES, b"", None, wire.ALG_ECDSA, wire.ALG_SHA256, (b"", b""),
        curve=wire.CURVE_P256,
    ),
    "rsassa": Public(
        wire.ALG_RSA, wire.ALG_SHA256, _AK_ATTRIBUTES, b"", None, wire.ALG_RSASSA, wire.ALG_SHA256, (b"",), bits=2048
    ),
}  # fmt: skip
# The parent of sealed secrets: a storage key
STORAGE: Final = Public(
    wire.ALG_ECC,
    wire.ALG_SHA256,
    wire.FIXED_TPM | wire.FIXED_PARENT | wire.SENSITIVE_DATA_ORIGIN | wire.USER_WITH_AUTH | wire.NO_DA | wire.RESTRICTED
    | wire.DECRYPT,
    b"", _AES_128, wire.ALG_NULL, 0, (b"", b""), curve=wire.CURVE_P256,
)  # fmt: skip


class TpmRefusal(AttestationError):
    """The TPM answered a command with an error.

    Attributes:
        code: its response code, as it came.
        reason: the code's name without ``TPM_RC_``, such as ``LOCALITY``.
    """

    def __init__(self, command: str, code: int) -> None:
        self.code = code
        self.reason = reason(code)
        super().__init__(f"the TPM refuses {command}: TPM_RC_{self.reason} ({code:#05x})")


def reason(code: int) -> str:
    """Name a response code without ``TPM_RC_`` and its parameter, handle or session number; unknown ones: in
    hexadecimal.
    """
    if code & 0x80:  # bit 7: format one, whose bits 0 to 5 are the error (Part 2, 6.6.2)
        return _FORMAT_ONE.get(code & 0xBF, f"{code:#05x}")
    return _FORMAT_ZERO.get(code, f"{code:#05x}")


@dataclass(frozen=True, slots=True)
class TpmResponse:
    """A response that succeeded: its handle (0 if the command returns none), its parameters, in order."""

    handle: int
    parameters: TpmReader


def answer(command: bytes, response: bytes, *, handle: bool = False) -> TpmResponse:
    """Check and decode the response to a command.

    Args:
        command: what was sent, made by a function below.
        response: all that came back.
        handle: whether the command returns a handle.

    Raises:
        TpmRefusal: the TPM answered with an error.
        HostError: it is in lockout.
        EvidenceError: the response is malformed.
    """
    reader = TpmReader(response, "TPM response")
    tag, size, code = reader.u16(), reader.u32(), reader.u32()
    if size != len(response) or size > MESSAGE_BYTES_MAX:
        raise reader.error(f"it says that it has {size} bytes, it has {len(response)}")
    if code:
        raise refusal(command_name(command), code)
    if tag != int.from_bytes(command[:2], "big"):
        raise reader.error(f"tag {tag:#06x} does not answer the command's {command[:2].hex()}")
    number = reader.u32() if handle else 0
    parameters = reader.take(reader.u32()) if tag == SESSIONS else reader.rest()
    return TpmResponse(number, TpmReader(parameters, f"response to {command_name(command)}"))


def response_code(response: bytes) -> int:
    """Return the response code of a response that may be malformed, in which case the code means nothing."""
    return int.from_bytes(response[6:HEADER_BYTES], "big")


def refusal(command: str, code: int) -> AttestationError | HostError:
    """Make the error that a response code other than 0 stands for."""
    if code == RC_LOCKOUT:
        return HostError(
            f"the TPM is in lockout after too many failed authorizations and refuses {command}: wait until it "
            "recovers, or clear it with tpm2_dictionarylockout --clear-lockout"
        )
    return TpmRefusal(command, code)


def command_name(command: bytes) -> str:
    """Return the name of a command, such as ``TPM2_Quote``."""
    return f"TPM2_{_NAMES.get(int.from_bytes(command[6:10], 'big'), command[6:10].hex())}"


def build(name: str, handles: Sequence[int] = (), parameters: bytes = b"", sessions: Sequence[bytes] = ()) -> bytes:
    """Build a command.

    Args:
        name: of the command, without ``TPM2_``.
        handles: its handle area.
        parameters: its parameter area.
        sessions: for each handle that needs authorization one, of :func:`password` or :func:`policy`.
    """
    body = b"".join(handle.to_bytes(4, "big") for handle in handles)
    if sessions:
        area = b"".join(sessions)
        body += len(area).to_bytes(4, "big") + area
    body += parameters
    return struct.pack(">HII", SESSIONS if sessions else NO_SESSIONS, HEADER_BYTES + len(body), _CODES[name]) + body


def password(value: bytes = b"") -> bytes:
    """Authorize by password (Part 1, 19.4): a TPMS_AUTH_COMMAND."""
    return struct.pack(">IHB", RH_PASSWORD, 0, 0) + sized(value)


def policy(session: int) -> bytes:
    """Authorize by a policy session, which ends with the command: a TPMS_AUTH_COMMAND."""
    return struct.pack(">IHBH", session, 0, 0, 0)


EMPTY: Final = password()  # keys and hierarchies here have no password


# PCRs (Part 3, 22)
def pcr_extend(pcr: int, digest: bytes) -> bytes:
    """PCR_Extend (22.2) of the SHA-256 bank."""
    return extend_head(pcr) + digest


def extend_head(pcr: int) -> bytes:
    """Return what stands before the 32 bytes of the digest in every PCR_Extend of this PCR."""
    whole = build("PCR_Extend", [pcr], struct.pack(">IH", 1, wire.ALG_SHA256) + bytes(32), [EMPTY])
    return whole[:-32]


def pcr_reset(pcr: int) -> bytes:
    """PCR_Reset (22.8)."""
    return build("PCR_Reset", [pcr], sessions=[EMPTY])


def pcr_read(selection: PcrSelection) -> bytes:
    """PCR_Read (22.4); a TPM answers with at most 8 values."""
    return build("PCR_Read", parameters=selection.encode())


def read_pcr_read(reader: TpmReader) -> dict[int, bytes]:
    """Return the values of the SHA-256 bank in a PCR_Read's response. Raises EvidenceError if malformed."""
    reader.u32()  # pcrUpdateCounter
    selection = PcrSelection.decode(reader)
    count = reader.u32()
    if count > _DIGESTS_MAX:
        raise reader.error(f"{count} digests, where at most {_DIGESTS_MAX} can be")
    digests = [reader.sized(32) for _ in range(count)]
    reader.end()
    selected = [pcr for _, pcrs in selection.banks for pcr in pcrs]
    if [bank for bank, _ in selection.banks] != [wire.ALG_SHA256] or len(selected) != count:
        raise reader.error("the values are not those of the SHA-256 bank's PCRs selected: is the bank active?")
    if any(len(digest) != 32 for digest in digests):
        raise reader.error("a value of the SHA-256 bank has 32 bytes")
    return dict(zip(selected, digests, strict=True))


def quote(key: int, selection: PcrSelection, nonce: bytes) -> bytes:
    """Quote (18.4) with the key's own scheme."""
    parameters = sized(nonce) + wire.ALG_NULL.to_bytes(2, "big") + selection.encode()
    return build("Quote", [key], parameters, [EMPTY])


def read_quote(reader: TpmReader) -> tuple[bytes, bytes]:
    """Return (TPMS_ATTEST, TPMT_SIGNATURE) of a Quote's response."""
    return reader.sized(), reader.rest()


# Keys and sealed secrets (Part 3, 12, 24, 28)
def create_primary(hierarchy: int, template: Public) -> bytes:
    """CreatePrimary (24.1); the same template gives the same key until the hierarchy's seed changes. Returns a
    handle.
    """
    return build("CreatePrimary", [hierarchy], _no_sensitive() + _template(template), [EMPTY])


def create(parent: int, secret: bytes, template: Public) -> bytes:
    """Create (12.1) an object that holds ``secret``."""
    return build("Create", [parent], sized(sized(b"") + sized(secret)) + _template(template), [EMPTY])


def read_create(reader: TpmReader) -> tuple[bytes, bytes]:
    """Return (TPM2B_PRIVATE's contents, TPMT_PUBLIC) of a Create's response."""
    return reader.sized(), reader.sized()


def load(parent: int, private: bytes, public: bytes) -> bytes:
    """Load (12.2) what Create gave. Returns a handle."""
    return build("Load", [parent], sized(private) + sized(public), [EMPTY])


def read_public(handle: int) -> bytes:
    """ReadPublic (12.4)."""
    return build("ReadPublic", [handle])


def unseal(handle: int, session: bytes) -> bytes:
    """Unseal (12.7)."""
    return build("Unseal", [handle], sessions=[session])


def flush(handle: int) -> bytes:
    """FlushContext (28.4)."""
    return build("FlushContext", parameters=handle.to_bytes(4, "big"))


def sealed_template(policy_digest: bytes) -> Public:
    """Return the template of a secret that only a policy opens."""
    attributes = wire.FIXED_TPM | wire.FIXED_PARENT
    return Public(wire.ALG_KEYEDHASH, wire.ALG_SHA256, attributes, policy_digest, None, wire.ALG_NULL, 0, (b"",))


def pcr_policy(selection: PcrSelection, values: Sequence[bytes]) -> bytes:
    """Return the digest of a policy that holds while ``selection`` has these values (23.7, PolicyPCR: policyDigest)."""
    code = _CODES["PolicyPCR"].to_bytes(4, "big")
    return wire.digest(wire.ALG_SHA256, bytes(32) + code + selection.encode() + wire.pcr_digest(values))


def _no_sensitive() -> bytes:
    return sized(sized(b"") + sized(b""))


def _template(template: Public) -> bytes:
    """inPublic, outsideInfo, creationPCR: all that Create and CreatePrimary take after inSensitive."""
    return sized(template.encode()) + sized(b"") + bytes(4)


# Sessions, policies, credentials (Part 3, 11, 12, 23)
def start_policy_session(nonce: bytes, hash_alg: int) -> bytes:
    """StartAuthSession (11.1), neither salted nor bound. ``nonce`` has at least 16 bytes. Returns a handle."""
    parameters = sized(nonce) + sized(b"") + struct.pack(">BHH", _SE_POLICY, wire.ALG_NULL, hash_alg)
    return build("StartAuthSession", [RH_NULL, RH_NULL], parameters)


def policy_pcr(session: int, selection: PcrSelection) -> bytes:
    """PolicyPCR (23.7): the session's policy holds while these PCRs are as now."""
    return build("PolicyPCR", [session], sized(b"") + selection.encode())


def policy_secret_endorsement(session: int) -> bytes:
    """PolicySecret (23.4) with the endorsement hierarchy: what the EK's default policy asks for."""
    return build("PolicySecret", [wire.RH_ENDORSEMENT, session], sized(b"") * 3 + bytes(4), [EMPTY])


def activate_credential(key: int, ek: int, ek_session: bytes, credential: bytes, encrypted_secret: bytes) -> bytes:
    """ActivateCredential (12.5)."""
    return build("ActivateCredential", [key, ek], sized(credential) + sized(encrypted_secret), [EMPTY, ek_session])


# Random bytes, shutdown, handles, NV indices
def get_random(size: int) -> bytes:
    """GetRandom (16.1); a TPM may give fewer bytes."""
    return build("GetRandom", parameters=size.to_bytes(2, "big"))


def shutdown() -> bytes:
    """Shutdown (9.4), clear: the next start is an orderly one."""
    return build("Shutdown", parameters=bytes(2))


def get_persistent_handles() -> bytes:
    """GetCapability (30.2) of the handles of persistent objects."""
    return build("GetCapability", parameters=struct.pack(">III", _CAPABILITY_HANDLES, PERSISTENT, _HANDLES_MAX))


def read_handles(reader: TpmReader) -> list[int]:
    """Return the handles in a GetCapability's response."""
    reader.u8()  # moreData
    kind, count = reader.u32(), reader.u32()
    if kind != _CAPABILITY_HANDLES or count > _HANDLES_MAX:
        raise reader.error(f"capability {kind} with {count} values is no list of handles")
    handles = [reader.u32() for _ in range(count)]
    reader.end()
    return handles


def nv_read_public(index: int) -> bytes:
    """NV_ReadPublic (31.6)."""
    return build("NV_ReadPublic", [index])


def read_nv_size(reader: TpmReader) -> int:
    """Return the size in bytes of the index that an NV_ReadPublic's response describes (Part 2, 13.5:
    TPMS_NV_PUBLIC).
    """
    public = TpmReader(reader.sized(), "TPMS_NV_PUBLIC")
    public.take(10)  # nvIndex, nameAlg, attributes
    public.sized(wire.DIGEST_BYTES_MAX)  # authPolicy
    size = public.u16()
    public.end()
    return size


def nv_read(index: int, offset: int, size: int) -> bytes:
    """NV_Read (31.13), authorized by the index itself, whose password is empty."""
    return build("NV_Read", [index, index], struct.pack(">HH", size, offset), [EMPTY])


def message_size(message: bytes) -> int:
    """Return how many bytes the message has whose first 10 bytes these are. Raises EvidenceError if it is out of
    bounds.
    """
    size = int.from_bytes(message[2:6], "big")
    if not HEADER_BYTES <= size <= MESSAGE_BYTES_MAX:
        raise EvidenceError(f"TPM response: {size} bytes, where {HEADER_BYTES} to {MESSAGE_BYTES_MAX} can be")
    return size
