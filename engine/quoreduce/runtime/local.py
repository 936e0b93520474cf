"""Executor of pinned processes over sockets: one machine, starts at once. Also the main program of such a worker.

A message is its length (u64, little-endian) and its bytes. A worker dies with its driver: a thread of it waits for the
end of a pipe that only the driver holds open, and then deletes what the session stored.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quoreduce import interrupts
from quoreduce.errors import HostError
from quoreduce.pressure import waited_s
from quoreduce.protocol.port import Arrival, Domain, WorkerInfo, cores, worker_env
from quoreduce.protocol.wire import REPLY_BYTES_MAX
from quoreduce.scratch import remove_session
from quoreduce.worker.store import create_session_folder, gone

if TYPE_CHECKING:
    from quoreduce.worker.worker import Worker

_LENGTH = struct.Struct("<Q")
CRASH_STATUS = 13


class _Process:
    """The driver's end of one worker process; sends without blocking."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], link: socket.socket, info: WorkerInfo) -> None:
        self.name = name
        self.process = process
        self.link = link
        self.info = info
        self.outgoing = bytearray()
        self.incoming = bytearray()

    def send(self, raw: bytes) -> None:
        self.outgoing += _LENGTH.pack(len(raw)) + raw
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.outgoing:
                del self.outgoing[: self.link.send(self.outgoing)]

    def receive(self) -> tuple[list[bytes], bool]:
        """Return the messages that are complete, and whether the worker is still there."""
        alive = True
        try:
            while chunk := self.link.recv(1 << 20):
                self.incoming += chunk
            alive = False
        except BlockingIOError:
            pass
        except ConnectionResetError:
            alive = False
        messages: list[bytes] = []
        while len(self.incoming) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self.incoming)
            if length > REPLY_BYTES_MAX:
                return messages, False
            end = _LENGTH.size + length
            if len(self.incoming) < end:
                break
            messages.append(bytes(self.incoming[_LENGTH.size : end]))
            del self.incoming[:end]
        return messages, alive


