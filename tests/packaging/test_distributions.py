"""What is published: the wheel, the sdist, and what they say about themselves."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import quoreduce

ROOT = Path(__file__).parents[2]
PACKAGES = ("quoreduce", "quoreduce_kernels", "quoreduce_gridmix")


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_one_version_is_named_everywhere(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == project["version"] == quoreduce.__version__
    newest = re.search(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == quoreduce.__version__


def test_the_wheel_has_each_module_and_says_that_it_is_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in found} == set(PACKAGES)
    roots = [ROOT / name for name in ("engine", "kernels", "gridmix")]
    assert found >= {str(path.relative_to(root)) for root in roots for path in root.rglob("*.py")}
    assert found >= {f"{package}/py.typed" for package in PACKAGES}


def test_the_sdist_has_what_a_contributor_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert found >= {
        "docs/design/benchmarks.md",
        "docs/examples/python_job.py",
        "tests/conftest.py",
        "tests/data/kjv.txt",
    }
    assert found >= {
        "Makefile",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
        "README.md",
    }


def test_both_pass_the_checks_of_a_release(wheel: Path, sdist: Path) -> None:
    for check in (["twine", "check", "--strict", str(wheel), str(sdist)], ["check_wheel_contents", str(wheel)]):
        done = subprocess.run([sys.executable, "-m", *check], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_links_of_the_readme_work_where_the_repository_is_not(metadata: Message) -> None:
    home = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))["Source"]
    text = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert any(link.startswith(f"{home}/blob/v{quoreduce.__version__}/docs/") for link in links)
    assert [link for link in links if not re.match("https?://|#", link)] == []


def test_the_module_is_the_command(installed: Path) -> None:
    done = subprocess.run([installed, "-m", "quoreduce", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"quoreduce {quoreduce.__version__}\n"), done.stderr


def test_what_is_spawned_does_not_run_the_command_again() -> None:
    """Processes that multiprocessing spawns import the main module by another name."""
    code = "import runpy; runpy.run_module('quoreduce.__main__', run_name='__mp_main__'); print('imported')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "imported\n"
