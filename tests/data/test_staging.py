"""Beside an output: locks, folders of runs that died, and durable jobs that are resumed."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from outputs import NEW, OLD, contents_of, cut_short, make, named, refused, run

from quoreduce import files
from quoreduce.data import staging
from quoreduce.data.commit import OutputDir
from quoreduce.errors import JournalError, OutputError


def test_the_staging_of_another_output_is_not_swept(tmp_path: Path) -> None:
    other = OutputDir(str(tmp_path / "out.2"), False, [], "job")
    (tmp_path / ".out.a.b.staging").mkdir()
    (tmp_path / ".out.staging").mkdir()
    run(tmp_path / "out", [b"x"])
    assert (tmp_path / ".out.a.b.staging").exists()
    assert (tmp_path / ".out.staging").exists()
    other.finish(NEW)
    assert contents_of(tmp_path / "out.2") == {"_SUCCESS": NEW}


def test_a_live_run_keeps_its_output_and_its_staging(tmp_path: Path) -> None:
    first = OutputDir(str(tmp_path / "out"), False, [], "first")
    message = f"another run is writing {tmp_path}/out; wait for it, or choose another output"
    assert refused(tmp_path / "out", job_id="second") == message
    assert "another run is writing" in refused(tmp_path / "out", overwrite=True, job_id="first")
    first.finish(NEW)
    assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW}


def test_a_parent_that_another_run_makes_just_now_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def overtaken(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "deep":
            os.mkdir(path)
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    run(tmp_path / "deep" / "out", [b"x"])
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_of_many_runs_that_start_together_one_goes_on(tmp_path: Path) -> None:
    winners: list[OutputDir] = []
    losers: list[OutputError] = []
    gate = threading.Barrier(8)

    def start(i: int) -> None:
        gate.wait()
        try:
            winners.append(OutputDir(str(tmp_path / "deep" / "out"), False, [], f"job{i}"))
        except OutputError as error:
            losers.append(error)

    threads = [threading.Thread(target=start, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert all("another run is writing" in str(error) for error in losers)
    winners[0].finish(NEW)
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_a_lock_on_a_file_that_its_owner_just_unlinked_is_not_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    calls: list[int] = []

    def late(fd: int, operation: int) -> None:
        if not calls:
            (tmp_path / ".out.lock").unlink()
        if ".out.lock" in os.readlink(f"/proc/self/fd/{fd}"):
            calls.append(fd)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    assert len(calls) == 2
    assert "another run is writing" in refused(tmp_path / "out", job_id="other")
    output.abort()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = "import os, sys; from quoreduce.data.commit import OutputDir as O; O(sys.argv[1], 0, [], 'a'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert sorted(os.listdir(tmp_path)) == [".out.a.staging", ".out.lock"]
    run(tmp_path / "out", [b"x"])
    assert os.listdir(tmp_path) == ["out"]


def test_what_only_looks_like_ours_beside_an_output_is_neither_used_nor_deleted(tmp_path: Path) -> None:
    """Folders and locks are ours by what is written in them, not by their names."""
    for name in ("empty of markers", "other"):
        (tmp_path / f".out.{name.split()[0]}.staging" / "output").mkdir(parents=True)
    (tmp_path / ".out.empty.staging" / "thesis.tex").write_text("mine")
    shutil.copytree(tmp_path / ".out.other.staging", tmp_path / "outside")
    (tmp_path / ".out.link.staging").symlink_to("outside")
    files.Hold(tmp_path / "outside").release()
    run(tmp_path / "out", [b"x"], overwrite=True)
    assert (tmp_path / ".out.empty.staging" / "thesis.tex").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == [
        ".out.empty.staging",
        ".out.link.staging",
        ".out.other.staging",
        "out",
        "outside",
    ]
    (tmp_path / ".new.lock").write_text("another program's")
    assert f"{tmp_path}/.new.lock is not a lock of quoreduce" in refused(tmp_path / "new")
    assert (tmp_path / ".new.lock").read_text() == "another program's"
    os.mkfifo(tmp_path / ".pipe.lock")
    assert "is not a lock of quoreduce" in refused(tmp_path / "pipe")


def test_a_copy_of_what_we_left_is_not_ours(tmp_path: Path) -> None:
    cut_short(tmp_path / "out", [b"one"])
    (tmp_path / ".out.job.staging").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / ".out.job.staging")
    (tmp_path / ".out.job.staging" / "journal").unlink()
    run(tmp_path / "out", [b"x"], job_id="other")
    assert (tmp_path / ".out.job.staging" / "attempts").is_dir()


def test_after_a_reboot_what_was_left_is_ours_although_its_disk_has_another_number(tmp_path: Path) -> None:
    """Devices of NFS, btrfs and LVM, among others, are numbered anew at each boot, and on each machine."""
    cut_short(tmp_path / "out", [b"one"])
    (marker,) = (tmp_path / ".out.job.staging").glob(files.MARKER + ".*")
    owner = json.loads(marker.read_bytes())
    marker.write_text(json.dumps({**owner, "boot": "an earlier one", "device": owner["device"] + 1}))
    assert files.state_of(tmp_path / ".out.job.staging") == "dead"
    again = OutputDir.reopen(str(tmp_path / "out"))
    assert again.staging == tmp_path / ".out.job.staging"
    again.release()
    run(tmp_path / "out", [b"x"], job_id="other", overwrite=True)
    assert os.listdir(tmp_path) == ["out"]


def test_a_run_whose_lock_was_deleted_is_let_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from quoreduce.data.commit import OutputDir as O; o = O(sys.argv[1], 0, [], 'a'); "
        "print(flush=True); input(); o.finish(b'new')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        (tmp_path / ".out.lock").unlink()
        assert "another run is writing" in refused(tmp_path / "out", overwrite=True)
        first.communicate(b"\n")
    assert first.returncode == 0
    assert contents_of(tmp_path / "out") == {"_SUCCESS": b"new"}
    assert os.listdir(tmp_path) == ["out"]


def test_the_lock_of_another_run_is_not_deleted(tmp_path: Path) -> None:
    first = OutputDir(str(tmp_path / "out"), False, [], "job")
    (tmp_path / ".out.lock").unlink()
    (tmp_path / ".out.lock").write_bytes(b"quoreduce 1\n")
    first.abort()
    assert os.listdir(tmp_path) == [".out.lock"]


def test_a_forked_process_leaves_the_output_to_its_parent(tmp_path: Path) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    child = os.fork()
    if child == 0:
        output.abort()
        output.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert "another run is writing" in refused(tmp_path / "out")
    output.finish(NEW)
    assert os.listdir(tmp_path) == ["out"]


def test_an_old_output_that_has_no_place_any_more_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody makes OUT anew between the two renames of an overwrite."""
    make(tmp_path / "out", "full")
    output = OutputDir(str(tmp_path / "out"), True, [], "job")
    rename = os.rename

    def overtaken(source: Path, target: Path) -> None:
        rename(source, target)
        if target.name == "old":
            make(tmp_path / "out", "foreign")

    monkeypatch.setattr(os, "rename", overtaken)
    with pytest.raises(OutputError, match="Directory not empty"):
        output.finish(NEW)
    output.abort()
    assert contents_of(tmp_path / ".out.job.staging" / "old") == {"part-r-00000": b"old", "_SUCCESS": OLD}
    shutil.rmtree(tmp_path / "out")
    run(tmp_path / "other", [b"x"])
    assert "exists" in refused(tmp_path / "out")
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"old", "_SUCCESS": OLD}


