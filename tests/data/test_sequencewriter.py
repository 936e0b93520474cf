"""What is written in a SequenceFile: its bytes, its blocks and its markers."""

from __future__ import annotations

import zlib
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequences import SHARED_TMP, WAY, Record, groups_of, pairs_of, written

from quoreduce.data import sequencefile as sf
from quoreduce.data import sequencewriter as sw
from quoreduce.data.sequencefile import read_sequence, sync_marker
from quoreduce.data.sequencewriter import SequenceWriter
from quoreduce.errors import UsageError
from quoreduce_kernels import reference as ref
from quoreduce_kernels import sequence as kernels

KINDS = ("Text", "BytesWritable")

PAYLOAD = st.one_of(st.binary(max_size=6), st.sampled_from([b"a" * n for n in (0, 127, 128, 255, 256, 70_000)]))

RECORDS = st.lists(st.tuples(PAYLOAD, PAYLOAD), max_size=12)


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


@given(
    RECORDS, WAY, st.integers(1, 1000), st.lists(st.integers(0, 12), max_size=4), st.sampled_from([KINDS, KINDS[::-1]])
)
def test_columns_are_written_as_single_records_are(
    records: list[Record], way: Any, block_bytes: int, cuts: list[int], kinds: Any
) -> None:
    out = bytearray()
    options: Any = {
        "compression": way[0],
        "codec": way[1],
        "block_bytes": block_bytes,
        "key": kinds[0],
        "value": kinds[1],
    }
    with SequenceWriter(out.extend, 1, **options) as writer:
        bounds = sorted({0, len(records), *(min(cut, len(records)) for cut in cuts)})
        for start, stop in pairwise(bounds):
            writer.write_columns(*columns_of(records[start:stop]))
    assert (writer.records, writer.nbytes) == (len(records), len(out))
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
        {"key": "FloatWritable"}, {"value": ""}, {"compression": "lzo"}, {"codec": "bzip2"}, {"level": 10},
        {"block_bytes": 0}, {"metadata": {"k": "x" * 5000}}, {"metadata": {str(i): "" for i in range(2000)}},
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


def test_a_block_ends_with_the_record_that_brings_it_to_its_size() -> None:
    """10 bytes of a record are 2 of its key and 8 of its value; the lengths of both are not counted."""
    for block_bytes, per_block in ((29, 3), (30, 3), (31, 4), (1, 1), (90, 9)):
        data = written([(b"k", b"7 bytes")] * 9, block_bytes=block_bytes)
        assert len(groups_of(data)) == -(-9 // per_block)  # the first begins where the header ends
    usual = [(b"", b"v" * 996)] * 999  # of 1000 bytes each
    assert len(groups_of(written([*usual, (b"", b"")]))) == 1
    assert len(groups_of(written([*usual, usual[0], (b"", b"")]))) == 2


def test_columns_that_come_a_few_at_a_time_end_blocks_where_single_records_do() -> None:
    records = [(b"k" * (n % 7), b"v" * (n % 11)) for n in range(200)]
    for block_bytes in (20, 50, 90):
        out = bytearray()
        with SequenceWriter(out.extend, 1, block_bytes=block_bytes) as writer:
            for at in range(0, 200, 3):
                writer.write_columns(*columns_of(records[at : at + 3]))
                assert writer.records == min(at + 3, 200)
        assert bytes(out) == written(records, block_bytes=block_bytes)


def columns_of(records: list[Record]) -> list[Any]:
    columns: list[Any] = []
    for side in (0, 1):
        columns.append(np.array([0, *accumulate(len(record[side]) for record in records)], np.int64))
        columns.append(np.frombuffer(b"".join(record[side] for record in records), np.uint8))
    return columns


def test_single_records_are_interspersed_with_markers() -> None:
    """Before the first record that begins 5 * 1024 * 20 bytes or more after the last marker, or the file's
    beginning.
    """
    records = [(b"k" * 90, bytes(n * 37 % 900)) for n in range(900)]
    data = written(records, key="BytesWritable", value="BytesWritable", compression="none")
    header = len(sf.file_header(bytes(16), "BytesWritable", "BytesWritable", "none"))
    at, last, expected = header, 0, [header]
    for key, value in records:
        if at >= last + 102_400:
            expected.append(at)
            last = at = at + 20
        at += 16 + len(key) + len(value)
    assert at == len(data)
    assert len(expected) == 5
    assert groups_of(data) == expected


def test_a_marker_is_due_at_the_very_byte() -> None:
    kinds = {"key": "BytesWritable", "value": "BytesWritable", "compression": "none"}
    header = len(written([], **kinds))
    for early in (0, 1):
        first = (b"", bytes(102_400 - early - header - 16))
        assert groups_of(written([first, (b"", b"")], **kinds)) == [header, 102_400][: 2 - early]
        again = (b"", bytes(102_400 - early - 16))  # after a marker, which has 20 bytes
        data = written([(b"", bytes(102_400 - header - 16)), again, (b"", b"")], **kinds)
        assert groups_of(data) == [header, 102_400, 204_820][: 3 - early]


@pytest.mark.parametrize("compression", ["none", "record", "block"])
def test_what_is_pending_is_written_once_and_not_after_an_error(compression: Any) -> None:
    out = bytearray()
    writer = SequenceWriter(out.extend, 1, compression=compression)
    writer.write(b"k", b"v")
    writer.close()
    writer.close()
    assert bytes(out) == written([(b"k", b"v")], compression=compression)
    out = bytearray()
    with suppress(KeyError), SequenceWriter(out.extend, 1) as writer:
        writer.write(b"k", b"v")
        raise KeyError
    assert bytes(out) == written([])


def test_the_level_is_zlibs() -> None:
    records = [(b"k", b"value" * 1000)]
    sizes = {level: len(written(records, level=level)) for level in (0, 1, 9)}
    assert sizes[0] > 5000 > sizes[1] >= sizes[9]


def test_no_length_is_over_that_of_a_java_int(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a payload with what stands before it, 5 bytes at most; and of a record."""
    assert sf.LENGTH_MAX == 2147483647
    monkeypatch.setattr(sw, "LENGTH_MAX", 30)
    written([(b"x" * 25, b"x" * 25)], key="BytesWritable", value="BytesWritable")
    with pytest.raises(ValueError, match="a value of 26 bytes does not fit its class"):
        written([(b"", b"x" * 26)], key="BytesWritable", value="BytesWritable")
    written([(b"x" * 9, b"x" * 13)], key="BytesWritable", value="BytesWritable", compression="none")
    with pytest.raises(ValueError, match="a record of 31 bytes does not fit a SequenceFile"):
        written([(b"x" * 9, b"x" * 14)], key="BytesWritable", value="BytesWritable", compression="none")


def test_of_nothing_there_is_nothing() -> None:
    with pytest.raises(ValueError, match="a value of 1 bytes does not fit its class"):
        written([(b"x", b"")], key="NullWritable")
