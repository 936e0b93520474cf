"""E(n): evidence that a TCOM, in an environment, on a server, says ``content`` in answer to the nonce n. Pure.

Two levels, as in :mod:`quoreduce.trust.evidence`; integers are big-endian::

    leaf          SHA-256( "quoreduce vm challenge 1" || n 32 || SHA-256( content ) )
    level 1       quote of the server's TPM over PCR 17 (the TVE document, by a dynamic launch) and PCR 19 (the public
                  area of its µTPM); its nonce is the Merkle root (trust.merkle) over leaves: one quote serves many VMs
                  and challengers
    level 2       quote of the µTPM over µPCRs 0-3; its nonce is
                  SHA-256( "quoreduce vm 1" || n 32 || u8 length || operation || vmid 16 || SHA-256( content ) )
    µPCR 0        the TCOM document, whose digest the TVE document lists for this operation
    µPCR 1        the session's X25519 public key, if it has one
    µPCR 2, 3     the image's digest; reports

A register is extended by SHA-256 of the data; a register without an event holds zeros. Each TCOM has an
instance of the µTPM of its own (:meth:`quoreduce.trust.utpm.MicroTpm.instance`).

A server is named by its AK: the hex of the TPM name. A root in software only (backend utpm) has no AK: there the
name is that of the µTPM's key, ends with the process, and nobody vouches for it; a policy has to allow that backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Final, Literal, Protocol, TypeVar

import msgspec

from quoreduce.errors import AttestationError, EvidenceError, one_line
from quoreduce.trust import merkle, signatures
from quoreduce.trust.chain import check_ek_chain
from quoreduce.trust.eventlog import encode_binary
from quoreduce.trust.evidence import (
    HARDWARE,
    Hardware,
    Hash,
    LaunchLog,
    Small,
    attestation_key,
    check_enrolment,
    check_values,
    launch_log,
)
from quoreduce.trust.pcr import ZEROS, extended
from quoreduce.trust.policy import Policy
from quoreduce.trust.wire import Public, PublicKey, Quote, Signature
from quoreduce.vm.wire import EVIDENCE_BYTES_MAX

CODE, SESSION_KEY, IMAGE, REPORT = range(4)  # µPCRs
LEVEL2_PCRS: Final = (CODE, SESSION_KEY, IMAGE, REPORT)
NONCE_BYTES: Final = 32
VMID_BYTES: Final = 16
DATA_BYTES_MAX: Final = 1 << 16  # of what is extended into a µPCR
EVENTS_MAX: Final = 4
PATH_MAX: Final = 20  # a million challenges under one quote
CACHE_MAX: Final = 256

T = TypeVar("T")
Backend = Literal["utpm", "modelled", "swtpm", "tpm2"]


class Measured(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One extend after that of the code: into µPCR 1, 2 or 3, SHA-256 of these data."""

    pcr: Annotated[int, msgspec.Meta(ge=SESSION_KEY, le=REPORT)]
    data: Annotated[bytes, msgspec.Meta(max_length=DATA_BYTES_MAX)]


class Evidence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """E(n).

    Attributes:
        backend: of the server's TPM.
        launch_log: TCG binary log: the TVE document in PCR 17, the µTPM's public area in PCR 19.
        hardware: the server's TPM, who vouches for it, and its quote; None for a root in software.
        index, count, path: the place of this challenge among the leaves of the quote, and the proof.
        code: the TCOM document.
        measured: what was extended after it.
        message, signature: the µTPM's quote (TPMS_ATTEST, TPMT_SIGNATURE).
    """

    backend: Backend
    launch_log: Annotated[bytes, msgspec.Meta(max_length=1 << 17)]
    hardware: Hardware | None
    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << PATH_MAX)]
    count: Annotated[int, msgspec.Meta(ge=1, le=1 << PATH_MAX)]
    path: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=PATH_MAX)]
    code: Annotated[bytes, msgspec.Meta(max_length=DATA_BYTES_MAX)]
    measured: Annotated[tuple[Measured, ...], msgspec.Meta(max_length=EVENTS_MAX)]
    message: Small
    signature: Small


@dataclass(frozen=True, slots=True)
class AttestedFacts:
    """What accepted evidence says.

    Attributes:
        server: the server's name.
        environment: digest of its TVE document, hex.
        session_key: X25519, 32 bytes; empty if the session has none.
        image: the data of µPCR 2 (a digest);
        report: the last data of µPCR 3; None where nothing was extended.
    """

    server: str
    environment: str
    session_key: bytes
    image: bytes | None
    report: bytes | None


class TcomTpm(Protocol):
    """A session's instance of the µTPM; its µPCR 0 holds the code already."""

    def extend(self, pcr: int, data: bytes) -> None:
        """Extend SHA-256 of ``data`` into µPCR 1, 2 or 3. Raises AttestationError for another, too long data, or too
        many extends.
        """

    def attest(self, n: bytes, vmid: bytes, content: bytes) -> Evidence:
        """Make E(n) for ``content``; AttestationError or HostError if the TPMs do not."""