def marked(path: Path) -> None:
    """Leave a staging directory, and what is in it, as a run does that was killed."""
    path.mkdir(parents=True)
    staging = next(one for one in (path, *path.parents) if one.name.endswith(".staging"))
    files.Hold(staging).release()


def not_resumed(path: Path) -> str:
    with pytest.raises(JournalError) as caught:
        OutputDir.reopen(str(path))
    return str(caught.value)


def test_a_durable_job_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    """What was published is an attempt again, for its bytes are to be checked anew."""
    path = tmp_path / "out"
    cut_short(path, [b"one", b"two", b"three"])
    assert os.listdir(tmp_path) == [".out.job.staging"]
    again = OutputDir.reopen(str(path))
    assert "another run is writing" in refused(path, overwrite=True)
    assert again.journal_path.read_bytes() == b"journal"
    again.go_on(False, False, {0: 1, 1: 1, 2: 1})
    assert [again.part_path(part) for part in range(3)] == [None, None, None]
    assert sorted(os.listdir(again.staging / "attempts")) == [f"part-r-0000{part}.1" for part in range(3)]
    assert os.listdir(again.staging / "output") == []
    for part in range(3):
        again.publish(part, 1)
    published = again.part_path(2)
    assert published is not None
    assert Path(published).read_bytes() == b"three"
    again.finish(NEW)
    expected = {"part-r-00000": b"one", "part-r-00001": b"two", "part-r-00002": b"three", "_SUCCESS": NEW}
    assert contents_of(path) == expected
    assert os.listdir(tmp_path) == ["out"]


