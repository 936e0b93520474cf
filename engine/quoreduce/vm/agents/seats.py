"""The VMs of a server, each in a *seat*: a private folder in memory, and a thread for blocking work on this VM.

Commands of :mod:`quoreduce.vm.ports` go in, events come out (:data:`Report`). A state that leaves is, in plaintext::

    u32 length of the image (big-endian)   image   what Guest.outgoing gives: RAM, devices, vTPM, disk

The image lies in the seat's folder too, since a guest can only be loaded with what it was booted from; it is scrubbed
with the rest.
"""

from __future__ import annotations

import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from quoreduce.errors import QuoreduceError, VmError, one_line
from quoreduce.vm import ports
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.processes import living_in
from quoreduce.vm.wire import CHUNK_BYTES

if TYPE_CHECKING:
    from quoreduce.vm.agents.runfolder import RunFolder
    from quoreduce.vm.broker import Rules
    from quoreduce.vm.hypervisor import Guest
    from quoreduce.vm.scrub import ScrubReport
    from quoreduce.vm.state import Feeder

IMAGE: Final = "image"
READY: Final = r"GUEST-READY"  # what a guest prints when it is up
BOOT_S: Final = 50.0  # under the server core's patience with a session
TICKET_PAUSE_S: Final = 0.2
FED_MAX: Final = 24 << 20  # bytes of Feed that wait; then :meth:`Seats.full`
_SIZE: Final = struct.Struct(">I")
Task: TypeAlias = ports.Open | ports.Feed | ports.FeedEnd | ports.Boot | ports.Outgoing | ports.Resume | ports.Destroy
Report = Callable[[ports.Event], None]
Ticket = Callable[[], None]


class Outlet(Protocol):
    """Where the parts of a VM that leaves go."""

    def ticket(self, wait_s: float) -> Ticket | None:
        """As :meth:`quoreduce.vm.agents.link.Link.ticket`."""

    def data(self, event: ports.Data, ticket: Ticket) -> None:
        """Take a part, and the ticket with it."""


class Stopped(Exception):
    """The operation was cancelled."""


@dataclass
class _Intake:
    """What an Open takes in: an image in memory, or the state of a VM."""

    vmid: bytes
    spec: ports.VmSpec
    incoming: bool
    held: bytearray = field(default_factory=bytearray)
    feeder: Feeder | None = None


class Seats:
    """All VMs of a server.

    Args:
        run: the folder of each VM, and the list of its processes.
        hypervisor: :class:`quoreduce.vm.hypervisor.Guest`, and ``scrub`` (:func:`quoreduce.vm.scrub.scrub`).
        outlet, report, say: where data, events, and lines for the log go.
        rules: of the VMs' brokers.
        accel: kvm or tcg; by default what works.
    """

    def __init__(
        self, run: RunFolder, hypervisor: type[Guest], scrub: Callable[[Path], ScrubReport], outlet: Outlet,
        report: Report, say: Callable[[bytes, str], None], rules: Rules, accel: str | None = None,
    ) -> None:  # fmt: skip
        self.run, self.hypervisor, self.scrub = run, hypervisor, scrub
        self.outlet, self.report, self.say = outlet, report, say
        self.rules, self.accel = rules, accel
        self._seats: dict[bytes, Seat] = {}
        self._sessions: dict[bytes, Seat] = {}

    def recover(self, vmid: bytes) -> bool:
        """Take up a guest of an earlier process; return whether it is there.

        A guest that cannot be taken up is of no use, and is ended. While a process of it still runs, it is there.
        """
        if vmid not in self.run.vms():
            return False
        seat = self._seat(vmid)
        return seat.adopt() or not seat.drop_guest()

    def strays(self, known: set[bytes]) -> list[str]:
        """End and scrub VMs without a record; return what was done, in lines. Raises VmError if that fails."""
        said = []
        for vmid in sorted(self.run.vms() - known):
            self._seat(vmid).end_guest()
            self.forget(vmid)
            said.append(f"{vmid.hex()}: no record of it: ended and scrubbed")
        return said

    def do(self, command: Task) -> None:
        """Queue a command for its VM's thread, which reports its events."""
        if isinstance(command, ports.Feed | ports.FeedEnd):
            seat = self._sessions.get(command.session)
        else:
            seat = self._sessions[command.session] = self._seat(command.vmid)
        if seat is not None:
            seat.take(command)

    def end(self, session: bytes) -> None:
        """A session is over: what it fed and did not use is dropped, its Outgoing stops."""
        seat = self._sessions.pop(session, None)
        if seat is not None:
            seat.end_session(session)

    def full(self) -> bool:
        """Whether so much is waiting to be fed that no more should be read."""
        return any(seat.fed > FED_MAX for seat in list(self._seats.values()))

    def gone(self) -> list[bytes]:
        """The VMs whose guest ended by itself since the last call."""
        return [vmid for vmid, seat in list(self._seats.items()) if seat.noticed_gone()]

    def broker(self, vmid: bytes) -> Path | None:
        """The broker's socket of a VM, if it has a guest."""
        seat = self._seats.get(vmid)
        guest = seat.guest if seat is not None else None
        return guest.broker_socket if guest is not None else None

    def forget(self, vmid: bytes) -> None:
        """A VM is not here any more: its seat is free, if its thread has nothing to do."""
        seat = self._seats.get(vmid)
        if seat is not None and seat.idle():
            del self._seats[vmid]

    def _seat(self, vmid: bytes) -> Seat:
        if vmid not in self._seats:
            self._seats[vmid] = Seat(self, vmid)
        return self._seats[vmid]


