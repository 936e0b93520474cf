"""PCR banks: extends chain, resets and localities are those of the profile. (test_tpm2_tools compares them with
swtpm's.)
"""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.errors import AttestationError
from quoreduce.trust import pcr
from quoreduce.trust.pcr import MICRO, ONES, PC_CLIENT, ZEROS, PcrBank

DIGEST = sha256(b"event").digest()
OTHER = sha256(b"other").digest()


@given(st.lists(st.tuples(st.integers(0, 23), st.binary(min_size=32, max_size=32)), max_size=40))
def test_value_is_the_chain_of_its_extends(events):
    bank, expected = PcrBank(), [bytes(32)] * 24
    for number, digest in events:
        bank.extend(number, digest)
        expected[number] = sha256(expected[number] + digest).digest()
    assert bank.snapshot() == tuple(expected)
    assert bank.read_all(range(24)) == dict(enumerate(expected))


def test_order_of_extends_matters():
    one, two = PcrBank(), PcrBank()
    for digest in (DIGEST, OTHER):
        one.extend(0, digest)
    for digest in (OTHER, DIGEST):
        two.extend(0, digest)
    assert one.read(0) != two.read(0)


def test_micro_pcrs_start_at_zero_and_only_16_and_23_can_be_reset():
    bank = PcrBank(MICRO)
    assert set(bank.snapshot()) == {ZEROS}
    for number in range(24):
        bank.extend(number, DIGEST)
        if number in (16, 23):
            bank.reset(number)
            assert bank.read(number) == ZEROS
        else:
            with pytest.raises(AttestationError, match=f"PCR {number} cannot be reset"):
                bank.reset(number)
            assert bank.read(number) == pcr.extended(ZEROS, DIGEST)


def test_pc_client_starts_with_ones_where_a_dynamic_launch_has_not_been():
    bank = PcrBank(PC_CLIENT)
    assert [number for number, value in enumerate(bank.snapshot()) if value == ONES] == list(range(17, 23))
    assert set(bank.snapshot()) == {ZEROS, ONES}


# PC Client Platform TPM Profile, 4.6.2: PCR -> localities that may extend it, localities that may reset it
TABLE = {
    **{number: ({0, 1, 2, 3, 4}, set()) for number in range(16)},
    16: ({0, 1, 2, 3, 4}, {0, 1, 2, 3}),
    17: ({2, 3, 4}, {4}),
    18: ({2, 3, 4}, {4}),
    19: ({2, 3}, {4}),
    20: ({1, 2, 3}, {2, 4}),
    21: ({2}, {2, 4}),
    22: ({2}, {2, 4}),
    23: ({0, 1, 2, 3, 4}, {0, 1, 2, 3}),
}


@pytest.mark.parametrize("number", range(24))
@pytest.mark.parametrize("locality", range(5))
def test_pc_client_localities(number, locality):
    bank, (extend, reset) = PcrBank(PC_CLIENT), TABLE[number]
    before = bank.read(number)
    if locality in extend:
        bank.extend(number, DIGEST, locality)
        assert bank.read(number) == sha256(before + DIGEST).digest()
    else:
        with pytest.raises(AttestationError, match=f"from locality {locality}"):
            bank.extend(number, DIGEST, locality)
        assert bank.read(number) == before
    if locality in reset:
        bank.reset(number, locality)
        assert bank.read(number) == ZEROS
    else:
        with pytest.raises(AttestationError, match=f"from locality {locality}"):
            bank.reset(number, locality)


def test_dynamic_launch_resets_17_to_22_and_measures_into_17():
    bank = PcrBank(PC_CLIENT)
    bank.extend(0, DIGEST)
    before = bank.snapshot()
    bank.launch(b"environment")
    assert bank.read(17) == pcr.launched(b"environment") == sha256(bytes(32) + sha256(b"environment").digest()).digest()
    assert [bank.read(number) for number in range(18, 23)] == [ZEROS] * 5
    assert bank.snapshot()[:17] == before[:17]
    bank.extend(19, OTHER, locality=2)
    assert bank.read(19) == pcr.extended(ZEROS, OTHER)


@pytest.mark.parametrize("number", [-1, -24, 24, 1000])
def test_register_that_does_not_exist_is_refused(number):
    bank = PcrBank()
    for refused in (lambda: bank.extend(number, DIGEST), lambda: bank.read(number), lambda: bank.reset(number)):
        with pytest.raises(AttestationError, match="PCR"):
            refused()
    with pytest.raises(AttestationError, match="PCR"):
        bank.read_all([0, number])
    assert set(bank.snapshot()) == {ZEROS}


@pytest.mark.parametrize("size", [0, 20, 31, 33, 64])
def test_digest_of_another_size_is_refused(size):
    bank = PcrBank()
    with pytest.raises(AttestationError, match=f"by {size} bytes"):
        bank.extend(16, bytes(size))
    assert bank.read(16) == ZEROS


def test_snapshot_does_not_change_with_the_bank():
    bank = PcrBank()
    taken = bank.snapshot()
    bank.extend(3, DIGEST)
    assert set(taken) == {ZEROS}
