"""The figures of a progress display follow a job."""

from __future__ import annotations

from typing import Any

from play import Play


def figures(job: Play, *names: str) -> tuple[Any, ...]:
    return tuple(job.tracker.counters()[name] for name in names)


def test_counters_follow_a_job_from_its_start_to_its_end() -> None:
    job = Play(domains=3, slots=1, maps=2, reduces=2)
    sizes, maps, work = (
        ("maps", "reduces", "domains"),
        ("maps_readable", "maps_agreed"),
        ("executions", "running", "queued"),
    )
    assert figures(job, *sizes) == (2, 2, 3)
    assert figures(job, *maps, "reduces_agreed") == (0, 0, 0)
    assert figures(job, *work) == (3, 3, 3)  # three slots; a replica of map 1 and two reduces wait
    job.answer("map 0")
    assert figures(job, *maps) == (1, 0)
    assert figures(job, *work) == (4, 3, 2)
    job.answer("map 0")
    assert figures(job, *maps) == (1, 1)
    assert figures(job, *work) == (4, 2, 2)
    job.finish()
    assert figures(job, *maps, "reduces_agreed", *work) == (2, 2, 2, 8, 0, 0)


def test_counters_name_lost_and_quarantined_domains() -> None:
    job = Play(domains=4, slots=1, maps=9)
    assert figures(job, "domains", "quarantined") == (4, 0)
    job.tracker._pool.tested("d1", passed=False)
    assert figures(job, "domains", "quarantined") == (4, 1)
    job.cluster.crash("w3", blocks_lost=False)
    assert figures(job, "domains", "quarantined") == (3, 1)
