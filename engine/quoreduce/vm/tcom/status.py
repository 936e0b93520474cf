"""The TCOM of status: attests where this server stands with a VM. Pure; it changes nothing.

It says what the record says, and the record is durable: nobody is told a phase that would not survive a crash.
"""

from __future__ import annotations

from hashlib import sha256

from quoreduce.vm import wire
from quoreduce.vm.ports import NO_ORDER, Command, EndTcom, SendAttested, StartTcom, VmRecord


def answer(vmid: bytes, record: VmRecord | None, nonce: bytes, reply: str, busy: bool, floor: int = 0) -> list[Command]:
    """Answer a query, or an order to settle, with this nonce; to ``reply``, which may be anybody.

    ``busy``: something is being done with the VM. ``floor``: without a record, the number up to which no order of its
    owner is taken any more.
    """
    session = sha256(b"quoreduce vm status 1" + nonce + reply.encode()).digest()
    status = wire.Status(vmid, "unknown", 0, NO_ORDER, floor, nonce)
    if record is not None:
        status = wire.Status(
            vmid, record.phase, record.sequence, record.order, record.number, nonce, record.peer, record.report,
            record.dirty, busy,
        )  # fmt: skip
    return [
        StartTcom(session, "status"),
        SendAttested(session, (reply,), nonce, vmid, wire.encode(status)),
        EndTcom(session),
    ]
