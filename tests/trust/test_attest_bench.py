"""What ``attest bench`` prints: every figure, hardware's labelled as modelled, ratios of one run; swtpm or what to
install.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from quoreduce.commands.attest import bench
from quoreduce.trust import merkle
from quoreduce.trust.modelled import CHIPS, DEFAULT_CHIP
from quoreduce.trust.swtpm import SwtpmSetup
from quoreduce.trust.utpm import MicroTpm

ADVICE = "is not installed; on Debian and Ubuntu: sudo apt-get install swtpm swtpm-tools"
SIZES = (1, 4)
Json = dict[str, Any]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "SAMPLE_S", 1e-3)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without swtpm."""
    monkeypatch.setenv("PATH", str(tmp_path))


def printed_json(capsys: pytest.CaptureFixture[str], state: Path | None = None, sizes: tuple[int, ...] = SIZES) -> Json:
    assert bench.run_bench(8, sizes, as_json=True, state=state) == 0
    found: Json = json.loads(capsys.readouterr().out)
    return found


def keys(found: Json) -> set[tuple[Any, ...]]:
    return {(f["backend"], f.get("chip"), f["what"], f.get("batch"), f.get("size")) for f in found["figures"]}


def backend_keys(backend: str, chip: str | None) -> set[tuple[Any, ...]]:
    whats = product(("extend", "extend + quote"), ("none", "aggregate", "merkle"), SIZES)
    return {(backend, chip, *what) for what in [*whats, *product(("challengers",), (None,), (1, 16, 256))]}


def test_json_has_every_backend_mode_and_size(capsys: pytest.CaptureFixture[str], made: SwtpmSetup) -> None:
    found = printed_json(capsys, made.state)
    verifying = set(product(("verifier",), (None,), ("verify proof",), (None,), SIZES))
    verifying.add(("verifier", None, "verify quote", None, None))
    backends = [("utpm", None), ("swtpm", None), *(("modelled", chip) for chip in CHIPS)]
    assert keys(found) == verifying.union(*(backend_keys(*one) for one in backends))
    assert len(found["figures"]) == len(keys(found))
    assert found["missing"] == {}
    assert (found["format"], found["tasks"], found["rounds"]) == ("quoreduce attest bench 1", 8, 2)
    for one in found["figures"]:
        assert one["us"] > 0
        assert one["per_s"] == pytest.approx(1e6 / one["us"], rel=1e-3)


def test_modelled_figures_say_so_and_only_those(capsys: pytest.CaptureFixture[str], bare: None) -> None:
    for one in printed_json(capsys)["figures"]:
        assert one["modelled"] == (one["backend"] == "modelled")
        assert one["label"].startswith("modelled: ") if one["modelled"] else one["label"] == "measured"
        assert ("source" in one) == one["modelled"]


@pytest.mark.parametrize(
    ("labels", "us"),
    [
        ({"what": "extend", "batch": "none", "size": 1}, 7_000),
        ({"what": "extend", "batch": "none", "size": 4}, 7_000),
        ({"what": "extend", "batch": "merkle", "size": 4}, 1_750),
        ({"what": "extend + quote", "batch": "none", "size": 1}, 507_000),
        ({"what": "extend + quote", "batch": "none", "size": 4}, 132_000),
        ({"what": "extend + quote", "batch": "aggregate", "size": 4}, 126_750),
        ({"what": "challengers", "size": 16}, 31_250),
    ],
)
def test_modelled_figures_are_latencies_added_up(labels: Json, us: int) -> None:
    figures = bench.modelled_figures(CHIPS["stm-2.0"], SIZES)
    (one,) = [f for f in figures if labels.items() <= f.labels.items()]
    assert one.us == pytest.approx(us)
    assert one.spread == 0


def test_without_swtpm_it_says_what_to_install_and_measures_the_rest(
    capsys: pytest.CaptureFixture[str], bare: None
) -> None:
    found = printed_json(capsys)
    assert ADVICE in found["missing"]["swtpm"]
    assert {f["backend"] for f in found["figures"]} == {"utpm", "modelled", "verifier"}
    assert bench.run_bench(8, SIZES) == 0
    text = capsys.readouterr().out
    assert "swtpm was not measured: " in text
    assert ADVICE in text


def test_every_column_of_the_tables_says_measured_or_modelled(
    capsys: pytest.CaptureFixture[str], made: SwtpmSetup
) -> None:
    bench.run_bench(8, SIZES, state=made.state)
    text = capsys.readouterr().out
    assert text.count("swtpm,") == text.count("µTPM,") == 3
    assert text.count(f"{DEFAULT_CHIP},") == 4  # once more among all chips
    assert text.count("modelled") >= 2 * 3 + 2 + len(CHIPS)
    for chip in CHIPS.values():
        assert chip.label in text
    assert max(map(len, text.splitlines())) <= 120
    assert "was not measured" not in text


