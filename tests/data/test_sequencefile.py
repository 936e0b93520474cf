"""SequenceFiles: what is written is read, by any split exactly once; and every bad file is one clear line."""

from __future__ import annotations

import gzip
import re
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sequences import SHARED_TMP, WAY, WAYS, Record, block, groups_of, pairs_of, with_header, written

from quoreduce.data import sequencefile as sf
from quoreduce.data import sequencewriter as sw
from quoreduce.data.block import Block
from quoreduce.data.formats import parse_format
from quoreduce.data.inputs import open_records, open_split, read_sequence_split
from quoreduce.data.sequencefile import read_sequence, sync_marker
from quoreduce.data.splits import plan_splits
from quoreduce.errors import InputError, UsageError
from quoreduce_kernels import sequence as kernels

SEQUENCE = parse_format("sequence")

MANY = settings(SHARED_TMP, max_examples=300)

SHORT_RECORDS = st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=90)), max_size=12)


def check_all_splits(path: Path, records: list[Record], split_bytes: int, as_uri: bool) -> None:
    data = path.read_bytes()
    splits = plan_splits([str(path)], SEQUENCE, split_bytes)
    assert sum(split.length for split in splits) == len(data)
    found: list[Record] = []
    for split in splits:
        source = msgspec.structs.replace(split, uri=True, path=f"file://{path}") if as_uri else split
        with open_records(source, SEQUENCE, path.parent) as block:
            assert isinstance(block, Block)
            mine = pairs_of(block)
        inside = [at for at in groups_of(data) if split.start <= at < split.start + split.length]
        assert bool(mine) <= bool(inside)
        found += mine
    assert found == records


