"""Seats of VMs and the server's loop, with a hypervisor that a test can stop: order, what is not wanted any more,
failures.
"""

from __future__ import annotations

import queue
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quoreduce.errors import HostError, OutputError, VmError
from quoreduce.files import mark
from quoreduce.vm import ports, wire
from quoreduce.vm.agents import post
from quoreduce.vm.agents.folder import StateFolder
from quoreduce.vm.agents.runfolder import RunFolder
from quoreduce.vm.agents.seats import Seats
from quoreduce.vm.agents.server import ServerAgent, TpmLost
from quoreduce.vm.broker import RULES
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.processes import Process
from quoreduce.vm.scrub import scrub

VM, SESSION, OTHER = bytes(range(16)), b"s" * 32, b"o" * 32
IMAGE = Bundle(b"kernel", b"initrd", "quiet").encode()
SPEC = ports.VmSpec()


class Guest:
    """A guest without QEMU: its state is its image and a few parts; ``gate`` can hold what it does."""

    made: list[Guest]
    gate: threading.Event
    boots = True
    processes_of_next: tuple[Process, ...] = ()

    def __init__(self, folder: Path, incoming: bool) -> None:
        self.folder, self.calls, self.lives = folder, ["start incoming" if incoming else "start"], True
        self.broker_socket = folder / "manager.sock"
        self.broker = SimpleNamespace(qmp=SimpleNamespace(on_event=lambda listener: None))
        self.serial = SimpleNamespace(wait=self._wait, close=lambda: None)
        self.got, self.leaving = bytearray(), threading.Event()
        self.processes: tuple[Process, ...] = Guest.processes_of_next
        Guest.made.append(self)

    @classmethod
    def start(
        cls, folder: Path, spec: ports.VmSpec, bundle: Bundle, *, incoming: bool, accel: str | None, rules: Any
    ) -> Guest:
        folder.mkdir()
        mark(folder)
        (folder / "ram.bin").write_bytes(b"secret")
        return cls(folder, incoming)

    @classmethod
    def adopt(cls, folder: Path, rules: Any) -> Guest:
        if not (folder / "alive").exists():
            raise VmError("it is gone")
        return cls(folder, False)

    def _wait(self, pattern: str, timeout_s: float) -> str:
        if not self.boots:
            raise VmError("the guest did not say it")
        return pattern

    def outgoing(self, sink: Callable[[bytes], None]) -> Any:
        self.leaving.set()
        for part in (b"a" * (3 << 19), b"b" * (3 << 19), b"c"):
            assert Guest.gate.wait(10)
            sink(part)
        return SimpleNamespace(bytes=1, total_ms=1, downtime_ms=1)

    def incoming(self) -> Any:
        def finish() -> None:
            self.calls.append("loaded")

        return SimpleNamespace(write=self.got.extend, finish=finish)

    def resume(self) -> None:
        self.calls.append("resume")

    def alive(self) -> bool:
        return self.lives

    def quit(self) -> None:
        self.calls.append("quit")


class Outlet:
    """Takes what leaves; gives at most so many tickets."""

    def __init__(self, tickets: int) -> None:
        self.tickets, self.parts = threading.Semaphore(tickets), bytearray()

    def ticket(self, wait_s: float) -> Callable[[], None] | None:
        return self.tickets.release if self.tickets.acquire(timeout=wait_s) else None

    def data(self, event: ports.Data, ticket: Callable[[], None]) -> None:
        assert len(event.data) <= wire.CHUNK_BYTES
        self.parts += event.data


class Place:
    def __init__(self, folder: Path, tickets: int = 100) -> None:
        self.events: queue.Queue[ports.Event] = queue.Queue()
        self.outlet = Outlet(tickets)
        self.state = StateFolder(folder.with_name(f"{folder.name}-state"))
        self.run = RunFolder(self.state, str(folder))
        self.seats = Seats(self.run, Guest, scrub, self.outlet, self.events.put, lambda vmid, text: None, RULES)  # type: ignore[arg-type]

    def event(self) -> ports.Event:
        return self.events.get(timeout=10)

    def boot(self) -> Guest:
        for command in (ports.Open(SESSION, VM, SPEC, False), ports.Feed(SESSION, IMAGE), ports.FeedEnd(SESSION)):
            self.seats.do(command)
        self.seats.do(ports.Boot(SESSION, VM, SPEC))
        assert self.event() == ports.Booted(SESSION)
        self.seats.end(SESSION)
        return Guest.made[-1]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    Guest.made, Guest.boots, Guest.gate = [], True, threading.Event()
    Guest.gate.set()
    yield Place(tmp_path / "run")
    Guest.gate.set()