class Attestor(Protocol):
    """A server's root: its TPM, and the µTPM that it vouches for."""

    @property
    def identity(self) -> str:
        """The server's name, as in :class:`AttestedFacts`."""

    def session(self, operation: str) -> TcomTpm:
        """Begin a TCOM in an instance of its own. Raises AttestationError for an operation that the environment does
        not list.
        """


def leaf(n: bytes, content: bytes) -> bytes:
    """Return what of a challenge goes into the tree of a quote, 32 bytes."""
    return sha256(b"quoreduce vm challenge 1" + n + sha256(content).digest()).digest()


def nonce(n: bytes, operation: str, vmid: bytes, content: bytes) -> bytes:
    """Return the nonce of the µTPM's quote, 32 bytes. Raises AttestationError for a nonce or id of another length."""
    name = operation.encode()
    if (len(n), len(vmid)) != (NONCE_BYTES, VMID_BYTES) or len(name) > 255:
        raise AttestationError(
            f"a nonce has {NONCE_BYTES} bytes and a VM's id {VMID_BYTES}, not {len(n)} and {len(vmid)}"
        )
    return sha256(b"quoreduce vm 1" + n + bytes([len(name)]) + name + vmid + sha256(content).digest()).digest()


def level1_log(document: bytes, public: Public) -> bytes:
    """Return the log of a server: its TVE document, and its µTPM's public area."""
    return encode_binary(launch_log(document, (public.encode(),)))


def listed_codes(document: bytes) -> dict[str, str]:
    """Return the digest (hex) of the TCOM document of each operation, as a TVE document lists them. Raises
    EvidenceError.
    """
    try:
        found = msgspec.json.decode(document, type=_Document)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise EvidenceError(f"the environment is no TVE: its document lists no TCOMs: {one_line(error)}") from error
    return found.tcoms


class Cache:
    """Results about servers, for a caller who checks much evidence of the same servers. Bounded; without refusals."""

    def __init__(self) -> None:
        self._keys: dict[tuple[object, ...], Public] = {}
        self._servers: dict[tuple[object, ...], _Server] = {}

    def server(self, evidence: Evidence, policy: Policy, at: datetime) -> _Server:
        """Return what level 1 of this evidence says, checked at this time under this policy; EvidenceError,
        AttestationError.
        """
        key = (evidence.backend, evidence.launch_log, evidence.hardware, policy, at)
        return _remembered(self._servers, key, lambda: _check_level1(evidence, policy, at, self))

    def attestation_key(self, hardware: Hardware, policy: Policy, at: datetime) -> Public:
        """The AK of a server's TPM, vouched for by the registrar and a CA of the policy. Raises EvidenceError."""
        key = (hardware.ek, hardware.ak, hardware.enrolment, policy, at)
        return _remembered(self._keys, key, lambda: _check_owner(hardware, policy, at))


def encode(evidence: Evidence) -> bytes:
    """Encode E(n), as :class:`quoreduce.vm.wire.AttestedMessage` carries it."""
    return _ENCODER.encode(evidence)


def decode(raw: bytes) -> Evidence:
    """Decode E(n). Raises EvidenceError if malformed. Checks nothing."""
    if len(raw) > EVIDENCE_BYTES_MAX:
        raise EvidenceError(f"evidence: {len(raw)} bytes, over the bound of {EVIDENCE_BYTES_MAX}")
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise EvidenceError(f"evidence: {one_line(error)}") from error


def check(
    evidence: Evidence, n: bytes, operation: str, vmid: bytes, content: bytes, policy: Policy, at: datetime,
    cache: Cache | None = None,
) -> AttestedFacts:  # fmt: skip
    """Check E(n), and return what it says.

    Args:
        evidence: as decoded.
        n: the challenge, 32 bytes: fresh, and the caller's own.
        operation, vmid, content: what it has to be for.
        policy: what is trusted; the environment has to be in it.
        at: the time now, with a time zone.
        cache: of the caller, if it checks more evidence that may share a quote.

    Raises:
        AttestationError: the first link that does not hold, each with a reason of its own.
    """
    server = (cache or Cache()).server(evidence, policy, at)
    if server.answers is not None:
        # a root does not say how many leaves there are; whether this one is among them does not depend on that
        mine = merkle.leaf_hash(leaf(n, content))
        if not merkle.verify(mine, evidence.index, evidence.count, evidence.path, server.answers):
            raise EvidenceError("the server's quote does not answer this challenge: it is stale, or of another message")
    if server.codes.get(operation) != sha256(evidence.code).hexdigest():
        raise EvidenceError(f"the environment lists another TCOM, or none, for {operation}")
    _check_level2(evidence, server.key, nonce(n, operation, vmid, content))
    return _said(evidence, server)


