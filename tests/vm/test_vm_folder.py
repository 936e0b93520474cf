"""State folders: records whole and on disk, one process at a time, for the owner only."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from quoreduce.errors import InputError, OutputError, VmError
from quoreduce.vm.agents import folder as folders
from quoreduce.vm.agents.folder import StateFolder, user_folder


def test_what_was_written_is_read_and_is_for_the_owner_only(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "a" / "state") as state:
        state.write("vms/x.json", b"1")
        state.write("vms/x.json", b"2")
        assert state.read("vms/x.json") == b"2"
        assert state.read("vms/y.json") is None
        (state.path / "vms" / ".y.json.0123abcd.tmp").touch()
        assert state.names("vms") == ["vms/x.json"]
        assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
        assert stat.S_IMODE((state.path / "vms/x.json").stat().st_mode) == 0o600
        state.remove("vms/x.json")
        state.remove("vms/x.json")
        assert state.read("vms/x.json") is None
    StateFolder(tmp_path / "a" / "state").close()
    assert list((tmp_path / "a" / "state" / "vms").iterdir()) == [], "what was being written goes with the next process"


def test_a_folder_in_use_is_refused_until_it_is_let_go_of(tmp_path: Path) -> None:
    first = StateFolder(tmp_path)
    with pytest.raises(VmError, match="in use by another process"):
        StateFolder(tmp_path)
    first.close()
    StateFolder(tmp_path).close()


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateFolder(tmp_path)
    state.write("record", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        state.write("record", b"new")
    assert state.read("record") == b"old"
    assert sorted(os.listdir(tmp_path)) == ["lock", "record"]


def test_a_record_is_on_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append("name"), rename(a, b))[1])
    StateFolder(tmp_path).write("record", b"x")
    assert order == ["sync", "name", "sync"]


def test_a_record_too_large_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "RECORD_BYTES_MAX", 3)
    state = StateFolder(tmp_path)
    state.write("record", b"1234")
    with pytest.raises(InputError, match="no record of ours"):
        state.read("record")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another"):
        StateFolder(tmp_path / "file" / "state")


def test_the_users_folder_is_the_named_one_or_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUOREDUCE_VM", str(tmp_path / "env"))
    assert user_folder() == tmp_path / "env"
    assert user_folder(str(tmp_path / "said")) == tmp_path / "said"
    monkeypatch.delenv("QUOREDUCE_VM")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "quoreduce" / "vm"
