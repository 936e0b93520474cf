"""Who is named: the arithmetic of R11, and laws that hold for whatever order of events."""

from __future__ import annotations

from math import comb
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.tracker.placement import Pool
from quoreduce.tracker.suspicion import CHANCE_MOST, TASKS_LEAST, Standing, Suspicion, Why, chance, stands_out

NAMES = ("a", "b", "c", "d", "e")


COUNTS = st.integers(1, 60)


def exactly(lost: int, judged: int, others_lost: int, others_judged: int, rate: float) -> float:
    """The probability of at least so many here and at most so many there."""

    def some(trials: int, counts: range) -> float:
        return sum(comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in counts)

    return some(judged, range(lost, judged + 1)) * some(others_judged, range(others_lost + 1))


@given(COUNTS, st.integers(0, 60), COUNTS, st.integers(0, 60), st.floats(0, 1))
def test_chance_is_never_less_than_the_truth_whatever_the_rate(
    judged: int, k: int, others: int, m: int, rate: float
) -> None:
    lost, others_lost = min(k, judged), min(m, others)
    assert chance(lost, judged, others_lost, others) >= exactly(lost, judged, others_lost, others, rate) * (1 - 1e-9)


def test_nor_is_it_much_more() -> None:
    best = max(exactly(9, 30, 2, 90, rate / 1000) for rate in range(1000))
    assert chance(9, 30, 2, 90) < 30 * best


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_who_lost_no_larger_share_than_the_others_does_not_stand_out(
    judged: int, others: int, lost: int, more: int
) -> None:
    others_lost = min(more, others)
    lost = min(lost, judged * others_lost // others)
    assert not stands_out(lost, judged, others_lost, others)


@given(st.integers(1, 50), st.integers(0, 10**6))
def test_a_few_lost_tasks_are_no_reason(judged: int, others: int) -> None:
    assert not stands_out(min(judged, TASKS_LEAST - 1), judged, 0, others)


def test_a_third_of_tasks_lost_stands_out_among_domains_that_lose_none() -> None:
    assert stands_out(15, 45, 0, 135)
    assert not stands_out(15, 45, 45, 135)


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("domains", [3, 8, 20])
def test_evenly_spread_faults_name_nobody(rate: float, domains: int) -> None:
    """Whatever their rate, up to every task; seeded."""
    for seed in range(40):
        rng, suspicion = Random(f"{seed} {rate} {domains}"), Suspicion({})
        for _ in range(1000):
            name = f"d{rng.randrange(domains)}"
            lost = rng.random() < rate
            assert not suspicion.judge(name, True, lost)
            assert not suspicion.compare(name, ("map", rng.randrange(2), ""), lost)
        assert suspicion.named == {}


def test_a_domain_that_is_wrong_more_often_than_others_is_named_by_votes_alone() -> None:
    for seed in range(200):
        rng, suspicion = Random(seed), Suspicion({})
        for _ in range(120):
            for name, rate in (("bad", 0.3), ("x", 0.01), ("y", 0.01), ("z", 0.01)):
                suspicion.compare(name, ("map", 0, ""), rng.random() < rate)
        assert list(suspicion.named) == ["bad"], f"seed {seed}"


def test_like_is_compared_with_like() -> None:
    """Faults that strike maps only, the last replica only, or one type of CPU, make no suspects of those who ran
    these.
    """
    suspicion = Suspicion({})
    seen = (
        ("a", ("map", 1, ""), True), ("b", ("map", 1, ""), True), ("c", ("map", 0, ""), False),
        ("d", ("reduce", 1, ""), False), ("e", ("map", 0, "old"), True), ("f", ("map", 0, "old"), True),
    )  # fmt: skip
    for _ in range(200):
        for name, group, lost in seen:
            suspicion.judge(name, True, lost)
            suspicion.compare(name, group, lost)  # type: ignore[arg-type]
    assert suspicion.named == {}


def test_one_in_a_billion_is_what_the_documents_say() -> None:
    assert CHANCE_MOST == 1e-9


EVENTS = st.lists(
    st.tuples(st.sampled_from(("join", "lose", "lost", "won", "failed", "passed")), st.sampled_from(NAMES)), max_size=60
)
KNOWN = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(("quarantined", "probation")))


@given(EVENTS, st.integers(1, 3), KNOWN)
def test_quarantine_never_leaves_fewer_than_f_plus_1_domains_and_never_takes_one_that_is_not_named(
    events: list[tuple[str, str]], need: int, known: dict[str, str]
) -> None:
    pool = Pool(need, known)  # type: ignore[arg-type]
    for what, name in events:
        if what == "join":
            pool.join(name, name, 1)
        elif what == "lose":
            pool.lose(name)
        elif what in ("lost", "won"):
            pool.judge(name, True, what == "lost")
            pool.compare(name, ("map", 0, ""), what == "lost")
        else:
            pool.tested(name, what == "passed")
        named = [other for other in pool.domains if other in pool.suspicion.named]
        assert len(pool.open) >= min(need, len(pool.domains))
        assert set(pool.quarantined) <= set(named)
        assert len(pool.quarantined) == min(len(named), max(0, len(pool.domains) - need)), "as many as can be spared"
        spared = [pool.suspicion.weight(other) for other in named if other in pool.open]
        assert max(spared, default=(0, 0)) <= min(map(pool.suspicion.weight, pool.quarantined), default=(9**9, 0))


