"""Compiled kernels: only what was compiled is loaded; all else is compiled anew and said, and never a traceback or a
hang.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import WORDCOUNT, parts_of

from quoreduce import Job, Options, Session
from quoreduce.errors import HostError
from quoreduce.protocol import compile as compiling
from quoreduce.protocol.compile import damaged_kernels, ensure_kernels
from quoreduce.protocol.options import Place
from quoreduce.protocol.port import kernel_folder
from quoreduce_kernels import cache
from quoreduce_kernels.cache import MANIFEST, VARIABLE, CacheReader, Unsafe, Writer

SMALL = "pairs._count-"  # takes little time to compile


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def turn_into_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_a_copy(path: Path) -> None:
    copy = path.parent.parent / "copy"
    path.rename(copy)
    path.symlink_to(copy)


DAMAGE = (flip, cut, lengthen, empty, Path.unlink, turn_into_a_pipe, turn_into_a_folder, link_to_a_copy)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this machine's compiled kernels, which this process and those that it starts use."""
    copy = tmp_path / "cache" / kernel_folder().name
    shutil.copytree(ensure_kernels(), copy)
    monkeypatch.setenv("QUOREDUCE_CACHE", str(copy.parent))
    monkeypatch.delenv(VARIABLE)
    return copy


def one(kernels: Path, start: str = SMALL) -> Path:
    """A file of the folder."""
    (found,) = kernels.glob(f"{start}*")
    return found


