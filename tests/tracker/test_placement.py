"""The pool on its own: slots, whose turn it is, who is asked again, who is quarantined."""

from __future__ import annotations

from quoreduce.tracker import Output, Part
from quoreduce.tracker.placement import Pool
from quoreduce.tracker.vote import Ballot


def pool_of(domains: str, need: int = 2, slots: int = 1) -> Pool:
    pool = Pool(need)
    for name in domains:
        assert pool.join(f"w{name}", name, slots)
    return pool


def output(n: int) -> Output:
    return Output(b"%d" % n, (Part(b"p", 1, 1),))


def chosen(
    pool: Pool, asked: dict[str, int], ballot: Ballot | None = None, running: str = "", winner: int | None = None
) -> str:
    ballot = ballot or Ballot()
    domain = pool.choose(asked, set(running), ballot, None if winner is None else ballot.candidates[winner])
    return domain.name if domain is not None else ""


def suspect(pool: Pool, domain: str, tests: int = 1) -> None:
    """Let a domain fail known-answer tests."""
    for _ in range(tests):
        pool.tested(domain, passed=False)


def test_workers_join_once_and_with_slots() -> None:
    pool = Pool(1)
    assert not pool.join("w", "a", 0)
    assert not pool.domains
    assert pool.join("w", "a", 1)
    assert not pool.join("w", "b", 1)
    assert list(pool.domains) == list(pool.open) == list(pool.free) == ["a"]


def test_slots_are_taken_and_freed_one_by_one() -> None:
    pool = Pool(1)
    pool.join("w0", "a", 2)
    pool.join("w1", "a", 1)
    domain = pool.domains["a"]
    assert [pool.take(domain, n) for n in range(2)] == ["w0", "w1"]
    assert list(pool.free) == ["a"]
    assert pool.take(domain, 2) == "w0"
    assert (pool.busy, list(pool.free), list(domain.idle)) == (3, [], [])
    pool.release("w1", 1)
    assert (pool.busy, list(pool.free), list(domain.idle)) == (2, ["a"], ["w1"])
    assert pool.lose("w0") == [0, 2]
    assert (pool.busy, list(pool.free), list(pool.domains)) == (0, ["a"], ["a"])
    assert pool.lose("w1") == []
    assert pool.lose("w1") is None
    assert not pool.free
    assert not pool.domains
    assert not pool.open


def test_a_domain_of_several_types_of_cpu_has_none() -> None:
    pool = Pool(1)
    for worker, domain, cpu in (
        ("w0", "a", "old"),
        ("w1", "a", "old"),
        ("w2", "b", "old"),
        ("w3", "b", "new"),
        ("w4", "b", "old"),
    ):
        pool.join(worker, domain, 1, cpu)
    assert pool.types == {"a": "old", "b": ""}


def test_who_does_not_say_its_type_of_cpu_has_none_that_is_known() -> None:
    assert pool_of("ab").types == {"a": "", "b": ""}


def test_the_domain_that_was_taken_last_comes_last() -> None:
    pool = pool_of("abc", slots=2)
    taken = []
    for n in range(6):
        taken.append(chosen(pool, {}))
        pool.take(pool.domains[taken[-1]], n)
    assert "".join(taken) == "abcabc"
    assert chosen(pool, {}) == ""


def test_a_domain_that_was_not_asked_is_waited_for() -> None:
    """R1."""
    pool = pool_of("abc")
    assert chosen(pool, {"a": 1}) == "b"
    pool.take(pool.domains["c"], 0)
    assert chosen(pool, {"a": 1, "b": 1}) == ""
    pool.release("wc", 0)
    assert chosen(pool, {"a": 1, "b": 1}) == "c"


def test_where_nobody_lives_nobody_is_chosen() -> None:
    assert Pool(1).choose({}, set(), Ballot(), None) is None
    assert Pool(1).choose({"a": 1}, {"a"}, Ballot(), None) is None


def test_who_was_asked_least_is_asked_again_unless_it_runs() -> None:
    pool = pool_of("abc")
    assert chosen(pool, {"a": 2, "b": 1, "c": 2}) == "b"
    assert chosen(pool, {"a": 2, "b": 1, "c": 3}, running="b") == "a"
    assert chosen(pool, {"a": 1, "b": 1, "c": 1}, running="abc") == "a"
    pool.take(pool.domains["b"], 0)
    assert chosen(pool, {"a": 2, "b": 1, "c": 2}) == ""


