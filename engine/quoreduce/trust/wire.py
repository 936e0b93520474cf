"""TPM 2.0 structures as bytes: quotes, signatures, public areas, PCR selections, and the PCR file of tpm2-tools.

Sources: *TCG TPM 2.0 Library Specification*, Part 2 (Structures); the section is given with each structure. Integers
are big-endian; a ``TPM2B`` is a u16 length and that many bytes. Only what a verifier of quotes needs is here, and each
decoder refuses all else with :class:`~quoreduce.errors.EvidenceError`: unknown algorithms, sizes beyond those of the
specification, bytes that are left over. A decoded structure encodes to the same bytes.

PCR selections are those of the PC client: 24 PCRs, three bytes of bitmap for each bank.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quoreduce.errors import EvidenceError

# Part 2, 6.3: TPM_ALG_ID
ALG_RSA: Final = 0x0001
ALG_SHA1: Final = 0x0004
ALG_HMAC: Final = 0x0005
ALG_AES: Final = 0x0006
ALG_KEYEDHASH: Final = 0x0008
ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016
ALG_OAEP: Final = 0x0017
ALG_ECDSA: Final = 0x0018
ALG_ECDH: Final = 0x0019
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043
# Part 2, 6.4: TPM_ECC_CURVE
CURVE_P256: Final = 0x0003
CURVE_P384: Final = 0x0004
# Part 2, 6.2 and 6.9: TPM_GENERATED_VALUE ("\xffTCG"), TPM_ST
GENERATED: Final = 0xFF544347
ST_ATTEST_QUOTE: Final = 0x8018
# Part 2, 7.4: TPM_RH
RH_OWNER: Final = 0x40000001
RH_ENDORSEMENT: Final = 0x4000000B
# Part 2, 8.3: TPMA_OBJECT
FIXED_TPM: Final = 1 << 1
ST_CLEAR: Final = 1 << 2
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18
RESTRICTED_SIGNING: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | RESTRICTED | SIGN

PCRS: Final = 24  # PC Client Platform TPM Profile, 4.6
DIGEST_BYTES: Final = {ALG_SHA1: 20, ALG_SHA256: 32, ALG_SHA384: 48, ALG_SHA512: 64}
DIGEST_BYTES_MAX: Final = 64
NAME_BYTES_MAX: Final = 2 + DIGEST_BYTES_MAX
DATA_BYTES_MAX: Final = 2 + DIGEST_BYTES_MAX  # Part 2, 10.4.3: TPM2B_DATA, size of a TPMT_HA
NONCE_BYTES_MAX: Final = 64  # the qualifying data that every TPM and tpm2-tools take
RSA_BYTES_MAX: Final = 512  # 4096 bits
ECC_BYTES_MAX: Final = 66  # P-521
BANKS_MAX: Final = 16
_BITMAP_BYTES: Final = PCRS // 8
_HASHES: Final = {ALG_SHA1: "sha1", ALG_SHA256: "sha256", ALG_SHA384: "sha384", ALG_SHA512: "sha512"}
_CURVES: Final[dict[int, ec.EllipticCurve]] = {CURVE_P256: ec.SECP256R1(), CURVE_P384: ec.SECP384R1()}
_SCHEMES: Final = {  # those whose details are one hash
    ALG_RSA: {ALG_RSASSA, ALG_RSAPSS, ALG_OAEP},
    ALG_ECC: {ALG_ECDSA, ALG_ECDH},
    ALG_KEYEDHASH: {ALG_HMAC},
}

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class TpmReader:
    """Reads big-endian fields from untrusted bytes, never past their end.

    Args:
        data: all the bytes of one structure.
        what: its name in errors.
    """

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str = "TPM structure") -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes. Raises EvidenceError if there are fewer."""
        start, stop = self._at, self._at + size
        if size < 0 or stop > len(self._data):
            raise self.error(f"{size} bytes are needed at offset {start}, {len(self._data) - start} are left")
        self._at = stop
        return self._data[start:stop]

    def u8(self) -> int:
        """Read a UINT8."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Read a UINT16."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Read a UINT32."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Read a UINT64."""
        return int.from_bytes(self.take(8), "big")

    def sized(self, limit: int = 0xFFFF) -> bytes:
        """Read a TPM2B: the bytes after its length. Raises EvidenceError if it holds more than ``limit``."""
        size = self.u16()
        if size > limit:
            raise self.error(f"a field of {size} bytes, where at most {limit} can be")
        return self.take(size)

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Raise EvidenceError if bytes are left."""
        left = len(self._data) - self._at
        if left:
            raise self.error(f"{left} bytes too many")

    def error(self, reason: str) -> EvidenceError:
        """Make (not raise) an error about these bytes, for this reason."""
        return EvidenceError(f"{self._what}: {reason}")


def sized(data: bytes) -> bytes:
    """Encode a TPM2B: u16 length, bytes. Raises EvidenceError beyond 65535 bytes."""
    if len(data) > 0xFFFF:
        raise EvidenceError(f"{len(data)} bytes do not fit in a TPM2B")
    return len(data).to_bytes(2, "big") + data


def digest(alg: int, data: bytes) -> bytes:
    """Hash ``data`` with the TPM's algorithm ``alg`` (ALG_SHA1, 256, 384, 512). Raises EvidenceError for another."""
    if alg not in _HASHES:
        raise EvidenceError(f"hash algorithm {alg:#06x} is unknown")
    return hashlib.new(_HASHES[alg], data).digest()


