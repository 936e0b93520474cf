"""Who reads a part again before it is published: somebody else than who wrote it, and not always the same one."""

from __future__ import annotations

from quoreduce.driver.rereads import reader
from quoreduce.protocol.port import WorkerInfo

WORKERS = [WorkerInfo(f"w{n}", f"node{n // 2}", f"node{n // 2}", n, n) for n in range(6)]


def chosen(writer: int, running: tuple[str, ...] = (), reading: tuple[str, ...] = ()) -> str | None:
    return reader(WORKERS[writer], WORKERS, running, reading)


def test_another_domain_reads_even_if_it_has_more_to_do() -> None:
    assert chosen(0) == "w2"
    assert chosen(0, ("w2", "w3", "w4", "w5")) == "w2"


def test_alone_in_its_domain_a_worker_has_to_read_what_its_own_domain_wrote() -> None:
    assert reader(WORKERS[0], WORKERS[:2], (), ()) == "w0"
    assert reader(WORKERS[0], [], (), ()) is None


def test_parts_go_to_those_with_the_least_to_do() -> None:
    assert chosen(5, ("w0", "w1", "w2")) == "w3"
    assert chosen(5, ("w0", "w1", "w2", "w3"), ("w0", "w1", "w2")) == "w3"


def test_parts_spread_over_nodes_before_they_share_one() -> None:
    reading: list[str] = []
    for _ in range(4):
        reading.append(chosen(5, (), tuple(reading)) or "")
    assert reading == ["w0", "w2", "w1", "w3"]
    assert chosen(5, (), ("gone", "w0")) == "w2"


def test_who_may_never_answer_is_asked_last_however_much_the_others_have_to_do() -> None:
    busy = ("w2", "w2", "w3", "w3", "w4", "w4")
    assert reader(WORKERS[0], WORKERS, busy, (), {"w5"}) == "w2"
    assert reader(WORKERS[0], WORKERS, (), (), {"w2", "w3", "w4", "w5"}) == "w2"
