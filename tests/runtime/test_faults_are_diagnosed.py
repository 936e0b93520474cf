"""Every kind of fault gets its class, whom it was, whether it repeats, and the first record that differs: on every
executor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
from meddling import attempt_of, meddled_session
from runs import EXECUTORS, SORT, WORDCOUNT, Runner, beginning

from quoreduce import Job, Options, Result
from quoreduce.driver import detective
from quoreduce.driver.diagnosis import Diagnosis
from quoreduce.protocol import wire

MAPS, REDUCES = 4, 2
SPLIT_MB = 0.005
DEADLINE_S = 6.0  # of a job with a worker that hangs
FAR_S = 120.0  # of all others: a busy machine must not look like a fault
TASKS = {"reducers": REDUCES, "split_mb": SPLIT_MB}
WORD = re.compile(r"b'[^']*', \d+")
CLASSES = {
    "flip": "compute", "wrong": "compute", "lie": "metadata", "swap": "store", "lose": "store", "crash": "crash",
    "hang": "hang", "late": "network",
}  # fmt: skip
TRANSIENT = ("flip", "wrong", "lie")


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine under load must not change what is found out."""
    monkeypatch.setattr(detective, "LIMIT_S", 120.0)


@pytest.fixture(scope="module")
def text(verses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning(verses, MAPS * SPLIT_MB, tmp_path_factory.mktemp("text"))


def struck(run: Runner, on: str, text: Path, *faults: str, workers: int = 3, **options: object) -> Result:
    deadline = DEADLINE_S if any(fault.startswith("hang") for fault in faults) else FAR_S
    result, _ = run(on, WORDCOUNT, text, workers=workers, faults=faults, deadline_s=deadline, **(TASKS | options))
    return result


def the_one(result: Result) -> Diagnosis:
    (found,) = result.diagnoses
    return found


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("replica", ["first", "last"])
@pytest.mark.parametrize("target", ["map", "reduce"])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_kind_inline(kind: str, target: str, replica: str, workers: int, run: Runner, text: Path) -> None:
    result = struck(run, "inline", text, f"{kind}:{target}:1@{replica}", workers=workers)
    found = the_one(result)
    assert found.kind == CLASSES[kind]
    assert found.task.startswith(target)
    assert found.domain in result.domains
    assert found.worker.startswith(found.domain)
    assert found.repeats == ("no" if kind in TRANSIENT else "yes" if kind == "swap" else "unknown")
    assert not found.exonerates
    shows = kind == "swap" or (kind in ("flip", "wrong") and replica == "first")
    assert (found.difference is not None) == shows
    assert result.lost_votes == ({found.domain: 1} if kind in TRANSIENT else {})


@pytest.mark.parametrize(
    ("kind", "target"), [(kind, "map") for kind in CLASSES] + [(kind, "reduce") for kind in CLASSES if kind != "hang"]
)
@pytest.mark.parametrize("on", EXECUTORS[1:])
def test_every_kind_on_processes_and_actors(on: str, kind: str, target: str, run: Runner, text: Path) -> None:
    found = the_one(struck(run, on, text, f"{kind}:{target}:1@first"))
    assert found.kind == CLASSES[kind]
    assert found.task.startswith(target)
    assert (found.difference is not None) == (kind in ("flip", "wrong", "swap"))


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_bit_that_flips_on_the_way(on: str, run: Runner, text: Path) -> None:
    found = the_one(struck(run, on, text, "wire:reduce:1"))
    assert (found.kind, found.repeats) == ("network", "no")
    assert found.difference is not None
    assert found.difference.bits == 1
    assert "stored by worker" in found.evidence


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_stuck_domain_repeats_it(on: str, run: Runner, text: Path) -> None:
    result = struck(run, on, text, "stuck:worker1")
    assert {(one.kind, one.domain, one.repeats) for one in result.diagnoses} == {("compute", "worker1", "yes")}
    assert set(result.lost_votes) == {"worker1"}
    assert 0 < result.probes <= detective.PROBES_MAX
    assert all(one.difference is not None for one in result.diagnoses), "a probe stores what it did again"


def test_how_a_process_died_is_said(run: Runner, text: Path) -> None:
    assert "exit status 13" in the_one(struck(run, "local", text, "crash:map:1")).evidence


def test_a_lost_vote_is_diagnosed_when_its_worker_is_dead(run: Runner, text: Path) -> None:
    result = struck(run, "inline", text, "flip:map:1", "crash:reduce:100%", workers=2)
    assert {one.kind for one in result.diagnoses} == {"compute", "crash"}


def test_a_domain_that_dies_again_and_again_repeats_it(run: Runner, text: Path) -> None:
    result = struck(run, "inline", text, "crash:map:100%@0", workers=2)
    times = {domain: [one.domain for one in result.diagnoses].count(domain) for domain in result.domains}
    assert sum(times.values()) == MAPS
    assert all(one.repeats == ("yes" if times[one.domain] > 1 else "unknown") for one in result.diagnoses)


def test_the_record_of_a_map(run: Runner, text: Path) -> None:
    """``wrong`` adds one to a count: the diagnosis gives the word, its count, and what was made of it."""
    found = the_one(struck(run, "inline", text, "wrong:map:1@first")).difference
    assert found is not None
    assert (found.what, found.column) == ("record", 1)
    assert WORD.fullmatch(found.right)
    word, count = found.right.rsplit(", ", 1)
    assert found.wrong == f"{word}, {int(count) + 1}"
    assert word[2:-1].encode() in text.read_bytes()


def test_the_line_of_a_part(run: Runner, text: Path) -> None:
    result, parts = run("inline", WORDCOUNT, text, workers=3, faults=("swap:reduce:1",), **TASKS)
    found = the_one(result).difference
    assert found is not None
    assert found.record == parts[found.partition][: found.offset].count(b"\n")
    assert found.right == repr(parts[found.partition].split(b"\n")[found.record])
    assert found.bits == 1


def test_the_record_of_a_sorted_part(run: Runner, records: Path, records_sorted: bytes) -> None:
    result, parts = run("inline", SORT, records, workers=3, reducers=2, split_mb=0.05, faults=("flip:reduce:1@first",))
    found = the_one(result).difference
    assert found is not None
    assert found.record == found.offset // 100
    assert parts[found.partition][found.offset - 1 : found.offset] != b""
    assert found.right != found.wrong


def test_keys_and_values_of_a_python_job_are_decoded(run: Runner, text: Path) -> None:
    job = Job(
        "words", lambda line: [(word.decode("latin-1"), 1) for word in line.split()], lambda key, n: [(key, sum(n))]
    )
    result, _ = run("inline", job, text, workers=3, faults=("wrong:map:1@first",), **TASKS)
    found = the_one(result).difference
    assert found is not None
    assert re.fullmatch(r"('.*'|\".*\"), 1", found.right)
    assert found.wrong.startswith(found.right[:-3])


@pytest.mark.parametrize("target", ["map", "reduce"])
def test_the_fast_digest_leads_to_the_record_too(target: str, run: Runner, text: Path) -> None:
    found = the_one(struck(run, "inline", text, f"wrong:{target}:1@first", digest="fast"))
    assert found.kind == "compute"
    assert found.difference is not None


def test_a_sample(run: Runner, records: Path) -> None:
    result, _ = run("inline", SORT, records, workers=3, reducers=2, split_mb=0.05, faults=("stuck:worker0",))
    found = result.diagnoses[0]
    assert (found.kind, found.task, found.repeats) == ("compute", "sample 0", "yes")
    assert found.difference is not None
    assert found.difference.bits == 1


def test_an_error_that_others_do_not_raise(tmp_path: Path, text: Path) -> None:
    def once(worker: str, reply: wire.Reply) -> list[wire.Reply]:
        if worker.startswith("worker1") and isinstance(reply, wire.Done) and len(reply.parts) == REDUCES and not told:
            told.append(reply.attempt)
            return [wire.JobRaised(reply.attempt, "ZeroDivisionError: no", generation=reply.generation)]
        return [reply]

    told: list[int] = []
    with meddled_session() as (session, meddler):
        meddler.replies = once  # type: ignore[assignment]
        found = the_one(session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), Options(**TASKS)))  # type: ignore[arg-type]
    assert (found.kind, found.domain, found.repeats) == ("compute", "worker1", "no")
    assert "ZeroDivisionError: no" in found.evidence