def test_each_life_of_a_durable_job_has_its_folder_for_blocks(tmp_path: Path) -> None:
    cut_short(tmp_path / "out", [])
    again = OutputDir.reopen(str(tmp_path / "out"))
    assert again.blocks_path(0) == again.blocks_path(0) == str(tmp_path / ".out.job.staging" / "blocks" / "0")
    assert (Path(again.blocks_path(0)) / "map").read_bytes() == b"block"
    assert os.listdir(again.blocks_path(1)) == []
    shutil.rmtree(again.staging / "blocks")
    (again.staging / "blocks").write_text("no directory")
    with pytest.raises(OutputError, match=r"cannot write .*blocks/1: Not a directory"):
        again.blocks_path(1)
    again.abort()


def test_what_a_durable_job_left_is_given_up_with_overwrite_only(tmp_path: Path) -> None:
    path = tmp_path / "out"
    cut_short(path, [b"one"])
    assert f"go on with it: quoreduce resume {path}; or give it up with --overwrite" in refused(path, job_id="other")
    assert os.listdir(tmp_path) == [".out.job.staging"]
    run(path, [b"x"], overwrite=True, job_id="other")
    assert os.listdir(tmp_path) == ["out"]


def test_reopening_sweeps_what_other_runs_left(tmp_path: Path) -> None:
    cut_short(tmp_path / "out", [b"one"])
    marked(tmp_path / ".out.dead.staging" / "output")
    marked(tmp_path / ".out.done.staging")
    (tmp_path / ".out.done.staging" / "journal").touch()
    again = OutputDir.reopen(str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == [".out.job.staging", ".out.lock"]
    again.abort()
    assert os.listdir(tmp_path) == []


def test_of_what_other_runs_left_a_durable_jobs_is_spared_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(tmp_path / "out", [b"one"])
    job, dead = (tmp_path / f".out.{name}.staging" for name in ("job", "dead"))
    for order in ([job, dead], [dead, job]):
        dead.mkdir()
        monkeypatch.setattr(staging, "_stagings", lambda _, order=order: order)
        staging.sweep(tmp_path / "out", spare=True)
        assert (job.exists(), dead.exists()) == (True, False)


def test_of_a_job_that_is_swept_the_journal_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else one that is killed while it sweeps would leave half a job that looks as if it could be resumed."""
    cut_short(tmp_path / "out", [b"one"])
    journal = tmp_path / ".out.job.staging" / "journal"
    assert journal.exists()
    there: list[bool] = []
    monkeypatch.setattr(files, "remove_dead", lambda *_: there.append(journal.exists()))
    staging.sweep(tmp_path / "out", overwrite=True)
    assert there == [False]


def test_what_cannot_be_swept_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    marked(tmp_path / ".out.job.staging" / "deep")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        staging.sweep(tmp_path / "out")
    assert (tmp_path / ".out.job.staging" / "deep").exists()
    staging.sweep(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_all_of_a_file_is_written_when_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    files.write_whole(tmp_path / "manifest", NEW)
    assert synced[0] == len(NEW)


def test_others_may_read_a_lock(tmp_path: Path) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    assert (tmp_path / ".out.lock").stat().st_mode & 0o777 == 0o644
    output.abort()


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").symlink_to(tmp_path / "elsewhere")
    assert f"{tmp_path}/.out.lock is a symbolic link" in refused(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [".out.lock"]


def test_what_cannot_be_resumed_is_said_and_left_as_it_is(tmp_path: Path) -> None:
    assert not_resumed(tmp_path / "no" / "out") == f"nothing to resume: {tmp_path}/no is no directory"
    assert not_resumed(tmp_path / "out") == (
        f"nothing to resume: no durable job was writing {tmp_path}/out (they run with --durable)"
    )
    assert os.listdir(tmp_path) == []
    run(tmp_path / "out", [b"x"])
    assert not_resumed(tmp_path / "out") == f"nothing to resume: {tmp_path}/out is complete"
    assert os.listdir(tmp_path) == ["out"]
    first = OutputDir(str(tmp_path / "busy"), False, [], "job")
    with pytest.raises(OutputError, match=f"another run is writing {tmp_path}/busy"):
        OutputDir.reopen(str(tmp_path / "busy"))
    first.abort()
    (tmp_path / "file").write_text("x")
    with pytest.raises(JournalError, match="is no directory"):
        OutputDir.reopen(str(tmp_path / "file" / "out"))
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/"):
        OutputDir.reopen(str(tmp_path / ("x" * 250)))


def test_a_job_whose_output_is_in_place_is_done(tmp_path: Path) -> None:
    """It was killed after the rename and before it had swept its journal away."""
    cut_short(tmp_path / "out", [b"one"])
    (tmp_path / ".out.job.staging" / "output" / "_SUCCESS").write_bytes(NEW)
    (tmp_path / ".out.job.staging" / "output").rename(tmp_path / "out")
    assert "is complete" in not_resumed(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_the_output_of_another_job_is_not_replaced_unless_that_was_asked_for(tmp_path: Path) -> None:
    cut_short(tmp_path / "out", [b"one"])
    make(tmp_path / "out", "full")
    again = OutputDir.reopen(str(tmp_path / "out"))
    with pytest.raises(OutputError, match="exists"):
        again.go_on(False, False, {})
    again.go_on(True, False, {})
    again.publish(0, 1)
    again.finish(NEW)
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"one", "_SUCCESS": NEW}
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_that_was_set_aside_is_back_before_it_is_gone_on(tmp_path: Path) -> None:
    """The driver was killed between the two renames of an overwrite, and what it could not finish is given up."""
    cut_short(tmp_path / "out", [])
    make(tmp_path / ".out.job.staging" / "old", "full")
    again = OutputDir.reopen(str(tmp_path / "out"))
    again.go_on(True, False, {})
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"old", "_SUCCESS": OLD}
    again.abort()
    assert os.listdir(tmp_path) == ["out"]


def test_going_on_syncs_as_the_first_run_did(tmp_path: Path, trail: list[str]) -> None:
    cut_short(tmp_path / "out", [b"one"])
    again = OutputDir.reopen(str(tmp_path / "out"))
    again.go_on(False, True, {0: 1})
    del trail[:]
    again.finish(NEW)
    assert named(trail) == ["._SUCCESS.HEX.tmp", "> _SUCCESS", "output", "> out", tmp_path.name]
