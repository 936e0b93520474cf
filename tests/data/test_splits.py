"""Inputs are named, listed and cut into splits."""

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pyarrow
import pytest
from reading import LINES, read

from quoreduce.data import splits as splits_module
from quoreduce.data.formats import RecordFormat, parse_format
from quoreduce.data.splits import Split, plan_splits, public_name
from quoreduce.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("lines", RecordFormat("lines")), ("words", RecordFormat("words")), ("fixed:100", RecordFormat("fixed", 100))],
)
def test_format_names_round_trip(text: str, expected: RecordFormat) -> None:
    assert parse_format(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text", ["", "line", "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:65537", "fixed:²", "fixed:1e2"]
)
def test_unknown_formats_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="use lines, words or fixed:N"):
        parse_format(text)


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
def test_what_is_no_file_at_all_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, name: str
) -> None:
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
