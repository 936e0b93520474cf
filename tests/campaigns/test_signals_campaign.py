"""A sample of the campaign of signals; and that it would find what it looks for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import signals as campaign

TIMEOUT_S = 600
CASE = campaign.Case("local", False, (signal.SIGTERM,), 0.5, 0.0)


def test_commands_that_are_ended_at_random_moments_leave_nothing(says: Callable[[str], None]) -> None:
    """A few local cases; a failure says its seed."""
    command = [sys.executable, campaign.__file__, "--count", "4", "--on", "local"]
    command += ["--seed", "1"] if os.environ.get("CI") else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    says(f"signals: {done.stdout.splitlines()[0]}")
    assert "4 starts and kills, nothing left behind" in done.stdout


@pytest.fixture
def trial(tmp_path: Path) -> campaign.Campaign:
    trial = campaign.Campaign(tmp_path)
    trial._right = {"part-r-00000": b"right"}
    return trial


def test_it_would_see_what_is_left(trial: campaign.Campaign, tmp_path: Path) -> None:
    before = trial._state()
    trial._nothing_is_left(CASE, before, killed=False)
    for path in ("store/quoreduce-0", "outputs/.out.lock", "t/quoreduce-0/ray-1"):
        (tmp_path / path).mkdir(parents=True)
        with pytest.raises(campaign.Wrong, match="left behind"):
            trial._nothing_is_left(CASE, before, killed=False)
        (tmp_path / path).rmdir()


def test_it_would_see_words_that_are_not_true(trial: campaign.Campaign, tmp_path: Path) -> None:
    nothing = "quoreduce: terminated, nothing was published\n"
    trial._judge(CASE, 143, "", nothing, killed=False)
    for code, said, match in (
        (15, nothing, "exit 15"), (1, nothing, "exit 1"), (130, nothing, "exit 130"), (0, "", "no output"),
        (143, "quoreduce: terminated\n", "what became"), (143, "Traceback", "traceback"),
    ):  # fmt: skip
        with pytest.raises(campaign.Wrong, match=match):
            trial._judge(CASE, code, "", said, killed=False)
    out = tmp_path / "outputs" / "deep" / "out"
    out.mkdir(parents=True)
    (out / "part-r-00000").write_bytes(b"wrong")
    with pytest.raises(campaign.Wrong, match="not the right one"):
        trial._judge(CASE, 143, "", nothing, killed=True)
    (out / "part-r-00000").write_bytes(b"right")
    with pytest.raises(campaign.Wrong, match="not true"):
        trial._judge(CASE, 143, "", nothing, killed=False)
    trial._judge(CASE, 0, "digest", "", killed=False)
