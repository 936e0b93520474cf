"""What is checked while a job runs, or without one: the batches of a worker, the launch of a node, and quotes alone."""

from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from attested import CHALLENGE, DOCUMENT, NOW, Authority, launch_of
from editing import OTHER_NONCE
from msgspec.structs import replace as put

from quoreduce.errors import AttestationError, EvidenceError
from quoreduce.trust import evidence, merkle
from quoreduce.trust.batcher import Batch
from quoreduce.trust.eventlog import Event, encode_binary
from quoreduce.trust.evidence import Follower, LateLaunch, begin, check_batch, commit, launch_log
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.verifier import check_launch, verify_quote
from quoreduce.trust.wire import SIGN, PcrSelection, Public, encode_pcrs_file, sized


def test_regression_an_exception_leaves_a_utpm_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tpm, follower = utpm_and_follower()
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "check_values", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            check_batch(follower, commit(tpm, Batch(0, "merkle", (b"a",)), CHALLENGE), [b"a"])
    with pytest.raises(EvidenceError, match="an earlier quote"):
        check_batch(follower, commit(tpm, Batch(0, "merkle", (b"a",)), CHALLENGE), [b"a"])


def utpm_and_follower() -> tuple[MicroTpm, Follower]:
    tpm, job = MicroTpm(), bytes(32)
    begin(tpm, DOCUMENT, job, "core 0")
    return tpm, Follower(tpm.public.encode(), sha256(DOCUMENT).digest(), "core 0", job, CHALLENGE, "merkle")


def test_a_batch_counts_when_quote_and_mirrored_leaves_agree() -> None:
    tpm, follower = utpm_and_follower()
    for number in range(3):
        leaves = (b"a", b"b", bytes([number]))
        check_batch(follower, commit(tpm, Batch(number, "merkle", leaves), CHALLENGE), leaves)
    assert (follower.number, follower.refused) == (3, False)


@pytest.mark.parametrize(
    ("mirrored", "says"),
    [
        ((b"a",), "1 leaves are listed of a batch of 2"),
        ((b"b", b"a"), "the root"),
        ((b"a", b"c"), "the root"),
        ((), "0 leaves"),
    ],
)
def test_a_worker_that_measured_other_leaves_is_refused_for_good(mirrored: tuple[bytes, ...], says: str) -> None:
    tpm, follower = utpm_and_follower()
    with pytest.raises(EvidenceError, match=says):
        check_batch(follower, commit(tpm, Batch(0, "merkle", (b"a", b"b")), CHALLENGE), mirrored)
    with pytest.raises(EvidenceError, match="an earlier quote"):
        check_batch(follower, commit(tpm, Batch(0, "merkle", (b"a", b"b")), CHALLENGE), [b"a", b"b"])


def test_a_utpm_whose_clock_goes_back_was_tampered_with() -> None:
    clock = iter([5, 4])
    tpm, job = MicroTpm(clock_ms=lambda: next(clock)), bytes(32)
    begin(tpm, DOCUMENT, job, "core 0")
    follower = Follower(tpm.public.encode(), sha256(DOCUMENT).digest(), "core 0", job, CHALLENGE, "none")
    check_batch(follower, commit(tpm, Batch(0, "none", (b"a",)), CHALLENGE), [b"a"])
    with pytest.raises(EvidenceError, match="its clock went back"):
        check_batch(follower, commit(tpm, Batch(1, "none", (b"a",)), CHALLENGE), [b"a"])


def test_a_utpm_with_a_key_that_signs_anything_is_not_followed() -> None:
    loose = Public.of_key(MicroTpm().public.key(), SIGN)
    with pytest.raises(EvidenceError, match="restricted"):
        Follower(loose.encode(), bytes(32), "core 0", bytes(32), CHALLENGE, "merkle")