class LocalExecutor:
    """``workers`` processes on this machine, pinned to its cores in turn.

    ``env``, ``folder``, ``pins``: variables over those that workers have, their current directory, their cores (for
    rehearsals).
    """

    def __init__(
        self, workers: int, domain: Domain = "core", store: str | None = None, env: Mapping[str, str] | None = None,
        folder: str | None = None, pins: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._count = workers
        self._env = dict(env or {})
        self._cwd = folder
        self._pins = list(pins)
        self._domain = domain
        self._hold = create_session_folder(store)
        try:
            self._life_read, self._life_write = os.pipe()
            self._selector = selectors.DefaultSelector()
        except BaseException:
            self._hold.remove()
            raise
        self._processes: dict[str, _Process] = {}
        self._dead: dict[str, WorkerInfo] = {}
        self._generation = 0
        _executors.add(self)

    def start(self) -> list[WorkerInfo]:
        usable = self._pins or cores()
        return [self._spawn(i, usable[i % len(usable)]).info for i in range(self._count)]

    def _spawn(self, number: int, core: int) -> _Process:
        try:
            with interrupts.held():
                return self._spawned(number, core)
        except OSError as error:
            raise HostError(f"cannot start a worker: {error.strerror or error}") from error

    def _spawned(self, number: int, core: int) -> _Process:
        name = f"w{number}.{self._generation}"
        self._generation += 1
        if not self._hold.path.is_dir():
            raise HostError(gone(self._hold.path))
        ours, theirs = socket.socketpair()
        try:
            process = self._popen(name, core, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        domain = {"core": f"core{core}", "worker": f"worker{number}"}.get(self._domain, "local")
        worker = _Process(name, process, ours, WorkerInfo(name, domain, "local", core, process.pid, self._place(core)))
        self._processes[name] = worker
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _popen(self, name: str, core: int, link: int) -> subprocess.Popen[bytes]:
        # -P: modules come from where the driver's do, never from the current directory, which may be anybody's.
        command = [sys.executable, "-P", "-m", "quoreduce.runtime.local", name, str(self._hold.path), str(core)]
        command += [str(link), str(self._life_read)]
        # A session of its own keeps a Ctrl-C on the terminal from reaching workers before the driver has tidied up.
        return subprocess.Popen(
            command, pass_fds=(link, self._life_read), env={**_environment(), **self._env},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, cwd=self._cwd,
        )  # fmt: skip

    def _place(self, core: int) -> str:
        return f"{socket.gethostname()}/core{core}" if self._domain in ("core", "worker") else ""

    def submit(self, worker: str, raw: bytes) -> None:
        if known := self._processes.get(worker):
            known.send(raw)
            self._watch(known)

    def _watch(self, worker: _Process) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outgoing else 0)
        self._selector.modify(worker.link, events, worker)

    def wait(self, timeout_s: float) -> list[Arrival]:
        arrivals = []
        for key, events in self._selector.select(timeout_s):
            worker: _Process = key.data
            if events & selectors.EVENT_WRITE:
                worker.flush()
                self._watch(worker)
            if events & selectors.EVENT_READ:
                messages, alive = worker.receive()
                arrivals += [Arrival(worker.name, raw) for raw in messages]
                if not alive:
                    self._bury(worker)
                    arrivals.append(Arrival(worker.name, None, status=worker.process.returncode))
        return arrivals

    def _bury(self, worker: _Process) -> None:
        with interrupts.held():
            self._selector.unregister(worker.link)
            worker.link.close()
            worker.process.kill()
            worker.process.wait()
            self._dead[worker.name] = worker.info
            del self._processes[worker.name]

    def kill(self, worker: str) -> None:
        if known := self._processes.get(worker):
            known.process.send_signal(signal.SIGKILL)

    def waited_s(self, worker: str) -> float:
        known = self._processes.get(worker)
        return waited_s(known.process.pid) if known is not None else 0.0

    def replace(self, worker: str) -> WorkerInfo | None:
        info = self._dead.pop(worker)
        number = int(worker[1:].partition(".")[0])
        return self._spawn(number, info.core or 0).info

    def close(self) -> None:
        for worker in list(self._processes.values()):
            self._bury(worker)
        self.forget()
        self._hold.remove()

    def forget(self) -> None:
        """Close all descriptors. In a forked process: its workers are to end with the process that started them."""
        for worker in self._processes.values():
            worker.link.close()
        self._processes.clear()
        os.close(self._life_write)
        os.close(self._life_read)
        self._selector.close()
        _executors.discard(self)


_executors: weakref.WeakSet[LocalExecutor] = weakref.WeakSet()


def _forked() -> None:
    for executor in list(_executors):
        executor.forget()


os.register_at_fork(after_in_child=_forked)


def _environment() -> dict[str, str]:
    path = os.pathsep.join(
        os.path.abspath(entry) if not entry or os.path.exists(entry) else entry for entry in sys.path
    )
    return {**os.environ, **worker_env(), "PYTHONPATH": path}


def _receive(link: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = link.recv_into(view)
        if count == 0:
            os._exit(0)
        view = view[count:]
    return bytes(data)


def _die_with_driver(life: int, folder: Path) -> None:
    """Wait for the driver's end of the pipe to close; then nothing of this session must stay behind."""
    os.read(life, 1)
    remove_session(folder)
    os._exit(0)


def main(argv: list[str]) -> None:
    """Serve requests from the socket until it closes: ``NAME FOLDER CORE SOCKET LIFE``."""
    name, folder, core, link_fd, life = argv[0], Path(argv[1]), int(argv[2]), int(argv[3]), int(argv[4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_driver, args=(life, folder), daemon=True).start()
    from quoreduce.worker.worker import Worker, own_numba_cache, pinned

    pinned(core)
    link = socket.socket(fileno=link_fd)
    try:
        own_numba_cache(folder / f"{name}.numba")
        worker = Worker(name, "local", folder / name)
    except (HostError, OSError) as error:
        if folder.is_dir():  # else the session is over
            sys.stderr.write(f"quoreduce: worker {name}: {error}\n")  # at once: lines of workers do not mix
        os._exit(CRASH_STATUS)
    with contextlib.suppress(ConnectionError):  # the driver is gone
        _serve(link, worker)
    os._exit(0)


def _serve(link: socket.socket, worker: Worker) -> None:
    from quoreduce.worker.worker import Crash, Hang

    while True:
        (size,) = _LENGTH.unpack(_receive(link, _LENGTH.size))
        try:
            reply = worker.handle(_receive(link, size))
        except Crash:
            os._exit(CRASH_STATUS)
        except Hang:
            signal.pause()
            os._exit(CRASH_STATUS)
        if reply is not None:
            link.sendall(_LENGTH.pack(len(reply)) + reply)


if __name__ == "__main__":
    main(sys.argv[1:])
