"""What is voted on (R4): one digest of all that a reply says and that is used later.

The driver computes it of each reply, and a worker that attests its work computes the same for its leaf.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from quoreduce.data.digest import output_digest
from quoreduce.runtime import wire
from quoreduce.tracker import messages as m


def outcome(kind: str, reply: wire.Reply) -> bytes:
    """The digest that is voted on, of a reply that is a vote (``ok`` or ``failed``); ``kind`` is sample, map or reduce.

    Nothing that is used later is taken from one replica on trust: it covers the partitions' digests, record counts and sizes,
    the records read, and for a sample the data in the reply. Of an error it covers the first line: the lines after it are
    details, in which replicas may differ.
    """
    if reply.status == "failed":
        return blake3(reply.error.partition("\n")[0].encode()).digest()
    figures = struct.pack(f"<{len(reply.parts) + 1}Q", reply.records_in, *(part.nbytes for part in reply.parts))
    data = blake3(reply.data).digest() if kind == "sample" else b""
    whole = output_digest([(part.digest, part.records) for part in reply.parts])
    return blake3(whole + figures + data).digest()


def event_of(kind: str, reply: wire.Reply) -> m.Event:
    """What a reply to a task of this ``kind`` is to the tracker: a vote, or a refusal."""
    if reply.status == "ok":
        parts = tuple(m.Part(p.digest, p.records, p.nbytes) for p in reply.parts)
        return m.Finished(reply.attempt, m.Output(outcome(kind, reply), parts))
    if reply.status == "failed":
        return m.Failed(reply.attempt, reply.error, outcome(kind, reply))
    return m.Refused(reply.attempt, reply.bad)
