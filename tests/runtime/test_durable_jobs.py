"""Durable jobs: however they are cut short, whoever resumes them executes what was not agreed on, and nothing else."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import blocking
import pytest
from blocking import Gate
from msgspec.structs import replace
from runs import EXECUTORS, SORT, WORDCOUNT, left_in, parts_of, poll, running

import quoreduce
from quoreduce import Job, Options, Result, Session
from quoreduce.cli import main
from quoreduce.data.commit import OutputDir
from quoreduce.data.journal import (
    MAGIC,
    Begun,
    BlocksGone,
    Decided,
    Header,
    Journal,
    Launched,
    Record,
    decode,
    encode,
    start_of_chain,
)
from quoreduce.errors import InputError, JobError, JournalError, NoQuorum, OutputError, UsageError
from quoreduce.protocol import wire
from quoreduce.protocol.options import Attest, Place
from quoreduce.runtime.inline import InlineExecutor

TIMEOUT_S = 120
LIVES_MAX = 30
SPLIT_MB = 0.006  # five splits or so of the small text
MOMENTS: dict[str, int] = {}
Sessions = Callable[..., Session]


def staging(out: Path) -> Path:
    (found,) = out.parent.glob(f".{out.name}.*.staging")
    return found


def journal_of(out: Path) -> list[Record]:
    return decode((staging(out) / "journal").read_bytes())[0]


def agreed_in(records: list[Record]) -> set[tuple[str, int]]:
    return {(one.kind, one.index) for one in records if isinstance(one, Decided)}


def cut_short(
    session: Session, job: Job, source: Path, out: Path, at: int, life: int = 0, **options: object
) -> Result | None:
    """Run or resume a durable job, and interrupt it when it has reported progress ``at`` times; None if that was so."""
    reports = 0

    def report(progress: object) -> None:
        nonlocal reports
        reports += 1
        if reports > at:
            raise KeyboardInterrupt

    try:
        if life:
            return session.resume(str(out), report)
        chosen = Options(**({"durable": True, "reducers": 3, "split_mb": SPLIT_MB} | options))  # type: ignore[arg-type]
        return session.run(job, [str(source)], str(out), chosen, report)
    except KeyboardInterrupt as error:
        notes = error.__notes__
    assert notes == [f"what was agreed on is kept: quoreduce resume {out}"]
    return None


@pytest.fixture
def sessions(request: pytest.FixtureRequest) -> Sessions:
    return lambda on, n=2: request.getfixturevalue("actors" if on == "ray" else "processes")(on, n)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "out"


@pytest.fixture
def expected(sessions: Sessions, verses: Path, tmp_path: Path) -> list[bytes]:
    """The output without interruptions."""
    session = sessions("inline")
    session.run(WORDCOUNT, [str(verses)], str(tmp_path / "expected"), Options(reducers=3, split_mb=SPLIT_MB))
    return parts_of(tmp_path / "expected")


@pytest.fixture
def half_done(sessions: Sessions, verses: Path, out: Path) -> Session:
    """A session, and a durable job that was interrupted when all of its maps were agreed on and some of its reduces."""
    return interrupted(
        "half done", sessions("inline"), verses, out, lambda done: any(kind == "reduce" for kind, _ in done)
    )


@pytest.fixture
def one_mapped(sessions: Sessions, verses: Path, out: Path) -> Session:
    """The same, interrupted when a map or two were agreed on."""
    return interrupted("one mapped", sessions("inline"), verses, out, lambda done: len(done) > 0)


def interrupted(
    name: str, session: Session, verses: Path, out: Path, when: Callable[[set[tuple[str, int]]], bool]
) -> Session:
    for at in range(MOMENTS.get(name, 2), 1000, 2):
        if cut_short(session, WORDCOUNT, verses, out, at) is not None:
            pytest.fail("no such moment")
        if when(agreed_in(journal_of(out))):
            MOMENTS[name] = at  # there is no other order of events in one process
            return session
        OutputDir(str(out), True, [], "sweeps").abort()
    raise AssertionError


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_job_that_is_cut_short_again_and_again_executes_nothing_twice(
    on: str, sessions: Sessions, verses: Path, out: Path, expected: list[bytes]
) -> None:
    """Every driver gets a little further, and what it saw agreed on is never launched again."""
    session = sessions(on)
    result, life, seen = None, 0, set[tuple[str, int]]()
    while result is None:
        assert life < LIVES_MAX, "it gets nowhere"
        result = cut_short(session, WORDCOUNT, verses, out, 3 + life, life)
        if result is None:
            records = journal_of(out)
            begun = [n for n, one in enumerate(records) if isinstance(one, Begun)]
            assert len(begun) == life + 1
            launched = {(one.kind, one.index) for one in records[begun[-1] :] if isinstance(one, Launched)}
            assert not launched & seen
            seen = agreed_in(records)
            life += 1
    assert life > 1
    assert parts_of(out) == expected
    assert left_in(out.parent) == ["out"]
    assert result.recovered == len(seen)
    assert sum(result.executions.values()) == 2 * (result.splits + result.parts - len(seen))
    assert result.records_in == json.loads((out / "_SUCCESS").read_text())["records_in"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"digest": "fast"},
        {"mode": "basic"},
        {"mode": "original"},
        {"f": 0},
        {"deferred": False},
        {"digest_outputs": False},
        {"assurance": "checked"},
        {"assurance": "checked", "f": 2},
    ],
)
@pytest.mark.parametrize("at", [2, 6, 9])
def test_all_ways_to_run_a_job_can_be_resumed(
    options: dict[str, object], at: int, sessions: Sessions, verses: Path, out: Path, expected: list[bytes]
) -> None:
    session = sessions("inline", 3)
    result = cut_short(session, WORDCOUNT, verses, out, at, **options)
    taken = agreed_in(journal_of(out)) if result is None else set()
    result = result or session.resume(str(out))
    assert parts_of(out) == expected
    assert result.recovered == len(taken)
    assert result.reexecutions == 0
    assert quoreduce.runtime.session.verify(str(out)).ok


@pytest.mark.parametrize("at", range(0, 16, 3))
def test_what_was_sampled_is_taken_over(
    at: int, sessions: Sessions, records: Path, records_sorted: bytes, out: Path
) -> None:
    session = sessions("inline")
    result = cut_short(session, SORT, records, out, at, split_mb=0.05)
    taken = agreed_in(journal_of(out)) if result is None else set()
    result = result or session.resume(str(out))
    assert b"".join(parts_of(out)) == records_sorted
    assert result.recovered == len(taken)
    assert result.executions.get("sample", 0) == 2 * (("sample", 0) not in taken)


def test_faults_are_masked_before_and_after(sessions: Sessions, verses: Path, out: Path, expected: list[bytes]) -> None:
    session, life, result = sessions("inline", 4), 0, None
    faults = ("flip:map:2", "wrong:reduce:1", "crash:map:1", "swap:map:1", "lose:reduce:1")
    while result is None:
        assert life < LIVES_MAX, "it gets nowhere"
        result = cut_short(session, WORDCOUNT, verses, out, 12 + 4 * life, life, faults=faults)
        life += 1
    assert life > 1
    assert parts_of(out) == expected


def test_counters_cover_all_lives(
    sessions: Sessions, verses: Path, tmp_path: Path, half_done: Session, out: Path
) -> None:
    whole = sessions("inline").run(
        WORDCOUNT, [str(verses)], str(tmp_path / "whole"), Options(reducers=3, split_mb=SPLIT_MB)
    )
    resumed = half_done.resume(str(out))
    assert (resumed.counters, resumed.records_in, resumed.bytes_in) == (
        whole.counters,
        whole.records_in,
        whole.bytes_in,
    )


class Watch:
    """Looks at the journal when something is asked of a worker, and when a part is published."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.launches, self.published, self.syncs = out, 0, 0, 0
        self._synced: set[tuple[str, int]] = set()
        submit, publish, sync = InlineExecutor.submit, OutputDir.publish, Journal.sync

        def submitted(executor: InlineExecutor, worker: str, raw: bytes) -> None:
            request = wire.decode_request(raw)
            if isinstance(request, wire.MapTask | wire.ReduceTask):
                assert request.attempt in {one.attempt for one in journal_of(out) if isinstance(one, Launched)}
                self.launches += 1
            submit(executor, worker, raw)

        def published(place: OutputDir, part: int, attempt: int) -> None:
            assert ("reduce", part) in self._synced
            self.published += 1
            publish(place, part, attempt)

        def synced(journal: Journal) -> None:
            sync(journal)
            self.syncs += 1
            if list(out.parent.glob(f".{out.name}.*.staging/journal")):
                self._synced = agreed_in(journal_of(out))

        monkeypatch.setattr(InlineExecutor, "submit", submitted)
        monkeypatch.setattr(OutputDir, "publish", published)
        monkeypatch.setattr(Journal, "sync", synced)