def test_a_reader_that_refuses_what_is_right_is_named(tmp_path: Path, text: Path) -> None:
    """What was stored is looked at by somebody else."""

    def refuse(worker: str, reply: wire.Reply) -> list[wire.Reply]:
        if worker.startswith("worker1") and isinstance(reply, wire.Done) and len(reply.parts) == 1 and not told:
            told.append(reply.attempt)
            return [wire.InputsRefused(reply.attempt, (read[0],), generation=reply.generation)]
        if isinstance(reply, wire.Done) and len(reply.parts) == REDUCES and reply.path:
            read.append(reply.attempt)
        return [reply]

    told: list[int] = []
    read: list[int] = []
    with meddled_session() as (session, meddler):
        meddler.replies = refuse  # type: ignore[assignment]
        found = the_one(session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), Options(**TASKS)))  # type: ignore[arg-type]
    assert (found.kind, found.domain) == ("network", "worker1")
    assert "what is stored is right" in found.evidence


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda reply: b"\xc1 garbage", "no answer"),
     (lambda reply: msgspec.structs.replace(reply, parts=reply.parts * 3), "partitions, not")],
)  # fmt: skip
def test_what_is_no_answer(
    change: Callable[[wire.Done], bytes | wire.Reply], says: str, tmp_path: Path, text: Path
) -> None:
    def garbage(worker: str, reply: wire.Reply) -> list[bytes | wire.Reply]:
        if worker.startswith("worker1") and isinstance(reply, wire.Done) and not told:
            told.append(reply.attempt)
            return [change(reply)]
        return [reply]

    told: list[int] = []
    with meddled_session() as (session, meddler):
        meddler.replies = garbage  # type: ignore[assignment]
        found = the_one(session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), Options(**TASKS)))  # type: ignore[arg-type]
    assert (found.kind, found.domain) == ("metadata", "worker1")
    assert says in found.evidence


