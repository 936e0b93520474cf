"""The messages between the driver and its workers: msgpack bytes, decoded under a size cap (R10).

Nothing that a worker returns is unpickled. The job's code goes the other way only, from the trusted driver to its
workers (R12), as cloudpickle bytes in :class:`Setup`. Requests and replies are unions of structs, each with a tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec

from quoreduce.data.locate import Spot
from quoreduce.data.splits import Split
from quoreduce.errors import EvidenceError, HostError, one_line

if TYPE_CHECKING:
    from quoreduce.trust.evidence import Hardware

REPLY_BYTES_MAX = 64 << 20
SIDE_BYTES_MAX = 1 << 20
ERROR_CHARS_MAX = 2000
COUNTERS_MAX = 64
COUNTER_CHARS_MAX = 64
SLIPS_MAX = 8
SUMS_BYTES_MAX = 4096
INT_MAX = (1 << 63) - 1

Count = Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]
Offset = Annotated[int, msgspec.Meta(ge=-1, le=INT_MAX)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
T = TypeVar("T")
Sums = Annotated[bytes, msgspec.Meta(max_length=SUMS_BYTES_MAX)]
Evidence = Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
CounterName = Annotated[str, msgspec.Meta(min_length=1, max_length=COUNTER_CHARS_MAX)]
Counters = Annotated[dict[CounterName, Count], msgspec.Meta(max_length=COUNTERS_MAX)]


class Attested(msgspec.Struct, frozen=True):
    """How a worker is to attest a job; see :mod:`quoreduce.trust.evidence` for the terms."""

    job: Digest
    challenge: Digest
    domain: str
    scheme: str
    batch: str


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """Begin a job: everything that stays the same for all of its tasks. ``generation`` numbers jobs within a session.

    ``store``: the folder for outputs of maps, if it is to outlive the session (durable jobs). ``gone``: workers that
    died before this job; their stored outputs are not read any more.
    """

    generation: int
    job: bytes
    algorithm: str
    key: bytes
    reducers: int
    seed: int
    sources: tuple[Split, ...] = ()
    maps: int = 1
    attested: Attested | None = None
    store: str = ""
    gone: tuple[str, ...] = ()


class Fault(msgspec.Struct, frozen=True):
    """An injected fault, carried by the request that it strikes. ``seed`` fixes which bit or byte is hit."""

    kind: str
    seed: int


class StoredCopy(msgspec.Struct, frozen=True):
    """Where one copy of one partition lies, and the digest that was claimed for it. Sizes and offsets in bytes.

    ``node`` is empty if every node can read ``path``.
    """

    attempt: int
    worker: str
    node: str
    path: str
    offset: int
    nbytes: int
    digest: bytes


class MapTask(msgspec.Struct, frozen=True, tag="map"):
    """Run a map over a split; keep its blocks if ``store``; read the split past the page cache if ``direct``."""

    attempt: int
    index: int
    split: Split
    side: bytes
    store: bool
    fault: Fault | None = None
    direct: bool = False


class ReduceTask(msgspec.Struct, frozen=True, tag="reduce"):
    """Run a reduce over partition ``index``; write to ``paths`` if there are any. ``sources[m]`` are the copies of map
    m.

    ``watch``: check again, at the end, what was read from shared memory (R6).
    """

    attempt: int
    index: int
    side: bytes
    sources: tuple[tuple[StoredCopy, ...], ...]
    paths: tuple[str, ...]
    fault: Fault | None = None
    watch: bool = False


class CheckTask(msgspec.Struct, frozen=True, tag="check"):
    """Sum up the input and the stored output of a task under ``key`` (R13). The checker is not told what to find.

    ``stored``: the output, a copy for each partition of a map; of a reduce its part. Their digests are left empty. A
    map has a ``split``, a reduce ``sources``.
    """

    attempt: int
    kind: Literal["map", "reduce"]
    index: int
    key: Digest
    side: bytes
    stored: tuple[StoredCopy, ...]
    split: Split | None = None
    sources: tuple[tuple[StoredCopy, ...], ...] = ()
    fault: Fault | None = None


class SampleTask(msgspec.Struct, frozen=True, tag="sample"):
    """Run the job's sample over all splits; the data comes back in the reply."""

    attempt: int
    fault: Fault | None = None


class RereadTask(msgspec.Struct, frozen=True, tag="reread"):
    """Recompute the digest of a part before it is published; ``attempt`` is the reduce's."""

    attempt: int
    path: str
    stride: int


class ProbeTask(msgspec.Struct, frozen=True, tag="probe"):
    """Execute a task once more, to see whether a fault repeats: no vote, and nothing that is attested."""

    attempt: int
    task: MapTask | ReduceTask | SampleTask


