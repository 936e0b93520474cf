"""R8: after any crash the output is absent, old or complete, never partial; and nothing that is not ours is touched."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quoreduce import files
from quoreduce.data import commit
from quoreduce.data.commit import OutputDir, UriOutput, open_output, output_errors
from quoreduce.errors import JournalError, OutputError

NEW, OLD = b'{"new": 1}', b'{"old": 1}'


def write(output: OutputDir | UriOutput, part: int, attempt: int, content: bytes) -> None:
    Path(output.attempt_path(part, attempt)).write_bytes(content)


def run(path: Path, contents: list[bytes], manifest: bytes = NEW, overwrite: bool = False, job_id: str = "job") -> None:
    """Do what a driver does: attempts of two replicas, one of each published, then the manifest."""
    output = OutputDir(str(path), overwrite, [], job_id)
    for part, content in enumerate(contents):
        write(output, part, 0, b"a losing attempt")
        write(output, part, 1, content)
        output.publish(part, 1)
    output.finish(manifest)


def contents_of(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir()}


def refused(path: object, overwrite: bool = False, inputs: tuple[object, ...] = (), job_id: str = "job") -> str:
    with pytest.raises(OutputError) as caught:
        OutputDir(str(path), overwrite, [str(one) for one in inputs], job_id)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


# --- the good way -----------------------------------------------------------------------------------------------------


def test_the_output_holds_the_published_attempts_and_the_manifest_only(tmp_path: Path) -> None:
    run(tmp_path / "out", [b"one", b"", b"three"])
    expected = {"part-r-00000": b"one", "part-r-00001": b"", "part-r-00002": b"three", "_SUCCESS": NEW}
    assert contents_of(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_to_be_seen_before_the_output_is_whole(tmp_path: Path) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".") for name in os.listdir(tmp_path))
    output.abort()


def test_abort_leaves_nothing_and_may_come_twice_or_late(tmp_path: Path) -> None:
    output = OutputDir(str(tmp_path / "a" / "b" / "out"), False, [], "job")
    write(output, 0, 0, b"x")
    output.abort()
    output.abort()
    assert os.listdir(tmp_path) == []
    output = OutputDir(str(tmp_path / "a" / "out"), False, [], "job")
    output.finish(NEW)
    output.abort()
    assert contents_of(tmp_path / "a" / "out") == {"_SUCCESS": NEW}
    assert os.listdir(tmp_path / "a") == ["out"]


def test_only_one_attempt_of_a_part_is_ever_published(tmp_path: Path) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    write(output, 0, 0, b"first")
    write(output, 0, 1, b"second")
    output.publish(0, 0)
    output.publish(0, 0)
    with pytest.raises(OutputError, match="published from attempt 0"):
        output.publish(0, 1)
    output.finish(NEW)
    assert contents_of(tmp_path / "out")["part-r-00000"] == b"first"


def test_an_attempt_that_was_never_written_is_not_published(tmp_path: Path) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    with pytest.raises(OutputError, match="left no file"):
        output.publish(0, 0)
    os.symlink("/etc/hostname", output.attempt_path(0, 0))
    with pytest.raises(OutputError, match="not a regular file"):
        output.publish(0, 0)
    output.abort()


def test_a_replica_that_writes_on_after_the_vote_disturbs_nothing(tmp_path: Path) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    write(output, 0, 0, b"agreed")
    with open(output.attempt_path(0, 1), "wb") as late:
        output.publish(0, 0)
        output.finish(NEW)
        late.write(b"too late")
    with pytest.raises(FileNotFoundError):
        write(output, 0, 2, b"later still")
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"agreed", "_SUCCESS": NEW}
    assert os.listdir(tmp_path) == ["out"]


def test_relative_paths_and_links_on_the_way_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    run(Path("link/out"), [b"x"])
    assert (tmp_path / "real" / "out" / "_SUCCESS").exists()


def test_file_uris_are_directories_and_other_schemes_must_be_known(tmp_path: Path) -> None:
    output = open_output(f"file://{tmp_path}/out", False, [], "job", tmp_path)
    assert isinstance(output, OutputDir)
    output.finish(NEW)
    assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW}
    with pytest.raises(OutputError, match="nosuch"):
        open_output("nosuch://a/b", False, [], "job", tmp_path)
    with pytest.raises(OutputError, match="file://host"):
        open_output("file://host/b", False, [], "job", tmp_path)


# --- overwriting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "empty", "full", "link", "broken"])
def test_what_exists_is_refused_without_overwrite(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    make(path, kind)
    assert "exists" in refused(path)
    assert os.path.lexists(path)


def make(path: Path, kind: str) -> None:
    """Put something at ``path``."""
    if kind == "file":
        path.write_text("precious")
    elif kind == "link":
        (path.parent / "elsewhere").mkdir()
        path.symlink_to("elsewhere")
    elif kind == "broken":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    if kind in ("full", "parts", "foreign", "nested"):
        (path / "part-r-00000").write_bytes(b"old")
    if kind in ("full", "foreign", "nested", "deep"):
        (path / "_SUCCESS").write_bytes(OLD)
    if kind == "foreign":
        (path / "thesis.tex").write_text("precious")
    if kind == "linked":
        (path.parent / "thesis.tex").write_text("precious")
        (path / "part-r-00000").symlink_to(path.parent / "thesis.tex")
    if kind == "underscore":
        (path / "_private").write_text("precious")
    if kind == "nested":
        (path / "part-r-00001").mkdir()
    if kind == "deep":
        (path / "_private").mkdir()
        (path / "_private" / "thesis.tex").write_text("precious")


@pytest.mark.parametrize("kind", ["empty", "full", "parts"])
def test_overwrite_replaces_an_output(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "out", kind)
    run(tmp_path / "out", [b"x", b"y"], overwrite=True)
    expected = {"part-r-00000": b"x", "part-r-00001": b"y", "_SUCCESS": NEW}
    assert contents_of(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["file", "link", "broken", "foreign", "linked", "underscore", "nested"])
def test_overwrite_never_removes_what_no_job_wrote(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "out", kind)
    before = sorted(os.listdir(tmp_path))
    message = refused(tmp_path / "out", overwrite=True)
    assert re.search(rf"{tmp_path}/out (is not a directory|holds '[\w.-]+')", message)
    assert sorted(os.listdir(tmp_path)) == before


def test_overwrite_is_passed_on(tmp_path: Path) -> None:
    make(tmp_path / "out", "full")
    with pytest.raises(OutputError, match="exists"):
        open_output(str(tmp_path / "out"), False, [], "job", tmp_path)
    open_output(str(tmp_path / "out"), True, [], "job", tmp_path).finish(NEW)
    assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW}


def test_an_abort_leaves_what_others_put_or_took(tmp_path: Path) -> None:
    output = OutputDir(str(tmp_path / "made" / "out"), False, [], "job")
    (tmp_path / "made" / "note").touch()
    (tmp_path / "made" / ".out.lock").unlink()
    output.abort()
    assert os.listdir(tmp_path / "made") == ["note"]


def test_an_aborted_overwrite_leaves_the_old_output(tmp_path: Path) -> None:
    make(tmp_path / "out", "full")
    output = OutputDir(str(tmp_path / "out"), True, [], "job")
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    output.abort()
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"old", "_SUCCESS": OLD}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_at_the_output_while_the_job_runs_is_kept(tmp_path: Path, overwrite: bool) -> None:
    output = OutputDir(str(tmp_path / "out"), overwrite, [], "job")
    make(tmp_path / "out", "foreign")
    with pytest.raises(OutputError):
        output.finish(NEW)
    output.abort()
    assert (tmp_path / "out" / "thesis.tex").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_a_rename_that_fails_puts_the_old_output_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "out", "full")
    output = OutputDir(str(tmp_path / "out"), True, [], "job")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if source.name == "output":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match="no space left on device"):
        output.finish(NEW)
    assert not (tmp_path / "out").exists()
    output.abort()
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"old", "_SUCCESS": OLD}
    assert os.listdir(tmp_path) == ["out"]


# --- crashes ----------------------------------------------------------------------------------------------------------

CALLS = ("rename", "fsync", "unlink", "rmdir", "mkdir", "open")


def crash_at(step: int, path: Path) -> bool:
    """Run an overwriting job in a process that dies before its ``step``-th call to the disk; True if it lived."""
    child = os.fork()
    if child == 0:
        left = step

        def dying(call):  # type: ignore[no-untyped-def]
            def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return call(*args, **kwargs)

            return wrapped

        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            run(path, [b"new", b"new"], overwrite=True, job_id=f"job{step}")
        except BaseException:  # noqa: BLE001 (a child of pytest must not come back)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0


@pytest.mark.parametrize("old", [False, True])
def test_a_crash_at_any_step_leaves_the_output_absent_old_or_complete(tmp_path: Path, old: bool) -> None:
    new_output = {"part-r-00000": b"new", "part-r-00001": b"new", "_SUCCESS": NEW}
    old_output = {"part-r-00000": b"old", "_SUCCESS": OLD}
    path = tmp_path / "top" / "out"
    seen: list[object] = []
    absent, lived, step = 0, False, 0
    while not lived:
        shutil.rmtree(tmp_path / "top", ignore_errors=True)
        path.parent.mkdir()
        if old:
            make(path, "full")
        lived = crash_at(step, path)
        assert step < 200
        step += 1
        if path.exists():
            assert contents_of(path) in ((new_output, old_output) if old else (new_output,))
        absent += not path.exists()
        OutputDir(str(path), True, [], "next").abort()  # sweeps, and puts an old output back
        assert os.listdir(path.parent) == (["out"] if path.exists() else [])
        found = contents_of(path) if path.exists() else None
        assert found in ((new_output, old_output) if old else (new_output, None))
        seen.append(found)
    assert step > 10
    assert absent > 0  # with an old output: the crash fell between the two renames
    assert seen[0] == (old_output if old else None)
    assert seen[-1] == new_output


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


def test_a_lock_on_a_file_that_its_owner_just_unlinked_is_not_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert sorted(os.listdir(tmp_path)) == [".out.empty.staging", ".out.link.staging", ".out.other.staging", "out", "outside"]
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


@pytest.mark.parametrize("before", [False, True])
def test_without_descriptors_nothing_is_left(tmp_path: Path, before: bool) -> None:
    """Whichever call is the first for which there is none: the run fails with a clear error, or ends."""
    code = """
