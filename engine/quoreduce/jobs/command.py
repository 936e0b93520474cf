"""A command of the user's as part of a job: fed and read over pipes, bounded in time, output and what it may say.

One loop serves all pipes without blocking on any of them, so neither a command that reads nothing, nor one that writes
before it reads, nor one that floods its standard error can bring a worker to a halt. A command runs in a process group
of its own, which is killed when the command ends, fails, or takes too long. Should the worker itself be killed, a guard
kills the group: a shell that waits for the end of a pipe which only the worker holds open.

What goes wrong is a ValueError. Its first line, on which replicas vote, is a function of the command's doing alone; the
second line, which is not voted on, is the last that the command wrote to its standard error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from quoreduce.errors import HostError

PIPE_BYTES = 1 << 20
STDERR_CHUNK = 1 << 16
STDERR_TAIL = 4096  # bytes kept of what a command says on its standard error
LINE_CHARS_MAX = 500
COMMAND_CHARS_MAX = 200
F_SETPIPE_SZ = 1031
TICK_S = 60.0
_GUARD = 'read -r group && { read -r done || kill -s KILL -- "-$group"; }'
_NOT_FOR_COMMANDS = (
    "PYTHONPATH",
    "NUMBA_CACHE_DIR",
    "QUOREDUCE_CACHE",
    "QUOREDUCE_KERNELS",
)  # those of our own interpreter


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run, and its bounds.

    Attributes:
        role: what it is called in messages.
        text: as the user wrote it.
        shell: run it with ``sh -c``; else it is split into words as a shell would, and started without one.
        folder: where it runs.
        timeout_s: seconds it may take for one task.
        output_bytes_max: bytes it may write for one task.
    """

    role: str
    text: str
    shell: bool
    folder: str
    timeout_s: float
    output_bytes_max: int

    @property
    def words(self) -> list[str]:
        """The arguments to start it with; ValueError if quotes are not closed."""
        return ["sh", "-c", self.text] if self.shell else shlex.split(self.text)

    def error(self, what: str, stderr: bytes = b"") -> ValueError:
        """Return the error that says what went wrong with this command."""
        text = self.text if len(self.text) <= COMMAND_CHARS_MAX else self.text[:COMMAND_CHARS_MAX] + " ..."
        lines = stderr.decode(errors="replace").split("\n")
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")[:LINE_CHARS_MAX]
        said = f"\nlast line of its stderr: {last}" if last else ""
        return ValueError(f"{self.role} {' '.join(text.split())!r} {what}{said}")


class Sink(Protocol):
    """Takes what a command writes."""

    def room(self) -> memoryview:
        """Return memory for the next bytes, at least one."""

    def advance(self, nbytes: int) -> None:
        """Say that so many bytes of it were written."""


def run_command(command: Command, feed: Iterator[memoryview], sink: Sink) -> None:
    """Run a command to its end: write all of ``feed`` to it, and what it writes to ``sink``.

    A command may end well without having read everything, as ``head`` does; and it must close its standard output.

    Raises:
        ValueError: it cannot be started, ended with another exit code than 0, was killed, took or wrote too much.
        HostError: the machine has no room for another process.
    """
    with _RunningCommand(command, feed, sink) as running:
        running.serve()


class _RunningCommand:
    """A running command, its pipes and its guard."""

    def __init__(self, command: Command, feed: Iterator[memoryview], sink: Sink) -> None:
        self._command = command
        self._feed = feed
        self._sink = sink
        self._piece = memoryview(b"")
        self._stderr = b""
        self._written = 0
        self._deadline = time.monotonic() + command.timeout_s
        self._ended = False

    def __enter__(self) -> _RunningCommand:
        with contextlib.ExitStack() as stack:
            self._selector = stack.enter_context(selectors.DefaultSelector())
            guard = _guard()
            stack.callback(guard.communicate, b"done\n")
            self._process = self._start()
            stack.callback(_kill, self._process)
            assert guard.stdin is not None
            guard.stdin.write(b"%d\n" % self._process.pid)
            self._exit_fd = os.pidfd_open(self._process.pid)
            stack.callback(os.close, self._exit_fd)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._command.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                cwd=self._command.folder, env=_environment(), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                raise HostError(f"no process can be started here: {error.strerror}") from error
            raise self._command.error(f"cannot be started: {error.strerror}: {error.filename}") from error

    def serve(self) -> None:
        """Serve all pipes until the command has ended and its standard output too."""
        stdin, stdout, stderr = (
            _prepared(s) for s in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        self._selector.register(stdin, selectors.EVENT_WRITE, self._write)
        self._selector.register(stdout, selectors.EVENT_READ, self._read)
        self._selector.register(stderr, selectors.EVENT_READ, self._listen)
        self._selector.register(self._exit_fd, selectors.EVENT_READ, self._end)
        while not self._ended or stdout in self._selector.get_map():
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise self._command.error(f"did not end within {self._command.timeout_s:g} s", self._stderr)
            for key, _ in self._selector.select(min(left, TICK_S)):
                if key.fd in self._selector.get_map():
                    key.data(key.fd)

    def _write(self, fd: int) -> None:
        try:
            if not self._piece:
                self._piece = next(self._feed, memoryview(b""))
            if self._piece:
                self._piece = self._piece[os.write(fd, self._piece) :]
                return
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass  # it reads no more: its exit code tells whether that is an error
        self._selector.unregister(fd)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _read(self, fd: int) -> None:
        count = _read_into(fd, self._sink.room())
        if count is None:
            return
        if count == 0:
            self._selector.unregister(fd)
            return
        self._written += count
        if self._written > self._command.output_bytes_max:
            raise self._command.error(
                f"wrote more than {self._command.output_bytes_max} bytes for one task", self._stderr
            )
        self._sink.advance(count)

    def _listen(self, fd: int) -> None:
        try:
            said = os.read(fd, STDERR_CHUNK)
        except BlockingIOError:
            return
        if not said:
            self._selector.unregister(fd)
        self._stderr = (self._stderr + said)[-STDERR_TAIL:]

    def _end(self, fd: int) -> None:
        """The command has ended: judge it, without giving its number back yet."""
        self._selector.unregister(fd)
        self._ended = True
        info = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert info is not None
        if info.si_code == os.CLD_EXITED and info.si_status == 0:
            return
        assert self._process.stderr is not None
        while (stderr := self._process.stderr.fileno()) in self._selector.get_map() and _readable(stderr):
            self._listen(stderr)
        exited = info.si_code == os.CLD_EXITED
        how = f"ended with exit code {info.si_status}" if exited else f"was killed by {_signal(info.si_status)}"
        raise self._command.error(how, self._stderr)


def _guard() -> subprocess.Popen[bytes]:
    """Start the process that outlives this one just long enough to kill the group whose number it is told."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        bufsize=0, env={}, start_new_session=True,
    )  # fmt: skip


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a command's group, while its number is still its own; only then ask for its exit code."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_FOR_COMMANDS}


def _prepared(stream: object) -> int:
    """Make a pipe large and not blocking; return its file descriptor."""
    fd: int = stream.fileno()  # type: ignore[attr-defined]
    os.set_blocking(fd, False)
    with contextlib.suppress(OSError):  # the user's pipes hold too much already: then it stays small
        fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
    return fd


def _read_into(fd: int, room: memoryview) -> int | None:
    """Read once; None if there is nothing yet, 0 at the end."""
    try:
        return os.readv(fd, [room])
    except BlockingIOError:
        return None


def _readable(fd: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(0))


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
