"""Which executions are overdue, by how long others of their kind took. Times are arguments: there is no clock here.

An execution is overdue when it runs for longer than FACTOR times the median of those that finished, and than FLOOR_S.
One that has more to read than the median is given more time in proportion; one that has less is not given less. The
first execution of a kind in a worker is compared with first ones only, for it may load or compile what the later ones
find.
"""

from __future__ import annotations

from collections import deque
from statistics import median

FLOOR_S = 2.0
FACTOR = 3.0
SAMPLES_LEAST = 2
SAMPLES_MAX = 101  # the latest


class Pace:
    """How long the executions of one job take."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, bool], deque[tuple[float, float]]] = {}
        self._typical: dict[
            tuple[str, bool], tuple[float, float]
        ] = {}  # medians of seconds and of sizes, made when asked for
        self._seen: set[tuple[str, str]] = set()

    def finished(self, work: str, worker: str, size: float, took_s: float) -> None:
        """Learn from an execution that has read ``size`` bytes."""
        key = work, (work, worker) not in self._seen
        self._seen.add((work, worker))
        self._samples.setdefault(key, deque(maxlen=SAMPLES_MAX)).append((took_s, size))
        self._typical.pop(key, None)

    def overdue(self, work: str, worker: str, size: float, so_far_s: float) -> bool:
        """Whether an execution that is to read ``size`` bytes takes too long; never, as long as too few have
        finished.
        """
        if so_far_s <= FLOOR_S:
            return False
        limit_s = self._limit_s(work, (work, worker) not in self._seen, size)
        return limit_s is not None and so_far_s > limit_s

    def _limit_s(self, work: str, first: bool, size: float) -> float | None:
        key = work, first
        if len(self._samples.get(key, ())) < SAMPLES_LEAST:
            key = work, True
        samples = self._samples.get(key, ())
        if len(samples) < SAMPLES_LEAST:
            return None
        if key not in self._typical:
            self._typical[key] = median(took for took, _ in samples), median(size for _, size in samples)
        took_s, usual = self._typical[key]
        return FACTOR * took_s * max(1.0, size / max(usual, 1.0))