def pcr_digest(values: Sequence[bytes]) -> bytes:
    """SHA-256 of PCR values in the order of the selection: ``pcrDigest`` of a quote (Part 2, 10.12.1)."""
    return hashlib.sha256(b"".join(values)).digest()


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """TPML_PCR_SELECTION (Part 2, 10.9.7): for each bank its hash algorithm and PCR numbers, ascending.

    No bank appears twice.
    """

    banks: tuple[tuple[int, tuple[int, ...]], ...]

    @staticmethod
    def sha256(*pcrs: int) -> PcrSelection:
        """Select these PCRs, in any order, of the SHA-256 bank. Raises EvidenceError for one that is not 0..23."""
        if not all(0 <= pcr < PCRS for pcr in pcrs):
            raise EvidenceError(f"PCRs are 0..{PCRS - 1}, not {sorted(pcrs)}")
        return PcrSelection(((ALG_SHA256, tuple(sorted(set(pcrs)))),))

    def encode(self) -> bytes:
        """Encode: u32 count; for each bank u16 algorithm, u8 3, three bytes of bitmap."""
        banks = (struct.pack(">HB", alg, _BITMAP_BYTES) + _bitmap(pcrs) for alg, pcrs in self.banks)
        return len(self.banks).to_bytes(4, "big") + b"".join(banks)

    @classmethod
    def decode(cls, reader: TpmReader) -> PcrSelection:
        """Read one off ``reader``. Raises EvidenceError for unknown hashes, other bitmaps than three bytes, a bank
        given twice.
        """
        count = reader.u32()
        if count > BANKS_MAX:
            raise reader.error(f"{count} PCR banks, where at most {BANKS_MAX} can be")
        banks = tuple(_decode_bank(reader) for _ in range(count))
        return cls(_distinct(banks, reader))


def _decode_bank(reader: TpmReader) -> tuple[int, tuple[int, ...]]:
    alg, size = reader.u16(), reader.u8()
    if size != _BITMAP_BYTES:
        raise reader.error(f"a PCR bitmap of {size} bytes, not {_BITMAP_BYTES}")
    return alg, _pcrs(reader.take(size))


