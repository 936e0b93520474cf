"""What is measured, what each quote is bound to, and how one link of the chain is checked. Pure.

All byte layouts are fixed; integers are big-endian; ``challenge`` is the challenger's nonce, 32 bytes::

    job id          SHA-256( "quoreduce job 1" || challenge || canonical JSON of the job )     (receipt.job_id)
    task leaf       "quoreduce task 1" || job id 32 || kind u8 (0 sample, 1 map, 2 reduce) || index u64 || attempt u64
                    || input digest 32 || output digest 32
    part's output   BLAKE3( BLAKE3( "quoreduce output 1" || digest 32 || records ) || records read || bytes )
                    what is voted on for a reduce; these three numbers are u64, little-endian
    launch nonce    SHA-256( "quoreduce launch 1" || challenge || job id || node, UTF-8 )
    batch nonce     SHA-256( "quoreduce batch 1" || challenge || batch number u64 )
    seal nonce      SHA-256( "quoreduce receipt 1" || challenge || SHA-256( the receipt without its seals ) )
    operation       SHA-256( "quoreduce operation 1" || job id || domain, UTF-8 )
    enrolment       "quoreduce enrolment 1" || SHA-256( EK certificate, DER ) || name of the AK

Level 1, a node's TPM: PCR 17 holds the environment (DRTM, from zero), PCR 19 the public area of each µTPM of the node,
in the order of the node's event log; one quote covers both. Level 2, a worker's µTPM: µPCR 0 holds the environment's
digest, µPCR 1 the operation, µPCR 16 the batches; each quote covers the three.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final, Literal

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from quoreduce.errors import EvidenceError
from quoreduce.trust import signatures
from quoreduce.trust.batcher import BATCH_PCR, LEAVES_MAX, Batch, Mode, batch_event, batch_root
from quoreduce.trust.eventlog import Event, decode_binary, replay
from quoreduce.trust.pcr import ZEROS, extended
from quoreduce.trust.port import Tpm
from quoreduce.trust.wire import PcrSelection, Public, PublicKey, Quote, Signature, pcr_digest

Kind = Literal["sample", "map", "reduce"]
KINDS: Final[tuple[Kind, ...]] = ("sample", "map", "reduce")
CHALLENGE_BYTES: Final = 32
CODE_PCR: Final = 0
OPERATION_PCR: Final = 1
ENVIRONMENT_PCR: Final = 17
KEYS_PCR: Final = 19
LEVEL1_PCRS: Final = (ENVIRONMENT_PCR, KEYS_PCR)
LEVEL2_PCRS: Final = (CODE_PCR, OPERATION_PCR, BATCH_PCR)
SOFTWARE: Final = ("utpm", "modelled")  # backends without a TPM for which others vouch
HARDWARE: Final = ("swtpm", "tpm2")
_LEAF: Final = struct.Struct(">16s32sBQQ32s32s")

Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Small = Annotated[bytes, msgspec.Meta(max_length=4096)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=1 << 24)]


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a certified TPM adds to a launch.

    Attributes:
        ek: the endorsement key's certificate, then intermediate ones, DER.
        ak: the attestation key, TPM2B_PUBLIC.
        enrolment: the registrar's Ed25519 signature over :func:`enrolment_record`.
        message, signature: the quote over PCRs 17 and 19 (TPMS_ATTEST, TPMT_SIGNATURE).
    """

    ek: Annotated[tuple[Small, ...], msgspec.Meta(min_length=1, max_length=8)]
    ak: Small
    enrolment: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    message: Small
    signature: Small


class LateLaunch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Level 1, once for each node. ``log`` is a TCG binary log: one event of PCR 17, then one of PCR 19 for each µTPM.

    ``hardware`` is None for the backends of SOFTWARE: there the log is the driver's own, and no TPM confirms it.
    """

    node: Name
    backend: Literal["utpm", "modelled", "swtpm", "tpm2"]
    log: Annotated[bytes, msgspec.Meta(max_length=1 << 22)]
    hardware: Hardware | None = None


class QuotedBatch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Level 2: a batch that was extended and quoted. Its number is its place in the list of its µTPM."""

    count: Annotated[int, msgspec.Meta(ge=1, le=LEAVES_MAX)]
    root: Hash
    message: Small
    signature: Small


def task_leaf(job: bytes, kind: Kind, index: int, attempt: int, input: bytes, output: bytes) -> bytes:  # noqa: A002
    """Return the leaf of one execution of a task, 129 bytes; struct.error for numbers that are no u64."""
    return _LEAF.pack(b"quoreduce task 1", job, KINDS.index(kind), index, attempt, input, output)


