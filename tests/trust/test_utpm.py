"""The µTPM: quotes are of one instant, secrets open only under their µPCRs, and its key stays where it is."""

import copy
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import cloudpickle
import pytest

from quoreduce.errors import AttestationError
from quoreduce.trust.port import SECRET_BYTES_MAX, Tpm
from quoreduce.trust.signatures import verify
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import PcrSelection, Public, Quote, QuoteResponse, Signature, pcr_digest

DIGEST = sha256(b"event").digest()
NONCE = sha256(b"nonce").digest()


@pytest.fixture(scope="module")
def rsassa() -> MicroTpm:
    return MicroTpm("rsassa")


@pytest.fixture(params=["ecdsa", "rsassa"])
def tpm(request, rsassa) -> MicroTpm:
    """A µTPM of each scheme; that with the RSA key is shared, since its key takes long to make."""
    return MicroTpm() if request.param == "ecdsa" else rsassa


def checked(public: Public, quoted: QuoteResponse) -> Quote:
    """Check the signature and that the values are those quoted."""
    verify(public, quoted.message, Signature.decode(quoted.signature))
    quote = Quote.decode(quoted.message)
    assert quote.pcr_digest == pcr_digest(list(quoted.values.values()))
    assert quote.selection == PcrSelection.sha256(*quoted.values)
    return quote


def test_it_is_a_tpm(tpm):
    port: Tpm = tpm
    assert (port.name, port.modelled) == ("utpm", False)
    assert port.public.is_restricted_signing


def test_quote_verifies_and_says_what_was_asked(tpm):
    tpm.extend(16, DIGEST)
    quoted = tpm.quote((16, 0, 1, 0), NONCE)
    quote = checked(tpm.public, quoted)
    assert quoted.values == tpm.read((0, 1, 16))
    assert list(quoted.values) == [0, 1, 16]
    assert quote.extra == NONCE
    assert quote.signer == tpm.public.qualified_name()
    assert tpm.quote((), b"").values == {}


def test_quote_carries_its_clock():
    tpm = MicroTpm(clock_ms=iter([5, 7_000_000_000]).__next__)
    clocks = [Quote.decode(tpm.quote((0,), b"").message).clock for _ in range(2)]
    assert [(clock.clock_ms, clock.reset_count, clock.safe) for clock in clocks] == [
        (5, 1, True),
        (7_000_000_000, 1, True),
    ]
    assert 0 <= Quote.decode(MicroTpm().quote((0,), b"").message).clock.clock_ms < 60_000


def test_extend_changes_the_quote_and_reset_takes_16_back():
    tpm = MicroTpm()
    start = tpm.read(range(24))
    assert set(start.values()) == {bytes(32)}
    tpm.extend(16, DIGEST)
    assert tpm.quote((16,), NONCE).values == {16: sha256(bytes(32) + DIGEST).digest()}
    tpm.reset(16)
    assert tpm.read(range(24)) == start


@pytest.mark.parametrize("size", [0, 32, 64])
def test_nonce_of_up_to_64_bytes_is_signed(tpm, size):
    assert checked(tpm.public, tpm.quote((0,), bytes(size))).extra == bytes(size)


