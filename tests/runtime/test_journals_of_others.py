"""A journal holds code, which is run only if nobody else can have put it there and it is of the job that is named."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from durables import cut_short, staging
from msgspec.structs import replace
from runs import SORT, WORDCOUNT, Sessions, parts_of

import quoreduce
from quoreduce import Session
from quoreduce.cli import main
from quoreduce.data.journal import MAGIC, Header, decode, encode, start_of_chain
from quoreduce.errors import JournalError

OTHER = 54321
MARK = "somebody else's code was run"


class Planted:
    """Says so when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.write_text, (self.mark, MARK))


def plant(out: Path, mark: Path) -> Path:
    """Put code into the job of a journal, with all of its digests right."""
    path = staging(out) / "journal"
    header, *more = decode(path.read_bytes())[0]
    assert isinstance(header, Header)
    frames, _ = encode([replace(header, job=pickle.dumps(Planted(mark))), *more], start_of_chain())
    path.write_bytes(MAGIC + frames)
    return path


def not_run(out: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Resume is refused in one line that does not advise it, and nothing was run."""
    capsys.readouterr()
    assert main(["resume", str(out), "--inline"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not mark.exists(), MARK
    assert "quoreduce resume" not in said.err
    with pytest.raises(JournalError):
        quoreduce.resume(str(out), on="inline")
    assert not mark.exists(), MARK
    return said.err


def test_a_journal_of_ones_own_is_code_and_is_run(one_mapped: Session, out: Path, tmp_path: Path) -> None:
    """What the tests below refuse would do harm."""
    plant(out, tmp_path / "mark")
    with pytest.raises(AttributeError):
        one_mapped.resume(str(out))
    assert (tmp_path / "mark").read_text() == MARK


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
@pytest.mark.parametrize("what", ["staging", "journal", "both"])
def test_a_journal_of_another_user_is_not_run(
    what: str, one_mapped: Session, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.parent.chmod(0o1777)
    journal = plant(out, tmp_path / "mark")
    for path in {"staging": [journal.parent], "journal": [journal], "both": [journal.parent, journal]}[what]:
        os.chown(path, OTHER, -1)
    before = journal.read_bytes()
    assert f"belongs to another user (uid {OTHER})" in not_run(out, tmp_path / "mark", capsys)
    assert journal.read_bytes() == before


@pytest.mark.parametrize(
    ("what", "mode"), [("staging", 0o777), ("staging", 0o730), ("journal", 0o666), ("parent", 0o777)]
)
def test_a_journal_that_others_may_write_is_not_run(
    what: str, mode: int, one_mapped: Session, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = plant(out, tmp_path / "mark")
    path = {"staging": journal.parent, "journal": journal, "parent": out.parent}[what]
    os.chown(path, -1, os.getegid() if os.geteuid() else OTHER)
    path.chmod(mode)
    assert "can be written by " in not_run(out, tmp_path / "mark", capsys)


def test_a_job_that_nobody_would_resume_does_not_begin(
    verses: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(out.parent, -1, os.getegid() if os.geteuid() else OTHER)
    out.parent.chmod(0o777)
    capsys.readouterr()
    words = ["run", "wordcount", str(verses), str(out), "--inline"]
    assert main([*words, "--durable"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        f"its folder {out.parent} can be written by everybody; choose an output in a folder that only you may write"
        in said
    )
    assert list(out.parent.iterdir()) == []
    assert main(words) == 0


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_journal_is_not_followed_and_not_waited_for(
    kind: str, one_mapped: Session, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = plant(out, tmp_path / "mark")
    moved = journal.rename(tmp_path / "journal")
    {"link": lambda: journal.symlink_to(moved), "fifo": lambda: os.mkfifo(journal), "folder": journal.mkdir}[kind]()
    not_run(out, tmp_path / "mark", capsys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_foreign_journal_neither_stops_a_run_nor_is_touched_by_it(
    one_mapped: Session, verses: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.parent.chmod(0o1777)
    foreign = staging(out)
    os.chown(foreign, OTHER, -1)
    before = sorted(path.name for path in foreign.rglob("*"))
    capsys.readouterr()
    assert main(["run", "wordcount", str(verses), str(out), "--on", "inline"]) == 0
    assert "quoreduce resume" not in capsys.readouterr().err
    assert sorted(path.name for path in foreign.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_foreign_staging_beside_ones_own_hides_it_not(one_mapped: Session, out: Path, expected: list[bytes]) -> None:
    for number in range(8):  # whatever the order of the folder
        foreign = out.parent / f".{out.name}.planted{number}.staging"
        (foreign / "output").mkdir(parents=True)
        (foreign / "journal").write_bytes(b"")
        os.chown(foreign, OTHER, -1)
    one_mapped.resume(str(out))
    assert parts_of(out) == expected


def test_staging_is_private_whatever_the_umask(sessions: Sessions, verses: Path, out: Path) -> None:
    before = os.umask(0)
    try:
        assert cut_short(sessions("inline"), WORDCOUNT, verses, out, 2) is None
    finally:
        os.umask(before)
    assert staging(out).stat().st_mode & 0o777 == 0o700
    out.parent.chmod(0o755)
    result = sessions("inline").resume(str(out))
    assert result.parts == 3
    assert out.stat().st_mode & 0o777 == 0o777, "the output is as open as the umask says"


def test_the_job_that_is_named_has_to_be_the_one_of_the_journal(
    one_mapped: Session, out: Path, expected: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(out, tmp_path / "mark")
    assert main(["resume", str(out), "--inline", "--job", "wordcount"]) == 2
    said = capsys.readouterr().err
    assert "the journal is of job wordcount, digest " in said
    assert "it is another one, or was changed since; nothing was changed" in said
    assert not (tmp_path / "mark").exists(), MARK
    with pytest.raises(JournalError, match="is another one"):
        quoreduce.resume(str(out), job=WORDCOUNT, on="inline")
    assert not (tmp_path / "mark").exists(), MARK


def test_the_job_that_is_named_is_the_one_of_the_journal(one_mapped: Session, out: Path, expected: list[bytes]) -> None:
    with pytest.raises(JournalError, match="is another one"):
        one_mapped.resume(str(out), job=SORT)
    assert main(["resume", str(out), "--inline", "--job", "wordcount"]) == 0
    assert parts_of(out) == expected