@pytest.mark.parametrize("mode", ["original", "bft"])
def test_it_is_written_down_before_it_is_done_and_on_disk_before_it_is_published(
    mode: str, sessions: Sessions, verses: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions("inline")
    watch = Watch(out, monkeypatch)
    result = cut_short(session, WORDCOUNT, verses, out, 1000, mode=mode)
    assert result is not None
    assert watch.launches == sum(result.executions.values())
    assert watch.published == 3
    assert watch.syncs <= 1 + result.splits + result.parts, "once for each batch of votes at most"


def test_of_several_copies_one_that_was_not_given_up_is_taken(out: Path, tmp_path: Path) -> None:
    """A worker that outlives its driver may still delete what it was told to."""
    from quoreduce.driver.durable import _latest

    place = OutputDir(str(out), False, [], "job")
    for name in ("a", "b"):
        (tmp_path / name).touch()
    first, second, none = (
        Decided("map", 0, attempt, ("x", "y"), b"d", (), path and str(tmp_path / path))
        for attempt, path in ((0, "a"), (1, "b"), (2, ""))
    )

    def latest(*decided: Decided, gone: set[int] = frozenset()) -> list[tuple[int, bool]]:  # type: ignore[assignment]
        return [(one.decided.attempt, one.stored) for one in _latest(place, decided, gone)]

    assert latest(first, second) == latest(none, second) == latest(none, first, second, gone={0}) == [(1, True)]
    assert latest(first, second, gone={1}) == latest(first, none) == [(0, True)]
    assert latest(first, second, gone={0, 1}) == [(0, False)]
    (tmp_path / "b").unlink()
    assert latest(first, second) == [(0, True)]
    assert latest(second) == [(1, False)]
    place.abort()


def copies_in(out: Path) -> list[Path]:
    """The stored map outputs, in order of the journal."""
    records = journal_of(out)
    gone = {attempt for one in records if isinstance(one, BlocksGone) for attempt in one.attempts}
    return [
        Path(one.path) for one in records if isinstance(one, Decided) and one.kind == "map" and one.attempt not in gone
    ]


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[next(n for n, byte in enumerate(raw) if byte) + 200] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["lost", "rotten"])
def test_a_copy_that_is_lost_or_rotten_is_made_once_more(
    how: str, one_mapped: Session, out: Path, expected: list[bytes]
) -> None:
    """R6: the vote stands; one execution brings another copy."""
    taken = agreed_in(journal_of(out))
    copies_in(out)[0].unlink() if how == "lost" else flip(copies_in(out)[0])
    result = one_mapped.resume(str(out))
    assert parts_of(out) == expected
    assert result.recovered == len(taken)
    assert sum(result.executions.values()) == 2 * (result.splits + result.parts - len(taken)) + 1
    assert result.reexecutions == 1