def in_a_process(code: str, env: dict[str, str]) -> tuple[str, str]:
    """Run Python code in a process of its own: (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("spoil", DAMAGE)
def test_a_damaged_kernel_is_not_loaded(kernels: Path, spoil: Callable[[Path], None]) -> None:
    path = one(kernels)
    assert CacheReader(kernels).load(path.name) == path.read_bytes()
    spoil(path)
    reader = CacheReader(kernels)
    assert reader.load(path.name) is None
    assert reader.damaged() == [path.name]
    others = [name for name in reader.names if name != path.name]
    assert all(reader.load(name) is not None for name in others)


@pytest.mark.parametrize("spoil", DAMAGE)
def test_with_a_damaged_manifest_nothing_wrong_is_loaded(kernels: Path, spoil: Callable[[Path], None]) -> None:
    whole = {path.name: path.read_bytes() for path in kernels.iterdir()}
    spoil(kernels / MANIFEST)
    reader = CacheReader(kernels)
    assert reader.damaged()
    assert {reader.load(name) for name in reader.names} <= {None, *whole.values()}


@pytest.mark.parametrize(
    "manifest",
    [
        [], {}, {"format": "quoreduce kernels 1"}, {"format": "quoreduce kernels 1", "kernels": {"../x": [1, "00"]}},
        {"format": "quoreduce kernels 1", "kernels": {"x": [-1, "00"]}},
        {"format": "quoreduce kernels 1", "kernels": {"x": 1}},
        {"format": "quoreduce kernels 1", "kernels": {"x": [1 << 62, "00"]}}, {"format": "another", "kernels": {}},
        {"format": "quoreduce kernels 1", "kernels": {"x": [float("inf"), "00"]}},
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_names_nothing(kernels: Path, manifest: object) -> None:
    (kernels / MANIFEST).write_text(json.dumps(manifest))
    assert CacheReader(kernels).names == []
    assert CacheReader(kernels).damaged() == [MANIFEST]


def test_a_file_that_the_manifest_does_not_name_is_not_loaded(kernels: Path) -> None:
    path = one(kernels)
    shutil.copy(path, kernels / "another.nbc")
    assert CacheReader(kernels).load("another.nbc") is None
    assert CacheReader(kernels).load(f"../{kernels.name}/{path.name}") is None


def test_a_reader_sees_what_was_compiled_anew_meanwhile(kernels: Path) -> None:
    path, reader = one(kernels), CacheReader(kernels)
    writer = Writer(kernels)
    for name in writer.names:
        writer.load(name)
    writer.save(path.name, b"compiled anew")
    writer.finish()
    assert reader.load(path.name) == b"compiled anew"


def test_a_worker_compiles_for_itself_what_it_cannot_use_and_says_it(kernels: Path) -> None:
    flip(one(kernels))
    code = (
        "from quoreduce_kernels import pairs; import numpy as np; "
        "print(pairs.count_byte(np.frombuffer(b'aba', np.uint8), 97))"
    )
    said, error = in_a_process(code, {VARIABLE: str(kernels)})
    assert said == "2\n"
    assert error.count("\n") == 1
    assert f"{one(kernels).name} is not what was compiled there; process " in error
    assert CacheReader(kernels).damaged() == [one(kernels).name], "a process that only loads kernels writes nothing"


def test_without_a_folder_a_worker_compiles_for_itself(tmp_path: Path) -> None:
    code = (
        "from quoreduce_kernels.options import kernel\n"
        "def double(x):\n  return 2 * x\nprint(kernel('i8(i8)')(double)(21))"
    )
    for where in ({VARIABLE: str(tmp_path / "none")}, {VARIABLE: ""}):
        said, error = in_a_process(code, where)
        assert said == "42\n"
        assert error.count("\n") == bool(where[VARIABLE])


def test_what_is_damaged_is_compiled_anew_once_and_said(kernels: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoiled = one(kernels)
    before = {path.name: path.read_bytes() for path in kernels.iterdir() if path not in (spoiled, kernels / MANIFEST)}
    cut(spoiled)
    (kernels / "rubbish").write_text("that nobody named")
    assert damaged_kernels() == [spoiled.name]
    assert ensure_kernels() == kernels
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == f"kernels in {kernels} are damaged ({spoiled.name}): compiling them anew ...\n"
    assert damaged_kernels() == []
    after = {path.name: path.read_bytes() for path in kernels.iterdir() if path not in (spoiled, kernels / MANIFEST)}
    assert after == before, "the others are as they were, and what nobody named is gone"
    ensure_kernels()
    assert capfd.readouterr().err == ""


def test_kernels_that_rot_after_the_check_spoil_no_output(
    kernels: Path,
    verses: Path,
    verses_counted: list[tuple[bytes, int]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Session(Place("local", 2, "worker", store=str(tmp_path / "store"))) as session:
        flip(one(kernels, "word_order.text_digits-"))  # workers have yet to load it
        result = session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), Options(f=1))
    lines = b"".join(parts_of(tmp_path / "out")).splitlines()
    assert sorted((word, int(n)) for word, n in (line.split(b"\t") for line in lines)) == sorted(verses_counted)
    assert result.faults.detected == 0
    assert capfd.readouterr().err.count("is not what was compiled there") == 2, "each worker says it"


def test_kernels_that_give_wrong_answers_are_not_used(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(one(kernels))
    monkeypatch.setattr(compiling, "_TEST", "print('sort words')")
    with pytest.raises(HostError, match=r"give wrong answers \(sort, words\): test .* `quoreduce suspects --test`"):
        ensure_kernels()
    assert not (kernels / MANIFEST).exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [("raise SystemExit('no space')", "kernels did not compile: no space"), ("pass", "does not keep what is written")],
)
def test_what_cannot_be_compiled_is_one_line(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    cut(one(kernels))
    monkeypatch.setattr(compiling, "_FILL", code)
    with pytest.raises(HostError, match=message):
        ensure_kernels()


def test_a_disk_that_reads_nothing_is_said_before_anything_is_compiled(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(cache, "_read", fails)
    monkeypatch.setattr(compiling, "_run", lambda *_: pytest.fail("a minute's work for nothing"))
    with pytest.raises(HostError, match="does not keep what is written"):
        ensure_kernels()


def test_another_process_that_does_not_let_go_of_the_lock_is_no_hang(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(one(kernels))
    monkeypatch.setattr(compiling, "TIMEOUT_S", 0.2)
    with open(kernels.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HostError, match=r"another process has had .*/lock"):
            ensure_kernels()


def test_a_folder_that_others_may_write_is_refused(kernels: Path) -> None:
    kernels.chmod(0o775)
    with pytest.raises(Unsafe):
        CacheReader(kernels)
    for check in (ensure_kernels, damaged_kernels):
        with pytest.raises(
            HostError, match="cannot be trusted: others may write it; remove it, or set QUOREDUCE_CACHE"
        ):
            check()


def test_a_folder_of_another_user_or_a_link_is_refused(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = kernels.stat().st_uid
    monkeypatch.setattr(cache.os, "fstat", lambda fd: os.stat_result([0o40755, 0, 0, 0, owner + 4711, *[0] * 5]))
    with pytest.raises(HostError, match=f"it belongs to user {owner + 4711}"):
        ensure_kernels()
    monkeypatch.undo()
    monkeypatch.setenv("QUOREDUCE_CACHE", str(kernels.parent))
    kernels.rename(kernels.parent / "elsewhere")
    kernels.symlink_to(kernels.parent / "elsewhere")
    with pytest.raises(HostError, match="cannot be trusted"):
        ensure_kernels()


def test_a_folder_is_not_made_writable_for_the_group(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        writer = Writer(tmp_path / "made")
        writer.save("x.nbc", b"kernel")
        writer.finish()
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755
    assert CacheReader(tmp_path / "made").load("x.nbc") == b"kernel"
    assert sorted(os.listdir(tmp_path / "made")) == [MANIFEST, "x.nbc"]


def test_a_kernel_that_cannot_be_written_leaves_the_old_one(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one(kernels)
    before = path.read_bytes()
    monkeypatch.setattr(cache.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        Writer(kernels).save(path.name, b"new")
    assert path.read_bytes() == before
    assert not list(kernels.glob("*.tmp"))


def test_workers_share_no_cache_of_numba(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("\n".join(f"line {i}" for i in range(200)))

    def places(record: bytes) -> list[tuple[str, int]]:
        return [(os.environ["NUMBA_CACHE_DIR"], 1)]

    def count(key: str, values: list[int]) -> list[tuple[str, int]]:
        return [(key, len(values))]

    with Session(Place("local", 2, "worker", store=str(tmp_path / "store"))) as session:
        names = {info.name for info in session.workers}
        options = Options(mode="original", split_mb=0.0002, reducers=1)
        session.run(Job("places", places, count), [str(text)], str(tmp_path / "out"), options)
    said = {
        Path(line.split(b"\t")[0].decode()).name for part in parts_of(tmp_path / "out") for line in part.splitlines()
    }
    assert said <= {f"{name}.numba" for name in names}
    assert len(said) == 2
