"""Splits: nothing lost, nothing doubled; and every bad input is one clear line."""

import bz2
import errno
import gzip
import io
import mmap
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
import numpy as np
import pyarrow
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quoreduce.data import inputs as inputs_module
from quoreduce.data import splits as splits_module
from quoreduce.data.block import Block
from quoreduce.data.formats import RecordFormat, parse_format
from quoreduce.data.inflate import gz_chunks, zst_chunks
from quoreduce.data.inputs import open_records, open_split
from quoreduce.data.sequencefile import SequenceWriter
from quoreduce.data.splits import Split, plan_splits, public_name
from quoreduce.errors import HostError, InputError, UsageError

LINES, WORDS = parse_format("lines"), parse_format("words")
SHARED_TMP = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LOGICAL = st.lists(
    st.sampled_from([b" ", b"\n", b"\t", b"\r", b"\f", b"\r\n", b"\0", b"a", b"bc", b"\x0b", b"\x85", b"\xff", b"x" * 40])
).map(b"".join)
CONTENTS = st.one_of(st.binary(max_size=300), LOGICAL)


def records_of(data: bytes, fmt: RecordFormat) -> list[tuple[int, bytes]]:
    """The plain twin: (start, record) for every record of a whole file."""
    if fmt.kind == "fixed":
        return [(i, data[i : i + fmt.width]) for i in range(0, len(data), fmt.width)]
    pattern = rb"[^\n]*\n|[^\n]+" if fmt.kind == "lines" else rb"[^ \t\n\r\f]+"
    return [(found.start(), found.group()) for found in re.finditer(pattern, data)]


def read(split: Split, fmt: RecordFormat, scratch: Path, **bounds: int) -> bytes:
    with open_split(split, fmt, scratch, **bounds) as array:
        assert array.dtype == np.uint8
        assert array.ndim == 1
        assert not array.flags.writeable
        return array.tobytes()


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


# --- record boundaries ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("split_bytes", "lengths"), [(1, [10, 10, 10]), (10, [10, 10, 10]), (29, [20, 10]), (30, [30])])
def test_a_split_has_as_many_whole_records_as_fit_and_one_at_least(tmp_path: Path, split_bytes: int, lengths: list[int]) -> None:
    path = tmp_path / "input"
    path.write_bytes(bytes(30))
    assert [split.length for split in plan_splits([str(path)], RecordFormat("fixed", 10), split_bytes)] == lengths


@pytest.mark.parametrize("kind", ["lines", "words"])
@pytest.mark.parametrize("as_uri", [False, True])
@pytest.mark.parametrize("edge", [4095, 4096, 4097, 12288, (1 << 16) + 1, 3 << 20])
def test_a_record_longer_than_every_read_window_belongs_to_one_split(tmp_path: Path, kind: str, as_uri: bool, edge: int) -> None:
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("lines", RecordFormat("lines")), ("words", RecordFormat("words")), ("fixed:100", RecordFormat("fixed", 100))],
)
def test_format_names_round_trip(text: str, expected: RecordFormat) -> None:
    assert parse_format(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "line", "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:65537", "fixed:²", "fixed:1e2"])
def test_unknown_formats_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="use lines, words or fixed:N"):
        parse_format(text)


# --- what an input stands for -----------------------------------------------------------------------------------------


def planned(*sources: object, fmt: RecordFormat = LINES) -> list[str]:
    return [os.path.basename(split.path) for split in plan_splits([str(s) for s in sources], fmt, 1 << 20)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "_SUCCESS", ".crc", "c.log", "empty", "sub/inner.txt"):
        (root / name).write_text("" if name == "empty" else f"{name}\n")
    return root


def test_a_directory_stands_for_its_visible_files_in_order_of_name(tree: Path) -> None:
    assert planned(tree) == ["a.txt", "b.txt", "c.log"]


def test_arguments_keep_their_order_and_may_repeat(tree: Path) -> None:
    assert planned(tree / "c.log", tree / "*.txt", tree / "c.log") == ["c.log", "a.txt", "b.txt", "c.log"]


