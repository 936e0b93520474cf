"""The verifier: honest evidence is accepted, each link that is broken is refused with its own reason, and nothing
escapes.
"""

import json
import struct
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from attested import (
    CHALLENGE,
    DOCUMENT,
    ENDED,
    NOW,
    OTHER_DOCUMENT,
    STARTED,
    Attested,
    Authority,
    attested,
    digest_of,
    launch_of,
    manifest_of,
    output_of,
)
from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace as put

from quoreduce.errors import AttestationError, EvidenceError
from quoreduce.trust import chain as ek_chain
from quoreduce.trust import evidence, merkle, receipt, verifier
from quoreduce.trust.batcher import Batch
from quoreduce.trust.eventlog import Event, encode_binary
from quoreduce.trust.evidence import (
    Follower,
    LateLaunch,
    QuotedBatch,
    begin,
    check_batch,
    commit,
    launch_log,
    task_leaf,
)
from quoreduce.trust.receipt import Leaf, Receipt, TaskEntry, job_id
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.verifier import check_launch, verify_quote
from quoreduce.trust.wire import FIXED_PARENT, FIXED_TPM, SIGN, PcrSelection, Public, encode_pcrs_file, sized

CLAIMS = [
    "format", "nonce", "freshness", "ek_chain", "enrolment", "ak_signature", "pcr_values",
    "environment", "utpm", "batches", "leaves", "votes", "output", "seal",
]  # fmt: skip
OTHER_NONCE = bytes(32)


@pytest.fixture(scope="module")
def made() -> Attested:
    return attested()


@pytest.fixture(scope="module")
def software() -> Attested:
    return attested(hardware=False)


def swap(items: tuple[Any, ...], place: int, *new: Any) -> tuple[Any, ...]:
    """``items`` with one of them replaced by ``new``, or removed."""
    return (*items[:place], *new, *items[place + 1 :])


def refused(made: Attested, claim: str, says: str, **arguments: Any) -> None:
    """It is refused at this claim, for this reason; claims before it hold and claims after it are not reached."""
    verdict = made.verify(**arguments)
    assert not verdict.accepted
    assert verdict.reason.startswith(f"{claim}: "), verdict.as_text()
    assert says in verdict.reason
    assert [one.name for one in verdict.claims] == CLAIMS
    place = CLAIMS.index(claim)
    assert all(one.status != "failed" for one in verdict.claims[:place])
    assert all(one == verifier.Claim(one.name, "not_checked", "not reached") for one in verdict.claims[place + 1 :])


def with_receipt(made: Attested, **changes: Any) -> Attested:
    """A receipt edited by someone who cannot seal it anew."""
    return replace(made, receipt=put(made.receipt, **changes))


def with_hardware(made: Attested, **changes: Any) -> Attested:
    launch = made.receipt.launches[0]
    assert launch.hardware is not None
    return with_launch(made, hardware=put(launch.hardware, **changes))


def with_launch(made: Attested, **changes: Any) -> Attested:
    """The first launch edited, and sealed anew: what a driver that lies could do."""
    return made.changed(launches=swap(made.receipt.launches, 0, put(made.receipt.launches[0], **changes)))


def with_utpm(made: Attested, number: int, **changes: Any) -> Attested:
    utpms = made.receipt.utpms
    return made.changed(utpms=swap(utpms, number, put(utpms[number], **changes)))


def with_batch(made: Attested, **changes: Any) -> Attested:
    batches = made.receipt.utpms[0].batches
    return with_utpm(made, 0, batches=swap(batches, 0, put(batches[0], **changes)))


def with_entry(
    made: Attested, chosen: Callable[[TaskEntry], bool], change: Callable[[TaskEntry], tuple[TaskEntry, ...]]
) -> Attested:
    place = next(i for i, entry in enumerate(made.receipt.tasks) if chosen(entry))
    tasks = swap(made.receipt.tasks, place, *change(made.receipt.tasks[place]))
    return made.changed(tasks=tuple(sorted(tasks, key=lambda one: (one.kind, one.index, one.input, one.output))))


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


def test_regression_an_exception_leaves_a_utpm_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tpm, follower = utpm_and_follower()
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "check_values", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            check_batch(follower, commit(tpm, Batch(0, "merkle", (b"a",)), CHALLENGE), [b"a"])
    with pytest.raises(EvidenceError, match="an earlier quote"):
        check_batch(follower, commit(tpm, Batch(0, "merkle", (b"a",)), CHALLENGE), [b"a"])


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


