"""The sessions of a server agent's core: one TCOM each, for one order. Pure.

One session for a VM at a time. A session costs its owner what was sent for it, and a guest its memory and disk. One
that stalls is told so (TimedOut).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from quoreduce.vm import wire
from quoreduce.vm.owners import Owners
from quoreduce.vm.ports import (
    Boot,
    Command,
    CommandFailed,
    EndTcom,
    Feed,
    Note,
    Open,
    Persist,
    Received,
    TcomEvent,
    TcomJob,
    TimedOut,
    VmRecord,
    VmSpec,
    decode_record,
)
from quoreduce.vm.tcom.backup import BackupTcom
from quoreduce.vm.tcom.launch import LaunchTcom
from quoreduce.vm.tcom.migrate_in import MigrateInTcom
from quoreduce.vm.tcom.migrate_out import MigrateOutTcom
from quoreduce.vm.tcom.terminate import TerminateTcom

STALL: Final = timedelta(seconds=60)  # without anything that brings a session on
POLL: Final = timedelta(seconds=10)  # between questions to a destination that may run what was released
HELD: Final = frozenset({"running", "leaving", "released", "prepared", "resuming", "ending"})  # phases with a guest

Tcom: TypeAlias = LaunchTcom | MigrateOutTcom | MigrateInTcom | BackupTcom | TerminateTcom


@dataclass(slots=True)
class OpenSession:
    """An order that a TCOM carries out now.

    Attributes:
        since: when something last brought it on.
        cost, guest: how many bytes it holds for its owner, and whether they are a guest's.
    """

    vmid: bytes
    owner: str
    tcom: Tcom
    since: datetime
    cost: int = 0
    guest: bool = False


class Sessions:
    """The sessions of the server ``identity``, and its records, which they change.

    Attributes:
        open: by the digest of the order.
        clearing: what was found after a crash and is being put in order, by session.
        time: of the last event; None before the first.
    """

    def __init__(self, identity: str, owners: Owners, records: dict[bytes, VmRecord]) -> None:
        self._identity, self.owners, self.records = identity, owners, records
        self.open: dict[bytes, OpenSession] = {}
        self.clearing: dict[bytes, VmRecord] = {}
        self.time: datetime | None = None
        self._gone: set[bytes] = set()

    def now(self) -> datetime:
        """The time of the last event."""
        assert self.time is not None, "a server is told the time before anything else"
        return self.time

    def start(self, job: TcomJob, tcom: Tcom, commands: list[Command]) -> list[Command]:
        """Begin the session of an order, with the first commands of its TCOM."""
        self.begin(job.session, job.order.vmid, job.user, tcom)
        return self.carry(commands)

    def begin(self, name: bytes, vmid: bytes, owner: str, tcom: Tcom) -> None:
        """Begin a session."""
        self.open[name] = OpenSession(vmid, owner, tcom, self.now())

    def give(self, name: bytes, event: TcomEvent) -> list[Command]:
        """Give an event to the TCOM of a session."""
        session = self.open.get(name)
        if session is None:
            what = wire.name_of(type(event.message)) if isinstance(event, Received) else type(event).__name__
            return [Note(bytes(16), f"ignored: {what} for a session that is not here")]
        commands = session.tcom.step(event)
        if not all(isinstance(one, Note) for one in commands):
            session.since = self.now()
        return self.carry(commands)

    def carry(self, commands: list[Command]) -> list[Command]:
        """Take note of what these commands persist and end. A record's number never falls."""
        carried: list[Command] = []
        for command in commands:
            if isinstance(command, Open | Feed | Boot) and (refusal := self._charge(command)):
                return carried + self.give(command.session, CommandFailed(command.session, refusal))
            if isinstance(command, Persist):
                record = decode_record(command.record).with_(server=self._identity)
                before = self.records.get(record.vmid)
                if before is not None and before.number > record.number:
                    record = record.with_(number=before.number)
                self.records[record.vmid] = record
                command = record.persist()
            carried.append(command)
            if isinstance(command, EndTcom) and (session := self.open.pop(command.session, None)):
                carried += self.missed(session.vmid)
        return carried

    def _charge(self, command: Open | Feed | Boot) -> str:
        """Count what a session holds for its owner: a guest its memory and disk, else what was sent. Returns why it is
        refused, if it is too much.
        """
        session = self.open[command.session]
        if isinstance(command, Boot) or (isinstance(command, Open) and command.incoming):
            session.cost, session.guest = _bytes(command.spec), True
        elif isinstance(command, Feed) and not session.guest:
            session.cost += len(command.data)
        held = sum(one.cost for one in self.open.values() if one.owner == session.owner)
        for one in self.records.values():
            counted = one.order in self.open and self.open[one.order].cost
            if one.owner.user == session.owner and one.phase in HELD and not counted:
                held += _bytes(VmSpec.of(one.spec))
        quota = self.owners.quota(session.owner).mb
        return (
            f"your VMs here would hold {-(-held >> 20)} MiB, and {quota} are your quota" if held > quota << 20 else ""
        )

    def tick(self, now: datetime) -> list[Command]:
        """Tell the TCOMs of sessions that have stalled."""
        commands: list[Command] = []
        for name, session in list(self.open.items()):
            record = self.records[session.vmid]
            if now - session.since >= (POLL if record.phase == "released" else STALL):
                session.since = now
                commands += self.give(name, TimedOut())
        return commands

    def busy(self, vmid: bytes) -> bool:
        """Whether something is being done with this VM."""
        return any(one.vmid == vmid for one in self.open.values()) or any(
            one.vmid == vmid for one in self.clearing.values()
        )

    def lose(self, vmid: bytes) -> list[Command]:
        """A guest ended by itself: tell the TCOM that works with it; without one the VM is lost."""
        self._gone.add(vmid)
        for name, session in list(self.open.items()):
            if session.vmid == vmid:
                return self.give(name, CommandFailed(name, "the guest ended by itself"))
        return [] if self.busy(vmid) else self.missed(vmid)

    def missed(self, vmid: bytes) -> list[Command]:
        """A running VM is lost if its guest ended by itself meanwhile."""
        record = self.records.get(vmid)
        if vmid not in self._gone:
            return []
        self._gone.discard(vmid)
        if record is None or record.phase != "running":
            return []
        return self.carry(
            [record.with_(phase="lost").persist(), Note(vmid, "the guest ended by itself: the VM is lost here")]
        )


def _bytes(spec: VmSpec) -> int:
    return (spec.memory_mb + spec.disk_mb) << 20
