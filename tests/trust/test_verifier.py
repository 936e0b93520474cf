"""The verifier: honest evidence is accepted, what is replayed, forged or malformed is refused with its own reason, and
nothing escapes.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from attested import CHALLENGE, DOCUMENT, ENDED, NOW, OTHER_DOCUMENT, STARTED, Attested, Authority, attested, digest_of
from editing import CLAIMS, OTHER_NONCE, refused, with_batch, with_entry, with_hardware, with_launch, with_utpm
from msgspec.structs import replace as put

from quoreduce.trust import evidence, receipt, verifier
from quoreduce.trust.eventlog import encode_binary
from quoreduce.trust.evidence import launch_log
from quoreduce.trust.receipt import TaskEntry, job_id
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.verifier import verify_quote
from quoreduce.trust.wire import PcrSelection, encode_pcrs_file, sized


@pytest.fixture(scope="module")
def made() -> Attested:
    return attested()


@pytest.fixture(scope="module")
def software() -> Attested:
    return attested(hardware=False)


def test_honest_evidence_is_accepted_and_every_claim_was_checked(made: Attested) -> None:
    verdict = made.verify(part_digests={f"part-r-{i:05d}": digest_of("part", i).hex() for i in range(2)})
    assert verdict.accepted, verdict.as_text()
    assert [(claim.name, claim.status) for claim in verdict.claims] == [(name, "ok") for name in CLAIMS]
    assert verdict.as_text().endswith("\naccepted\n")
    assert verdict.reason == ""


def test_a_software_root_is_accepted_if_the_policy_says_so_and_says_that_it_is_one(software: Attested) -> None:
    verdict = software.verify()
    assert verdict.accepted
    unchecked = {claim.name: claim.detail for claim in verdict.claims if claim.status == "not_checked"}
    assert list(unchecked) == ["ek_chain", "enrolment", "ak_signature", "pcr_values"]
    assert all("software root" in detail for detail in unchecked.values())
    refused(replace(software, policy=software.authority.policy(backends=("swtpm",))), "ek_chain", "the backend utpm")


@pytest.mark.parametrize("mode", ["none", "aggregate", "merkle"])
def test_every_way_to_batch_verifies(mode: str) -> None:
    assert attested(mode=mode, hardware=False).verify().accepted


def test_without_a_nonce_the_claim_is_not_checked_and_age_still_counts(made: Attested) -> None:
    verdict = made.verify(nonce=None)
    assert verdict.accepted
    assert verdict.claims[1].status == "not_checked"
    refused(made, "freshness", "the policy accepts", nonce=None, now=NOW + timedelta(days=2))


def test_a_utpm_that_died_has_no_seal_and_its_batches_count(made: Attested) -> None:
    assert with_utpm(made, 2, sealed=False).verify().accepted


def test_a_node_outside_the_policy_has_no_vote_and_hurts_nobody() -> None:
    made = attested(nodes=3, workers=4, documents=(DOCUMENT, OTHER_DOCUMENT, DOCUMENT), wrong=(), maps=1, reduces=0)
    assert "map 0 has 1 votes" in made.verify().reason  # its two replicas ran on nodes 0 and 1
    agreeing = attested(nodes=3, workers=4, documents=(DOCUMENT, DOCUMENT, OTHER_DOCUMENT), wrong=(), maps=1, reduces=0)
    verdict = agreeing.verify()
    assert verdict.accepted, verdict.as_text()
    assert "without a vote, because they are not: node-2" in verdict.as_text()
    assert [node.allowed for node in verdict.nodes] == [True, True, False]


def test_a_verdict_as_json_names_claims_and_nodes(made: Attested) -> None:
    good, bad = json.loads(made.verify().as_json()), json.loads(made.verify(nonce=OTHER_NONCE).as_json())
    assert (good["ear.status"], bad["ear.status"]) == ("affirming", "contraindicated")
    assert [claim["name"] for claim in good["claims"]] == CLAIMS
    environment = sha256(DOCUMENT).hexdigest()
    assert good["submods"]["node-1"] == {"ear.status": "affirming", "backend": "swtpm", "environment": environment}
    assert bad["submods"]["node-1"]["ear.status"] == "contraindicated"
    assert json.loads(made.verify(b"").as_json())["submods"] == {}


def test_names_in_evidence_cannot_command_a_terminal(made: Attested) -> None:
    text = with_launch(made, node="\x1b[2Jnode\u202e\n").verify().as_text()
    assert "node ?[2Jnode? : the quote answers another nonce" in text
    assert all(one.isprintable() for line in text.split("\n") for one in line)


def test_regression_a_replayed_nonce(made: Attested) -> None:
    refused(made, "nonce", "another nonce", nonce=OTHER_NONCE)
    refused(made.changed(challenge=OTHER_NONCE), "ak_signature", "another nonce", nonce=OTHER_NONCE)


def test_regression_quotes_of_batches_replayed_from_another_job(software: Attested) -> None:
    refused(software.changed(challenge=OTHER_NONCE), "batches", "another nonce", nonce=OTHER_NONCE)


def test_regression_the_ak_swapped_after_the_ek_was_validated(made: Attested) -> None:
    """A key of the attacker's signs a perfect quote, beside the EK certificate of an honest TPM."""
    launch, forger = made.receipt.launches[0], MicroTpm()
    for event in launch_log(DOCUMENT, [one.public for one in made.receipt.utpms if one.launch == 0]):
        forger.extend(event.pcr, event.digest)
    nonce = evidence.launch_nonce(CHALLENGE, job_id(CHALLENGE, made.receipt.job), launch.node)
    quoted = forger.quote(evidence.LEVEL1_PCRS, nonce)
    forged = {"ak": sized(forger.public.encode()), "message": quoted.message, "signature": quoted.signature}
    refused(with_hardware(made, **forged), "enrolment", "node node-0: the registrar has not bound this AK to this EK")


