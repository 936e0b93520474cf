"""A server's run folder: bound to its state, for one server at a time, and nothing of others in it is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quoreduce.errors import OutputError, VmError
from quoreduce.files import mark
from quoreduce.vm.agents import runfolder
from quoreduce.vm.agents.folder import StateFolder
from quoreduce.vm.agents.runfolder import RunFolder
from quoreduce.vm.processes import Process

VM = bytes(range(16))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFolder]:
    with StateFolder(tmp_path / "state") as made:
        yield made


def with_a_vm(state: StateFolder, run: Path) -> None:
    """A server was here, and was killed; its VM was not."""
    with RunFolder(state, str(run)) as here:
        here.vm(VM).mkdir()
        mark(here.vm(VM))
        here.note(VM, [Process.of(os.getpid())])


def seen(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(state: StateFolder, run: Path, match: str) -> None:
    before = seen(run), seen(state.path)
    with pytest.raises(VmError, match=match) as caught:
        RunFolder(state, str(run))
    assert "\n" not in str(caught.value)
    assert "--run" in str(caught.value)
    after = seen(run), seen(state.path)
    assert {**after[0], "lock": None} == {**before[0], "lock": None}
    assert after[1] == before[1]


def test_what_was_noted_is_there_again_with_the_same_folders(state: StateFolder, tmp_path: Path) -> None:
    with_a_vm(state, tmp_path / "run")
    for named in (str(tmp_path / "run"), None):
        with RunFolder(state, named) as here:
            assert here.path == tmp_path / "run"
            assert here.vms() == {VM}
            assert here.noted(VM) == [Process.of(os.getpid())]


def test_another_run_folder_than_before_is_refused_while_there_are_vms(state: StateFolder, tmp_path: Path) -> None:
    with_a_vm(state, tmp_path / "run")
    (tmp_path / "other").mkdir(mode=0o700)
    refused(
        state, tmp_path / "other", f"VMs of this server live in {tmp_path}/run, not in .*other: start it without --run"
    )
    state.remove(f"guests/{VM.hex()}")
    refused(state, tmp_path / "other", "live in")  # its folder is there
    shutil.rmtree(tmp_path / "run" / VM.hex())
    with RunFolder(state, str(tmp_path / "other")) as here:
        assert here.vms() == set()
    with RunFolder(state, None) as here:
        assert here.path == tmp_path / "other"


def test_another_run_folder_is_taken_after_a_reboot(
    state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_vm(state, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")  # it was in memory
    monkeypatch.setattr(runfolder, "boot_id", lambda: "another")
    with RunFolder(state, str(tmp_path / "other")) as here:
        assert here.vms() == {VM}


def test_the_run_folder_of_another_server_is_refused_while_it_has_vms(state: StateFolder, tmp_path: Path) -> None:
    with StateFolder(tmp_path / "neighbour") as neighbour:
        with_a_vm(neighbour, tmp_path / "run")
        refused(state, tmp_path / "run", "is the run folder of another server, of .*neighbour, and has VMs")
        with RunFolder(neighbour, None) as here:
            assert here.vms() == {VM}


def test_a_second_server_on_a_run_folder_that_is_in_use_is_refused(state: StateFolder, tmp_path: Path) -> None:
    with (
        RunFolder(state, str(tmp_path / "run")),
        StateFolder(tmp_path / "second") as second,
        pytest.raises(
            VmError, match=r"run is in use by another process: wait until it ends, or choose another folder$"
        ),
    ):
        RunFolder(second, str(tmp_path / "run"))


def _foreign_folder(run: Path) -> Path:
    (run / "photos").mkdir()
    (run / "photos" / "one").write_bytes(b"precious")
    return run / "photos"


def _named_as_a_vm(run: Path) -> Path:
    (run / VM.hex()).mkdir()
    (run / VM.hex() / "one").write_bytes(b"precious")
    return run / VM.hex()


def _copied(run: Path) -> Path:
    (run.parent / "elsewhere").mkdir()
    mark(run.parent / "elsewhere")
    shutil.copytree(run.parent / "elsewhere", run / VM.hex())
    return run / VM.hex()


def _link(run: Path) -> Path:
    (run.parent / "elsewhere").mkdir()
    mark(run.parent / "elsewhere")
    (run / VM.hex()).symlink_to(run.parent / "elsewhere")
    return run / VM.hex()


def _file(run: Path) -> Path:
    (run / VM.hex()).write_bytes(b"precious")
    return run / VM.hex()


@pytest.mark.parametrize("make", [_foreign_folder, _named_as_a_vm, _copied, _link, _file])
@pytest.mark.parametrize("known", [True, False], ids=["ours", "new"])
def test_what_is_not_ours_is_named_and_left_alone(
    state: StateFolder, tmp_path: Path, make: Callable[[Path], Path], known: bool
) -> None:
    run = tmp_path / "run"
    if known:
        RunFolder(state, str(run)).close()
    else:
        run.mkdir(mode=0o700)
    refused(state, run, f"{make(run)} is not ours: move it away")


@pytest.mark.parametrize("kind", ["link", "file", "writable"])
def test_a_run_folder_that_is_no_folder_of_this_user_alone_is_refused(
    state: StateFolder, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        run.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        run.touch()
    else:
        run.mkdir()
        run.chmod(0o777)
    with pytest.raises(
        VmError, match=r"cannot use .*run for VMs: it (is|can be) .*; choose another folder in memory with --run"
    ):
        RunFolder(state, str(run))


def test_a_state_that_was_moved_goes_on_and_one_that_was_copied_is_refused(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state") as state:
        with_a_vm(state, tmp_path / "run")
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    with StateFolder(tmp_path / "copy") as copy, pytest.raises(VmError, match=r"is a copy of .*state: only one"):
        RunFolder(copy, None)
    shutil.rmtree(tmp_path / "state")
    for _ in range(2):
        with StateFolder(tmp_path / "copy") as moved, RunFolder(moved, None) as here:
            assert here.vms() == {VM}


@pytest.mark.parametrize("where", ["state", "run"])
def test_a_bond_that_cannot_be_read_is_refused(state: StateFolder, tmp_path: Path, where: str) -> None:
    with_a_vm(state, tmp_path / "run")
    (state.path / "run" if where == "state" else tmp_path / "run" / "server").write_bytes(b"nonsense")
    with pytest.raises(VmError, match="does not say which folders go together"):
        RunFolder(state, str(tmp_path / "run"))
    state.write(f"guests/{VM.hex()}", b"nonsense")


def test_a_server_that_is_killed_between_both_halves_of_the_bond_goes_on(
    state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = StateFolder.write

    def fails(self: StateFolder, name: str, data: bytes) -> None:
        if name == runfolder.SERVER:
            raise OutputError("killed")
        write(self, name, data)

    monkeypatch.setattr(StateFolder, "write", fails)
    with pytest.raises(OutputError):
        RunFolder(state, str(tmp_path / "run"))
    monkeypatch.undo()
    with_a_vm(state, tmp_path / "run")
    with RunFolder(state, None) as here:
        assert here.vms() == {VM}


def test_processes_that_cannot_be_read_are_no_reason_to_say_that_none_runs(state: StateFolder, tmp_path: Path) -> None:
    with RunFolder(state, str(tmp_path / "run")) as here:
        state.write(f"guests/{VM.hex()}", b"nonsense")
        with pytest.raises(VmError, match="does not say which processes a VM has"):
            here.noted(VM)


def test_the_processes_of_a_run_folder_that_was_deleted_are_still_known(state: StateFolder, tmp_path: Path) -> None:
    with_a_vm(state, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with RunFolder(state, str(tmp_path / "run")) as here:
        assert here.vms() == {VM}
        assert here.noted(VM)
        here.forget(VM)
        assert here.vms() == set()


def test_programs_that_end_unasked_leave_no_entry_in_the_table_of_processes(tmp_path: Path) -> None:
    from quoreduce.vm import processes

    started = processes.spawn(["true"], tmp_path, "log", ())
    while Path(f"/proc/{started.pid}").exists():
        processes.reap()
    with subprocess.Popen(["true"]) as other:  # of somebody else in this process: his to wait for
        processes.reap()
        assert other.wait(10) == 0
