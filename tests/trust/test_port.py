"""The contract of the port: the µTPM, swtpm, a device (swtpm behind the TCG's stack) and the model keep it alike."""

from __future__ import annotations

from hashlib import sha256

import pytest

from quoreduce.errors import AttestationError, QuoreduceError
from quoreduce.trust import signatures
from quoreduce.trust.device import DeviceTpm
from quoreduce.trust.modelled import ModelledTpm
from quoreduce.trust.pcr import extended
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import PcrSelection, Quote, Signature, pcr_digest

ZEROS = bytes(32)
DIGEST = sha256(b"a task").digest()
NONCE = bytes(range(32))


@pytest.fixture(params=["ecdsa", "rsassa"])
def scheme(request):
    return request.param


@pytest.fixture(params=["utpm", "swtpm", "tpm2", "modelled"])
def tpm(request, scheme):
    match request.param:
        case "utpm":
            made = MicroTpm(scheme)
        case "modelled":
            made = ModelledTpm(scheme=scheme)
        case "swtpm":
            made = request.getfixturevalue("start")(scheme=scheme)
        case _:
            pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed (pip install 'quoreduce[tpm]')")
            made = DeviceTpm(request.getfixturevalue("listening")[0], scheme)
    assert (made.name, made.modelled) == (request.param, request.param == "modelled")
    for pcr in (16, 23):
        made.reset(pcr)
    yield made
    made.close()


def quoted_well(tpm, pcrs, nonce=NONCE):
    quoted = tpm.quote(pcrs, nonce)
    signatures.verify(tpm.public, quoted.message, Signature.decode(quoted.signature))
    quote = Quote.decode(quoted.message)
    assert quote.extra == nonce
    assert quote.selection == PcrSelection.sha256(*pcrs)
    assert list(quoted.values) == sorted(set(pcrs))
    assert quote.pcr_digest == pcr_digest(list(quoted.values.values()))
    return quoted, quote


def test_extend_hashes_the_old_value_and_the_digest(tpm):
    tpm.extend(16, DIGEST)
    assert tpm.read([16]) == {16: extended(ZEROS, DIGEST)}
    tpm.extend(16, NONCE)
    assert tpm.read([23, 16]) == {16: extended(extended(ZEROS, DIGEST), NONCE), 23: ZEROS}


def test_more_pcrs_than_one_response_holds_are_read(tpm):
    values = tpm.read(range(24))
    assert list(values) == list(range(24))
    assert {len(value) for value in values.values()} == {32}


def test_quote_is_signed_by_a_restricted_key_over_the_values_it_returns(tpm):
    tpm.extend(16, DIGEST)
    quoted, quote = quoted_well(tpm, [23, 16, 0])
    assert tpm.public.is_restricted_signing
    assert quote.signer == tpm.public.qualified_name()
    assert quoted.values[16] == extended(ZEROS, DIGEST)


@pytest.mark.parametrize("nonce", [b"", b"n", bytes(64)], ids=len)
def test_quote_takes_nonces_up_to_64_bytes(tpm, nonce):
    quoted_well(tpm, [16], nonce)


def test_quote_refuses_a_longer_nonce(tpm):
    with pytest.raises(QuoreduceError, match="at most 64 bytes"):
        tpm.quote([16], bytes(65))


def test_quote_follows_each_extend(tpm):
    quotes = []
    for _ in range(3):
        tpm.extend(16, DIGEST)
        quotes.append(quoted_well(tpm, [16])[1])
    assert len({quote.pcr_digest for quote in quotes}) == 3
    clocks = [quote.clock.clock_ms for quote in quotes]
    assert clocks == sorted(clocks)
    assert len({(quote.clock.reset_count, quote.clock.restart_count) for quote in quotes}) == 1


@pytest.mark.parametrize("pcr", [16, 23])
def test_debug_and_application_pcrs_are_reset(tpm, pcr):
    tpm.extend(pcr, DIGEST)
    tpm.reset(pcr)
    assert tpm.read([pcr]) == {pcr: ZEROS}


@pytest.mark.parametrize("pcr", [0, 15, 17, 19, 22, 24, -1])
def test_other_pcrs_are_not_reset(tpm, pcr):
    with pytest.raises(AttestationError):
        tpm.reset(pcr)


@pytest.mark.parametrize("call", ["extend", "read", "quote", "seal"])
@pytest.mark.parametrize("pcr", [24, -1, 1 << 20])
def test_pcrs_that_do_not_exist_are_refused(tpm, call, pcr):
    calls = {
        "extend": lambda: tpm.extend(pcr, DIGEST), "read": lambda: tpm.read([pcr]),
        "quote": lambda: tpm.quote([pcr], NONCE), "seal": lambda: tpm.seal(b"s", [pcr]),
    }  # fmt: skip
    with pytest.raises(AttestationError, match=r"PCR"):
        calls[call]()


@pytest.mark.parametrize("size", [0, 20, 31, 33, 64])
def test_extend_takes_32_bytes_only(tpm, size):
    with pytest.raises(AttestationError, match="32 bytes"):
        tpm.extend(16, bytes(size))
    assert tpm.read([16]) == {16: ZEROS}


@pytest.mark.parametrize("size", [1, 32, 128])
def test_sealed_secret_is_unsealed_while_the_pcrs_are_the_same(tpm, size):
    secret = bytes(range(size))
    blob = tpm.seal(secret, [16, 23])
    assert size < 32 or secret not in blob
    assert [tpm.unseal(blob) for _ in range(2)] == [secret] * 2


def test_sealed_secret_is_refused_after_a_pcr_changed_and_given_when_it_is_back(tpm):
    blob = tpm.seal(b"secret", [16])
    tpm.extend(16, DIGEST)
    for _ in range(5):
        with pytest.raises(AttestationError):
            tpm.unseal(blob)
    tpm.reset(16)
    assert tpm.unseal(blob) == b"secret"


@pytest.mark.parametrize("size", [0, 129])
def test_secrets_of_no_or_more_than_128_bytes_are_refused(tpm, size):
    with pytest.raises(QuoreduceError, match="1 to 128 bytes"):
        tpm.seal(bytes(size), [16])


def test_sealed_secret_with_a_bit_changed_is_refused(tpm):
    blob = tpm.seal(b"secret", [16])
    for at in range(0, len(blob), 7):
        with pytest.raises(AttestationError):
            tpm.unseal(blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :])
    for short in (b"", blob[:5], blob[:-1], blob + b"\0"):
        with pytest.raises(AttestationError):
            tpm.unseal(short)
    assert tpm.unseal(blob) == b"secret"


@pytest.mark.parametrize("size", [0, 1, 32, 100, 1000])
def test_random_gives_as_many_bytes_as_asked(tpm, size):
    one, other = tpm.random(size), tpm.random(size)
    assert len(one) == len(other) == size
    assert size < 32 or one != other


def test_close_may_be_called_again(tpm):
    tpm.close()
    tpm.close()
