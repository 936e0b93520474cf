"""What messages mean that leave something out."""

from __future__ import annotations

from quoreduce.tracker import Finished, JobTracker, Launch, Output, Part, Plan, Task, WorkerJoined

WRONG, RIGHT = (Output(digest, (Part(digest, 1, 1),)) for digest in (b"wrong", b"right"))


def test_a_worker_that_does_not_say_how_many_slots_it_has_has_one() -> None:
    tracker = JobTracker(Plan(maps=3, reduces=1, f=0, mode="bft"))
    tracker.handle(WorkerJoined("w", "d"))
    assert [str(command.task) for command in tracker.start() if isinstance(command, Launch)] == ["map 0"]


def test_a_worker_that_does_not_say_its_type_of_cpu_is_of_none_that_could_be_to_blame() -> None:
    """R11: that two of a known one are outvoted by them is no mark of the job."""
    tracker = JobTracker(Plan(maps=1, reduces=1, f=2, mode="bft"))
    for n in range(2):
        tracker.handle(WorkerJoined(f"k{n}", f"known {n}", 9, "new"))
    for n in range(3):
        tracker.handle(WorkerJoined(f"u{n}", f"unknown {n}", 9))
    launches = [command for command in tracker.start() if isinstance(command, Launch)]
    while not tracker.done and any(str(launch.task) == "map 0" for launch in launches):
        launch = next(launch for launch in launches if str(launch.task) == "map 0")
        launches.remove(launch)
        output = RIGHT if launch.worker.startswith("u") else WRONG
        launches += [
            command for command in tracker.handle(Finished(launch.attempt, output)) if isinstance(command, Launch)
        ]
    assert not tracker.done
    assert tracker.counters()["maps_agreed"] == 1


def test_an_execution_that_is_not_told_what_to_read_reads_nothing() -> None:
    assert list(Launch(0, Task("map", 0), 0, "w", store=True).sources) == []