def test_every_link_of_the_ek_certificate_chain_is_checked(made: Attested) -> None:
    authority, good = made.authority, made.receipt.launches[0].hardware
    assert good is not None
    refused(with_hardware(made, ek=good.ek[:1]), "ek_chain", "no CA of the policy")
    refused(with_hardware(made, ek=(*good.ek[::-1],)), "ek_chain", "chain is broken")
    refused(with_hardware(made, ek=(b"junk", good.ek[1])), "ek_chain", "chain is broken")
    refused(with_hardware(made, ek=Authority().ek_chain()), "ek_chain", "no CA of the policy")
    flipped = good.ek[0][:-1] + bytes([good.ek[0][-1] ^ 1])
    refused(with_hardware(made, ek=(flipped, good.ek[1])), "ek_chain", "chain is broken")
    expired = authority.ek_chain(start=NOW - timedelta(days=800), days=700)
    refused(with_hardware(made, ek=expired), "ek_chain", "expired on")
    ca = authority.certify(
        "", ec.generate_private_key(ec.SECP256R1()).public_key(), "middle", authority.middle_key, ca=True
    )
    refused(with_hardware(made, ek=(ca.public_bytes(Encoding.DER), good.ek[1])), "ek_chain", "is one of a CA")


def test_a_certificate_that_is_none_of_a_ca_issues_nothing(made: Attested) -> None:
    authority, key = made.authority, ec.generate_private_key(ec.SECP256R1())
    middle = authority.certify("leaf", key.public_key(), "middle", authority.middle_key, ca=False)
    ek = authority.certify("", ec.generate_private_key(ec.SECP256R1()).public_key(), "leaf", key, ca=False)
    chain = tuple(one.public_bytes(Encoding.DER) for one in (ek, middle, authority.middle))
    refused(with_hardware(made, ek=chain), "ek_chain", "CN=leaf is not one of a CA")


def test_a_ca_may_be_kept_from_signing_by_its_key_usage() -> None:
    authority = Authority()
    usage = x509.KeyUsage(*[True] + [False] * 8)
    key, name = authority.root_key, x509.Name([])
    start = NOW - timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, NOW + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
    assert not ek_chain._may_sign(builder.sign(key, SHA256()))


def test_backend_and_quote_have_to_go_together(made: Attested, software: Attested) -> None:
    refused(with_launch(made, hardware=None), "ek_chain", "too much or too little")
    refused(with_launch(made, backend="utpm"), "ek_chain", "too much or too little")
    refused(with_launch(software, backend="swtpm"), "ek_chain", "too much or too little")


def test_an_ak_that_signs_anything_is_refused(made: Attested) -> None:
    loose = Public.of_key(made.node_tpms[0].public.key(), FIXED_TPM | FIXED_PARENT | SIGN)
    refused(with_hardware(made, ak=sized(loose.encode())), "enrolment", "not a restricted signing key")


def test_one_ak_is_one_node(made: Attested) -> None:
    first, second = made.receipt.launches
    assert first.hardware is not None
    twice = put(second, hardware=first.hardware)
    refused(made.changed(launches=(first, twice)), "enrolment", "two nodes have the same AK")
    refused(made.changed(launches=(first, put(second, node="node-0"))), "format", "launched twice")


def test_the_quote_of_a_node_is_of_this_job_and_this_node(made: Attested) -> None:
    assert made.receipt.launches[0].hardware is not None
    refused(with_launch(made, node="node-7"), "ak_signature", "node node-7: the quote answers another nonce")
    refused(with_hardware(made, message=made.receipt.utpms[0].batches[0].message), "ak_signature", "signature")
    refused(with_hardware(made, signature=b"\x00"), "ak_signature", "signature")
    renamed = made.changed(job=put(made.receipt.job, name="sort"))
    refused(renamed, "ak_signature", "another nonce")


def test_other_pcrs_than_17_and_19_prove_nothing(made: Attested) -> None:
    nonce = evidence.launch_nonce(CHALLENGE, job_id(CHALLENGE, made.receipt.job), "node-0")
    quoted = made.node_tpms[0].quote((17, 18, 19), nonce)
    refused(
        with_hardware(made, message=quoted.message, signature=quoted.signature),
        "pcr_values",
        "does not cover PCRs 17, 19",
    )


def test_an_environment_outside_the_policy_is_refused_and_named(made: Attested) -> None:
    other = made.authority.policy(environments=("ab" * 32,))
    refused(replace(made, policy=other), "environment", sha256(DOCUMENT).hexdigest())


