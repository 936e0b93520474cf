"""The dynamic root of trust on a real swtpm: what a launch measures, and what no software of locality 0 can do."""

from __future__ import annotations

import socket
from hashlib import sha256

import pytest

from quoreduce.errors import AttestationError, HostError
from quoreduce.trust import signatures
from quoreduce.trust.drtm import Control
from quoreduce.trust.pcr import DYNAMIC, ONES, ZEROS, extended, launched
from quoreduce.trust.wire import Quote, Signature, pcr_digest

DOCUMENT = b'{"format":"quoreduce environment 1"}'
DIGEST = sha256(b"public area of a micro TPM").digest()
IDENTITIES = 19


def test_before_a_launch_the_dynamic_pcrs_hold_ones(swtpm):
    assert set(swtpm.read(DYNAMIC).values()) == {ONES}


@pytest.mark.parametrize("size", [0, 1, 3999, 4000, 4001, 100_000])
def test_launch_measures_into_pcr_17_and_zeroes_the_others(swtpm, size):
    measured = bytes(range(256)) * (size // 256 + 1)
    swtpm.launch(measured[:size])
    assert swtpm.read(DYNAMIC) == dict.fromkeys(DYNAMIC, ZEROS) | {17: launched(measured[:size])}


def test_launch_leaves_the_static_pcrs_alone(swtpm):
    swtpm.extend(0, DIGEST)
    before = swtpm.read(range(17))
    swtpm.launch(DOCUMENT)
    assert swtpm.read(range(17)) == before


def test_launched_environment_extends_identities(swtpm):
    swtpm.launch(DOCUMENT)
    swtpm.extend_launched(IDENTITIES, DIGEST)
    assert swtpm.read([IDENTITIES]) == {IDENTITIES: extended(ZEROS, DIGEST)}


def test_another_launch_forgets_the_identities_of_the_one_before(swtpm):
    swtpm.launch(DOCUMENT)
    swtpm.extend_launched(IDENTITIES, DIGEST)
    swtpm.launch(DOCUMENT + b" ")
    assert swtpm.read([17, IDENTITIES]) == {17: launched(DOCUMENT + b" "), IDENTITIES: ZEROS}


@pytest.mark.parametrize("pcr", [17, 18, 19])
@pytest.mark.parametrize("after_launch", [False, True])
def test_locality_0_cannot_extend_what_a_launch_measures(swtpm, pcr, after_launch):
    if after_launch:
        swtpm.launch(DOCUMENT)
        swtpm.extend_launched(IDENTITIES, DIGEST)  # and is back at locality 0 afterwards
    before = swtpm.read(DYNAMIC)
    with pytest.raises(AttestationError, match="TPM_RC_LOCALITY"):
        swtpm.extend(pcr, DIGEST)
    assert swtpm.read(DYNAMIC) == before


@pytest.mark.parametrize("pcr", DYNAMIC)
def test_locality_0_cannot_reset_what_a_launch_measures(swtpm, pcr):
    swtpm.launch(DOCUMENT)
    before = swtpm.read(DYNAMIC)
    with pytest.raises(AttestationError, match="TPM_RC_LOCALITY"):
        swtpm.reset(pcr)
    assert swtpm.read(DYNAMIC) == before


def test_locality_is_0_again_after_a_refused_extend_of_the_environment(swtpm):
    with pytest.raises(AttestationError):
        swtpm.extend_launched(24, DIGEST)
    with pytest.raises(AttestationError, match="TPM_RC_LOCALITY"):
        swtpm.extend(IDENTITIES, DIGEST)


def test_quote_covers_the_launch_and_the_identities(swtpm):
    swtpm.launch(DOCUMENT)
    swtpm.extend_launched(IDENTITIES, DIGEST)
    quoted = swtpm.quote([17, IDENTITIES], b"nonce")
    signatures.verify(swtpm.public, quoted.message, Signature.decode(quoted.signature))
    assert Quote.decode(quoted.message).pcr_digest == pcr_digest([launched(DOCUMENT), extended(ZEROS, DIGEST)])


def test_launch_is_forgotten_by_a_restart(start):
    tpm = start()
    tpm.launch(DOCUMENT)
    tpm.close()
    assert set(start().read(DYNAMIC).values()) == {ONES}


@pytest.fixture
def far():
    near, far = socket.socketpair()
    near.settimeout(0.05)
    yield Control(near), far
    far.close()
    near.close()


def test_control_channel_that_hangs_is_a_host_error_in_time(far):
    with pytest.raises(HostError, match="control channel does not answer: timed out"):
        far[0].set_locality(2)


def test_control_channel_that_refuses_is_a_host_error(far):
    far[1].sendall(bytes.fromhex("00000009"))
    with pytest.raises(HostError, match="refuses command 6: result 00000009"):
        far[0].launch(b"")


def test_control_channel_that_closes_is_a_host_error(far):
    far[1].close()
    with pytest.raises(HostError, match="control channel"):
        far[0].launch(b"")