@pytest.mark.parametrize("what", ["digest", "nodes", "bytes", "spot"])
def test_answers_of_inspectors_are_claims(what: str, tmp_path: Path, text: Path) -> None:
    """Whatever all workers say when they are asked about copies: the job ends well, and no difference is made up."""
    asked: set[int] = set()

    def note(worker: str, request: wire.Request) -> bool:
        asked.update([request.attempt] if isinstance(request, wire.InspectTask) and request.what == what else [])
        return True

    def garbled(worker: str, reply: wire.Reply) -> list[wire.Reply]:
        if not isinstance(reply, wire.Inspected) or reply.attempt not in asked:
            return [reply]
        changed = {
            "data": b"\xff" * (len(reply.data) + 1),
            "digest": bytes(32) if reply.digest else None,
            "bytes_in": 1 << 50,
        }
        return [msgspec.structs.replace(reply, **changed)]

    with meddled_session() as (session, meddler):
        meddler.replies, meddler.requests = garbled, note  # type: ignore[assignment]
        options = Options(faults=("wrong:map:1@first",), **TASKS)  # type: ignore[arg-type]
        found = the_one(session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), options))
    assert asked
    assert found.difference is None


def coin(answers: Iterator[int]) -> Job:
    """A job whose map gives the next of some answers: not deterministic, inline."""

    def count(key: str, values: Iterable[int]) -> Iterator[tuple[str, int]]:
        yield key, sum(values)

    return Job("coin", lambda line: [("answer", next(answers))], count)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [((1, 0, 1, 0, 1, 0, 1), "non-determinism"),  # who was right gives what lost
     ((1, 0, 1, 2, 3, 4, 5), "non-determinism"),  # everybody gives something else
     ((1, 0, 1, 1, 1, 1, 1), "compute"),  # wrong once: that may well be a fault
     ((1, 0, 1, 0, 1, 1, 1), "compute")],
)  # fmt: skip
def test_a_job_that_is_not_deterministic_accuses_nobody(
    answers: tuple[int, ...], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = tmp_path / "line.txt"
    line.write_text("one line\n")
    told = iter((*answers, *answers[-1:] * 20))
    monkeypatch.setattr("quoreduce.worker.worker.block_style", lambda declared: block_style_of(coin(told)))
    with meddled_session() as (session, _):
        result = session.run(coin(iter(())), [str(line)], str(tmp_path / "out"), Options(reducers=1))
    found = [one for one in result.diagnoses if one.task == "map 0"]
    assert [one.kind for one in found] == [kind]
    assert bool(result.lost_votes) == (kind == "compute")
    assert found[0].exonerates == (kind != "compute")


def block_style_of(job: Job) -> Job:
    from quoreduce.jobs.python import block_style

    return block_style(job)


@pytest.mark.parametrize("seed", range(10))
def test_faults_in_numbers_do_not_look_like_a_job_that_is_not_deterministic(seed: int, run: Runner, text: Path) -> None:
    faults = (
        "wrong:map:50%@first",
        "flip:map:25%@any",
        "wrong:reduce:1@any",
        "lie:reduce:1@any",
        "swap:map:1",
        "crash:all:1",
    )
    result = struck(run, "inline", text, *faults, fault_seed=seed, workers=2 + seed % 3)
    assert not [one for one in result.diagnoses if one.kind == "non-determinism"]
    assert "compute" in {one.kind for one in result.diagnoses}
    assert len([one for one in result.diagnoses if one.kind in ("compute", "metadata")]) == sum(
        result.lost_votes.values()
    )


def run_slowly(folder: Path, text: Path, *faults: str, workers: int = 3) -> Result:
    """Run a job of one map, whose second replica is held back until a reduce has read what the first one gave (R5)."""
    held: list[tuple[str, wire.Request]] = []

    def hold(worker: str, request: wire.Request) -> bool:
        if isinstance(request, wire.MapTask) and not request.store and not held:
            held.append((worker, request))
            return False
        return True

    def release(worker: str, reply: wire.Reply) -> list[wire.Reply]:
        if attempt_of(reply) > 1 and len(held) == 1:
            held.append(held[0])
            meddler.submit(held[0][0], wire.encode(held[0][1]))
        return [reply]

    with meddled_session(workers) as (session, meddler):
        meddler.requests, meddler.replies = hold, release  # type: ignore[assignment]
        options = Options(faults=faults, reducers=1, split_mb=1.0)
        result = session.run(WORDCOUNT, [str(text)], str(folder / "out"), options)
    assert len(held) == 2
    return result


def test_what_was_read_before_a_map_lost_its_vote_does_not_count(tmp_path: Path, text: Path) -> None:
    """What a reduce gave then says nothing about its domain, which votes wrong afterwards."""
    result = run_slowly(tmp_path, text, "wrong:map:1@0", "flip:reduce:1@2", workers=2)
    first, second = result.diagnoses
    assert [(one.kind, one.task, one.domain) for one in (first, second)] == [
        ("compute", "map 0", "worker0"), ("compute", "reduce 0", "worker0"),
    ]  # fmt: skip
    assert "right when executed again" in second.evidence


def test_a_copy_that_was_refused_for_its_wrong_digest_is_one_fault(tmp_path: Path, text: Path) -> None:
    found = the_one(run_slowly(tmp_path, text, "lie:map:1@0"))
    assert (found.kind, found.task) == ("metadata", "map 0")
    assert "the bytes that it stored are right" in found.evidence


def test_nobody_is_asked_about_copies_of_its_own_domain(tmp_path: Path, text: Path) -> None:
    asked: list[tuple[str, str]] = []

    def note(worker: str, request: wire.Request) -> bool:
        asked.extend([(worker, request.copy.worker)] if isinstance(request, wire.InspectTask) else [])
        return True

    with meddled_session() as (session, meddler):
        meddler.requests = note  # type: ignore[assignment]
        options = Options(faults=("wrong:map:2@first", "swap:reduce:1"), **TASKS)  # type: ignore[arg-type]
        session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), options)
    assert asked
    assert not [pair for pair in asked if pair[0] == pair[1]]


