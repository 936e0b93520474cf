"""How what the tracker does for an event grows with the numbers of tasks and of nodes.

The tracker alone: what it launches is answered at once, in order, by nodes that are never wrong. CPU time of this
thread by the number of events, the least of some rounds; growth is the exponent of a power law through the sizes, by
least squares: 0 if an event costs the same in a job of any size, 1 if it costs as much again for each task there is.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench import measure

if TYPE_CHECKING:
    from quoreduce.tracker import Plan

TASKS = (1_000, 10_000, 100_000)
NODES = (10, 100, 1_000, 10_000)
NODES_OF_TASKS, TASKS_OF_NODES = 100, 10_000
REDUCES = 10
ROUNDS = 3


def run(maps: int, nodes: int, f: int = 1, reduces: int = REDUCES) -> int:
    """Run a job to its end and return how many events it took."""
    from quoreduce.tracker import JobTracker, Plan, WorkerJoined

    tracker = JobTracker(Plan(maps, reduces, f, "bft", confirm=True))
    for n in range(nodes):
        tracker.handle(WorkerJoined(f"w{n}", f"n{n}", 1))
    return nodes + answer(tracker, tracker.plan)


def answer(tracker: object, plan: Plan) -> int:
    """Start a tracker whose workers have joined, answer what it launches until it is done, and return the number of
    events.
    """
    from quoreduce.tracker import Agreed, Finished, JobTracker, Launch, Output, Part, Published

    assert isinstance(tracker, JobTracker)
    part = Part(b"", 1, 1000)
    outputs = {"map": Output(b"", (part,) * plan.reduces), "reduce": Output(b"", (part,))}
    todo, events = deque(tracker.start()), 0
    while todo:
        command = todo.popleft()
        if isinstance(command, Launch):
            todo += tracker.handle(Finished(command.attempt, outputs[command.task.kind]))
            events += 1
        elif isinstance(command, Agreed) and command.task.kind == "reduce":
            todo += tracker.handle(Published(command.attempt))
            events += 1
    assert tracker.done
    assert tracker.ledger.re_executions == 0
    return events


def event_us(maps: int, nodes: int) -> float:
    """Microseconds of CPU for each event."""
    times = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        events = run(maps, nodes)
        times.append((time.thread_time() - start) / events)
    return 1e6 * min(times)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of a line through their logarithms."""
    x, y = ([math.log(v) for v in values] for values in (sizes, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure_all() -> measure.Cell:
    """All figures, by the name of the track."""
    measure.two_cores()
    measure.wait_for_quiet()
    run(1000, NODES_OF_TASKS)  # the first is slower
    by_tasks = {n: event_us(n, NODES_OF_TASKS) for n in TASKS}
    by_nodes = {n: event_us(TASKS_OF_NODES, n) for n in NODES}
    return {
        **{f"event_{n}_tasks": us for n, us in by_tasks.items()},
        **{f"event_{n}_nodes": us for n, us in by_nodes.items()},
        "growth_by_tasks": exponent(TASKS, list(by_tasks.values())),
        "growth_by_nodes": exponent(NODES, list(by_nodes.values())),
    }  # fmt: skip


class Tracker:
    """What the tracker does for an event, by the size of the job and of the cluster."""

    timeout = 300

    def setup_cache(self) -> measure.Cell:
        return measure_all()

    setup_cache.timeout = 900  # type: ignore[attr-defined]


measure.add_tracks(Tracker, lambda figures: figures, [
    *((f"event_{n}_tasks", "µs", f"CPU for each event, {n:,} maps on {NODES_OF_TASKS:,} nodes.") for n in TASKS),
    *((f"event_{n}_nodes", "µs", f"CPU for each event, {TASKS_OF_NODES:,} maps on {n:,} nodes.") for n in NODES),
    ("growth_by_tasks", "exponent", "Of the cost of an event as a power of the number of maps; "
     "goal: 0, as log n nearly is."),
    ("growth_by_nodes", "exponent", "Of the cost of an event as a power of the number of nodes."),
])  # fmt: skip


if __name__ == "__main__":
    for name, value in measure_all().items():
        print(f"{name:20} {value:.3g}")
