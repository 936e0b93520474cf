"""An input that changes while a job runs, or that has rotted in the page cache: no wrong output, and no core is
blamed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meddling import Said, meddled_session
from runs import WORDCOUNT, coreutils, counted, left_in, parts_of

from quoreduce import Options
from quoreduce.data import inputs as inputs_module
from quoreduce.data.direct import open_direct
from quoreduce.errors import InputError
from quoreduce.protocol import wire


def rename_over(path: Path) -> None:
    """Another file of the same size, as old as the first."""
    status, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes().swapcase())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_file_that_is_renamed_over_in_mid_run_is_an_input_error(after: int, verses: Path, tmp_path: Path) -> None:
    """After some maps; the second replica of a map; when all has been read."""
    text = tmp_path / "text"
    text.write_bytes(verses.read_bytes())
    answers = 0

    def swap(worker: str, reply: wire.Reply) -> list[Said]:
        nonlocal answers
        answers += isinstance(reply, wire.Done)
        if isinstance(reply, wire.Done) and answers == after:
            rename_over(text)
        return [reply]

    with meddled_session(2) as (session, meddler):
        meddler.replies = swap
        options = Options(reducers=1, split_mb=text.stat().st_size / 2e6)
        with pytest.raises(InputError, match=f"{text} changed while the job ran: another file has its name now"):
            session.run(WORDCOUNT, [str(text)], str(tmp_path / "outputs" / "out"), options)
    assert left_in(tmp_path / "outputs") == []


Mapped = Callable[..., tuple[Any, Any]]


def rotten(real: Mapped, offset: int, reads_before: int = 0) -> Mapped:
    """A page cache in which a bit of the input flips after it was read so many times; what is read past it is right."""
    reads = 0

    def view(file: Any, name: str, begin: int, stop: int, touch: int) -> tuple[Any, Any]:
        nonlocal reads
        array, mapping = real(file, name, begin, stop, touch)
        if name.endswith("rotten") and not isinstance(file, inputs_module.DirectFile) and begin <= offset < stop:
            reads += 1
            if reads > reads_before:
                array = np.array(array)
                array[offset - begin] ^= 1
        return array, mapping

    return view


def text_on_disk(tmp_path: Path, verses: Path) -> Path:
    """A text where files can be read past the page cache; its first words are single letters."""
    text = tmp_path / "rotten"
    text.write_bytes(b"a b c d e f g h\n" + verses.read_bytes())
    probe = open_direct(str(text))
    if probe is None:
        pytest.skip(f"the file system of {tmp_path} cannot read past the page cache")
    probe.close()
    return text


@pytest.mark.parametrize("workers", [2, 3])
def test_a_page_that_rots_between_two_reads_does_not_win_and_no_core_is_blamed(
    workers: int, verses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first replica read it right. The third one reads the disk: from the cache it would make the wrong output
    win.
    """
    text = text_on_disk(tmp_path, verses)
    monkeypatch.setattr(inputs_module, "_map", rotten(inputs_module._map, 4, reads_before=1))
    with meddled_session(workers) as (session, _):
        result = session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), Options(reducers=2))
    assert counted(parts_of(tmp_path / "out")) == coreutils(text.read_bytes())
    assert {one.kind for one in result.diagnoses} == {"input"}
    assert (result.lost_votes, result.suspects) == ({}, {})


@pytest.mark.parametrize("f", [1, 2])
def test_a_page_that_has_rotted_in_the_cache_is_outvoted_and_no_core_is_blamed(
    f: int, verses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All replicas are on one machine: those beyond the first f read the disk."""
    text = text_on_disk(tmp_path, verses)
    monkeypatch.setattr(inputs_module, "_map", rotten(inputs_module._map, 4))
    with meddled_session(2 * f + 1) as (session, _):
        result = session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), Options(f=f, reducers=2, direct_input=True))
    assert counted(parts_of(tmp_path / "out")) == coreutils(text.read_bytes())
    assert {one.kind for one in result.diagnoses} == {"input"}
    assert all("in the page cache and" in one.evidence and one.exonerates for one in result.diagnoses)
    assert (result.lost_votes, result.suspects) == ({}, {})


def test_a_core_that_computes_wrong_is_still_blamed(verses: Path, tmp_path: Path) -> None:
    options = Options(faults=("wrong:map:1@first",), reducers=2, direct_input=True)
    with meddled_session(3) as (session, _):
        result = session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), options)
    assert [one.kind for one in result.diagnoses] == ["compute"]
    assert sum(result.lost_votes.values()) == 1
