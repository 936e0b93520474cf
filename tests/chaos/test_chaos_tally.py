"""The table of faults and outcomes: what is counted where, what fails a campaign, and what is only said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quoreduce.chaos.plan import COLLUSION, KINDS
from quoreduce.chaos.tally import Campaign, JobOutcome, Row
from quoreduce.commands.chaos.command import BEGIN, END, marked, plan, show
from quoreduce.commands.chaos.page import page
from quoreduce.commands.chaos.text import COLUMNS, summary


def record(outcome: str = "right", wall_s: float = 1.0, extra: int = 0, number: int = 0, **faults: int) -> JobOutcome:
    return JobOutcome("local", number, "sort", 1, outcome, faults, wall_s, extra, rss_mb=50.0)


def campaign(*records: JobOutcome) -> Campaign:
    return Campaign(7, 1.0, tuple(KINDS), list(records), wall_s=60.0)


def row(found: Campaign, kind: str) -> Row:
    return next(row for row in found.rows() if row.kind == kind)


MIXED = campaign(
    record("warm", 9.0), record(wall_s=2.0), record(wall_s=4.0),
    record(wall_s=6.0, extra=3, flip=4), record(wall_s=12.0, extra=1, flip=2),
    record(wall_s=90.0, extra=9, flip=1, kill=2), record("stopped", number=17, fill=1, kill=1),
    record("rotten", part=1),
    record("wrong", number=3, **{COLLUSION: 20}), record("stopped", number=4, **{COLLUSION: 5}),
)  # fmt: skip


def test_a_row_counts_its_faults_and_the_jobs_they_hit() -> None:
    flip = row(MIXED, "flip")
    assert (flip.injected, flip.jobs, flip.masked, flip.stopped, flip.failed) == (7, 3, 3, 0, 0)
    kill = row(MIXED, "kill")
    assert (kill.injected, kill.jobs, kill.masked, kill.stopped, kill.names) == (3, 2, 1, 1, ("local:17",))
    assert row(MIXED, "part").rotten == 1


def test_executions_and_time_are_those_of_jobs_that_nothing_else_has_hit() -> None:
    flip = row(MIXED, "flip")
    assert flip.extra == pytest.approx(4 / 6)
    assert flip.ratio == pytest.approx((6 / 3 + 12 / 3) / 2)
    assert row(MIXED, "kill").extra is None
    assert row(MIXED, "kill").ratio is None


def test_what_is_in_the_air_all_the_time_does_not_count_as_another_kind() -> None:
    found = campaign(JobOutcome("cluster", 0, "sort", 1, "right", {"starve": 5, "node": 1}, 3.0, 2))
    assert row(found, "node").extra == 2


def test_time_on_a_ray_that_loses_rpcs_is_compared_with_one_that_does_not() -> None:
    quiet = JobOutcome("ray", -1, "sort", 1, "right", {}, 2.0)
    found = campaign(quiet, JobOutcome("rpc", 0, "sort", 1, "right", {"rpc": 5}, 10.0))
    assert row(found, "rpc").ratio == pytest.approx(5)


def test_colluders_are_outside_the_model_and_fail_nothing() -> None:
    outside = MIXED.collusion()
    assert outside is not None
    assert (outside.injected, outside.jobs, outside.failed, outside.stopped) == (25, 2, 1, 1)
    assert MIXED.ok
    assert MIXED.count("wrong") == 0
    assert MIXED.struck == 4 + 2 + 3 + 2 + 1
    assert COLLUSION not in {row.kind for row in MIXED.rows()}


@pytest.mark.parametrize("outcome", ["wrong", "partial", "untyped", "hang"])
def test_one_bad_end_fails_a_campaign(outcome: str) -> None:
    assert not campaign(record(), record(outcome, flip=1)).ok
    assert not campaign(record(outcome)).ok, "without a fault too"


def test_what_is_left_behind_fails_a_campaign() -> None:
    for name in ("orphans", "files_left"):
        found = campaign(record(flip=1))
        assert found.ok
        setattr(found, name, 1)
        assert not found.ok
    found = campaign(record(flip=1))
    found.records[0].left = 1
    assert not found.ok


@pytest.mark.parametrize(
    ("sizes", "flat"), [([50.0] * 40, True), ([30.0] * 10 + [60.0] * 30, True), ([50.0 + i for i in range(80)], False)]
)
def test_memory_is_flat_if_it_only_warms_up(sizes: list[float], flat: bool) -> None:
    records = [record(flip=1) for _ in sizes]
    for one, size in zip(records, sizes, strict=True):
        one.rss_mb = size
    (memory,) = campaign(*records).memory()
    assert memory.flat == flat
    assert (memory.first, memory.last, memory.peak) == (sizes[0], sizes[-1], max(sizes))


def test_all_of_it_is_json() -> None:
    said = json.loads(json.dumps(MIXED.as_dict()))
    assert said["faults"] == 12
    assert said["outside_the_model"]["failed"] == 1
    assert len(said["records"]) == len(MIXED.records)


def test_the_bound_is_said_to_be_broken_outside_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    show(MIXED)
    text = capsys.readouterr().out
    assert "outside the model" in text
    assert (
        "OUTSIDE THE MODEL: f+1 domains give the same wrong answers at f=1: 1 of 2 outputs wrong, 1 jobs stopped"
        in text
    )
    assert "0 wrong outputs, 0 partial outputs" in text
    assert "7 jobs, 2 of them without faults, 12 faults of 4 kinds, seed 7, 1.0 minutes" in text


def test_kinds_that_could_not_be_had_are_named() -> None:
    found = campaign(record(flip=1))
    found.not_run["fill"] = "NOT RUN: fill, for it needs root"
    assert "NOT RUN: fill, for it needs root" in summary(found)


def test_markdown_takes_the_place_of_an_earlier_table() -> None:
    first = marked("# Title\n\ntext\n", MIXED)
    assert first.startswith("# Title\n\ntext\n\n" + BEGIN)
    again = marked(first.replace(END, f"{END}\n\nafterwards"), campaign(record(late=3)))
    assert again.count(BEGIN) == again.count(END) == 1
    assert again.startswith("# Title\n\ntext\n")
    assert again.endswith("\n\nafterwards\n")
    assert "| late | 3 | 1 |" in again
    assert "| flip |" not in again
    table = [line for line in again.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {len(COLUMNS) + 1}


def test_the_page_shows_every_row_and_the_verdict() -> None:
    good, bad = page(MIXED), page(campaign(record("wrong", flip=1)))
    assert "nothing wrong, nothing left behind" in good
    assert all(f'<td class="text">{row.kind}</td>' in good for row in MIXED.rows())
    assert "collusion (outside the model)" in good
    assert "FAILED" in bad
    assert "src=" not in good
    assert "href=" not in good


def test_a_plan_can_be_read_before_it_is_run() -> None:
    lines = plan(1, tuple(KINDS), "local", 5).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("local:0 ")
    assert plan(1, tuple(KINDS), "ray", 5).count("\n") == 14


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--minutes", "0"), "use a number of minutes, more than 0"),
        (("--faults", "earthquake"), "--faults: there is no 'earthquake': use flip, "),
        (("--job", "moon:1"), "STAGE:NUMBER"),
        (("--jobs", "0"), "use a whole number of jobs from 1"),
        (("--json", "no/such/folder/file"), "there is no such folder"),
    ],
)
def test_mistakes_are_one_clear_line(
    cli: Callable[..., object], arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    ended = cli("chaos", *arguments, cwd=tmp_path)
    assert ended.code == 2  # type: ignore[attr-defined]
    assert says in ended.stderr  # type: ignore[attr-defined]
    assert ended.stderr.count("\n") == 1  # type: ignore[attr-defined]