def test_regression_the_chain_between_ek_and_ak_broken(made: Attested) -> None:
    other = made.authority.ek_chain()  # an honest EK, of another TPM
    refused(with_hardware(made, ek=other), "enrolment", "the registrar has not bound this AK to this EK")
    refused(with_hardware(made, enrolment=made.authority.registrar.sign(b"anything")), "enrolment", "not bound")
    stranger = made.authority.policy(registrar=Authority().policy().registrar)
    refused(replace(made, policy=stranger), "enrolment", "not bound")


@pytest.mark.parametrize(
    "name", ["check_ek_chain", "check_enrolment", "check_launch_signature", "check_values", "part_output"]
)
@pytest.mark.parametrize("error", [RuntimeError("out of the blue"), MemoryError(), RecursionError(), KeyError("x")])
def test_regression_an_exception_leaves_nobody_attested(
    made: Attested, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(verifier, name, fail)
    verdict = made.verify()
    assert not verdict.accepted
    assert type(error).__name__ in verdict.reason


def test_regression_a_quote_and_pcr_values_read_apart(made: Attested) -> None:
    log = launch_log(DOCUMENT, [one.public for one in made.receipt.utpms if one.launch == 0][:1])
    refused(with_launch(made, log=encode_binary(log)), "pcr_values", "other PCR values")
    tpm = MicroTpm()
    quoted = tpm.quote((16, 23), b"nonce")
    tpm.extend(23, sha256(b"between").digest())
    pcrs = encode_pcrs_file(PcrSelection.sha256(16, 23), tpm.read((16, 23)))
    verdict = verify_quote(sized(tpm.public.encode()), quoted.message, quoted.signature, b"nonce", pcrs)
    assert verdict.reason == "pcr_values: the quote is over other PCR values than these"


def test_regression_event_data_tampered_with(made: Attested, software: Attested) -> None:
    for one in (made, software):
        raw = one.receipt.launches[0].log
        assert raw.count(b"3.11") == 1
        tampered = with_launch(one, log=raw.replace(b"3.11", b"9.99"))
        refused(tampered, "format", "the digest of event 0 is not that of its data")
    key = made.receipt.utpms[0].public
    log = launch_log(DOCUMENT.replace(b"3.11", b"9.99"), [key, *(one.public for one in made.receipt.utpms[2:])])
    refused(with_launch(made, log=encode_binary(log)), "pcr_values", "other PCR values")
    refused(
        with_launch(software, log=software_log(software, b"9.99")),
        "batches",
        "µTPM 0 (core 0): the quote is over other",
    )


def software_log(made: Attested, version: bytes) -> bytes:
    keys = [one.public for one in made.receipt.utpms if one.launch == 0]
    return encode_binary(launch_log(DOCUMENT.replace(b"3.11", version), keys))


def test_regression_a_leaf_omitted_from_a_batch(made: Attested) -> None:
    def last_leaf_less(entry: TaskEntry) -> tuple[TaskEntry, ...]:
        return (put(entry, leaves=entry.leaves[:-1]),)

    refused(with_entry(made, lambda entry: len(entry.leaves) == 2, last_leaf_less), "leaves", "of µTPM")
    refused(with_entry(made, lambda entry: not entry.agreed, lambda _: ()), "leaves", "of µTPM")
    refused(with_batch(made, count=1), "batches", "batch 0 of µTPM 0 (core 0): the quote is over other PCR values")


def test_regression_the_last_batch_omitted_with_all_its_leaves() -> None:
    """A lost vote that came last disappears, and all is sealed anew: µPCR 16 remembers."""
    made = attested(size=1, hardware=False, wrong=(("reduce", 1, 0),))
    lost = next(entry for entry in made.receipt.tasks if not entry.agreed)
    (leaf,) = lost.leaves
    batches = made.receipt.utpms[leaf.utpm].batches
    assert leaf.batch == len(batches) - 1
    tasks = tuple(entry for entry in made.receipt.tasks if entry is not lost)
    without = with_utpm(replace(made, receipt=put(made.receipt, tasks=tasks)), leaf.utpm, batches=batches[:-1])
    refused(without, "seal", "the quote is over other PCR values")


def test_regression_huge_evidence(made: Attested, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(made, "format", "over the bound of 67108864", raw=b" " * (receipt.RECEIPT_BYTES_MAX + 1))
    refused(made, "format", "4000001 lists and objects", raw=b"[" * 4_000_001)
    refused(made, "format", "no quoreduce receipt", raw=b"\x1f\x8b\x08" + bytes(1000))  # gzip: nothing is decompressed
    monkeypatch.setattr(verifier, "MANIFEST_BYTES_MAX", 10)
    refused(made, "output", "the manifest")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw[:-1], "no quoreduce receipt"),
        (lambda raw: raw + b"\n", "not in canonical form"),
        (lambda raw: b" " + raw, "not in canonical form"),
        (lambda raw: raw.replace(b'"maps":3', b'"maps":3.0'), "no quoreduce receipt"),
        (lambda raw: raw.replace(b'"maps":3', b'"maps":2,"maps":3'), "canonical form"),
        (lambda raw: raw.replace(b'"wordcount"', b'"word\\u0063ount"'), "canonical form"),
        (lambda raw: raw.replace(b'"wordcount"', b'"word\xffcount"'), "no quoreduce receipt"),
        (lambda raw: raw.replace(b'"wordcount"', b'"\\ud800"'), "no quoreduce receipt"),
        (lambda raw: raw.replace(b'"maps":3', b'"maps":NaN'), "no quoreduce receipt"),
        (lambda raw: raw.replace(b'"maps":3', b'"maps":1e400'), "no quoreduce receipt"),
        (lambda raw: raw.replace(b'"maps":3', b'"maps":' + b"9" * 5000), "no quoreduce receipt"),
        (lambda raw: raw.replace(b'"maps":3', b'"maps":' + b"[" * 100_000), "no quoreduce receipt"),
        (lambda raw: raw.replace(b'"f":1', b'"f":1,"g":1'), "unknown field"),
        (lambda raw: raw.replace(b"receipt 1", b"receipt 2"), "no quoreduce receipt"),
        (lambda raw: raw.replace(b"05:04:07Z", b"05:04:07+00:00"), "canonical form"),
        (lambda raw: raw.replace(b"05:04:07Z", b"06:04:07+01:00"), "not in UTC"),
        (lambda raw: raw.replace(b"05:04:07Z", b"05:04:07"), "no quoreduce receipt"),
    ],
)
def test_a_receipt_has_one_form(made: Attested, change: Callable[[bytes], bytes], says: str) -> None:
    assert change(made.raw) != made.raw
    refused(made, "format", says, raw=change(made.raw))


def test_an_empty_policy_accepts_nothing(made: Attested) -> None:
    refused(replace(made, policy=put(made.policy, environments=())), "format", "the policy allows no environment")


def test_a_clock_far_off_is_said_to_be_so(made: Attested) -> None:
    refused(made, "freshness", "one of the two clocks is wrong", now=NOW - timedelta(days=3))
    refused(made, "freshness", "the policy accepts 1 day", now=NOW + timedelta(days=3))
    refused(made.changed(started=ENDED, ended=STARTED), "freshness", "before it started")
    assert made.verify(now=ENDED - timedelta(seconds=299)).accepted
    refused(made, "freshness", "ahead of this clock", now=ENDED - timedelta(seconds=301))


def test_a_clock_without_a_time_zone_fails_closed(made: Attested) -> None:
    refused(made, "freshness", "TypeError", now=NOW.replace(tzinfo=None))