def test_a_guest_boots_from_what_was_fed_and_its_image_stays_with_it(place: Place) -> None:
    guest = place.boot()
    assert guest.calls == ["start"]
    assert (guest.folder / "image").read_bytes() == IMAGE
    assert place.seats.broker(VM) == guest.broker_socket


def test_a_guest_that_does_not_boot_is_ended_and_scrubbed(place: Place) -> None:
    Guest.boots = False
    for command in (ports.Open(SESSION, VM, SPEC, False), ports.Feed(SESSION, IMAGE), ports.Boot(SESSION, VM, SPEC)):
        place.seats.do(command)
    failed = place.event()
    assert isinstance(failed, ports.CommandFailed)
    assert "did not say it" in failed.reason
    assert not Guest.made[0].folder.exists()
    assert place.seats.broker(VM) is None


@pytest.mark.parametrize("image", [b"", b"nonsense", IMAGE[:-1], IMAGE + b"x"])
def test_what_is_no_image_starts_nothing(place: Place, image: bytes) -> None:
    for command in (ports.Open(SESSION, VM, SPEC, False), ports.Feed(SESSION, image), ports.Boot(SESSION, VM, SPEC)):
        place.seats.do(command)
    assert isinstance(place.event(), ports.CommandFailed)
    assert Guest.made == []


def test_what_leaves_is_what_another_seat_takes_in(place: Place, tmp_path: Path) -> None:
    place.boot()
    place.seats.do(ports.Outgoing(OTHER, VM))
    assert place.event() == ports.DataEnd(OTHER)
    state = bytes(place.outlet.parts)
    assert state.startswith(struct.pack(">I", len(IMAGE)) + IMAGE)
    there = Place(tmp_path / "there")
    there.seats.do(ports.Open(SESSION, VM, SPEC, True))
    for at in range(0, len(state), 1000):
        there.seats.do(ports.Feed(SESSION, state[at : at + 1000]))
    there.seats.do(ports.FeedEnd(SESSION))
    assert there.event() == ports.Loaded(SESSION)
    guest = Guest.made[-1]
    assert guest.calls == ["start incoming", "loaded"]
    assert bytes(guest.got) == state[4 + len(IMAGE) :]


def test_a_state_that_ends_within_its_image_is_refused(place: Place) -> None:
    place.seats.do(ports.Open(SESSION, VM, SPEC, True))
    place.seats.do(ports.Feed(SESSION, struct.pack(">I", 100) + b"short"))
    place.seats.do(ports.FeedEnd(SESSION))
    assert isinstance(place.event(), ports.CommandFailed)
    assert Guest.made == []


def test_resuming_stops_what_leaves_even_while_it_waits_for_a_ticket(tmp_path: Path) -> None:
    Guest.made, Guest.boots, Guest.gate = [], True, threading.Event()
    Guest.gate.set()
    place = Place(tmp_path / "run", tickets=1)
    guest = place.boot()
    place.seats.do(ports.Outgoing(OTHER, VM))
    place.seats.do(ports.Resume(OTHER, VM))
    assert place.event() == ports.Resumed(OTHER)
    assert guest.calls[-1] == "resume"
    assert place.events.empty()  # no DataEnd


def test_the_end_of_a_session_stops_what_leaves_for_it(place: Place) -> None:
    Guest.gate.clear()
    guest = place.boot()
    place.seats.do(ports.Outgoing(OTHER, VM))
    assert guest.leaving.wait(10)
    place.seats.end(OTHER)
    Guest.gate.set()
    place.seats.do(ports.Boot(SESSION, VM, SPEC))  # fails; nothing came before it
    assert isinstance(place.event(), ports.CommandFailed)
    assert not place.outlet.parts.endswith(b"c")


def test_destroying_scrubs_and_reports_and_can_be_repeated(place: Place) -> None:
    guest = place.boot()
    place.seats.do(ports.Destroy(OTHER, VM))
    scrubbed = place.event()
    assert isinstance(scrubbed, ports.Scrubbed)
    assert b'"files":2' in scrubbed.report
    assert guest.calls[-1] == "quit"
    assert not guest.folder.exists()
    place.seats.do(ports.Destroy(OTHER, VM))
    again = place.event()
    assert isinstance(again, ports.Scrubbed)
    assert b'"files":0' in again.report