import os, resource, sys
from quoreduce.data.commit import OutputDir
from quoreduce.errors import OutputError
first = os.open("/dev/null", os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (first + 1 + int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    output = OutputDir(sys.argv[1], False, [], "job")
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
    except OSError:
        output.abort()
        print("aborted")
except OutputError as error:
    print("refused", "Too many open files" in str(error))
"""
    ends = set()
    for spare in range(14):
        folder = tmp_path / str(spare)
        folder.mkdir()
        if before:
            (folder / "deep").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder / "deep" / "out"), str(spare)], capture_output=True, text=True, check=False
        )
        assert not done.stderr, (spare, done.stderr)
        assert os.listdir(folder) == (["deep"] if before else []), spare
        assert not before or os.listdir(folder / "deep") == [], spare
        ends.add(done.stdout)
    assert ends == {"refused True\n", "aborted\n"}


# --- bad places -------------------------------------------------------------------------------------------------------


def test_an_output_that_overlaps_an_input_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("x")
    (tmp_path / "link").symlink_to("data")
    assert "lies inside the input" in refused(data / "out", inputs=(data,))
    assert "lies inside the input" in refused(data / "deep" / "out", inputs=(tmp_path / "link",))
    assert "lies inside the input" in refused(tmp_path / "link" / "out", inputs=(f"file://{data}",))
    assert "is also an input" in refused(data, inputs=(data,))
    assert "is also an input" in refused(data / "a.txt", overwrite=True, inputs=(data / "*.txt",))
    assert "lies inside the output" in refused(data, overwrite=True, inputs=(data / "a.txt",))
    assert os.listdir(data) == ["a.txt"]
    OutputDir(str(tmp_path / "data2"), False, [str(data), "s3://bucket/key"], "job").abort()


@pytest.mark.parametrize("path", ["", "/", "nul\0", "bad\udcff"])
def test_names_that_cannot_be_an_output_are_refused(path: str) -> None:
    assert "cannot be an output" in refused(path)


def test_a_name_beside_which_there_is_no_place_for_ours_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 243, "x" * 256, "é" * 122):
        assert "choose a shorter one" in refused(tmp_path / name)
        assert "choose a shorter one" in refused(tmp_path / "deep" / name)
    assert os.listdir(tmp_path) == []
    run(tmp_path / ("x" * 242), [b"x"])
    assert os.listdir(tmp_path) == ["x" * 242]


@pytest.mark.parametrize("job_id", ["", "a.b", "a/b", "..", "x" * 65, "new\n"])
def test_job_ids_that_could_be_misread_are_refused(tmp_path: Path, job_id: str) -> None:
    assert "job id" in refused(tmp_path / "out", job_id=job_id)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "Not a directory" in refused(tmp_path / "file" / "out")
    assert "cannot write" in refused(tmp_path / "file" / "deep" / "out")
    assert "choose a shorter one" in refused(tmp_path / ("x" * 250))
    assert os.listdir(tmp_path) == ["file"]


def test_a_parent_that_may_not_be_written_is_refused() -> None:
    place = Path("/proc/self") if os.geteuid() == 0 else Path("/")  # root may write anywhere else
    assert "cannot write" in refused(place / "quoreduce-out")


def test_no_space_is_said_plainly(tmp_path: Path) -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OutputError, match=f"no space left on device: {tmp_path}"), output_errors(tmp_path):
            raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EACCES, "Permission\n denied"), "cannot write OUT: Permission denied; choose another output"),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), "cannot write /a/b: Permission denied; choose another output"),
        (OSError(errno.EBADF, "Bad file", 7), "cannot write OUT: Bad file; choose another output"),
        (OSError("odd\n things"), "cannot write OUT: odd things; choose another output"),
        (OSError(errno.ENOSPC, "?", "/a"), "no space left on device: /a; free some, or write somewhere else"),
    ],
)
def test_an_error_of_writing_is_one_line_that_names_the_path(error: OSError, message: str) -> None:
    with pytest.raises(OutputError) as caught, output_errors("OUT"):
        raise error
    assert str(caught.value) == message


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_that_fills_up_while_a_part_is_written_leaves_nothing(small: Path) -> None:
    output = OutputDir(str(small / "out"), False, [], "job")
    path = output.attempt_path(0, 0)
    with pytest.raises(OutputError, match="no space left on device"), output_errors(path):
        Path(path).write_bytes(bytes(2 << 20))
    output.abort()
    assert os.listdir(small) == []


@pytest.mark.parametrize("old", [False, True])
def test_a_disk_that_fills_up_at_the_manifest_leaves_nothing_new(small: Path, old: bool) -> None:
    if old:
        make(small / "out", "full")
    output = OutputDir(str(small / "out"), True, [], "job")
    write(output, 0, 0, bytes(900 << 10))
    output.publish(0, 0)
    with pytest.raises(OutputError, match="no space left on device"):
        output.finish(bytes(200 << 10))
    output.abort()
    assert os.listdir(small) == (["out"] if old else [])
    if old:
        assert contents_of(small / "out") == {"part-r-00000": b"old", "_SUCCESS": OLD}


def test_a_disk_that_is_full_from_the_start_is_refused(small: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small / "filler").write_bytes(bytes(2 << 20))
    try:
        OutputDir(str(small / "deep" / "out"), False, [], "job").abort()
    except OutputError as error:
        assert "no space left on device" in str(error)  # noqa: PT017 (some kernels still have room for a directory)
    assert os.listdir(small) == ["filler"]


@pytest.fixture
def trail(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is forced to disk, and what things are renamed to, by file name."""
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append(f"> {Path(b).name}"), rename(a, b)))
    return seen


