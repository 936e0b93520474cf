"""The server agent as a process: :mod:`quoreduce.vm.server` decides, this module acts.

One thread takes events from the inbox and carries out the commands of each step, in order; it waits for no guest, and
not for the relay. A record is on disk before the command after its Persist begins. If it cannot be written, or the TPM
is gone, the agent stops, as if it were killed, and the guests continue; started again it takes them up.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from quoreduce.errors import HostError, QuoreduceError, VmError, one_line
from quoreduce.vm import ports, processes, wire
from quoreduce.vm.agents import post
from quoreduce.vm.agents.folder import StateFolder
from quoreduce.vm.agents.seats import Seats, Ticket
from quoreduce.vm.attestor import SHARED_MAX, Challenge, TcomInstance, TpmAttestor
from quoreduce.vm.evidence import encode as encode_evidence

if TYPE_CHECKING:
    from quoreduce.vm.agents.channel import Address
    from quoreduce.vm.agents.link import Link
    from quoreduce.vm.broker import Rules
    from quoreduce.vm.measure import Environment
    from quoreduce.vm.owners import Owners

INBOX_MAX: Final = 64
TICK_S: Final = 0.5
FULL_PAUSE_S: Final = 0.01
CONSOLE_S: Final = 10.0
CONSOLES_MAX: Final = 16


class TpmLost(HostError):
    """The server's TPM does not answer any more."""


class Core(Protocol):
    """:class:`quoreduce.vm.server.Server`, as it is driven here."""

    def step(self, event: ports.Event) -> list[ports.Command]:
        """Take an event; return what has to be done."""


@dataclass(frozen=True, slots=True)
class _Bulk:
    """Data with the ticket that goes to the message made of it."""

    event: ports.Data
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class _FromManager:
    """A message of the manager's."""

    message: post.Post


