"""Guests of ours for tests: folders in memory that are scrubbed afterwards, and nothing that goes on running."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from quoreduce.vm.hypervisor import DEFAULT_ROOT, Guest
from quoreduce.vm.processes import living_in
from quoreduce.vm.scrub import scrub

READY = "GUEST-READY"
BOOT_S = 120.0


def require_programs() -> None:
    for program in ("qemu-system-x86_64", "swtpm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install qemu-system-x86 swtpm)")


@contextlib.contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A path in memory at which nothing is; scrubbed afterwards, which ends what still runs there.

    Not ``quoreduce-*``: a session of jobs that starts sweeps such folders.
    """
    path = DEFAULT_ROOT / f"vm-test-{secrets.token_hex(6)}"
    try:
        yield path
    finally:
        left = living_in(path)
        scrub(path)
        assert not left, f"left running: {left}"


def ask(guest: Guest, line: str, pattern: str) -> str:
    guest.serial.send(line)
    return guest.serial.wait(pattern)