def test_the_manifest_is_synced_before_the_output_appears(tmp_path: Path, trail: list[str]) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    output.finish(NEW)
    synced = ["> part-r-00000", "part-r-00000", "._SUCCESS.tmp", "> _SUCCESS", "output", "> out", tmp_path.name]
    assert trail == synced
    assert commit.SUCCESS == "_SUCCESS"


def test_the_receipt_is_synced_before_the_manifest(tmp_path: Path, trail: list[str]) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    output.finish(NEW, b"receipt")
    assert trail[:4] == ["._RECEIPT.json.tmp", "> _RECEIPT.json", "._SUCCESS.tmp", "> _SUCCESS"]
    assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW, "_RECEIPT.json": b"receipt"}


def test_nothing_is_synced_unless_it_is_asked_for(tmp_path: Path, trail: list[str]) -> None:
    for sync in (False, True):
        output = open_output(str(tmp_path / f"{sync}"), False, [], "job", tmp_path, sync)
        Path(output.attempt_path(0, 0)).touch()
        output.publish(0, 0)
        output.finish(NEW, b"receipt")
        assert any(not name.startswith(">") for name in trail) == sync
    output = open_output(str(tmp_path / "out"), False, [], "job", tmp_path)
    del trail[:]
    output.finish(NEW)
    assert trail == ["> _SUCCESS", "> out"]


