"""What a campaign does about stages that hang, die, or leave something behind: they are bounded, and counted."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from runs import poll, running

from quoreduce.chaos import campaign as campaign_module
from quoreduce.chaos import stage as stage_module
from quoreduce.chaos.campaign import SETUPS_MOST, _run_stage, run_campaign
from quoreduce.chaos.clusters import Plain
from quoreduce.chaos.stage import Orders, StageRunner
from quoreduce.chaos.tally import Campaign, JobOutcome
from quoreduce.commands.chaos import command as chaos_command
from quoreduce.commands.chaos.text import summary
from quoreduce.protocol.options import Place

SAY = """
import json, os, subprocess, sys, time
def say(**what): print(json.dumps(what), flush=True)
orders = json.load(sys.stdin)
"""
READY = "say(set_up='begun')\nsay(set_up='done')\n"
BEGIN = "say(begin='local:7', job='sort', kinds=['flip'])\n"
RECORD = JobOutcome("local", 7, "sort", 1, "right", {"flip": 3}, 1.0, 3)
JOB = f"{BEGIN}say(record=json.loads({json.dumps(asdict(RECORD))!r}))\n"


def play(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """A campaign of one stage, which is this script."""
    monkeypatch.setattr(campaign_module, "_command", lambda: [sys.executable, "-c", SAY + script])
    monkeypatch.setattr(campaign_module, "STALL_S", 3.0)
    monkeypatch.setattr(campaign_module, "GONE_S", 1.0)
    found = Campaign(1, 1.0, ("flip",))
    _run_stage(Orders("local", 1, 60.0, ["flip"], str(tmp_path / "stage"), {}, {}, most=12), found, lambda text: None)
    assert not (tmp_path / "stage").exists()
    return found


def nth_time(tmp_path: Path) -> str:
    """A line of a script: ``times`` is how often it was begun, this time included."""
    count = str(tmp_path / "times")
    return f"""
times = 1 + int(open({count!r}).read() if os.path.exists({count!r}) else 0)
open({count!r}, 'w').write(str(times))
"""


def test_a_stage_that_does_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = play(f"{READY}{JOB}say(left=[])", tmp_path, monkeypatch)
    assert found.records == [RECORD]
    assert found.ok


def test_a_hang_is_bounded_and_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    script = f"{READY}{BEGIN}open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    found = play(script, tmp_path, monkeypatch)
    (record,) = found.records
    assert (record.number, record.job, record.outcome) == (7, "sort", "hang")
    assert not found.ok
    assert not running(int(pid.read_text()))


def test_a_stage_that_dies_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = play(f"{READY}{BEGIN}sys.exit('out of luck')", tmp_path, monkeypatch).records
    assert (record.number, record.job, record.outcome) == (7, "sort", "untyped")
    assert "out of luck" in record.error


def test_a_stage_that_dies_between_jobs_is_a_finding_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"{READY}{JOB}sys.exit('closing')"
    found = play(script, tmp_path, monkeypatch)
    assert [(record.number, record.outcome) for record in found.records] == [(7, "right"), (-1, "untyped")]
    assert found.setups_failed == 0


def test_a_set_up_that_fails_is_counted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = f"{nth_time(tmp_path)}say(set_up='begun')\ntimes == 1 and sys.exit('no Ray here')\n"
    found = play(f"{once}say(set_up='done')\n{JOB}", tmp_path, monkeypatch)
    assert found.records == [RECORD]
    assert (found.setups_failed, found.not_set_up) == (1, {})
    assert found.ok
    assert "1 times workers or Ray did not start" in " ".join(summary(found))


def test_a_stage_that_cannot_be_set_up_is_given_up_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = play(f"{nth_time(tmp_path)}sys.exit('no Ray here')", tmp_path, monkeypatch)
    assert (tmp_path / "times").read_text() == str(SETUPS_MOST)
    assert found.records == []
    assert (found.setups_failed, found.not_set_up) == (SETUPS_MOST, {"local": "no Ray here"})
    assert "NOT RUN TO ITS END: local, for it could not be set up: no Ray here" in summary(found)
    assert json.loads(json.dumps(found.as_dict()))["not_set_up"] == {"local": "no Ray here"}


def test_a_set_up_that_hangs_is_ended_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = f"{nth_time(tmp_path)}say(set_up='begun')\nif times == 1: time.sleep(1000)\n"
    found = play(f"{once}say(set_up='done')\n", tmp_path, monkeypatch)
    assert found.records == []
    assert (found.setups_failed, found.not_set_up) == (1, {})


def test_nodes_that_do_not_start_again_are_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage goes on with the next job; those that have run stay counted, once."""
    first = f"{JOB}say(set_up='begun')\nsys.exit('no node')"
    then = f"open({str(tmp_path / 'orders')!r}, 'w').write(json.dumps(orders))"
    indented = "".join(f"    {line}\n" for line in first.split("\n"))
    script = f"{nth_time(tmp_path)}{READY}if times == 1:\n{indented}{then}"
    found = play(script, tmp_path, monkeypatch)
    assert found.records == [RECORD]
    assert (found.setups_failed, found.not_set_up) == (1, {})
    orders = json.loads((tmp_path / "orders").read_text())
    assert orders["first"] == 8
    assert 0 < orders["seconds"] < 60


