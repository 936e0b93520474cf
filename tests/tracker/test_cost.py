"""What an event costs does not grow with the job: counted in calls, so that a busy machine does not matter."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import pytest
from driver_referee import true_reduce

from quoreduce.tracker import Finished, JobTracker, Launch, Output, Part, Plan, WorkerJoined


def calls_per_event(maps: int, workers: int, mode: str) -> tuple[float, int]:
    tracker = JobTracker(Plan(maps, reduces=4, f=1, mode=mode))  # type: ignore[arg-type]
    for w in range(workers):
        tracker.handle(WorkerJoined(f"w{w}", f"d{w}"))
    part = Part(b"p", 1, 1)
    outputs = {"map": Output(b"m", (part,) * 4), "reduce": Output(true_reduce(0, 0)[0], (part,))}
    waiting = deque(tracker.start())
    calls: list[int] = []
    count = 0

    def profile(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "call"

    while waiting:
        command = waiting.popleft()
        if isinstance(command, Launch):
            count = 0
            sys.setprofile(profile)
            waiting.extend(tracker.handle(Finished(command.attempt, outputs[command.task.kind])))
            sys.setprofile(None)
            calls.append(count)
    assert tracker.done
    return sum(calls) / len(calls), sorted(calls)[int(0.999 * len(calls))]


@pytest.mark.parametrize("mode", ["bft", "basic"])
def test_the_cost_of_an_event_does_not_grow_with_the_job(mode: str) -> None:
    small, _ = calls_per_event(300, 30, mode)
    large, worst = calls_per_event(3000, 300, mode)
    assert large < 1.3 * small
    assert worst < 5000