class Seat:
    """One VM: its folder, its guest, its thread (which lives while there is something to do)."""

    def __init__(self, seats: Seats, vmid: bytes) -> None:
        self._seats, self.vmid, self.folder = seats, vmid, seats.run.vm(vmid)
        self.guest: Guest | None = None
        self.fed = 0
        self._stopped = "?"
        self._intakes: dict[bytes, _Intake] = {}
        self._ended: set[bytes] = set()
        self._work: queue.Queue[Any] = queue.Queue()
        self._lock = threading.Lock()
        self._busy = False
        self._stops: dict[bytes, threading.Event] = {}  # of Outgoings, by their sessions

    # Called by the agent's thread

    def adopt(self) -> bool:
        """Take up the guest in the folder, if it lives."""
        try:
            self.guest = self._seats.hypervisor.adopt(self.folder, self._seats.rules)
            self.guest.serial.close()  # QEMU serves one at a time: the console is whose the VM is
        except VmError as error:
            self._seats.say(self.vmid, f"no guest to take up: {error}")
            return False
        return True

    def take(self, command: Any) -> None:
        """Queue a command for this VM's thread."""
        with self._lock:
            if isinstance(command, ports.Feed):
                self.fed += len(command.data)
            if isinstance(command, ports.Outgoing):
                self._stops[command.session] = threading.Event()
            if isinstance(command, ports.Resume | ports.Destroy):
                for stop in self._stops.values():
                    stop.set()
            self._work.put(command)
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._run, name=f"vm {self.vmid.hex()[:8]}", daemon=True).start()

    def end_session(self, session: bytes) -> None:
        """The session is over: drop what it has not used."""
        with self._lock:
            if not self._busy:
                self._intakes.pop(session, None)
                return
            self._ended.add(session)
            if session in self._stops:
                self._stops[session].set()

    def noticed_gone(self) -> bool:
        """Whether the guest ended by itself, and nothing of it runs any more; true once."""
        with self._lock:
            if self._busy or self.guest is None or self.guest.alive():
                return False
        return self.drop_guest()  # its memory is of no use any more

    def idle(self) -> bool:
        """Whether nothing is left to be done, and no guest is here."""
        with self._lock:
            return not self._busy and self.guest is None and not self._intakes

    # The seat's thread

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._work.empty():
                    for session in self._ended:
                        self._intakes.pop(session, None)
                    self._ended.clear()
                    self._busy = False
                    return
                command = self._work.get()
                if isinstance(command, ports.Feed):
                    self.fed -= len(command.data)
            self._carry_out(command)
            if isinstance(command, ports.Outgoing):
                with self._lock:
                    del self._stops[command.session]

    def _carry_out(self, command: Any) -> None:
        if command.session in self._ended and isinstance(
            command, ports.Open | ports.Feed | ports.FeedEnd | ports.Outgoing
        ):
            return
        try:
            _WORK[type(command)](self, command)
        except Stopped:
            pass
        except (QuoreduceError, OSError) as error:
            if isinstance(command, ports.Feed | ports.FeedEnd):
                self._intakes.pop(command.session, None)  # what still comes is ignored
            kind = ports.ScrubFailed if isinstance(command, ports.Destroy) else ports.CommandFailed
            self._seats.report(kind(command.session, one_line(error)))

    def _open(self, command: ports.Open) -> None:
        self._intakes[command.session] = _Intake(command.vmid, command.spec, command.incoming)

    def _feed(self, command: ports.Feed) -> None:
        intake = self._intakes.get(command.session)
        if intake is None:
            return  # it failed before, and was reported
        if intake.feeder is not None:
            intake.feeder.write(command.data)
            return
        intake.held += command.data
        if len(intake.held) > ports.IMAGE_BYTES_MAX + CHUNK_BYTES:
            raise VmError(f"the image has more than {ports.IMAGE_BYTES_MAX >> 20} MiB")
        if intake.incoming and len(intake.held) >= _SIZE.size:
            (size,) = _SIZE.unpack_from(intake.held)
            if size > ports.IMAGE_BYTES_MAX:
                raise VmError(f"an image of {size} bytes, over the bound of {ports.IMAGE_BYTES_MAX}")
            if len(intake.held) >= _SIZE.size + size:
                self._begin_incoming(intake, size)

    def _begin_incoming(self, intake: _Intake, size: int) -> None:
        image, rest = bytes(intake.held[_SIZE.size : _SIZE.size + size]), bytes(intake.held[_SIZE.size + size :])
        intake.held.clear()
        self._start(intake.spec, image, incoming=True)
        assert self.guest is not None
        self.guest.serial.close()
        intake.feeder = self.guest.incoming()
        if rest:
            intake.feeder.write(rest)

    def _feed_end(self, command: ports.FeedEnd) -> None:
        intake = self._intakes.get(command.session)
        if intake is None or not intake.incoming:
            return  # an image waits for its Boot
        if intake.feeder is None:
            raise VmError("the stream ended before the image in it did")
        intake.feeder.finish()
        del self._intakes[command.session]
        self._seats.report(ports.Loaded(command.session))

    def _boot(self, command: ports.Boot) -> None:
        intake = self._intakes.pop(command.session, None)
        if intake is None:
            raise VmError("there is no image to boot")
        began = time.monotonic()
        try:
            self._start(command.spec, bytes(intake.held), incoming=False)
            assert self.guest is not None
            self.guest.serial.wait(READY, BOOT_S)
            self.guest.serial.close()  # QEMU serves one at a time: the console is whose the VM is
        except BaseException:
            self.drop_guest()
            raise
        self._say(f"booted in {time.monotonic() - began:.2f} s")
        self._seats.report(ports.Booted(command.session))

    def _start(self, spec: ports.VmSpec, image: bytes, incoming: bool) -> None:
        bundle = Bundle.decode(image)
        if self.guest is not None:
            raise VmError("a guest of this VM is here already")
        self._seats.run.note(self.vmid)  # from here on something of it may be here
        self.guest = self._seats.hypervisor.start(
            self.folder, spec, bundle, incoming=incoming, accel=self._seats.accel, rules=self._seats.rules
        )
        self._seats.run.note(self.vmid, self.guest.processes)
        (self.folder / IMAGE).write_bytes(image)

    def _outgoing(self, command: ports.Outgoing) -> None:
        if self.guest is None:
            raise VmError("the VM has no guest here")
        if self._stops[command.session].is_set():
            raise Stopped
        chunker = _Chunker(self, command.session)
        image = (self.folder / IMAGE).read_bytes()
        chunker.write(_SIZE.pack(len(image)) + image)
        self.guest.broker.qmp.on_event(self._heard)
        stats = self.guest.outgoing(chunker.write)
        chunker.flush()
        self._seats.report(ports.DataEnd(command.session))
        self._say(
            f"left: {stats.bytes:,} bytes, its memory in {stats.total_ms} ms; it stands still since {self._stopped}"
        )

    def _heard(self, event: Mapping[str, Any]) -> None:
        """Note when the guest stopped, for the log: it shows how long the guest stood still."""
        if event.get("event") == "STOP":
            at = event.get("timestamp", {})
            seconds = time.strftime("%H:%M:%S", time.gmtime(at.get("seconds", 0)))
            self._stopped = f"{seconds}.{at.get('microseconds', 0) // 1000:03d}"

    def part(self, session: bytes, data: bytes) -> None:
        """Pass on a part of what leaves; waits for a ticket. Raises Stopped if it was cancelled."""
        stop = self._stops[session]
        while not stop.is_set():
            ticket = self._seats.outlet.ticket(TICKET_PAUSE_S)
            if ticket is not None:
                self._seats.outlet.data(ports.Data(session, data), ticket)
                return
        raise Stopped

    def _resume(self, command: ports.Resume) -> None:
        if self.guest is None:
            raise VmError("the VM has no guest here")
        self.guest.resume()
        self._say("runs")
        self._seats.report(ports.Resumed(command.session))

    def _destroy(self, command: ports.Destroy) -> None:
        self._intakes.clear()
        report = self.end_guest()
        self._say("ended; its memory, disk and TPM are overwritten")
        self._seats.report(ports.Scrubbed(command.session, report))

    def end_guest(self) -> bytes:
        """End the guest and scrub its folder; return the report. Raises VmError, which names what failed."""
        if self.guest is not None:
            self.guest.quit()
            self.guest = None
        for process in self._seats.run.noted(self.vmid):
            process.end()
        report = self._seats.scrub(self.folder).document()
        self._seats.run.forget(self.vmid)
        return report

    def drop_guest(self) -> bool:
        """End and scrub a guest that failed; return whether none of its processes runs any more.

        Logs what cannot be ended or scrubbed; a later Destroy tries again.
        """
        try:
            self.end_guest()
        except QuoreduceError as error:
            self._say(one_line(error))
            return not self._runs()
        return True

    def _runs(self) -> bool:
        """Whether a process of it may run; true if that is unknown."""
        try:
            noted = self._seats.run.noted(self.vmid)
        except QuoreduceError:
            return True
        return any(process.alive() for process in noted) or bool(living_in(self.folder))

    def _say(self, text: str) -> None:
        self._seats.say(self.vmid, text)


class _Chunker:
    """Makes parts of CHUNK_BYTES out of writes of any size."""

    def __init__(self, seat: Seat, session: bytes) -> None:
        self._seat, self._session, self._held = seat, session, bytearray()

    def write(self, data: bytes) -> None:
        self._held += data
        for part in self._parts():
            self._seat.part(self._session, part)

    def flush(self) -> None:
        if self._held:
            self._seat.part(self._session, bytes(self._held))
            self._held.clear()

    def _parts(self) -> Iterator[bytes]:
        while len(self._held) >= CHUNK_BYTES:
            part = bytes(self._held[:CHUNK_BYTES])
            del self._held[:CHUNK_BYTES]
            yield part


_WORK: Final[dict[type, Callable[[Seat, Any], None]]] = {
    ports.Open: Seat._open, ports.Feed: Seat._feed, ports.FeedEnd: Seat._feed_end, ports.Boot: Seat._boot,
    ports.Outgoing: Seat._outgoing, ports.Resume: Seat._resume, ports.Destroy: Seat._destroy,
}  # fmt: skip
