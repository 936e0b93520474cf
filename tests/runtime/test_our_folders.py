"""What is deleted is ours by what is written in it, and nothing of ours stays (quoreduce.files,
quoreduce.scratch).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import WORDCOUNT, left_in, parts_of, poll

from quoreduce import Options, Session, files, scratch
from quoreduce.commands.demo import demo as demo_module
from quoreduce.commands.doctor import doctor as doctor_module
from quoreduce.errors import HostError
from quoreduce.files import MARKER, Hold
from quoreduce.protocol.options import Place
from quoreduce.runtime import ray as ray_module
from quoreduce.worker import store as store_module
from quoreduce.worker.store import create_session_folder, join_session_folder

OURS = f"quoreduce-{os.geteuid()}"
KILLED = """
import os, signal, sys
from pathlib import Path
from quoreduce import scratch
hold = scratch.make_folder(Path(sys.argv[1]), "session")
(hold.path / "w0").mkdir()
(hold.path / "w0" / "segment").write_bytes(b"x" * 100_000)
print(hold.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A shared memory and a folder for temporary files of this test's own."""
    shared, temporary = tmp_path / "shm", tmp_path / "tmp"
    shared.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(scratch, "SHARED_MEMORY", shared)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield shared, temporary
    assert left_in(shared) == []


@pytest.fixture
def full_memory(roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shared memory is over half full, so that sessions go to the folder for temporary files, which is returned."""

    class Status:
        f_bavail, f_blocks = 1, 4

    monkeypatch.setattr(store_module.os, "statvfs", lambda _: Status)
    return roots[1]


def killed(root: Path) -> Path:
    """What a process leaves in ``root`` that is killed."""
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    code = KILLED.replace("hold =", f"scratch.SHARED_MEMORY = Path({str(scratch.SHARED_MEMORY)!r})\nhold =")
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return Path(done.stdout.strip())


def users_own(folder: Path) -> dict[str, Path]:
    """Things of a user's with names that could be ours."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quoreduce-thesis").mkdir()
    (folder / "quoreduce-thesis" / "thesis.tex").write_text("mine")
    (folder / "elsewhere").mkdir()
    (folder / "quoreduce-link").symlink_to("elsewhere")
    return {"thesis": folder / "quoreduce-thesis" / "thesis.tex", "link's target": folder / "elsewhere"}


def count(session: Session, folder: Path) -> list[bytes]:
    (folder / "text").write_bytes(b"to be or not to be\n" * 50)
    session.run(WORDCOUNT, [str(folder / "text")], str(folder / "out"), Options(reducers=1))
    return parts_of(folder / "out")


def test_a_store_deletes_nothing_of_the_users(roots: tuple[Path, Path], tmp_path: Path) -> None:
    own = users_own(tmp_path / "store")
    with Session(Place("inline", store=str(tmp_path / "store"))) as session:
        count(session, tmp_path)
    assert own["thesis"].read_text() == "mine"
    assert left_in(own["link's target"]) == []
    assert left_in(tmp_path / "store") == ["elsewhere", "quoreduce-link", "quoreduce-thesis"]


def test_in_our_folder_only_what_we_gave_a_name_is_looked_at(roots: tuple[Path, Path], tmp_path: Path) -> None:
    """That folder is this user's; also caches lie there if there is no home (machine.py)."""
    for name in ("cache", "results of May"):
        (roots[1] / OURS / name).mkdir(parents=True)
    with Session(Place("inline", store=str(roots[1]))) as session:
        count(session, tmp_path)
    assert left_in(roots[1] / OURS) == ["cache", "results of May"]


def test_where_memory_is_full_nothing_of_the_users_is_deleted(full_memory: Path, tmp_path: Path) -> None:
    own = users_own(full_memory)
    with Session(Place("inline")) as session:
        assert left_in(full_memory / OURS) != []
        count(session, tmp_path)
    assert own["thesis"].read_text() == "mine"
    assert left_in(full_memory) == ["elsewhere", "quoreduce-link", "quoreduce-thesis"]


def test_the_demo_keeps_its_text_where_memory_is_full(
    full_memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "REPEATS", 1)
    monkeypatch.setattr(demo_module, "TEXT", tmp_path / "none")
    assert demo_module.demo(None, 3, "local") == 0
    assert "none reached an output" in capsys.readouterr().out
    assert left_in(full_memory) == []


@pytest.mark.parametrize("where", ["shm", "tmp", "store"])
def test_what_a_dead_session_left_goes_with_the_next_one_wherever_that_keeps_its_blocks(
    where: str, roots: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    left = killed(tmp_path / where)
    assert left.is_dir()
    (tmp_path / "other").mkdir()
    create_session_folder(str(tmp_path / "other")).remove()
    for name in ("shm", "tmp", "store", "other"):
        assert left_in(tmp_path / name) == [], name


def test_a_session_that_lives_is_let_alone(roots: tuple[Path, Path], tmp_path: Path) -> None:
    hold = create_session_folder(str(tmp_path / "store"))
    (hold.path / "w0").mkdir()
    scratch.sweep(tmp_path / "store")
    assert left_in(hold.path) == sorted([hold._name, "w0"])
    hold.remove()
    hold.remove()
    assert left_in(tmp_path / "store") == []


def test_a_session_whose_lock_was_deleted_is_let_alone(roots: tuple[Path, Path], tmp_path: Path) -> None:
    hold = create_session_folder(str(tmp_path / "store"))
    (hold.path / "w0").mkdir()
    (hold.path / hold._name).unlink()
    create_session_folder(str(tmp_path / "store")).remove()
    assert left_in(hold.path) == ["w0"]
    shutil.rmtree(hold.path)
    hold.remove()


def test_without_locks_processes_tell(
    roots: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    left = killed(roots[0])
    hold = create_session_folder(None)
    create_session_folder(None).remove()
    assert hold.path.is_dir()
    assert not left.exists()
    hold.remove()


def edited(folder: Path, **changed: object) -> None:
    """Write something else in the marker of a folder."""
    (marker,) = folder.glob(f"{MARKER}.*")
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **changed}))


@pytest.mark.parametrize(
    "changed", [{"uid": 12345}, {"device": 1}, {"inode": 1}, {"quoreduce": 2}, {"pid": "1"}, {"more": 1}]
)
def test_a_marker_that_does_not_fit_is_none(changed: dict[str, object], roots: tuple[Path, Path]) -> None:
    """Another user's, a copy, one from another file system or version."""
    left = killed(roots[0])
    edited(left, **changed)
    scratch.sweep()
    assert (left / "w0" / "segment").exists()
    assert not files.remove_ours(left)
    shutil.rmtree(left.parent)


def test_pids_are_those_of_processes_not_numbers(roots: tuple[Path, Path]) -> None:
    """A pid may be in use again, by a process that began at another time, or after another boot."""
    parent = os.getppid()
    fields = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
    left = killed(roots[0])
    edited(left, pid=parent, start=int(fields[19]))
    scratch.sweep()
    assert left.exists(), "its process lives"
    assert scratch.find_left() == []
    edited(left, start=int(fields[19]) + 1)
    (found,) = scratch.find_left()
    assert (found.path, found.pids) == (left, (parent,))
    edited(left, start=int(fields[19]), boot="another")
    scratch.sweep()
    assert not left.exists()


def test_neither_links_nor_what_is_a_link_are_followed(roots: tuple[Path, Path], tmp_path: Path) -> None:
    own = users_own(tmp_path / "own")
    left = killed(roots[0])
    (left / "link").symlink_to(tmp_path / "own")
    (left / "w0" / "link").symlink_to(own["thesis"])
    linked = tmp_path / "linked"
    linked.symlink_to(left)
    assert not files.remove_ours(linked)
    assert left.exists()
    scratch.sweep()
    assert not left.exists()
    assert own["thesis"].read_text() == "mine"


def test_a_removal_that_is_cut_short_is_finished_later(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker goes last."""
    left = killed(roots[0])

    def dead(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", dead)
        with pytest.raises(KeyboardInterrupt):
            scratch.sweep()
    assert scratch.find_left() != []
    scratch.sweep()
    assert not left.exists()


@pytest.mark.parametrize("marker", [False, True])
def test_a_folder_whose_maker_was_killed_before_it_was_marked_goes(marker: bool, roots: tuple[Path, Path]) -> None:
    folder = scratch.our_folder(roots[0]) / "session-new"
    folder.mkdir()
    if marker:
        (folder / f"{MARKER}.abcd").touch()
    scratch.sweep()
    assert not folder.exists()


def test_a_folder_that_is_swept_before_it_is_marked_is_made_anew(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = fcntl.flock, []

    def late(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not swept:
            swept.append(fd)
            scratch.sweep()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    hold = create_session_folder(None)
    assert swept
    assert hold.path.is_dir()
    hold.remove()


def test_a_shared_folder_lives_as_long_as_any_of_its_processes(roots: tuple[Path, Path]) -> None:
    first = join_session_folder(None, "name")
    second = join_session_folder(None, "name")
    assert first.path == second.path
    first.release()
    scratch.sweep()
    assert first.path.is_dir()
    second.release()
    scratch.sweep()
    assert not first.path.exists()


def test_our_folder_has_to_be_this_users_alone(roots: tuple[Path, Path], tmp_path: Path) -> None:
    ours = tmp_path / "store" / OURS
    ours.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    ours.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        HostError, match="is a symbolic link, and has to be a folder that only you may write: remove it"
    ):
        create_session_folder(str(ours.parent))
    ours.unlink()
    ours.write_text("a file")
    with pytest.raises(HostError, match="is no folder"):
        create_session_folder(str(ours.parent))
    ours.unlink()
    ours.mkdir()
    ours.chmod(0o772)
    with pytest.raises(HostError, match="can be written by"):
        create_session_folder(str(ours.parent))
    ours.chmod(0o700)
    create_session_folder(str(ours.parent)).remove()
    assert left_in(tmp_path / "elsewhere") == []
    if os.geteuid() == 0:
        ours.mkdir()
        os.chown(ours, 12345, 12345)
        with pytest.raises(HostError, match=r"belongs to another user \(uid 12345\)"):
            create_session_folder(str(ours.parent))


def test_the_doctor_shows_what_is_left_and_cleans(
    roots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "_ray", lambda *_: "yes")
    (tmp_path / "store").mkdir()
    left = [killed(roots[0]), killed(tmp_path / "store")]
    own = users_own(tmp_path / "store")
    assert doctor_module.doctor(None, False) == 0
    said = capsys.readouterr().out
    for path in left:
        pid = json.loads(next(path.glob(f"{MARKER}.*")).read_text())["pid"]
        assert f"{path}, 0.1 MB, of process {pid}" in said
    assert "! dead sessions left files: the next session deletes them, or quoreduce doctor --clean" in said
    assert doctor_module.doctor(None, False, clean=True) == 0
    said = capsys.readouterr().out
    assert said.count("(deleted)") == 2
    assert "dead sessions" not in said
    assert own["thesis"].exists()
    assert not any(path.exists() for path in left)
    assert doctor_module.doctor(None, True) == 0
    assert json.loads(capsys.readouterr().out)["left by dead"] == "nothing"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_whole(path, b"one")
    assert path.read_bytes() == b"one"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, b"two")
    assert path.read_bytes() == b"one"
    assert left_in(tmp_path) == ["file"]
    files.write_whole(path, b"two", sync=False)
    assert path.read_bytes() == b"two"


def test_what_is_held_is_removed_when_descriptors_are_out(roots: tuple[Path, Path]) -> None:
    code = """
import os, resource, sys
from pathlib import Path
from quoreduce import scratch
hold = scratch.make_folder(Path(sys.argv[1]), "session")
(hold.path / "w0").mkdir()
(hold.path / "w0" / "segment").touch()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.open("/dev/null", os.O_RDONLY)
except OSError:
    hold.remove()
"""
    subprocess.run([sys.executable, "-c", code, str(roots[1])], check=True)
    assert left_in(roots[1]) == []


@pytest.mark.parametrize("short", [True, False])
def test_a_ray_of_our_own_keeps_its_files_where_they_go_with_it(
    short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in TMPDIR/ray, where they would stay, because TMPDIR is too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as root:
        monkeypatch.setattr(ray_module, "SHORT_ROOT", Path(root))
        monkeypatch.setattr(
            ray_module, "RAY_FOLDER_CHARS_MAX", len(str(Path(root) / OURS / "ray-")) + scratch.NAME_CHARS
        )
        monkeypatch.setattr(
            tempfile, "tempdir", root if short else str(tmp_path / "a name that is too long for sockets in it")
        )
        hold = ray_module._folder_for_ray()
        assert hold is not None
        assert hold.path.parent == Path(root) / OURS
        hold.remove()
        assert left_in(Path(root)) == []


def test_a_temporary_folder_goes_with_the_process_or_with_the_next_session(roots: tuple[Path, Path]) -> None:
    with scratch.temporary_folder("demo") as folder:
        assert folder.parent == roots[1] / OURS
        (folder / "text").touch()
        create_session_folder(None).remove()
        assert (folder / "text").exists()
    poll(lambda: left_in(roots[1]) == [], "it to go")
    hold = Hold(roots[1])
    hold.release()
    assert [name for name in left_in(roots[1]) if not name.startswith(MARKER)] == []