@pytest.mark.parametrize("events", [[], [Event.of(16, b"x")], [Event.of(19, DOCUMENT)], None])
def test_the_log_of_a_launch_has_one_form(made: Attested, events: list[Event] | None) -> None:
    log = [*launch_log(DOCUMENT, []), *launch_log(DOCUMENT, [])] if events is None else events
    refused(with_launch(made, log=encode_binary(log)), "format", "not one event of PCR 17")


def test_a_utpm_that_no_node_has_measured_is_refused(made: Attested, software: Attested) -> None:
    for one in (made, software):
        refused(with_utpm(one, 0, public=MicroTpm().public.encode()), "utpm", "node node-0 are not those in its log")
        refused(with_utpm(one, 0, launch=1), "utpm", "are not those in its log")
    refused(with_utpm(made, 0, launch=5), "format", "a launch that is not there")


def test_one_key_is_one_utpm() -> None:
    made = attested(hardware=False, nodes=1, workers=2, maps=1, reduces=0, wrong=())
    one, two = made.receipt.utpms
    log = encode_binary(launch_log(DOCUMENT, [one.public, one.public]))
    launch = put(made.receipt.launches[0], log=log)
    refused(made.changed(launches=(launch,), utpms=(one, put(two, public=one.public))), "utpm", "the same key")


def test_a_utpm_votes_for_the_domain_that_it_was_told(made: Attested) -> None:
    refused(
        with_utpm(made, 0, domain="core 9"), "batches", "batch 0 of µTPM 0 (core 9): the quote is over other PCR values"
    )


def test_batches_are_replayed_in_order_and_none_twice(made: Attested) -> None:
    one, two, *rest = made.receipt.utpms[0].batches
    for batches in ((two, one, *rest), (one, one, two, *rest), (two, *rest)):
        refused(with_utpm(made, 0, batches=batches), "batches", "the quote answers another nonce")
    foreign = made.receipt.utpms[1].batches[0]
    refused(with_utpm(made, 0, batches=(foreign, two, *rest)), "batches", "signature: it is not one")
    refused(with_batch(made, root=bytes(32)), "batches", "other PCR values")


def test_leaves_have_one_order_and_one_place(made: Attested) -> None:
    tasks = made.receipt.tasks
    refused(made.changed(tasks=tasks[::-1]), "leaves", "not in order")
    refused(made.changed(tasks=(tasks[0], *tasks)), "leaves", "not in order")

    def moved(**where: int) -> Attested:
        leaves = swap(tasks[0].leaves, 0, put(tasks[0].leaves[0], **where))
        return made.changed(tasks=swap(tasks, 0, put(tasks[0], leaves=leaves)))

    first = tasks[0].leaves
    refused(moved(position=9), "leaves", "is missing among those listed")
    refused(moved(utpm=9), "leaves", "µTPM")
    refused(moved(attempt=first[1].attempt), "leaves", "listed twice")
    refused(
        moved(utpm=first[1].utpm, batch=first[1].batch, position=first[1].position), "leaves", "two leaves at position"
    )
    more = put(tasks[0], leaves=(*first, Leaf(7, 0, 0, 10**6)))
    refused(made.changed(tasks=swap(tasks, 0, more)), "leaves", "of a batch that is not there: (7, 0)")


def test_two_leaves_that_change_places_are_noticed(made: Attested) -> None:
    leaves = [leaf for entry in made.receipt.tasks for leaf in entry.leaves]
    one, two = (leaf for leaf in leaves if (leaf.utpm, leaf.batch) == (0, 0))
    trade = {one: put(one, position=two.position), two: put(two, position=one.position)}
    tasks = tuple(
        put(entry, leaves=tuple(trade.get(leaf, leaf) for leaf in entry.leaves)) for entry in made.receipt.tasks
    )  # fmt: skip
    refused(made.changed(tasks=tasks), "leaves", "batch 0 of µTPM 0 (core 0): the root of the batch is not that")


@pytest.mark.parametrize("member", ["input", "output"])
def test_a_digest_that_was_not_measured_is_refused(made: Attested, member: str) -> None:
    refused(
        with_entry(made, lambda one: True, lambda one: (put(one, **{member: bytes(32)}),)),
        "leaves",
        "the root of the batch",
    )


def test_only_f_plus_1_distinct_domains_win_a_vote(made: Attested) -> None:
    def said_to_win(one: TaskEntry) -> tuple[TaskEntry, ...]:
        return (put(one, agreed=1),)

    lost = with_entry(made, lambda one: not one.agreed, said_to_win)
    refused(lost, "votes", "map 1 has 1 votes of distinct domains, 2 are needed")
    nobody = with_entry(made, lambda one: bool(one.agreed) and one.kind == 2, lambda one: (put(one, agreed=0),))
    refused(nobody, "votes", "no output of reduce 0 won")


