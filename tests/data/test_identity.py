"""An input is the file that was planned, or the job says that it is not."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from quoreduce.data import direct, identity
from quoreduce.data import inputs as inputs_module
from quoreduce.data import splits as splits_module
from quoreduce.data.formats import parse_format
from quoreduce.data.identity import Identity, change, tag_of
from quoreduce.data.inputs import open_split
from quoreduce.data.journal import JournalInput
from quoreduce.data.splits import Split, check_unchanged, plan_splits
from quoreduce.errors import HostError, InputError

LINES = parse_format("lines")
NS = 10**9


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        (Identity(5, 1, 2, 7), Identity(5, 1, 2, 7), ""),
        (Identity(5, 1, 2, 7), Identity(6, 1, 2, 7), "written to"),
        (Identity(5, 1, 2, 7), Identity(5, 1, 3, 7), "another file has its name"),
        (Identity(5, 1, 2, 7), Identity(5, 2, 2, 7), "another file has its name"),
        (Identity(5, 1, 2, 7), Identity(6, 3, 4, 8), ""),  # another node: the same second
        (Identity(5, 1, 2, 7), Identity(NS, 1, 2, 8), "written to"),
        (Identity(5, tag="a"), Identity(5, tag="b"), "its version was a at first, now b"),
        (Identity(5, tag="a"), Identity(5), ""),
        (Identity(5), Identity(6), "written to"),
    ],
)
def test_what_makes_a_file_another_one(before: Identity, now: Identity, what: str) -> None:
    assert what in change(before, now)
    assert bool(what) == bool(change(before, now))


def test_an_object_is_known_by_its_version_or_its_etag() -> None:
    assert tag_of({b"ETag": b'"x"', b"VersionId": b"7"}) == "7"
    assert tag_of({"ETag": '"x"'}) == '"x"'
    assert tag_of({}) == tag_of(None) == ""


def test_this_place_is_always_the_same_number() -> None:
    first = identity.here()
    identity.here.cache_clear()
    assert identity.here() == first > 1


def replaced(path: Path, how: str) -> None:
    """Another file of the same size, or other bytes in the same file."""
    data = path.read_bytes().swapcase()
    if how == "renamed over":
        other = path.with_name("other")
        other.write_bytes(data)
        os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        other.rename(path)
    elif how == "written to":
        before = path.stat().st_mtime_ns
        path.write_bytes(data)
        os.utime(path, ns=(before + 1, before + 1))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["renamed over", "written to", "deleted"])
@pytest.mark.parametrize("past_cache", [False, True])
def test_a_file_that_is_not_the_planned_one_is_refused(how: str, past_cache: bool, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abc\ndef\n")
    (split,) = plan_splits([str(path)], LINES, 100)
    check_unchanged([split])
    replaced(path, how)
    with pytest.raises(InputError, match=f"{path} changed while the job ran: .*run the job again"):
        check_unchanged([split])
    with pytest.raises(InputError, match=str(path)), open_split(split, LINES, tmp_path, direct=past_cache):
        pass


def test_a_split_without_an_identity_is_known_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abc\n")
    check_unchanged([Split(str(path), 0, 4, 4, "none", False, 0)])


def test_journals_of_before_lack_most_of_the_identity() -> None:
    old = msgspec.msgpack.decode(msgspec.msgpack.encode(["/a", 3, 5]), type=JournalInput)
    assert old.same(JournalInput.of("/a", 3, Identity(5 + 7, 1, 2, 3)))
    assert not old.same(JournalInput.of("/a", 3, Identity(2 * NS, 1, 2, 3)))
    assert not old.same(JournalInput.of("/a", 4, Identity(5)))


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 9_000_001])
def test_past_the_page_cache_are_the_same_bytes(size: int, tmp_path: Path) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    path = tmp_path / "bytes"
    path.write_bytes(data)
    file = direct.open_direct(str(path))
    if file is None:
        pytest.skip(f"the file system of {tmp_path} cannot read past the page cache")
    with file:
        half = size // 2
        for begin, stop in (
            (0, size),
            (size // 3, size),
            (size - 1, size),
            (half, min(size, half + 5000)),
            (0, size + 9),
        ):
            assert file.view(begin, stop).tobytes() == data[begin:stop]
        for offset in (0, size // 2, size - 1, 3):
            assert data[offset:].startswith(file.pread(77, offset))
        assert file.pread(9, size) == b""
        read = b"".join(iter(lambda: file.read(100_000), b""))
    assert read == data


@pytest.mark.parametrize("kind", ["text", "text.gz", "text.zst"])
def test_all_kinds_of_members_read_the_same_past_the_page_cache(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    import zstandard

    text = b"".join(b"line %d\n" % n for n in range(20_000))
    packed = {"text": text, "text.gz": gzip.compress(text), "text.zst": zstandard.compress(text)}[kind]
    (tmp_path / kind).write_bytes(packed)
    splits = plan_splits([str(tmp_path / kind)], LINES, 50_000)
    opened: list[str] = []
    real = direct.open_direct
    monkeypatch.setattr(inputs_module, "open_direct", lambda path: opened.append(path) or real(path))
    read = b""
    for split in splits:
        with open_split(split, LINES, tmp_path, direct=True) as array:
            read += array.tobytes()
    assert read == text
    assert len(opened) == len(splits)


def test_where_it_cannot_be_done_a_file_is_read_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abc\n")
    monkeypatch.delattr(os, "O_DIRECT")
    assert direct.open_direct(str(path)) is None
    (split,) = plan_splits([str(path)], LINES, 100)
    with open_split(split, LINES, tmp_path, direct=True) as array:
        assert array.tobytes() == b"abc\n"


def test_too_many_open_files_say_nothing_about_the_input(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abc\n")
    (split,) = plan_splits([str(path)], LINES, 100)
    assert isinstance(splits_module.unreadable(split.path, OSError(24, "Too many open files")), HostError)
    assert isinstance(splits_module.unreadable(split.path, OSError(5, "Input/output error")), InputError)


def test_a_machine_without_file_numbers_says_nothing_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a\n")

    def exhausted(*arguments: object, **named: object) -> int:
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(splits_module.os, "open", exhausted)
    with pytest.raises(HostError, match=f"cannot read {path}: Too many open files"):
        plan_splits([str(path)], LINES, 100)
