"""The receipt of a job, ``_RECEIPT.json`` beside ``_SUCCESS``: all that a verifier needs later.

One JSON document in one canonical form: the members in the order given here, no spaces, no member missing, bytes in
base64 with padding, times in UTC (``2026-01-31T12:00:00Z``). A document that is not equal to its own re-encoding is
refused, so that no two receipts say the same thing. Nothing in it is compressed. Bounds: 64 MiB, 4,000,000 lists and
objects::

    format      "quoreduce receipt 1"
    job         name, f, need (votes that win), mode, digest (of outputs), batch (mode), samples, maps, reduces (numbers
                of tasks), options (strings by name)
    challenge   the challenger's nonce, 32 bytes
    started, ended
    launches    level 1, a node each: see evidence.LateLaunch
    utpms       level 2, a worker each: launch (place in the list above), domain, public (TPMT_PUBLIC), sealed,
                batches: lists of count, root, quote (TPMS_ATTEST), signature (TPMT_SIGNATURE), in order of their
                numbers
    tasks       an entry for each (kind, index, input, output) that was seen, ascending: kind (0 sample, 1 map, 2
                reduce), index, agreed (1: this output won the vote, else 0), digest of the input, digest of the output,
                and its leaves, ascending by attempt: utpm, batch, position, attempt. All leaves are here, those of
                losing replicas too.
    reads       for each reduce in order: records that it read (part of what was voted on)
    manifest    BLAKE3 of the bytes of ``_SUCCESS``
    seals       for each µTPM that is ``sealed``, in order: utpm, quote, signature; the nonce is evidence.seal_nonce

A leaf's bytes are evidence.task_leaf. The job's id is over ``job`` and the challenge. **Seals** bind all that no leaf
holds (times, the manifest, the participants, the end of each list): they are quoted when all the rest is known. A µTPM
that ended before has no seal, and is not ``sealed``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from operator import attrgetter
from typing import Annotated, Final, Literal

import msgspec

from quoreduce.errors import EvidenceError
from quoreduce.trust.batcher import Mode
from quoreduce.trust.evidence import KINDS, Count, Hash, Index, Kind, LateLaunch, Name, QuotedBatch, Small, task_leaf

FILE: Final = "_RECEIPT.json"
RECEIPT_BYTES_MAX: Final = 64 << 20
CONTAINERS_MAX: Final = 4_000_000
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
Utc = Annotated[datetime, msgspec.Meta(tz=True)]


class JobRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ran. ``need`` is the number of distinct domains whose votes win: f+1, or 1 in mode ``original``."""

    name: Name
    f: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
    need: Annotated[int, msgspec.Meta(ge=1, le=(1 << 16) + 1)]
    mode: Name
    digest: Name
    batch: Mode
    samples: Annotated[int, msgspec.Meta(ge=0, le=1)]
    maps: Index
    reduces: Index
    options: Annotated[dict[Name, Annotated[str, msgspec.Meta(max_length=4096)]], msgspec.Meta(max_length=256)]


class Utpm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worker's µTPM and its batches."""

    launch: Index
    domain: Name
    public: Small
    sealed: bool
    batches: tuple[QuotedBatch, ...]


