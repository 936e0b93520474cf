"""Who checks a part before it is published: somebody else than who wrote it, and not always the same one."""

from __future__ import annotations

from quoreduce.driver.checkers import checker
from quoreduce.protocol.port import WorkerInfo

WORKERS = [WorkerInfo(f"w{n}", f"node{n // 2}", f"node{n // 2}", n, n) for n in range(6)]


def chosen(writer: int, running: tuple[str, ...] = (), checking: tuple[str, ...] = ()) -> str | None:
    return checker(WORKERS[writer], WORKERS, running, checking)


def test_another_domain_checks_even_if_it_has_more_to_do() -> None:
    assert chosen(0) == "w2"
    assert chosen(0, ("w2", "w3", "w4", "w5")) == "w2"


def test_alone_in_its_domain_a_worker_has_to_check_what_its_own_domain_wrote() -> None:
    assert checker(WORKERS[0], WORKERS[:2], (), ()) == "w0"
    assert checker(WORKERS[0], [], (), ()) is None


def test_checks_go_to_those_with_the_least_to_do() -> None:
    assert chosen(5, ("w0", "w1", "w2")) == "w3"
    assert chosen(5, ("w0", "w1", "w2", "w3"), ("w0", "w1", "w2")) == "w3"


def test_checks_spread_over_nodes_before_they_share_one() -> None:
    checking: list[str] = []
    for _ in range(4):
        checking.append(chosen(5, (), tuple(checking)) or "")
    assert checking == ["w0", "w2", "w1", "w3"]
    assert chosen(5, (), ("gone", "w0")) == "w2"


def test_who_may_never_answer_is_asked_last_however_much_the_others_have_to_do() -> None:
    busy = ("w2", "w2", "w3", "w3", "w4", "w4")
    assert checker(WORKERS[0], WORKERS, busy, (), {"w5"}) == "w2"
    assert checker(WORKERS[0], WORKERS, (), (), {"w2", "w3", "w4", "w5"}) == "w2"
