"""Durable jobs: however they are cut short, whoever resumes them executes what was not agreed on, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from durables import SPLIT_MB, agreed_in, cut_short, journal_of, staging
from runs import EXECUTORS, SORT, WORDCOUNT, Sessions, left_in, parts_of

import quoreduce
from quoreduce import Job, Options, Session
from quoreduce.data.commit import OutputDir
from quoreduce.data.journal import Begun, BlocksGone, Decided, Journal, Launched, decode, encode
from quoreduce.errors import JobError, NoQuorum
from quoreduce.protocol import wire
from quoreduce.runtime.inline import InlineExecutor

LIVES_MAX = 30


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


def test_a_torn_end_is_cut_off(half_done: Session, out: Path, expected: list[bytes]) -> None:
    path = staging(out) / "journal"
    raw = path.read_bytes()
    _, _, chain = decode(raw)
    path.write_bytes(raw + encode([Begun(1)], chain)[0][:-5])
    half_done.resume(str(out))
    assert parts_of(out) == expected


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
