"""The TCOM of migration at the source: gives a VM to the server that its owner names, and to no other. Pure.

Phases, and what holds in each:

``greeting``   the order is used up (record ``leaving``); the VM runs; the destination has to attest itself for this
               order and nonce.
``streaming``  the destination is the server that the order names, in an environment of the owner's policy; it alone can
               read the key K_S, and the record names it. The VM may be paused. After a failure up to here the record
               says ``running``, the VM is resumed, and this order can never be used again.
``released``   the destination holds all of it, verified and paused, and the record says so *before* Commit leaves. From
               here the destination decides; this side asks, and never resumes on its own.
``ending``     the destination has attested that it runs the VM: only now is the copy here destroyed and scrubbed; then
               ``moved``.
``resuming``   the destination has attested that it never will (``aborted``), or the owner has declared it gone
               (abandon): the VM runs here again. After an abandon its sequence is above the one that the destination
               would have had.

After a crash ``leaving`` becomes ``running``, and ``released`` asks again, for which a record is enough
(:meth:`MigrateOutTcom.again`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal

from quoreduce.errors import VmError
from quoreduce.vm import wire
from quoreduce.vm.evidence import REPORT
from quoreduce.vm.ports import (
    NO_ORDER,
    REFUSED,
    Abandon,
    Command,
    CommandFailed,
    Data,
    DataEnd,
    Destroy,
    EndTcom,
    Extend,
    Note,
    Outgoing,
    Received,
    Resume,
    Resumed,
    Scrubbed,
    ScrubFailed,
    Send,
    SendAttested,
    Settle,
    StartTcom,
    TcomEvent,
    TimedOut,
    VmRecord,
    VmSpec,
    bound,
    opened,
)
from quoreduce.vm.sealing import MIGRATION_STREAM, TRANSFER, SealedChannel, StreamSealer, hpke_seal

RAN: Final = frozenset({"running", "leaving", "released", "moved", "ending", "terminated"})  # phases of who has run it


class MigrateOutTcom:
    """One migration away; ``step`` until it has given :class:`EndTcom`. The record is that of the order, ``leaving`` or
    ``released``.
    """

    def __init__(self, record: VmRecord, me: str, random: Callable[[int], bytes]) -> None:
        self._record, self._me, self._random, self._session = record, me, random, record.order
        self._state: Literal["greeting", "streaming", "sent", "released", "ending", "resuming"] = "greeting"
        self._nonce = random(32)
        self._query = NO_ORDER
        self._digest = NO_ORDER
        self._sealer: StreamSealer | None = None
        self._channel: SealedChannel | None = None
        self._commit: wire.SealedMessage | None = None
        self._reason = ""
        self._answers = (record.order, record.nonce)  # the order that a receipt is for, and its n_U

    def begin(self, signed: wire.Signed) -> list[Command]:
        """Use the order up, and pass it on to the destination."""
        hello = wire.Hello(wire.encode(signed), self._nonce)
        record = self._record.with_(peer="")  # who is given nothing has nothing
        return [record.persist(), StartTcom(self._session, "migrate_out"), Send(self._record.peer, hello)]

    def again(self) -> list[Command]:
        """Take a migration up again that was released in an earlier life."""
        self._state = "released"
        return [StartTcom(self._session, "migrate_out"), *self._ask()]

    def step(self, event: TcomEvent) -> list[Command]:
        """Go on. What is no part of this is noted, and changes nothing."""
        try:
            return self._step(event)
        except REFUSED as error:
            if self._state in ("greeting", "streaming", "sent"):
                return self._resume(str(error))
            return [Note(self._record.vmid, f"refused in migrate_out, {self._state}: {error}")]

    def _step(self, event: TcomEvent) -> list[Command]:
        match event, self._state:
            case Received(wire.AttestedMessage() as message), "greeting":
                return self._accept(message, event.at)
            case Data(), "streaming":
                return [self._chunk(event.data, False)]
            case DataEnd(), "streaming":
                self._state = "sent"
                return [self._chunk(b"", True)]
            case Received(wire.AttestedMessage() as message), ("streaming" | "sent"):
                return self._given_up(message, event.at)
            case Received(wire.Refusal() as refusal), ("greeting" | "streaming" | "sent"):
                return self._resume(f"the destination (or whoever speaks for it) refuses: {refusal.reason}")
            case Received(wire.SealedMessage() as message), "sent":
                return self._release(message)
            case Received(wire.AttestedMessage() as message), "released":
                return self._heard(message, event.at)
            case TimedOut() | Settle(), "released":
                return self._ask()
            case Abandon(), "released":
                return self._abandon(event)
            case ((Scrubbed() | ScrubFailed()), "ending"):
                return self._scrubbed(event)
            case Resumed(), "resuming":
                return self._over(False, self._reason, "running")
            case CommandFailed(), "resuming":
                return self._over(False, f"{self._reason}; and the VM could not be resumed: {event.reason}", "running")
            case ((CommandFailed() | TimedOut() | Settle()), ("greeting" | "streaming" | "sent")):
                return self._resume(_why(event))
        return [Note(self._record.vmid, f"ignored in migrate_out, {self._state}: {type(event).__name__}")]

    def _accept(self, message: wire.AttestedMessage, at: datetime) -> list[Command]:
        """Judge the destination; give it, and only it, the stream's key."""
        record = self._record
        nonce = bound(self._session, self._nonce)
        offer, found = opened(message, wire.Offer, nonce, "migrate_in", record.vmid, record.policy, at)
        if found.server != record.peer:
            raise VmError(
                f"the destination is server {found.server[:12]}, the order names {record.peer[:12]}: an impostor"
            )
        if (offer.order, offer.key) != (self._session, found.session_key):
            raise VmError("the destination's offer has another order or key than its evidence")
        key = self._random(32)
        self._sealer = StreamSealer(key, MIGRATION_STREAM + self._session, VmSpec.of(record.spec).stream_bytes_max())
        self._channel = SealedChannel(key, "source", self._session)
        transfer = wire.Transfer(
            key, record.vmid, record.sequence + 1, record.spec, record.owner, record.policy, record.image
        )  # fmt: skip
        sealed = hpke_seal(offer.key, TRANSFER + self._session, wire.encode(transfer))
        accept = wire.encode(wire.Accept(self._session, offer.nonce, sealed))
        self._state = "streaming"
        return [
            record.persist(),
            SendAttested(self._session, (record.peer,), bound(self._session, offer.nonce), record.vmid, accept),
            Outgoing(self._session, record.vmid),
        ]

    def _chunk(self, data: bytes, final: bool) -> Command:
        assert self._sealer is not None
        return Send(self._record.peer, wire.StreamChunk(self._session, self._sealer.chunk(data, final)))

    def _release(self, message: wire.SealedMessage) -> list[Command]:
        """The destination holds everything: let go, durably, before it hears of it."""
        assert self._channel is not None
        assert self._sealer is not None
        prepared = wire.decode(self._channel.open(message.data), wire.Prepared)
        if (prepared.order, prepared.digest) != (self._session, self._sealer.digest):
            raise VmError("the destination holds another stream than was sent")
        self._state, self._digest = "released", prepared.digest
        self._record = self._record.with_(phase="released")
        commit = wire.encode(wire.Commit(self._session, prepared.digest))
        self._commit = wire.SealedMessage(self._session, self._channel.seal(commit))
        return [self._record.persist(), Send(self._record.peer, self._commit)]

    def _ask(self) -> list[Command]:
        """Ask the destination where it stands; and say Commit once more, if this is still the life in which it was
        said.
        """
        self._query = self._random(32)
        query = Send(self._record.peer, wire.StatusQuery(self._record.vmid, self._query, self._me))
        return [Send(self._record.peer, self._commit), query] if self._commit else [query]

    def _heard(self, message: wire.AttestedMessage, at: datetime) -> list[Command]:
        record = self._record
        if isinstance(wire.decode_said(message.content), wire.VmReceipt):
            receipt = self._receipt(message, at)
            if not receipt.done:
                return self._resume(f"the destination gave it up: {receipt.reason}")
            if self._commit is not None and receipt.digest != self._digest:
                raise VmError("the receipt is for another stream")
            return self._destroy()
        status, found = opened(message, wire.Status, self._query, "status", record.vmid, record.policy, at)
        self._expect_peer(found.server)
        if status.sequence > record.sequence and status.phase in RAN:
            return self._destroy()
        if status.order == self._session and status.phase == "aborted":
            return self._resume("the destination gave it up")
        return [Note(record.vmid, f"the destination says {status.phase}: the VM stays paused here until it says more")]

    def _given_up(self, message: wire.AttestedMessage, at: datetime) -> list[Command]:
        receipt = self._receipt(message, at)
        return [] if receipt.done else self._resume(f"the destination gave it up: {receipt.reason}")

    def _receipt(self, message: wire.AttestedMessage, at: datetime) -> wire.VmReceipt:
        """The destination's word on how it ended: it runs the VM, or never will."""
        record = self._record
        receipt, found = opened(message, wire.VmReceipt, self._session, "migrate_in", record.vmid, record.policy, at)
        self._expect_peer(found.server)
        again = (
            self._state == "released" and self._commit is None
        )  # n_S was lost with an earlier life; the order is not
        if (
            receipt.order != self._session
            or receipt.sequence != record.sequence + 1
            or not (again or receipt.nonce == self._nonce)
        ):
            raise VmError("the receipt is for another session")
        return receipt

    def _expect_peer(self, server: str) -> None:
        if server != self._record.peer:
            raise VmError(f"server {server[:12]} answers for {self._record.peer[:12]}")

    def _destroy(self) -> list[Command]:
        self._state = "ending"
        return [Destroy(self._session, self._record.vmid)]

    def _scrubbed(self, event: Scrubbed | ScrubFailed) -> list[Command]:
        if isinstance(event, ScrubFailed):
            return self._over(
                False, f"moved, but what it left here could not be overwritten: {event.reason}", "released"
            )
        self._record = self._record.with_(report=event.report)
        return [Extend(self._session, REPORT, event.report), *self._over(True, "", "moved")]

    def _resume(self, reason: str) -> list[Command]:
        """Never after ``released``, but for the destination's own word or the owner's."""
        peer = "" if self._state == "greeting" else self._record.peer
        self._state, self._reason = "resuming", reason
        self._record = self._record.with_(phase="running", peer=peer)
        return [
            Note(self._record.vmid, f"migration failed: {reason}"),
            self._record.persist(),
            Resume(self._session, self._record.vmid),
        ]

    def _abandon(self, event: Abandon) -> list[Command]:
        order = event.job.order
        self._answers = event.job.session, order.nonce
        self._record = self._record.with_(sequence=self._record.sequence + 2, number=order.number)
        return self._resume("the owner declared the destination gone for good")

    def _over(self, done: bool, reason: str, phase: Literal["running", "released", "moved"]) -> list[Command]:
        self._record = record = self._record.with_(phase=phase)
        order, user_nonce = self._answers
        digest = wire.digest(record.report) if done else NO_ORDER
        sequence = record.sequence + (phase in ("released", "moved"))  # there, not here
        receipt = wire.VmReceipt(
            "migrate_out", record.vmid, order, done, sequence, user_nonce, self._nonce, digest,
            report=record.report, reason=reason[:600],
        )  # fmt: skip
        return [
            record.persist(),
            SendAttested(self._session, (record.owner.user,), order, record.vmid, wire.encode(receipt)),
            EndTcom(self._session),
        ]


def _why(event: TcomEvent) -> str:
    if isinstance(event, CommandFailed):
        return event.reason
    return "the user ended it" if isinstance(event, Settle) else "nothing came that brings it on, for too long"
