"""A journal says what was written or that it does not; a torn end is recognised, and everything else that is wrong is
refused.
"""

from __future__ import annotations

import errno
import os
import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.data import journal
from quoreduce.data.journal import (
    MAGIC,
    Begun,
    BlocksGone,
    Decided,
    Header,
    Journal,
    JournalInput,
    Launched,
    Record,
    decode,
    encode,
)
from quoreduce.data.journal import start_of_chain as start
from quoreduce.errors import JournalError

HEADER = Header(
    "1", "job", b"pickle", b"o", b"p", ("/in",), "lines", 7, (JournalInput("/in/a", 9, 1),), b"s" * 32, 2, b""
)
counts = st.integers(0, 1 << 62)
digests = st.binary(min_size=32, max_size=32)
kinds = st.sampled_from(["sample", "map", "reduce"])
records = st.lists(
    st.one_of(
        st.builds(Begun, counts),
        st.builds(Launched, kinds, counts, counts),
        st.builds(BlocksGone, st.lists(counts).map(tuple)),
        st.builds(
            Decided, kinds, counts, counts, st.lists(st.text(max_size=9), max_size=3).map(tuple), digests,
            st.lists(st.tuples(digests, counts, counts, counts), max_size=3).map(tuple), st.text(max_size=9),
            st.binary(), counts, counts, st.dictionaries(st.text(max_size=9), counts, max_size=2),
        ),
    ),
    max_size=6,
)  # fmt: skip


def written(said: list[Record]) -> bytes:
    return MAGIC + encode(said, start())[0]


@given(records)
def test_what_was_written_is_read(said: list[Record]) -> None:
    raw = written(said)
    found, good, chain = decode(raw)
    assert (found, good, chain) == (said, len(raw), encode(said, start())[1])


@given(records, records)
def test_it_is_gone_on_with_where_it_ended(first: list[Record], second: list[Record]) -> None:
    _, _, chain = decode(written(first))
    assert decode(written(first) + encode(second, chain)[0])[0] == first + second


@given(records, st.data(), st.integers(0, 5000))
def test_a_torn_end_is_recognised(said: list[Record], data: st.DataObject, zeros: int) -> None:
    """Wherever the file ends, and even if zeros follow: what was written whole before is read, and no more."""
    raw = written(said)
    cut = data.draw(st.integers(len(MAGIC), len(raw)))
    found, good, _ = decode(raw[:cut] + bytes(zeros))
    assert found == said[: len(found)]
    assert len(found) >= max(n for n in range(len(said) + 1) if len(written(said[:n])) <= cut)
    assert good == len(written(found)) <= cut + zeros


@given(records, st.data())
def test_a_flipped_bit_is_never_believed(said: list[Record], data: st.DataObject) -> None:
    """Anywhere but in the last frame it is refused; there it may look like a torn end, if zeros are all that
    follows.
    """
    raw = bytearray(written(said))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found, good, _ = decode(bytes(raw))
    except JournalError:
        return
    assert found == said[:-1]
    assert at >= good == len(written(said[:-1]))


@pytest.mark.parametrize("at", [0, 17, 21, 30, -80, -20])
def test_corruption_before_the_end_is_refused(at: int) -> None:
    raw = bytearray(written([HEADER, Begun(0), Launched("map", 0, 0), Launched("map", 1, 1)]))
    raw[at] ^= 4
    with pytest.raises(JournalError, match=r"not what was written|does not begin"):
        decode(bytes(raw))


def test_frames_that_change_places_or_are_missing_are_refused() -> None:
    """Each frame carries the digest of all before it."""
    said = [Launched("map", n, n) for n in range(4)]
    ends = [len(written(said[:n])) for n in range(5)]
    raw = written(said)
    frames = [raw[a:b] for a, b in pairwise(ends)]
    for order in ((0, 2, 1, 3), (0, 2, 3), (1, 2, 3), (0, 0, 1)):
        with pytest.raises(JournalError):
            decode(MAGIC + b"".join(frames[n] for n in order))


