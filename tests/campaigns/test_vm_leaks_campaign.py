"""A sample of the campaign of leaks; and that it would see them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from vm_leaks import Campaign, Figures, Wrong, copies_in, figures, judge, table

WAS = Figures(1, 0, 10, 4, 50.0)


@pytest.mark.nightly
@pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("qemu-system-x86_64", "swtpm", "swtpm_setup", "busybox")),
    reason="needs qemu-system-x86, swtpm, swtpm-tools, busybox-static",
)
def test_servers_are_after_operations_as_they_were_before(tmp_path: Path, says: Callable[[str], None]) -> None:
    campaign = Campaign(tmp_path)
    try:
        campaign.launches(1)
        before = campaign.look()
        campaign.launches(1)
        after, files = campaign.look(before), campaign.files()
    finally:
        campaign.close()
    says("VM leaks: " + " | ".join(table(before, after).splitlines()))
    judge(before, after, files, campaign.copies)


@pytest.mark.parametrize(
    ("now", "files", "copies", "match"),
    [
        (dataclasses.replace(WAS, ended=1, children=2), [], 0, "other processes"),
        (dataclasses.replace(WAS, files=11), [], 0, "open files"),
        (dataclasses.replace(WAS, threads=5), [], 0, "threads"),
        (dataclasses.replace(WAS, memory_mb=90.0), [], 0, "more memory"),
        (WAS, ["ram.bin"], 0, "files are left"),
        (WAS, [], 1, "pieces of the image"),
    ],
)
def test_it_would_see_what_stays(now: Figures, files: list[str], copies: int, match: str) -> None:
    judge({"s1": WAS}, {"s1": WAS}, [], 0)
    with pytest.raises(Wrong, match=match):
        judge({"s1": WAS}, {"s1": now}, files, copies)


def test_it_finds_what_is_in_memory_and_programs_that_have_ended() -> None:
    piece = os.urandom(48)
    assert copies_in(os.getpid(), [piece, os.urandom(48)]) >= 1
    before = figures(os.getpid()).ended
    with subprocess.Popen(["true"]) as ended:
        while Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert figures(os.getpid()).ended == before + 1
    assert figures(os.getpid()).ended == before
