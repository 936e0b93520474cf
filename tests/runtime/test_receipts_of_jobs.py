"""A receipt is of one output, one job and those who sealed it; an output without enough seals is not published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from attesting import (
    EVIL,
    MAPS,
    NONCE,
    REDUCES,
    SPLIT_MB,
    TASKS,
    Root,
    flipped,
    part_digests,
    run_meddled,
    said_by_evil,
)
from meddling import meddled_session
from msgspec import structs
from runs import WORDCOUNT, Runner, beginning

from quoreduce.driver import gate as gate_module
from quoreduce.errors import AttestationError
from quoreduce.protocol import wire


@pytest.fixture(scope="module")
def text(verses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning(verses, MAPS * SPLIT_MB, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def right(text: Path, processes: object, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    runner = Runner(processes, tmp_path_factory.mktemp("right"))  # type: ignore[arg-type]
    return runner("inline", WORDCOUNT, text, mode="original", **TASKS)[1]


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