def _distinct(
    banks: tuple[tuple[int, tuple[int, ...]], ...], reader: TpmReader
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    algorithms = [alg for alg, _ in banks]
    for alg in algorithms:
        if alg not in DIGEST_BYTES:
            raise reader.error(f"the hash {alg:#06x} of a PCR bank is unknown")
        if algorithms.count(alg) > 1:
            raise reader.error(f"the PCR bank {alg:#06x} is given twice")
    return banks


def _bitmap(pcrs: tuple[int, ...]) -> bytes:
    return sum(1 << pcr for pcr in pcrs).to_bytes(_BITMAP_BYTES, "little")


def _pcrs(bitmap: bytes) -> tuple[int, ...]:
    bits = int.from_bytes(bitmap, "little")
    return tuple(pcr for pcr in range(PCRS) if bits >> pcr & 1)


@dataclass(frozen=True, slots=True)
class Clock:
    """TPMS_CLOCK_INFO (Part 2, 10.11.1): milliseconds that the TPM was powered, its resets, its restarts.

    ``safe`` says that no greater clock value was ever reported before.
    """

    clock_ms: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class Quote:
    """TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE (Part 2, 10.12.8 and 10.12.1): what a quote signs.

    ``signer`` is the qualified name of the key, ``extra`` the challenger's nonce, ``firmware`` the firmware version,
    ``pcr_digest`` the digest of the values of the PCRs in ``selection``, with the hash of the signing scheme.
    """

    signer: bytes
    extra: bytes
    clock: Clock
    firmware: int
    selection: PcrSelection
    pcr_digest: bytes

    def encode(self) -> bytes:
        """Encode the structure without a length before it, as tpm2_quote writes it and as it is signed."""
        clock = self.clock
        return (
            struct.pack(">IH", GENERATED, ST_ATTEST_QUOTE)
            + sized(self.signer)
            + sized(self.extra)
            + struct.pack(">QIIBQ", clock.clock_ms, clock.reset_count, clock.restart_count, clock.safe, self.firmware)
            + self.selection.encode()
            + sized(self.pcr_digest)
        )

    @classmethod
    def decode(cls, data: bytes) -> Quote:
        """Decode. Raises EvidenceError if a TPM did not generate it (magic), it is no quote, or is malformed."""
        reader = TpmReader(data, "quote")
        magic, kind = reader.u32(), reader.u16()
        if magic != GENERATED:
            raise reader.error(f"magic {magic:#010x}: not generated by a TPM")
        if kind != ST_ATTEST_QUOTE:
            raise reader.error(f"an attestation of type {kind:#06x}, not a quote")
        signer, extra = reader.sized(NAME_BYTES_MAX), reader.sized(DATA_BYTES_MAX)
        clock_ms, resets, restarts, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
        if safe > 1:
            raise reader.error(f"safe is {safe}, neither yes (1) nor no (0)")
        firmware, selection = reader.u64(), PcrSelection.decode(reader)
        quoted = reader.sized(DIGEST_BYTES_MAX)
        reader.end()
        return cls(signer, extra, Clock(clock_ms, resets, restarts, bool(safe)), firmware, selection, quoted)


@dataclass(frozen=True, slots=True)
class QuoteResponse:
    """What a TPM answers to a quote: the signed bytes (TPMS_ATTEST), the TPMT_SIGNATURE, the values of the PCRs
    covered.

    The values are of the same instant as the quote.
    """

    message: bytes
    signature: bytes
    values: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Signature:
    """TPMT_SIGNATURE (Part 2, 11.3.4) of RSASSA or ECDSA; ``values`` is (signature,) or (r, s), big-endian."""

    scheme: int
    hash_alg: int
    values: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Encode: u16 scheme, u16 hash, then each value as TPM2B."""
        return struct.pack(">HH", self.scheme, self.hash_alg) + b"".join(map(sized, self.values))

    @classmethod
    def decode(cls, data: bytes) -> Signature:
        """Decode. Raises EvidenceError for another scheme, an unknown hash, or malformed bytes."""
        reader = TpmReader(data, "signature")
        scheme, hash_alg = reader.u16(), reader.u16()
        values: tuple[bytes, ...]
        if scheme == ALG_ECDSA:
            values = (reader.sized(ECC_BYTES_MAX), reader.sized(ECC_BYTES_MAX))
        elif scheme == ALG_RSASSA:
            values = (reader.sized(RSA_BYTES_MAX),)
        else:
            raise reader.error(
                f"scheme {scheme:#06x} is neither ECDSA ({ALG_ECDSA:#06x}) nor RSASSA ({ALG_RSASSA:#06x})"
            )
        if hash_alg not in DIGEST_BYTES:
            raise reader.error(f"hash algorithm {hash_alg:#06x} is unknown")
        reader.end()
        return cls(scheme, hash_alg, values)


@dataclass(frozen=True, slots=True)
class Public:
    """TPMT_PUBLIC (Part 2, 12.2.4) of an ECC key, an RSA key or a sealed object (KEYEDHASH).

    Attributes:
        kind: ALG_ECC, ALG_RSA or ALG_KEYEDHASH.
        name_alg: the hash of its name.
        attributes: TPMA_OBJECT, bits.
        policy: digest of the policy that authorizes its use, or nothing.
        symmetric: of a storage key: (ALG_AES, bits, ALG_CFB); otherwise None.
        scheme: ALG_ECDSA, ALG_RSASSA, ..., or ALG_NULL.
        scheme_hash: the scheme's hash; 0 if the scheme is ALG_NULL.
        curve: of an ECC key: CURVE_P256 or CURVE_P384; otherwise 0.
        bits: of an RSA key: the size of its modulus; otherwise 0.
        exponent: of an RSA key: as encoded, where 0 means 65537; otherwise 0.
        unique: (x, y), (modulus,), or (digest,), big-endian; empty values in a template.
    """

    kind: int
    name_alg: int
    attributes: int
    policy: bytes
    symmetric: tuple[int, int, int] | None
    scheme: int
    scheme_hash: int
    unique: tuple[bytes, ...]
    curve: int = 0
    bits: int = 0
    exponent: int = 0

    @classmethod
    def of_key(cls, key: PublicKey, attributes: int = RESTRICTED_SIGNING) -> Public:
        """Make the public area of a signing key (ECDSA or RSASSA, SHA-256) of P-256, P-384 or RSA.

        Raises:
            EvidenceError: a key of another kind or curve.
        """
        if isinstance(key, rsa.RSAPublicKey):
            numbers, size = key.public_numbers(), (key.key_size + 7) // 8
            unique: tuple[bytes, ...] = (numbers.n.to_bytes(size, "big"),)
            exponent = 0 if numbers.e == 65537 else numbers.e
            return cls(
                ALG_RSA, ALG_SHA256, attributes, b"", None, ALG_RSASSA, ALG_SHA256, unique, 0, key.key_size, exponent
            )
        curves = {curve.name: code for code, curve in _CURVES.items()}
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in curves:
            raise EvidenceError("a TPM's signing key is one of P-256, P-384 or RSA")
        point, size = key.public_numbers(), (key.key_size + 7) // 8
        unique = (point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big"))
        return cls(ALG_ECC, ALG_SHA256, attributes, b"", None, ALG_ECDSA, ALG_SHA256, unique, curves[key.curve.name])

    def encode(self) -> bytes:
        """Encode the TPMT_PUBLIC; a ``.tss`` file of tpm2-tools holds it as TPM2B: ``sized(public.encode())``."""
        scheme = self.scheme.to_bytes(2, "big")
        if self.scheme != ALG_NULL:
            scheme += self.scheme_hash.to_bytes(2, "big")
        symmetric = struct.pack(">HHH", *self.symmetric) if self.symmetric else ALG_NULL.to_bytes(2, "big")
        head = struct.pack(">HHI", self.kind, self.name_alg, self.attributes) + sized(self.policy)
        unique = b"".join(map(sized, self.unique))
        if self.kind == ALG_RSA:
            return head + symmetric + scheme + struct.pack(">HI", self.bits, self.exponent) + unique
        if self.kind == ALG_ECC:
            return head + symmetric + scheme + struct.pack(">HH", self.curve, ALG_NULL) + unique  # no KDF
        return head + scheme + unique

    @classmethod
    def decode(cls, data: bytes) -> Public:
        """Decode a TPMT_PUBLIC. Raises EvidenceError for kinds, schemes, curves that are not listed here, or malformed
        bytes.

        Whether ``unique`` is a point of the curve is checked by :meth:`key`, not here: templates have none.
        """
        reader = TpmReader(data, "public area")
        kind, name_alg, attributes = reader.u16(), reader.u16(), reader.u32()
        if kind not in _SCHEMES:
            raise reader.error(f"an object of type {kind:#06x} is neither ECC, RSA nor KEYEDHASH")
        if name_alg not in DIGEST_BYTES:
            raise reader.error(f"the hash {name_alg:#06x} of its name is unknown")
        policy = reader.sized(DIGEST_BYTES_MAX)
        symmetric = None if kind == ALG_KEYEDHASH else _decode_symmetric(reader)
        scheme, scheme_hash = _decode_scheme(reader, kind)
        curve, bits, exponent = _decode_size(reader, kind)
        limit = {ALG_RSA: bits // 8, ALG_ECC: ECC_BYTES_MAX, ALG_KEYEDHASH: DIGEST_BYTES_MAX}[kind]
        unique = tuple(reader.sized(limit) for _ in range(2 if kind == ALG_ECC else 1))
        reader.end()
        return cls(kind, name_alg, attributes, policy, symmetric, scheme, scheme_hash, unique, curve, bits, exponent)

    @classmethod
    def decode_sized(cls, data: bytes) -> Public:
        """Decode a TPM2B_PUBLIC (Part 2, 12.2.5), the format of ``ak.tss``; errors as :meth:`decode`."""
        reader = TpmReader(data, "TPM2B_PUBLIC")
        inner = reader.sized()
        reader.end()
        return cls.decode(inner)

    @property
    def is_restricted_signing(self) -> bool:
        """Whether the TPM made this key, keeps it, and signs with it only what it generated itself: an attestation
        key.
        """
        wanted = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN
        return self.attributes & (wanted | DECRYPT) == wanted

    def name(self) -> bytes:
        """Return its name (Part 1, 16): u16 algorithm, hash of the TPMT_PUBLIC."""
        return self.name_alg.to_bytes(2, "big") + digest(self.name_alg, self.encode())

    def qualified_name(self, parent: bytes = RH_ENDORSEMENT.to_bytes(4, "big")) -> bytes:
        """Return its qualified name (Part 1, 26.5) under a parent's qualified name or a hierarchy's handle."""
        return self.name_alg.to_bytes(2, "big") + digest(self.name_alg, parent + self.name())

    def key(self) -> PublicKey:
        """Return the key for use with ``cryptography``.

        Raises:
            EvidenceError: a point that is not on the curve or not written modulo its prime, a modulus of another size
                than it says.
        """
        try:
            if self.kind == ALG_RSA:
                modulus = int.from_bytes(self.unique[0], "big")
                if modulus.bit_length() != self.bits:
                    raise ValueError(f"a modulus of {modulus.bit_length()} bits, not {self.bits}")
                return rsa.RSAPublicNumbers(self.exponent or 65537, modulus).public_key()
            if self.kind == ALG_ECC:
                return _point(_CURVES[self.curve], *self.unique)
        except ValueError as error:
            raise EvidenceError(f"public area: not a key: {error}") from error
        raise EvidenceError("public area: a sealed object is not a key")

    def pem(self) -> bytes:
        """Return the key as PEM (SubjectPublicKeyInfo), as tpm2-tools write and read it; errors as :meth:`key`."""
        return self.key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _point(curve: ec.EllipticCurve, x: bytes, y: bytes) -> ec.EllipticCurvePublicKey:
    """Make a key of a point. Raises ValueError if it is not on the curve, or not in its one form."""
    size = curve.key_size // 8
    if max(len(x), len(y)) > size:
        raise ValueError(f"a coordinate of more than {size} bytes")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    key = numbers.public_key()
    if key.public_numbers() != numbers:  # x + p is taken for x
        raise ValueError("a coordinate is not smaller than the curve's prime")
    return key


def _decode_symmetric(reader: TpmReader) -> tuple[int, int, int] | None:
    """TPMT_SYM_DEF_OBJECT (Part 2, 11.1.7): none, or AES in CFB mode."""
    alg = reader.u16()
    if alg == ALG_NULL:
        return None
    bits, mode = reader.u16(), reader.u16()
    if alg != ALG_AES or bits not in (128, 192, 256) or mode != ALG_CFB:
        raise reader.error(f"symmetric algorithm {alg:#06x} with {bits} bits in mode {mode:#06x} is not AES-CFB")
    return alg, bits, mode


def _decode_scheme(reader: TpmReader, kind: int) -> tuple[int, int]:
    """TPMT_RSA_SCHEME, TPMT_ECC_SCHEME, TPMT_KEYEDHASH_SCHEME (Part 2, 11.2): none, or one with a hash."""
    scheme = reader.u16()
    if scheme == ALG_NULL:
        return scheme, 0
    scheme_hash = reader.u16()
    if scheme not in _SCHEMES[kind] or scheme_hash not in DIGEST_BYTES:
        raise reader.error(f"scheme {scheme:#06x} with hash {scheme_hash:#06x} is unknown for type {kind:#06x}")
    return scheme, scheme_hash


def _decode_size(reader: TpmReader, kind: int) -> tuple[int, int, int]:
    """Return (curve, bits, exponent): what else TPMS_ECC_PARMS and TPMS_RSA_PARMS hold (Part 2, 12.2.3)."""
    if kind == ALG_ECC:
        curve, kdf = reader.u16(), reader.u16()
        if curve not in _CURVES or kdf != ALG_NULL:
            raise reader.error(f"curve {curve:#06x} with KDF {kdf:#06x} is unknown")
        return curve, 0, 0
    if kind == ALG_RSA:
        bits, exponent = reader.u16(), reader.u32()
        if bits % 8 or not 0 < bits <= RSA_BYTES_MAX * 8:
            raise reader.error(f"an RSA key of {bits} bits")
        return 0, bits, exponent
    return 0, 0, 0


# The file of PCR values of tpm2-tools (`tpm2_quote --pcr`, format "serialized", lib/pcr.c: pcr_fwrite_serialized): the
# C structures TPML_PCR_SELECTION, a u32 count, and this many TPML_DIGEST, of at most 8 digests each, all little-endian,
# with C's padding. Bytes beyond their counts mean nothing and are not read.
_FILE_BANK: Final = struct.Struct("<HB4sx")
_FILE_SELECTION_BYTES: Final = 4 + BANKS_MAX * _FILE_BANK.size
_FILE_DIGEST: Final = struct.Struct("<H64s")
_FILE_DIGESTS_MAX: Final = 8
_FILE_LIST_BYTES: Final = 4 + _FILE_DIGESTS_MAX * _FILE_DIGEST.size
_FILE_LISTS_MAX: Final = 32


def encode_pcrs_file(selection: PcrSelection, values: Mapping[int, bytes]) -> bytes:
    """Encode PCR values as ``tpm2_checkquote -f`` reads them.

    Args:
        selection: of one bank.
        values: for each selected PCR its value.

    Raises:
        EvidenceError: not one bank; a value is missing or of another size.
    """
    if len(selection.banks) != 1:
        raise EvidenceError(f"PCR file: one bank can be written, not {len(selection.banks)}")
    alg, pcrs = selection.banks[0]
    if any(len(values.get(pcr, b"")) != DIGEST_BYTES[alg] for pcr in pcrs):
        raise EvidenceError(f"PCR file: each of the PCRs {list(pcrs)} needs a value of {DIGEST_BYTES[alg]} bytes")
    head = (1).to_bytes(4, "little") + _FILE_BANK.pack(alg, _BITMAP_BYTES, _bitmap(pcrs))
    chunks = [pcrs[at : at + _FILE_DIGESTS_MAX] for at in range(0, len(pcrs), _FILE_DIGESTS_MAX)]
    lists = [
        (len(chunk).to_bytes(4, "little") + b"".join(_FILE_DIGEST.pack(len(values[pcr]), values[pcr]) for pcr in chunk))
        for chunk in chunks
    ]
    body = b"".join(one.ljust(_FILE_LIST_BYTES, b"\0") for one in lists)
    return head.ljust(_FILE_SELECTION_BYTES, b"\0") + len(lists).to_bytes(4, "little") + body


def decode_pcrs_file(data: bytes) -> tuple[PcrSelection, dict[tuple[int, int], bytes]]:
    """Decode a file of PCR values; return the selection, and the values by (algorithm, PCR).

    Raises:
        EvidenceError: malformed; a digest of another size than its bank's; more or fewer values than PCRs selected.
    """
    reader = TpmReader(data, "PCR file")
    selection = _decode_file_selection(reader, reader.take(_FILE_SELECTION_BYTES))
    lists = int.from_bytes(reader.take(4), "little")
    if lists > _FILE_LISTS_MAX:
        raise reader.error(f"{lists} lists of digests, where at most {_FILE_LISTS_MAX} can be")
    digests = [one for _ in range(lists) for one in _decode_file_list(reader, reader.take(_FILE_LIST_BYTES))]
    reader.end()
    selected = [(alg, pcr) for alg, pcrs in selection.banks for pcr in pcrs]
    if len(selected) != len(digests):
        raise reader.error(f"{len(digests)} values for {len(selected)} PCRs")
    values = dict(zip(selected, digests, strict=True))
    for (alg, pcr), value in values.items():
        if len(value) != DIGEST_BYTES[alg]:
            raise reader.error(f"the value of PCR {pcr} has {len(value)} bytes, not {DIGEST_BYTES[alg]}")
    return selection, values


def _decode_file_selection(reader: TpmReader, data: bytes) -> PcrSelection:
    count = int.from_bytes(data[:4], "little")
    if count > BANKS_MAX:
        raise reader.error(f"{count} PCR banks, where at most {BANKS_MAX} can be")
    banks = []
    for at in range(4, 4 + count * _FILE_BANK.size, _FILE_BANK.size):
        alg, size, bitmap = _FILE_BANK.unpack_from(data, at)
        if size != _BITMAP_BYTES:
            raise reader.error(f"a PCR bitmap of {size} bytes, not {_BITMAP_BYTES}")
        banks.append((alg, _pcrs(bitmap[:size])))
    return PcrSelection(_distinct(tuple(banks), reader))


def _decode_file_list(reader: TpmReader, data: bytes) -> list[bytes]:
    count = int.from_bytes(data[:4], "little")
    if count > _FILE_DIGESTS_MAX:
        raise reader.error(f"{count} digests in a list, where at most {_FILE_DIGESTS_MAX} can be")
    digests = []
    for at in range(4, 4 + count * _FILE_DIGEST.size, _FILE_DIGEST.size):
        size, buffer = _FILE_DIGEST.unpack_from(data, at)
        if size > DIGEST_BYTES_MAX:
            raise reader.error(f"a digest of {size} bytes, where at most {DIGEST_BYTES_MAX} can be")
        digests.append(buffer[:size])
    return digests
