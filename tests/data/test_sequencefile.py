"""SequenceFiles: what is written is read, by any split exactly once; and every bad file is one clear line."""

from __future__ import annotations

import gzip
import re
import zlib
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quoreduce.data import sequencefile as sf
from quoreduce.data.block import Block
from quoreduce.data.formats import parse_format
from quoreduce.data.inputs import open_records, open_split, plan_splits, read_sequence_split
from quoreduce.data.sequencefile import SequenceWriter, read_sequence, sync_marker
from quoreduce.errors import InputError, UsageError
from quoreduce_kernels import reference as ref
from quoreduce_kernels import sequence as kernels

SEQUENCE = parse_format("sequence")
SHARED_TMP = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(SHARED_TMP, max_examples=300)
Record = tuple[bytes, bytes]
WAYS = [("block", "zlib"), ("block", "gzip"), ("record", "zlib"), ("record", "gzip"), ("none", "zlib")]
WAY = st.sampled_from(WAYS)
PAYLOAD = st.one_of(st.binary(max_size=6), st.sampled_from([b"a" * n for n in (0, 127, 128, 255, 256, 70_000)]))
SHORT_RECORDS = st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=90)), max_size=12)
RECORDS = st.lists(st.tuples(PAYLOAD, PAYLOAD), max_size=12)


def written(records: list[Record], **options: Any) -> bytes:
    out = bytearray()
    with SequenceWriter(out.extend, 1, **options) as writer:
        for key, value in records:
            writer.write(key, value)
    assert (writer.records, writer.nbytes) == (len(records), len(out))
    return bytes(out)


def pairs_of(block: Block) -> list[Record]:
    assert block.schema == ("binary", "binary")
    Block.open(block.buffer)
    (keys, key_data), (values, value_data) = block.binary(0), block.binary(1)
    raw_keys, raw_values = key_data.tobytes(), value_data.tobytes()
    return [(raw_keys[keys[i] : keys[i + 1]], raw_values[values[i] : values[i + 1]]) for i in range(block.records)]


