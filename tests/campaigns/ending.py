"""How campaigns wait for what was started to end: for the end itself, not by looks at the clock."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable

from quoreduce.machine import readable


def left_after(find: Callable[[], Iterable[str]], within_s: float) -> list[str]:
    """Wait until ``find`` gives no process any more; return what it still gives after ``within_s``.

    ``find`` gives a line for each process, which begins with its number and a colon.
    """
    until = time.monotonic() + within_s
    while (left := list(find())) and time.monotonic() < until:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            end = os.pidfd_open(int(left[0].partition(":")[0]))
            try:
                readable(end, until - time.monotonic())
            finally:
                os.close(end)
    return left
