"""Scrubbing: what was there is overwritten and read back, or the file that was not is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from quoreduce.errors import VmError
from quoreduce.files import MARKER, mark
from quoreduce.vm.scrub import Io, scrub

SECRET = b"a secret that must not stay" * 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "guest"
    (made / "vtpm").mkdir(parents=True)
    mark(made)
    (made / "ram").write_bytes(SECRET * 60)  # more than one piece
    (made / "vtpm" / "state").write_bytes(SECRET)
    (made / "empty").touch()
    os.mkfifo(made / "fifo")
    return made


def test_files_are_overwritten_before_they_are_unlinked(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "ram", tmp_path / "kept")  # what the medium holds afterwards
    report = scrub(folder)
    assert not folder.exists()
    kept = (tmp_path / "kept").read_bytes()
    assert len(kept) == len(SECRET) * 60
    assert SECRET[:27] not in kept
    assert (report.files, report.bytes) == (3, len(SECRET) * 61)
    assert json.loads(report.document()) == {"bytes": report.bytes, "digest": report.digest, "files": 3}


def test_what_links_point_to_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(SECRET)
    (folder / "to-file").symlink_to(tmp_path / "other" / "file")
    (folder / "to-folder").symlink_to(tmp_path / "other")
    scrub(folder)
    assert (tmp_path / "other" / "file").read_bytes() == SECRET


def test_a_folder_that_is_gone_is_scrubbed(tmp_path: Path) -> None:
    assert scrub(tmp_path / "none").files == 0


def test_holes_are_not_filled_and_data_between_them_is_overwritten(tmp_path: Path) -> None:
    made = tmp_path / "guest"
    made.mkdir()
    mark(made)
    with open(made / "sparse", "wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), SECRET, 10_000_000)
    os.link(made / "sparse", tmp_path / "kept")
    scrub(made)
    assert SECRET[:27] not in (tmp_path / "kept").read_bytes()
    assert (tmp_path / "kept").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("call", ["write", "read", "sync", "unlink"])
def test_an_error_of_the_device_names_the_file_and_is_no_success(folder: Path, call: str) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(VmError, match=r"not scrubbed: .*guest/.*(Input/output error)"):
        scrub(folder, Io(**{call: fails}))
    assert folder.exists()
    assert scrub(folder).files > 0  # it can be tried again
    assert not folder.exists()


def test_a_device_that_forgets_a_write_is_seen(folder: Path) -> None:
    def pretends(_fd: int, data: memoryview, at: int) -> int:
        return len(data) if at else os.pwrite(_fd, data, at)

    with pytest.raises(
        VmError, match=r"not scrubbed: .*guest/ram: what was read back at byte 1048576 is not what was written"
    ):
        scrub(folder, Io(write=pretends))
    assert (folder / "ram").exists()
    assert not (folder / "vtpm" / "state").exists()  # the others are done all the same


def test_short_writes_and_reads_are_gone_on_with(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "ram", tmp_path / "kept")
    short = Io(
        lambda fd, data, at: os.pwrite(fd, data[:70_001], at), lambda fd, size, at: os.pread(fd, min(size, 50_001), at)
    )
    scrub(folder, short)
    assert SECRET[:27] not in (tmp_path / "kept").read_bytes()


def test_a_file_that_grows_is_done_again_and_one_that_does_not_stop_is_refused(folder: Path, tmp_path: Path) -> None:
    grown = []

    def grows_once(fd: int) -> None:
        os.fsync(fd)
        if not grown:
            grown.append(os.pwrite(fd, SECRET, os.fstat(fd).st_size))

    for name in ("ram", "empty", "vtpm/state"):
        os.link(folder / name, tmp_path / name.replace("/", "-"))
    scrub(folder, Io(sync=grows_once))
    assert grown
    assert all(SECRET[:27] not in (tmp_path / name).read_bytes() for name in ("ram", "empty", "vtpm-state"))

    folder.mkdir()
    mark(folder)
    (folder / "log").write_bytes(SECRET)
    with pytest.raises(VmError, match="guest/log: it changes its size all the time"):
        scrub(folder, Io(sync=lambda fd: os.ftruncate(fd, os.fstat(fd).st_size + 1)))


def test_a_file_that_appears_meanwhile_is_scrubbed_too(folder: Path) -> None:
    def appears(path: Path) -> None:
        os.unlink(path)
        if path.name == "ram":
            (folder / "late").write_bytes(SECRET)

    assert scrub(folder, Io(unlink=appears)).files == 4
    assert not folder.exists()


def test_a_file_that_cannot_be_opened_for_writing_is_named(folder: Path) -> None:
    shutil.copy(shutil.which("sleep") or "/bin/sleep", folder / "busy")
    with subprocess.Popen([folder / "busy", "60"]) as busy:
        try:
            with pytest.raises(
                VmError, match=r"not scrubbed: .*guest/busy: Text file busy; put that right and try again"
            ):
                scrub(folder)
            assert [
                path.name for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith(MARKER)
            ] == ["busy"]
        finally:
            busy.kill()
    assert scrub(folder).files == 1


def test_a_folder_without_our_marker_and_a_link_are_refused_and_left_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "vtpm", tmp_path / "foreign")
    shutil.copy(next(folder.glob(f"{MARKER}*")), tmp_path / "foreign")  # of another folder
    (tmp_path / "link").symlink_to(folder)
    for name in ("foreign", "link"):
        with pytest.raises(VmError, match=f"{name} is not scrubbed: .* bears no marker of ours"):
            scrub(tmp_path / name)
    assert (tmp_path / "foreign" / "state").read_bytes() == SECRET
    assert (folder / "vtpm" / "state").read_bytes() == SECRET


def test_the_marker_goes_last(folder: Path) -> None:
    def fails(path: Path) -> None:
        if path.name == "empty":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.unlink(path)

    with pytest.raises(VmError, match="not scrubbed"):
        scrub(folder, Io(unlink=fails))
    assert next(folder.glob(f"{MARKER}*"))
    assert scrub(folder).files == 1