def test_nothing_is_asked_where_nothing_happened(tmp_path: Path, text: Path) -> None:
    asked: list[object] = []

    def note(worker: str, request: wire.Request) -> bool:
        asked.append(request)
        return True

    with meddled_session() as (session, meddler):
        meddler.requests = note  # type: ignore[assignment]
        result = session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), Options(**TASKS))  # type: ignore[arg-type]
    assert (result.diagnoses, result.probes) == ([], 0)
    assert not [one for one in asked if isinstance(one, wire.ProbeTask | wire.InspectTask)]


def test_it_can_be_switched_off(run: Runner, text: Path) -> None:
    result = struck(run, "inline", text, "flip:map:1", diagnose=False)
    assert result.faults.masked == 1
    assert (result.diagnoses, result.probes) == ([], 0)


def test_probes_are_counted_apart_and_bounded(run: Runner, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detective, "PROBES_MAX", 5)
    result = struck(run, "inline", text, "flip:all:100%@0")
    assert result.probes == 5
    assert result.executions["map"] + result.executions["reduce"] <= 3 * (MAPS + REDUCES)
    assert len(result.diagnoses) == result.faults.detected == MAPS + REDUCES
    assert {one.kind for one in result.diagnoses} == {"compute"}


def test_a_probe_without_an_answer_ends(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker is killed and replaced, and the diagnosis says that it does not know."""
    monkeypatch.setattr(detective, "LIMIT_S", 5.0)
    with meddled_session() as (session, meddler):
        meddler.requests = lambda worker, request: not isinstance(request, wire.ProbeTask)  # type: ignore[assignment]
        before = {info.name for info in session.workers}
        options = Options(faults=("flip:map:1@first",), **TASKS)  # type: ignore[arg-type]
        found = the_one(session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), options))
        assert (found.kind, found.repeats) == ("compute", "unknown")
        assert "it did not answer" in found.evidence
        assert len(before - {info.name for info in session.workers}) == 1
        assert len(session.workers) == len(before)
        session.run(WORDCOUNT, [str(text)], str(tmp_path / "again"), Options(**TASKS))  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["wrong:map:1@first", "swap:reduce:1"])
def test_a_copy_that_nobody_looks_at_is_not_said_to_be_gone(fault: str, tmp_path: Path, text: Path) -> None:
    with meddled_session() as (session, meddler):
        meddler.requests = lambda worker, request: not isinstance(request, wire.InspectTask)  # type: ignore[assignment]
        options = Options(faults=(fault,), **TASKS)  # type: ignore[arg-type]
        found = the_one(session.run(WORDCOUNT, [str(text)], str(tmp_path / "out"), options))
    assert (found.kind, found.difference) == (CLASSES[fault.partition(":")[0]], None)
    assert "nobody could look" in found.evidence


def test_what_was_dropped_for_want_of_room_is_not_missed(
    run: Runner, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quoreduce.driver.incidents.HELD_BYTES_MAX", 100)
    found = the_one(struck(run, "inline", text, "wrong:map:1@first"))
    assert (found.kind, found.difference) == ("compute", None)
    assert "no copy was kept" in found.evidence


def test_a_result_with_diagnoses_is_json(run: Runner, text: Path) -> None:
    result = struck(run, "inline", text, "wrong:map:1@first", "crash:reduce:1")
    told = json.loads(json.dumps(result.as_dict()))["diagnoses"]
    assert {one["kind"] for one in told} == {"compute", "crash"}
    (difference,) = [one["difference"] for one in told if one["difference"]]
    assert {"partition", "record", "column", "offset", "right", "wrong"} <= difference.keys()
