"""What is voted on (R4): one digest of all that a reply says and that is used later; and one of what a task was given.

The driver computes both of each reply. A worker that attests its work computes the same, for its leaf.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from blake3 import blake3

from quoreduce.data.digest import output_digest
from quoreduce.protocol import wire
from quoreduce.tracker import messages as m

if TYPE_CHECKING:
    from quoreduce.trust import evidence

Answered = wire.MapTask | wire.ReduceTask | wire.SampleTask


def outcome(kind: str, reply: wire.Done | wire.Summed | wire.JobRaised) -> bytes:
    """The digest that is voted on, of a reply that is a vote; ``kind`` is sample, map or reduce.

    Nothing that is used later is taken from one replica on trust: it covers the partitions' digests, record counts and
    sizes, the records read, and for a sample the data in the reply. Of an error it covers the first line: the lines
    after it are details, in which replicas may differ.
    """
    if isinstance(reply, wire.JobRaised):
        return blake3(reply.error.partition("\n")[0].encode()).digest()
    figures = struct.pack(f"<{len(reply.parts) + 1}Q", reply.records_in, *(part.nbytes for part in reply.parts))
    data = blake3(reply.data).digest() if isinstance(reply, wire.Done) and kind == "sample" else b""
    whole = output_digest([(part.digest, part.records) for part in reply.parts])
    return blake3(whole + figures + data).digest()


def event_of(kind: str, reply: wire.Attempted) -> m.Event:
    """What a reply to a task of this ``kind`` is to the tracker: a vote, the sums of a check, or a refusal."""
    match reply:
        case wire.Done(attempt):
            parts = tuple(m.Part(p.digest, p.records, p.nbytes) for p in reply.parts)
            return m.Finished(attempt, m.Output(outcome(kind, reply), parts))
        case wire.Summed(attempt, _, given, found):
            parts = tuple(m.Part(p.digest, p.records, p.nbytes) for p in reply.parts)
            return m.Checked(attempt, m.Output(outcome(kind, reply), parts), given, found)
        case wire.JobRaised(attempt, error):
            return m.Failed(attempt, error, outcome(kind, reply))
        case wire.InputsRefused(attempt, bad):
            return m.Refused(attempt, bad)
    return m.Refused(reply.attempt, ())  # the machine failed, or this is no answer to a task


def kind_of(task: Answered) -> tuple[evidence.Kind, int]:
    """The kind and index of a task as they stand in its leaf."""
    if isinstance(task, wire.SampleTask):
        return "sample", 0
    return ("map" if isinstance(task, wire.MapTask) else "reduce"), task.index


def input_digest(task: Answered, setup: wire.Setup) -> bytes:
    """What a task was given, 32 bytes: the same for all its replicas.

    A map: where its split lies, and the agreed sample. A reduce: the digests of the partitions that it reads (which it
    recomputes over what it has read), and the sample. A sample: where all splits lie.
    """
    whole = blake3(b"quoreduce input 1")
    if isinstance(task, wire.SampleTask):
        whole.update(wire.encode_splits(setup.sources))
        return whole.digest()
    whole.update(len(task.side).to_bytes(8, "little") + task.side)
    if isinstance(task, wire.MapTask):
        whole.update(wire.encode_splits((task.split,)))
    else:
        whole.update(b"".join(copies[0].digest for copies in task.sources))
    return whole.digest()
