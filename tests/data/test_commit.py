"""R8: after any crash the output is absent, old or complete, never partial; and nothing that is not ours is touched."""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from outputs import NEW, OLD, contents_of, cut_short, make, named, refused, run, uri_output, write

from quoreduce.data import commit, staging
from quoreduce.data.commit import OutputDir, open_output, output_errors
from quoreduce.errors import OutputError


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


@pytest.mark.parametrize("kind", ["file", "empty", "full", "link", "broken"])
def test_what_exists_is_refused_without_overwrite(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    make(path, kind)
    assert "exists" in refused(path)
    assert os.path.lexists(path)


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


@pytest.mark.parametrize("before", [False, True])
def test_without_descriptors_nothing_is_left(tmp_path: Path, before: bool) -> None:
    """Whichever call is the first for which there is none: the run fails with a clear error, or ends."""
    code = """
import os, resource, sys
from quoreduce.data.commit import OutputDir
from quoreduce.errors import OutputError
first = os.open("/dev/null", os.O_RDONLY)
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (first + 1 + int(sys.argv[2]), most))
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
            [sys.executable, "-c", code, str(folder / "deep" / "out"), str(spare)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.stderr, (spare, done.stderr)
        assert os.listdir(folder) == (["deep"] if before else []), spare
        assert not before or os.listdir(folder / "deep") == [], spare
        ends.add(done.stdout)
    assert ends == {"refused True\n", "aborted\n"}


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
        (
            OSError(errno.EACCES, "Permission denied", "/a/b"),
            "cannot write /a/b: Permission denied; choose another output",
        ),
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


def test_the_manifest_is_synced_before_the_output_appears(tmp_path: Path, trail: list[str]) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    output.finish(NEW)
    synced = ["> part-r-00000", "part-r-00000", "._SUCCESS.HEX.tmp", "> _SUCCESS", "output", "> out", tmp_path.name]
    assert named(trail) == synced
    assert staging.SUCCESS == "_SUCCESS"


def test_the_receipt_is_synced_before_the_manifest(tmp_path: Path, trail: list[str]) -> None:
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    output.finish(NEW, b"receipt")
    assert named(trail)[:5] == [
        "._RECEIPT.json.HEX.tmp",
        "> _RECEIPT.json",
        "output",
        "._SUCCESS.HEX.tmp",
        "> _SUCCESS",
    ]
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


def test_an_error_without_a_name_names_what_was_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all errors of the operating system say which file it was."""

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def names(path: Path) -> Any:
        return pytest.raises(OutputError, match=f"cannot write {path}: Input/output error; choose another output")

    out = tmp_path / "out"
    with monkeypatch.context() as patch, names(out):
        patch.setattr(commit, "take_lock", broken)
        OutputDir(str(out), False, [], "job")
    cut_short(out, [b"one"])
    with monkeypatch.context() as patch, names(out):
        patch.setattr(commit, "take_lock", broken)
        OutputDir.reopen(str(out))
    again = OutputDir.reopen(str(out))
    with monkeypatch.context() as patch, names(out):
        patch.setattr(commit, "restore", broken)
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
