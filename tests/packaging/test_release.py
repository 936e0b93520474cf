"""``make release`` builds, checks and tags, and refuses what is not ready."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RELEASE = Path(__file__).parents[2] / ".ci" / "release"
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tiny"
version = "1.2.3"
description = "A package"
readme = "README.md"
requires-python = ">=3.11"
"""


def git(folder: Path, *arguments: str) -> str:
    person = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *person, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project that is ready to be released."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "somebody@example.org")
    package = tmp_path / "tiny"
    package.mkdir()
    (package / "__init__.py").write_text('"""A package."""\n')
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "README.md").write_text("# A package\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-01-02)\n")
    (tmp_path / ".gitignore").write_text("dist/\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "Begin")
    return tmp_path


def release(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RELEASE, sys.executable], cwd=folder, capture_output=True, text=True)


def test_a_release_is_built_and_tagged_and_made_once_only(project: Path) -> None:
    done = release(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (project / "dist").iterdir()) == [
        "tiny-1.2.3-py3-none-any.whl",
        "tiny-1.2.3.tar.gz",
    ]
    assert git(project, "tag", "--points-at", "HEAD") == "v1.2.3\n"
    again = release(project)
    assert (again.returncode, again.stderr) == (
        1,
        "no release: the tag v1.2.3 exists: raise the version in pyproject.toml\n",
    )


@pytest.mark.parametrize(("name", "text", "commit", "reason"), [
    ("README.md", "# Changed\n", False, "there are changes that are not committed"),
    ("CHANGELOG.md", "# Changelog\n\n## 1.2.3 (unreleased)\n", True,
     "CHANGELOG.md has no heading '## 1.2.3 (YYYY-MM-DD)'"),
])  # fmt: skip
def test_what_is_not_ready_is_not_tagged(project: Path, name: str, text: str, commit: bool, reason: str) -> None:
    (project / name).write_text(text)
    if commit:
        git(project, "commit", "--quiet", "--all", "--message", "Change")
    done = release(project)
    assert (done.returncode, done.stderr) == (1, f"no release: {reason}\n")
    assert git(project, "tag") == ""


def test_what_fails_a_check_is_not_tagged(project: Path) -> None:
    (project / "tiny" / "__init__.py").write_text("")
    (project / "README.md").unlink()
    (project / "pyproject.toml").write_text(PYPROJECT.replace('readme = "README.md"\n', ""))
    git(project, "commit", "--quiet", "--all", "--message", "Take the description away")
    assert release(project).returncode != 0
    assert git(project, "tag") == ""
