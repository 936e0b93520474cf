"""What a campaign does about stages that hang, die, or leave something behind: they are bounded, and counted."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from runs import poll, running

from quoreduce.chaos import campaign as campaign_module
from quoreduce.chaos.campaign import _run_stage
from quoreduce.chaos.stage import Orders
from quoreduce.chaos.tally import Campaign, Record
from quoreduce.errors import HostError

SAY = """
import json, os, subprocess, sys, time
def say(**what): print(json.dumps(what), flush=True)
orders = json.load(sys.stdin)
"""
BEGIN = "say(begin='local:7', job='sort', kinds=['flip'])\n"
RECORD = Record("local", 7, "sort", 1, "right", {"flip": 3}, 1.0, 3)


def play(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """A campaign of one stage, which is this script."""
    monkeypatch.setattr(campaign_module, "_command", lambda: [sys.executable, "-c", SAY + script])
    monkeypatch.setattr(campaign_module, "STALL_S", 3.0)
    monkeypatch.setattr(campaign_module, "GONE_S", 1.0)
    found = Campaign(1, 1.0, ("flip",))
    _run_stage(Orders("local", 1, 1.0, ["flip"], str(tmp_path), {}, {}), found, lambda text: None)
    return found


def test_a_stage_that_does_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = play(f"{BEGIN}say(record=json.loads({json.dumps(asdict(RECORD))!r}))\nsay(left=[])", tmp_path, monkeypatch)
    assert found.records == [RECORD]
    assert found.ok


def test_a_hang_is_bounded_and_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    found = play(f"{BEGIN}open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)", tmp_path, monkeypatch)
    (record,) = found.records
    assert (record.number, record.job, record.outcome) == (7, "sort", "hang")
    assert not found.ok
    assert not running(int(pid.read_text()))


def test_a_stage_that_dies_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = play(f"{BEGIN}sys.exit('out of luck')", tmp_path, monkeypatch).records
    assert record.outcome == "untyped"
    assert "out of luck" in record.error


def test_a_stage_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="stage local could not start: no Ray here"):
        play("sys.exit('no Ray here')", tmp_path, monkeypatch)


def test_processes_that_are_left_behind_are_counted_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    script = f"""
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
    found = play("say(left=['store/quoreduce-x/w0/segment'], note='x')", tmp_path, monkeypatch)
    assert found.left == 1
    assert not found.ok