def test_a_copy_that_was_given_up_is_not_used_although_it_is_there(
    one_mapped: Session, out: Path, expected: list[bytes]
) -> None:
    journal, records = Journal.open(staging(out) / "journal")
    journal.append([BlocksGone(tuple(one.attempt for one in records if isinstance(one, Decided)))])
    journal.close()
    taken = agreed_in(records)
    result = one_mapped.resume(str(out))
    assert parts_of(out) == expected
    assert (result.recovered, result.reexecutions, result.faults.detected) == (len(taken), len(taken), 0)


@pytest.mark.parametrize("how", ["lost", "rotten"])
def test_a_part_that_is_lost_or_rotten_is_made_once_more(
    how: str, half_done: Session, out: Path, expected: list[bytes]
) -> None:
    """R8: what was published is checked again before it is published again."""
    taken = agreed_in(journal_of(out))
    index = next(index for kind, index in sorted(taken) if kind == "reduce")
    decided = [one for one in journal_of(out) if isinstance(one, Decided) and one.kind == "reduce"]
    attempt = next(one.attempt for one in decided if one.index == index)
    agreed_file = staging(out) / "output" / f"part-r-{index:05d}"
    part = agreed_file if agreed_file.exists() else staging(out) / "attempts" / f"part-r-{index:05d}.{attempt}"
    part.unlink() if how == "lost" else flip(part)
    result = half_done.resume(str(out))
    assert parts_of(out) == expected
    assert result.executions["reduce"] == 2 * (3 - sum(kind == "reduce" for kind, _ in taken)) + 1


def test_a_copy_made_for_one_that_was_lost_is_found_by_the_next_life(
    one_mapped: Session, verses: Path, out: Path, expected: list[bytes]
) -> None:
    session = one_mapped
    lost = next(one for one in journal_of(out) if isinstance(one, Decided))
    Path(lost.path).unlink()
    for at in range(1, 1000):
        if cut_short(session, WORDCOUNT, verses, out, at, life=1) is not None:
            pytest.fail("no such moment")
        again = [
            one for one in journal_of(out) if isinstance(one, Decided) and one.index == lost.index and one.kind == "map"
        ]
        if len(again) == 2:
            break
    assert again[1].parts == tuple((*new[:3], old[3]) for new, old in zip(lost.parts, again[1].parts, strict=True))
    taken = agreed_in(journal_of(out))
    result = session.resume(str(out))
    assert parts_of(out) == expected
    assert result.reexecutions == 0
    assert sum(result.executions.values()) == 2 * (result.splits + result.parts - len(taken))


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


