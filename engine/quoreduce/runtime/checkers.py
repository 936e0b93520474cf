"""Who checks a part before it is published (R8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from quoreduce.runtime.port import WorkerInfo


def checker(
    writer: WorkerInfo, workers: Collection[WorkerInfo], running: Iterable[str], checking: Iterable[str],
    late: Collection[str] = (),
) -> str | None:  # fmt: skip
    """Choose the worker with the least to do, in another domain than the writer's if there is one; None without workers.

    Of those alike, the one in whose domain the fewest checks are under way: parts are large, and come in by the node's one card.

    Args:
        writer: who wrote the part. workers: those that may check it.
        running, checking: the worker of each execution, and of each check, that is under way.
        late: workers that are still busy with what is no longer wanted: they may never answer, and are asked last.
    """
    at = {w.name: w.domain for w in workers}
    checks = list(checking)
    todo, there = Counter([*running, *checks]), Counter(at[name] for name in checks if name in at)

    def rank(w: WorkerInfo) -> tuple[bool, bool, int, int, str]:
        return w.domain == writer.domain, w.name in late, todo[w.name], there[w.domain], w.name

    best = min(workers, key=rank, default=None)
    return best.name if best is not None else None
