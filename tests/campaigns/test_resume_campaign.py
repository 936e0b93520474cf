"""A sample of the campaign of kills, a tenth of it with --nightly; and that it would find what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quoreduce.data.journal import Begun, Decided, Launched

sys.path.insert(0, str(Path(__file__).parent))

import resume as campaign

TIMEOUT_S = 900
KILLS = 20 if os.environ.get("QUOREDUCE_NIGHTLY") else 4
DECIDED = Decided("map", 3, 0, ("a", "b"), b"d", ())


def test_killed_at_random_moments_jobs_are_resumed() -> None:
    """A failure says its seed."""
    command = [sys.executable, campaign.__file__, "--kills", str(KILLS)]
    command += ["--seed", "1"] if os.environ.get("CI") else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{KILLS} kills " in done.stdout


def test_it_would_see_a_task_executed_again() -> None:
    before, again = [Begun(0), Launched("map", 3, 0), DECIDED, Launched("map", 4, 1)], Launched("map", 3, 10**9)
    assert campaign.agreed_again([*before, Begun(1), Launched("map", 4, 10**9)]) == []
    assert campaign.agreed_again([*before, Begun(1), again]) == [("map", 3)]
    assert campaign.agreed_again([*before, Begun(1), Begun(2), again]) == [("map", 3)]


def test_it_would_see_a_process_that_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # only now its command line is there for certain
    try:
        assert [line for line in campaign.processes(str(tmp_path)) if line.startswith(f"{process.pid}:")]
    finally:
        process.communicate()
    assert list(campaign.processes(str(tmp_path))) == []


def test_processes_are_waited_for_and_named_if_they_do_not_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        (left,) = campaign.left_after(lambda: campaign.processes(str(tmp_path)), 0.0)
        assert left.startswith(f"{process.pid}:")
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert campaign.left_after(lambda: campaign.processes(str(tmp_path)), TIMEOUT_S) == []
    finally:
        process.kill()
        process.communicate()


def test_it_would_see_another_output_and_what_is_left_beside_it(tmp_path: Path) -> None:
    trial = campaign.Campaign(tmp_path, 1)
    out = tmp_path / "outputs" / "out"
    out.mkdir()
    (out / "part-r-00000").write_bytes(b"right")
    (out / "_SUCCESS").write_text('{"digest": "d"}')
    reference = campaign.Reference({"part-r-00000": b"right"}, "d", {}, 1.0, 1)
    complete = campaign.Ended(False, 2, "", "quoreduce: nothing to resume: out is complete\n", 1.0)
    none = campaign.Counter[str]()
    with pytest.raises(campaign.Wrong, match="exit 2"):
        trial._judge(campaign.Ended(False, 2, "", "quoreduce: something else\n", 1.0), reference, none)
    for parts, digest in (({"part-r-00000": b"other"}, "d"), (reference.parts, "e")):
        other = campaign.Reference(parts, digest, {}, 1.0, 1)
        with pytest.raises(campaign.Wrong, match="is another"):
            trial._judge(complete, other, none)
    (tmp_path / "outputs" / ".out.lock").touch()
    with pytest.raises(campaign.Wrong, match="left beside"):
        trial._judge(complete, reference, none)
    (tmp_path / "outputs" / ".out.lock").unlink()
    trial._judge(complete, reference, none)
    assert trial.tally.jobs == 1
