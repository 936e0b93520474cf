"""A guest's state as bytes: QEMU's migration stream (RAM, devices, vTPM), then the disk.

Frames, integers big-endian: kind u8, length u32, payload. In this order::

    1 RAM    a piece of the migration stream
    2 DISK   offset u64, then the bytes there; zeros are left out
    3 END    bytes of the migration stream u64, of the disk file u64: nothing follows

It is neither sealed nor authenticated: the transport does that (:mod:`quoreduce.vm.sealing`). Bounds are checked all
the same, because the owner of a guest can write what a destination's QEMU will read.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quoreduce.errors import VmError
from quoreduce.vm.broker import Ruled

RAM, DISK, END = 1, 2, 3
PIECE_BYTES: Final = 256 << 10
STALL_S: Final = 30.0  # without a byte in or out
STATE_S: Final = 3600.0  # for a whole state
SETTLE_S: Final = 30.0  # for QEMU to say that it is done, after the last byte
UNLIMITED: Final = 1 << 40  # bytes/s
DOWNTIME_MS: Final = 300  # the guest is stopped when the rest will take no longer
_POLL_S: Final = 0.005
_HEAD: Final = struct.Struct(">BI")
_OFFSET: Final = struct.Struct(">Q")
_ENDS: Final = struct.Struct(">QQ")
_PAYLOAD_MAX: Final = PIECE_BYTES + _OFFSET.size
Sink = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Stats:
    """A state that left: milliseconds in all, milliseconds that QEMU stood still for the last of the RAM, bytes that
    left.
    """

    total_ms: int
    downtime_ms: int
    bytes: int


def send(qmp: Ruled, disk: Path, sink: Sink, timeout_s: float = STATE_S) -> Stats:
    """Give ``sink`` a guest's state. The guest runs meanwhile; afterwards it is paused, and can be resumed
    (``cont``).

    If anything fails, ``sink`` included, the migration is cancelled and the guest is as before; or paused, if all but
    the disk had left: ``cont`` works in both cases.

    Raises:
        VmError: QEMU failed, is gone, or gave nothing for STALL_S. What ``sink`` raises.
    """
    began, total = time.monotonic(), 0

    def out(kind: int, payload: bytes) -> None:
        nonlocal total
        if time.monotonic() - began > timeout_s:
            raise VmError(f"the state did not leave within {timeout_s:g} s")
        sink(_HEAD.pack(kind, len(payload)) + payload)
        total += _HEAD.size + len(payload)

    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            qmp.pass_fd("outgoing", theirs.fileno())
        ours.settimeout(STALL_S)
        qmp.execute("migrate-set-parameters", {"max-bandwidth": UNLIMITED, "downtime-limit": DOWNTIME_MS})
        qmp.execute("migrate", {"uri": "fd:outgoing"})
        try:
            ram_bytes = _pump(ours, out)
            downtime_ms = int(_settled(qmp)["downtime"])
        except BaseException:
            _cancel(qmp, ours)
            raise
    disk_bytes = 0
    with open(disk, "rb") as file:
        for piece in _pieces(file):
            if piece.count(0) < len(piece):
                out(DISK, _OFFSET.pack(disk_bytes) + piece)
            disk_bytes += len(piece)
    out(END, _ENDS.pack(ram_bytes, disk_bytes))
    return Stats(round((time.monotonic() - began) * 1000), downtime_ms, total)


def _pump(source: socket.socket, out: Callable[[int, bytes], None]) -> int:
    total = 0
    try:
        while piece := source.recv(PIECE_BYTES):
            out(RAM, piece)
            total += len(piece)
    except TimeoutError as error:
        raise VmError(f"QEMU sent nothing of its guest's state for {STALL_S:g} s") from error
    except ConnectionError as error:
        raise VmError("QEMU ended while its guest's state was leaving") from error
    return total


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _cancel(qmp: Ruled, connection: socket.socket) -> None:
    """End a migration that is under way, so that the guest runs (or can be resumed) and another can begin."""
    try:
        qmp.execute("migrate_cancel")
        connection.close()
        _wait_for(qmp, ("cancelled", "failed", "completed"))
    except VmError:
        return  # QEMU is gone, and what is raised says so


def _settled(qmp: Ruled) -> dict[str, Any]:
    """Wait until QEMU says that the migration is over. Raises VmError if it failed."""
    found = _wait_for(qmp, ("completed", "failed", "cancelled"))
    if found["status"] != "completed":
        raise VmError(f"QEMU could not move its guest's state: {found.get('error-desc', found['status'])}")
    return found


def _wait_for(qmp: Ruled, ends: tuple[str, ...]) -> dict[str, Any]:
    limit = time.monotonic() + SETTLE_S
    while True:
        found: dict[str, Any] = qmp.execute("query-migrate")
        if found.get("status") in ends:
            return found
        if time.monotonic() > limit:
            raise VmError(
                f"QEMU did not finish a migration within {SETTLE_S:g} s; it is {found.get('status', 'unknown')}"
            )
        time.sleep(_POLL_S)


class Feeder:
    """Loads a state into a QEMU that waits for one. Frames may be cut anywhere between calls.

    Args:
        qmp: of a guest that was started with ``incoming``.
        disk: its disk file, of its final size.
        end: ends the guest, which is of no use after an incomplete state.
        why: says why QEMU ended, if it did.
    """

    def __init__(self, qmp: Ruled, disk: Path, end: Callable[[], None], why: Callable[[], str]) -> None:
        self._qmp, self._disk, self._end, self._why = qmp, disk, end, why
        self._buffer = bytearray()
        self._counts = {RAM: 0, DISK: 0}
        self._whole = False
        self._over = False
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(STALL_S)
        with theirs:
            qmp.pass_fd("incoming", theirs.fileno())
        qmp.execute(
            "migrate-set-capabilities", {"capabilities": [{"capability": "late-block-activate", "state": True}]}
        )
        qmp.execute("migrate-incoming", {"uri": "fd:incoming"})

    def write(self, data: bytes) -> None:
        """Load the next bytes. After a VmError nothing more can be loaded: the guest is ended."""
        if self._over:
            raise VmError("this state was given up")
        try:
            self._buffer += data
            while (frame := self._next()) is not None:
                self._take(*frame)
        except BaseException:
            self.abort()
            raise

    def finish(self) -> None:
        """The end of the state: return when the guest is loaded, and paused. Raises VmError if something is missing."""
        if not self._whole or self._buffer:
            self.abort()
            raise VmError("the guest's state is cut")
        self._over = True
        self._connection.close()

    def abort(self) -> None:
        """Give up; the guest is ended. May be called again, and after :meth:`finish` does nothing."""
        if not self._over:
            self._over = True
            self._connection.close()
            self._end()

    def _next(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < _HEAD.size:
            return None
        kind, length = _HEAD.unpack_from(self._buffer)
        if self._whole or kind not in (RAM, DISK, END) or length > _PAYLOAD_MAX:
            raise VmError(f"not a guest's state: a frame of kind {kind}, {length} bytes")
        if len(self._buffer) < _HEAD.size + length:
            return None
        payload = bytes(self._buffer[_HEAD.size : _HEAD.size + length])
        del self._buffer[: _HEAD.size + length]
        return kind, payload

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == RAM and not self._counts[DISK]:
            self._load(payload)
        elif kind == DISK and len(payload) > _OFFSET.size:
            self._store(payload)
        elif kind == END and len(payload) == _ENDS.size:
            self._check_end(*_ENDS.unpack(payload))
        else:
            raise VmError(f"not a guest's state: an empty frame or one out of order, of kind {kind}")

    def _load(self, piece: bytes) -> None:
        try:
            self._connection.sendall(piece)
        except TimeoutError as error:
            raise VmError(f"QEMU took nothing of the guest's state for {STALL_S:g} s") from error
        except OSError as error:
            raise VmError(f"QEMU refused the guest's state: {self._why()}") from error
        self._counts[RAM] += len(piece)

    def _loaded(self) -> None:
        """The migration stream is over: wait until QEMU has taken it."""
        self._connection.shutdown(socket.SHUT_WR)
        try:
            _settled(self._qmp)
        except VmError as error:
            raise VmError(f"QEMU refused the guest's state: {self._why()}") from error

    def _store(self, payload: bytes) -> None:
        (offset,), piece = _OFFSET.unpack_from(payload), memoryview(payload)[_OFFSET.size :]
        if offset < self._counts[DISK] or offset + len(piece) > self._disk.stat().st_size:
            raise VmError("not a guest's state: the disk is larger than it should be, or out of order")
        with open(self._disk, "r+b") as file:
            os.pwrite(file.fileno(), piece, offset)
        self._counts[DISK] = offset + len(piece)

    def _check_end(self, ram_bytes: int, disk_bytes: int) -> None:
        if (ram_bytes, disk_bytes) != (self._counts[RAM], self._disk.stat().st_size):
            raise VmError("not a guest's state: not as long as it says, or the disk has another size")
        self._loaded()
        self._whole = True
