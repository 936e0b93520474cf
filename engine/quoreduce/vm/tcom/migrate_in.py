"""The TCOM of migration at the destination: takes a VM from the server that its owner names, and decides who runs it.
Pure.

Phases, and what holds in each:

``offered``    the order is used up (record ``arriving``); the TCOM's key is attested for the order and the source's
               nonce.
``filling``    the source is the server that the order names, in an environment of the owner's policy; what comes is
               verified chunk by chunk; nothing runs.
``prepared``   all has come, whole; the guest is complete and paused; the record says so before the source hears of it.
``resuming``   the source has let go (Commit). The record says so before the guest is resumed.
``running``    the guest runs, the record says so, and then the receipt does.
``ending``     it failed, at any time before ``running``: the guest is destroyed, then the record says ``aborted``, for
               good.

Only the destination decides: the source resumes only if it hears, attested, of ``aborted``; and that is said only when
the guest is gone and never will run. After a crash ``arriving`` and ``prepared`` become ``aborted`` (the session's keys
are lost); ``resuming`` continues if the guest is there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from quoreduce.errors import VmError
from quoreduce.vm import wire
from quoreduce.vm.evidence import IMAGE, SESSION_KEY
from quoreduce.vm.ports import (
    NO_ORDER,
    REFUSED,
    Command,
    CommandFailed,
    Destroy,
    EndTcom,
    Extend,
    Feed,
    FeedEnd,
    Loaded,
    Note,
    Open,
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
    TcomJob,
    TimedOut,
    VmRecord,
    VmSpec,
    bound,
    opened,
)
from quoreduce.vm.sealing import MIGRATION_STREAM, TRANSFER, SealedChannel, StreamOpener, hpke_open, new_keypair


class MigrateInTcom:
    """One migration to here; ``step`` until it has given :class:`EndTcom`."""

    def __init__(self, job: TcomJob, nonce: bytes) -> None:
        self._job, self._peer_nonce = job, nonce
        self._state: Literal["offered", "filling", "loading", "prepared", "resuming", "ending"] = "offered"
        self._nonce = job.random(32)
        self._private, self._public = new_keypair(job.random)
        order = job.order
        self._record = VmRecord(
            order.vmid, job.signed.keys, order.policy, "arriving", order.sequence + 1, order.number, job.session,
            order.nonce,
            order.server,
        )  # fmt: skip
        self._opener: StreamOpener | None = None
        self._channel: SealedChannel | None = None
        self._reason = ""

    def begin(self) -> list[Command]:
        """Use the order up, and offer a key of this TCOM's own to the source."""
        job = self._job
        offer = wire.encode(wire.Offer(job.session, self._nonce, self._public))
        return [
            self._record.persist(),
            StartTcom(job.session, "migrate_in"),
            Extend(job.session, SESSION_KEY, self._public),
            SendAttested(job.session, (job.order.server,), bound(job.session, self._peer_nonce), job.order.vmid, offer),
        ]

    def step(self, event: TcomEvent) -> list[Command]:
        """Go on. What is no part of this is noted, and changes nothing."""
        try:
            return self._step(event)
        except REFUSED as error:
            if self._state in ("offered", "filling"):
                return self._fail(str(error))
            return [Note(self._record.vmid, f"refused in migrate_in, {self._state}: {error}")]

    def _step(self, event: TcomEvent) -> list[Command]:
        match event, self._state:
            case Received(wire.AttestedMessage() as message), "offered":
                return self._accept(message, event.at)
            case Received(wire.StreamChunk() as chunk), "filling":
                return self._fill(chunk.data)
            case Loaded(), "loading":
                return self._prepared()
            case Received(wire.SealedMessage() as message), "prepared":
                return self._commit(message)
            case Resumed(), "resuming":
                return self._over(True)
            case Scrubbed(), "ending":
                return self._over(False)
            case ScrubFailed(), "ending":
                self._reason += f"; and what it left behind could not be overwritten: {event.reason}"
                self._record = self._record.with_(dirty=True)
                return self._over(False)
            case CommandFailed(), ("offered" | "filling" | "loading" | "prepared" | "resuming"):
                return self._fail(event.reason)
            case Settle(), ("offered" | "filling" | "loading" | "prepared"):
                return self._fail("the user ended it")
            case TimedOut(), ("offered" | "filling" | "loading" | "prepared"):
                return self._fail("nothing came that brings it on, for too long")
        return [Note(self._record.vmid, f"ignored in migrate_in, {self._state}: {type(event).__name__}")]

    def _accept(self, message: wire.AttestedMessage, at: datetime) -> list[Command]:
        """Judge the source; take the stream's key from it."""
        job, order = self._job, self._job.order
        nonce = bound(job.session, self._nonce)
        accept, found = opened(message, wire.Accept, nonce, "migrate_out", order.vmid, order.policy, at)
        if found.server != order.server:
            raise VmError(f"the source is server {found.server[:12]}, the order names {order.server[:12]}: an impostor")
        if (accept.order, accept.nonce) != (job.session, self._nonce):
            raise VmError("the source accepts another offer")
        transfer = wire.decode(hpke_open(self._private, TRANSFER + job.session, accept.sealed), wire.Transfer)
        if (transfer.vmid, transfer.sequence, transfer.owner) != (order.vmid, order.sequence + 1, job.signed.keys):
            raise VmError(
                "the source sends another VM, or at another sequence, or of another owner, than the order names"
            )
        spec = VmSpec.of(transfer.spec)
        self._record = self._record.with_(spec=transfer.spec, image=transfer.image)
        self._opener = StreamOpener(transfer.key, MIGRATION_STREAM + job.session, spec.stream_bytes_max())
        self._channel = SealedChannel(transfer.key, "destination", job.session)
        self._state = "filling"
        return [Extend(job.session, IMAGE, transfer.image), Open(job.session, order.vmid, spec, True)]

    def _fill(self, sealed: bytes) -> list[Command]:
        assert self._opener is not None
        data, final = self._opener.chunk(sealed)
        commands: list[Command] = [Feed(self._job.session, data)] if data else []
        if final:
            self._state = "loading"
            commands.append(FeedEnd(self._job.session))
        return commands

    def _prepared(self) -> list[Command]:
        assert self._opener is not None
        assert self._channel is not None
        self._state = "prepared"
        self._record = self._record.with_(phase="prepared")
        prepared = wire.encode(wire.Prepared(self._job.session, self._opener.digest))
        sealed = wire.SealedMessage(self._job.session, self._channel.seal(prepared))
        return [self._record.persist(), Send(self._job.order.server, sealed)]

    def _commit(self, message: wire.SealedMessage) -> list[Command]:
        assert self._opener is not None
        assert self._channel is not None
        commit = wire.decode(self._channel.open(message.data), wire.Commit)
        if (commit.order, commit.digest) != (self._job.session, self._opener.digest):
            raise VmError("the source lets go of another stream than came")
        self._state = "resuming"
        self._record = self._record.with_(phase="resuming")
        return [self._record.persist(), Resume(self._job.session, self._record.vmid)]

    def _fail(self, reason: str) -> list[Command]:
        self._state, self._reason = "ending", reason
        return [
            Note(self._record.vmid, f"migrate_in refused or failed: {reason}"),
            Destroy(self._job.session, self._record.vmid),
        ]

    def _over(self, done: bool) -> list[Command]:
        """The end, durable before anyone hears of it."""
        job = self._job
        self._record = record = self._record.with_(phase="running" if done else "aborted")
        digest = self._opener.digest if done and self._opener is not None else NO_ORDER
        receipt = wire.VmReceipt(
            "migrate_in", record.vmid, job.session, done, record.sequence, job.order.nonce, self._peer_nonce, digest,
            reason=self._reason[:600],
        )  # fmt: skip
        to = (job.order.server, job.user)
        return [
            record.persist(),
            SendAttested(job.session, to, job.session, record.vmid, wire.encode(receipt)),
            EndTcom(job.session),
        ]