def test_a_glob_skips_hidden_names_and_enters_directories(tree: Path) -> None:
    assert planned(tree / "*") == ["a.txt", "b.txt", "c.log", "inner.txt"]


def test_a_hidden_file_that_is_named_is_read(tree: Path) -> None:
    assert planned(tree / "_SUCCESS") == ["_SUCCESS"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(tree: Path) -> None:
    (tree / "[ab].txt").write_text("x\n")
    assert planned(tree / "[ab].txt") == ["[ab].txt"]


def test_file_uris_are_plain_paths(tree: Path) -> None:
    (tree / "with space").write_text("x\n")
    splits = plan_splits([f"file://{tree}/with%20space", f"file://localhost{tree}/a.txt"], LINES, 100)
    assert [(split.path, split.uri) for split in splits] == [(f"{tree}/with space", False), (f"{tree}/a.txt", False)]


def test_links_are_followed_and_paths_are_absolute(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "link").symlink_to("a.txt")
    monkeypatch.chdir(tree)
    (split,) = plan_splits(["link"], LINES, 100)
    assert split.path == str(tree / "link")
    assert read(split, LINES, tree) == b"a.txt\n"


def test_inputs_that_are_all_empty_give_no_splits(tree: Path) -> None:
    assert plan_splits([str(tree / "empty")], LINES, 1) == ()


def test_splits_survive_the_wire(tree: Path) -> None:
    splits = plan_splits([str(tree)], LINES, 2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(splits), type=tuple[Split, ...]) == splits


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(*sources: object, fmt: RecordFormat = LINES, split_bytes: int = 64) -> str:
    with pytest.raises(InputError) as caught:
        plan_splits([str(s) for s in sources], fmt, split_bytes)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    message = f"no such file or directory: '{tmp_path}/nowhere'; check the name of the input"
    assert refused(tmp_path / "nowhere") == message
    assert "nowhere" in refused(tmp_path / "nowhere" / "below")


def test_a_glob_without_matches_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "*.txt") == f"no file matches '{tmp_path}/*.txt'; check the name of the input"


def test_a_directory_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "_SUCCESS").write_text("{}")
    assert "has no input files" in refused(tmp_path)


def test_a_broken_link_is_refused_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to("nowhere")
    message = f"cannot read {tmp_path}/broken: a broken symbolic link: No such file or directory"
    assert refused(tmp_path / "broken") == message
    assert "broken symbolic link" in refused(tmp_path)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "loop" in refused(tmp_path / "loop")


def test_special_files_are_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo") == f"{tmp_path}/fifo is a fifo; copy what it gives into a file first"
    assert "is a character device" in refused("/dev/null")
    with socket.socket(socket.AF_UNIX) as server, in_directory(tmp_path):
        server.bind("sock")
        assert "is a socket" in refused("sock")


