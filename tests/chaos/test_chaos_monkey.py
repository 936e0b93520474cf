"""What strikes from outside: only what has really happened is counted, and everything is undone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import poll, running

from quoreduce.chaos.monkey import FAKETIME, Monkey, flip_bit, marked, skewed_environment, sweep_clocks, wait_until_gone
from quoreduce.chaos.plan import JobPlan, Strike
from quoreduce.driver.figures import Progress
from quoreduce.protocol.port import WorkerInfo


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits."""
    environment = {**os.environ, "CHAOS_TEST": "victim"}
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], env=environment)
    yield process
    process.kill()
    process.wait()


def monkey(work: Path, *strikes: Strike, pid: int = 0) -> Monkey:
    plan = JobPlan("local", 0, "sort", 1, (), (), strikes, 20.0, 0)
    return Monkey(plan, lambda: [WorkerInfo("w0.0", "worker0", "local", None, pid)] if pid else [], work, False, {})


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_strike_waits_for_its_time(tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    struck = monkey(tmp_path, Strike("kill", 0.5, 0), pid=victim.pid)
    struck.before()
    struck(Progress(tasks=10, executions=9))
    assert running(victim.pid)
    struck(Progress(tasks=10, executions=10))
    assert victim.wait(10) == -signal.SIGKILL
    assert struck.finish() == {"kill": 1}


def test_what_finds_no_victim_is_not_counted_and_tried_again(tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    struck = monkey(tmp_path, Strike("kill", 0.0, 0), Strike("rot", 0.0, 1))
    struck.before()
    assert struck.finish() == {}
    segment = tmp_path / "store" / "quoreduce-0" / "session-x" / "w0" / "segment-1-1"
    segment.parent.mkdir(parents=True)
    segment.write_bytes(b"\1" * 100)
    struck(Progress(tasks=1))
    assert struck.finish() == {"rot": 1}
    assert sum(byte != 1 for byte in segment.read_bytes()) == 1


def test_a_process_that_is_dead_already_cannot_be_killed(tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    victim.kill()
    poll(lambda: not running(victim.pid), "its death")
    struck = monkey(tmp_path, Strike("kill", 0.0, 0), Strike("freeze", 0.0, 0), pid=victim.pid)
    struck.before()
    assert struck.happened["kill"] == 0


def test_frozen_processes_run_again_when_the_job_is_over(tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    struck = monkey(tmp_path, Strike("freeze", 0.0, 3), pid=victim.pid)
    struck.before()
    poll(lambda: state(victim.pid) == "T", "its being stopped")
    assert struck.finish() == {"freeze": 1}
    poll(lambda: state(victim.pid) != "T", "its going on")


def test_slow_processes_are_left_running(tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    struck = monkey(tmp_path, Strike("slow", 0.0, 0), pid=victim.pid)
    struck.before()
    poll(lambda: state(victim.pid) == "T", "its being stopped")
    struck.finish()
    poll(lambda: state(victim.pid) == "S", "its going on")


def test_parts_are_struck_before_they_are_published_only(tmp_path: Path) -> None:
    staging = tmp_path / ".out.abc.staging"
    for name in ("attempts", "output"):
        (staging / name).mkdir(parents=True)
        (staging / name / "part-r-00000.1").write_bytes(b"abc" * 50)
    struck = monkey(tmp_path, Strike("part", 0.0, 5))
    struck.before()
    assert struck.finish() == {"part": 1}
    assert (staging / "attempts" / "part-r-00000.1").read_bytes() != b"abc" * 50
    assert (staging / "output" / "part-r-00000.1").read_bytes() == b"abc" * 50


def test_the_engines_own_faults_are_counted_with_the_others(tmp_path: Path) -> None:
    struck = monkey(tmp_path)
    struck(Progress(tasks=1, struck={"flip": 3, "late": 0}))
    assert struck.finish() == {"flip": 3}


def test_one_bit_flips(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    assert flip_bit(path, random.Random(1))
    assert sum(byte.bit_count() for byte in path.read_bytes()) == 1
    assert not flip_bit(tmp_path / "missing", random.Random(1))
    (tmp_path / "empty").touch()
    assert not flip_bit(tmp_path / "empty", random.Random(1))


def test_processes_are_found_by_their_mark_and_killed_when_they_stay(victim: subprocess.Popen[bytes]) -> None:
    poll(lambda: list(marked("CHAOS_TEST=victim")) == [victim.pid], "its start")
    assert list(marked("CHAOS_TEST=nobody")) == []
    assert wait_until_gone("CHAOS_TEST=victim", 0.0) == [victim.pid]
    assert victim.wait(10) == -signal.SIGKILL
    assert wait_until_gone("CHAOS_TEST=victim", 0.0) == []


@pytest.mark.parametrize("pick", range(4))
def test_a_skewed_clock_is_hours_or_years_off(pick: int) -> None:
    if FAKETIME is None:
        pytest.skip("no libfaketime here: .ci/system-packages")
    said = [
        subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"], env=env, capture_output=True, check=True
        ).stdout
        for env in ({**os.environ, **skewed_environment(pick)}, os.environ)
    ]
    assert abs(float(said[0]) - float(said[1])) > 3000


def test_a_killed_process_with_a_clock_of_its_own_leaves_nothing_in_shared_memory(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """libfaketime names its shared memory by the process; what is older, or of who lives, or of others, stays."""
    kinds = ("faketime_shm", "sem.faketime_sem")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(30)
    stays = {"faketime_shm_of-others", "psm_1", *(f"{kind}_{victim.pid}" for kind in kinds)}
    for name in (*stays, *(f"{kind}_{dead.pid}" for kind in kinds)):
        (tmp_path / name).touch()
    now = (tmp_path / "psm_1").stat().st_mtime
    assert sweep_clocks(now + 60, tmp_path) == 0
    assert sweep_clocks(now - 60, tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == stays
