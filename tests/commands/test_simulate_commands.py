"""``quoreduce simulate`` as a user runs it; every figure is called simulated."""

from __future__ import annotations

import json
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from quoreduce.cli import main
from quoreduce.sim import USUAL
from quoreduce.sim.referee import Referee
from quoreduce.sim.slides import APPS, SHARES, SPLITS, mean, slides


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["simulate", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_run_says_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "run", "--maps", 20, "--reduces", 2, "--faults", "bad:1", "crash:2")
    assert code == 0
    assert text.startswith("simulated: wordcount, bft, f=1, 10 nodes")
    assert "crash 2" in text


def test_a_job_that_fails_ends_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "run", "--nodes", 1, "--json")
    assert (code, json.loads(text)["end"]) == (4, "too_few_domains")


@pytest.mark.parametrize("bad", [("--faults", "flood:1"), ("--job", "nothing"), ("--calibration", "/nowhere")])
def test_what_makes_no_sense_is_one_clear_line(bad: tuple[object, object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "run", *map(str, bad)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quoreduce: ")
    assert error.count("\n") == 1


DEEP = '{"a":' * 100_000


@pytest.mark.parametrize(
    ("old", "new"),
    [("{", DEEP), ('"stages": 1', '"stages": 0'), ('"stages": 1', '"stages": 1e308'),
     ('"read_s": 3e-09', f'"read_s": 1{"0" * 400}'),
     ('"read_s": 3e-09', '"read_s": NaN'), ('"read_s": 3e-09', f'"read_s": "{"x" * 70_000}"'), ('"assumed"', '"\xff"'),
     ('"assumed"', f'"{"x" * 2_000_000}"')],
    ids=["deep", "no stages", "many stages", "a huge number", "no number", "a long text", "not UTF-8", "a long file"],
)  # fmt: skip
def test_what_is_no_calibration_is_one_clear_line(
    old: str, new: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert old in USUAL.encode()
    (tmp_path / "bad.json").write_bytes(USUAL.encode().replace(old, new, 1).encode("latin-1"))
    assert main(["simulate", "run", "--calibration", str(tmp_path / "bad.json")]) == 2
    error = capsys.readouterr().err
    assert "no calibration" in error or "it has more than 1,048,576 bytes" in error
    assert (error.count("\n"), len(error) < 1000) == (1, True)


def test_a_job_that_grows_without_end_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    grows = json.loads(USUAL.encode())
    grows["jobs"]["monsterQuery"]["out"]["points"] = [[1.0, 1e6]]
    (tmp_path / "growing.json").write_text(json.dumps(grows))
    arguments = ("--maps", 100, "--job", "monsterQuery", "--calibration", tmp_path / "growing.json")
    assert main(["simulate", "run", *map(str, arguments)]) == 2
    assert "stage 2 of monsterQuery reads" in capsys.readouterr().err


def test_slides_have_the_shape_that_was_published(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(USUAL.encode())
    page = tmp_path / "slides.html"
    code, text = said(capsys, "slides", "--json", "--out", page, "--calibration", tmp_path / "calibration.json")
    found = json.loads(text)
    assert (code, found["simulated"]) == (0, True)
    assert [(p["nodes"], p["splits"]) for p in found["points"]] == [(10, n) for n in SPLITS]
    times = found[
        "points"
    ]  # slide 24: time grows with the number of splits, and voting costs more than nothing and less than 2.5
    assert all(a["bft_s"] < b["bft_s"] for a, b in pairwise(times))
    assert all(1 <= p["bft_s"] / p["original_s"] <= 2.5 for p in times)
    assert [(r["app"], r["nodes"]) for r in found["ratios"]] == [(app, n) for app in APPS for n in (10, 20)]
    assert all(1.9 < r["cpu_ratio"] < 2.5 and 1 <= r["time_ratio"] <= 2.5 for r in found["ratios"])
    on_20 = {r["app"]: r["time_ratio"] for r in found["ratios"] if r["nodes"] == 20}
    assert [o["app"] for o in found["others"]] == list(APPS)
    for o in found[
        "others"
    ]:  # slide 26: voting takes less time where reading is free, and where there are nodes to spare
        assert 0.8 < o["twice_nodes"] < o["free_reading"] + 0.1 < on_20[o["app"]]
        assert 1 <= o["few_splits"] < on_20[o["app"]]
    assert [s["percent"] for s in found["shares"]] == list(SHARES)
    assert [s["reexecutions"] > 0 for s in found["shares"]] == [False, True, True, True, True, True]
    html = page.read_text()
    assert html.count("<svg") == 4
    assert html.count("(simulated)") >= 3
    assert "Slide 24: time of webdataScan on 10 nodes" in html
    assert main(["simulate", "slides", "--out", str(page)]) == 2


def test_the_page_says_why_its_slide_26_is_not_the_published_one_in_its_own_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "slides.html"
    code, text = said(capsys, "slides", "--out", page)
    assert code == 0
    found = slides(USUAL)
    time = mean([r.time_ratio for r in found.ratios if r.nodes == 20])
    free, few = (mean([getattr(o, name) for o in found.others]) for name in ("free_reading", "few_splits"))
    html = unescape(page.read_text())
    for said_there in (
        "Published: bft takes only slightly longer", f"take {time:.2f} times as long (geometric mean)",
        f"networks that take no time, voting takes {free:.2f} times as long", f"of its own, {few:.2f} times",
    ):  # fmt: skip
        assert said_there in html
        assert said_there in text


def test_a_simulation_that_breaks_a_rule_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Referee, "done", lambda referee, planned, executed: referee.note("a planted violation"))
    assert main(["simulate", "slides"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("quoreduce: ")
    assert "a planted violation" in error
    assert error.count("\n") == 1
