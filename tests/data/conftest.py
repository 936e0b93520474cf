"""Fixtures of the tests of data/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def trail(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is forced to disk, and what things are renamed to, by file name."""
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append(f"> {Path(b).name}"), rename(a, b)))
    return seen