@pytest.mark.parametrize(
    "refused",
    [
        lambda tpm: tpm.quote((0,), bytes(65)),
        lambda tpm: tpm.quote((24,), NONCE),
        lambda tpm: tpm.quote((-1,), NONCE),
        lambda tpm: tpm.extend(24, DIGEST),
        lambda tpm: tpm.extend(0, DIGEST[:-1]),
        lambda tpm: tpm.read((0, 24)),
        lambda tpm: tpm.reset(0),
        lambda tpm: tpm.reset(17),
        lambda tpm: tpm.seal(b"", (0,)),
        lambda tpm: tpm.seal(bytes(SECRET_BYTES_MAX + 1), (0,)),
        lambda tpm: tpm.seal(b"secret", (24,)),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(refused):
    tpm = MicroTpm()
    with pytest.raises(AttestationError):
        refused(tpm)
    assert set(tpm.read(range(24)).values()) == {bytes(32)}


def test_unknown_scheme_is_refused():
    with pytest.raises(AttestationError, match="neither ecdsa nor rsassa"):
        MicroTpm("ed25519")


def test_threads_lose_no_extend_and_every_quote_is_of_one_instant():
    """All extend the same digest into 16, so that its value tells how many extends there were."""
    tpm, extends, threads = MicroTpm(), 300, 4
    chain = [bytes(32)]
    for _ in range(extends * threads):
        chain.append(sha256(chain[-1] + DIGEST).digest())
    position = {value: at for at, value in enumerate(chain)}

    def extend(_: int) -> None:
        for _ in range(extends):
            tpm.extend(16, DIGEST)

    def quote(_: int) -> list[int]:
        quotes = [tpm.quote((0, 16), NONCE) for _ in range(40)]
        return [position[quoted.values[16]] for quoted in quotes if checked(tpm.public, quoted)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads + 2) as pool:
            done = list(pool.map(extend, range(threads)))
            seen = list(pool.map(quote, range(2)))
    finally:
        sys.setswitchinterval(interval)
    assert len(done) == threads
    assert all(one == sorted(one) for one in seen)
    assert tpm.read((16,)) == {16: chain[-1]}


def test_secret_opens_while_its_pcrs_are_as_they_were(tpm):
    tpm.extend(0, DIGEST)
    for secret in (b"s", bytes(range(SECRET_BYTES_MAX))):
        blob = tpm.seal(secret, (0, 1))
        assert secret not in blob[:-16] or len(secret) == 1
        assert len(blob) == 88 + len(secret)
        tpm.extend(16, DIGEST)  # is not among them
        assert tpm.unseal(blob) == secret
    assert tpm.seal(b"same", (0,)) != tpm.seal(b"same", (0,))


def test_secret_is_refused_once_a_pcr_has_changed_and_opens_again_after_a_reset():
    tpm = MicroTpm()
    blob = tpm.seal(b"secret", (16, 0))
    tpm.extend(16, DIGEST)
    with pytest.raises(AttestationError, match=r"\[0, 16\] do not hold the values"):
        tpm.unseal(blob)
    tpm.reset(16)
    assert tpm.unseal(blob) == b"secret"
    tpm.extend(0, DIGEST)
    with pytest.raises(AttestationError, match="do not hold the values"):
        tpm.unseal(blob)


def test_secret_of_another_utpm_is_refused():
    blob = MicroTpm().seal(b"secret", (0,))
    with pytest.raises(AttestationError, match="another µTPM"):
        MicroTpm().unseal(blob)


def test_sealed_secret_with_any_bit_changed_or_bytes_missing_is_refused():
    tpm = MicroTpm()
    blob = tpm.seal(b"secret", (0, 16))
    assert tpm.unseal(blob) == b"secret"
    for bit in range(8 * len(blob)):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AttestationError):
            tpm.unseal(bytes(changed))
    for wrong in (*(blob[:size] for size in range(len(blob))), blob + b"\0"):
        with pytest.raises(AttestationError):
            tpm.unseal(wrong)
    with pytest.raises(AttestationError, match="not sealed by a µTPM"):
        tpm.unseal(b"Q" + blob[1:])


def test_secret_cannot_be_opened_by_putting_present_values_into_its_header():
    tpm = MicroTpm()
    blob = tpm.seal(b"secret", (16,))
    tpm.extend(16, DIGEST)
    at = len(tpm.seal(b"x", (16,))) - 1 - 16 - 12 - 32
    forged = blob[:at] + pcr_digest([tpm.read((16,))[16]]) + blob[at + 32 :]
    with pytest.raises(AttestationError, match="altered"):
        tpm.unseal(forged)


@pytest.mark.parametrize("take", [pickle.dumps, cloudpickle.dumps, copy.copy, copy.deepcopy])
def test_it_can_be_neither_copied_nor_pickled(take):
    with pytest.raises((TypeError, pickle.PicklingError), match="µTPM"):
        take(MicroTpm())


def test_it_does_not_work_in_a_forked_child():
    tpm = MicroTpm()
    blob = tpm.seal(b"secret", (0,))
    child = os.fork()
    if not child:
        refused = 0
        for use in (lambda: tpm.quote((0,), NONCE), lambda: tpm.unseal(blob), lambda: tpm.seal(b"s", (0,))):
            try:
                use()
            except AttestationError as error:
                refused += "another process" in str(error)
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert tpm.unseal(blob) == b"secret"


def test_each_has_a_key_of_its_own_and_shows_none_of_it():
    one, two = MicroTpm(), MicroTpm()
    assert one.public.unique != two.public.unique
    private = one._key.private_numbers().private_value
    assert str(private) not in repr(one)
    assert format(private, "x") not in repr(one)


def test_closed_it_signs_and_opens_nothing():
    tpm = MicroTpm()
    blob = tpm.seal(b"secret", (0,))
    tpm.close()
    tpm.close()
    for use in (lambda: tpm.quote((0,), NONCE), lambda: tpm.unseal(blob), lambda: tpm.seal(b"s", (0,))):
        with pytest.raises(AttestationError, match="closed"):
            use()
    assert tpm.read((0,)) == {0: bytes(32)}


def test_random_bytes_are_those_of_its_source():
    assert MicroTpm(random=lambda size: b"r" * size).random(5) == b"rrrrr"
    assert len({MicroTpm().random(16) for _ in range(4)}) == 4


def test_an_instance_has_the_same_key_and_registers_of_its_own(tpm: MicroTpm) -> None:
    tpm.extend(0, DIGEST)
    one, two = tpm.instance(), tpm.instance()
    assert one.read([0]) == {0: bytes(32)}
    one.extend(1, DIGEST)
    assert two.read([0, 1]) == {0: bytes(32), 1: bytes(32)}
    assert tpm.read([1]) == {1: bytes(32)}
    for instance in (one, two):
        quoted = instance.quote([0, 1], NONCE)
        assert checked(tpm.public, quoted).signer == tpm.public.qualified_name()
        assert quoted.values == instance.read([0, 1])
    assert one.instance().read([1]) == {1: bytes(32)}


def test_what_an_instance_sealed_opens_in_another_whose_registers_are_the_same() -> None:
    tpm = MicroTpm()
    one, two = tpm.instance(), tpm.instance()
    one.extend(0, DIGEST)
    sealed = one.seal(b"secret", [0])
    with pytest.raises(AttestationError, match="do not hold the values"):
        two.unseal(sealed)
    two.extend(0, DIGEST)
    assert two.unseal(sealed) == b"secret"


def test_a_closed_instance_closes_no_other_and_a_closed_one_makes_none() -> None:
    tpm = MicroTpm()
    one, two = tpm.instance(), tpm.instance()
    one.close()
    with pytest.raises(AttestationError, match="closed"):
        one.quote([0], NONCE)
    assert two.quote([0], NONCE)
    with pytest.raises(AttestationError, match="closed"):
        one.instance()
    tpm.close()
    with pytest.raises(AttestationError, match="closed"):
        tpm.instance()
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        copy.copy(two)