def holder(evidence: Evidence, n: bytes, content: bytes) -> str:
    """Return the server's name, if its TPM answers this challenge; that says nothing about whether the TPM
    is trusted.

    Raises:
        AttestationError: it does not, or there is no TPM.
    """
    hardware = evidence.hardware
    if hardware is None:
        raise EvidenceError("a server without a TPM has no name that it could show")
    key = attestation_key(hardware.ak)
    answers = _check_quote(hardware, key, LaunchLog.decode(evidence.launch_log))
    if not merkle.verify(merkle.leaf_hash(leaf(n, content)), evidence.index, evidence.count, evidence.path, answers):
        raise EvidenceError("the server's quote does not answer this challenge: it is stale, or of another message")
    return key.name().hex()


@dataclass(frozen=True, slots=True)
class _Server:
    """What level 1 says: the server, the listed TCOMs, the µTPM's key, and the nonce of the TPM's quote, if any."""

    name: str
    environment: str
    codes: dict[str, str]
    key: PublicKey
    answers: bytes | None


class _Document(msgspec.Struct):
    """The members of a TVE document that are used; its digest covers the others."""

    tcoms: dict[str, str]


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Evidence)


def _remembered(found: dict[tuple[object, ...], T], key: tuple[object, ...], make: Callable[[], T]) -> T:
    known = found.get(key)
    if known is None:
        known = make()
        if len(found) >= CACHE_MAX:
            found.clear()
        found[key] = known
    return known


def _check_level1(evidence: Evidence, policy: Policy, at: datetime, cache: Cache) -> _Server:
    hardware = evidence.hardware
    if evidence.backend not in policy.backends:
        raise EvidenceError(f"the server has the backend {evidence.backend}, which the policy does not accept")
    if (evidence.backend in HARDWARE) != (hardware is not None):
        raise EvidenceError(f"a server with the backend {evidence.backend} has a quote of a TPM too much or too little")
    log = LaunchLog.decode(evidence.launch_log)
    if len(log.keys) != 1:
        raise EvidenceError(f"the server's log names {len(log.keys)} µTPMs, not one")
    micro = Public.decode(log.keys[0])
    if not micro.is_restricted_signing:
        raise EvidenceError("the µTPM's key is not a restricted signing key: it signs anything it is given")
    named, answers = micro, None
    if hardware is not None:
        named = cache.attestation_key(hardware, policy, at)
        answers = _check_quote(hardware, named, log)
    environment = log.environment.hex()
    if environment not in policy.environments:
        raise AttestationError(f"the server's environment, {environment}, is not in the policy")
    return _Server(named.name().hex(), environment, listed_codes(log.document), micro.key(), answers)


def _check_owner(hardware: Hardware, policy: Policy, at: datetime) -> Public:
    """Check the certificates and enrolment of a server's TPM; return its AK."""
    check_ek_chain(hardware.ek, policy.authorities(), at)
    check_enrolment(hardware, bytes.fromhex(policy.registrar or ""))
    return attestation_key(hardware.ak)


def _check_quote(hardware: Hardware, key: Public, log: LaunchLog) -> bytes:
    """Check the quote of a server's TPM; return its nonce."""
    quote = _quote(key, hardware.message, hardware.signature, "the server's TPM")
    _check_values(quote, log.values, "the server's TPM")
    return quote.extra


def _check_level2(evidence: Evidence, key: PublicKey, wanted: bytes) -> None:
    quote = _quote(key, evidence.message, evidence.signature, "the µTPM")
    if quote.extra != wanted:
        raise EvidenceError(
            "the µTPM's quote is for another challenge, operation, VM or message: it is replayed or spliced"
        )
    values = dict.fromkeys(LEVEL2_PCRS, ZEROS)
    for pcr, data in ((CODE, evidence.code), *((one.pcr, one.data) for one in evidence.measured)):
        values[pcr] = extended(values[pcr], sha256(data).digest())
    _check_values(quote, values, "the µTPM")


def _quote(key: Public | PublicKey, message: bytes, signature: bytes, whose: str) -> Quote:
    try:
        signatures.verify(key, message, Signature.decode(signature))
        return Quote.decode(message)
    except EvidenceError as error:
        raise EvidenceError(f"the quote of {whose}: {error}") from error


def _check_values(quote: Quote, values: dict[int, bytes], whose: str) -> None:
    try:
        check_values(quote, values)
    except EvidenceError as error:
        raise EvidenceError(f"the quote of {whose}: {error}") from error


def _said(evidence: Evidence, server: _Server) -> AttestedFacts:
    data: dict[int, list[bytes]] = {pcr: [] for pcr in LEVEL2_PCRS}
    for one in evidence.measured:
        data[one.pcr].append(one.data)
    if len(data[SESSION_KEY]) > 1 or len(data[IMAGE]) > 1:
        raise EvidenceError("the session has two keys, or two images: it is not clear which one is meant")
    key, image, reports = data[SESSION_KEY], data[IMAGE], data[REPORT]
    return AttestedFacts(
        server.name,
        server.environment,
        key[0] if key else b"",
        image[0] if image else None,
        reports[-1] if reports else None,
    )
