"""A guest's serial console: lines in, lines out."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

from quoreduce.errors import VmError, one_line
from quoreduce.vm.qmp import dial

LINE_BYTES_MAX: Final = 4096  # longer ones are cut into several
LINES_MAX: Final = 4096  # that no caller has taken; then the oldest is dropped
LAST_LINES: Final = 5  # of the console, in errors
SEND_S: Final = 10


class Serial:
    """The console behind a Unix socket. A thread always reads it, so that a guest never waits for a reader.

    Args:
        path: of the socket. QEMU serves one connection at a time; what a guest says while there is none is lost.
    """

    def __init__(self, path: Path) -> None:
        self._connection = dial(path)
        self._connection.settimeout(None)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SEND_S, 0))
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._ended = False
        self._news = threading.Condition()
        threading.Thread(target=self._read, name="serial", daemon=True).start()

    def wait(self, pattern: str, timeout_s: float = 30.0) -> str:
        """Wait for a whole line in which ``pattern`` (a regular expression) is found; return it. Lines before it are
        forgotten.

        Raises:
            VmError: the guest ended first, or did not say it in time.
        """
        limit = time.monotonic() + timeout_s
        with self._news:
            while True:
                while self._lines:
                    line = self._lines.popleft()
                    if re.search(pattern, line):
                        return line
                left = limit - time.monotonic()
                if self._ended or left <= 0:
                    how = "ended before it said" if self._ended else f"did not within {timeout_s:g} s say"
                    said = one_line(" | ".join(self._last)) or "nothing"
                    raise VmError(f"the guest {how} {pattern!r}; the last that it said: {said}")
                self._news.wait(left)

    def send(self, line: str) -> None:
        """Send a line. Raises VmError if the guest is gone or does not read."""
        try:
            self._connection.sendall(line.encode() + b"\n")
        except OSError as error:
            raise VmError(f"the guest's console takes nothing: {error.strerror or error}") from error

    def close(self) -> None:
        """Disconnect; may be called again."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        rest = b""
        with self._connection, contextlib.suppress(OSError):
            while data := self._connection.recv(65536):
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_BYTES_MAX:
                    lines, rest = [*lines, rest], b""
                with self._news:
                    for line in lines:
                        text = line.decode(errors="replace").strip("\r")
                        self._lines.append(text)
                        self._last.append(text)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()