def test_a_record_of_no_known_kind_is_refused() -> None:
    raw = b"\x93\x01\x02\x03"
    length, chain = len(raw).to_bytes(4, "little"), start()
    with pytest.raises(JournalError, match="no known kind"):
        decode(MAGIC + length + journal._check(length, chain) + raw + journal.blake3(chain + raw).digest())


def test_a_record_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = written([HEADER])
    monkeypatch.setattr(journal, "RECORD_BYTES_MAX", 50)
    with pytest.raises(JournalError, match="without --durable"):
        written([HEADER])
    with pytest.raises(JournalError, match="at most 50 are read"):
        decode(raw)


@pytest.mark.parametrize(("length", "read"), [(128 << 20, True), ((128 << 20) + 1, False)])
def test_a_record_of_128_mb_may_be_torn_and_one_byte_more_is_refused(length: int, read: bool) -> None:
    size = length.to_bytes(4, "little")
    raw = MAGIC + size + journal._check(size, start()) + b"begins"
    if read:
        assert decode(raw)[:2] == ([], len(MAGIC))
    else:
        with pytest.raises(JournalError, match=r"byte 16 has 134,217,729 bytes; at most 134,217,728 are read"):
            decode(raw)


def test_what_is_written_may_just_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RECORD_BYTES_MAX", len(msgspec.msgpack.encode(HEADER)))
    assert decode(written([HEADER]))[0] == [HEADER]
    monkeypatch.setattr(journal, "RECORD_BYTES_MAX", len(msgspec.msgpack.encode(HEADER)) - 1)
    with pytest.raises(JournalError, match="too large"):
        written([HEADER])


def test_a_frame_that_is_there_to_its_last_byte_is_not_torn() -> None:
    """Only zeros are what was never written: a head that is wrong, or a digest that is, was changed."""
    raw = bytearray(written([Begun(1)]))
    for end, at in ((len(MAGIC) + 8, len(MAGIC) + 1), (len(raw), len(raw) - 1)):
        wrong = raw[:end]
        wrong[at] = ord("X") if wrong[at] != ord("X") else ord("Y")
        with pytest.raises(JournalError, match="not what was written"):
            decode(bytes(wrong))


def test_the_bytes_never_change() -> None:
    """Frames and records by hand: a journal is read by a later version, or refused for its MAGIC."""
    decided = {
        "kind": "map",
        "index": 3,
        "attempt": 9,
        "domains": ["a", "b"],
        "digest": b"d",
        "parts": [[b"p", 1, 2, 3]],
    }
    unsaid = {"path": "", "data": b"", "records_in": 0, "bytes_in": 0, "counters": {}, "checkers": []}
    header = {
        "version": "1", "name": "job", "job": b"pickle", "options": b"o", "place": b"p", "inputs": ["/in"],
        "format": "lines",
        "split_bytes": 7, "sources": [["/in/a", 9, 1, 0, 0, 0, ""]], "splits": b"s" * 32, "reducers": 2, "key": b"",
    }  # fmt: skip
    chain, raw = blake3(b"quoreduce job 1\n").digest(), b"quoreduce job 1\n"
    for record in (
        {"type": "header", **header}, {"type": "begun", "life": 1}, {"type": "gone", "attempts": [4, 5]},
        {"type": "launched", "kind": "map", "index": 2, "attempt": 1}, {"type": "decided", **decided, **unsaid},
    ):  # fmt: skip
        said = msgspec.msgpack.encode(record)
        length = len(said).to_bytes(4, "little")
        raw += length + blake3(length, key=chain).digest()[:4] + said
        chain = blake3(chain + said).digest()
        raw += chain
    last = Decided("map", 3, 9, ("a", "b"), b"d", ((b"p", 1, 2, 3),))
    assert raw == written([HEADER, Begun(1), BlocksGone((4, 5)), Launched("map", 2, 1), last])


