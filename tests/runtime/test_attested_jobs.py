"""An attested job gives the output of an unattested one, in as many executions, and a receipt that convinces a
verifier: in every mode, on every executor, with faults, and with a TPM.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attesting import MAPS, NONCE, REDUCES, SPLIT_MB, TASKS, Root, flipped, leaves, losers, part_digests, run_meddled
from meddling import Said, meddled_session
from msgspec import structs
from runs import EXECUTORS, SORT, WORDCOUNT, Runner, beginning

from quoreduce import Job
from quoreduce.driver import gate as gate_module
from quoreduce.errors import AttestationError, JobError
from quoreduce.protocol import wire
from quoreduce.protocol.options import Attest
from quoreduce.tracker import messages as m
from quoreduce.tracker.tracker import JobTracker
from quoreduce.trust.evidence import KINDS
from quoreduce.trust.node import setup_node

ATTEMPT = slice(16 + 32 + 1 + 8, 16 + 32 + 1 + 8 + 8)  # of an execution, in the bytes of its leaf


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


def test_a_node_that_is_not_set_up_cannot_vouch_and_says_how_to(text: Path, hardware: Root, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(hardware.policy.encode())
    empty = tmp_path / "state"
    empty.mkdir()
    attest = Attest(backend="swtpm", policy=str(path), state=str(empty))
    with meddled_session(2) as both, pytest.raises(AttestationError, match="quoreduce attest setup --backend swtpm"):
        run_meddled(both, text, tmp_path / "job", hardware, attest=attest)
