"""R8: after any crash the output is absent, old or complete, never partial; and nothing that is not ours is touched."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quoreduce.data import commit
from quoreduce.data.commit import OutputDir, open_output, output_errors
from quoreduce.errors import OutputError

NEW, OLD = b'{"new": 1}', b'{"old": 1}'


def write(output: OutputDir, part: int, attempt: int, content: bytes) -> None:
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
    if kind in ("full", "foreign", "nested"):
        (path / "_SUCCESS").write_bytes(OLD)
    if kind == "foreign":
        (path / "thesis.tex").write_text("precious")
    if kind == "underscore":
        (path / "_private").write_text("precious")
    if kind == "nested":
        (path / "part-r-00001").mkdir()


@pytest.mark.parametrize("kind", ["empty", "full", "parts"])
def test_overwrite_replaces_an_output(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "out", kind)
    run(tmp_path / "out", [b"x", b"y"], overwrite=True)
    expected = {"part-r-00000": b"x", "part-r-00001": b"y", "_SUCCESS": NEW}
    assert contents_of(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["file", "link", "broken", "foreign", "underscore", "nested"])
def test_overwrite_never_removes_what_no_job_wrote(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "out", kind)
    before = sorted(os.listdir(tmp_path))
    refused(tmp_path / "out", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == before


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
    assert "another run is writing" in refused(tmp_path / "out", job_id="second")
    assert "another run is writing" in refused(tmp_path / "out", overwrite=True, job_id="first")
    first.finish(NEW)
    assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW}


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


@pytest.mark.parametrize("job_id", ["", "a.b", "a/b", "..", "x" * 65, "new\n"])
def test_job_ids_that_could_be_misread_are_refused(tmp_path: Path, job_id: str) -> None:
    assert "job id" in refused(tmp_path / "out", job_id=job_id)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "Not a directory" in refused(tmp_path / "file" / "out")
    assert "cannot write" in refused(tmp_path / "file" / "deep" / "out")
    assert "File name too long" in refused(tmp_path / ("x" * 250))
    assert os.listdir(tmp_path) == ["file"]


def test_a_parent_that_may_not_be_written_is_refused() -> None:
    place = Path("/proc/self") if os.geteuid() == 0 else Path("/")  # root may write anywhere else
    assert "cannot write" in refused(place / "quoreduce-out")


def test_no_space_is_said_plainly(tmp_path: Path) -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OutputError, match=f"no space left on device: {tmp_path}"), output_errors(tmp_path):
            raise OSError(code, os.strerror(code))


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


def test_the_manifest_is_synced_before_the_output_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trail: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (trail.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (trail.append(f"> {b}"), rename(a, b)))
    output = OutputDir(str(tmp_path / "out"), False, [], "job")
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    output.finish(NEW)
    names = [Path(one).name for one in trail]
    assert names == ["part-r-00000", "part-r-00000", "._SUCCESS.tmp", "_SUCCESS", "output", "out", tmp_path.name]
    assert commit.SUCCESS == "_SUCCESS"
