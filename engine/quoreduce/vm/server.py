"""The core of a server agent: which VMs are here, in which phase, and which TCOM gets what. Pure.

A VM's record at one server is in one of these phases; each is durable before anything is done that depends on it:

=========== ============================================================ ===================== ====================
phase       what holds                                                   guest here            after a crash
=========== ============================================================ ===================== ====================
launching   a launch or restore is under way; nobody was told that it    none, or unannounced  destroyed; aborted
            runs
running     this server is the VM's place                                runs; paused in a     resumed; lost if gone
                                                                         backup
leaving     a migration is under way; the destination cannot run it yet  runs or paused        resumed; running
released    the destination may run it, and decides                      paused                asks it
arriving    a migration comes in; nothing is complete                    none, or incomplete   destroyed; aborted
prepared    complete; as far as is known here, the source has not let    paused                destroyed; aborted
            go
resuming    the source has let go                                        paused or runs        resumed, or aborted
aborted     this order never ran here, and never will                    none                  -
moved       another server runs it                                       none                  -
ending      the owner wants it ended; not all is overwritten             none, or being ended  ended; terminated
terminated  it was ended, and all of it overwritten                      none                  -
lost        the guest was gone without an order                          none                  -
any         of a server whose TPM was replaced: nobody can attest it     any                   destroyed; forgotten
=========== ============================================================ ===================== ====================

What keeps a VM in one place: a server's record leaves ``running`` only by its owner's order; ``released`` becomes
``running`` only on the destination's attested ``aborted`` or the owner's abandon; ``aborted`` and ``moved`` change only
by a new order.

A VM has one session at a time (:mod:`quoreduce.vm.server_sessions`). :mod:`quoreduce.vm.server_admission` decides which
orders are taken, and takes none twice; :mod:`quoreduce.vm.server_recovery` says what happens after a crash.

``owners`` are the users who may have VMs here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from quoreduce.errors import VmError, one_line
from quoreduce.trust.policy import decode_policy
from quoreduce.vm import wire
from quoreduce.vm.owners import Owners
from quoreduce.vm.ports import (
    NO_ORDER,
    REFUSED,
    Abandon,
    Command,
    EndTcom,
    Event,
    GuestGone,
    Note,
    Received,
    RecordFound,
    Send,
    Settle,
    TcomJob,
    Tick,
    VmRecord,
    decode_record,
)
from quoreduce.vm.server_admission import PAST, OrderAdmission
from quoreduce.vm.server_recovery import Recovery
from quoreduce.vm.server_sessions import Sessions
from quoreduce.vm.tcom import status
from quoreduce.vm.tcom.backup import BackupTcom
from quoreduce.vm.tcom.launch import LaunchTcom
from quoreduce.vm.tcom.migrate_in import MigrateInTcom
from quoreduce.vm.tcom.migrate_out import MigrateOutTcom
from quoreduce.vm.tcom.terminate import TerminateTcom

ENDED: Final = frozenset({"running", "released", "ending", "lost"})  # phases in which a terminate ends it


class Server:
    """The core of the server agent ``identity``; ``step`` returns what is to be done, in this order.

    Args:
        identity: the attestor's.
        random: gives so many random bytes.
        owners: whom it serves.
        records: of an earlier process, as they were persisted; the edge gives a Recovered for each before other events.
        floors: of an earlier process, by owner.

    Raises:
        VmError: a record cannot be read.
    """

    def __init__(
        self, identity: str, random: Callable[[int], bytes], owners: Owners, records: Iterable[bytes] = (),
        floors: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.identity, self._random = identity, random
        self.records: dict[bytes, VmRecord] = {one.vmid: one for one in map(decode_record, records)}
        self.sessions = Sessions(identity, owners, self.records)
        self._admission = OrderAdmission(self.sessions, floors or {})
        self._recovery = Recovery(identity, random, self.sessions, self._admission)

    def step(self, event: Event) -> list[Command]:
        """Go on. Nothing is raised: what is refused is noted, and its sender is told if he has signed it."""
        match event:
            case RecordFound():
                self.sessions.time = event.at
                return self._recovery.recover(event.vmid, event.alive)
            case Tick():
                self.sessions.time = event.at
                return self.sessions.tick(event.at)
            case Received():
                self.sessions.time = event.at
                return self._received(event)
            case GuestGone():
                return self.sessions.lose(event.vmid)
        if event.session in self.sessions.clearing:
            return self._recovery.cleared(self.sessions.clearing.pop(event.session), event)
        return self.sessions.give(event.session, event)

    def _received(self, event: Received) -> list[Command]:
        message = event.message
        try:
            match message:
                case wire.Signed():
                    return self._signed(message, event)
                case wire.Hello():
                    return self._hello(message)
                case wire.StatusQuery():
                    return self._status(message.vmid, message.nonce, message.reply)
                case wire.AttestedMessage():
                    said = wire.decode_said(message.content)
                    if not isinstance(said, wire.Status):
                        return self.sessions.give(said.order, event)
                    record = self.records.get(said.vmid)
                    return self.sessions.give(record.order if record else NO_ORDER, event)
            return self.sessions.give(message.order, event)
        except REFUSED as error:
            return [Note(bytes(16), f"refused: {one_line(error)}")]

    def _signed(self, signed: wire.Signed, event: Received) -> list[Command]:
        try:
            order = wire.decode(signed.body, wire.Order)
        except VmError:
            return self.sessions.give(wire.decode(signed.body, wire.Package).order, event)
        wire.verify(signed)
        job = TcomJob(order, wire.digest(signed.body), signed, self.identity, self._random)
        try:
            return self._order(job)
        except REFUSED as error:
            reason = one_line(error)
            return [Note(order.vmid, f"refused: {reason}"), Send(job.user, wire.Refusal(job.session, reason))]

    def _order(self, job: TcomJob) -> list[Command]:
        order, record = job.order, self.records.get(job.order.vmid)
        if order.server != self.identity:
            raise VmError("the order names another server")
        self._admission.admit(job, record)
        match order.operation:
            case "settle":
                return self._settle(job, record, order.about)
            case "update":
                return self._update(job, record)
            case "abandon":
                return self._abandon(job, record)
            case "terminate":
                return self._terminate(job, record)
        if self.sessions.busy(order.vmid):
            raise VmError("something else is being done with this VM: wait for it, or settle it")
        if order.operation in ("launch", "restore"):
            decode_policy(order.policy)
            forgotten = self._admission.make_room(job, record, order.sequence)
            launch = LaunchTcom(job)
            return [*forgotten, *self.sessions.start(job, launch, launch.begin())]
        if record is None or record.phase in PAST:
            raise VmError(f"the VM is not here{'' if record is None else f': it is {record.phase}'}")
        if record.sequence != order.sequence:
            raise VmError(f"the VM is at sequence {record.sequence}, the order is for {order.sequence}")
        return self._change(job, record)

    def _change(self, job: TcomJob, record: VmRecord) -> list[Command]:
        """Orders for a VM that is here."""
        order = job.order
        if record.phase != "running":
            raise VmError(f"the VM is {record.phase}: {order.operation} is for one that runs")
        if order.operation == "backup":
            backup = BackupTcom(job, record)
            return self.sessions.start(job, backup, backup.begin())
        if order.operation != "migrate" or order.destination in ("", self.identity):
            raise VmError("the order names no other server as the destination")
        decode_policy(order.policy)
        leaving = record.with_(
            phase="leaving",
            number=order.number,
            order=job.session,
            nonce=order.nonce,
            peer=order.destination,
            policy=order.policy,
        )
        out = MigrateOutTcom(leaving, self.identity, self._random)
        return self.sessions.start(job, out, out.begin(job.signed))

    def _hello(self, hello: wire.Hello) -> list[Command]:
        """A source asks to send a VM here: what counts is the owner's order that it brings."""
        signed = wire.decode(hello.order, wire.Signed)
        wire.verify(signed)
        order = wire.decode(signed.body, wire.Order)
        job = TcomJob(order, wire.digest(signed.body), signed, self.identity, self._random)
        try:
            if order.operation != "migrate" or order.destination != self.identity or order.server == self.identity:
                raise VmError("the order names another server as the destination")
            record = self.records.get(order.vmid)
            self._admission.admit(job, record)
            if self.sessions.busy(order.vmid):
                raise VmError("something else is being done with this VM here")
            decode_policy(order.policy)
            forgotten = self._admission.make_room(job, record, order.sequence + 1)
        except REFUSED as error:
            reason = one_line(error)
            return [
                Note(order.vmid, f"refused: {reason}"),
                Send(order.server or job.user, wire.Refusal(job.session, reason)),
            ]
        arrival = MigrateInTcom(job, hello.nonce)
        return [*forgotten, *self.sessions.start(job, arrival, arrival.begin())]

    def _settle(self, job: TcomJob, record: VmRecord | None, about: bytes) -> list[Command]:
        """End what the order ``about`` began, if that is safe; it is used up in any case. Then say where the VM
        stands.
        """
        order = job.order
        if record is None:
            self.sessions.owners.quota(job.user)
            floor = self._admission.floor(job.user, order.number)
            return [floor, *status.answer(order.vmid, None, job.session, job.user, busy=False, floor=floor.number)]
        commands = self.sessions.carry([record.with_(number=order.number).persist()])
        if about in self.sessions.open and record.order == about:
            commands += self.sessions.give(about, Settle())
        elif not self.sessions.busy(order.vmid):
            commands += self._recovery.again(self.records[order.vmid])
        return [*commands, *self._status(order.vmid, job.session, job.user)]

    def _status(self, vmid: bytes, nonce: bytes, reply: str) -> list[Command]:
        return status.answer(vmid, self.records.get(vmid), nonce, reply, self.sessions.busy(vmid))

    def _update(self, job: TcomJob, record: VmRecord | None) -> list[Command]:
        """From now on the VM goes by this policy; else as settle."""
        decode_policy(job.order.policy)
        if record is None:
            return self._settle(job, None, job.order.about)
        ended = self._let_go(record)
        if self.sessions.busy(record.vmid):
            raise VmError("something else is being done with this VM: wait for it, or settle it")
        return [*ended, *self._settle(job, record.with_(policy=job.order.policy), job.order.about)]

    def _terminate(self, job: TcomJob, record: VmRecord | None) -> list[Command]:
        """End the VM, or the copy that was left here; where it is not here at this sequence, as settle."""
        if record is None:
            return self._settle(job, None, NO_ORDER)
        if record.sequence != job.order.sequence or not (record.phase in ENDED or record.dirty):
            return self._settle(job, record, record.order)
        ended = self._let_go(record)
        if self.sessions.busy(record.vmid):
            raise VmError("something else is being done with this VM: wait for it, or settle it")
        terminate = TerminateTcom(job, record)
        return [*ended, *self.sessions.start(job, terminate, terminate.begin())]

    def _let_go(self, record: VmRecord) -> list[Command]:
        """End the session of a source that waits for its destination: it has nothing under way, and can be taken up
        anew.
        """
        if record.phase != "released" or record.order not in self.sessions.open:
            return []
        return self.sessions.carry([EndTcom(record.order)])

    def _abandon(self, job: TcomJob, record: VmRecord | None) -> list[Command]:
        if record is None or record.phase != "released" or record.order != job.order.about:
            raise VmError("no such migration waits here for its destination: there is nothing to abandon")
        again = [] if record.order in self.sessions.open else self._recovery.again(record)
        commands = self.sessions.carry([record.with_(number=job.order.number).persist()])
        return [*again, *commands, *self.sessions.give(record.order, Abandon(job))]
