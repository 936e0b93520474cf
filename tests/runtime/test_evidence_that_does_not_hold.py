"""No worker's answer counts without evidence, and a worker whose evidence does not hold has no vote: others do its
work, or the job fails and says why. Times are those of the meddler's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from attesting import EVIL, MAPS, SPLIT_MB, TASKS, Root, flipped, run_meddled, said_by_evil
from meddling import Said, meddled_session
from msgspec import structs
from runs import WORDCOUNT, Runner, beginning

from quoreduce.driver import gate as gate_module
from quoreduce.errors import AttestationError, NoQuorum
from quoreduce.protocol import wire
from quoreduce.tracker import messages as m
from quoreduce.tracker.tracker import JobTracker
from quoreduce.trust.measure import environment
from quoreduce.worker.attester import Attester


@pytest.fixture(scope="module")
def text(verses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning(verses, MAPS * SPLIT_MB, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def right(text: Path, processes: object, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    runner = Runner(processes, tmp_path_factory.mktemp("right"))  # type: ignore[arg-type]
    return runner("inline", WORDCOUNT, text, mode="original", **TASKS)[1]


def test_without_evidence_nothing_is_agreed_and_nothing_published(
    text: Path, tmp_path: Path, software: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[m.Event] = []
    handle = JobTracker.handle
    monkeypatch.setattr(JobTracker, "handle", lambda tracker, event: (events.append(event), handle(tracker, event))[1])
    with meddled_session(2) as both:
        both[1].replies = lambda worker, reply: [] if isinstance(reply, wire.BatchQuoted) else [reply]
        with pytest.raises(NoQuorum):
            run_meddled(both, text, tmp_path, software)
    assert any(isinstance(event, m.Executed) for event in events)
    assert not any(isinstance(event, m.Finished | m.Failed) for event in events)


def test_a_worker_that_sends_no_evidence_is_masked(
    text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    with meddled_session(3) as both:
        both[1].replies = said_by_evil(wire.BatchQuoted, lambda reply: [])
        before = both[1].clock.now
        result, parts = run_meddled(both, text, tmp_path, software)
        assert both[1].clock.now - before < 100 * gate_module.ANSWER_S
    assert parts == right
    receipt = software.accepted(result)
    assert all(not utpm.batches for utpm in receipt.utpms if utpm.domain == EVIL)


def altered(change: Callable[[wire.Committed], wire.Committed]) -> Callable[[wire.BatchQuoted], list[Said]]:
    def say(reply: wire.BatchQuoted) -> list[Said]:
        said = wire.decode_evidence(reply.evidence, wire.Committed)
        return [structs.replace(reply, evidence=wire.encode(change(said)))]

    return say


EVIDENCE: dict[str, tuple[Callable[[wire.BatchQuoted], list[Said]], str]] = {
    "root": (altered(lambda said: structs.replace(said, root=flipped(said.root))),
    "root of the batch is not that of the leaves"),
    "count": (altered(lambda said: structs.replace(said, count=said.count + 1)), "leaves are listed of a batch of"),
    "no leaves": (altered(lambda said: structs.replace(said, count=0)), "committed|batch"),
    "message": (altered(lambda said: structs.replace(said, message=flipped(said.message))), "signature"),
    "signature": (altered(lambda said: structs.replace(said, signature=flipped(said.signature))), "signature"),
    "garbage": (lambda reply: [structs.replace(reply, evidence=b"\xc1")], "no committed"),
    "nothing": (lambda reply: [structs.replace(reply, evidence=b"")], "no committed"),
    "twice": (lambda reply: [reply, reply], "nobody asked for|replayed|another nonce|batch"),
    "an error instead": (lambda reply: [wire.NotQuoted("no time", generation=reply.generation)], "no time"),
    "something else": (lambda reply: [wire.SealQuoted(reply.evidence, generation=reply.generation)],
    "nobody asked for"),
}  # fmt: skip


@pytest.mark.parametrize("what", EVIDENCE)
def test_a_worker_whose_evidence_does_not_hold_is_shut_out(
    what: str, text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    change, _ = EVIDENCE[what]
    with meddled_session(3) as both:
        both[1].replies = said_by_evil(wire.BatchQuoted, change)
        result, parts = run_meddled(both, text, tmp_path, software)
    assert parts == right
    receipt = software.accepted(result)
    assert {utpm.domain for utpm in receipt.utpms if utpm.sealed} == {"worker0", "worker2"}
    assert result.attestation is not None
    assert list(result.attestation["refused"]) == [EVIL]


@pytest.mark.parametrize("what", EVIDENCE)
def test_if_too_few_are_left_the_job_fails_and_says_why(what: str, text: Path, tmp_path: Path, software: Root) -> None:
    change, says = EVIDENCE[what]
    with meddled_session(2) as both:
        both[1].replies = said_by_evil(wire.BatchQuoted, change)
        with pytest.raises(AttestationError, match=f"{EVIL}: .*({says})") as caught:
            run_meddled(both, text, tmp_path, software)
    assert caught.value.exit_code == 6


def test_evidence_of_another_worker_does_not_hold(text: Path, tmp_path: Path, software: Root) -> None:
    seen: list[bytes] = []

    def copy(worker: str, reply: wire.Reply) -> list[Said]:
        if isinstance(reply, wire.BatchQuoted) and not worker.startswith(EVIL):
            seen.append(reply.evidence)
        return [structs.replace(reply, evidence=seen[-1]) if isinstance(reply, wire.BatchQuoted) and seen else reply]

    with meddled_session(2) as both:
        both[1].replies = copy
        with pytest.raises(AttestationError, match=EVIL):
            run_meddled(both, text, tmp_path, software, attest=software.attest(batch_size=1))


@pytest.mark.parametrize("what", ["omitted", "exchanged", "altered"])
def test_a_worker_that_measures_something_else_is_shut_out(
    what: str, text: Path, tmp_path: Path, right: list[bytes], software: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It quotes what it has measured, and that is not what it has answered."""
    honest = Attester.commit

    def commit(attester: Attester, count: int) -> wire.Committed:
        held = attester._leaves
        if attester._attested.domain == EVIL:
            if what == "omitted":
                del held[0]
            elif what == "exchanged":
                held[:2] = held[1::-1]
            else:
                held[0] = flipped(held[0])
        return honest(attester, count)

    monkeypatch.setattr(Attester, "commit", commit)
    with meddled_session(3) as both:
        result, parts = run_meddled(both, text, tmp_path, software, attest=software.attest(batch_ms=60_000))
    assert parts == right
    assert result.attestation is not None
    assert list(result.attestation["refused"]) == [EVIL]
    assert all(not utpm.batches for utpm in software.accepted(result).utpms if utpm.domain == EVIL)


