"""A sample of the campaign of damaged kernels; and that it would find what it looks for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_cache as campaign

TIMEOUT_S = 600


def test_damaged_kernels_spoil_no_output(says: Callable[[str], None]) -> None:
    """40 files in 5 trials that do not compile, which tests/runtime/test_kernel_cache.py does; a failure says its
    seed.
    """
    first = (
        1 if os.environ.get("CI") else random.randrange(1 << 30) * campaign.CHECKED_EVERY * campaign.COMPILED_EVERY + 1
    )
    command = [sys.executable, campaign.__file__, "--count", "40", "--seed", str(first)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 wrong outputs, 0 hangs\n" in done.stdout
    says(f"kernel cache: {done.stdout.splitlines()[1]} (seed {first})")


def judged(tmp_path: Path, output: bytes, said: str, name: str, refused: str) -> None:
    trial = campaign.Campaign(tmp_path)
    trial._reference = {"out-sort/part-0": b"right"}
    (tmp_path / "out-sort").mkdir()
    (tmp_path / "out-sort" / "part-0").write_bytes(output)
    (tmp_path / "cache").mkdir(mode=0o700)
    trial._copy = tmp_path / "cache"
    (tmp_path / "refused").write_text(refused)
    trial._judge(said, {name}, checked=False, noted=True)


SAID = f"quoreduce: words.nbc {campaign.FOUND}; process 1 compiles its own\n"


def test_it_would_see_a_wrong_output_a_traceback_and_a_damaged_kernel_that_is_loaded(tmp_path: Path) -> None:
    folders = iter(tmp_path / f"{i}" for i in range(9))

    def judge(output: bytes, said: str, name: str = "words.nbc", refused: str = "words.nbc\n") -> None:
        folder = next(folders)
        folder.mkdir()
        judged(folder, output, said, name, refused)

    judge(b"right", SAID)
    judge(b"right", "", campaign.cache.MANIFEST)
    for output, said, error in (
        (b"wrong", SAID, "the output is another"),
        (b"right", f"Traceback (most recent call last):\n{SAID}", "it said"),
        (b"right", "", "one was loaded"),
    ):
        with pytest.raises(campaign.Wrong, match=error):
            judge(output, said)
    with pytest.raises(campaign.Wrong, match=r"loaded: \{'words.nbc'\}"):
        judge(b"right", SAID, refused="another.nbc\n")


def test_it_would_see_a_hang_and_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "TRIAL_MAX_S", 0.1)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        __import__("signal").pause()
    os.setpgid(child, child)
    assert campaign._ended(child) is None
    child = os.fork()
    if child == 0:
        os._exit(3)
    monkeypatch.setattr(campaign, "TRIAL_MAX_S", 60)
    assert os.waitstatus_to_exitcode(campaign._ended(child) or 0) == 3


@pytest.mark.parametrize("kind", campaign.KINDS)
def test_damage_is_never_none(kind: str) -> None:
    rng = random.Random(1)
    for _ in range(50):
        raw = bytes(600)
        assert campaign.damage(raw, kind, rng) != raw