def test_no_file_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of an output that is finished, nor of one that is locked, not even where locking it failed."""
    before = len(os.listdir("/proc/self/fd"))
    run(tmp_path / "out", [b"x"])
    first = OutputDir(str(tmp_path / "second"), False, [], "job")
    refused(tmp_path / "second")
    first.abort()
    monkeypatch.setattr(fcntl, "flock", lambda *_: os.stat("/nowhere"))
    refused(tmp_path / "third")
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_on_a_file_system_without_locks_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    assert f"cannot write {tmp_path}/new/out: No locks available" in refused(tmp_path / "new" / "out")
    assert os.listdir(tmp_path) == []


def test_a_lock_that_never_holds_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, tries = len(os.listdir("/proc/self/fd")), []
    monkeypatch.setattr(fcntl, "flock", lambda fd, _: (tries.append(fd), (tmp_path / ".out.lock").unlink()))
    assert "another run is writing" in refused(tmp_path / "out")
    assert len(tries) == 100
    assert len(os.listdir("/proc/self/fd")) == before


# --- durable jobs -----------------------------------------------------------------------------------------------------


def cut_short(path: Path, contents: list[bytes], job_id: str = "job") -> None:
    """Leave what a durable job leaves whose driver was killed; the last part was not published yet."""
    output = OutputDir(str(path), False, [], job_id)
    output.journal_path.write_bytes(b"journal")
    (Path(output.blocks_path(0)) / "map").write_bytes(b"block")
    for part, content in enumerate(contents):
        write(output, part, 1, content)
    for part in range(len(contents) - 1):
        output.publish(part, 1)
    output.release()
    output.abort()


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
        monkeypatch.setattr(commit, "_stagings", lambda _, order=order: order)
        commit._sweep(tmp_path / "out", spare=True)
        assert (job.exists(), dead.exists()) == (True, False)


def test_of_a_job_that_is_swept_the_journal_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else one that is killed while it sweeps would leave half a job that looks as if it could be resumed."""
    cut_short(tmp_path / "out", [b"one"])
    journal = tmp_path / ".out.job.staging" / "journal"
    assert journal.exists()
    there: list[bool] = []
    monkeypatch.setattr(files, "remove_dead", lambda *_: there.append(journal.exists()))
    commit._sweep(tmp_path / "out", overwrite=True)
    assert there == [False]