def test_a_scrub_that_fails_is_reported_as_failed(place: Place) -> None:
    place.boot()

    def fails(folder: Path) -> Any:
        raise VmError(f"not scrubbed: {folder}")

    place.seats.scrub = fails
    place.seats.do(ports.Destroy(OTHER, VM))
    assert isinstance(place.event(), ports.ScrubFailed)


def test_a_guest_that_ended_by_itself_is_said_once_and_scrubbed(place: Place) -> None:
    guest = place.boot()
    assert place.seats.gone() == []
    guest.lives = False
    while not (gone := place.seats.gone()):
        pass  # its thread has not yet gone idle
    assert gone == [VM]
    assert place.seats.gone() == []
    assert not guest.folder.exists()


def test_after_a_restart_guests_are_taken_up_and_the_rest_is_scrubbed(place: Place) -> None:
    for name in (VM.hex(), OTHER[:16].hex(), "ab" * 16):
        (place.run.path / name).mkdir()
        mark(place.run.path / name)
        (place.run.path / name / "ram.bin").write_bytes(b"secret")
    (place.run.path / VM.hex() / "alive").touch()
    assert len(place.seats.strays({VM, OTHER[:16]})) == 1
    assert place.seats.recover(VM)
    assert not place.seats.recover(OTHER[:16])
    assert not place.seats.recover(bytes(16))
    assert place.run.vms() == {VM}


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a guest's."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_process_that_runs_although_its_folder_is_gone_is_ended_before_the_vm_is_said_to_be_gone(
    place: Place, stranger: subprocess.Popen[bytes]
) -> None:
    place.run.note(VM, [Process.of(stranger.pid)])
    assert not place.seats.recover(VM)
    assert stranger.wait(10) == -signal.SIGKILL
    assert place.run.vms() == set()


def test_a_vm_of_which_a_process_cannot_be_ended_is_not_gone(
    place: Place, stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(self: Process, grace_s: float = 0.0) -> None:
        raise VmError(f"process {self.pid} cannot be killed")

    Guest.processes_of_next = (Process.of(stranger.pid),)
    guest = place.boot()
    Guest.processes_of_next = ()
    monkeypatch.setattr(Process, "end", cannot)
    guest.lives = False
    while place.seats._seat(VM)._busy:
        pass
    assert place.seats.gone() == []
    assert place.seats.recover(VM)
    monkeypatch.undo()
    place.seats._seat(VM).guest = guest  # type: ignore[assignment]
    assert place.seats.gone() == [VM]
    assert stranger.wait(10) == -signal.SIGKILL


def test_a_process_of_another_boot_or_with_another_start_is_not_the_guests(
    place: Place, stranger: subprocess.Popen[bytes]
) -> None:
    process = Process.of(stranger.pid)
    place.run.note(VM, [replace(process, boot="another"), replace(process, start=process.start - 1)])
    assert not place.seats.recover(VM)
    assert stranger.poll() is None


class Core:
    """Answers events with the commands that a test has written down."""

    def __init__(self, script: dict[type, list[ports.Command]]) -> None:
        self.script, self.events = script, list[ports.Event]()

    def step(self, event: ports.Event) -> list[ports.Command]:
        self.events.append(event)
        return self.script.get(type(event), [])


class Wire:
    """A link that remembers what is sent."""

    def __init__(self) -> None:
        self.sent: list[post.Post] = []

    def send(self, message: post.Post, ticket: Callable[[], None] | None = None) -> None:
        self.sent.append(message)
        if ticket is not None:
            ticket()


def agent(tmp_path: Path, script: dict[type, list[ports.Command]]) -> tuple[ServerAgent, Core, Wire]:
    core, link = Core(script), Wire()
    made = ServerAgent(core, SimpleNamespace(), StateFolder(tmp_path / "state"), lambda text: None)  # type: ignore[arg-type]
    made.link = link  # type: ignore[assignment]
    made.seats = SimpleNamespace(do=lambda command: None, end=lambda session: None, full=lambda: False)  # type: ignore[assignment]
    return made, core, link


MESSAGE = wire.Refusal(SESSION, "no")


def test_a_record_is_written_before_what_depends_on_it_is_sent(tmp_path: Path) -> None:
    commands: list[ports.Command] = [ports.Persist(VM, b"record"), ports.Send("someone", MESSAGE)]
    made, _, link = agent(tmp_path, {ports.GuestGone: commands})
    made._take(ports.GuestGone(VM))
    assert (tmp_path / "state" / "vms" / VM.hex()).read_bytes() == b"record"
    assert len(link.sent) == 1


def test_a_record_that_cannot_be_written_stops_the_agent_and_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: StateFolder, name: str, data: bytes) -> None:
        raise OutputError("No space left on device")

    commands: list[ports.Command] = [ports.Persist(VM, b"record"), ports.Send("someone", MESSAGE)]
    made, _, link = agent(tmp_path, {ports.GuestGone: commands})
    monkeypatch.setattr(StateFolder, "write", fails)
    with pytest.raises(OutputError):
        made._take(ports.GuestGone(VM))
    assert link.sent == []


