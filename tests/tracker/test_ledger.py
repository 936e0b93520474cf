"""What a job has cost: the sums, on their own."""

from __future__ import annotations

from quoreduce.tracker import Output, Part
from quoreduce.tracker.ledger import Ledger


def test_executions_are_those_of_all_kinds_without_what_was_refused() -> None:
    ledger = Ledger()
    assert (ledger.executions, ledger.re_executions) == (0, 0)
    ledger.launch("map", first=True, speculative=False)
    ledger.launch("map", first=False, speculative=False)
    ledger.launch("map", first=False, speculative=True)
    ledger.launch("reduce", first=True, speculative=False)
    ledger.launch("sample", first=True, speculative=False)
    assert (ledger.executions, ledger.re_executions, ledger.speculative) == (5, 1, 1)
    assert ledger.launched == {"sample": 1, "map": 3, "reduce": 1}
    assert ledger.first_plan == {"sample": 1, "map": 1, "reduce": 1}
    ledger.refuse("reduce", speculative=False)
    ledger.refuse("map", speculative=True)
    assert (ledger.executions, ledger.re_executions, ledger.speculative, ledger.refused) == (3, 0, 0, 2)
    assert ledger.launched == {"sample": 1, "map": 2, "reduce": 0}
    ledger.refuse("map", speculative=False)
    assert ledger.re_executions == 0  # of the first plan, which is not owed any more


def test_stored_bytes_add_up() -> None:
    ledger = Ledger()
    for size in (3, 5):
        ledger.store(Output(b"d", (Part(b"p", 1, size), Part(b"q", 1, 10))))
    assert ledger.stored_nbytes == 28


def test_all_figures_begin_at_zero_and_go_into_json() -> None:
    none = {"sample": 0, "map": 0, "reduce": 0}
    figures = Ledger().as_dict()
    assert figures.pop("launched") == figures.pop("first_plan") == figures.pop("checks") == none
    assert figures.pop("suspicion") == figures.pop("suspects") == {}
    assert figures.pop("quarantined") == ()
    assert set(figures) >= {"executions", "re_executions", "votes", "lost_votes", "crashed", "refused", "stored_nbytes"}
    assert set(figures.values()) == {0}