def test_standings_of_one_core_add_up() -> None:
    """As when several workers, each a domain, are on one core."""
    one = Standing(10, 3, 5, {("map", 0, "zen"): [7, 2], ("map", 1, "zen"): [3, 1]}, 4, 1, probation=False, why="test")
    two = Standing(
        100, 20, 30, {("map", 0, "zen"): [60, 10], ("reduce", 0, "zen"): [40, 9]}, 8, 6, probation=True, why="votes"
    )
    both = Standing(
        110,
        23,
        35,
        {("map", 0, "zen"): [67, 12], ("map", 1, "zen"): [3, 1], ("reduce", 0, "zen"): [40, 9]},
        12,
        7,
        True,
        "test",
    )
    assert one.plus(two) == both
    assert two.plus(one).why == "votes"
    assert not one.plus(Standing()).probation
    assert one.tallies[("map", 0, "zen")] == [7, 2]  # nothing was added to it


@pytest.mark.parametrize(
    ("mine", "other", "why"),
    [("", "", ""), ("", "votes", "votes"), ("record", "votes", "votes"), ("record", "", "record"),
    ("", "record", "record"), ("votes", "record", "votes"), ("probation", "", "probation")],
)  # fmt: skip
def test_what_this_job_has_seen_says_more_than_a_record(mine: Why, other: Why, why: Why) -> None:
    assert Standing(why=mine).plus(Standing(why=other)).why == why


def test_the_bound_is_chernoffs() -> None:
    from math import exp, log

    rate = 3 / 40
    bound = exp(-3 * log(0.3 / rate) - 7 * log(0.7 / (1 - rate)) - 30 * log(1 / (1 - rate)))
    assert chance(3, 10, 0, 30) == pytest.approx(bound)
    assert chance(0, 0, 0, 9) == chance(1, 10, 5, 10) == 1.0
    assert stands_out(TASKS_LEAST, 3, 0, 10**6)
    assert not stands_out(TASKS_LEAST - 1, 2, 0, 10**6)
    assert TASKS_LEAST == 3


MAPS = ("map", 0, "zen")  # a group


def test_a_new_domain_has_a_clean_record() -> None:
    assert Standing() == Standing(0, 0, 0, {}, 0, 0, probation=False, why="")


def test_votes_are_counted_of_a_domain_and_of_all() -> None:
    suspicion = Suspicion({})
    for name, lost in (("a", False), ("b", True), ("a", True), ("a", False)):
        assert suspicion.compare(name, MAPS, lost) is False
    assert suspicion.standings["a"].tallies == {MAPS: [3, 1]}
    assert suspicion.standings["b"].tallies == {MAPS: [1, 1]}
    assert suspicion._tallies == {MAPS: [4, 2]}


def test_the_others_of_a_domain_are_all_without_it() -> None:
    suspicion = Suspicion({})
    for _ in range(6):
        suspicion.compare("b", MAPS, False)
    for n in range(90):
        assert not suspicion.compare("a", MAPS, n % 3 < 2)  # 60 of 90, against 0 of 6: that can be chance
    assert not suspicion.named


def test_nobody_is_named_by_a_vote_that_was_won() -> None:
    suspicion = Suspicion({})
    for _ in range(3):
        assert not suspicion.compare("a", MAPS, True)  # there is nobody to compare with yet
    for _ in range(1000):
        suspicion.compare("b", MAPS, False)
    assert not suspicion.compare("a", MAPS, False)
    assert not suspicion.named
    assert suspicion.compare("a", MAPS, True)
    assert suspicion.standings["a"].why == "votes"


def test_a_vote_that_was_won_names_nobody_though_those_lost_before_it_stand_out() -> None:
    suspicion = Suspicion({})
    for _ in range(9):
        suspicion.compare("a", MAPS, True)  # there is nobody to compare with yet
    for _ in range(1000):
        suspicion.compare("b", MAPS, False)
    assert stands_out(9, 10, 0, 1000)
    assert not suspicion.compare("a", MAPS, False)
    assert not suspicion.named


def test_who_is_named_for_a_failed_test_is_not_named_for_votes_too() -> None:
    suspicion = Suspicion({})
    suspicion.tested("a", passed=False)
    for _ in range(1000):
        suspicion.compare("b", MAPS, False)
    for _ in range(50):
        assert not suspicion.compare("a", MAPS, True)
    assert suspicion.standings["a"].why == "test"


def test_who_is_named_is_reviewed_at_each_task_that_it_loses_and_not_tested_again() -> None:
    suspicion = Suspicion({"b": "probation"})
    assert suspicion.dispute("a")
    assert suspicion.tested("a", passed=False)
    assert [suspicion.dispute("a") for _ in range(15)] == [False] * 15
    assert [suspicion.judge("a", True, lost) for lost in (True, False)] == [True, False]
    assert not suspicion.judge("c", True, True)
    assert suspicion.judge("b", True, True)
    assert list(suspicion.named) == ["a", "b"]