def test_a_node_is_checked_before_its_workers_vote() -> None:
    authority, job = Authority(), bytes(32)
    policy = authority.policy()
    launch, _ = launch_of("node-0", DOCUMENT, [b"key"], job, authority)
    assert check_launch(launch, job, CHALLENGE, policy, NOW).keys == (b"key",)
    bad: list[tuple[LateLaunch, dict[str, Any], str]] = [
        (launch, {"challenge": OTHER_NONCE}, "another nonce"),
        (launch, {"job": b"\x01" * 32}, "another nonce"),
        (launch, {"policy": authority.policy(environments=("00" * 32,))}, "environment of node node-0"),
        (launch, {"policy": authority.policy(backends=("utpm",))}, "the backend swtpm"),
        (launch, {"at": NOW + timedelta(days=36500)}, "expired on"),
        (put(launch, log=encode_binary(launch_log(DOCUMENT, []))), {}, "other PCR values"),
        (launch_of("node-0", DOCUMENT, [], job, Authority())[0], {}, "no CA of the policy"),
    ]
    for one, changes, says in bad:
        arguments: dict[str, Any] = {"job": job, "challenge": CHALLENGE, "policy": policy, "at": NOW}
        with pytest.raises(AttestationError, match=says):
            check_launch(one, **(arguments | changes))


def test_one_quote_answers_many_challengers() -> None:
    nonces = [bytes([number]) * 20 for number in range(5)]
    tpm = MicroTpm()
    quoted = tpm.quote((0,), merkle.root(nonces))
    assert verify_quote(tpm.public.pem(), quoted.message, quoted.signature, merkle.root(nonces)).accepted
    for number, nonce in enumerate(nonces):
        path = merkle.proof(nonces, number)
        assert merkle.verify(merkle.leaf_hash(nonce), number, 5, path, merkle.root(nonces))
        assert not merkle.verify(merkle.leaf_hash(b"stale"), number, 5, path, merkle.root(nonces))


def quote_files(scheme: Any = "ecdsa") -> dict[str, bytes]:
    tpm, events = MicroTpm(scheme), [Event.of(16, b"one"), Event.of(16, b"two")]
    for event in events:
        tpm.extend(event.pcr, event.digest)
    quoted = tpm.quote((0, 16), b"nonce")
    pcrs = encode_pcrs_file(PcrSelection.sha256(0, 16), quoted.values)
    return {
        "key": sized(tpm.public.encode()), "message": quoted.message, "signature": quoted.signature, "nonce": b"nonce",
        "pcrs": pcrs, "log": encode_binary(events),
    }  # fmt: skip


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa"])
def test_a_folder_with_a_quote_is_verified(scheme: str) -> None:
    files = quote_files(scheme)
    verdict = verify_quote(**files)
    assert [(one.name, one.status) for one in verdict.claims] == [
        ("key", "ok"), ("ak_signature", "ok"), ("pcr_values", "ok"), ("log", "ok"),
    ]  # fmt: skip
    pem = Public.decode_sized(files["key"]).pem()
    assert verify_quote(pem, files["message"], files["signature"], b"nonce").accepted


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("key", b"", "key: "),
        ("key", b"-----BEGIN PUBLIC KEY-----\n", "key: "),
        ("nonce", b"other", "ak_signature: the quote answers another nonce"),
        ("signature", b"", "ak_signature: "),
        ("message", b"", "ak_signature: "),
        ("pcrs", b"", "pcr_values: "),
        (
            "pcrs",
            encode_pcrs_file(PcrSelection.sha256(0), {0: bytes(32)}),
            "pcr_values: the PCRs of the file are not those",
        ),
        ("log", b"", "log: "),
        ("log", encode_binary([Event.of(16, b"one")]), "log: the quote is over other PCR values"),
        (
            "log",
            encode_binary([Event.of(0, b"x"), Event.of(16, b"one"), Event.of(16, b"two")]),
            "log: the quote is over other",
        ),
    ],
)
def test_each_file_of_a_folder_is_checked(name: str, value: bytes, says: str) -> None:
    assert verify_quote(**(quote_files() | {name: value})).reason.startswith(says)