def test_nothing_is_set_up_again_for_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twelfth of twelve jobs has run."""
    last = JOB.replace("local:7", "local:11")
    found = play(f"{nth_time(tmp_path)}{READY}{last}say(set_up='begun')\nsys.exit('x')", tmp_path, monkeypatch)
    assert (found.setups_failed, (tmp_path / "times").read_text()) == (1, "1")


def test_other_stages_run_when_some_cannot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 4: nothing wrong was found, but not all was tried."""
    script = f"if orders['stage'] != 'ray': sys.exit('no Ray here')\n{READY}{JOB}"
    monkeypatch.setattr(campaign_module, "_command", lambda: [sys.executable, "-c", SAY + script])
    monkeypatch.setattr(campaign_module.jobs, "make_inputs", lambda folder: {})
    monkeypatch.setattr(campaign_module.jobs, "references", lambda inputs, folder: {})
    seen: list[Campaign] = []

    def run(*arguments: Any) -> Campaign:
        seen.append(run_campaign(*arguments))
        return seen[0]

    monkeypatch.setattr(campaign_module, "run_campaign", run)
    assert chaos_command.main(["--on", "ray", "--jobs", "20"]) == 4
    assert seen[0].records == [RECORD]
    assert set(seen[0].not_set_up) == {"rpc", "cluster"}
    assert "NOT RUN TO ITS END: rpc" in capsys.readouterr().out
    assert not Path(seen[0].folder).exists()


def test_a_stage_has_a_folder_for_the_address_of_its_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's cluster of nodes notes it in $RAY_TMPDIR/ray, else in $TMPDIR/ray, and does not make that folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    script = f"{READY}open(os.environ['RAY_TMPDIR'] + '/ray/ray_current_cluster', 'w')"
    found = play(script, tmp_path, monkeypatch)
    assert (found.records, found.setups_failed) == ([], 0)


class Broken(Plain):
    """A ground that cannot be set up, or not again."""

    def __init__(self, place: Place, first: bool) -> None:
        super().__init__(place)
        self._first = first

    def open(self) -> Any:
        if self._first:
            raise RuntimeError("no Ray here")
        return super().open()

    def mend(self) -> Any:
        raise RuntimeError("no node")


@pytest.mark.parametrize("first", [True, False])
def test_a_stage_says_when_it_sets_up(first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is raised then is not taken for what a job did."""
    inputs = stage_module.jobs.make_inputs(tmp_path)
    place = Place("inline", 5, "worker", store=str(tmp_path / "store"))
    monkeypatch.setattr(stage_module, "ground", lambda *which: Broken(place, first))
    monkeypatch.setattr(stage_module, "BASELINES", 0)
    monkeypatch.setattr(stage_module, "_mount", lambda folder: False)
    right: dict[str, dict[str, str]] = {name: {} for name in inputs}
    orders = Orders("local", 1, 0.0, ["flip"], str(tmp_path / "stage"), inputs, right, most=2, first=1)
    out = io.StringIO()
    with pytest.raises(RuntimeError, match="no Ray here" if first else "no node"):
        StageRunner(orders, out).run()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["begin"] for line in lines if "begin" in line] == ([] if first else ["local:1"])
    assert lines[-1] == {"set_up": "begun"}


def test_processes_that_are_left_behind_are_counted_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    script = f"""
{READY}
wait = [sys.executable, "-c", "import time; time.sleep(1000)"]
left = subprocess.Popen(wait, start_new_session=True, stdout=subprocess.DEVNULL)
open({str(pid)!r}, 'w').write(str(left.pid))
say(record=json.loads({json.dumps(asdict(RECORD))!r}))
"""
    found = play(script, tmp_path, monkeypatch)
    assert found.orphans == 1
    assert not found.ok
    poll(lambda: not running(int(pid.read_text())), "its end")


def test_files_that_are_left_behind_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = play(f"{READY}say(left=['store/quoreduce-x/w0/segment'], note='x')", tmp_path, monkeypatch)
    assert found.left == 1
    assert not found.ok