def test_a_domain_that_repeats_itself_has_one_vote() -> None:
    made = attested(workers=1, nodes=1, hardware=False, wrong=())
    refused(made, "votes", "map 0 has 1 votes of distinct domains, 2 are needed")


def test_the_rule_of_the_vote_goes_with_mode_and_f() -> None:
    made = attested(hardware=False, wrong=())
    for changes in ({"need": 1}, {"f": 2}, {"mode": "original"}):
        one = rebuilt(made, **changes)
        refused(one, "votes", "votes do not win in mode")
    refused(replace(made, policy=made.authority.policy(f_min=2)), "votes", "masks 1 faults, the policy wants 2")


def rebuilt(made: Attested, **changes: Any) -> Attested:
    """The same tasks with another record of the job, run from the start by honest µTPMs: what a careless driver could
    do.
    """
    return attested(hardware=False, wrong=(), authority=made.authority, record=changes)


def test_one_output_of_a_task_wins() -> None:
    made = attested(hardware=False, record={"need": 1, "mode": "original"})
    assert made.verify().reason.startswith("output: the manifest is of another job")
    both = with_entry(made, lambda one: not one.agreed, lambda one: (put(one, agreed=1),))
    refused(both, "votes", "two outputs of map 1 are said to have won")


def test_every_task_of_the_job_was_voted_on_and_no_other(made: Attested) -> None:
    assert "no output of map 3 won a vote" in rebuilt(made, maps=4).verify().reason
    assert "the job has no map 2" in rebuilt(made, maps=2).verify().reason
    assert "no output of sample 0 won a vote" in rebuilt(made, samples=1).verify().reason


def test_the_output_is_what_was_voted(made: Attested) -> None:
    refused(made, "output", "not the one of this receipt", manifest=made.manifest + b" ")
    parts = {f"part-r-{i:05d}": digest_of("part", i).hex() for i in range(2)}
    refused(made, "output", "part-r-00001 is not what was voted", part_digests=parts | {"part-r-00001": "00" * 32})
    refused(made, "output", "part-r-00000 is missing", part_digests={"part-r-00001": parts["part-r-00001"]})


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ('"bytes": 9', '"bytes": 8', "part-r-00000 is not what reduce 0"),
        ('"records": 7', '"records": 6', "part-r-00000 is not what reduce 0"),
        ("part-r-00001", "../../etc", "../../etc is not what reduce 1"),
        ('"wordcount"', '"sort"', "another job"),
        ('"parts"', '"party"', "parts"),
    ],
)
def test_a_manifest_that_the_driver_made_up_does_not_match_the_votes(
    made: Attested, was: str, now: str, says: str
) -> None:
    forged = manifest_of(2).decode().replace(was, now, 1).encode()
    refused(replace(made.changed(manifest=blake3(forged).digest()), manifest=forged), "output", says)


def test_parts_records_read_and_reduces_are_as_many(made: Attested) -> None:
    refused(made.changed(reads=(0,)), "output", "2 reduces, but 2 parts and 1 record counts")
    refused(made.changed(reads=(0, 2)), "output", "part-r-00001 is not what reduce 1")
    fewer = manifest_of(1)
    refused(replace(made.changed(manifest=blake3(fewer).digest()), manifest=fewer), "output", "1 parts")


@pytest.mark.parametrize(
    "changes",
    [{"ended": ENDED - timedelta(seconds=1)}, {"started": STARTED - timedelta(days=1)}],
    ids=["ended", "started"],
)
def test_what_no_leaf_holds_is_held_by_the_seals(made: Attested, changes: dict[str, Any]) -> None:
    refused(with_receipt(made, **changes), "seal", "the seal of µTPM 0 (core 0): the quote answers another nonce")


def test_seals_are_those_of_the_utpms_that_say_so(made: Attested) -> None:
    seals = made.receipt.seals
    for wrong in ((), seals[1:], seals[::-1], (*seals, seals[0])):
        refused(with_receipt(made, seals=wrong), "seal", "missing, too many, or out of order")
    refused(
        with_receipt(made, seals=(put(seals[1], utpm=0), *seals[1:])),
        "seal",
        "µTPM 0 (core 0): signature: it is not one",
    )
    lonely = made.changed(utpms=tuple(put(one, sealed=number == 0) for number, one in enumerate(made.receipt.utpms)))
    refused(lonely, "seal", "1 domains sealed the receipt; 2 are needed")


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


