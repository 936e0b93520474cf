"""The TCOM of status: says, attested, where this server stands with a VM. Pure; it changes nothing.

What it says is what the record says, so what is durable: a phase is told to nobody before it would survive a crash.
"""

from __future__ import annotations

from hashlib import sha256

from quoreduce.cloud import wire
from quoreduce.cloud.ports import NO_ORDER, Command, EndTcom, Record, SendAttested, StartTcom


def answer(vmid: bytes, record: Record | None, nonce: bytes, reply: str, busy: bool, floor: int = 0) -> list[Command]:
    """Answer a query, or an order to settle, with this nonce; to ``reply``, whoever that is.

    ``busy``: something is being done with the VM. ``floor``: without a record, the number up to which no order of its owner is
    taken any more.
    """
    session = sha256(b"quoreduce vm status 1" + nonce + reply.encode()).digest()
    status = wire.Status(vmid, "unknown", 0, NO_ORDER, floor, nonce)
    if record is not None:
        status = wire.Status(
            vmid, record.phase, record.sequence, record.order, record.number, nonce, record.peer, record.report, record.dirty,
            busy,
        )  # fmt: skip
    return [
        StartTcom(session, "status"),
        SendAttested(session, (reply,), nonce, vmid, wire.encode(status)),
        EndTcom(session),
    ]