def part_output(digest: bytes, records: int, records_read: int, nbytes: int) -> bytes:
    """Return what is voted on for a reduce whose part has this digest, number of records and size in bytes."""
    inner = blake3(b"quoreduce output 1" + digest + struct.pack("<Q", records)).digest()
    return blake3(inner + struct.pack("<QQ", records_read, nbytes)).digest()


def launch_nonce(challenge: bytes, job: bytes, node: str) -> bytes:
    """Return the nonce of a node's quote."""
    return sha256(b"quoreduce launch 1" + challenge + job + node.encode()).digest()


def batch_nonce(challenge: bytes, number: int) -> bytes:
    """Return the nonce of the quote of a batch."""
    return sha256(b"quoreduce batch 1" + challenge + number.to_bytes(8, "big")).digest()


def seal_nonce(challenge: bytes, body: bytes) -> bytes:
    """Return the nonce of the quotes that seal a receipt; ``body`` is SHA-256 of the receipt without seals."""
    return sha256(b"quoreduce receipt 1" + challenge + body).digest()


def operation_digest(job: bytes, domain: str) -> bytes:
    """Return what is extended into µPCR 1: the job, and the failure domain that the worker votes for."""
    return sha256(b"quoreduce operation 1" + job + domain.encode()).digest()


def enrolment_record(ek_certificate: bytes, ak: Public) -> bytes:
    """Return the bytes that a registrar signs when it has seen that ``ak`` lives in the TPM with this EK (DER)."""
    return b"quoreduce enrolment 1" + sha256(ek_certificate).digest() + ak.name()


def launch_log(document: bytes, keys: Sequence[bytes]) -> tuple[Event, ...]:
    """Return the events of a node: its environment document in PCR 17, public areas (TPMT_PUBLIC) of its µTPMs in PCR
    19.
    """
    return Event.of(ENVIRONMENT_PCR, document), *(Event.of(KEYS_PCR, key) for key in keys)


def begin(tpm: Tpm, document: bytes, job: bytes, domain: str) -> None:
    """Extend µPCRs 0 and 1 of a µTPM, before its first batch."""
    tpm.extend(CODE_PCR, sha256(document).digest())
    tpm.extend(OPERATION_PCR, operation_digest(job, domain))


def commit(tpm: Tpm, batch: Batch, challenge: bytes) -> QuotedBatch:
    """Extend and quote a batch. Its leaves count when :func:`check_batch` has accepted the result (the commit rule)."""
    tpm.extend(BATCH_PCR, batch.digest)
    quoted = tpm.quote(LEVEL2_PCRS, batch_nonce(challenge, batch.number))
    return QuotedBatch(len(batch.leaves), batch.root, quoted.message, quoted.signature)


def check_signature(key: Public | PublicKey, message: bytes, signature: bytes, nonce: bytes) -> Quote:
    """Check who signed a quote (TPMS_ATTEST, TPMT_SIGNATURE) and that it answers ``nonce``, and return it;
    EvidenceError.
    """
    signatures.verify(key, message, Signature.decode(signature))
    quote = Quote.decode(message)
    if quote.extra != nonce:
        raise EvidenceError("the quote answers another nonce: it is replayed, or of another job")
    return quote


def check_values(quote: Quote, values: Mapping[int, bytes]) -> None:
    """Check that a quote covers just these PCRs of the SHA-256 bank, with these values. Raises EvidenceError."""
    if quote.selection != PcrSelection.sha256(*values):
        raise EvidenceError(
            f"the quote does not cover PCRs {', '.join(map(str, sorted(values)))} of SHA-256, or others too"
        )
    if quote.pcr_digest != pcr_digest([values[pcr] for pcr in sorted(values)]):
        raise EvidenceError("the quote is over other PCR values than these")


@dataclass(frozen=True, slots=True)
class LaunchLog:
    """What a node's log says: the environment document, the µTPMs' public areas, and the values of PCRs 17 and 19."""

    document: bytes
    keys: tuple[bytes, ...]
    values: dict[int, bytes]

    @classmethod
    def decode(cls, raw: bytes) -> LaunchLog:
        """Decode the log of a launch. Raises EvidenceError if it has other events than a launch makes."""
        events = decode_binary(raw)
        pcrs = [event.pcr for event in events]
        if pcrs[:1] != [ENVIRONMENT_PCR] or set(pcrs[1:]) - {KEYS_PCR}:
            raise EvidenceError("the log is not one event of PCR 17 and then the µTPMs' of PCR 19")
        values = replay(events, dict.fromkeys(LEVEL1_PCRS, ZEROS))
        return cls(events[0].data, tuple(event.data for event in events[1:]), values)

    @property
    def environment(self) -> bytes:
        """The digest of the environment document: the configuration that policies name."""
        return sha256(self.document).digest()