def test_a_temporary_tpm_is_gone_at_the_end(capsys: pytest.CaptureFixture[str], made: SwtpmSetup, state: Path) -> None:
    with bench._swtpm(None) as tpm:
        folder, pid = tpm.setup.state, tpm.pid
        assert folder.is_dir()
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()
    with bench._swtpm(state) as tpm:
        assert tpm.setup.state == state
    assert state.is_dir()


def test_a_state_that_is_in_use_is_a_backend_that_is_missing(
    capsys: pytest.CaptureFixture[str], state: Path, start: Callable[..., Any]
) -> None:
    with bench._swtpm(state):
        assert "is in use" in printed_json(capsys, state)["missing"]["swtpm"]


def test_unbatched_is_measured_whatever_sizes_are_asked_for(capsys: pytest.CaptureFixture[str], bare: None) -> None:
    found = printed_json(capsys, sizes=(4, 2, 4))
    assert sorted({f["size"] for f in found["figures"] if f["what"] == "extend"}) == [1, 2, 4]


def test_one_round_after_the_other_begins_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    figures = [bench.CostFigure({}, lambda name=name: order.append(name)) for name in "abcd"]  # type: ignore[misc]
    bench.take_turns(figures, 1)
    warm, rounds = order[:-8], order[-8:]
    assert sorted(warm) == sorted([*"abcd"] * 2)
    assert "".join(rounds) == "abcdcdab"
    assert [len(f.samples) for f in figures] == [2, 2, 2, 2]


def test_no_round_begins_after_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS_S", -1.0)
    one = bench.CostFigure({}, lambda: None)
    bench.take_turns([one], 1)
    assert len(one.samples) == 1


def test_a_sample_has_at_most_the_tasks_asked_for_and_at_least_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SAMPLE_S", 10.0)
    done: list[int] = []
    for units, most, runs in ((1, 8, 8), (4, 8, 2), (16, 8, 1)):
        one = bench.CostFigure({}, lambda: done.append(1), units)
        one.prepare(most)
        done.clear()
        one.sample()
        assert len(done) == runs


def results(**samples: list[float]) -> bench.CostResults:
    """Results with these samples only."""
    labels: dict[str, Json] = {
        "batched": {"backend": "utpm", "what": bench.QUOTE, "batch": "merkle", "size": 1024},
        "utpm": {"backend": "utpm", "what": bench.QUOTE, "batch": "none", "size": 1},
        "swtpm": {"backend": "swtpm", "what": bench.QUOTE, "batch": "none", "size": 1},
        "proof": {"backend": "verifier", "what": "verify proof", "size": 1024},
    }
    return bench.CostResults(
        tuple(bench.CostFigure(labels[name], lambda: None, 1, found) for name, found in samples.items()), {}, 1.0
    )


def test_ratios_are_those_of_each_round_and_the_goals_stand_beside_them() -> None:
    found = bench.goals(
        results(batched=[2.0, 1.0, 3.0], utpm=[50.0, 20.0, 30.0], swtpm=[900.0, 900.0, 900.0], proof=[9.0])
    )
    assert [(round(goal.value, 7), goal.met) for goal in found] == [
        (0.05, True),  # of 2/50, 1/20 and 3/30; that of the medians is 2/30
        (0.0022222, True),
        (4e-6, True),
        (9.0, True),
    ]
    assert [goal.limit for goal in found] == [1 / 20, 1 / 400, 1 / 200_000, 10.0]
    assert [goal.modelled for goal in found] == [False, False, True, False]
    assert "modelled" in found[2].name


def test_a_goal_that_is_missed_says_so() -> None:
    for goal in bench.goals(results(batched=[3.0], utpm=[50.0], swtpm=[900.0], proof=[11.0])):
        assert not goal.met
        assert "missed" in bench._said(goal)
    assert bench._said(bench.Goal("", 1 / 25, 0.0, 1 / 20, "ratio")) == "1/25 (goal: at most 1/20): met"


def test_goals_without_their_figures_are_left_out() -> None:
    assert bench.goals(results()) == []
    assert [goal.limit for goal in bench.goals(results(batched=[1.0], utpm=[50.0]))] == [1 / 20, 1 / 200_000]


def test_the_proofs_and_quotes_whose_verification_is_timed_are_accepted() -> None:
    *proofs, quotes = bench.verifier_figures(SIZES)
    assert all(one.run() is True for one in proofs)
    quotes.run()


def test_the_quote_for_challengers_is_over_all_their_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    nonces: list[bytes] = []
    monkeypatch.setattr(MicroTpm, "quote", lambda self, pcrs, nonce: nonces.append(nonce))
    bench.answer(MicroTpm(), 3)
    assert nonces == [merkle.root([number.to_bytes(32, "big") for number in range(3)])]
