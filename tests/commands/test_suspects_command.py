"""``quoreduce suspects``, and how a job names those that it suspects."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
JOB = ("run", "wordcount", "--on", "local", "--domain", "worker", "--split-mb", "0.05", "--quiet")
BAD = ("--fault", "bad:worker1:60%")


@pytest.fixture
def text(kjv: Path, tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(kjv.read_bytes()[:1_500_000])
    return path


def state() -> Path:
    return Path(os.environ["QUOREDUCE_STATE"])


def test_a_bad_core_is_named_remembered_listed_and_cleared(cli: Cli, text: Path, tmp_path: Path) -> None:
    done = cli(*JOB, "--workers", 3, *BAD, "--suspects", "--json", text, tmp_path / "out")
    assert done.code == 0, done.stderr
    suspects = json.loads(done.stdout)["suspects"]
    assert list(suspects) == ["worker1"]
    assert suspects["worker1"]["why"] == "test"
    assert suspects["worker1"]["quarantined"] is True
    assert suspects["worker1"]["wrong"].keys() >= {"words", "blake3"}

    listed = json.loads(cli("suspects", "--json").stdout)
    places = [place for place, one in listed["places"].items() if one["state"] == "quarantined"]
    assert len(places) == 1
    assert "quarantined" in cli("suspects").stdout

    again = cli(*JOB, "--workers", 3, text, tmp_path / "again")
    assert "suspect worker1: quarantined by an earlier job" in again.stdout
    without = cli(*JOB, "--workers", 3, "--no-suspects", text, tmp_path / "without")
    assert "suspect" not in without.stdout

    assert cli("suspects", "--clear", places[0]).code == 0
    assert places[0] not in json.loads(cli("suspects", "--json").stdout)["places"]
    wrong = cli("suspects", "--clear", places[0])
    assert (wrong.code, len(wrong.stderr.splitlines())) == (2, 1)


def test_faults_on_demand_are_held_against_nobody(cli: Cli, text: Path, tmp_path: Path) -> None:
    done = cli(*JOB, "--workers", 3, *BAD, text, tmp_path / "out")
    assert "suspect worker1: lost" in done.stdout
    assert not state().exists()


def test_with_f_plus_1_domains_the_broken_one_is_named_in_the_error(cli: Cli, text: Path, tmp_path: Path) -> None:
    done = cli(*JOB, "--workers", 2, "--fault", "stuck:worker1", text, tmp_path / "out")
    assert done.code == 4
    assert "Suspect: worker1: " in done.stderr
    assert "failed 1 of 1 tests" in done.stderr
    assert "worker0: " not in done.stderr


def test_cores_are_tested_and_one_that_fails_ends_in_exit_code_4(cli: Cli) -> None:
    done = cli("suspects", "--test", "--json")
    assert done.code == 0
    found = json.loads(done.stdout)
    assert all(one["passed"] for one in found["tests"].values())
    assert not state().exists(), "a passed test of a core that is not in the record is nothing to remember"

    failed = cli("suspects", "--test", "--fault", "bad:0:5%", "--json")
    assert failed.code == 4
    assert [one["passed"] for one in json.loads(failed.stdout)["tests"].values()].count(False) == 1
    assert not state().exists(), "a fault on demand is held against nobody"


@pytest.mark.nightly  # tests/driver has the law, and the other tests the command
def test_a_passed_test_lets_a_core_out_on_probation(cli: Cli) -> None:
    place = next(iter(json.loads(cli("suspects", "--test", "--json").stdout)["tests"]))
    state().mkdir()
    record = {"format": "quoreduce-suspects-1", "places": {place: {"state": "quarantined", "until": 1e12, "times": 1}}}
    (state() / "suspects.json").write_text(json.dumps(record))
    assert cli("suspects", "--test").code == 0
    assert json.loads((state() / "suspects.json").read_text())["places"][place]["state"] == "probation"


@pytest.mark.parametrize(
    "arguments", [("--test", "--clear", "all"), ("--fault", "bad:0:5%"), ("--test", "--fault", "nonsense")]
)
def test_wrong_usage_is_one_clear_line(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli("suspects", *arguments)
    assert done.code == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_record_that_cannot_be_read_is_an_error_here_and_a_warning_in_a_job(
    cli: Cli, text: Path, tmp_path: Path
) -> None:
    state().mkdir()
    (state() / "suspects.json").write_text("{")
    assert cli("suspects").code == 2
    done = cli(*JOB, "--workers", 2, text, tmp_path / "out")
    assert done.code == 0
    assert "is no record of suspects" in done.stderr
    assert "suspects.json.unreadable" in cli("suspects", "--clear", "all").stdout
    assert cli("suspects").stdout == "nobody is suspected\n"