def test_a_file_is_cut_where_it_is_torn_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal"
    path.parent.mkdir()
    one = Journal.create(path, [HEADER, Begun(0)])
    one.append([Launched("map", 0, 0), Launched("map", 1, 1)])
    one.close()
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["journal"]
    os.truncate(path, path.stat().st_size - 1)
    two, found = Journal.open(path)
    assert found == [HEADER, Begun(0), Launched("map", 0, 0)]
    two.append([Begun(1)])
    two.sync()
    two.close()
    three, found = Journal.open(path)
    three.close()
    assert found == [HEADER, Begun(0), Launched("map", 0, 0), Begun(1)]


@pytest.mark.parametrize("raw", [b"", b"something else entirely", MAGIC, written([Begun(0)])])
def test_a_file_that_does_not_say_what_the_job_is_is_refused_and_left_alone(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(raw)
    with pytest.raises(JournalError):
        Journal.open(tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == raw


def test_a_disk_that_is_full_leaves_no_half_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one can go on when there is space again."""
    path = tmp_path / "journal"
    one = Journal.create(path, [HEADER])
    write = os.write

    def full(fd: int, raw: memoryview) -> int:
        if len(raw) < 40:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(fd, raw[:10])

    one.append([Begun(3)])
    before = path.read_bytes()
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space"):
        one.append([Begun(5)])
    monkeypatch.setattr(os, "write", write)
    assert path.read_bytes() == before
    one.append([Begun(7)])
    one.append([Begun(8)])
    one.close()
    assert decode(path.read_bytes())[0] == [HEADER, Begun(3), Begun(7), Begun(8)]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_file_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of a journal that was closed, once or twice, nor of one that could not be made or opened."""
    path = tmp_path / "journal"
    before = open_files()
    one = Journal.create(path, [HEADER])
    one.close()
    one.close()
    assert open_files() == before
    two, _ = Journal.open(path)
    assert open_files() == before + 1
    two.close()
    path.write_bytes(b"something else entirely")
    with pytest.raises(JournalError):
        Journal.open(path)
    monkeypatch.setattr(os, "fsync", lambda fd: os.stat("/nowhere"))
    with pytest.raises(OSError, match="nowhere"):
        Journal.create(path, [HEADER])
    assert open_files() == before


def test_a_journal_is_on_disk_before_it_is_seen(tmp_path: Path, trail: list[str]) -> None:
    """And so are the folder that names it and the one that names that: it is to be found after a loss of power."""
    path = tmp_path / "folder" / "journal"
    path.parent.mkdir()
    one = Journal.create(path, [HEADER])
    assert re.fullmatch(r"\.journal\.[0-9a-f]{8}\.tmp", trail[0])
    assert trail[1:] == ["> journal", "folder", tmp_path.name]
    one.append([Begun(0)])
    assert len(trail) == 4
    one.sync()
    assert trail[4:] == ["journal"]
    one.close()


def test_only_a_torn_end_is_cut_off_and_that_for_good(tmp_path: Path, trail: list[str]) -> None:
    path = tmp_path / "journal"
    path.write_bytes(written([HEADER]))
    Journal.open(path)[0].close()
    assert trail == []
    path.write_bytes(written([HEADER]) + bytes(9))
    Journal.open(path)[0].close()
    assert trail == ["journal"]
    assert path.read_bytes() == written([HEADER])


def test_a_link_is_not_followed_to_another_journal(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(written([HEADER]))
    (tmp_path / "journal").symlink_to("other")
    with pytest.raises(JournalError, match="symbolic links"):
        Journal.open(tmp_path / "journal")


def test_a_journal_over_the_bound_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    path.write_bytes(written([HEADER]))
    monkeypatch.setattr(journal, "JOURNAL_BYTES_MAX", path.stat().st_size)
    Journal.open(path)[0].close()
    monkeypatch.undo()
    monkeypatch.setattr(os, "fdopen", lambda *_: pytest.fail("it is read"))
    os.truncate(path, (4 << 30) + 1)
    with pytest.raises(JournalError, match=r"4,294,967,297 bytes; at most 4,294,967,296 are read"):
        Journal.open(path)