def test_who_challenged_the_leader_is_asked_again_first() -> None:
    pool = pool_of("abc")
    once = {"a": 1, "b": 1, "c": 1}
    ballot = Ballot()
    for n, (domain, said) in enumerate((("a", 1), ("b", 1), ("c", 2))):
        ballot.cast(n, domain, b"%d" % said, output(said))
    assert chosen(pool, once, ballot) == "c"
    assert chosen(pool, once, ballot, winner=0) == "b"  # for another copy: from those that won; the latest
    pool.judge("b", judged=True, lost=True)
    assert chosen(pool, once, ballot, winner=0) == "a"  # of them the least suspect
    assert chosen(pool, once, ballot, winner=1) == "c"


def test_among_challengers_the_most_suspect_is_asked_first() -> None:
    pool = pool_of("abcd")
    once = dict.fromkeys("abcd", 1)
    ballot = Ballot()
    for n, (domain, said) in enumerate((("a", 1), ("b", 1), ("c", 2), ("d", 3))):
        ballot.cast(n, domain, b"%d" % said, output(said))
    assert chosen(pool, once, ballot) == "d"  # the latest
    pool.judge("c", judged=True, lost=True)
    assert chosen(pool, once, ballot) == "c"


def test_a_failed_test_is_quarantine_while_enough_others_stay() -> None:
    """R11."""
    pool = pool_of("abc")
    pool.tested("a", passed=True)
    pool.judge("a", judged=True, lost=True)
    assert pool.quarantined == []
    suspect(pool, "a")
    assert (pool.quarantined, list(pool.open), list(pool.free)) == (["a"], ["b", "c"], ["b", "c"])
    suspect(pool, "b", 2)
    assert pool.quarantined == ["b"]  # the worse one, for two must stay
    assert list(pool.free) == ["c", "a"]
    pool.join("wd", "d", 1)
    assert pool.quarantined == ["a", "b"]
    assert list(pool.free) == ["c", "d"]
    pool.lose("wd")
    assert pool.quarantined == ["b"]
    pool.lose("wc")
    assert pool.quarantined == []


def test_the_vote_that_names_a_domain_quarantines_it() -> None:
    """R11: there and then, not when something else gives a reason to look."""
    pool = Pool(2, {"a": "probation"})
    for name in "abc":
        pool.join(f"w{name}", name, 1)
    pool.judge("a", judged=True, lost=False)
    assert pool.quarantined == []
    pool.judge("a", judged=True, lost=True)
    assert pool.quarantined == list(pool.suspicion.named) == ["a"]


def test_the_comparison_that_names_a_domain_quarantines_it() -> None:
    pool = pool_of("abc")
    for _ in range(200):
        for name in "bc":
            pool.compare(name, ("map", 0, ""), lost=False)
    for _ in range(50):
        pool.compare("a", ("map", 0, ""), lost=True)
        assert pool.quarantined == list(pool.suspicion.named)
    assert pool.quarantined == ["a"]


def test_slots_of_a_quarantined_domain_are_not_free() -> None:
    pool = pool_of("abc", slots=2)
    pool.take(pool.domains["a"], 0)
    suspect(pool, "a")
    pool.release("wa", 0)
    pool.join("wa2", "a", 1)
    assert list(pool.free) == ["b", "c"]
    assert pool.take(pool.domains["a"], 1) in ("wa", "wa2")
    assert list(pool.free) == ["b", "c"]


def test_a_quarantined_domain_is_asked_again_after_all_others() -> None:
    pool = pool_of("abc")
    suspect(pool, "a")
    assert chosen(pool, {"b": 1}) == "c"
    assert chosen(pool, {"b": 1, "c": 1}) == "b"
    assert chosen(pool, {"b": 2, "c": 2}) == "a"


def test_a_domain_that_is_called_back_while_busy_is_not_free() -> None:
    pool = pool_of("abc")
    suspect(pool, "a")
    pool.take(pool.domains["a"], 0)
    pool.lose("wc")
    assert list(pool.open) == ["b", "a"]
    assert list(pool.free) == ["b"]
