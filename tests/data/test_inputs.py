"""Splits: nothing lost, nothing doubled; and every bad input is one clear line."""

import bz2
import errno
import gzip
import io
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reading import LINES, read

from quoreduce.data import inputs as inputs_module
from quoreduce.data.block import Block
from quoreduce.data.formats import RecordFormat, parse_format
from quoreduce.data.inflate import gz_chunks, zst_chunks
from quoreduce.data.inputs import open_records, open_split
from quoreduce.data.sequencewriter import SequenceWriter
from quoreduce.data.splits import Split, plan_splits
from quoreduce.errors import HostError, InputError

SHARED_TMP = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

LOGICAL = st.lists(
    st.sampled_from(
        [b" ", b"\n", b"\t", b"\r", b"\f", b"\r\n", b"\0", b"a", b"bc", b"\x0b", b"\x85", b"\xff", b"x" * 40]
    )
).map(b"".join)

CONTENTS = st.one_of(st.binary(max_size=300), LOGICAL)


def records_of(data: bytes, fmt: RecordFormat) -> list[tuple[int, bytes]]:
    """The plain twin: (start, record) for every record of a whole file."""
    if fmt.kind == "fixed":
        return [(i, data[i : i + fmt.width]) for i in range(0, len(data), fmt.width)]
    pattern = rb"[^\n]*\n|[^\n]+" if fmt.kind == "lines" else rb"[^ \t\n\r\f]+"
    return [(found.start(), found.group()) for found in re.finditer(pattern, data)]


def check_all_splits(path: Path, data: bytes, fmt: RecordFormat, split_bytes: int, as_uri: bool = False) -> None:
    splits = plan_splits([str(path)], fmt, split_bytes)
    assert [split.index for split in splits] == list(range(len(splits)))
    assert sum(split.length for split in splits) == len(data)
    records = records_of(data, fmt)
    for split in splits:
        source = msgspec.structs.replace(split, uri=True, path=f"file://{path}") if as_uri else split
        part = read(source, fmt, path.parent)
        expected = [r for at, r in records if split.start <= at < split.start + split.length]
        assert [r for _, r in records_of(part, fmt)] == expected
        if fmt.kind == "lines":
            assert part == b"".join(expected)


@SHARED_TMP
@given(data=CONTENTS, split_bytes=st.integers(1, 90), kind=st.sampled_from(["lines", "words"]), as_uri=st.booleans())
@example(data=b"", split_bytes=1, kind="lines", as_uri=False)
@example(data=b"one word over many splits", split_bytes=1, kind="words", as_uri=True)
@example(data=b"a\r\nb\r\n\r\nno newline", split_bytes=3, kind="lines", as_uri=False)
@example(data=b"\n\n\n", split_bytes=1, kind="lines", as_uri=True)
@example(data=b"   ", split_bytes=2, kind="words", as_uri=False)
def test_every_record_is_read_by_exactly_the_split_it_starts_in(
    tmp_path: Path, data: bytes, split_bytes: int, kind: str, as_uri: bool
) -> None:
    path = tmp_path / "input"
    path.write_bytes(data)
    check_all_splits(path, data, parse_format(kind), split_bytes, as_uri)


@SHARED_TMP
@given(count=st.integers(0, 20), width=st.integers(1, 12), split_bytes=st.integers(1, 50), as_uri=st.booleans())
def test_fixed_records_are_never_torn(tmp_path: Path, count: int, width: int, split_bytes: int, as_uri: bool) -> None:
    path = tmp_path / "input"
    data = bytes(i % 251 for i in range(count * width))
    path.write_bytes(data)
    check_all_splits(path, data, RecordFormat("fixed", width), split_bytes, as_uri)


