"""An attested job gives the output of an unattested one, in as many executions, and a receipt that convinces a
verifier.

No worker's answer counts without evidence, and a worker whose evidence does not hold has no vote: others do its work,
or the job fails and says why. Times of the meddled sessions are those of the meddler's clock.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from meddling import Meddler, Said, meddled_session
from msgspec import structs
from runs import EXECUTORS, SORT, WORDCOUNT, Runner, beginning, left_in, parts_of

from quoreduce import Job, Options, Result, Session
from quoreduce.commands.attest.command import worker_environment
from quoreduce.data.digest import Digester
from quoreduce.driver import gate as gate_module
from quoreduce.errors import AttestationError, JobError, NoQuorum, UsageError
from quoreduce.protocol import wire
from quoreduce.protocol.options import Attest
from quoreduce.runtime.session import verify
from quoreduce.tracker import messages as m
from quoreduce.tracker.tracker import JobTracker
from quoreduce.trust.evidence import KINDS
from quoreduce.trust.measure import environment
from quoreduce.trust.node import setup_node
from quoreduce.trust.policy import Policy
from quoreduce.trust.receipt import Receipt, decode_receipt
from quoreduce.trust.verifier import Verification, verify_receipt
from quoreduce.worker.attester import Attester

MAPS, REDUCES = 6, 3
SPLIT_MB = 0.005
TASKS = {"split_mb": SPLIT_MB, "reducers": REDUCES}
EVIL = "worker1"
NONCE = sha256(b"a challenger's").hexdigest()
ATTEMPT = slice(16 + 32 + 1 + 8, 16 + 32 + 1 + 8 + 8)  # of an execution, in the bytes of its leaf


@dataclass(frozen=True)
class Root:
    """What vouches for the workers of this machine."""

    backend: Any
    state: Path
    policy: Policy

    def attest(self, **changes: Any) -> Attest:
        return Attest(**({"backend": self.backend, "state": str(self.state)} | changes))

    def verify(self, result: Result, **changes: Any) -> Verification:
        output = Path(result.output)
        known: dict[str, Any] = {
            "policy": self.policy,
            "now": datetime.now(UTC),
            "manifest": (output / "_SUCCESS").read_bytes(),
        }
        return verify_receipt((output / "_RECEIPT.json").read_bytes(), **(known | changes))

    def accepted(self, result: Result, **changes: Any) -> Receipt:
        """The receipt, if a verifier accepts it."""
        verdict = self.verify(result, **changes)
        assert verdict.accepted, verdict.as_text()
        return decode_receipt((Path(result.output) / "_RECEIPT.json").read_bytes())


@pytest.fixture(scope="module")
def environments() -> tuple[str, ...]:
    """Of this process, where the workers of `inline` are, and of a worker process."""
    return tuple(sha256(document).hexdigest() for document in (environment(), worker_environment()))


@pytest.fixture(scope="module")
def software(environments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Root:
    state = tmp_path_factory.mktemp("software") / "state"
    return Root("utpm", state, setup_node(state, "utpm", environments))


@pytest.fixture(scope="module")
def hardware(environments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Root:
    """swtpm: a real TPM 2.0, with a certificate, enrolled."""
    for program in ("swtpm", "swtpm_setup"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install swtpm swtpm-tools)")
    state = tmp_path_factory.mktemp("hardware") / "state"
    return Root("swtpm", state, setup_node(state, "swtpm", environments))


@pytest.fixture(scope="module")
def text(verses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning(verses, MAPS * SPLIT_MB, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def right(text: Path, processes: object, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    runner = Runner(processes, tmp_path_factory.mktemp("right"))  # type: ignore[arg-type]
    return runner("inline", WORDCOUNT, text, mode="original", **TASKS)[1]


def part_digests(result: Result) -> dict[str, str]:
    digester = Digester("blake3")
    return {path.name: digester.file(path).hex() for path in sorted(Path(result.output).glob("part-*"))}


def losers(receipt: Receipt) -> dict[tuple[str, int], int]:
    """Executions whose output lost the vote, by task."""
    return {(KINDS[entry.kind], entry.index): len(entry.leaves) for entry in receipt.tasks if not entry.agreed}


def leaves(receipt: Receipt) -> int:
    return sum(len(entry.leaves) for entry in receipt.tasks)


@pytest.mark.parametrize("on", EXECUTORS)
def test_word_count_is_the_same_and_has_a_receipt(
    on: str, run: Runner, text: Path, right: list[bytes], software: Root
) -> None:
    plain, _ = run(on, WORDCOUNT, text, **TASKS)
    result, parts = run(on, WORDCOUNT, text, attest=software.attest(), **TASKS)
    assert parts == right
    assert result.executions == plain.executions == {"map": 2 * MAPS, "reduce": 2 * REDUCES}
    assert result.counters == plain.counters
    assert result.digest == plain.digest
    receipt = software.accepted(result, part_digests=part_digests(result))
    assert leaves(receipt) == 2 * (MAPS + REDUCES)
    assert losers(receipt) == {}
    assert sorted(utpm.domain for utpm in receipt.utpms) == result.domains


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_sample_is_attested_like_any_task(
    on: str, run: Runner, records: Path, records_sorted: bytes, software: Root
) -> None:
    result, parts = run(on, SORT, records, reducers=3, split_mb=0.05, attest=software.attest())
    assert b"".join(parts) == records_sorted
    receipt = software.accepted(result)
    assert receipt.job.samples == 1
    assert (receipt.tasks[0].kind, len(receipt.tasks[0].leaves)) == (KINDS.index("sample"), 2)
    assert result.executions == {"sample": 2, "map": 8, "reduce": 6}


@pytest.mark.parametrize("batch", ["none", "aggregate", "merkle"])
@pytest.mark.parametrize(
    ("mode", "f"), [("original", 1), ("basic", 1), ("basic", 2), ("bft", 0), ("bft", 1), ("bft", 2)]
)
def test_every_mode_and_every_way_to_batch(
    mode: str, f: int, batch: str, run: Runner, text: Path, right: list[bytes], software: Root
) -> None:
    options = {**TASKS, "mode": mode, "f": f, "digest": "blake3", "workers": 2 * f + 1}
    plain, _ = run("inline", WORDCOUNT, text, **options)
    result, parts = run("inline", WORDCOUNT, text, **options, attest=software.attest(batch=batch))
    assert parts == right
    assert result.executions == plain.executions
    receipt = software.accepted(result)
    need = 1 if mode == "original" else f + 1
    assert (receipt.job.f, receipt.job.need, receipt.job.batch) == (f, need, batch)
    assert all(len(entry.leaves) >= need for entry in receipt.tasks)
    if mode == "bft":
        assert result.executions == {"map": (f + 1) * MAPS, "reduce": (f + 1) * REDUCES}


def test_batches_of_any_size(run: Runner, text: Path, right: list[bytes], software: Root) -> None:
    for size in (1, 2, 5):
        result, parts = run(
            "inline", WORDCOUNT, text, **TASKS, attest=software.attest(batch_size=size, batch_ms=60_000)
        )
        assert parts == right
        counts = [batch.count for utpm in software.accepted(result).utpms for batch in utpm.batches]
        assert max(counts) <= size
        assert sum(counts) == 2 * (MAPS + REDUCES)


def test_rsa_keys(run: Runner, text: Path, right: list[bytes], software: Root) -> None:
    result, parts = run("inline", WORDCOUNT, text, **TASKS, attest=software.attest(scheme="rsassa"))
    assert parts == right
    software.accepted(result)


def test_the_four_modifications_off(run: Runner, text: Path, right: list[bytes], software: Root) -> None:
    off = dict.fromkeys(("deferred", "tentative", "digest_outputs", "tight_storage"), False)
    result, parts = run(
        "inline", WORDCOUNT, text, **TASKS, **off, workers=3, faults=("wrong:map:2",), attest=software.attest()
    )
    assert parts == right
    assert software.accepted(result).job.options["tentative"] == "False"


def test_jobs_one_after_the_other_in_one_session_have_utpms_of_their_own(
    run: Runner, text: Path, right: list[bytes], software: Root
) -> None:
    keys: set[bytes] = set()
    for _ in range(3):
        result, parts = run("local", WORDCOUNT, text, **TASKS, attest=software.attest())
        assert parts == right
        keys |= {utpm.public for utpm in software.accepted(result).utpms}
    assert len(keys) == 3 * 2


def test_an_error_of_the_job_is_a_vote_and_needs_evidence_too(run: Runner, text: Path, software: Root) -> None:
    def broken(line: bytes) -> Iterator[tuple[str, int]]:
        raise ValueError("not today")
        yield

    def count(word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        yield word, sum(counts)

    with pytest.raises(JobError, match="not today"):
        run("inline", Job("broken", broken, count), text, **TASKS, attest=software.attest())


@pytest.mark.parametrize("target", ["map", "reduce"])
@pytest.mark.parametrize("kind", ["flip", "wrong", "lie", "swap", "crash", "late", "lose"])
def test_a_fault_is_masked_and_the_receipt_lists_what_lost(
    kind: str, target: str, run: Runner, text: Path, right: list[bytes], software: Root
) -> None:
    result, parts = run(
        "inline", WORDCOUNT, text, **TASKS, workers=3, faults=(f"{kind}:{target}:1",), attest=software.attest()
    )  # fmt: skip
    assert parts == right
    assert result.faults.injected == 1
    receipt = software.accepted(result, part_digests=part_digests(result))
    lost = losers(receipt)
    assert [(task[0], count) for task, count in lost.items()] == (
        [(target, 1)] if kind in ("flip", "wrong", "lie") else []
    )


@pytest.mark.parametrize("kind", ["flip", "crash", "lose"])
@pytest.mark.parametrize("on", EXECUTORS[1:])
def test_a_fault_is_masked_on_processes(
    on: str, kind: str, run: Runner, text: Path, right: list[bytes], software: Root
) -> None:
    result, parts = run(on, WORDCOUNT, text, **TASKS, workers=3, faults=(f"{kind}:map:1",), attest=software.attest())
    assert parts == right
    software.accepted(result)


@pytest.mark.parametrize("seed", range(4))
def test_many_faults_at_f_2(seed: int, run: Runner, text: Path, right: list[bytes], software: Root) -> None:
    faults = ("flip:map:25%@any", "wrong:all:2@any", "lie:reduce:1@any", "swap:map:50%", "crash:all:2@any",
    "lose:map:2", "late:all:3@any", "wire:reduce:2")  # fmt: skip
    result, parts = run(
        "inline",
        WORDCOUNT,
        text,
        **TASKS,
        workers=5,
        f=2,
        faults=faults,
        fault_seed=seed,
        attest=software.attest(batch_size=3),
    )
    assert parts == right
    receipt = software.accepted(result)
    assert losers(receipt)


def test_a_replica_that_hangs_is_overtaken_and_the_receipt_does_not_wait_for_it(
    run: Runner, text: Path, right: list[bytes], software: Root
) -> None:
    """R9: its deadline is not waited for."""
    result, parts = run(
        "local", WORDCOUNT, text, workers=3, **TASKS, faults=("hang:map:1",), deadline_s=40.0, attest=software.attest()
    )
    assert parts == right
    assert result.spares >= 1  # what the worker owes evidence for is overtaken as well
    assert (result.reexecutions, result.faults.detected) == (0, 1)
    assert leaves(software.accepted(result)) == 2 * (MAPS + REDUCES)


def test_a_worker_in_the_place_of_a_dead_one_is_measured_too(
    run: Runner, text: Path, right: list[bytes], software: Root
) -> None:
    result, parts = run("local", WORDCOUNT, text, **TASKS, faults=("crash:map:1",), attest=software.attest())
    assert parts == right
    receipt = software.accepted(result)
    assert len(receipt.utpms) == 3
    assert sorted(utpm.domain for utpm in receipt.utpms if utpm.sealed) == ["worker0", "worker1"]
    assert len(receipt.launches) == 1, "one node"


@pytest.mark.parametrize("on", EXECUTORS[:2])
def test_probes_of_a_diagnosis_are_not_attested(on: str, run: Runner, text: Path, software: Root) -> None:
    """They are no votes: the receipt lists the executions that were, and is accepted."""
    faults = ("wrong:map:1@first", "wrong:reduce:1@first")
    result, _ = run(on, WORDCOUNT, text, **TASKS, workers=3, faults=faults, attest=software.attest())
    assert [one.kind for one in result.diagnoses] == ["compute", "compute"]
    assert result.probes > 0
    receipt = software.accepted(result)
    assert leaves(receipt) <= sum(result.executions.values())
    assert len(losers(receipt)) == 2


def test_a_stuck_domain_is_attested_and_loses(run: Runner, text: Path, right: list[bytes], software: Root) -> None:
    """Evidence says what ran, not that it is right: its leaves are in the receipt, and have lost."""
    result, parts = run(
        "inline", WORDCOUNT, text, **TASKS, workers=3, faults=("stuck:worker1",), attest=software.attest()
    )
    assert parts == right
    receipt = software.accepted(result)
    evil = {number for number, utpm in enumerate(receipt.utpms) if utpm.domain == "worker1"}
    lost = [leaf.utpm for entry in receipt.tasks if not entry.agreed for leaf in entry.leaves]
    assert lost
    assert set(lost) == evil


@pytest.mark.parametrize("on", EXECUTORS)
def test_every_claim_of_the_chain_holds(on: str, run: Runner, text: Path, right: list[bytes], hardware: Root) -> None:
    result, parts = run(on, WORDCOUNT, text, **TASKS, attest=hardware.attest(nonce=NONCE))
    assert parts == right
    assert result.executions == {"map": 2 * MAPS, "reduce": 2 * REDUCES}
    verdict = hardware.verify(result, nonce=bytes.fromhex(NONCE), part_digests=part_digests(result))
    assert [(claim.name, claim.detail) for claim in verdict.claims if claim.status != "ok"] == []
    assert verdict.accepted


def test_the_chain_ends_at_the_roots_and_the_registrar_of_the_policy(run: Runner, text: Path, hardware: Root) -> None:
    from quoreduce.trust.enrol import Registrar

    result, _ = run("inline", WORDCOUNT, text, **TASKS, attest=hardware.attest())
    other = hardware.state.parent / "other"
    registrar = Registrar(other, ()).public.hex()
    assert hardware.verify(result, policy=structs.replace(hardware.policy, registrar=registrar)).reason.startswith(
        "enrolment"
    )
    software_only = structs.replace(hardware.policy, backends=("utpm",))
    assert "does not accept" in hardware.verify(result, policy=software_only).reason


@pytest.mark.parametrize("replica", ["first", "last"])
@pytest.mark.parametrize("on", ["inline", "local"])
def test_a_node_is_launched_anew_for_a_worker_that_comes_later(
    on: str, replica: str, run: Runner, text: Path, right: list[bytes], hardware: Root
) -> None:
    """Whichever worker dies, the one that had the TPM quoted or another: one launch vouches for all in the end."""
    result, parts = run(
        on, WORDCOUNT, text, **TASKS, faults=(f"crash:map:2@{replica}",), attest=hardware.attest(nonce=NONCE)
    )  # fmt: skip
    assert parts == right
    receipt = hardware.accepted(result, nonce=bytes.fromhex(NONCE))
    assert len(receipt.launches) == 1
    assert len(receipt.utpms) > 2


def test_sessions_and_jobs_share_the_tpm_of_a_node(run: Runner, text: Path, right: list[bytes], hardware: Root) -> None:
    """Any worker may be asked; none keeps the TPM from the others."""
    for on, workers in (("local", 2), ("inline", 2), ("local", 3), ("local", 2), ("inline", 3)):
        result, parts = run(on, WORDCOUNT, text, workers=workers, **TASKS, attest=hardware.attest())
        assert parts == right
        hardware.accepted(result)


@pytest.mark.parametrize("faults", [(), ("flip:map:2", "crash:map:1", "late:all:2", "lie:reduce:1")])
@pytest.mark.parametrize(("mode", "batch"), [("bft", "merkle"), ("bft", "none"), ("basic", "aggregate")])
def test_an_answer_is_a_vote_only_after_its_batch_was_checked(
    mode: str,
    batch: str,
    faults: tuple[str, ...],
    run: Runner,
    text: Path,
    software: Root,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: set[int] = set()
    votes: list[int] = []
    check, handle = gate_module.evidence.check_batch, JobTracker.handle

    def check_and_note(follower: Any, batch: Any, mirrored: Sequence[bytes]) -> None:
        check(follower, batch, mirrored)
        checked.update(int.from_bytes(leaf[ATTEMPT]) for leaf in mirrored)

    def handle_and_compare(tracker: JobTracker, event: m.Event) -> Any:
        if isinstance(event, m.Finished | m.Failed):
            assert event.attempt in checked
            votes.append(event.attempt)
        return handle(tracker, event)

    monkeypatch.setattr(gate_module.evidence, "check_batch", check_and_note)
    monkeypatch.setattr(JobTracker, "handle", handle_and_compare)
    run("inline", WORDCOUNT, text, **TASKS, workers=3, mode=mode, faults=faults, attest=software.attest(batch=batch))
    assert len(set(votes)) >= 2 * (MAPS + REDUCES)


def run_meddled(
    both: tuple[Session, Meddler], text: Path, folder: Path, root: Root, **options: Any
) -> tuple[Result, list[bytes]]:
    attest = options.pop("attest", root.attest())
    output = folder / "out"
    try:
        result = both[0].run(WORDCOUNT, [str(text)], str(output), Options(**TASKS, attest=attest, **options))
    except BaseException:
        assert left_in(folder) == [], "a job that failed leaves nothing (R8)"
        raise
    assert left_in(folder) == ["out"]
    assert verify(str(output)).ok
    return result, parts_of(output)


def said_by_evil(
    kind: type[wire.Reply], change: Callable[[Any], Sequence[Said]]
) -> Callable[[str, wire.Reply], Sequence[Said]]:
    """Let ``change`` alter what one worker says in replies of one kind."""
    return lambda worker, reply: change(reply) if worker.startswith(EVIL) and isinstance(reply, kind) else [reply]


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


def flipped(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


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


@pytest.mark.parametrize("workers", [2, 3])
def test_the_quote_of_a_node_is_asked_of_another_worker_if_it_does_not_hold(
    workers: int, text: Path, tmp_path: Path, right: list[bytes], hardware: Root
) -> None:
    """With three, one worker that spoils the quote of the node's TPM cannot take the others' votes."""
    asked: list[str] = []

    def spoil(worker: str, reply: wire.Reply) -> list[Said]:
        if not isinstance(reply, wire.LaunchQuoted):
            return [reply]
        asked.append(worker)
        return [structs.replace(reply, evidence=flipped(reply.evidence)) if len(asked) == 1 else reply]

    with meddled_session(workers) as both:
        both[1].replies = spoil
        if workers == 2:
            with pytest.raises(AttestationError, match="signature"):
                run_meddled(both, text, tmp_path, hardware)
            return
        result, parts = run_meddled(both, text, tmp_path, hardware)
    assert parts == right
    assert len(set(asked)) == 2
    assert {utpm.domain for utpm in hardware.accepted(result).utpms if utpm.sealed} == {"worker1", "worker2"}


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


def test_a_receipt_answers_the_nonce_that_was_given(run: Runner, text: Path, software: Root) -> None:
    result, _ = run("inline", WORDCOUNT, text, **TASKS, attest=software.attest(nonce=NONCE))
    software.accepted(result, nonce=bytes.fromhex(NONCE))
    assert software.verify(result, nonce=bytes(32)).reason.startswith("nonce")
    assert result.attestation is not None
    assert result.attestation["nonce"] == NONCE


def test_a_receipt_is_of_one_output(run: Runner, text: Path, software: Root, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("another text\n" * 100)
    one, _ = run("inline", WORDCOUNT, text, **TASKS, attest=software.attest())
    two, _ = run("inline", WORDCOUNT, other, **TASKS, attest=software.attest())
    manifest = (Path(two.output) / "_SUCCESS").read_bytes()
    assert (
        software.verify(one, manifest=manifest).reason
        == "output: the manifest (_SUCCESS) is not the one of this receipt"
    )


@pytest.mark.parametrize("change", [lambda data: flipped(data), lambda data: data + b"\n", lambda data: b""])
def test_a_part_that_was_changed_after_the_job_is_found(
    change: Callable[[bytes], bytes], run: Runner, text: Path, software: Root
) -> None:
    result, _ = run("inline", WORDCOUNT, text, **TASKS, attest=software.attest())
    software.accepted(result, part_digests=part_digests(result))
    part = Path(result.output) / "part-r-00001"
    part.write_bytes(change(part.read_bytes()))
    assert (
        software.verify(result, part_digests=part_digests(result)).reason
        == "output: part-r-00001 is not what was voted"
    )
    part.unlink()
    assert software.verify(result, part_digests=part_digests(result)).reason == "output: part-r-00001 is missing"


def test_a_receipt_of_another_environment_is_refused(run: Runner, text: Path, software: Root) -> None:
    result, _ = run("inline", WORDCOUNT, text, **TASKS, attest=software.attest())
    stranger = structs.replace(software.policy, environments=("00" * 32,))
    assert "no environment is in the policy" in software.verify(result, policy=stranger).reason


def test_what_died_before_the_receipt_was_sealed_has_no_seal(
    text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    with meddled_session(3) as both:
        _, meddler = both
        meddler.replies = lambda worker, reply: (
            (meddler.kill(worker), [])[1] if isinstance(reply, wire.SealQuoted) and worker.startswith(EVIL) else [reply]
        )
        result, parts = run_meddled(both, text, tmp_path, software)
    assert parts == right
    receipt = software.accepted(result)
    assert {utpm.domain for utpm in receipt.utpms if utpm.sealed} == {"worker0", "worker2"}
    assert any(utpm.batches for utpm in receipt.utpms if utpm.domain == EVIL)


@pytest.mark.parametrize("root", ["software", "hardware"])
def test_a_worker_in_the_place_of_one_that_died_at_the_end_seals_the_receipt(
    root: str, text: Path, tmp_path: Path, right: list[bytes], request: pytest.FixtureRequest
) -> None:
    """With two domains both have to."""
    used: Root = request.getfixturevalue(root)
    killed: list[str] = []

    def kill_once(worker: str, reply: wire.Reply) -> list[Said]:
        if not isinstance(reply, wire.SealQuoted) or killed:
            return [reply]
        killed.append(worker)
        meddler.kill(worker)
        return []

    with meddled_session(2) as both:
        _, meddler = both
        meddler.replies = kill_once
        result, parts = run_meddled(both, text, tmp_path, used)
    assert parts == right
    receipt = used.accepted(result)
    assert [utpm.sealed for utpm in receipt.utpms] == [False, True, True]
    assert receipt.utpms[2].batches == ()


@pytest.mark.parametrize("data", [b"", b"\xc1", wire.encode(wire.Quoted(b"\0" * 120, b"\0" * 72))])
def test_a_seal_that_does_not_hold_is_left_out(
    data: bytes, text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    with meddled_session(3) as both:
        both[1].replies = said_by_evil(wire.SealQuoted, lambda reply: [structs.replace(reply, evidence=data)])
        result, parts = run_meddled(both, text, tmp_path, software)
    assert parts == right
    assert {utpm.domain for utpm in software.accepted(result).utpms if utpm.sealed} == {"worker0", "worker2"}


def test_a_worker_that_never_seals_is_left_out(text: Path, tmp_path: Path, right: list[bytes], software: Root) -> None:
    with meddled_session(3) as both:
        both[1].replies = said_by_evil(wire.SealQuoted, lambda reply: [])
        result, parts = run_meddled(both, text, tmp_path, software)
    assert parts == right
    assert {utpm.domain for utpm in software.accepted(result).utpms if utpm.sealed} == {"worker0", "worker2"}


def test_nobody_waits_for_the_seal_of_a_worker_that_hangs(
    text: Path, tmp_path: Path, right: list[bytes], software: Root
) -> None:
    """In mode basic the third replica is not needed, and the job ends without it."""
    with meddled_session(3) as both:
        both[1].requests = lambda worker, request: (
            not (worker.startswith(EVIL) and isinstance(request, wire.ReduceTask) and request.index == REDUCES - 1)
        )
        before = both[1].clock.now
        result, parts = run_meddled(both, text, tmp_path, software, mode="basic")
        assert both[1].clock.now - before < gate_module.ANSWER_S
    assert parts == right
    assert {utpm.domain for utpm in software.accepted(result).utpms if utpm.sealed} == {"worker0", "worker2"}


def test_an_output_without_enough_seals_is_not_published(text: Path, tmp_path: Path, software: Root) -> None:
    with meddled_session(2) as both:
        both[1].replies = said_by_evil(wire.SealQuoted, lambda reply: [structs.replace(reply, evidence=b"")])
        with pytest.raises(AttestationError, match=f"fewer than 2 domains are left to seal .*{EVIL}: ") as caught:
            run_meddled(both, text, tmp_path, software)
    assert caught.value.exit_code == 6


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


@pytest.mark.parametrize(
    ("options", "says"),
    [({"digest": "fast"}, "needs blake3"), ({"mode": "original"}, "needs blake3"),
     ({"mode": "original", "digest": "checksum"}, "needs blake3")],
)  # fmt: skip
def test_accidental_faults_are_not_all_that_evidence_is_for(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Options(**options, attest=Attest())


@pytest.mark.parametrize(
    ("options", "says"),
    [({"nonce": "12"}, "32 bytes"), ({"nonce": "x" * 64}, "hexadecimal"), ({"nonce": "0" * 66}, "32 bytes"),
     ({"nonce": "0" * 64 + "\n"}, "32 bytes"), ({"batch_size": 0}, "1 to 1,048,576"),
     ({"batch_size": (1 << 20) + 1}, "1 to 1,048,576"),
     ({"batch_ms": -1}, "0 to 60,000"), ({"batch_ms": 60_001}, "0 to 60,000"),
     ({"batch": "tree"}, "unknown batch mode"), ({"scheme": "dsa"}, "unknown scheme"),
     ({"backend": "modelled"}, "use swtpm or utpm")],
)  # fmt: skip
def test_a_wrong_option_is_a_usage_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Attest(**options)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "quoreduce attest setup"), (b"", "no quoreduce policy"), (b"{", "no quoreduce policy"),
     (b"[]", "no quoreduce policy"),
     (b'{"environments": [], "backends": ["utpm"]}', "allows no environment"),
     (b'{"environments": ["' + b"0" * 64 + b'"], "backends": []}', "allows no backend"),
     (b'{"environments": ["' + b"0" * 64 + b'"], "backends": ["swtpm"]}', "names no CA"),
     (b'{"environments": ["short"], "backends": ["utpm"]}', "no quoreduce policy"),
     (b'{"environments": ["' + b"0" * 64 + b'"], "backends": ["utpm"], "more": 1}', "more")],
)  # fmt: skip
def test_a_policy_that_is_none_is_refused_before_anything_runs(
    content: bytes | None, says: str, run: Runner, text: Path, software: Root, tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AttestationError, match=says) as caught:
        run("inline", WORDCOUNT, text, **TASKS, attest=software.attest(policy=str(path)))
    assert caught.value.exit_code == 6
    assert str(path) in str(caught.value)


def test_a_backend_that_the_policy_does_not_accept_is_refused(run: Runner, text: Path, software: Root) -> None:
    with pytest.raises(AttestationError, match="policy does not accept") as caught:
        run("inline", WORDCOUNT, text, **TASKS, attest=software.attest(backend="swtpm"))
    assert caught.value.exit_code == 6


def test_a_node_that_is_not_set_up_cannot_vouch_and_says_how_to(text: Path, hardware: Root, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(hardware.policy.encode())
    empty = tmp_path / "state"
    empty.mkdir()
    attest = Attest(backend="swtpm", policy=str(path), state=str(empty))
    with meddled_session(2) as both, pytest.raises(AttestationError, match="quoreduce attest setup --backend swtpm"):
        run_meddled(both, text, tmp_path / "job", hardware, attest=attest)
