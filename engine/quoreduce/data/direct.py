"""Reading a local file past the page cache (O_DIRECT), so that a page that has rotted there is not what all replicas
read.

Not every file system can: tmpfs keeps its files nowhere else, some refuse the flag. Then there is nothing to read past,
and :func:`open_direct` gives None. Offsets, lengths and memory of such a read are multiples of the block; the end of
the file is not.
"""

from __future__ import annotations

import io
import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from quoreduce.reading import close_quietly

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]

BLOCK = 4096
_READ_MAX = 8 << 20


class DirectFile(io.RawIOBase):
    """A file that is open with O_DIRECT. Errors are OSErrors, for the caller to translate."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._window = mmap.mmap(-1, 1 << 20)
        self._fd = fd
        self._position = 0
        self._held = range(0)  # bytes of the file that are in the window

    def fileno(self) -> int:
        """The file's number."""
        return self._fd

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the file; views of it stay."""
        if not self.closed:
            close_quietly(self._fd)
            with suppress(BufferError):
                self._window.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """Read on from where the last call ended."""
        data = self.pread(size if size >= 0 else len(self._window), self._position)
        self._position += len(data)
        return data

    def pread(self, size: int, offset: int) -> bytes:
        """Read at most ``size`` bytes at ``offset``: fewer at the end of the file, or of what fits into memory at
        once.
        """
        if not (self._held.start <= offset < self._held.stop):
            start = offset // BLOCK * BLOCK
            self._held = range(start, start + self._fill(memoryview(self._window), start))
        at = offset - self._held.start
        return bytes(self._window[at : min(at + size, len(self._held))]) if at < len(self._held) else b""

    def view(self, begin: int, stop: int) -> U8:
        """Return u8[stop - begin], private memory with these bytes of the file, fewer if it ends before ``stop``."""
        import numpy as np

        start = begin // BLOCK * BLOCK
        memory = mmap.mmap(-1, -(-(stop - start) // BLOCK) * BLOCK)  # lives as long as the array
        count = self._fill(memoryview(memory), start)
        array = np.frombuffer(memory, np.uint8)[begin - start : max(begin - start, min(stop - start, count))]
        array.flags.writeable = False
        return array

    def _fill(self, memory: memoryview, offset: int) -> int:
        """Read into ``memory`` from ``offset``, both aligned, until it is full or the file ends; return the bytes
        read.
        """
        done, size = 0, os.fstat(self._fd).st_size
        while done < len(memory) and offset + done < size:
            count = os.preadv(self._fd, [memory[done : done + _READ_MAX]], offset + done)
            if count == 0 or (count < BLOCK and offset + done + count < size):
                break
            done += count
            if offset + done < size:
                done -= done % BLOCK  # cut short: the rest of a block is read again
        return done


def open_direct(path: str) -> DirectFile | None:
    """Open a file past the page cache; None where that cannot be done."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flag)
    except OSError:
        return None  # opening it without the flag tells what is wrong
    try:
        file = DirectFile(fd)
    except OSError:
        close_quietly(fd)
        return None
    try:
        file.pread(1, 0)
    except OSError:
        file.close()
        return None
    return file