class Leaf(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Where the leaf of one execution is."""

    utpm: Index
    batch: Index
    position: Index
    attempt: Count


class TaskEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The executions of a task that had the same input and output."""

    kind: Annotated[int, msgspec.Meta(ge=0, lt=len(KINDS))]
    index: Index
    agreed: Annotated[int, msgspec.Meta(ge=0, le=1)]
    input: Hash
    output: Hash
    leaves: Annotated[tuple[Leaf, ...], msgspec.Meta(min_length=1)]


class Seal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The quote with which a µTPM vouches for the whole receipt."""

    utpm: Index
    message: Small
    signature: Small


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A receipt; the members are described above."""

    format: Literal["quoreduce receipt 1"] = "quoreduce receipt 1"
    job: JobRecord
    challenge: Hash
    started: Utc
    ended: Utc
    launches: tuple[LateLaunch, ...]
    utpms: tuple[Utpm, ...]
    tasks: tuple[TaskEntry, ...]
    reads: tuple[Count, ...]
    manifest: Hash
    seals: tuple[Seal, ...] = ()

    def encode(self) -> bytes:
        """Return the canonical bytes. Raises EvidenceError if they are more than a verifier would read."""
        return _bounded(_ENCODER.encode(self))

    def sealed(self, seals: Iterable[Seal]) -> Receipt:
        """Return this receipt with seals: quotes of the µTPMs that are ``sealed``, in their order."""
        return msgspec.structs.replace(self, seals=tuple(seals))

    def body(self) -> bytes:
        """Return SHA-256 of the canonical bytes without seals: what :func:`quoreduce.trust.evidence.seal_nonce`
        takes.
        """
        return sha256(_ENCODER.encode(self.sealed(()))).digest()


_DECODER: Final = msgspec.json.Decoder(Receipt)


def job_id(challenge: bytes, job: JobRecord) -> bytes:
    """Return the id of a job, 32 bytes: it differs for each challenge."""
    return sha256(b"quoreduce job 1" + challenge + _ENCODER.encode(job)).digest()


def decode_receipt(raw: bytes) -> Receipt:
    """Decode a receipt. Raises EvidenceError if it is too large, malformed, or not in canonical form."""
    _bounded(raw)
    try:
        receipt = _DECODER.decode(raw)
        again = _ENCODER.encode(receipt)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise EvidenceError(f"no quoreduce receipt: {' '.join(str(error).split())[:200]}") from error
    if again != raw:
        raise EvidenceError("the receipt is not in canonical form: it was edited, or another program wrote it")
    if receipt.started.utcoffset() or receipt.ended.utcoffset():
        raise EvidenceError("the receipt has times that are not in UTC")
    return receipt


def _bounded(raw: bytes) -> bytes:
    if len(raw) > RECEIPT_BYTES_MAX:
        raise EvidenceError(f"a receipt of {len(raw)} bytes, over the bound of {RECEIPT_BYTES_MAX}")
    containers = raw.count(b"[") + raw.count(b"{")
    if containers > CONTAINERS_MAX:
        raise EvidenceError(f"a receipt of {containers} lists and objects, over the bound of {CONTAINERS_MAX}")
    return raw


class TaskLog:
    """The measured executions that the driver knows: they become the receipt's entries."""

    def __init__(self) -> None:
        self._leaves: dict[tuple[int, int, bytes, bytes], list[Leaf]] = {}
        self._agreed: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    def measured(
        self, kind: Kind, index: int, input: bytes, output: bytes, *,  # noqa: A002
        utpm: int, batch: int, position: int, attempt: int,
    ) -> None:  # fmt: skip
        """Note a leaf of a batch that was checked."""
        key = (KINDS.index(kind), index, input, output)
        self._leaves.setdefault(key, []).append(Leaf(utpm, batch, position, attempt))

    def agreed(self, kind: Kind, index: int, input: bytes, output: bytes) -> None:  # noqa: A002
        """Note which output of a task won the vote, and of which input; the last call for a task counts."""
        self._agreed[KINDS.index(kind), index] = (input, output)

    def entries(self) -> tuple[TaskEntry, ...]:
        """Return the entries in canonical order."""
        return tuple(
            TaskEntry(
                *key[:2],
                int(self._agreed.get(key[:2]) == key[2:]),
                *key[2:],
                tuple(sorted(leaves, key=attrgetter("attempt"))),
            )
            for key, leaves in sorted(self._leaves.items())
        )


def batch_leaves(receipt: Receipt) -> dict[tuple[int, int], list[bytes]]:
    """Return the leaves of each (utpm, batch), in the order of their positions, from the entries of the receipt.

    Raises:
        EvidenceError: entries or attempts out of order, or twice; two leaves in one place; an empty place.
    """
    job = job_id(receipt.challenge, receipt.job)
    found: dict[tuple[int, int], dict[int, bytes]] = {}
    seen: set[int] = set()
    before: tuple[int, int, bytes, bytes] | None = None
    for entry in receipt.tasks:
        key = (entry.kind, entry.index, entry.input, entry.output)
        attempts = [leaf.attempt for leaf in entry.leaves]
        if (before is not None and before >= key) or attempts != sorted(attempts):
            raise EvidenceError(f"entries are not in order at {task_name(entry)}")
        before = key
        for leaf in entry.leaves:
            if leaf.attempt in seen:
                raise EvidenceError(f"execution {leaf.attempt} of {task_name(entry)} is listed twice")
            seen.add(leaf.attempt)
            places = found.setdefault((leaf.utpm, leaf.batch), {})
            if leaf.position in places:
                raise EvidenceError(f"two leaves at position {leaf.position} of batch {leaf.batch} of µTPM {leaf.utpm}")
            places[leaf.position] = task_leaf(
                job, KINDS[entry.kind], entry.index, leaf.attempt, entry.input, entry.output
            )
    return {place: _in_order(place, leaves) for place, leaves in found.items()}


def task_name(entry: TaskEntry) -> str:
    """Return a name of an entry's task for people: ``map 3``."""
    return f"{KINDS[entry.kind]} {entry.index}"


def _in_order(place: tuple[int, int], leaves: Mapping[int, bytes]) -> list[bytes]:
    ordered = [leaves[position] for position in range(len(leaves)) if position in leaves]
    if len(ordered) != len(leaves):
        raise EvidenceError(f"a leaf of batch {place[1]} of µTPM {place[0]} is missing among those listed")
    return ordered
