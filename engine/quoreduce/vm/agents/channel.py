"""Channels: frames over ``unix:PATH`` or ``tcp:127.0.0.1:PORT``. They protect nothing: contents are
readable, and names are not checked.

A frame is a version byte, a u32 length (big-endian), and so many bytes: at most :data:`FRAME_BYTES_MAX`, or the channel
is closed. A slow reader makes the sender wait (:meth:`Channel.send` blocks), for :data:`STALL_S` at most; then the
channel is closed, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from quoreduce.errors import UsageError, VmError

VERSION: Final = 1
FRAME_BYTES_MAX: Final = 4 << 20  # a chunk of 1 MiB, its evidence and its envelope fit well
STALL_S: Final = 60.0  # for a frame that was begun, and for a peer that does not read
CONNECT_S: Final = 10.0
UNIX_PATH_MAX: Final = 107  # bytes, of Linux
BACKLOG: Final = 64
_HEAD: Final = struct.Struct(">BI")
_FULL_PAUSE_S: Final = 0.1  # when no file descriptor is free
_FORMS: Final = "use unix:PATH or tcp:127.0.0.1:PORT"


class ChannelClosed(VmError):
    """The other side is gone, is silent in the middle of a frame, or does not speak our frames."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an agent listens: ``path`` of a Unix socket, or else a ``port`` of this machine (127.0.0.1)."""

    path: str | None
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``unix:PATH`` or ``tcp:127.0.0.1:PORT``. Raises UsageError, which says what is wrong."""
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest:
            path = os.path.abspath(os.path.expanduser(rest))
            if len(os.fsencode(path)) > UNIX_PATH_MAX:
                raise UsageError(
                    f"{text}: the path of a socket has at most {UNIX_PATH_MAX} bytes: choose a shorter one"
                )
            return cls(path)
        host, _, port = rest.rpartition(":")
        if (
            kind == "tcp"
            and host in ("127.0.0.1", "localhost")
            and port.isascii()
            and port.isdigit()
            and 0 < int(port) < 1 << 16
        ):
            return cls(None, int(port))
        raise UsageError(
            f"address {text!r}: {_FORMS} (no other host: between machines, forward the port with a tunnel of yours)"
        )

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else f"tcp:127.0.0.1:{self.port}"


class Channel:
    """A connected channel. One thread may receive while others send; frames of several senders do not mix."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(STALL_S)
        self._connection = connection
        self._sending = Lock()
        self._idle = select.poll()
        self._idle.register(connection, select.POLLIN)

    def send(self, frame: bytes) -> None:
        """Send a frame; blocks while the other side does not read. Raises ChannelClosed, or ValueError if too long."""
        if len(frame) > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {len(frame)} bytes, over the bound of {FRAME_BYTES_MAX}")
        with self._sending:
            try:
                self._connection.sendall(_HEAD.pack(VERSION, len(frame)) + frame)
            except OSError as error:
                self.close()  # after a cut frame nothing can be read
                raise ChannelClosed(f"the other side is gone, or did not read for {STALL_S:g} s") from error

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """Return the next frame, or None if none has begun within ``timeout_s``. Raises ChannelClosed at the end, or
        for a malformed frame.
        """
        try:
            if timeout_s is not None and not self._idle.poll(max(0.0, timeout_s) * 1000):
                return None
            version, size = _HEAD.unpack(self._take(_HEAD.size, begun=False))
            if version != VERSION or size > FRAME_BYTES_MAX:
                raise ChannelClosed(
                    f"a frame of version {version}, {size} bytes: it speaks something else, or another version"
                )
            return self._take(size, begun=True)
        except ChannelClosed:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            raise ChannelClosed("the other side is gone, or fell silent in the middle of a frame") from error

    def close(self) -> None:
        """Close it, in both directions; threads that wait in it get ChannelClosed. May be called again."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _take(self, size: int, begun: bool) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            if not begun and not parts:
                self._idle.poll()  # between frames it may be silent for as long as it likes
            part = self._connection.recv(min(size - len(parts), 1 << 18))
            if not part:
                raise ChannelClosed("the other side closed the connection")
            parts += part
        return bytes(parts)


def connect(address: Address) -> Channel:
    """Connect. Raises VmError if nobody listens there."""
    family = socket.AF_INET if address.path is None else socket.AF_UNIX
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(CONNECT_S)
        connection.connect(address.path if address.path is not None else ("127.0.0.1", address.port))
        if address.path is None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        connection.close()
        raise VmError(
            f"nobody answers at {address} ({error.strerror or error}): start the manager,"
            f" `quoreduce vm manager {address}`"
        ) from error
    return Channel(connection)


class Listener:
    """A listening socket; a Unix one is for its owner only (mode 0600), and close() removes its path."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._socket = _bound(address)
        self._socket.listen(BACKLOG)

    def accept(self) -> Iterator[Channel]:
        """Give channel after channel until :meth:`close`."""
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    return
                time.sleep(_FULL_PAUSE_S)
                continue
            yield Channel(connection)

    def close(self) -> None:
        """Stop listening; may be called again."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._socket.fileno() >= 0 and self.address.path is not None:
            Path(self.address.path).unlink(missing_ok=True)
        self._socket.close()


def _bound(address: Address) -> socket.socket:
    """Bind. Raises UsageError if the address is in use or not available."""
    listening = socket.socket(socket.AF_INET if address.path is None else socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if address.path is None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", address.port))
        else:
            _clear_stale(address)
            os.fchmod(listening.fileno(), 0o600)  # before it has a name: at no time can others connect
            listening.bind(address.path)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"{address} is in use: stop what listens there, or choose another address") from error
        raise UsageError(f"cannot listen at {address}: {error.strerror}; {_FORMS}") from error
    return listening


def _clear_stale(address: Address) -> None:
    """Remove the socket of a killed process; a socket at which somebody answers stays."""
    path = Path(address.path or "")
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return  # it may be busy: bind() will say that it is in use