def test_a_tpm_that_is_gone_stops_the_agent_and_nothing_is_said_without_it(tmp_path: Path) -> None:
    def gone(challenges: Any) -> Any:
        raise HostError("swtpm is gone")

    attested = ports.SendAttested(SESSION, ("someone",), bytes(32), VM, b"content")
    made, core, link = agent(
        tmp_path, {ports.GuestGone: [ports.StartTcom(SESSION, "backup"), attested, ports.Persist(VM, b"record")]}
    )
    made._attestor = SimpleNamespace(session=lambda operation: SimpleNamespace(operation=operation), attest_many=gone)  # type: ignore[assignment]
    with pytest.raises(TpmLost, match="its VMs go on: start the server again"):
        made._take(ports.GuestGone(VM))
    assert link.sent == []
    assert core.events == [ports.GuestGone(VM)]
    assert not (tmp_path / "state" / "vms").exists()


def test_a_part_that_is_fetched_goes_to_its_session_only_while_that_lasts(tmp_path: Path) -> None:
    made, core, link = agent(tmp_path, {})
    made._do(ports.GetBlob(SESSION, "blob"))
    asked = link.sent[-1]
    assert isinstance(asked, post.Get)
    made._hear(post.BlobPart(asked.ticket, 0, b"one", False))
    made._hear(post.BlobPart(asked.ticket + 1, 0, b"not asked for", False))
    made._do(ports.EndTcom(SESSION))
    made._hear(post.BlobPart(asked.ticket, 1, b"two", True))
    assert core.events == [ports.Fetched(SESSION, b"one")]


def test_nothing_of_a_blob_comes_after_its_final_part(tmp_path: Path) -> None:
    made, core, link = agent(tmp_path, {})
    made._do(ports.GetBlob(SESSION, "blob"))
    asked = link.sent[-1]
    assert isinstance(asked, post.Get)
    made._hear(post.BlobPart(asked.ticket, 0, b"one", True))
    made._hear(post.BlobPart(asked.ticket, 1, b"two", True))
    assert core.events == [ports.Fetched(SESSION, b"one")]


def test_a_blob_that_is_not_stored_fails_its_session(tmp_path: Path) -> None:
    made, core, link = agent(tmp_path, {})
    made._do(ports.PutBlob(SESSION, "blob", b"one", False))
    made._do(ports.PutBlob(SESSION, "blob", b"two", True))
    assert [(one.number, one.final) for one in link.sent if isinstance(one, post.Put)] == [(0, False), (1, True)]
    made._hear(post.BlobStored("blob", "the disk is full"))
    assert core.events == [ports.CommandFailed(SESSION, "the disk is full")]


def test_nonsense_in_a_letter_is_dropped(tmp_path: Path) -> None:
    made, core, _ = agent(tmp_path, {})
    made._hear(post.Letter("mallory", "s1", b"nonsense"))
    assert core.events == []
    made._hear(post.Letter("mallory", "s1", wire.encode(MESSAGE)))
    assert [type(one) for one in core.events] == [ports.Received]


def test_an_insider_who_asks_for_a_vm_that_is_not_here_is_told(tmp_path: Path) -> None:
    made, _, link = agent(tmp_path, {})
    made.seats = SimpleNamespace(broker=lambda vmid: None)  # type: ignore[assignment]
    made._hear(post.Console("mallory", "s1", VM.hex(), b"{}"))
    reply = link.sent[-1]
    assert isinstance(reply, post.ConsoleReply)
    assert "no VM" in reply.reason


def test_the_loop_ends_when_it_is_told_to_and_ticks_before(tmp_path: Path) -> None:
    made, core, _ = agent(tmp_path, {})
    made.seats = SimpleNamespace(gone=lambda: [VM])  # type: ignore[assignment]

    def step(event: ports.Event) -> list[ports.Command]:
        if isinstance(event, ports.Tick):
            made.stop()
        core.events.append(event)
        return []

    core.step = step  # type: ignore[method-assign]
    made.run()
    assert [type(one) for one in core.events] == [ports.GuestGone, ports.Tick]
    assert isinstance(core.events[1], ports.Tick)
    assert core.events[1].at <= datetime.now(UTC)
