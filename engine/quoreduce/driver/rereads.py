"""Parts are read again before they are published (R8): by whom, and what is being read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from quoreduce.driver.underway import DEADLINE_FIRST_S, is_late
from quoreduce.errors import HostError
from quoreduce.protocol import wire
from quoreduce.protocol.port import Executor, WorkerInfo
from quoreduce.tracker import messages as m


@dataclass(slots=True)
class Rereading:
    """A part's digest that is being recomputed by ``worker`` before the part is published; its time is as in
    ``underway``.
    """

    agreed: m.Agreed
    worker: str
    deadline: float
    waited: float = 0.0
    grace: float = 0.0


class Rereads:
    """The parts of a job that are being read again. Times in seconds of the driver's clock.

    Args:
        stride: width of the records in a part, in bytes.
        limit_s: for one part, which may have to wait for a task.
        bound: readings of one part, and losses of those who do them included (R3).

    Attributes:
        unread: why what a task stored could not be read back the last time.
    """

    def __init__(self, executor: Executor, stride: int, limit_s: float, bound: int) -> None:
        self._executor = executor
        self._stride = stride
        self._limit_s = limit_s
        self._bound = bound
        self._begun: Counter[m.Task] = Counter()
        self._under_way: dict[int, Rereading] = {}
        self.unread: dict[m.Task, str] = {}

    @property
    def waiting(self) -> bool:
        """Whether a part is being read."""
        return bool(self._under_way)

    def begin(
        self, agreed: m.Agreed, path: str, writer: WorkerInfo, usable: Collection[WorkerInfo], running: Iterable[str],
        late: Collection[str], now: float,
    ) -> bool:  # fmt: skip
        """Have a part read again; False if no worker can. The other arguments are those of :func:`reader`.

        Args:
            agreed, path: the part, and the file that ``writer`` wrote.

        Raises:
            HostError: the bound on readings of this part is reached (R3).
        """
        task = agreed.task
        if self._begun[task] >= self._bound:
            why = self.unread.get(task, "workers that were to read it died or hung")
            raise HostError(
                f"{task}: cannot read back what was written, after {self._bound} attempts to read {path}: {why}"
            )
        chosen = reader(writer, usable, running, (one.worker for one in self._under_way.values()), late)
        if chosen is None:
            return False
        self._begun[task] += 1
        self._under_way[agreed.attempt] = Rereading(
            agreed, chosen, now + self._limit_s, self._executor.waited_s(chosen)
        )
        self._executor.submit(chosen, wire.encode(wire.RereadTask(agreed.attempt, path, self._stride)))
        return True

    def ended(self, worker: str, attempt: int) -> Rereading | None:
        """The reading that a worker has answered; None if this worker was not to read that attempt's part."""
        one = self._under_way.get(attempt)
        return self._under_way.pop(attempt) if one is not None and one.worker == worker else None

    def lost(self, worker: str) -> list[m.Agreed]:
        """A worker is gone; return the parts that it was to read."""
        gone = [one.agreed for one in self._under_way.values() if one.worker == worker]
        for agreed in gone:
            del self._under_way[agreed.attempt]
        return gone

    def postpone(self, away_s: float) -> None:
        """The driver was away: that time is not the workers'."""
        for one in self._under_way.values():
            one.deadline += away_s

    def next_due(self) -> float:
        """The first deadline; infinity if no part is being read."""
        return min((one.deadline for one in self._under_way.values()), default=float("inf"))

    def expired(self, now: float) -> list[str]:
        """Workers that are past their deadline. Each is reported once: its deadline moves far into the future."""
        waited = self._executor.waited_s
        late = [one for one in self._under_way.values() if is_late(one, one.worker, now, waited)]
        for one in late:
            one.deadline = now + DEADLINE_FIRST_S
        return [one.worker for one in late]


def reader(
    writer: WorkerInfo, workers: Collection[WorkerInfo], running: Iterable[str], reading: Iterable[str],
    late: Collection[str] = (),
) -> str | None:  # fmt: skip
    """Choose the worker that reads a part again; None if there is no worker.

    A worker in another domain than the writer's comes first, then the one with the least to do, then the one in whose
    domain the fewest parts are being read: parts are large, and reach a node through its one network card.

    Args:
        writer: wrote the part.
        workers: may read it.
        running, reading: the worker of each execution, and of each reading, that is under way.
        late: workers that are still busy with cancelled executions. They may never answer, so they are asked last.
    """
    at = {w.name: w.domain for w in workers}
    reads = list(reading)
    todo, there = Counter([*running, *reads]), Counter(at[name] for name in reads if name in at)

    def rank(w: WorkerInfo) -> tuple[bool, bool, int, int, str]:
        return w.domain == writer.domain, w.name in late, todo[w.name], there[w.domain], w.name

    best = min(workers, key=rank, default=None)
    return best.name if best is not None else None