@SHARED_TMP
@given(SHORT_RECORDS, WAY, st.integers(1, 200), st.integers(1, 700), st.booleans())
def test_every_record_is_in_exactly_one_split(
    tmp_path: Path, records: list[Record], way: Any, block_bytes: int, split_bytes: int, as_uri: bool
) -> None:
    path = tmp_path / "file"
    data = written(records, compression=way[0], codec=way[1], block_bytes=block_bytes)
    path.write_bytes(data)
    check_all_splits(path, records, max(split_bytes, len(data) // 60), as_uri)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("split_bytes", [1000, 102_399, 102_420, 300_000, 10**7])
def test_large_files_are_cut_at_their_sync_points(tmp_path: Path, way: Any, split_bytes: int) -> None:
    generator = np.random.default_rng(3)
    records = [(b"%d" % i, generator.bytes(int(n))) for i, n in enumerate(generator.integers(0, 9000, 150))]
    path = tmp_path / "file"
    path.write_bytes(written(records, compression=way[0], codec=way[1], block_bytes=50_000))
    assert len(groups_of(path.read_bytes())) > 5
    check_all_splits(path, records, split_bytes, False)


@pytest.mark.parametrize("way", WAYS)
def test_splits_of_one_byte(tmp_path: Path, way: Any) -> None:
    """Also those inside the header, where Hadoop itself reads the first group once for each."""
    records = [(b"k%d" % i, b"v") for i in range(9)]
    (tmp_path / "file").write_bytes(written(records, compression=way[0], codec=way[1], block_bytes=4))
    check_all_splits(tmp_path / "file", records, 1, False)


def test_a_marker_across_the_edge_of_a_window_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [(b"k%d" % i, b"v" * i) for i in range(40)]
    path = tmp_path / "file"
    path.write_bytes(written(records, block_bytes=1))
    for window in (1, 7, 19, 20, 21, 64):
        monkeypatch.setattr(sf, "_WINDOW", window)
        check_all_splits(path, records, 97, False)


@pytest.mark.parametrize("window", [1, 7, 19, 20, 21, 64, 1 << 18])
def test_a_range_is_from_the_first_marker_in_it_to_the_first_after_it_whatever_the_window(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Where a marker lies across two windows too: what a split leaves out, another would read, and the whole would be
    right.
    """
    monkeypatch.setattr(sf, "_WINDOW", window)
    data = written([(b"k%d" % i, b"v" * i) for i in range(6)], block_bytes=1)
    header = sf.read_header(lambda at, n: data[at : at + n], len(data), "x")
    bounds = sorted({at + by for at in groups_of(data) for by in (-21, -20, -19, -1, 0, 1)} | {0, len(data)})
    for start, end in pairwise(bounds):
        begin, stop = (next((at for at in groups_of(data) if at >= bound), len(data)) for bound in (start, end))
        expected = (begin, stop) if begin < end else (end, end)
        assert sf.sync_range(lambda at, n: data[at : at + n], header, start, end, len(data)) == expected


def test_a_whole_file_may_be_compressed_once_more(tmp_path: Path) -> None:
    records = [(b"k%d" % i, b"v" * i) for i in range(40)]
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(written(records, block_bytes=50)))
    (split,) = plan_splits([str(path)], SEQUENCE, 10)
    with open_records(split, SEQUENCE, tmp_path) as block:
        assert isinstance(block, Block)
        assert pairs_of(block) == records


def test_lines_are_still_an_array(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a\nb\n")
    (split,) = plan_splits([str(tmp_path / "text")], parse_format("lines"), 100)
    with open_records(split, parse_format("lines"), tmp_path) as array:
        assert isinstance(array, np.ndarray)
        assert array.tobytes() == b"a\nb\n"
    with pytest.raises(UsageError, match="open_records"), open_split(split, SEQUENCE, tmp_path):
        pass


def read_through_splits(path: Path) -> None:
    for split in plan_splits([str(path)], SEQUENCE, 1 << 30):
        read_sequence_split(split, path.parent)


def outcome(path: Path, data: bytes) -> list[Record] | str:
    """Read bytes as a file in every way there is: its records, or the message of the InputError."""
    path.write_bytes(data)
    try:
        found = pairs_of(read_sequence(path))
    except InputError as error:
        message = str(error)
        assert re.match(rf"{re.escape(str(path))}: bad SequenceFile at byte (\d+): .", message), message
        assert "\n" not in message
        assert int(re.findall(r"at byte (\d+)", message)[0]) <= len(data)
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_through_splits(path)
        return message
    return found


SMALL = [(b"k%d" % i, bytes([97 + i]) * (i * i)) for i in range(14)]


@pytest.mark.parametrize("way", WAYS)
def test_a_file_cut_anywhere_is_refused_or_ends_between_groups(tmp_path: Path, way: Any) -> None:
    data = written(SMALL, compression=way[0], codec=way[1], block_bytes=300)
    ends = {len(SMALL[:0])}
    for size in range(len(data)):
        found = outcome(tmp_path / "cut", data[:size])
        if not isinstance(found, str):
            assert found == SMALL[: len(found)]
            ends.add(len(found))
    assert len(ends) < len(SMALL) or way[0] != "block"


@MANY
@given(WAY, st.integers(0, 10**6), st.integers(1, 255), st.sampled_from(["Text", "BytesWritable"]))
def test_a_flipped_byte_never_crashes_and_compressed_data_show_it(
    tmp_path: Path, way: Any, at: int, flip: int, kind: str
) -> None:
    data = bytearray(written(SMALL, key=kind, value=kind, compression=way[0], codec=way[1], block_bytes=300))
    first = groups_of(bytes(data))[0]
    at %= len(data)
    data[at] ^= flip
    found = outcome(tmp_path / "flipped", bytes(data))
    if way == ("block", "zlib") and at >= first:
        assert isinstance(found, str) or found == SMALL  # the latter: bits of zlib's header that mean nothing


@MANY
@given(
    WAY,
    st.sampled_from(sorted(sf.CLASSES)),
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(["sync", "z", "s"]))),
)
def test_any_bytes_after_a_header_are_records_or_an_error(
    tmp_path: Path, way: Any, kind: str, pieces: list[Any]
) -> None:
    sync = sync_marker(0, 0)
    known = {"sync": b"\xff" * 4 + sync, "z": b"\x09" + zlib.compress(b"\x01")[:9], "s": zlib.compress(b"x")}
    body = b"".join(known[piece] if isinstance(piece, str) else piece for piece in pieces)
    outcome(tmp_path / "fuzzed", sf.file_header(sync, kind, kind, way[0], way[1]) + body)


@SHARED_TMP
@given(st.binary(max_size=200), st.sampled_from([b"", b"SEQ", b"SEQ\x06", b"SEQ\x06\x19org.apache.hadoop.io.Text"]))
def test_any_bytes_are_no_header_or_one(tmp_path: Path, data: bytes, head: bytes) -> None:
    outcome(tmp_path / "fuzzed", head + data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"byte 0: it begins with b'', not with b'SEQ': no SequenceFile"),
        (b"PAR1", r"byte 0: it begins with b'PAR', not"),
        (b"SEQ", r"byte 3: the version of 1 bytes, of which 0 are there: truncated"),
        (with_header(magic=b"SEQ\x04"), r"byte 3: version 4; only 6 is read"),
        (
            with_header(key=b"\x0fcom.example.Key"),
            r"byte 4: unknown key class 'com.example.Key'; known are Text, BytesW",
        ),
        (with_header(value=b"\x05Te\xffxt"), r"byte 30: unknown value class 'Te.xt'"),
        (
            with_header(codec=b"\x2corg.apache.hadoop.io.compress.SnappyLikeCode"),
            r"byte 58: unknown codec 'org.apache.*Code'",
        ),
        (with_header(flags=b"\2\1"), r"byte 56: the flag of compression is 2"),
        (with_header(flags=b"\0\1"), r"byte 57: blocks that are not compressed"),
        (with_header(metadata=b"\xff\xff\xff\xff"), r"byte 101: -1 metadata"),
        (with_header(metadata=b"\x7f\xff\xff\xff"), r"byte 101: 2147483647 metadata"),
        (
            with_header(metadata=b"\0\0\0\1\x8c\x7f\xff\xff\xff"),
            r"byte 105: a key of the metadata has 2147483647 bytes",
        ),
        (with_header(key=b"\x80"), r"byte 4: the length of .*key class is no length"),
        (with_header(sync=bytes(15)), r"byte 105: the sync marker of 16 bytes, of which 15 are there"),
        (
            with_header() + b"\xff\xff\xff\xff" + bytes(15) + b"\1",
            r"byte 121: no sync marker where a block should begin",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, data: bytes, message: str) -> None:
    assert re.search(message, str(outcome(tmp_path / "bad", data)))


BOMB = zlib.compress(bytes(50_000_000), 9)

GOOD = (zlib.compress(b"\2"), zlib.compress(b"\1k"), zlib.compress(b"\2"), zlib.compress(b"\1v"))

HUGE = kernels.encode_vints(np.array([2**31 - 1] * 3, np.int64)).tobytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (block(2**31 - 1, *GOOD), r"byte 121: a block of 2147483647 records cannot be so small"),
        (block(1, BOMB, *GOOD[1:]), r"lengths of keys decompress to more than 5 bytes"),
        (block(1, GOOD[0], BOMB, *GOOD[2:]), r"keys decompress to more than 2 bytes"),
        (block(3, zlib.compress(HUGE), *GOOD[1:3], GOOD[3]),
         r"item 0 has 2147483647 bytes|cannot be compressed so well"),
        (block(1, zlib.compress(b"\x8c\x7f\xff\xff\xf0"), *GOOD[1:]),
         r"keys of 2147483632 bytes cannot be compressed so well"),
        (block(1, zlib.compress(b"\3"), *GOOD[1:]), r"byte 121: 2 bytes of keys, not 3"),
        (block(1, GOOD[0], zlib.compress(b"\0k"), *GOOD[2:]),
         r"in the block's keys, item 0 does not begin with its length"),
        (block(2, zlib.compress(b"\2"), *GOOD[1:]), r"in the block's lengths of keys, item 0 to 1 do not fit 1 bytes"),
        (block(1, zlib.compress(b"\2\2"), *GOOD[1:]), r"in the block's lengths of keys, item 1 should be the end"),
        (block(1, zlib.compress(b"\x8e\1\1"), *GOOD[1:]), r"2 bytes of keys, not 257"),
        (block(1, *GOOD[:3], GOOD[3][:-1]), r"byte \d+: values are cut short"),
        (block(1, *GOOD[:3], GOOD[3] + b"!"), r"byte \d+: values are followed by other bytes"),
        (block(1, *GOOD[:3], GOOD[3][:-1] + b"!"), r"byte \d+: values: .*(Incorrect checksum|incorrect data check)"),
        (block(1, *GOOD[:3], b"not zlib"), r"byte \d+: values: .*(unsupported compress method|incorrect header check)"),
        (block(1, *GOOD)[:-1], r"byte \d+: values of \d+ bytes, of which \d+ are there"),
        (block(0, *(zlib.compress(b"") for _ in range(3)), BOMB), r"values decompress to more than 0 bytes"),
    ],
)  # fmt: skip
def test_absurd_lengths_are_refused_before_memory_is_given_to_them(tmp_path: Path, data: bytes, message: str) -> None:
    assert re.search(message, str(outcome(tmp_path / "bad", data)))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3, "byte 3: the version of 1 bytes, of which 0 are there"),
        (4, "byte 4: the length of the name of the key class of 1 bytes, of which 0 are there"),
        (10, "byte 5: the name of the key class of 25 bytes, of which 5 are there"),
        (30, "byte 30: the length of the name of the value class of 1 bytes, of which 0 are there"),
        (31, "byte 31: the name of the value class of 25 bytes, of which 0 are there"),
        (56, "byte 56: the flag of compression of 1 bytes, of which 0 are there"),
        (57, "byte 57: the flag of blocks of 1 bytes, of which 0 are there"),
        (58, "byte 58: the length of the name of the codec of 1 bytes, of which 0 are there"),
        (60, "byte 59: the name of the codec of 42 bytes, of which 1 are there"),
        (103, "byte 101: the number of metadata of 4 bytes, of which 2 are there"),
        (105, "byte 105: the length of a key of the metadata of 1 bytes, of which 0 are there"),
        (106, "byte 106: a key of the metadata of 1 bytes, of which 0 are there"),
        (107, "byte 107: the length of a value of the metadata of 1 bytes, of which 0 are there"),
        (108, "byte 108: a value of the metadata of 1 bytes, of which 0 are there"),
        (110, "byte 109: the sync marker of 16 bytes, of which 1 are there"),
        (130, "byte 125: a block's sync marker of 20 bytes, of which 5 are there"),
        (145, "byte 145: the number of records of 1 bytes, of which 0 are there"),
    ],
)
def test_a_file_that_is_cut_short_says_what_is_missing(tmp_path: Path, size: int, message: str) -> None:
    data = with_header(metadata=b"\0\0\0\1\1k\1v") + sw.block_frame(bytes(16), 1, GOOD)
    assert f" at {message}: truncated or corrupt" in str(outcome(tmp_path / "cut", data[:size]))


def test_a_block_that_is_cut_short_says_which_buffer_is_missing(tmp_path: Path) -> None:
    data, at = block(1, *GOOD), 142
    for what, buffer in zip(("lengths of keys", "keys", "lengths of values", "values"), GOOD, strict=True):
        message = f"byte {at}: the size of the {what} of 1 bytes, of which 0 are there"
        assert message in str(outcome(tmp_path / "cut", data[:at]))
        message = f"byte {at + 1}: {what} of {len(buffer)} bytes, of which 1 are there"
        assert message in str(outcome(tmp_path / "cut", data[: at + 2]))
        at += 1 + len(buffer)
    assert at == len(data)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (b"\x80", "byte 141: the number of records is no length"),
        (b"\x8b" + bytes(9), "byte 141: the number of records is no length"),
        (b"\x90", "byte 141: the number of records is no length"),
        (b"\xff", "byte 141: the number of records is no length"),
        (b"\x8c\x80\0\0\0", "byte 141: the number of records is 2147483648"),
        (b"\x8e\1", "byte 142: the number of records of 2 bytes, of which 1 are there"),
        (b"\x8f", "byte 142: the number of records of 1 bytes, of which 0 are there"),
    ],
)
def test_what_is_no_length_is_refused(tmp_path: Path, number: bytes, message: str) -> None:
    assert message in str(outcome(tmp_path / "bad", with_header() + b"\xff" * 4 + bytes(16) + number))


@pytest.mark.parametrize("which", [0, 2])
def test_more_records_than_lengths_can_be_compressed_into_so_few_bytes_are_refused(tmp_path: Path, which: int) -> None:
    """Either buffer of lengths bounds them, at 1032 bytes from one."""
    buffers = [zlib.compress(bytes(n)) for n in (100_000, 100_000, 100_000, 100_000)]
    buffers[which] = zlib.compress(b"\2")
    most = 1032 * len(buffers[which])
    assert "cannot be so small" in str(outcome(tmp_path / "bad", block(most + 1, *buffers)))
    assert "cannot be so small" not in str(outcome(tmp_path / "bad", block(most, *buffers)))


@pytest.mark.parametrize("which", [0, 2])
def test_more_bytes_than_can_be_compressed_into_so_few_are_refused(tmp_path: Path, which: int) -> None:
    most = 1032 * len(GOOD[which + 1])
    name = "values" if which else "keys"
    for size, good in ((most, True), (most + 1, False)):
        buffers = list(GOOD)
        buffers[which] = zlib.compress(sf.vint(size))
        wrong = (
            f"byte 121: 2 bytes of {name}, not {size}"
            if good
            else f"byte 121: {name} of {size} bytes cannot be compressed"
        )
        assert wrong in str(outcome(tmp_path / "bad", block(1, *buffers)))


def test_many_records_that_are_all_alike_are_read(tmp_path: Path) -> None:
    """Their lengths take very few bytes."""
    records = [(b"k", b"v")] * 5000
    (tmp_path / "file").write_bytes(written(records))
    assert pairs_of(read_sequence(tmp_path / "file")) == records


def test_a_header_is_as_large_as_it_may_be_and_no_larger(tmp_path: Path) -> None:
    big = {chr(97 + n): "x" * 4096 for n in range(15)}
    left = (1 << 16) - len(sf.file_header(bytes(16), metadata={**big, "p": ""})) - 2  # a VInt of 3 bytes, not 1
    assert 256 <= left <= 4096
    data = sf.file_header(bytes(16), metadata={**big, "p": "y" * left})
    assert len(data) == 1 << 16
    header = sf.read_header(lambda at, n: data[at : at + n], len(data), "x")
    assert (header.end, header.metadata[-1]) == (1 << 16, (b"p", b"y" * left))
    with pytest.raises(UsageError, match="at most 65536 bytes and 1024 metadata"):
        sf.file_header(bytes(16), metadata={**big, "p": "y" * (left + 1)})
    with pytest.raises(UsageError, match="at most 4096 bytes, not 4097"):
        sf.file_header(bytes(16), metadata={"k": "x" * 4097})
    wrong = with_header(metadata=b"\0\0\0\1" + sf.vint(4097) + b"x" * 4097)
    assert "byte 105: a key of the metadata has 4097 bytes; at most 4096 are read" in str(
        outcome(tmp_path / "bad", wrong)
    )


def test_as_much_metadata_as_may_be_written_is_read(tmp_path: Path) -> None:
    data = sf.file_header(bytes(16), metadata={str(n): "" for n in range(1024)})
    header = sf.read_header(lambda at, n: data[at : at + n], len(data), "x")
    assert len(header.metadata) == 1024
    with pytest.raises(UsageError, match="1024 metadata"):
        sf.file_header(bytes(16), metadata={str(n): "" for n in range(1025)})
    wrong = with_header(metadata=(1025).to_bytes(4, "big") + bytes(2 * 1025))
    assert "byte 101: 1025 metadata; 0 to 1024 are read" in str(outcome(tmp_path / "bad", wrong))


def test_a_header_may_come_in_pieces_and_nothing_after_it_is_asked_for() -> None:
    data = with_header() + bytes(100_000)
    for size in (125, len(data)):
        asked: list[int] = []

        def read_at(at: int, n: int, size: int = size, asked: list[int] = asked) -> bytes:
            asked.append(at + n)
            return data[at : min(at + n, at + 4000, size)]

        header = sf.read_header(read_at, size, "x")
        assert (header.end, header.compression, header.wbits) == (121, "block", 15)
        assert set(asked) == {min(size, 1 << 16)}


@pytest.mark.parametrize("way", WAYS)
def test_a_header_says_how_records_are_stored(way: Any) -> None:
    data = written([], key="LongWritable", value="BytesWritable", compression=way[0], codec=way[1])
    header = sf.read_header(lambda at, n: data[at : at + n], len(data), "x")
    wbits = 0 if way[0] == "none" else 31 if way[1] == "gzip" else 15
    assert header == (8, -2, way[0], wbits, (), sync_marker(1, 0), len(data))


SINGLES = {"flags": b"\0\0", "codec": b""}


def single(key: bytes, value: bytes) -> bytes:
    return (len(key) + len(value)).to_bytes(4, "big") + len(key).to_bytes(4, "big") + key + value


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"\0\0\0", "byte 90: a record is cut short"),
        (single(b"\1k", b"\1v")[:-1], "byte 90: a record is cut short"),
        (b"\xff" * 4 + b"x" * 16, "byte 90: another sync marker"),
        (b"\xff\xff\xff\xfe" + bytes(4), "byte 90: a record of negative length"),
        (single(b"\2k", b"\1v"), "byte 98: in the keys, item 1 does not begin with its length"),
        (single(b"\1k", b"\2v"), "byte 100: in the values, item 1 does not begin with its length"),
        (single(b"", b"\1v"), "byte 98: item 1 has 0 bytes, which none of its class has"),
        (single(b"\1k", b""), "byte 100: item 1 has 0 bytes, which none of its class has"),
    ],
)
def test_what_is_wrong_in_single_records_is_said_with_its_place(tmp_path: Path, tail: bytes, message: str) -> None:
    data = with_header(**SINGLES) + single(b"\1k", b"\1v") + tail
    assert message in str(outcome(tmp_path / "bad", data))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (zlib.compress(b"\2v"), "byte 151: in the values, item 1 does not begin with its length"),
        (zlib.compress(b""), "byte 151: item 1 has 0 bytes, which none of its class has"),
        (b"not zlib", "byte 151: a value's bytes: "),
        (zlib.compress(b"\1v") + b"!", "byte 151: a value's bytes are followed by other bytes"),
    ],
)
def test_what_is_wrong_in_compressed_values_is_said_with_its_place_in_the_file(
    tmp_path: Path, value: bytes, message: str
) -> None:
    good = zlib.compress(b"\1v")
    data = with_header(flags=b"\1\0") + single(b"\1k", good) + single(b"\1k", value)
    assert message in str(outcome(tmp_path / "bad", data))


@pytest.mark.parametrize(
    ("compression", "records", "enough"),
    [
        ("block", [(b"k" * 9, b"v" * 91)], 100),
        ("block", [(b"k" * 100, b"")], 100),
        ("block", [(b"", b"")] * 30, 480),
        ("none", [(b"k", b"v" * 50)] * 3, 3 * (8 + 2 + 51 + 16)),
        ("record", [(b"", b"v" * 500)] * 3, 3 * 503),
    ],
)
def test_records_are_read_that_just_fit_the_bound(
    tmp_path: Path, compression: Any, records: list[Record], enough: int
) -> None:
    """Payloads of keys and values, 16 bytes for each record; or what the file has, where it is not compressed."""
    path = tmp_path / "file"
    path.write_bytes(written(records, compression=compression, block_bytes=10))
    assert pairs_of(read_sequence(path, bytes_max=enough)) == records
    with pytest.raises(InputError, match=r"use a smaller --split-mb|to more than \d+ bytes"):
        read_sequence(path, bytes_max=enough - 1)


@pytest.mark.parametrize("compression", ["none", "record", "block"])
def test_records_over_the_bound_are_refused(tmp_path: Path, compression: Any) -> None:
    (tmp_path / "file").write_bytes(written([(b"k", bytes(100_000))] * 5, compression=compression))
    with pytest.raises(InputError, match=r"use a smaller --split-mb|to more than \d+ bytes"):
        read_sequence(tmp_path / "file", bytes_max=300_000)


def test_no_file_of_the_input_may_be_another_thing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(written(SMALL))
    (tmp_path / "b").write_bytes(b"text\n")
    with pytest.raises(InputError, match=r"/b: bad SequenceFile at byte 0"):
        plan_splits([str(tmp_path)], SEQUENCE, 1000)
    with pytest.raises(InputError, match=r"cannot read .*nothing"):
        read_sequence(tmp_path / "nothing")