@contextmanager
def in_directory(path: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def without_root() -> Iterator[None]:
    """Run as nobody for a while if we are root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("what", ["file", "directory", "below"])
def test_what_may_not_be_read_is_refused(what: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        (top / "directory").mkdir()
        (top / "directory" / "below").write_text("x")
        (top / "file").write_text("x")
        (top / "file").chmod(0)
        (top / "directory").chmod(0)
        try:
            with without_root():
                path = top / ("directory/below" if what == "below" else what)
                named = {"file": f"{path}", "directory": f"the directory {path}", "below": f"'{path}'"}
                assert refused(path) == f"cannot read {named[what]}: Permission denied"
        finally:
            (top / "directory").chmod(0o755)


@pytest.mark.parametrize(("kind", "name"), [(stat.S_IFBLK, "a block device"), (0, "not a regular file")])
def test_what_is_no_file_at_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, name: str) -> None:
    (tmp_path / "thing").touch()
    monkeypatch.setattr(os, "stat", lambda *_, **__: os.stat_result([kind | 0o600] + [0] * 9))
    with pytest.raises(InputError, match=f"thing is {name}; copy what it gives"):
        splits_module._file_member(str(tmp_path / "thing"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output\n error"), "Input/output error"), (ValueError("odd\n things"), "odd things"),
        (EOFError(), "EOFError"), (OSError("without a number"), "without a number"),
    ],
)  # fmt: skip
def test_a_reason_is_one_line(error: Exception, reason: str) -> None:
    assert splits_module.reason(error) == reason


def test_a_file_uri_with_a_host_is_refused(tree: Path) -> None:
    assert refused("file://host/path") == "file://host/path names the host 'host': a file URI is file:///path"
    assert planned(f"FILE://{tree}/a.txt") == ["a.txt"]


def test_there_are_no_more_splits_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = splits_module._Member("s3://key:secret@bucket/a", 1 << 20, True)
    assert next(splits_module._splits_of(member, LINES, 1, 0)).index == 0
    with pytest.raises(InputError, match=r"^s3://bucket/a takes the job over 1048576 splits; use a larger --split-mb$"):
        next(splits_module._splits_of(member._replace(size=(1 << 20) + 1), LINES, 1, 0))
    (tmp_path / "a").write_bytes(b"12345")
    monkeypatch.setattr(splits_module, "SPLITS_MAX", 6)
    assert len(plan_splits([f"{tmp_path}/a"] * 2, LINES, 2)) == 6
    assert f"{tmp_path}/a takes the job over 6 splits" in refused(*[tmp_path / "a"] * 3, split_bytes=2)


def test_the_width_of_a_remote_file_is_checked_without_naming_its_credentials() -> None:
    member = splits_module._Member("s3://key:secret@bucket/a", 250, True)
    message = r"^s3://bucket/a has 250 bytes, not a multiple of 100, the width of the job's records$"
    with pytest.raises(InputError, match=message):
        next(splits_module._splits_of(member, RecordFormat("fixed", 100), 1, 0))


def test_an_empty_sequence_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert "empty: bad SequenceFile at byte 0" in refused(tmp_path / "empty", fmt=parse_format("sequence"))


def test_a_size_that_is_no_multiple_of_the_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(b"x" * 250)
    message = refused(path, fmt=RecordFormat("fixed", 100))
    assert str(path) in message
    assert "250" in message
    assert "100" in message


@pytest.mark.parametrize("source", ["\0", "nul\0name", "file://host/path", "nosuch://bucket/key"])
def test_names_that_cannot_be_are_refused(source: str) -> None:
    refused(source)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    Path(os.fsdecode(path)).write_text("x")
    assert "not UTF-8" in refused(tmp_path)


def test_too_many_splits_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "--split-mb" in refused(path)


def test_usage_errors_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no input"):
        plan_splits([], LINES, 64)
    with pytest.raises(UsageError, match="at least 1 byte"):
        plan_splits([str(tmp_path)], LINES, 0)


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


def test_a_file_truncated_between_the_check_and_the_mapping_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n" * 4000)
    split = plan_splits([str(path)], LINES, 10000)[1]
    find = inputs_module.record_range

    def find_then_truncate(*args: object) -> tuple[int, int]:
        found = find(*args)  # type: ignore[arg-type]
        os.truncate(path, 100)
        return found

    monkeypatch.setattr(inputs_module, "record_range", find_then_truncate)
    with pytest.raises(InputError, match=f"^cannot map {path}: mmap length is greater"), open_split(split, LINES, tmp_path):
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
def test_a_file_that_cannot_be_read_on_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: RecordFormat) -> None:
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
    with pytest.raises(InputError, match=f"^cannot read {path}: Input/output error$"), open_records(split, fmt, tmp_path):
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


# --- compressed members -----------------------------------------------------------------------------------------------

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
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(scratch)], capture_output=True, check=False)
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


# --- URIs -------------------------------------------------------------------------------------------------------------


def members(uri: str) -> list[tuple[str, int]]:
    found = splits_module._uri_members(uri)
    assert all(member.uri for member in found)
    return [(member.path, member.size) for member in found]


def test_a_uri_stands_for_what_a_path_does(tree: Path) -> None:
    """Names are quoted, and the query stays (test_inputs_s3.py)."""
    (tree / "b 100%?.txt").write_text("x\n")
    base = f"file://{tree}"
    (tree / "empty").unlink()
    texts = [(f"{base}/a.txt", 6), (f"{base}/b%20100%25%3F.txt", 2), (f"{base}/b.txt", 6)]
    assert members(f"{base}/a.txt") == texts[:1]
    assert members(base) == members(f"{base}/") == [*texts, (f"{base}/c.log", 6)]
    assert members(f"{base}/*.txt") == texts
    assert members(f"{base}/_SUCCESS") == [(f"{base}/_SUCCESS", 9)]
    (tree / "X").mkdir()
    (tree / "X" / "a").write_text("x\n")
    assert members(f"{base}/X") == members(f"{base}/X/") == [(f"{base}/X/a", 2)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or directory: file://{}/nowhere; check the name of the input"),
        ("*.zip", "file://{} has no input files that match '*.zip' (_* and .* are not read)"),
        ("folder", "file://{}/folder has no input files that match '*' (_* and .* are not read)"),
    ],
)
def test_what_a_uri_does_not_stand_for_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as caught:
        members(f"file://{tmp_path}/{name}")
    assert str(caught.value) == message.format(tmp_path)


def test_a_member_of_a_uri_has_its_user_and_query() -> None:
    assert splits_module._with_path("s3://k:s@bucket/a?x=y", "/b%20") == "s3://k:s@bucket/b%20?x=y"
    assert splits_module._with_path("s3://bucket/a", "/b") == "s3://bucket/b"


def test_what_a_file_system_says_is_one_line_without_credentials() -> None:
    uri = "s3://key:secret@bucket/a?x=y"
    for error in (OSError, ValueError, pyarrow.ArrowException):
        with pytest.raises(InputError) as caught, splits_module.uri_errors(uri):
            raise error(f"no {uri}\n is here")
        assert str(caught.value) == "cannot read s3://bucket/a: no s3://bucket/a is here"


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


def test_a_file_system_that_fails_while_it_is_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def get_file_info(self, _: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(splits_module, "open_filesystem", lambda _: (Failing(), "bucket/a"))
    with pytest.raises(InputError, match=r"^cannot read s3://bucket/a: .*Input/output error$"):
        members("s3://key:secret@bucket/a")


def test_memory_for_a_uri_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"x" * (3 << 20))
    split = Split(f"file://{path}", 0, 64, 3 << 20, "none", True, 0)
    with pytest.raises(InputError, match="needs over 1048576 bytes"):
        read(split, LINES, tmp_path, max_member_bytes=1 << 20)


def test_a_uri_whose_file_changed_or_went_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n")
    with pytest.raises(InputError, match="changed while the job ran"):
        read(Split(f"file://{path}", 0, 6, 6, "none", True, 0), LINES, tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        read(Split(f"file://{path}.gone", 0, 6, 6, "none", True, 0), LINES, tmp_path)


def test_credentials_in_a_uri_are_not_shown() -> None:
    assert public_name("s3://key:secret@bucket/a/b?region=x") == "s3://bucket/a/b"
    assert public_name("s3://key@bucket/a@b") == "s3://bucket/a@b"
    assert public_name("s3://key:se/cret@bucket/a/b") == "s3://bucket/a/b"
    assert public_name("s3://key:se/c@ret@bucket/a") == "s3://bucket/a"
    assert public_name("s3://bucket/a@b") == "s3://bucket/a@b"
    assert public_name("s3://bucket/a@b/c") == "s3://bucket/a@b/c"
    assert public_name("s3://key:secret@bucket/a@b") == "s3://bucket/a@b"
    assert public_name("s3://key:secret@bucket/a://b") == "s3://bucket/a://b"
    assert public_name("hdfs://host:8020/a@b") == "hdfs://host:8020/a@b"
    assert public_name("/plain/path?x@y") == "/plain/path?x@y"
    with pytest.raises(InputError) as caught:
        plan_splits(["nosuch://user:secret@host/path"], LINES, 64)
    assert "secret" not in str(caught.value)


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