class ServerAgent:
    """A server agent.

    Args:
        core: decides.
        attestor: attests.
        state: has the records, as ``vms/VMID``.
        log: takes lines.
    """

    def __init__(self, core: Core, attestor: TpmAttestor, state: StateFolder, log: Callable[[str], None]) -> None:
        self._core, self._attestor, self._state, self._log = core, attestor, state, log
        self._inbox: queue.Queue[Any] = queue.Queue(INBOX_MAX)
        self._tcoms: dict[bytes, TcomInstance] = {}
        self._gets: dict[int, bytes] = {}  # ticket → session
        self._puts: dict[str, tuple[bytes, int]] = {}  # blob → session, number of its next part
        self._asked: list[tuple[ports.SendAttested, Challenge]] = []
        self._number = 0
        self._consoles = threading.BoundedSemaphore(CONSOLES_MAX)
        self._stopping = threading.Event()
        self.seats: Seats
        self.link: Link

    # Called by the threads of the link and the seats

    def heard(self, message: post.Post) -> None:
        """Take a message; wait while too much data of earlier ones waits to be fed to guests."""
        while self.seats.full() and not self._stopping.is_set():
            time.sleep(FULL_PAUSE_S)
        self._put(_FromManager(message))

    def report(self, event: ports.Event) -> None:
        """Take an event of a guest."""
        self._put(event)

    def ticket(self, wait_s: float) -> Ticket | None:
        """A ticket for a part of what leaves."""
        return self.link.ticket(wait_s)

    def data(self, event: ports.Data, ticket: Ticket) -> None:
        """Take a part of what leaves."""
        self._put(_Bulk(event, ticket))

    def say(self, vmid: bytes, text: str) -> None:
        """Log a line about a VM."""
        self._log(f"{vmid.hex()[:8]} {one_line(text)}")

    def _put(self, item: Any) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._inbox.put(item, timeout=TICK_S)
                return

    # The agent's thread

    def stop(self) -> None:
        """Let :meth:`run` return soon; guests continue. May be called from a signal handler."""
        self._stopping.set()

    def recover(self, records: set[bytes]) -> None:
        """Take up the guests of the VMs that are on record, tell the core, and end those that are not."""
        for line in self.seats.strays(records):
            self._log(line)
        for vmid in sorted(records):
            self._step(ports.RecordFound(vmid, self.seats.recover(vmid), _now()))

    def run(self) -> None:
        """Take events until :meth:`stop`.

        Raises:
            OutputError: a record cannot be written. TpmLost: the TPM is gone. All other failures are events.
        """
        next_tick = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_S
                self._tick()
            with contextlib.suppress(queue.Empty):
                self._take(self._inbox.get(timeout=max(0.0, next_tick - time.monotonic())))
            if self._inbox.empty() or len(self._asked) >= SHARED_MAX:
                self._answer()

    def _tick(self) -> None:
        processes.reap()
        for vmid in self.seats.gone():
            self._step(ports.GuestGone(vmid))
        self._step(ports.Tick(_now()))

    def _take(self, item: Any) -> None:
        if isinstance(item, _FromManager):
            self._hear(item.message)
        elif isinstance(item, _Bulk):
            self._step(item.event, item.ticket)
        else:
            self._step(item)

    def _hear(self, message: post.Post) -> None:
        if isinstance(message, post.Letter):
            try:
                inner = wire.decode_message(message.body)
            except VmError as error:
                self._log(f"a message from {message.sender} is dropped: {error}")
                return
            self._step(ports.Received(inner, _now()))
        elif isinstance(message, post.BlobPart):
            self._fetched(message)
        elif isinstance(message, post.BlobStored):
            put = self._puts.pop(message.blob, None)
            if message.reason and put is not None:
                self._step(ports.CommandFailed(put[0], message.reason))
        elif isinstance(message, post.Console):
            self._console(message)

    def _fetched(self, part: post.BlobPart) -> None:
        session = self._gets.get(part.ticket)
        if session is None:
            return
        if part.final:
            del self._gets[part.ticket]
        self._step(ports.CommandFailed(session, part.reason) if part.reason else ports.Fetched(session, part.body))

    def _step(self, event: ports.Event, ticket: Ticket | None = None) -> None:
        """One step of the core. A ticket goes with the first message that the step makes, or back."""
        for command in self._core.step(event):
            if isinstance(command, ports.Send | ports.PutBlob) and ticket is not None:
                self._send(command, ticket)
                ticket = None
            else:
                self._do(command)
        if ticket is not None:
            ticket()

    def _do(self, command: ports.Command) -> None:
        try:
            if isinstance(command, ports.Send | ports.PutBlob):
                self._send(command, None)
            elif isinstance(command, ports.Persist):
                self._state.write(f"vms/{command.vmid.hex()}", command.record)
            elif isinstance(command, ports.Floor):
                self._state.write(f"floors/{command.owner}", str(command.number).encode())
            elif isinstance(command, ports.Forget):
                self._state.remove(f"vms/{command.vmid.hex()}")
            elif isinstance(command, ports.Note):
                self.say(command.vmid, command.text)
            elif isinstance(command, ports.StartTcom | ports.Extend | ports.SendAttested | ports.EndTcom):
                self._attest(command)
            elif isinstance(command, ports.GetBlob):
                self._get(command)
            else:
                self.seats.do(command)
        except QuoreduceError as error:
            if isinstance(command, ports.Persist | ports.Floor | ports.Forget) or isinstance(error, TpmLost):
                raise
            self._log(f"{type(command).__name__} failed: {one_line(error)}")
            self._step(ports.CommandFailed(command.session, one_line(error)))  # type: ignore[union-attr]

    def _attest(self, command: ports.StartTcom | ports.Extend | ports.SendAttested | ports.EndTcom) -> None:
        if isinstance(command, ports.StartTcom):
            self._tcoms[command.session] = self._attestor.session(command.operation)
        elif isinstance(command, ports.EndTcom):
            self._tcoms.pop(command.session, None)
            self._gets = {ticket: session for ticket, session in self._gets.items() if session != command.session}
            self.seats.end(command.session)
        elif isinstance(command, ports.Extend):
            self._tcoms[command.session].extend(command.pcr, command.data)
        else:
            challenge = Challenge(self._tcoms[command.session], command.nonce, command.vmid, command.content)
            self._asked.append((command, challenge))
            if challenge.session.operation != "status":
                self._answer()

    def _answer(self) -> None:
        """Attest all that was asked for, under one quote of the TPM, and send it.

        Only statuses wait for each other (they say what was the case when they were asked); receipts and offers do not.
        """
        asked, self._asked = self._asked, []
        if not asked:
            return
        try:
            made = self._attestor.attest_many([challenge for _, challenge in asked])
        except HostError as error:
            raise TpmLost(
                f"the server's TPM is gone, and its VMs go on: start the server again ({one_line(error)})"
            ) from error
        except QuoreduceError as error:
            self._log(f"cannot attest: {one_line(error)}")
            for command, challenge in asked:
                if challenge.session.operation != "status":
                    self._step(ports.CommandFailed(command.session, one_line(error)))
            return
        for (command, _), evidence in zip(asked, made, strict=True):
            message = wire.encode(wire.AttestedMessage(command.content, encode_evidence(evidence)))
            for to in command.to:
                self.link.send(post.Letter("server", to, message))

    def _send(self, command: ports.Send | ports.PutBlob, ticket: Ticket | None) -> None:
        if isinstance(command, ports.Send):
            self.link.send(post.Letter("server", command.to, wire.encode(command.message)), ticket)
            return
        session, number = self._puts.get(command.blob, (command.session, 0))
        if session != command.session:
            number = 0  # another backup of this name: it begins anew
        self._puts[command.blob] = (command.session, number + 1)
        self.link.send(post.Put(command.blob, number, command.data, command.final), ticket)

    def _get(self, command: ports.GetBlob) -> None:
        self._number += 1
        self._gets[self._number] = command.session
        self.link.send(post.Get(command.blob, self._number))

    # The insider's console

    def _console(self, asked: post.Console) -> None:
        """Let a thread pass an insider's command on to the VM's broker, which is all that a manager reaches."""
        path = self.seats.broker(bytes.fromhex(asked.vm))
        if path is None or not self._consoles.acquire(blocking=False):
            reason = "too many ask at once" if path is not None else f"there is no VM {asked.vm} here"
            self.link.send(post.ConsoleReply(asked.sender, b"", reason))
            return

        def work() -> None:
            try:
                answer = post.ConsoleReply(asked.sender, ask_broker(path, asked.line))
            except (OSError, VmError) as error:
                answer = post.ConsoleReply(
                    asked.sender, b"", f"the broker does not answer: {one_line(error)}"[: post.REASON_MAX]
                )
            finally:
                self._consoles.release()
            self.link.send(answer)

        threading.Thread(target=work, daemon=True).start()


