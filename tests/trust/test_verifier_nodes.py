"""The verifier, of nodes: the chain from the maker of a TPM to the keys of the workers, each link broken once."""

from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest
from attested import CHALLENGE, DOCUMENT, NOW, Attested, Authority, attested
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from editing import refused, with_hardware, with_launch, with_utpm
from msgspec.structs import replace as put

from quoreduce.trust import chain as ek_chain
from quoreduce.trust import evidence
from quoreduce.trust.eventlog import Event, encode_binary
from quoreduce.trust.evidence import launch_log
from quoreduce.trust.receipt import job_id
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import FIXED_PARENT, FIXED_TPM, SIGN, Public, sized


@pytest.fixture(scope="module")
def made() -> Attested:
    return attested()


@pytest.fixture(scope="module")
def software() -> Attested:
    return attested(hardware=False)


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