def test_layouts_are_those_documented() -> None:
    job, read, wrote = (bytes([i]) * 32 for i in (1, 2, 3))
    leaf = b"quoreduce task 1" + job + b"\x02" + struct.pack(">QQ", 5, 9) + read + wrote
    assert task_leaf(job, "reduce", 5, 9, read, wrote) == leaf
    assert len(leaf) == 129
    c = CHALLENGE
    assert evidence.launch_nonce(c, job, "ü") == sha256(b"quoreduce launch 1" + c + job + b"\xc3\xbc").digest()
    assert evidence.batch_nonce(c, 7) == sha256(b"quoreduce batch 1" + c + b"\0\0\0\0\0\0\0\x07").digest()
    assert evidence.seal_nonce(c, job) == sha256(b"quoreduce receipt 1" + c + job).digest()
    assert evidence.operation_digest(job, "core 0") == sha256(b"quoreduce operation 1" + job + b"core 0").digest()
    ak = MicroTpm().public
    record = b"quoreduce enrolment 1" + sha256(b"certificate").digest() + b"\x00\x0b" + sha256(ak.encode()).digest()
    assert evidence.enrolment_record(b"certificate", ak) == record
    inner = blake3(b"quoreduce output 1" + read + struct.pack("<Q", 7)).digest()
    assert evidence.part_output(read, 7, 8, 9) == blake3(inner + struct.pack("<QQ", 8, 9)).digest()


def test_the_chain_recomputed_by_hand_from_the_json_alone(made: Attested) -> None:
    """An independent twin: JSON and hashlib, nothing of ours but the receipt's bytes and the signed messages."""
    document = json.loads(made.raw)
    job = json.dumps(document["job"], separators=(",", ":"), ensure_ascii=False).encode()
    challenge = b64decode(document["challenge"])
    id_ = sha256(b"quoreduce job 1" + challenge + job).digest()
    leaves: dict[tuple[int, int, int], bytes] = {}
    for kind, index, _, read, wrote, places in document["tasks"]:
        for utpm, batch, position, attempt in places:
            head = b"quoreduce task 1" + id_ + bytes([kind]) + index.to_bytes(8, "big") + attempt.to_bytes(8, "big")
            leaves[utpm, batch, position] = head + b64decode(read) + b64decode(wrote)
    for number, utpm in enumerate(document["utpms"]):
        operation = sha256(b"quoreduce operation 1" + id_ + utpm["domain"].encode()).digest()
        fixed = sha256(bytes(32) + sha256(DOCUMENT).digest()).digest() + sha256(bytes(32) + operation).digest()
        register = bytes(32)
        for place, (count, root, message, _) in enumerate(utpm["batches"]):
            mine = [sha256(b"\0" + leaves.pop((number, place, i))).digest() for i in range(count)]
            assert b64decode(root) == (mine[0] if count == 1 else sha256(b"\x01" + mine[0] + mine[1]).digest())
            event = b"quoreduce batch event 1" + struct.pack(">QBQ", place, 2, count) + b64decode(root)
            register = sha256(register + sha256(event).digest()).digest()
            signed = b64decode(message)
            nonce = sha256(b"quoreduce batch 1" + challenge + place.to_bytes(8, "big")).digest()
            assert signed[:6] == b"\xffTCG\x80\x18"
            assert signed[42:76] == b"\x00\x20" + nonce
            assert signed.endswith(
                b"\x00\x00\x00\x01\x00\x0b\x03\x03\x00\x01\x00\x20" + sha256(fixed + register).digest()
            )
    assert not leaves


def test_the_receipt_is_json_with_the_documented_members(made: Attested) -> None:
    document = json.loads(made.raw)
    assert list(document) == [
        "format", "job", "challenge", "started", "ended", "launches", "utpms", "tasks", "reads", "manifest", "seals",
    ]  # fmt: skip
    assert (document["started"], document["ended"]) == ("2026-03-04T05:01:07Z", "2026-03-04T05:04:07Z")
    unsealed = made.raw[: made.raw.index(b'"seals":')] + b'"seals":[]}'
    assert made.receipt.body() == sha256(unsealed).digest()
    assert receipt.decode_receipt(made.raw) == made.receipt
    assert isinstance(made.receipt, Receipt)
    assert isinstance(made.receipt.utpms[0].batches[0], QuotedBatch)
    assert output_of("reduce", 0) == made.receipt.tasks[-2].output
