"""`make lint` sees an import across the wall between driver and worker. (That there is none is what `make lint` itself
says.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALL = "Driver and worker are on two sides of the wire: neither imports the other"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of our packages, with the contracts beside it."""
    for package in ("engine/quoreduce", "kernels/quoreduce_kernels", "gridmix/quoreduce_gridmix"):
        shutil.copytree(ROOT / package, tmp_path / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache"], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("module", "imported"), [
    ("driver/gate.py", "quoreduce.worker.attester"),
    ("worker/inspector.py", "quoreduce.driver.diagnosis"),
])  # fmt: skip
def test_an_import_across_the_wall_breaks_the_contract(copy: Path, module: str, imported: str) -> None:
    with open(copy / "quoreduce" / module, "a") as file:
        file.write(f"\n\ndef planted() -> None:\n    import {imported}\n")
    done = lint(copy)
    planted = f"quoreduce.{module.removesuffix('.py').replace('/', '.')} -> {imported}"
    assert done.returncode == 1
    assert f"{WALL} BROKEN" in done.stdout
    assert planted in done.stdout
