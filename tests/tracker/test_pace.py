"""Who is overdue: told by those of the same kind that have finished, and by how much there is to read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quoreduce.tracker import Pace
from quoreduce.tracker.pace import FACTOR, FLOOR_S

MB = 1_000_000


def paced(*took_s: float, size: float = 64 * MB) -> Pace:
    """Worker a has executed these; the first is its first."""
    pace = Pace()
    for seconds in took_s:
        pace.finished("map", "a", size, seconds)
    return pace


def test_who_runs_three_times_longer_than_the_median_is_overdue() -> None:
    pace = paced(9.0, 2.0, 2.0, 4.0)  # the first one compiled something
    assert not pace.overdue("map", "a", 64 * MB, 2.0 * FACTOR)
    assert pace.overdue("map", "a", 64 * MB, 2.0 * FACTOR + 0.1)


def test_short_executions_have_a_floor() -> None:
    pace = paced(0.01, 0.01, 0.01)
    assert not pace.overdue("map", "a", 64 * MB, FLOOR_S)
    assert pace.overdue("map", "a", 64 * MB, FLOOR_S + 0.1)


def test_nobody_is_overdue_before_some_have_finished() -> None:
    assert not paced().overdue("map", "a", 64 * MB, 1e6)
    assert not paced(1.0).overdue("map", "a", 64 * MB, 1e6)
    assert not paced(1.0, 1.0, 1.0).overdue("reduce", "a", 64 * MB, 1e6)


def test_the_first_execution_of_a_worker_is_compared_with_first_ones() -> None:
    pace = paced(10.0, 0.1, 0.1, 0.1)
    assert not pace.overdue("map", "b", 64 * MB, 25.0)  # it may be compiling
    pace.finished("map", "c", 64 * MB, 12.0)
    assert not pace.overdue("map", "b", 64 * MB, 33.0)
    assert pace.overdue("map", "b", 64 * MB, 33.1)
    assert pace.overdue("map", "a", 64 * MB, 3.0)


def test_the_first_execution_of_another_kind_is_a_first_one_too() -> None:
    pace = paced(1.0, 1.0, 1.0)
    for worker in ("b", "c"):
        pace.finished("reduce", worker, 1.0, 5.0)
    assert not pace.overdue("reduce", "a", 1.0, 14.0)
    assert pace.overdue("reduce", "a", 1.0, 16.0)


def test_first_executions_are_the_measure_until_two_later_ones_have_finished() -> None:
    pace = paced(5.0)
    pace.finished("map", "b", 64 * MB, 5.0)
    assert not pace.overdue("map", "a", 64 * MB, 15.0)
    assert pace.overdue("map", "a", 64 * MB, 15.1)


def test_the_median_follows_what_finishes_after_it_was_asked_for() -> None:
    pace = paced(9.0, 1.0, 1.0)
    assert pace.overdue("map", "a", 64 * MB, 3.1)
    for _ in range(3):
        pace.finished("map", "a", 64 * MB, 8.0)
    assert not pace.overdue("map", "a", 64 * MB, 24.0)
    assert pace.overdue("map", "a", 64 * MB, 24.1)


def test_a_skewed_split_is_given_time_by_its_size_and_a_short_one_not_less() -> None:
    pace = paced(1.0, 1.0, 1.0)
    assert not pace.overdue("map", "a", 640 * MB, 29.0)
    assert pace.overdue("map", "a", 640 * MB, 31.0)
    assert not pace.overdue("map", "a", 1 * MB, 2.9)


def test_empty_partitions_are_no_measure_that_divides_by_nothing() -> None:
    assert not paced(1.0, 1.0, 1.0, size=0).overdue("map", "a", 5 * MB, 100.0)
    assert paced(1.0, 1.0, 1.0, size=0).overdue("map", "a", 0, 100.0)
    assert not paced(1.0, 1.0, 1.0, size=0).overdue("map", "a", 5, 15.0)  # as if they had had one byte
    assert paced(1.0, 1.0, 1.0, size=0).overdue("map", "a", 5, 15.1)


@given(st.lists(st.floats(0.001, 1000.0), min_size=3, max_size=300), st.floats(1.0, 2.9))
def test_equal_work_within_the_factor_is_never_overdue(took_s: list[float], ratio: float) -> None:
    """R2: where nobody takes three times as long as the others, nobody is overdue."""
    least = min(took_s)
    balanced = [min(seconds, least * ratio) for seconds in took_s]
    pace = paced(*balanced)
    assert not any(pace.overdue("map", "a", 64 * MB, seconds) for seconds in balanced)