def test_what_cannot_be_swept_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    marked(tmp_path / ".out.job.staging" / "deep")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        commit._sweep(tmp_path / "out")
    assert (tmp_path / ".out.job.staging" / "deep").exists()
    commit._sweep(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_all_of_a_file_is_written_when_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    commit._write(tmp_path / "manifest", NEW, sync=True)
    assert synced == [len(NEW)]


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
    assert trail == ["._SUCCESS.tmp", "> _SUCCESS", "output", "> out", tmp_path.name]


def test_an_error_without_a_name_names_what_was_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all errors of the operating system say which file it was."""

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def names(path: Path) -> Any:
        return pytest.raises(OutputError, match=f"cannot write {path}: Input/output error; choose another output")

    out = tmp_path / "out"
    with monkeypatch.context() as patch, names(out):
        patch.setattr(commit, "_take_lock", broken)
        OutputDir(str(out), False, [], "job")
    cut_short(out, [b"one"])
    with monkeypatch.context() as patch, names(out):
        patch.setattr(commit, "_take_lock", broken)
        OutputDir.reopen(str(out))
    again = OutputDir.reopen(str(out))
    with monkeypatch.context() as patch, names(out):
        patch.setattr(commit, "_restore", broken)
        again.go_on(False, False, {})
    with monkeypatch.context() as patch, names(again.staging / "blocks" / "0"):
        patch.setattr(Path, "mkdir", broken)
        again.blocks_path(0)
    with monkeypatch.context() as patch, names(again.staging / "attempts" / "part-r-00000.1"):
        patch.setattr(Path, "rename", broken)
        again.publish(0, 1)
    again.abort()
    with monkeypatch.context() as patch, names(tmp_path / "scratch"):
        patch.setattr(commit.tempfile, "mkdtemp", broken)
        uri_output(tmp_path)


# --- behind a URI (and over S3 in test_inputs_s3.py) -------------------------------------------------------------------


def uri_output(tmp_path: Path, overwrite: bool = False, inputs: tuple[str, ...] = ()) -> UriOutput:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return UriOutput(f"file://{tmp_path}/out", overwrite, inputs, "job", tmp_path / "scratch")


def test_a_uri_is_opened_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "UriOutput", lambda *asked: asked)
    asked = ("s3://bucket/out", True, ["in"], "job", "/scratch")
    assert open_output(*asked, sync=True) == asked


def test_attempts_lie_in_the_scratch_directory_until_they_are_uploaded(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    output = uri_output(tmp_path, overwrite=True)
    assert output.staging.parent == tmp_path / "scratch"
    assert output.staging.name.startswith("output.job.")
    for part in range(2):
        write(output, part, 0, b"a losing attempt")
        write(output, part, 1, b"x" * (9 << 20))
        output.publish(part, 1)
    assert sorted(os.listdir(output.staging)) == ["part-r-00000.0", "part-r-00001.0"]
    assert [output.part_path(part) for part in range(2)] == [None, None]
    with pytest.raises(OutputError, match="published from attempt 1"):
        output.publish(0, 0)
    output.finish(NEW, b"receipt")
    assert os.listdir(tmp_path / "scratch") == []
    output.abort()
    big = b"x" * (9 << 20)
    assert contents_of(tmp_path / "out") == {
        "part-r-00000": big, "part-r-00001": big, "_SUCCESS": NEW, "_RECEIPT.json": b"receipt",
    }  # fmt: skip
    assert os.listdir(tmp_path / "scratch") == []


def test_a_slash_at_the_end_of_a_uri_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "OUTX").mkdir()
    (tmp_path / "scratch").mkdir()
    output = UriOutput(f"file://{tmp_path}/OUTX/", True, [], "job", tmp_path / "scratch")
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    output.finish(NEW)
    assert contents_of(tmp_path / "OUTX") == {"part-r-00000": b"x", "_SUCCESS": NEW}


def test_an_abort_deletes_what_was_uploaded_once_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    output = uri_output(tmp_path, overwrite=True)
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    output.abort()
    assert os.listdir(tmp_path / "scratch") == []
    assert not (tmp_path / "out").exists()
    make(tmp_path / "out", "full")
    output.abort()
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"old", "_SUCCESS": OLD}


def test_an_abort_leaves_what_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    output = uri_output(tmp_path, overwrite=True)
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    (tmp_path / "out" / "note").write_bytes(b"mine")
    output.abort()
    assert contents_of(tmp_path / "out") == {"note": b"mine"}


def test_an_abort_before_anything_was_uploaded_deletes_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    uri_output(tmp_path, overwrite=True).abort()
    assert (tmp_path / "out").exists()
    assert os.listdir(tmp_path / "scratch") == []


@pytest.mark.parametrize("finish", [False, True])
def test_an_old_output_behind_a_uri_goes_with_the_first_upload(tmp_path: Path, finish: bool) -> None:
    make(tmp_path / "out", "full")
    with pytest.raises(OutputError, match=f"the output file://{tmp_path}/out exists"):
        uri_output(tmp_path)
    output = uri_output(tmp_path, overwrite=True)
    assert len(os.listdir(tmp_path / "out")) == 2
    if finish:
        output.finish(NEW)
        assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW}
        return
    write(output, 7, 0, b"new")
    output.publish(7, 0)
    assert contents_of(tmp_path / "out") == {"part-r-00007": b"new"}
    write(output, 0, 0, b"next")
    output.publish(0, 0)
    assert len(os.listdir(tmp_path / "out")) == 2
    output.finish(NEW)
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"next", "part-r-00007": b"new", "_SUCCESS": NEW}


def test_an_old_output_behind_a_uri_is_incomplete_as_soon_as_it_is_touched(tmp_path: Path) -> None:
    """Its manifest goes first."""
    make(tmp_path / "out", "full")
    (tmp_path / "out" / "_RECEIPT.json").write_bytes(b"old")
    output = uri_output(tmp_path, overwrite=True)
    (tmp_path / "out" / "_SUCCESS").unlink()
    write(output, 1, 0, b"new")
    with pytest.raises(OutputError, match=f"cannot write file://{tmp_path}/out: .*_SUCCESS"):
        output.publish(1, 0)
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"old", "_RECEIPT.json": b"old"}


@pytest.mark.parametrize("kind", ["file", "foreign", "underscore", "nested", "deep"])
def test_what_no_job_wrote_behind_a_uri_is_refused(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "out", kind)
    with pytest.raises(OutputError, match=rf"file://{tmp_path}/out (is not a directory|holds '\w+)"):
        uri_output(tmp_path, overwrite=True)
    assert not os.listdir(tmp_path / "scratch")


@pytest.mark.parametrize("left", [None, "directory"])
def test_behind_a_uri_too_an_attempt_that_was_never_written_is_not_published(tmp_path: Path, left: str | None) -> None:
    output = uri_output(tmp_path)
    if left:
        Path(output.attempt_path(0, 1)).mkdir()
    with pytest.raises(OutputError, match="writer left no file" if left is None else "not a regular file"):
        output.publish(0, 1)
    output.abort()
    assert not (tmp_path / "out").exists()


def test_a_file_system_that_keeps_a_slash_at_the_end_lists_the_same_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import fs

    make(tmp_path / "out", "full")
    monkeypatch.setattr(commit, "open_filesystem", lambda _: (fs.LocalFileSystem(), f"{tmp_path}/out/"))
    output = uri_output(tmp_path, overwrite=True)
    output.finish(NEW)
    assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW}


def test_in_a_store_without_directories_a_name_with_a_slash_is_no_jobs(tmp_path: Path) -> None:
    commit._refuse_foreign("s3://bucket/out", [("_SUCCESS", True), ("_logs", True), ("part-r-00000", True)])
    with pytest.raises(OutputError, match=r"holds '_private/thesis\.tex', which no job wrote"):
        commit._refuse_foreign("s3://bucket/out", [("_SUCCESS", True), ("_private/thesis.tex", True)])


@pytest.mark.parametrize("place", ["out", "out/", "out/deep", ""])
def test_a_uri_that_is_in_an_input_or_holds_it_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputError, match="inside each other"):
        uri_output(tmp_path, inputs=("plain", f"file://{tmp_path}/{place}"))
    beside = (f"{tmp_path}/{place}", *(f"file://{tmp_path}/{name}" for name in ("out2", "ou", "outX", "outX/")))
    uri_output(tmp_path, inputs=beside).abort()
    UriOutput(f"file://{tmp_path}/outX", False, [f"file://{tmp_path}/out/in"], "job", tmp_path / "scratch").abort()


def test_a_scratch_directory_is_made_or_named(tmp_path: Path) -> None:
    output = UriOutput(f"file://{tmp_path}/out", False, [], "job", tmp_path / "scratch")
    assert output.staging.parent == tmp_path / "scratch"
    assert (tmp_path / "scratch").stat().st_mode & 0o777 == 0o700
    output.abort()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file/scratch"):
        UriOutput(f"file://{tmp_path}/out", False, [], "job", tmp_path / "file" / "scratch")
    with pytest.raises(OutputError, match="job id"):
        UriOutput(f"file://{tmp_path}/out", False, [], "a.b", tmp_path)
