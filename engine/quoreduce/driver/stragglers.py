"""Which executions of a job are overdue: the driver's clock beside the tracker's pure rule (`tracker.pace`)."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from quoreduce.data.splits import Split
from quoreduce.protocol.port import Arrival, Executor, WorkerInfo
from quoreduce.tracker import Assignment, Check, Pace

if TYPE_CHECKING:
    from quoreduce.driver.incidents import CompletedAttempt
    from quoreduce.driver.underway import Running

LOOK_S = 0.2
REPLACE_S = 10.0


def input_nbytes(launch: Assignment, splits: Sequence[Split], kept: dict[int, CompletedAttempt]) -> int:
    """How much an execution or a check is to read, in bytes. That of a sample is not known: 0."""
    stored = sum(part.nbytes for part in kept[launch.stored].reply.parts) if isinstance(launch, Check) else 0
    if launch.task.kind == "map":
        return splits[launch.task.index].length + stored
    return stored + sum(kept[copies[0].attempt].reply.parts[launch.task.index].nbytes for copies in launch.sources)


class Watch:
    """Looks now and then for executions that are overdue. ``late``: attempts that were overdue once."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._next = 0.0
        self.late: set[int] = set()

    def finished(self, one: Running, now: float) -> None:
        """Learn from an execution that has ended; ``now`` in seconds of the monotonic clock."""
        self._pace.finished(one.launch.work, one.launch.worker, one.nbytes, now - one.started)

    def overdue(self, running: Collection[Running], now: float) -> list[int]:
        """Return the attempts that take too long; empty between two looks."""
        if now < self._next:
            return []
        self._next = now + LOOK_S
        late = [
            one.launch.attempt for one in running
            if self._pace.overdue(one.launch.work, one.launch.worker, one.nbytes, now - one.started)
        ]  # fmt: skip
        self.late.update(late)
        return late


def replace_busy_workers(executor: Executor, workers: dict[str, WorkerInfo], late: Collection[str]) -> None:
    """Replace workers that are still busy with cancelled executions of an earlier job; the others stay."""
    waiting = set(late) & workers.keys()
    if not waiting:
        return

    def take(arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            waiting.discard(arrival.worker)
            if arrival.raw is None and workers.pop(arrival.worker, None) is not None:
                replacement = executor.replace(arrival.worker)
                if replacement is not None:
                    workers[replacement.name] = replacement

    take(executor.wait(0.0))
    for worker in waiting:
        executor.kill(worker)
    end = time.monotonic() + REPLACE_S
    while waiting and time.monotonic() < end:
        take(executor.wait(LOOK_S))
