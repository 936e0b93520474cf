"""QMP, the machine protocol of QEMU, over ``qemu.qmp`` (PyPI): blocking calls, bounded in time, typed errors.

One thread of this process, a daemon, serves all connections. Calls may come from any thread but that one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from quoreduce.errors import VmError

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

ANSWER_S: Final = 10.0  # for one answer: QEMU gives those that we ask for in milliseconds
CONNECT_S: Final = 10.0  # for the greeting
LINE_BYTES_MAX: Final = 1 << 20  # of one message of QEMU
T = TypeVar("T")
Event = Mapping[str, Any]
_starting = threading.Lock()


class QmpRefused(VmError):
    """QEMU, or its broker, refused a command; ``kind`` is the error's class."""

    def __init__(self, command: str, kind: str, reason: str) -> None:
        super().__init__(f"{command} was refused ({kind}): {reason}")
        self.command, self.kind, self.reason = command, kind, reason


class QmpLost(VmError):
    """The connection is gone, or no answer came in time: QEMU ended or hangs."""


class Qmp:
    """A connection to a QEMU, or to a broker. QEMU serves one at a time: a second one waits for the first to end.

    Args:
        path: of the Unix socket; it may be longer than the 107 bytes that the kernel takes.
        timeout_s: for the greeting.

    Raises:
        QmpLost: nobody listens there, or nobody greets in time.
        VmError: qemu.qmp is not installed.
    """

    def __init__(self, path: Path, timeout_s: float = CONNECT_S) -> None:
        self._listeners: list[Callable[[Event], None]] = []
        self._client = _client()
        connection = dial(path)
        try:
            _call(self._client.connect(connection), timeout_s)
        except _errors() as error:
            connection.close()
            raise QmpLost(f"QEMU does not answer on {path.name} within {timeout_s:g} s: {_cause(error)}") from error
        self._watch = asyncio.run_coroutine_threadsafe(self._hear(), _loop())

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, timeout_s: float = ANSWER_S) -> Any:
        """Run a command; return what it returns.

        Raises:
            QmpRefused: it was refused, or failed. QmpLost: the connection is gone, or there is no answer within
                ``timeout_s``.
        """
        from qemu.qmp import ExecuteError

        try:
            return _call(self._client.execute(command, dict(arguments) if arguments else None), timeout_s)
        except ExecuteError as error:
            raise QmpRefused(command, error.error_class, error.error.error.desc) from error
        except _errors() as error:
            raise QmpLost(f"QEMU gave no answer to {command} (within {timeout_s:g} s): {_cause(error)}") from error

    def pass_fd(self, name: str, fd: int) -> None:
        """Give QEMU a file descriptor, under a name: ``fd:NAME`` in commands. It ends with this connection."""

        async def hand_over() -> None:
            self._client.send_fd_scm(fd)
            await self._client.execute("getfd", {"fdname": name})

        try:
            _call(hand_over(), ANSWER_S)
        except _errors() as error:
            raise QmpLost(f"QEMU did not take the file descriptor {name!r}: {_cause(error)}") from error

    def on_event(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` with each event from now on, on the thread of all connections: it must not block or
        raise.
        """
        self._listeners.append(listener)

    def close(self) -> None:
        """Disconnect; may be called again. QEMU continues."""
        self._watch.cancel()
        with contextlib.suppress(*_errors()):
            _call(self._client.disconnect(), ANSWER_S)

    async def _hear(self) -> None:
        async for event in self._client.events:
            for listener in self._listeners:
                listener(event)


def dial(path: Path, timeout_s: float = CONNECT_S) -> socket.socket:
    """Connect to a Unix socket whose path may be long. Raises QmpLost if nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(timeout_s)
    try:
        with short(path) as address:
            connection.connect(address)
    except OSError as error:
        connection.close()
        raise QmpLost(f"nobody listens on {path}: {error.strerror or error}") from error
    return connection


def listen(path: Path, backlog: int = 1) -> socket.socket:
    """Listen on a Unix socket (mode 0600) whose path may be long; the socket of a dead process is replaced.

    Raises:
        VmError: another process listens there, or the socket cannot be made.
    """
    try:
        dial(path).close()
    except QmpLost:
        path.unlink(missing_ok=True)
    else:
        raise VmError(f"{path} is in use by another process: stop it, or take another path")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with short(path) as address:
            server.bind(address)
        path.chmod(0o600)
        server.listen(backlog)
    except OSError as error:
        server.close()
        raise VmError(f"cannot listen on {path}: {error.strerror or error}") from error
    return server


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """Give another name, of a few bytes, for a path: an address of a Unix socket has at most 107."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _client() -> QMPClient:
    try:
        from qemu.qmp import QMPClient
    except ImportError as error:
        raise VmError("qemu.qmp is not installed: pip install qemu.qmp") from error
    logging.getLogger("qemu").addHandler(logging.NullHandler())  # it logs what we raise
    return QMPClient(readbuflen=LINE_BYTES_MAX)


@functools.cache
def _errors() -> tuple[type[BaseException], ...]:
    """What a connection can end with."""
    from qemu.qmp import QMPError

    return (QMPError, OSError, EOFError, TimeoutError, concurrent.futures.CancelledError)


def _cause(error: BaseException) -> str:
    cause = getattr(error, "exc", None) or error  # a ConnectError wraps what went wrong
    return str(cause) or type(cause).__name__


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _started()


@functools.cache
def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="qmp", daemon=True).start()
    return loop


def _call(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Run ``work`` on the thread of all connections. Raises TimeoutError and cancels it if it takes longer."""
    return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), _loop()).result()