def ask_broker(path: Path, line: bytes) -> bytes:
    """Send one request to a broker and return its answer, both JSON lines. Raises OSError, or VmError if
    it does not answer.
    """
    from quoreduce.vm.qmp import dial

    connection: socket.socket = dial(path)
    with connection, connection.makefile("rb") as lines:
        connection.settimeout(CONSOLE_S)
        lines.readline(post.LINE_BYTES_MAX)  # the greeting
        connection.sendall(line.strip().replace(b"\n", b" ") + b"\n")
        while answer := lines.readline(post.LINE_BYTES_MAX):
            if b'"event"' not in answer or b'"return"' in answer or b'"error"' in answer:
                return answer.strip()
    raise VmError("it closed the connection")


def _now() -> datetime:
    return datetime.now(UTC)


def _attestor(state: Path, environment: Environment) -> TpmAttestor:
    """The server's TPM. Raises HostError, which says what to do if it is dead."""
    from quoreduce.vm.attestor import SwtpmAttestor

    try:
        return SwtpmAttestor(state, environment.document, environment.codes)
    except HostError as error:
        raise HostError(
            f"{error}; if this TPM is dead for good, start once with --new-tpm, which ends the VMs here"
        ) from error


def with_dump(rules: Rules) -> Rules:
    """Rules under which the manager may dump a VM's memory, for demonstrations: this is another TVE, and no policy of
    ours trusts it.
    """
    from quoreduce.vm.broker import Rules

    manager = {**rules.commands["manager"], "dump-guest-memory": {"paging": (), "protocol": ()}}
    return Rules({**rules.commands, "manager": manager}, rules.events)


def serve(
    state: Path, manager: Address, name: str, site: Path, *, owners: Owners, run: str | None, allow_dump: bool,
    accel: str | None, new_tpm: bool, log: Callable[[str], None], measure: Callable[[Any], Environment],
) -> None:  # fmt: skip
    """Be a server until SIGTERM or SIGINT; its VMs continue, and are taken up when it is started again.

    With ``new_tpm`` it gets another TPM first, and is another server: VMs that it finds are ended. ``measure`` returns
    the environment with these rules of the broker, as JSON has them.

    Raises:
        VmError, HostError: QEMU or swtpm is missing, fails or cannot be confined, another process is this server, its
            VMs live in another run folder, that folder has files that are not ours, the manager does not answer.
        OutputError: a folder cannot be written.
    """
    from quoreduce.vm import cgroups, confine, programs
    from quoreduce.vm.agents.laststart import note_measured
    from quoreduce.vm.agents.link import Link
    from quoreduce.vm.agents.memory import forget_what_is_freed
    from quoreduce.vm.agents.names import server_prover
    from quoreduce.vm.agents.runfolder import RunFolder
    from quoreduce.vm.agents.site import check_programs, put_tpm_away, setup_server
    from quoreduce.vm.broker import RULES
    from quoreduce.vm.hypervisor import Guest
    from quoreduce.vm.scrub import scrub
    from quoreduce.vm.server import Server

    check_programs()
    forget_what_is_freed()
    rules = with_dump(RULES) if allow_dump else RULES
    with StateFolder(state) as folder, RunFolder(folder, run) as here, contextlib.ExitStack() as stack:
        if new_tpm:
            log(put_tpm_away(state))
        setup_server(state, site)
        environment = measure(json.loads(rules.document()))
        note_measured(folder, environment.files, log)
        confine.check(programs.load(programs.SWTPM))
        unlimited = cgroups.prepare()
        log(f"guests are confined{f'; without limits of a cgroup: {unlimited}' if unlimited else ''}")
        attestor = _attestor(state, environment)
        stack.callback(attestor.close)
        records = {bytes.fromhex(Path(one).name): folder.read(one) or b"" for one in folder.names("vms")}
        floors = {Path(one).name: int(folder.read(one) or b"0") for one in folder.names("floors")}
        core = Server(attestor.identity, os.urandom, owners, records.values(), floors)
        agent = ServerAgent(core, attestor, folder, log)
        agent.seats = Seats(here, Guest, scrub, agent, agent.report, agent.say, rules, accel)
        agent.link = Link(manager, name, attestor.identity, agent.heard, log, server_prover(attestor))
        stack.callback(agent.link.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        agent.recover(set(records))
        agent.link.start()
        log(f"server {name} {attestor.identity[:12]}, environment {environment.digest[:12]}: ready at {manager}")
        agent.run()
        log("stopped; VMs go on")
