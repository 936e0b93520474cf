"""Errors of the environment at file calls: a sample of them all, one that has no end of its own, and what would be
noticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment
import pytest
from environment import Campaign, Ended, Trial, Wrong

TRIALS = int(os.environ.get("QUOREDUCE_ENVIRONMENT_TRIALS", "40" if os.environ.get("QUOREDUCE_NIGHTLY") else "3"))
SEED = 3
# Each of these once ended in a traceback, in the name of the job's own code, or with something left behind.
FOUND = (
    "resume:driver:close:input:0:EIO:once", "resume:driver:stat:output:80:EMFILE:forever",
    "sort-local:driver:close:output:1:ESTALE:once", "sort-inline:driver:mkdir:store:3:ENOSPC:once",
    "wordcount-inline:driver:close:store:0:EIO:forever", "wordcount-local:workers:mkdir:store:0:EIO:forever",
    "wordcount-local:workers:open:output:0:EMFILE:forever", "durable-local:driver:close:output:4:ESTALE:forever",
    "overwrite-inline:driver:read:output:3:ENOSPC:forever", "sync-inline:driver:read:cache:87:EMFILE:forever",
    "sort-inline:driver:stat:output:20:EIO:forever",
)  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: .ci/system-packages all")
    return environment.build(tmp_path_factory.mktemp("library"))


def test_errors_of_the_environment_are_masked_or_said(says: Callable[[str], None], library: Path) -> None:
    command = [sys.executable, environment.__file__, "--count", str(TRIALS), "--seed", str(SEED), "--replay", *FOUND]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL)
    verdict = next((line for line in done.stdout.splitlines() if " trials, " in line), done.stderr[-2000:])
    says(
        f"errors of the environment: {verdict}; again: python tests/campaigns/environment.py --count "
        f"{TRIALS} --seed {SEED}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{TRIALS + len(FOUND)} trials" in verdict


def test_a_part_that_can_never_be_read_ends_the_job(cli: Any, library: Path, kjv: Path, tmp_path: Path) -> None:
    """R3: each time it is made it is lost, for its check cannot read it; so it was made without end."""
    text, output = tmp_path / "text", tmp_path / "outputs" / "out"
    text.write_bytes(kjv.read_bytes()[:20_000])
    failing = {
        "LD_PRELOAD": str(library), "FAIL_PLACES": f"output={output.parent}", "FAIL_ROLE": "workers",
        "FAIL_CALL": "read",
        "FAIL_PLACE": "output", "FAIL_AT": "0", "FAIL_TOKEN": str(tmp_path / "token"), "FAIL_ERRNO": "5",
        "FAIL_FOREVER": "1",
    }  # fmt: skip
    words = ("run", "wordcount", text, output, *environment.LOCAL, "--reducers", "1", "--quiet")
    ended = cli(*words, env=failing)
    assert (tmp_path / "token").exists(), "no call failed"
    assert ended.code == 4, ended.stderr
    assert ended.stderr.startswith("quoreduce: reduce 0: cannot read back what was written")
    assert "Input/output error" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not output.parent.exists(), "nothing is left"


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """One whose commands all left the right output."""
    made = Campaign(tmp_path)
    for place in made._places.values():
        place.mkdir()
    made._right = {"wordcount": {"part-r-00000": b"right"}}
    (tmp_path / "outputs" / "out").mkdir()
    (tmp_path / "outputs" / "out" / "part-r-00000").write_bytes(b"right")
    (tmp_path / "outputs" / "out" / "_SUCCESS").touch()
    return made


ONE = Trial.parse("wordcount-inline:driver:read:input:0:EIO:once")
SCENARIO = environment.SCENARIOS[ONE.scenario]


@pytest.mark.parametrize(
    ("ended", "found"),
    [
        (Ended(None, "", ""), "does not end"),
        (Ended(1, "", "quoreduce: it fails\n"), "exit code"),
        (Ended(5, "", "quoreduce: the job's own code is not deterministic\n"), "exit code"),
        (Ended(4, "", ""), "does not say why"),
        (Ended(4, "", "Traceback (most recent call last):\n"), "a traceback"),
        (Ended(4, "", "quoreduce: it fails\n"), "the output is there"),
    ],
)
def test_it_would_see_a_command_that_does_not_end_well(ended: Ended, found: str, campaign: Campaign) -> None:
    with pytest.raises(Wrong, match=found):
        campaign._judge(ONE, SCENARIO, ended)
    assert campaign._judge(ONE, SCENARIO, Ended(0, "", "")) == "right"


def test_it_would_see_another_output_none_and_what_lies_beside_it(campaign: Campaign, tmp_path: Path) -> None:
    well, output = Ended(0, "", ""), tmp_path / "outputs" / "out"
    (tmp_path / "outputs" / ".out.lock").touch()
    with pytest.raises(Wrong, match="left beside"):
        campaign._judge(ONE, SCENARIO, well)
    (tmp_path / "outputs" / ".out.lock").unlink()
    (output / "part-r-00000").write_bytes(b"wrong")
    with pytest.raises(Wrong, match="the output is wrong"):
        campaign._judge(ONE, SCENARIO, well)
    shutil.rmtree(output)
    with pytest.raises(Wrong, match="no output"):
        campaign._judge(ONE, SCENARIO, well)


def test_a_trial_is_repeated_by_what_is_printed_of_it() -> None:
    assert Trial.parse(str(ONE)) == ONE