class Plain:
    """The plain twin: a SequenceFile of Text/Text or BytesWritable/BytesWritable, from the definition."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        assert data[:4] == b"SEQ\x06"
        self.form = {b"Text": -1, b"BytesWritable": -2}[self.string().rpartition(b".")[2]]
        self.string()
        compressed, blocks = self.take(1) == b"\1", self.take(1) == b"\1"
        self.wbits = 31 if compressed and b"Gzip" in self.string() else 15
        assert self.take(4) == bytes(4)
        self.sync = self.take(16)
        self.records = list(self.read_blocks() if blocks else self.read_records(compressed))

    def take(self, n: int) -> bytes:
        self.at += n
        return self.data[self.at - n : self.at]

    def vint(self) -> int:
        first = self.take(1)[0]
        return first if first < 128 else int.from_bytes(self.take(0x90 - first), "big")

    def string(self) -> bytes:
        return self.take(self.vint())

    def payload(self, item: bytes) -> bytes:
        prefix = ref.serialised(b"", self.form)
        size = len(prefix) if self.form == -2 else next(n for n in range(1, 6) if ref.serialised(item[n:], -1) == item)
        return item[size:]

    def read_blocks(self) -> Any:
        while self.at < len(self.data):
            assert self.take(20) == b"\xff" * 4 + self.sync
            count = self.vint()
            raw = [zlib.decompress(self.take(self.vint()), self.wbits) for _ in range(4)]
            columns = []
            for lengths, items in (raw[:2], raw[2:]):
                sizes, at, start = [], 0, 0
                for _ in range(count):
                    size = 1 if lengths[at] < 128 else 1 + 0x90 - lengths[at]
                    sizes.append(lengths[at] if size == 1 else int.from_bytes(lengths[at + 1 : at + size], "big"))
                    at += size
                assert at == len(lengths)
                assert sum(sizes) == len(items)
                columns.append([self.payload(items[(start := start + n) - n : start]) for n in sizes])
            yield from zip(*columns, strict=True)

    def read_records(self, compressed: bool) -> Any:
        for key, value in ref.walk_records(self.data[self.at :], self.sync):
            plain = zlib.decompress(value, self.wbits) if compressed else value
            yield self.payload(key), self.payload(plain)


# --- round trips ------------------------------------------------------------------------------------------------------


def test_the_forms_are_the_kernels() -> None:
    assert (sf.TEXT, sf.BYTES, sf.SYNC_BYTES) == (kernels.TEXT, kernels.BYTES, kernels.SYNC_BYTES)


@SHARED_TMP
@given(RECORDS, WAY, st.sampled_from(["Text", "BytesWritable"]), st.integers(1, 300))
def test_what_is_written_is_read(tmp_path: Path, records: list[Record], way: Any, kind: str, block_bytes: int) -> None:
    data = written(records, key=kind, value=kind, compression=way[0], codec=way[1], block_bytes=block_bytes)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert pairs_of(read_sequence(path)) == records
    assert Plain(data).records == records


@given(RECORDS, WAY, st.integers(1, 1000), st.lists(st.integers(0, 12), max_size=4))
def test_columns_are_written_as_single_records_are(records: list[Record], way: Any, block_bytes: int, cuts: list[int]) -> None:
    out = bytearray()
    options: Any = {"compression": way[0], "codec": way[1], "block_bytes": block_bytes}
    with SequenceWriter(out.extend, 1, **options) as writer:
        bounds = sorted({0, len(records), *(min(cut, len(records)) for cut in cuts)})
        for start, stop in pairwise(bounds):
            some, columns = records[start:stop], []
            for side in (0, 1):
                columns.append(np.array([0, *accumulate(len(r[side]) for r in some)], np.int64))
                columns.append(np.frombuffer(b"".join(r[side] for r in some), np.uint8))
            writer.write_columns(*columns)
    assert bytes(out) == written(records, **options)


@pytest.mark.parametrize("compression", ["none", "record", "block"])
def test_numbers_are_bytes(tmp_path: Path, compression: Any) -> None:
    records = [((-7).to_bytes(4, "big", signed=True), (1 << 40).to_bytes(8, "big")), (bytes(4), bytes(8))]
    (tmp_path / "n").write_bytes(written(records, key="IntWritable", value="LongWritable", compression=compression))
    assert pairs_of(read_sequence(tmp_path / "n")) == records
    nothing = [(b"", b"x"), (b"", b"y")]
    (tmp_path / "0").write_bytes(written(nothing, key="NullWritable", compression=compression))
    assert pairs_of(read_sequence(tmp_path / "0")) == nothing


def test_the_bytes_never_change() -> None:
    """The header and the frame, by hand; what zlib makes of four short buffers is left to zlib."""
    data = written([(b"k", b"value")], metadata={"b": "2", "a": "1"})
    sync = sync_marker(1, 0)
    assert sync.hex() == "077e395c68532cde2dad0340a49ad00b"
    header = b"SEQ\x06\x19org.apache.hadoop.io.Text\x19org.apache.hadoop.io.Text\x01\x01"
    header += b"\x2aorg.apache.hadoop.io.compress.DefaultCodec\0\0\0\2\1a\0011\1b\0012" + sync
    buffers = [zlib.compress(raw, 1) for raw in (b"\2", b"\1k", b"\6", b"\5value")]
    frame = b"\xff\xff\xff\xff" + sync + b"\1" + b"".join(bytes([len(b)]) + b for b in buffers)
    assert data == header + frame


def test_markers_differ_by_seed_and_part() -> None:
    assert len({sync_marker(seed, part) for seed in range(10) for part in range(10)}) == 100


def test_metadata_is_read(tmp_path: Path) -> None:
    data = written([], metadata={"made by": "a test", "": "ä"})
    header = sf.read_header(lambda at, n: data[at : at + n], len(data), "x")
    assert header.metadata == ((b"", "ä".encode()), (b"made by", b"a test"))
    assert header.end == len(data)


@pytest.mark.parametrize(
    "options",
    [
        {"key": "FloatWritable"}, {"value": ""}, {"compression": "lzo"}, {"codec": "bzip2"}, {"level": 10}, {"block_bytes": 0},
        {"metadata": {"k": "x" * 5000}}, {"metadata": {str(i): "" for i in range(2000)}},
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SequenceWriter(lambda data: None, 1, **options)


def test_a_payload_of_another_width_is_refused() -> None:
    writer = SequenceWriter(lambda data: None, 1, key="IntWritable")
    with pytest.raises(ValueError, match="does not fit"):
        writer.write(b"12345", b"")
    with pytest.raises(ValueError, match="1 keys and 2 values"):
        writer.write_columns(np.array([0, 4]), np.zeros(4, np.uint8), np.array([0, 0, 0]), np.zeros(0, np.uint8))


# --- splits -----------------------------------------------------------------------------------------------------------


def groups_of(data: bytes) -> list[int]:
    """Positions of all sync points: the end of the header, and each escape after it."""
    header = sf.read_header(lambda at, n: data[at : at + n], len(data), "x")
    escapes = [found.start() for found in re.finditer(re.escape(b"\xff" * 4 + header.sync), data)]
    return sorted({header.end, *escapes})


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


# --- bad files --------------------------------------------------------------------------------------------------------


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
@given(WAY, st.sampled_from(sorted(sf.CLASSES)), st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(["sync", "z", "s"]))))
def test_any_bytes_after_a_header_are_records_or_an_error(tmp_path: Path, way: Any, kind: str, pieces: list[Any]) -> None:
    sync = sync_marker(0, 0)
    known = {"sync": b"\xff" * 4 + sync, "z": b"\x09" + zlib.compress(b"\x01")[:9], "s": zlib.compress(b"x")}
    body = b"".join(known[piece] if isinstance(piece, str) else piece for piece in pieces)
    outcome(tmp_path / "fuzzed", sf.file_header(sync, kind, kind, way[0], way[1]) + body)


@SHARED_TMP
@given(st.binary(max_size=200), st.sampled_from([b"", b"SEQ", b"SEQ\x06", b"SEQ\x06\x19org.apache.hadoop.io.Text"]))
def test_any_bytes_are_no_header_or_one(tmp_path: Path, data: bytes, head: bytes) -> None:
    outcome(tmp_path / "fuzzed", head + data)


def with_header(**changes: bytes) -> bytes:
    fields = {
        "magic": b"SEQ\x06", "key": b"\x19org.apache.hadoop.io.Text", "value": b"\x19org.apache.hadoop.io.Text",
        "flags": b"\1\1", "codec": b"\x2aorg.apache.hadoop.io.compress.DefaultCodec", "metadata": bytes(4), "sync": bytes(16),
    }  # fmt: skip
    return b"".join({**fields, **changes}.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"byte 0: it begins with b'', not with b'SEQ': no SequenceFile"),
        (b"PAR1", r"byte 0: it begins with b'PAR', not"),
        (b"SEQ", r"byte 3: the version of 1 bytes, of which 0 are there: truncated"),
        (with_header(magic=b"SEQ\x04"), r"byte 3: version 4; only 6 is read"),
        (with_header(key=b"\x0fcom.example.Key"), r"byte 4: unknown key class 'com.example.Key'; known are Text, BytesW"),
        (with_header(value=b"\x05Te\xffxt"), r"byte 30: unknown value class 'Te.xt'"),
        (with_header(codec=b"\x2corg.apache.hadoop.io.compress.SnappyLikeCode"), r"byte 58: unknown codec 'org.apache.*Code'"),
        (with_header(flags=b"\2\1"), r"byte 56: the flag of compression is 2"),
        (with_header(flags=b"\0\1"), r"byte 57: blocks that are not compressed"),
        (with_header(metadata=b"\xff\xff\xff\xff"), r"byte 101: -1 metadata"),
        (with_header(metadata=b"\x7f\xff\xff\xff"), r"byte 101: 2147483647 metadata"),
        (with_header(metadata=b"\0\0\0\1\x8c\x7f\xff\xff\xff"), r"byte 105: a key of the metadata has 2147483647 bytes"),
        (with_header(key=b"\x80"), r"byte 4: the length of .*key class is no length"),
        (with_header(sync=bytes(15)), r"byte 105: the sync marker of 16 bytes, of which 15 are there"),
        (with_header() + b"\xff\xff\xff\xff" + bytes(15) + b"\1", r"byte 121: no sync marker where a block should begin"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, data: bytes, message: str) -> None:
    assert re.search(message, str(outcome(tmp_path / "bad", data)))


def block(records: int, *buffers: bytes) -> bytes:
    return with_header() + sf.block_frame(bytes(16), records, buffers)


BOMB = zlib.compress(bytes(50_000_000), 9)
GOOD = (zlib.compress(b"\2"), zlib.compress(b"\1k"), zlib.compress(b"\2"), zlib.compress(b"\1v"))
HUGE = kernels.encode_vints(np.array([2**31 - 1] * 3, np.int64)).tobytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (block(2**31 - 1, *GOOD), r"byte 121: a block of 2147483647 records cannot be so small"),
        (block(1, BOMB, *GOOD[1:]), r"lengths of keys decompress to more than 5 bytes"),
        (block(1, GOOD[0], BOMB, *GOOD[2:]), r"keys decompress to more than 2 bytes"),
        (block(3, zlib.compress(HUGE), *GOOD[1:3], GOOD[3]), r"item 0 has 2147483647 bytes|cannot be compressed so well"),
        (block(1, zlib.compress(b"\x8c\x7f\xff\xff\xf0"), *GOOD[1:]), r"keys of 2147483632 bytes cannot be compressed so well"),
        (block(1, zlib.compress(b"\3"), *GOOD[1:]), r"byte 121: 2 bytes of keys, not 3"),
        (block(1, GOOD[0], zlib.compress(b"\0k"), *GOOD[2:]), r"in the block's keys, item 0 does not begin with its length"),
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