def test_an_environment_that_the_policy_does_not_name_has_no_vote(
    run: Runner, text: Path, software: Root, tmp_path: Path
) -> None:
    other = structs.replace(software.policy, environments=("00" * 32,))
    path = tmp_path / "policy.json"
    path.write_bytes(other.encode())
    with pytest.raises(AttestationError, match=sha256(environment()).hexdigest()) as caught:
        run("inline", WORDCOUNT, text, **TASKS, attest=software.attest(policy=str(path)))
    assert caught.value.exit_code == 6
    assert "worker0" in str(caught.value)


def admitted_with(**changes: Any) -> Callable[[wire.Ready], list[Said]]:
    def say(reply: wire.Ready) -> list[Said]:
        said = wire.decode_evidence(reply.admission, wire.Admission)
        return [structs.replace(reply, admission=wire.encode(structs.replace(said, **changes)))]

    return say


@pytest.mark.parametrize("workers", [2, 3])
def test_one_worker_in_another_environment_has_no_vote(
    workers: int, text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    document = environment() + b" "
    with meddled_session(workers) as both:
        both[1].replies = said_by_evil(wire.Ready, admitted_with(document=document))
        if workers == 2:
            with pytest.raises(AttestationError, match=f"{EVIL}: .*{sha256(document).hexdigest()}"):
                run_meddled(both, text, tmp_path, software)
            return
        result, parts = run_meddled(both, text, tmp_path, software)
    assert parts == right
    assert [utpm.domain for utpm in software.accepted(result).utpms] == ["worker0", "worker2"]
    assert result.attestation is not None
    assert list(result.attestation["refused"]) == [EVIL]


@pytest.mark.parametrize("data", [b"", b"\xc1", wire.encode(wire.Admission(b"{}", b"no key"))])
def test_an_admission_that_is_none_has_no_vote(
    data: bytes, text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    with meddled_session(3) as both:
        both[1].replies = said_by_evil(wire.Ready, lambda reply: [structs.replace(reply, admission=data)])
        result, parts = run_meddled(both, text, tmp_path, software)
    assert parts == right
    assert [utpm.domain for utpm in software.accepted(result).utpms] == ["worker0", "worker2"]


def test_a_worker_that_does_not_begin_is_masked(text: Path, tmp_path: Path, right: list[bytes], software: Root) -> None:
    """It may still be busy with a job before this one, or hang."""
    with meddled_session(3) as both:
        both[1].requests = lambda worker, request: not (worker.startswith(EVIL) and isinstance(request, wire.Setup))
        result, parts = run_meddled(both, text, tmp_path, software)
    assert parts == right
    software.accepted(result)


def test_a_worker_that_claims_the_utpm_of_another_has_no_vote(
    text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    first: list[bytes] = []

    def claim(worker: str, reply: wire.Reply) -> Sequence[Said]:
        if not isinstance(reply, wire.Ready):
            return [reply]
        first.append(wire.decode_evidence(reply.admission, wire.Admission).public)
        return admitted_with(public=first[0])(reply) if worker.startswith(EVIL) else [reply]

    with meddled_session(3) as both:
        both[1].replies = claim
        result, parts = run_meddled(both, text, tmp_path, software)
    assert parts == right
    assert [utpm.domain for utpm in software.accepted(result).utpms] == ["worker0", "worker2"]


def test_an_attested_job_that_ran_into_faults_may_be_run_again(
    text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    """A session in which a worker was shut out goes on with the others."""
    with meddled_session(3) as both:
        both[1].replies = said_by_evil(wire.BatchQuoted, EVIDENCE["signature"][0])
        run_meddled(both, text, tmp_path / "one", software)
        both[1].__dict__.pop("replies")
        result, parts = run_meddled(both, text, tmp_path / "two", software)
    assert parts == right
    assert {utpm.domain for utpm in software.accepted(result).utpms} == {"worker0", "worker2"}
