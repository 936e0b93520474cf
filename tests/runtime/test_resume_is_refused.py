"""What cannot be resumed is refused in one line, and nothing is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from durables import cut_short, staging
from msgspec.structs import replace
from runs import WORDCOUNT, Sessions, left_in, parts_of

from quoreduce import Options, Session
from quoreduce.data.commit import OutputDir
from quoreduce.data.journal import Header, Journal, decode
from quoreduce.errors import InputError, JournalError, OutputError, UsageError
from quoreduce.protocol.options import Attest


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(session: Session, out: Path, kind: type[Exception], says: str) -> None:
    before = state_of(out.parent)
    with pytest.raises(kind, match=says) as caught:
        session.resume(str(out))
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)
    assert state_of(out.parent) == before


def test_nothing_to_resume(sessions: Sessions, verses: Path, out: Path) -> None:
    session = sessions("inline")
    refused(session, out, JournalError, "nothing to resume: no durable job was writing")
    refused(session, out / "not" / "there", JournalError, "nothing to resume: .* is no directory")
    assert cut_short(session, WORDCOUNT, verses, out, 1000) is not None
    refused(session, out, JournalError, "nothing to resume: .*/out is complete")


def test_inputs_that_have_changed(half_done: Session, verses: Path, out: Path) -> None:
    status = verses.stat()
    try:
        os.utime(verses, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        refused(
            half_done, out, JournalError, f"the input has changed since the job began: {verses}; nothing was changed; "
        )
        verses.rename(verses.with_name("away"))
        refused(half_done, out, InputError, "no such file")
    finally:
        if verses.with_name("away").exists():
            verses.with_name("away").rename(verses)
        os.utime(verses, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert half_done.resume(str(out)).recovered > 0


def test_a_file_more_in_the_input(sessions: Sessions, verses: Path, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "a").write_bytes(verses.read_bytes())
    session = sessions("inline")
    assert cut_short(session, WORDCOUNT, folder, out, 5) is None
    (folder / "b").write_bytes(b"one more\n")
    refused(session, out, JournalError, "the input has changed since the job began: .*/b;")


def test_a_journal_that_is_corrupt(half_done: Session, out: Path) -> None:
    path = staging(out) / "journal"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    refused(
        half_done,
        out,
        JournalError,
        "the journal .* is corrupt: the (record|length) at byte .* is not what was written; ",
    )


def test_a_journal_of_another_version(half_done: Session, out: Path) -> None:
    path = staging(out) / "journal"
    header, *rest = decode(path.read_bytes())[0]
    assert isinstance(header, Header)
    Journal.create(path, [replace(header, version="0.0.9"), *rest]).close()
    refused(half_done, out, JournalError, "begun by quoreduce 0.0.9, and this is .*: resume it with that one")


def test_two_drivers_exclude_each_other(half_done: Session, out: Path, verses: Path) -> None:
    place = OutputDir.reopen(str(out))
    try:
        refused(half_done, out, OutputError, "another run is writing")
        with pytest.raises(OutputError, match="another run is writing"):
            half_done.run(WORDCOUNT, [str(verses)], str(out), Options(overwrite=True))
    finally:
        place.release()
    assert half_done.resume(str(out)).recovered > 0


def test_an_ordinary_run_does_not_sweep_a_durable_job(half_done: Session, out: Path, verses: Path) -> None:
    before = state_of(out.parent)
    for durable in (False, True):
        with pytest.raises(OutputError, match=f"go on with it: quoreduce resume {out}; or give it up with --overwrite"):
            half_done.run(WORDCOUNT, [str(verses)], str(out), Options(durable=durable))
    assert state_of(out.parent) == before
    half_done.run(WORDCOUNT, [str(verses)], str(out), Options(overwrite=True))
    assert left_in(out.parent) == ["out"]


def test_an_output_that_has_come_into_being(half_done: Session, out: Path) -> None:
    out.mkdir()
    refused(half_done, out, OutputError, "the output .* exists")


def test_what_cannot_be_durable(sessions: Sessions, verses: Path) -> None:
    with pytest.raises(UsageError, match="an attested job cannot be durable"):
        Options(durable=True, attest=Attest())
    with pytest.raises(UsageError, match="has to be a directory, not a URI"):
        sessions("inline").run(WORDCOUNT, [str(verses)], "mock://bucket/out", Options(durable=True))


def test_between_the_two_renames_of_an_overwrite_the_old_output_is_put_back_first(
    half_done: Session, verses: Path, out: Path, expected: list[bytes]
) -> None:
    (staging(out) / "old").mkdir()
    (staging(out) / "old" / "part-r-00000").write_bytes(b"old")
    refusal = "the output .* exists"  # the job was not begun with overwrite: so this cannot be, and is refused
    with pytest.raises(OutputError, match=refusal):
        half_done.resume(str(out))
    assert parts_of(out) == [b"old"]