def check_launch_signature(launch: LateLaunch, hardware: Hardware, job: bytes, challenge: bytes) -> Quote:
    """Check that the AK signed the quote of a node for this job, and return it. Raises EvidenceError."""
    nonce = launch_nonce(challenge, job, launch.node)
    return check_signature(attestation_key(hardware.ak), hardware.message, hardware.signature, nonce)


def attestation_key(ak: bytes) -> Public:
    """Decode an AK (TPM2B_PUBLIC). Raises EvidenceError if it could sign what no TPM made."""
    key = Public.decode_sized(ak)
    if not key.is_restricted_signing:
        raise EvidenceError("the AK is not a restricted signing key: it signs anything it is given")
    return key


def check_enrolment(hardware: Hardware, registrar: bytes) -> None:
    """Check that the registrar (Ed25519, 32 bytes) has bound this AK to this EK certificate. Raises EvidenceError."""
    record = enrolment_record(hardware.ek[0], attestation_key(hardware.ak))
    try:
        Ed25519PublicKey.from_public_bytes(registrar).verify(hardware.enrolment, record)
    except (InvalidSignature, ValueError) as error:
        raise EvidenceError("the registrar has not bound this AK to this EK") from error


class Follower:
    """Checks the quotes of one µTPM in their order, for the driver while the job runs, and for the verifier afterwards.

    After a refused quote it accepts no other: a µTPM that was wrong once stays refused.
    """

    def __init__(
        self, public: bytes, environment: bytes, domain: str, job: bytes, challenge: bytes, mode: Mode
    ) -> None:
        """Begin before the first batch.

        Args:
            public: of the µTPM, TPMT_PUBLIC.
            environment: digest of the environment's document.
            domain: for which the worker votes.
            job, challenge: 32 bytes each.
            mode: of the batches.

        Raises:
            EvidenceError: ``public`` is not a restricted signing key.
        """
        self.key = Public.decode(public)
        if not self.key.is_restricted_signing:
            raise EvidenceError("the µTPM's key is not a restricted signing key")
        self.domain, self.mode, self.challenge = domain, mode, challenge
        self._fixed = extended(ZEROS, environment), extended(ZEROS, operation_digest(job, domain))
        self._batches = ZEROS
        self._clock: tuple[int, int, int] | None = None
        self.number = 0
        self.refused = False

    def follow(self, batch: QuotedBatch) -> None:
        """Check the quote of the next batch: signature, nonce, replay of µPCR 16, clock. EvidenceError, for good."""
        event = batch_event(self.number, self.mode, batch.count, batch.root)
        value = extended(self._batches, sha256(event).digest())
        nonce = batch_nonce(self.challenge, self.number)
        self._check(batch.message, batch.signature, nonce, value)
        self._batches = value
        self.number += 1

    def check_seal(self, message: bytes, signature: bytes, body: bytes) -> None:
        """Check the quote that seals a receipt, after all batches; ``body`` as for :func:`seal_nonce`.
        EvidenceError.
        """
        self._check(message, signature, seal_nonce(self.challenge, body), self._batches)

    def _check(self, message: bytes, signature: bytes, nonce: bytes, value: bytes) -> None:
        if self.refused:
            raise EvidenceError("an earlier quote of this µTPM was refused")
        self.refused = True  # until everything below has passed, whatever is raised
        quote = check_signature(self.key, message, signature, nonce)
        check_values(quote, dict(zip(LEVEL2_PCRS, (*self._fixed, value), strict=True)))
        clock = quote.clock
        now = clock.reset_count, clock.restart_count, clock.clock_ms
        if self._clock is not None and (now[:2] != self._clock[:2] or now[2] < self._clock[2]):
            raise EvidenceError("the µTPM was reset between two quotes, or its clock went back")
        self._clock = now
        self.refused = False


def check_leaves(batch: QuotedBatch, mode: Mode, leaves: Sequence[bytes]) -> None:
    """Check that these are all the leaves of a batch, in its order. Raises EvidenceError."""
    if len(leaves) != batch.count:
        raise EvidenceError(f"{len(leaves)} leaves are listed of a batch of {batch.count}")
    if (mode == "none" and batch.count != 1) or batch_root(mode, leaves) != batch.root:
        raise EvidenceError("the root of the batch is not that of the leaves listed")


def check_batch(follower: Follower, batch: QuotedBatch, leaves: Sequence[bytes]) -> None:
    """Check the next batch of a µTPM against the leaves that were mirrored; if it returns, they are measured.

    Raises:
        EvidenceError: other leaves, or a wrong quote; then no later batch of this µTPM is accepted either.
    """
    try:
        check_leaves(batch, follower.mode, leaves)
    except Exception:
        follower.refused = True
        raise
    follower.follow(batch)