@pytest.mark.parametrize(
    ("split_bytes", "lengths"), [(1, [10, 10, 10]), (10, [10, 10, 10]), (29, [20, 10]), (30, [30])]
)
def test_a_split_has_as_many_whole_records_as_fit_and_one_at_least(
    tmp_path: Path, split_bytes: int, lengths: list[int]
) -> None:
    path = tmp_path / "input"
    path.write_bytes(bytes(30))
    assert [split.length for split in plan_splits([str(path)], RecordFormat("fixed", 10), split_bytes)] == lengths


@pytest.mark.parametrize("kind", ["lines", "words"])
@pytest.mark.parametrize("as_uri", [False, True])
@pytest.mark.parametrize("edge", [4095, 4096, 4097, 12288, (1 << 16) + 1, 3 << 20])
def test_a_record_longer_than_every_read_window_belongs_to_one_split(
    tmp_path: Path, kind: str, as_uri: bool, edge: int
) -> None:
    path = tmp_path / "input"
    data = b"first\n" + b"y" * edge + b"\nlast"
    path.write_bytes(data)
    check_all_splits(path, data, parse_format(kind), max(4096, edge // 7), as_uri)


def test_a_split_inside_a_long_record_does_not_scan_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    split = Split(str(path), 1 << 20, 4096, 1 << 40, "none", False, 0)
    assert read(split, LINES, tmp_path) == b""


def test_the_array_is_a_view_of_the_mapped_file_and_may_outlive_the_split(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"x" * 5000 + b"\n" + b"abc\n")
    split = plan_splits([str(path)], LINES, 5000)[1]
    with open_split(split, LINES, tmp_path) as array:
        assert not array.flags.owndata
        kept = array[1:3]
    assert kept.tobytes() == b"bc"


@pytest.mark.parametrize("change", ["shorter", "longer", "gone", "fifo"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_that_changed_since_the_plan_is_refused_not_mapped(tmp_path: Path, change: str, suffix: str) -> None:
    path = tmp_path / f"input{suffix}"
    path.write_bytes(b"line\n" * 2000)
    split = plan_splits([str(path)], LINES, 4096)[-1]
    path.unlink()
    if change == "fifo":
        os.mkfifo(path)
    elif change != "gone":
        path.write_bytes(b"line\n" * (1 if change == "shorter" else 3000))
    with pytest.raises(InputError, match="input"), open_split(split, LINES, tmp_path):
        pass


def test_a_file_truncated_between_the_check_and_the_mapping_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n" * 4000)
    split = plan_splits([str(path)], LINES, 10000)[1]
    find = inputs_module.record_range

    def find_then_truncate(*args: object) -> tuple[int, int]:
        found = find(*args)  # type: ignore[arg-type]
        os.truncate(path, 100)
        return found

    monkeypatch.setattr(inputs_module, "record_range", find_then_truncate)
    with (
        pytest.raises(InputError, match=f"^cannot map {path}: mmap length is greater"),
        open_split(split, LINES, tmp_path),
    ):
        pass


def test_what_changed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n")
    (split,) = plan_splits([str(path)], LINES, 64)
    path.write_bytes(b"line\nline\n")
    message = f"{path} changed while the job ran: 5 bytes at first, now 10; run the job again"
    for one in (split, msgspec.structs.replace(split, uri=True, path=f"file://{path}")):
        with pytest.raises(InputError) as caught, open_split(one, LINES, tmp_path):
            pass
        assert str(caught.value) == message.replace(str(path), one.path)
    path.unlink()
    with pytest.raises(InputError) as caught, open_split(split, LINES, tmp_path):
        pass
    assert str(caught.value) == f"cannot read {path}: No such file or directory"


@pytest.mark.parametrize("name", ["input", "input.gz", "sequence"])
def test_no_file_stays_open_not_even_while_an_error_is_handled(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    fmt = parse_format("sequence") if name == "sequence" else LINES
    records = bytearray()
    with SequenceWriter(records.extend, 1) as writer:
        writer.write(b"k", b"v")
    path.write_bytes({"input": b"line\n", "input.gz": gzip.compress(b"line\n"), "sequence": bytes(records)}[name])
    before = os.listdir("/proc/self/fd")
    (split,) = plan_splits([str(path)], fmt, 1000)
    for uri in (False, True):
        one = msgspec.structs.replace(split, uri=uri, path=f"file://{path}" if uri else split.path)
        with open_records(one, fmt, tmp_path):
            pass
        assert os.listdir("/proc/self/fd") == before
        wrong = msgspec.structs.replace(one, size=split.size + 1)
        with pytest.raises(InputError, match="changed") as caught, open_records(wrong, fmt, tmp_path):
            pass
        assert os.listdir("/proc/self/fd") == before
        assert caught.tb is not None  # its frames hold what they held
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("fmt", [LINES, parse_format("sequence")])
def test_a_file_that_cannot_be_read_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: RecordFormat
) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n" * 9)
    split = Split(str(path), 5, 20, 45, "none", False, 0)
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    message = f"^{path} became shorter while the job ran; run the job again$"
    if fmt.kind == "sequence":
        with pytest.raises(InputError, match=message):
            plan_splits([str(path)], fmt, 64)
    with pytest.raises(InputError, match=message), open_records(split, fmt, tmp_path):
        pass

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with (
        pytest.raises(InputError, match=f"^cannot read {path}: Input/output error$"),
        open_records(split, fmt, tmp_path),
    ):
        pass


class Advised(mmap.mmap):
    """A mapping that notes what is to be brought in, and may not be able to."""

    advice: ClassVar[list[tuple[int, ...]]] = []
    error: ClassVar[int] = 0

    def madvise(self, *advice: int) -> None:
        self.advice.append(advice)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> type[Advised]:
    monkeypatch.setattr(mmap, "mmap", Advised)
    monkeypatch.setattr(Advised, "advice", [])
    return Advised


def test_of_a_split_its_own_bytes_are_brought_in_at_once_or_a_page(tmp_path: Path, advised: type[Advised]) -> None:
    """From the page on in which it begins; a last record that is longer is not."""
    path = tmp_path / "input"
    path.write_bytes(b"x" * 9999 + b"\n" + b"y" * 99_999 + b"\n")
    split = Split(str(path), 9000, 50_000, 110_000, "none", False, 0)
    skip = 10_000 % mmap.ALLOCATIONGRANULARITY
    for populate, touched in ((True, 50_000), (False, mmap.PAGESIZE)):
        with open_split(split, LINES, tmp_path, populate=populate) as array:
            assert array.tobytes() == b"y" * 99_999 + b"\n"
        assert advised.advice.pop() == (22, 0, touched + skip)  # MADV_POPULATE_READ
    with open_split(msgspec.structs.replace(split, start=0, length=10), LINES, tmp_path) as array:
        assert array.size == 10_000
    assert advised.advice.pop() == (22, 0, 10)
    with open_split(msgspec.structs.replace(split, start=109_000, length=1000), LINES, tmp_path) as array:
        assert array.size == 0
    with open_records(split, LINES, tmp_path) as array:
        assert not isinstance(array, Block)
    assert advised.advice.pop() == (22, 0, 50_000 + skip)
    with open_records(split, LINES, tmp_path, populate=False):
        assert advised.advice.pop() == (22, 0, mmap.PAGESIZE + skip)
    assert advised.advice == []


def test_a_kernel_that_cannot_bring_it_in_at_once_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advised: type[Advised]
) -> None:
    (tmp_path / "input").write_bytes(b"line\n")
    (split,) = plan_splits([str(tmp_path / "input")], LINES, 64)
    monkeypatch.setattr(advised, "error", errno.EINVAL)
    assert read(split, LINES, tmp_path) == b"line\n"
    monkeypatch.setattr(advised, "error", errno.EFAULT)
    with pytest.raises(InputError, match=f"^cannot read {tmp_path}/input: truncated just now, or an I/O error$"):
        read(split, LINES, tmp_path)


def test_errors_of_the_caller_pass_through_open_split(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n")
    (split,) = plan_splits([str(path)], LINES, 64)
    with pytest.raises(OSError, match="mine"), open_split(split, LINES, tmp_path):
        raise OSError("mine")


TEXT = b"".join(b"line %d\r\n" % i for i in range(30000))


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def skippable(data: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("one.gz", gzip.compress(TEXT), TEXT),
        ("members.gz", gzip.compress(TEXT[:70]) + gzip.compress(b"") + gzip.compress(TEXT[70:]), TEXT),
        ("padded.gz", gzip.compress(TEXT) + b"\0" * 512, TEXT),
        ("nothing.gz", gzip.compress(b""), b""),
        ("UPPER.GZ", gzip.compress(TEXT), TEXT),
        ("one.zst", zst(TEXT), TEXT),
        (
            "frames.zst",
            b"".join(zst(b"%d" % i) for i in range(9)) + skippable(b"x" * 9000) + zst(TEXT),
            b"012345678" + TEXT,
        ),
        ("nothing.zst", zst(b""), b""),
    ],
)
@pytest.mark.parametrize("as_uri", [False, True])
def test_a_compressed_member_is_one_split_of_its_plain_bytes(
    tmp_path: Path, name: str, raw: bytes, expected: bytes, as_uri: bool
) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    (split,) = plan_splits([str(path)], LINES, 64)
    assert split.compression == name.lower().rpartition(".")[2]
    if as_uri:
        split = msgspec.structs.replace(split, uri=True, path=f"file://{path}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert read(split, LINES, scratch) == expected
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("harm", ["cut", "cut-late", "flip", "garbage", "head", "other"])
def test_a_corrupt_member_is_refused_by_name(tmp_path: Path, suffix: str, harm: str) -> None:
    whole = gzip.compress(TEXT) if suffix == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    harmed = {
        "cut": whole[:middle],
        "cut-late": whole[:-1],
        "flip": flipped,
        "garbage": whole + b"trailing garbage",
        "head": b"plain text, not compressed at all\n",
        "other": bz2.compress(TEXT),
    }
    path = tmp_path / f"input.{suffix}"
    path.write_bytes(harmed[harm])
    (split,) = plan_splits([str(path)], LINES, 64)
    what = "gzip" if suffix == "gz" else "zstd"
    message = rf"^{tmp_path}/input\.\w+ is corrupt or truncated \({what}: (?!None).+\); fetch it again$"
    with pytest.raises(InputError, match=message), open_split(split, LINES, tmp_path):
        pass


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_bomb_is_stopped_at_the_bound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb.{suffix}"
    zeros = bytes(20 << 20)
    path.write_bytes(gzip.compress(zeros) if suffix == "gz" else zst(zeros))
    (split,) = plan_splits([str(path)], LINES, 64)
    with (
        pytest.raises(InputError, match="decompresses to more than 1048576 bytes"),
        open_split(split, LINES, tmp_path, max_member_bytes=1 << 20),
    ):
        pass


def test_the_records_of_a_compressed_member_have_the_width_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "records.gz"
    path.write_bytes(gzip.compress(b"x" * 250))
    fmt = RecordFormat("fixed", 100)
    (split,) = plan_splits([str(path)], fmt, 64)
    message = f"^{path} decompressed has 250 bytes, not a multiple of 100"
    with pytest.raises(InputError, match=message), open_split(split, fmt, tmp_path):
        pass


def test_a_missing_scratch_directory_is_the_hosts_error(tmp_path: Path) -> None:
    path = tmp_path / "input.gz"
    path.write_bytes(gzip.compress(TEXT))
    (split,) = plan_splits([str(path)], LINES, 64)
    message = f"^cannot decompress {path} into {tmp_path}/nowhere: No such file or directory$"
    with pytest.raises(HostError, match=message), open_split(split, LINES, tmp_path / "nowhere"):
        pass
    for fmt in (LINES, parse_format("sequence")):
        with pytest.raises(HostError, match=message), open_records(split, fmt, tmp_path / "nowhere"):
            pass


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_member_may_just_have_the_size_of_the_bound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"input.{suffix}"
    path.write_bytes(gzip.compress(TEXT) if suffix == "gz" else zst(TEXT))
    (split,) = plan_splits([str(path)], LINES, 64)
    assert read(split, LINES, tmp_path, max_member_bytes=len(TEXT)) == TEXT
    message = f"^{path} decompresses to more than {len(TEXT) - 1} bytes; store it uncompressed$"
    with pytest.raises(InputError, match=message):
        read(split, LINES, tmp_path, max_member_bytes=len(TEXT) - 1)


@pytest.mark.parametrize("what", ["corrupt", "too long", "unmapped"])
def test_what_was_decompressed_is_let_go_of_while_an_error_is_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = tmp_path / "input.gz"
    path.write_bytes(gzip.compress(TEXT)[: -1 if what == "corrupt" else None])
    (split,) = plan_splits([str(path)], LINES, 64)
    before = os.listdir("/proc/self/fd")

    def unmapped(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    if what == "unmapped":
        monkeypatch.setattr(mmap, "mmap", unmapped)
    kind = HostError if what == "unmapped" else InputError  # that memory runs out says nothing about the file
    with pytest.raises(kind, match=f"^(cannot read )?{path}:? ") as caught:
        read(split, LINES, tmp_path, max_member_bytes=9 if what == "too long" else 1 << 20)
    assert os.listdir("/proc/self/fd") == before
    assert caught.tb is not None  # its frames hold what they held


class Broken:
    """A file on a bad disk."""

    def read(self, *_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_member_that_cannot_be_read_is_not_called_corrupt(compression: Literal["gz", "zst"]) -> None:
    split = Split("s3://key:secret@bucket/a", 0, 9, 9, compression, True, 0)
    with pytest.raises(InputError, match=r"^cannot read s3://bucket/a: Input/output error$"):
        list(inputs_module._chunks(split, Broken()))  # type: ignore[arg-type]


def test_a_full_scratch_directory_is_the_hosts_error(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(scratch)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        path = tmp_path / "input.gz"
        path.write_bytes(gzip.compress(TEXT))
        (split,) = plan_splits([str(path)], LINES, 64)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(HostError, match="No space left on device") as caught, open_split(split, LINES, scratch):
            pass
        assert os.listdir("/proc/self/fd") == before  # space is given back while the error is handled
        assert caught.tb is not None  # its frames hold what they held
        assert list(scratch.iterdir()) == []
    finally:
        subprocess.run(["umount", str(scratch)], check=True)


class Remote:
    """A remote file that notes what is asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def read_at(self, n: int, at: int) -> bytes:
        self.asked.append((n, at))
        return self.data[at : at + n]


def test_a_range_is_one_request_and_more_only_as_the_last_record_asks() -> None:
    """The split, the byte before it, and 64 KiB in which its last record may end; then a MiB each time."""
    size = 3 << 20
    file = Remote(bytes(size))
    window = inputs_module._Range(file, Split("s3://bucket/a", 10, 20, size, "none", True, 0), size)
    assert file.asked == [(21 + (1 << 16), 9)]
    end = 9 + 21 + (1 << 16)
    assert window.read_at(end - 1, 100) == b"\0"
    assert len(file.asked) == 1
    assert window.read_at(end, 100) == bytes(100)
    assert file.asked[1:] == [(1 << 20, end)]
    assert window.read_at(end + (1 << 20), (1 << 20) + 5) == bytes((1 << 20) + 5)
    assert file.asked[2:] == [((1 << 20) + 5, end + (1 << 20))]
    window.grow(1 << 30)
    assert window.low + len(window.data) == size
    first = Remote(b"0123456789")
    window = inputs_module._Range(first, Split("s3://bucket/a", 0, 5, 10, "none", True, 0), 10)
    assert (first.asked, window.read_at(3, 4)) == ([(10, 0)], b"3456")


def test_a_range_that_comes_in_pieces_is_read_whole() -> None:
    data = bytes(range(100))
    read = inputs_module._read_range(lambda at, n: data[at : at + min(n, 7)], 20, 60)
    assert read.tobytes() == data[20:60]


def test_a_range_that_cannot_be_read_is_named() -> None:
    class Failing:
        def read_at(self, _n: int, _at: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(InputError, match=r"^cannot read s3://bucket/a: .*Input/output error$"):
        inputs_module._Range(Failing(), Split("s3://key:secret@bucket/a", 0, 10, 10, "none", True, 0), 100)


@pytest.mark.parametrize("more", [0, 1, 2])
def test_a_record_without_an_end_is_read_to_the_last_byte_of_the_file(tmp_path: Path, more: int) -> None:
    """Also if the first request ends just before it: nobody looks for an end in the last byte."""
    path = tmp_path / "input"
    size = 10 + (1 << 16) + more
    path.write_bytes(b"x" * size)
    assert len(read(Split(f"file://{path}", 0, 10, size, "none", True, 0), LINES, tmp_path)) == size


def test_a_uri_whose_file_changed_or_went_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n")
    with pytest.raises(InputError, match="changed while the job ran"):
        read(Split(f"file://{path}", 0, 6, 6, "none", True, 0), LINES, tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        read(Split(f"file://{path}.gone", 0, 6, 6, "none", True, 0), LINES, tmp_path)


def test_importing_inputs_does_not_load_the_heavy_libraries() -> None:
    code = (
        "import sys, quoreduce.data.inputs, quoreduce.data.commit, quoreduce.data.manifest;"
        "print([m for m in ('numpy', 'pyarrow', 'zstandard', 'ray', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Short:
    """A remote file of which less comes than was planned."""

    def read_at(self, n: int, at: int) -> bytes:
        return bytes(min(n, 40 - at))


def test_a_remote_file_that_ends_early_has_changed() -> None:
    split = Split("s3://key:secret@bucket/a", 0, 100, 100, "none", True, 0)
    with pytest.raises(InputError, match=r"^s3://bucket/a changed while the job ran: 100 bytes at first, now 40;"):
        inputs_module._Range(Short(), split, 1000)
    with pytest.raises(InputError, match=r"^a split of s3://bucket/a needs over 99 bytes"):
        inputs_module._Range(Short(), split, 99)


def test_a_remote_sequence_file_that_ends_early_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        def read_at(self, _n: int, _at: int) -> bytes:
            return b""

    @contextmanager
    def opened(_: Split) -> Iterator[Short]:
        yield Short()

    monkeypatch.setattr(inputs_module, "_open_raw", opened)
    split = Split("s3://bucket/data.seq", 0, 100, 100, "none", True, 0)
    with (
        pytest.raises(InputError, match=r"s3://bucket/data\.seq became shorter while the job ran"),
        open_records(split, parse_format("sequence"), tmp_path),
    ):
        pass

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Short, "read_at", broken)
    with (
        pytest.raises(InputError, match=r"^cannot read s3://bucket/data\.seq: .*Input/output error$"),
        open_records(split, parse_format("sequence"), tmp_path),
    ):
        pass


def test_a_gz_member_is_decompressed_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "zeros.gz"
    path.write_bytes(gzip.compress(bytes(5 << 20)))
    with path.open("rb") as raw:
        sizes = [len(chunk) for chunk in gz_chunks(raw)]
    assert (sum(sizes), max(sizes) <= 1 << 20) == (5 << 20, True)


def test_a_zst_member_is_read_piece_by_piece() -> None:
    whole, asked = io.BytesIO(zst(TEXT)), []

    class Pieces:
        def read(self, n: int) -> bytes:
            asked.append(n)
            return whole.read(n)

    assert b"".join(zst_chunks(Pieces())) == TEXT  # type: ignore[arg-type]
    assert asked == [1 << 20, 1 << 20]