class InspectTask(msgspec.Struct, frozen=True, tag="inspect"):
    """Look into a stored copy, to see what went wrong; ``attempt`` numbers the question.

    ``digest``: recompute it. ``nodes``: of ``level``, of the chunks ``first`` to ``first + count``
    (:mod:`quoreduce.data.tree`). ``bytes``: ``first`` to ``first + count``. ``spot``: what lies at byte ``first``.
    ``layout``: ``block``, or that of a part.
    """

    attempt: int
    what: Literal["digest", "nodes", "bytes", "spot"]
    copy: StoredCopy
    layout: str
    first: int = 0
    count: int = 0
    level: int = 0


class InputTask(msgspec.Struct, frozen=True, tag="input"):
    """Read a split, past the page cache if ``direct``, and return the digest of its records. ``attempt`` numbers the
    question.
    """

    attempt: int
    split: Split
    direct: bool


class SelfTest(msgspec.Struct, frozen=True, tag="selftest"):
    """Run known-answer tests ``rounds`` times. ``attempt``: the number of the test. A fault strikes ``percent`` of all
    runs.
    """

    attempt: int
    rounds: int
    names: tuple[str, ...]
    fault: Fault | None = None
    percent: int = 0


class DiscardTask(msgspec.Struct, frozen=True, tag="discard"):
    """Drop stored blocks: of whole attempts (lost votes), and byte ranges ``(path, offset, nbytes)`` that are not
    needed.
    """

    attempts: tuple[int, ...]
    ranges: tuple[tuple[str, int, int], ...] = ()


class RootTask(msgspec.Struct, frozen=True, tag="root"):
    """Launch an environment on this node's TPM: extend its document and its µTPMs' keys, and quote with ``nonce``."""

    backend: str
    state: str
    document: bytes
    keys: tuple[bytes, ...]
    nonce: bytes


class CommitTask(msgspec.Struct, frozen=True, tag="commit"):
    """Commit a batch of the oldest ``count`` leaves."""

    count: int


class SealTask(msgspec.Struct, frozen=True, tag="seal"):
    """Quote everything that was committed, with ``nonce``."""

    nonce: bytes


class Admission(msgspec.Struct, frozen=True, array_like=True):
    """What a worker consists of: its environment's document, and its µTPM's public area (TPMT_PUBLIC)."""

    document: Evidence
    public: Evidence


class Committed(msgspec.Struct, frozen=True, array_like=True):
    """A batch: number of leaves, root, quote (TPMS_ATTEST), signature (TPMT_SIGNATURE)."""

    count: Count
    root: Digest
    message: Evidence
    signature: Evidence


class Quoted(msgspec.Struct, frozen=True, array_like=True):
    """A quote (TPMS_ATTEST) and its signature (TPMT_SIGNATURE)."""

    message: Evidence
    signature: Evidence


Request = (
    Setup
    | MapTask
    | ReduceTask
    | SampleTask
    | CheckTask
    | RereadTask
    | ProbeTask
    | InspectTask
    | InputTask
    | SelfTest
    | DiscardTask
    | RootTask
    | CommitTask
    | SealTask
)


class Slip(msgspec.Struct, frozen=True, array_like=True):
    """A partition of ``attempt`` that was wrong when it was fetched first, and right when it was fetched again.

    ``offset``: of the first byte that differed; -1 if none differs any more. ``bits``: how many differ in the 1024
    bytes around it. ``right`` and ``wrong``: what lies there.
    """

    attempt: Count
    offset: Offset
    bits: Count = 0
    right: Spot | None = None
    wrong: Spot | None = None


class PartReply(msgspec.Struct, frozen=True, array_like=True):
    """One partition: digest, records, size and offset of its block within the stored file, in bytes."""

    digest: Digest
    records: Count
    nbytes: Count
    offset: Offset


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What all replies carry: the ``generation`` of the job that the worker is in, and the CPU time that it took."""

    generation: Count = 0
    cpu_s: Seconds = 0.0


Error = Annotated[str, msgspec.Meta(max_length=2 * ERROR_CHARS_MAX)]


class Ready(_Reply, frozen=True, tag="ready"):
    """The worker has begun the job. ``admission``: an :class:`Admission`, if the job is attested."""

    admission: bytes = b""


class NotReady(_Reply, frozen=True, tag="not ready"):
    """The worker could not begin the job. ``host``: its machine failed, not the job's code."""

    error: Error
    host: bool = False


