"""Outputs behind a URI are uploaded from a scratch directory."""

import os
from pathlib import Path

import pytest
from outputs import NEW, OLD, contents_of, make, uri_output, write

from quoreduce.data import commit
from quoreduce.data.commit import UriOutput, open_output
from quoreduce.errors import OutputError


def test_a_uri_is_opened_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "UriOutput", lambda *asked: asked)
    asked = ("s3://bucket/out", True, ["in"], "job", "/scratch")
    assert open_output(*asked, sync=True) == asked


def test_attempts_lie_in_the_scratch_directory_until_they_are_uploaded(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    output = uri_output(tmp_path, overwrite=True)
    assert output.staging.parent == tmp_path / "scratch"
    assert output.staging.name.startswith("output.job.")
    for part in range(2):
        write(output, part, 0, b"a losing attempt")
        write(output, part, 1, b"x" * (9 << 20))
        output.publish(part, 1)
    assert sorted(os.listdir(output.staging)) == ["part-r-00000.0", "part-r-00001.0"]
    assert [output.part_path(part) for part in range(2)] == [None, None]
    with pytest.raises(OutputError, match="published from attempt 1"):
        output.publish(0, 0)
    output.finish(NEW, b"receipt")
    assert os.listdir(tmp_path / "scratch") == []
    output.abort()
    big = b"x" * (9 << 20)
    assert contents_of(tmp_path / "out") == {
        "part-r-00000": big, "part-r-00001": big, "_SUCCESS": NEW, "_RECEIPT.json": b"receipt",
    }  # fmt: skip
    assert os.listdir(tmp_path / "scratch") == []


def test_a_slash_at_the_end_of_a_uri_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "OUTX").mkdir()
    (tmp_path / "scratch").mkdir()
    output = UriOutput(f"file://{tmp_path}/OUTX/", True, [], "job", tmp_path / "scratch")
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    output.finish(NEW)
    assert contents_of(tmp_path / "OUTX") == {"part-r-00000": b"x", "_SUCCESS": NEW}


def test_an_abort_deletes_what_was_uploaded_once_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    output = uri_output(tmp_path, overwrite=True)
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    output.abort()
    assert os.listdir(tmp_path / "scratch") == []
    assert not (tmp_path / "out").exists()
    make(tmp_path / "out", "full")
    output.abort()
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"old", "_SUCCESS": OLD}


def test_an_abort_leaves_what_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    output = uri_output(tmp_path, overwrite=True)
    write(output, 0, 0, b"x")
    output.publish(0, 0)
    (tmp_path / "out" / "note").write_bytes(b"mine")
    output.abort()
    assert contents_of(tmp_path / "out") == {"note": b"mine"}


def test_an_abort_before_anything_was_uploaded_deletes_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    uri_output(tmp_path, overwrite=True).abort()
    assert (tmp_path / "out").exists()
    assert os.listdir(tmp_path / "scratch") == []


@pytest.mark.parametrize("finish", [False, True])
def test_an_old_output_behind_a_uri_goes_with_the_first_upload(tmp_path: Path, finish: bool) -> None:
    make(tmp_path / "out", "full")
    with pytest.raises(OutputError, match=f"the output file://{tmp_path}/out exists"):
        uri_output(tmp_path)
    output = uri_output(tmp_path, overwrite=True)
    assert len(os.listdir(tmp_path / "out")) == 2
    if finish:
        output.finish(NEW)
        assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW}
        return
    write(output, 7, 0, b"new")
    output.publish(7, 0)
    assert contents_of(tmp_path / "out") == {"part-r-00007": b"new"}
    write(output, 0, 0, b"next")
    output.publish(0, 0)
    assert len(os.listdir(tmp_path / "out")) == 2
    output.finish(NEW)
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"next", "part-r-00007": b"new", "_SUCCESS": NEW}


def test_an_old_output_behind_a_uri_is_incomplete_as_soon_as_it_is_touched(tmp_path: Path) -> None:
    """Its manifest goes first."""
    make(tmp_path / "out", "full")
    (tmp_path / "out" / "_RECEIPT.json").write_bytes(b"old")
    output = uri_output(tmp_path, overwrite=True)
    (tmp_path / "out" / "_SUCCESS").unlink()
    write(output, 1, 0, b"new")
    with pytest.raises(OutputError, match=f"cannot write file://{tmp_path}/out: .*_SUCCESS"):
        output.publish(1, 0)
    assert contents_of(tmp_path / "out") == {"part-r-00000": b"old", "_RECEIPT.json": b"old"}


@pytest.mark.parametrize("kind", ["file", "foreign", "underscore", "nested", "deep"])
def test_what_no_job_wrote_behind_a_uri_is_refused(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "out", kind)
    with pytest.raises(OutputError, match=rf"file://{tmp_path}/out (is not a directory|holds '\w+)"):
        uri_output(tmp_path, overwrite=True)
    assert not os.listdir(tmp_path / "scratch")


@pytest.mark.parametrize("left", [None, "directory"])
def test_behind_a_uri_too_an_attempt_that_was_never_written_is_not_published(tmp_path: Path, left: str | None) -> None:
    output = uri_output(tmp_path)
    if left:
        Path(output.attempt_path(0, 1)).mkdir()
    with pytest.raises(OutputError, match="writer left no file" if left is None else "not a regular file"):
        output.publish(0, 1)
    output.abort()
    assert not (tmp_path / "out").exists()


def test_a_file_system_that_keeps_a_slash_at_the_end_lists_the_same_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import fs

    make(tmp_path / "out", "full")
    monkeypatch.setattr(commit, "open_filesystem", lambda _: (fs.LocalFileSystem(), f"{tmp_path}/out/"))
    output = uri_output(tmp_path, overwrite=True)
    output.finish(NEW)
    assert contents_of(tmp_path / "out") == {"_SUCCESS": NEW}


def test_in_a_store_without_directories_a_name_with_a_slash_is_no_jobs(tmp_path: Path) -> None:
    commit._refuse_foreign("s3://bucket/out", [("_SUCCESS", True), ("_logs", True), ("part-r-00000", True)])
    with pytest.raises(OutputError, match=r"holds '_private/thesis\.tex', which no job wrote"):
        commit._refuse_foreign("s3://bucket/out", [("_SUCCESS", True), ("_private/thesis.tex", True)])


@pytest.mark.parametrize("place", ["out", "out/", "out/deep", ""])
def test_a_uri_that_is_in_an_input_or_holds_it_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputError, match="inside each other"):
        uri_output(tmp_path, inputs=("plain", f"file://{tmp_path}/{place}"))
    beside = (f"{tmp_path}/{place}", *(f"file://{tmp_path}/{name}" for name in ("out2", "ou", "outX", "outX/")))
    uri_output(tmp_path, inputs=beside).abort()
    UriOutput(f"file://{tmp_path}/outX", False, [f"file://{tmp_path}/out/in"], "job", tmp_path / "scratch").abort()


def test_a_scratch_directory_is_made_or_named(tmp_path: Path) -> None:
    output = UriOutput(f"file://{tmp_path}/out", False, [], "job", tmp_path / "scratch")
    assert output.staging.parent == tmp_path / "scratch"
    assert (tmp_path / "scratch").stat().st_mode & 0o777 == 0o700
    output.abort()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file/scratch"):
        UriOutput(f"file://{tmp_path}/out", False, [], "job", tmp_path / "file" / "scratch")
    with pytest.raises(OutputError, match="job id"):
        UriOutput(f"file://{tmp_path}/out", False, [], "a.b", tmp_path)
