"""Virtual time: a queue of calls, each at its moment."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class VirtualClock:
    """Calls in the order of their times; those of the same time in the order in which they were queued."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = 0

    def at(self, time_s: float, act: Callable[[Any], None], what: Any) -> None:
        """Queue a call."""
        self._count += 1
        heapq.heappush(self._heap, (time_s, self._count, act, what))

    def __bool__(self) -> bool:
        """Whether any call is queued."""
        return bool(self._heap)

    def step(self) -> None:
        """Set the time to that of the next call, and make it."""
        self.now_s, _, act, what = heapq.heappop(self._heap)
        act(what)