class Done(_Reply, frozen=True, tag="done"):
    """A task was executed; ``parts`` hold its output. ``data``: the output of a sample.

    ``bad``: attempts whose copies did not match their digests or are gone. ``slips``: the first SLIPS_MAX partitions
    that had to be fetched again. ``counters``: what the job counted; they are not voted on.
    """

    attempt: Count
    parts: tuple[PartReply, ...] = ()
    path: str = ""
    data: bytes = b""
    records_in: Count = 0
    bytes_in: Count = 0
    bytes_shipped: Count = 0
    bad: tuple[Count, ...] = ()
    refetched: Count = 0
    counters: Counters = {}
    slips: Annotated[tuple[Slip, ...], msgspec.Meta(max_length=SLIPS_MAX)] = ()


class Summed(_Reply, frozen=True, tag="summed"):
    """What the input and the stored output of a task add up to. ``parts``: of the bytes that were summed. ``found`` is
    empty if they are not in the form that the output has.
    """

    attempt: Count
    parts: tuple[PartReply, ...]
    given: Sums
    found: Sums
    records_in: Count = 0
    bytes_in: Count = 0
    bytes_shipped: Count = 0
    refetched: Count = 0


class JobRaised(_Reply, frozen=True, tag="failed"):
    """The job's code raised; the first line of ``error`` is voted on."""

    attempt: Count
    error: Error


class InputsRefused(_Reply, frozen=True, tag="refused"):
    """A reduce could not use the copies of the attempts ``bad``: they did not match their digests, or are gone."""

    attempt: Count
    bad: tuple[Count, ...] = ()
    error: Error = ""


class HostFailed(_Reply, frozen=True, tag="host failed"):
    """The machine failed the worker: no vote."""

    attempt: Count
    error: Error


class Reread(_Reply, frozen=True, tag="reread"):
    """The digest of a part, recomputed."""

    attempt: Count
    digest: Digest


class Inspected(_Reply, frozen=True, tag="inspected"):
    """What was asked for of a copy or of an input, and how many bytes it has."""

    attempt: Count
    data: bytes = b""
    digest: Digest | None = None
    bytes_in: Count = 0


class Tested(_Reply, frozen=True, tag="tested"):
    """Digests of the answers to the known-answer test of this number."""

    test: Count
    data: bytes


class NotTested(_Reply, frozen=True, tag="not tested"):
    """A known-answer test could not be run to its end."""

    test: Count
    error: Error


class LaunchQuoted(_Reply, frozen=True, tag="launch quoted"):
    """The evidence that a :class:`RootTask` asks for, a :class:`quoreduce.trust.evidence.Hardware`."""

    evidence: bytes


class BatchQuoted(_Reply, frozen=True, tag="batch quoted"):
    """The evidence that a :class:`CommitTask` asks for, a :class:`Committed`."""

    evidence: bytes


class SealQuoted(_Reply, frozen=True, tag="seal quoted"):
    """The evidence that a :class:`SealTask` asks for, a :class:`Quoted`."""

    evidence: bytes


class NotQuoted(_Reply, frozen=True, tag="not quoted"):
    """Evidence that was asked for could not be given."""

    error: Error


Attempted = Done | Summed | JobRaised | InputsRefused | HostFailed | Reread | Inspected
"""Replies to requests that carry the number of an attempt."""

SetupReply = Ready | NotReady
EvidenceReply = LaunchQuoted | BatchQuoted | SealQuoted | NotQuoted
Reply = SetupReply | Attempted | Tested | NotTested | EvidenceReply


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply | Admission | Committed | Quoted | Hardware | Spot) -> bytes:
    """Encode a message, or the evidence in one."""
    return _encoder.encode(message)


def encode_splits(splits: tuple[Split, ...]) -> bytes:
    """Encode splits, as their digest is made: where they lie, and not which file it was when the job was planned."""
    return _encoder.encode(tuple(msgspec.structs.replace(split, identity=None) for split in splits))


def decode_evidence(raw: bytes, kind: type[T]) -> T:
    """Decode the evidence in a reply. Raises EvidenceError if malformed."""
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EvidenceError(
            f"a worker returned bytes that are no {kind.__name__.lower()}: {one_line(error)}"
        ) from error


def decode_request(raw: bytes) -> Request:
    """Decode what the driver sent."""
    request: Request = _requests.decode(raw)
    return request


def decode_reply(raw: bytes) -> Reply:
    """Decode what a worker returned. Raises HostError if it is too large or malformed."""
    if len(raw) > REPLY_BYTES_MAX:
        raise HostError(f"a worker returned {len(raw)} bytes; at most {REPLY_BYTES_MAX} are read")
    try:
        return _replies.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: strings that are not UTF-8
        raise HostError(f"a worker returned bytes that are no reply: {one_line(error)}") from error
