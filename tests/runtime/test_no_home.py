"""Users without a home, or with one that cannot be written: caches and state go to a folder of theirs, and nothing to
``~``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from quoreduce import machine
from quoreduce.driver.suspects import book
from quoreduce.errors import HostError
from quoreduce.protocol.compile import ensure_kernels
from quoreduce.protocol.port import kernel_cache, kernel_folder
from quoreduce.scratch import temporary_folder
from quoreduce.trust.node import state_folder

HIDDEN = (
    "HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "QUOREDUCE_CACHE", "QUOREDUCE_STATE", "QUOREDUCE_ATTEST",
    "QUOREDUCE_KERNELS",
)  # fmt: skip


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No home, and no folder of ours named; the temporary directory."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine.pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_home_folders_are_private_ones_in_the_temporary_directory(nowhere: Path) -> None:
    private = nowhere / f"quoreduce-{os.geteuid()}"
    assert machine.home() is None
    assert kernel_cache() == private / "cache"
    assert book().path == private / "state" / "suspects.json"
    assert state_folder() == private / "state" / "attest"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert os.listdir(nowhere) == [private.name], "no folder called ~"


@pytest.mark.parametrize("home", ["", "relative/home"])
def test_a_home_that_is_no_absolute_path_is_none(nowhere: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", home)
    assert machine.home() is None


def test_without_a_home_what_begins_with_one_is_an_error(nowhere: Path) -> None:
    with pytest.raises(HostError, match="this user has no home; set HOME, or name the whole path"):
        machine.expanded("~/state")
    assert machine.expanded("state") == nowhere / "state"


def test_a_home_that_cannot_be_written_is_not_used(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/1")  # not even for root
    assert kernel_cache() == nowhere / f"quoreduce-{os.geteuid()}" / "cache"
    monkeypatch.setenv("HOME", str(nowhere / "new"))
    assert kernel_cache() == nowhere / "new" / ".cache" / "quoreduce"
    assert machine.state_folder() == nowhere / "new" / ".local/state/quoreduce"
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "xdg"))
    assert kernel_cache() == nowhere / "xdg" / "quoreduce"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert kernel_cache() == nowhere / "new" / ".cache" / "quoreduce", (
        "the standard says that such a path is to be ignored"
    )


def test_kernels_in_a_cache_that_cannot_be_written_are_used(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were compiled before: in an image, say, whose disk is read-only when it runs."""
    monkeypatch.setenv("HOME", str(nowhere / "home"))
    kernels = kernel_folder()
    assert kernels.parent == nowhere / "home" / ".cache" / "quoreduce"
    kernels.mkdir(parents=True)
    (kernels / "manifest.json").touch()
    monkeypatch.setattr(machine, "_can_write", lambda folder: False)
    assert kernel_folder() == kernels
    (kernels / "manifest.json").unlink()
    assert (
        kernel_folder()
        == kernel_cache() / kernels.name
        == nowhere / f"quoreduce-{os.geteuid()}" / "cache" / kernels.name
    )


@pytest.mark.parametrize("kind", ["written by others", "a link", "a file"])
def test_a_private_folder_that_is_not_ours_alone_is_refused(nowhere: Path, kind: str) -> None:
    private = nowhere / f"quoreduce-{os.geteuid()}"
    if kind == "written by others":
        private.mkdir()
        private.chmod(0o777)
    elif kind == "a link":
        (nowhere / "elsewhere").mkdir(mode=0o700)
        private.symlink_to("elsewhere")
    else:
        private.touch()
    with pytest.raises(HostError, match="has to be a folder that only you may write"):
        machine.private_folder()


def test_the_private_folder_is_the_one_that_sessions_use(nowhere: Path) -> None:
    """What one of them makes, or accepts, the other does too."""
    private = nowhere / f"quoreduce-{os.geteuid()}"
    private.mkdir(mode=0o755)
    with temporary_folder("check") as folder:
        assert folder.parent == machine.private_folder() == private


STRANGER = """
import pwd, sys
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
from quoreduce.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("home", [None, "/proc/1"])
def test_a_stranger_runs_jobs_and_verifies_them_with_the_kernels_that_are_there(
    tmp_path: Path, home: str | None
) -> None:
    """A user that is not in the password file, with no home, or one that not even root can write."""
    kernels = ensure_kernels()
    shutil.copytree(kernels, tmp_path / "tmp" / f"quoreduce-{os.geteuid()}" / "cache" / kernels.name)
    (tmp_path / "tmp" / f"quoreduce-{os.geteuid()}").chmod(0o700)
    work = tmp_path / "work"
    work.mkdir()
    (work / "text").write_text("a stranger has no home, and no home has a stranger\n" * 40)
    env = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    env |= {"TMPDIR": str(tmp_path / "tmp"), **({} if home is None else {"HOME": home})}
    job = ("run", "wordcount", "text", "out", "--inline", "--digest", "fast", "--json", "--split-mb", "0.001")
    for words in (job, ("verify", "out")):
        command = [sys.executable, "-c", STRANGER, *words]
        done = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), "and nothing is compiled"
    assert sorted(os.listdir(work)) == ["out", "text"], "no folder called ~"