def test_a_torn_end_is_cut_off(half_done: Session, out: Path, expected: list[bytes]) -> None:
    path = staging(out) / "journal"
    raw = path.read_bytes()
    _, _, chain = decode(raw)
    path.write_bytes(raw + encode([Begun(1)], chain)[0][:-5])
    half_done.resume(str(out))
    assert parts_of(out) == expected


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


def raises(line: bytes) -> list[tuple[str, int]]:
    raise LookupError("oops")


def adds(key: str, values: list[int]) -> list[tuple[str, int]]:
    return [(key, sum(values))]


def test_the_jobs_own_error_is_definite(sessions: Sessions, verses: Path, out: Path) -> None:
    with pytest.raises(JobError):
        sessions("inline").run(Job("raises", raises, adds), [str(verses)], str(out), Options(durable=True))
    assert left_in(out.parent) == []


def test_no_quorum_may_be_a_matter_of_the_place(
    sessions: Sessions, verses: Path, out: Path, expected: list[bytes]
) -> None:
    """Two domains, one of which is always wrong, agree on nothing. Three do."""
    options = Options(durable=True, reducers=3, split_mb=SPLIT_MB, faults=("stuck:1",), attempts_max=3)
    with pytest.raises(NoQuorum) as caught:
        sessions("inline", 2).run(WORDCOUNT, [str(verses)], str(out), options)
    assert caught.value.__notes__
    assert left_in(out.parent) == [staging(out).name]
    sessions("inline", 3).resume(str(out))
    assert parts_of(out) == expected


def test_between_the_two_renames_of_an_overwrite_the_old_output_is_put_back_first(
    half_done: Session, verses: Path, out: Path, expected: list[bytes]
) -> None:
    (staging(out) / "old").mkdir()
    (staging(out) / "old" / "part-r-00000").write_bytes(b"old")
    refusal = "the output .* exists"  # the job was not begun with overwrite: so this cannot be, and is refused
    with pytest.raises(OutputError, match=refusal):
        half_done.resume(str(out))
    assert parts_of(out) == [b"old"]


class Command:
    """The command line in a process of its own, with the blocking job at the gate."""

    def __init__(self, gate: Gate, tmp_path: Path, out: Path) -> None:
        self.store = tmp_path / "store"
        self.environment = {**os.environ, "BLOCKING_FOLDER": str(gate.folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        words = [
            "run", f"{blocking.__file__}:JOB", str(gate.text), str(out), "--on", "local", "--workers", "2", "--domain",
            "worker", "--reducers", "1", "--store", str(self.store), "--durable",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quoreduce.cli", *words], env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.workers = [gate.reached(), gate.reached()]

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, stderr


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGKILL, -9, ""),
     (signal.SIGINT, 130, "quoreduce: interrupted, nothing was published; what was agreed on is kept: "),
     (signal.SIGTERM, 143, "quoreduce: terminated, nothing was published; what was agreed on is kept: ")],
)  # fmt: skip
def test_a_driver_that_is_killed_while_workers_reduce(
    number: signal.Signals, code: int, says: str, gate: Gate, tmp_path: Path, out: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The maps were agreed on: resumed, the reduce is all that is executed; the job's code comes from the journal."""
    command = Command(gate, tmp_path, out)
    returned, stderr = command.end(number)
    assert returned == code
    assert stderr == (says and f"{says}quoreduce resume {out}\n")
    poll(lambda: not any(map(running, command.workers)), "the workers to end")
    assert left_in(out.parent) in ([staging(out).name], [staging(out).name, ".out.lock"])
    gate.open()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["resume", str(out), "--inline"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "resumed: 1 tasks were agreed on before, and taken over"
    assert "on inline" in said[2]
    assert "executions: map 0 reduce 2 (0 more than planned)" in said[2]
    assert parts_of(out) == [gate.right]
    assert left_in(out.parent) == ["out"]
    gate.close()


def test_resume_is_public_and_goes_on_where_the_job_was(half_done: Session, out: Path, expected: list[bytes]) -> None:
    result = quoreduce.resume(str(out))
    assert (result.on, result.recovered > 0) == ("inline", True)
    assert parts_of(out) == expected


def test_resume_says_what_it_did_as_json(
    half_done: Session, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    taken = agreed_in(journal_of(out))
    assert main(["resume", str(out), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["recovered"] == len(taken)


def test_where_a_job_goes_on(half_done: Session, out: Path) -> None:
    from quoreduce.driver.durable import reopen

    with reopen(str(out)) as life:
        before = life.where()
        assert before.on == "inline"
        assert life.where(workers=7).workers == 7
        assert life.where(on="local") == Place("local")


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
