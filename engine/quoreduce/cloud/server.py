"""The core of a server agent: which VMs are here, in which phase, and which TCOM gets what. Pure.

A VM's record at one server is in one of these phases; each is durable before anything is done that depends on it:

=========== ==================================================================== ======================= =====================
phase       what holds                                                           guest here              after a crash
=========== ==================================================================== ======================= =====================
launching   a launch or restore is under way; nobody was told that it runs       none, or not told of    destroyed; aborted
running     this server is the VM's place                                        runs (paused in backup) resumed; lost if gone
leaving     a migration is under way; the destination cannot run it yet          runs or paused          resumed; running
released    the destination may run it; it decides                               paused                  asks it
arriving    a migration comes in; nothing is complete                            none, or not complete   destroyed; aborted
prepared    complete; the source has not let go, as far as is known here         paused                  destroyed; aborted
resuming    the source has let go                                                paused or runs          resumed, or aborted
aborted     this order never ran here, and never will                            none                    -
moved       another server runs it                                               none                    -
ending      the owner wants it ended; not all is overwritten                     none, or being ended    ended; terminated
terminated  it was ended, and all of it overwritten                              none                    -
lost        the guest was gone without an order                                  none                    -
any         of a server whose TPM was replaced: nobody can attest for it         any                     destroyed; forgotten
=========== ==================================================================== ======================= =====================

What keeps a VM in one place: a server's record leaves ``running`` only by its owner's order; ``released`` becomes ``running``
only on the destination's attested ``aborted`` or the owner's abandon; ``aborted`` and ``moved`` never become anything but by a
new order. What keeps orders from being used twice: each has a number, none is taken that is not above all that the record has
seen, and a record's number never falls. One session for a VM at a time.

A record of which nothing is here any more is forgotten when its owner has too many, the oldest first. A user numbers all orders
in one row: so the greatest number of an owner's that was forgotten, or that settled a VM without a record, is kept (``floors``),
and no order up to it is taken for a VM without a record. Of such a VM a server says ``unknown``, never ``aborted``.

Who may have VMs here is in ``owners``. A session costs its owner what was sent for it, and a guest its memory and disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from quoreduce.cloud import wire
from quoreduce.cloud.owners import Owners
from quoreduce.cloud.ports import (
    NO_ORDER,
    REFUSED,
    Abandon,
    Boot,
    Command,
    Destroy,
    EndTcom,
    Event,
    Failed,
    Feed,
    Floor,
    Forget,
    Gone,
    Job,
    Note,
    Open,
    Persist,
    Received,
    Record,
    Recovered,
    Resume,
    Resumed,
    Scrubbed,
    ScrubFailed,
    Send,
    Settle,
    TcomEvent,
    Tick,
    TimedOut,
    VmSpec,
    decode_record,
)
from quoreduce.cloud.tcom import status
from quoreduce.cloud.tcom.backup import Backup
from quoreduce.cloud.tcom.launch import Launch
from quoreduce.cloud.tcom.migrate_in import MigrateIn
from quoreduce.cloud.tcom.migrate_out import MigrateOut
from quoreduce.cloud.tcom.terminate import Terminate
from quoreduce.errors import VmError, one_line
from quoreduce.trust.policy import decode_policy

VMS_MAX: Final = 256  # with a guest, or about to have one
RECORDS_MAX: Final = 4096  # with those of VMs that were here once
SESSIONS_MAX: Final = 64
STALL: Final = timedelta(seconds=60)  # without anything that brings a session on
HELD: Final = frozenset({"running", "leaving", "released", "prepared", "resuming", "ending"})  # phases with a guest
POLL: Final = timedelta(seconds=10)  # between questions to a destination that may run what was released
PAST: Final = frozenset({"aborted", "moved", "terminated"})  # nothing of the VM is here
ENDED: Final = frozenset({"running", "released", "ending", "lost"})  # phases in which a terminate ends it

Tcom: TypeAlias = Launch | MigrateOut | MigrateIn | Backup | Terminate


@dataclass(slots=True)
class _Session:
    vmid: bytes
    owner: str
    tcom: Tcom
    since: datetime
    cost: int = 0  # bytes that it holds for its owner
    guest: bool = False  # they are those of a guest


class Server:
    """The core of the server agent ``identity``; ``step`` returns what is to be done, in this order.

    Args:
        identity: the attestor's.
        random: gives so many random bytes.
        owners: whom it serves.
        records: of an earlier life, as they were persisted; the edge gives a Recovered for each before other events.
        floors: of an earlier life, by owner; see above.

    Raises:
        VmError: a record cannot be read.
    """

    def __init__(
        self, identity: str, random: Callable[[int], bytes], owners: Owners, records: Iterable[bytes] = (),
        floors: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.identity, self._owners = identity, owners
        self._floors = dict(floors or {})
        self._random = random
        self.records: dict[bytes, Record] = {one.vmid: one for one in map(decode_record, records)}
        self._sessions: dict[bytes, _Session] = {}
        self._clearing: dict[bytes, Record] = {}  # session -> what was found after a crash, and is being put in order
        self._gone: set[bytes] = set()
        self._now: datetime | None = None

    def step(self, event: Event) -> list[Command]:
        """Go on. Nothing is raised: what is refused is noted, and its sender is told if he has signed it."""
        match event:
            case Recovered():
                self._now = event.at
                return self._recover(event.vmid, event.alive)
            case Tick():
                self._now = event.at
                return self._tick(event.at)
            case Received():
                self._now = event.at
                return self._received(event)
            case Gone():
                return self._lose(event.vmid)
        if event.session in self._clearing:
            return self._cleared(self._clearing.pop(event.session), event)
        return self._pass(event.session, event)

    # Orders

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
                case wire.Attested():
                    said = wire.decode_said(message.content)
                    if not isinstance(said, wire.Status):
                        return self._pass(said.order, event)
                    record = self.records.get(said.vmid)
                    return self._pass(record.order if record else NO_ORDER, event)
            return self._pass(message.order, event)
        except REFUSED as error:
            return [Note(bytes(16), f"refused: {one_line(error)}")]

    def _signed(self, signed: wire.Signed, event: Received) -> list[Command]:
        try:
            order = wire.decode(signed.body, wire.Order)
        except VmError:
            return self._pass(wire.decode(signed.body, wire.Package).order, event)
        wire.verify(signed)
        job = Job(order, wire.digest(signed.body), signed, self.identity, self._random)
        try:
            return self._order(job)
        except REFUSED as error:
            reason = one_line(error)
            return [Note(order.vmid, f"refused: {reason}"), Send(job.user, wire.Refusal(job.session, reason))]

    def _order(self, job: Job) -> list[Command]:
        order, record = job.order, self.records.get(job.order.vmid)
        if order.server != self.identity:
            raise VmError("the order names another server")
        self._admit(job, record)
        match order.operation:
            case "settle":
                return self._settle(job, record, order.about)
            case "update":
                return self._update(job, record)
            case "abandon":
                return self._abandon(job, record)
            case "terminate":
                return self._terminate(job, record)
        if self._busy(order.vmid):
            raise VmError("something else is being done with this VM: wait for it, or settle it")
        if order.operation in ("launch", "restore"):
            decode_policy(order.policy)
            forgotten = self._make_room(job, record, order.sequence)
            launch = Launch(job)
            return [*forgotten, *self._start(job, launch, launch.begin())]
        if record is None or record.phase in PAST:
            raise VmError(f"the VM is not here{'' if record is None else f': it is {record.phase}'}")
        if record.sequence != order.sequence:
            raise VmError(f"the VM is at sequence {record.sequence}, the order is for {order.sequence}")
        return self._change(job, record)

    def _change(self, job: Job, record: Record) -> list[Command]:
        """Orders for a VM that is here."""
        order = job.order
        if record.phase != "running":
            raise VmError(f"the VM is {record.phase}: {order.operation} is for one that runs")
        if order.operation == "backup":
            backup = Backup(job, record)
            return self._start(job, backup, backup.begin())
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
        out = MigrateOut(leaving, self.identity, self._random)
        return self._start(job, out, out.begin(job.signed))

    def _hello(self, hello: wire.Hello) -> list[Command]:
        """A source asks to send a VM here: what counts is the owner's order that it brings."""
        signed = wire.decode(hello.order, wire.Signed)
        wire.verify(signed)
        order = wire.decode(signed.body, wire.Order)
        job = Job(order, wire.digest(signed.body), signed, self.identity, self._random)
        try:
            if order.operation != "migrate" or order.destination != self.identity or order.server == self.identity:
                raise VmError("the order names another server as the destination")
            record = self.records.get(order.vmid)
            self._admit(job, record)
            if self._busy(order.vmid):
                raise VmError("something else is being done with this VM here")
            decode_policy(order.policy)
            forgotten = self._make_room(job, record, order.sequence + 1)
        except REFUSED as error:
            reason = one_line(error)
            return [Note(order.vmid, f"refused: {reason}"), Send(order.server or job.user, wire.Refusal(job.session, reason))]
        arrival = MigrateIn(job, hello.nonce)
        return [*forgotten, *self._start(job, arrival, arrival.begin())]

    def _admit(self, job: Job, record: Record | None) -> None:
        """Whether this is the owner's order, and was not used before."""
        if record is None:
            floor = self._floors.get(job.user, 0)
            if job.order.number <= floor and job.order.operation not in ("settle", "update", "terminate"):
                raise VmError(f"order {job.order.number} is past: of this owner none up to {floor} is taken for a new VM")
            return
        wire.verify(job.signed, record.owner)
        if job.order.number <= record.number:
            raise VmError(f"order {job.order.number} was used, or a later one was: the next is {record.number + 1} or above")

    def _make_room(self, job: Job, record: Record | None, sequence: int) -> list[Command]:
        """Whether this owner may have one more VM here; what is forgotten for that."""
        quota = self._owners.quota(job.user)
        if record is not None and record.phase not in PAST:
            raise VmError(f"the VM is here already: it is {record.phase}" + "; terminate it first" * (record.phase == "lost"))
        if record is not None and (sequence < record.sequence or (sequence == record.sequence and record.phase != "aborted")):
            raise VmError(f"sequence {sequence} is past: the VM was here at {record.sequence}")
        alive = [one for one in self.records.values() if one.phase not in PAST]
        if len(alive) >= VMS_MAX or len(self._sessions) >= SESSIONS_MAX:
            raise VmError(f"the server is full: {len(alive)} VMs, {len(self._sessions)} operations under way")
        mine = sum(one.owner == job.signed.keys for one in alive)
        under_way = sum(one.owner == job.user for one in self._sessions.values())
        if mine >= quota.vms or under_way >= quota.sessions:
            raise VmError(
                f"you have {mine} VMs here and {under_way} operations under way: {quota.vms} and {quota.sessions} are your quota"
            )
        return [] if record is not None else self._remember(job)

    def _remember(self, job: Job) -> list[Command]:
        """Have a place for one more record: the oldest one goes of which nothing is here, of this owner if he has too many."""
        mine = [one for one in self.records.values() if one.owner == job.signed.keys]
        full = len(self.records) >= RECORDS_MAX
        among = mine if len(mine) >= self._owners.quota(job.user).records else list(self.records.values()) if full else []
        if not among:
            return []
        past = [one for one in among if one.phase in PAST and not one.dirty and not self._busy(one.vmid)]
        if not past:
            raise VmError(f"the server remembers {len(among)} VMs, which all are here, and takes no new one")
        return self._forget(min(past, key=lambda one: one.number))

    def _forget(self, record: Record) -> list[Command]:
        del self.records[record.vmid]
        return [self._floor(record.owner.user, record.number), Forget(record.vmid)]

    def _floor(self, owner: str, number: int) -> Floor:
        self._floors[owner] = max(number, self._floors.get(owner, 0))
        return Floor(owner, self._floors[owner])

    def _settle(self, job: Job, record: Record | None, about: bytes) -> list[Command]:
        """End what the order ``about`` began, if that is safe; it is used up in any case. Then say where the VM stands."""
        order = job.order
        if record is None:
            self._owners.quota(job.user)
            floor = self._floor(job.user, order.number)
            return [floor, *status.answer(order.vmid, None, job.session, job.user, busy=False, floor=floor.number)]
        commands = self._carry([record.with_(number=order.number).persist()])
        if about in self._sessions and record.order == about:
            commands += self._pass(about, Settle())
        elif not self._busy(order.vmid):
            commands += self._again(self.records[order.vmid])
        return [*commands, *self._status(order.vmid, job.session, job.user)]

    def _status(self, vmid: bytes, nonce: bytes, reply: str) -> list[Command]:
        return status.answer(vmid, self.records.get(vmid), nonce, reply, self._busy(vmid))

    def _update(self, job: Job, record: Record | None) -> list[Command]:
        """From now on the VM goes by this policy; else as settle."""
        decode_policy(job.order.policy)
        if record is None:
            return self._settle(job, None, job.order.about)
        ended = self._let_go(record)
        if self._busy(record.vmid):
            raise VmError("something else is being done with this VM: wait for it, or settle it")
        return [*ended, *self._settle(job, record.with_(policy=job.order.policy), job.order.about)]

    def _terminate(self, job: Job, record: Record | None) -> list[Command]:
        """End the VM, or the copy that was left here; where it is not here at this sequence, as settle."""
        if record is None:
            return self._settle(job, None, NO_ORDER)
        if record.sequence != job.order.sequence or not (record.phase in ENDED or record.dirty):
            return self._settle(job, record, record.order)
        ended = self._let_go(record)
        if self._busy(record.vmid):
            raise VmError("something else is being done with this VM: wait for it, or settle it")
        terminate = Terminate(job, record)
        return [*ended, *self._start(job, terminate, terminate.begin())]

    def _let_go(self, record: Record) -> list[Command]:
        """End the session of a source that waits for its destination: it has nothing under way, and can be taken up anew."""
        if record.phase != "released" or record.order not in self._sessions:
            return []
        return self._carry([EndTcom(record.order)])

    def _abandon(self, job: Job, record: Record | None) -> list[Command]:
        if record is None or record.phase != "released" or record.order != job.order.about:
            raise VmError("no such migration waits here for its destination: there is nothing to abandon")
        again = [] if record.order in self._sessions else self._again(record)
        commands = self._carry([record.with_(number=job.order.number).persist()])
        return [*again, *commands, *self._pass(record.order, Abandon(job))]

    def _again(self, record: Record) -> list[Command]:
        """Go on with what is not over, and is under way no more: ask the destination once more, resume what could not be
        resumed.
        """
        if record.phase == "running":
            self._clearing[record.order] = record
            return [Resume(record.order, record.vmid)]
        if record.phase != "released":
            return []
        out = MigrateOut(record, self.identity, self._random)
        self._sessions[record.order] = _Session(record.vmid, record.owner.user, out, self._time())
        return self._carry(out.again())

    # Sessions

    def _start(self, job: Job, tcom: Tcom, commands: list[Command]) -> list[Command]:
        self._sessions[job.session] = _Session(job.order.vmid, job.user, tcom, self._time())
        return self._carry(commands)

    def _pass(self, name: bytes, event: TcomEvent) -> list[Command]:
        session = self._sessions.get(name)
        if session is None:
            what = type(event.message).__name__ if isinstance(event, Received) else type(event).__name__
            return [Note(bytes(16), f"ignored: {what} for a session that is not here")]
        commands = session.tcom.step(event)
        if not all(isinstance(one, Note) for one in commands):
            session.since = self._time()
        return self._carry(commands)

    def _carry(self, commands: list[Command]) -> list[Command]:
        """Follow what is persisted and what ends; a record's number never falls."""
        carried: list[Command] = []
        for command in commands:
            if isinstance(command, Open | Feed | Boot) and (refusal := self._charge(command)):
                return carried + self._pass(command.session, Failed(command.session, refusal))
            if isinstance(command, Persist):
                record = decode_record(command.record).with_(server=self.identity)
                before = self.records.get(record.vmid)
                if before is not None and before.number > record.number:
                    record = record.with_(number=before.number)
                self.records[record.vmid] = record
                command = record.persist()
            carried.append(command)
            if isinstance(command, EndTcom) and (session := self._sessions.pop(command.session, None)):
                carried += self._missed(session.vmid)
        return carried

    def _charge(self, command: Open | Feed | Boot) -> str:
        """Count what a session holds for its owner: a guest its memory and disk, else what was sent; if too much, say so."""
        session = self._sessions[command.session]
        if isinstance(command, Boot) or (isinstance(command, Open) and command.incoming):
            session.cost, session.guest = _bytes(command.spec), True
        elif isinstance(command, Feed) and not session.guest:
            session.cost += len(command.data)
        held = sum(one.cost for one in self._sessions.values() if one.owner == session.owner)
        for one in self.records.values():
            counted = one.order in self._sessions and self._sessions[one.order].cost
            if one.owner.user == session.owner and one.phase in HELD and not counted:
                held += _bytes(VmSpec.of(one.spec))
        quota = self._owners.quota(session.owner).mb
        return f"your VMs here would hold {-(-held >> 20)} MiB, and {quota} are your quota" if held > quota << 20 else ""

    def _tick(self, now: datetime) -> list[Command]:
        commands: list[Command] = []
        for name, session in list(self._sessions.items()):
            record = self.records[session.vmid]
            if now - session.since >= (POLL if record.phase == "released" else STALL):
                session.since = now
                commands += self._pass(name, TimedOut())
        return commands

    def _busy(self, vmid: bytes) -> bool:
        return any(one.vmid == vmid for one in self._sessions.values()) or any(
            one.vmid == vmid for one in self._clearing.values()
        )

    def _time(self) -> datetime:
        assert self._now is not None, "a server is told the time before anything else"
        return self._now

    # Guests that are gone, and what is found after a crash

    def _lose(self, vmid: bytes) -> list[Command]:
        """A guest ended by itself: whoever is at work with it is told, else it is lost."""
        self._gone.add(vmid)
        for name, session in list(self._sessions.items()):
            if session.vmid == vmid:
                return self._pass(name, Failed(name, "the guest ended by itself"))
        return [] if self._busy(vmid) else self._missed(vmid)

    def _missed(self, vmid: bytes) -> list[Command]:
        record = self.records.get(vmid)
        if vmid not in self._gone:
            return []
        self._gone.discard(vmid)
        if record is None or record.phase != "running":
            return []
        return self._carry([record.with_(phase="lost").persist(), Note(vmid, "the guest ended by itself: the VM is lost here")])

    def _recover(self, vmid: bytes, alive: bool) -> list[Command]:
        record = self.records.get(vmid)
        if record is None:
            return [Note(vmid, "a guest without a record: it is none of ours")]
        if record.server not in ("", self.identity):
            self._clearing[record.order] = record
            return [Note(vmid, "of this server with another TPM: nobody can attest for it"), Destroy(record.order, vmid)]
        match record.phase:
            case "released":
                return self._again(record)
            case "running" | "leaving" if alive:
                self._clearing[record.order] = record
                return [*self._carry([record.with_(phase="running").persist()]), Resume(record.order, vmid)]
            case "running" | "leaving":
                return self._carry([record.with_(phase="lost").persist(), Note(vmid, "the guest is gone: the VM is lost here")])
            case "resuming" if alive:
                self._clearing[record.order] = record
                return [Resume(record.order, vmid)]
            case "launching" | "arriving" | "prepared" | "resuming" | "ending":
                self._clearing[record.order] = record
                return [Destroy(record.order, vmid)]
        return []

    def _cleared(self, record: Record, event: TcomEvent) -> list[Command]:
        """What was found after a crash has been put in order, or not."""
        ended = isinstance(event, Scrubbed | ScrubFailed)
        failed = [Note(record.vmid, f"scrub failed: {event.reason}")] if isinstance(event, ScrubFailed) else []
        if record.server not in ("", self.identity):
            return [*failed] if failed else self._forget(record)
        match record.phase, event:
            case "ending", Scrubbed():
                return self._carry([record.with_(phase="terminated", report=event.report).persist()])
            case "ending", ScrubFailed():
                return [*failed]
            case (("launching" | "arriving" | "prepared" | "resuming"), _) if ended:
                return [*self._carry([record.with_(phase="aborted", dirty=bool(failed)).persist()]), *failed]
            case "resuming", Resumed():
                return self._carry([record.with_(phase="running").persist()])
            case "resuming", Failed():
                self._clearing[record.order] = record
                return [Destroy(record.order, record.vmid)]
            case (("running" | "leaving"), Failed()):
                return [Note(record.vmid, f"the VM could not be resumed: {event.reason}"), *self._missed(record.vmid)]
            case (("running" | "leaving"), Resumed()):
                return self._missed(record.vmid)
        self._clearing[record.order] = record  # none of this was asked for
        return [Note(record.vmid, f"ignored after a crash: {type(event).__name__}")]


def _bytes(spec: VmSpec) -> int:
    return (spec.memory_mb + spec.disk_mb) << 20
