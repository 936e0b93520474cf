"""AES against FIPS 197 and the library cryptography, and the hash against its plain twin, at all levels of this CPU."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from guarded import before_guard_page
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import check_hash, check_keys
from quoreduce_kernels import check_reference as slow
from quoreduce_kernels.check_hash import Hasher, Sum, pieces
from quoreduce_kernels.check_intrinsics import LEVEL, LEVELS, level_of

HERE = LEVELS[: LEVELS.index(LEVEL) + 1]
KEY = bytes(range(32))
LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 4095, 4097)


def encrypt(level: str, raw: bytes, key: bytes) -> bytes:
    """AES-128 under a key of 16 bytes by the kernel of a level."""
    words = check_keys.laid_out((key, bytes(16), bytes(16), bytes(16)), bytes(16), bytes(128))
    blocks = np.frombuffer(raw.ljust(-(-len(raw) // 64) * 64, b"\0"), np.uint64).copy()
    address = words.ctypes.data
    check_hash.encrypt_kernel(level)(blocks.ctypes.data, len(raw) // 16, address + check_keys.SHORT, address)
    return blocks.tobytes()[: len(raw)]


def messages_of(pairs: list[tuple[np.ndarray, np.ndarray, int]]) -> np.ndarray:
    rows = [(a.ctypes.data, a.size, b.ctypes.data, b.size, place) for a, b, place in pairs]
    return np.array(rows, np.uint64).reshape(-1, check_hash.MESSAGE_WORDS)


def hashes(level: str, pairs: list[tuple[np.ndarray, np.ndarray, int]]) -> list[tuple[int, int]]:
    blocks = np.zeros((len(pairs) + 3, 2), np.uint64)
    Hasher(KEY, level).finish(messages_of(pairs), len(pairs), blocks)
    return [(int(low), int(high)) for low, high in blocks[: len(pairs)]]


def array(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8)


def test_the_best_level_is_what_the_target_has() -> None:
    wide = "+aes,+avx512bw,+avx512f,+avx512vbmi,+avx512vbmi2,+avx512vl,+sse2,+vaes"
    assert level_of("x86_64-unknown-linux-gnu", wide) == "vaes"
    assert level_of("x86_64-unknown-linux-gnu", wide.replace("+vaes", "-vaes")) == "aes"
    assert level_of("x86_64-unknown-linux-gnu", wide.replace("+avx512vbmi2", "-avx512vbmi2")) == "aes"
    assert level_of("x86_64-unknown-linux-gnu", "") == "portable"
    assert level_of("aarch64-unknown-linux-gnu", "+aes,+neon") == "portable"


@pytest.mark.parametrize("level", HERE)
def test_aes_gives_the_vectors_of_fips_197(level: str) -> None:
    """Appendix B and appendix C.1."""
    for key, plain, cipher in (
        ("2b7e151628aed2a6abf7158809cf4f3c", "3243f6a8885a308d313198a2e0370734", "3925841d02dc09fbdc118597196a0b32"),
        ("000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"),
    ):
        assert encrypt(level, bytes.fromhex(plain), bytes.fromhex(key)).hex() == cipher
        assert slow.aes(bytes.fromhex(plain), slow.round_keys(bytes.fromhex(key))).hex() == cipher


def test_the_key_schedule_is_that_of_fips_197() -> None:
    """Appendix A.1: the words w4, w9, w20 and w43."""
    raw = check_keys.round_keys(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))
    words = [raw[i : i + 4].hex() for i in range(0, len(raw), 4)]
    assert [words[i] for i in (4, 9, 20, 43)] == ["a0fafe17", "7a96b943", "d4d1c6f8", "b6630ca6"]
    assert b"".join(slow.round_keys(raw[:16])) == raw


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=400))
@settings(max_examples=80, deadline=None)
def test_aes_is_that_of_the_library(key: bytes, raw: bytes) -> None:
    raw = raw[: len(raw) // 16 * 16]
    expected = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(raw)
    assert {encrypt(level, raw, key) for level in HERE} == {expected}


def test_a_key_has_32_bytes_and_its_parts_differ() -> None:
    for size in (0, 16, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            check_keys.expand(bytes(size))
    words = check_keys.expand(KEY)
    parts = [words[at // 8 : at // 8 + 2].tobytes() for at in (check_keys.SHORT, check_keys.PIECES, check_keys.FINAL)]
    assert (
        len({*parts, words[check_keys.RECORD // 8 :][:2].tobytes(), words[check_keys.STEP // 8 :][:2].tobytes()}) == 5
    )
    assert not words.flags.writeable


@given(st.lists(st.tuples(st.binary(max_size=90), st.binary(max_size=200), st.integers(0, 2**64 - 1)), max_size=9))
@settings(max_examples=60, deadline=None)
def test_the_hash_of_pairs_is_the_documented_one(pairs: list[tuple[bytes, bytes, int]]) -> None:
    keys = slow.expand(KEY)
    expected = [slow.hash_pair(*pair, keys) for pair in pairs]
    arrays = [(array(a), array(b), place) for a, b, place in pairs]
    for level in HERE:
        assert hashes(level, arrays) == expected


@pytest.mark.parametrize("level", HERE)
def test_a_hash_reads_no_byte_after_its_data(level: str) -> None:
    keys, data = slow.expand(KEY), np.random.default_rng(1).bytes(5000)
    for length in LENGTHS:
        with before_guard_page(data[:length]) as one, before_guard_page(data[length : 2 * length]) as other:
            found = hashes(level, [(one, other, 7), (other, one, 0)])
        a, b = data[:length], data[length : 2 * length]
        assert found == [slow.hash_pair(a, b, 7, keys), slow.hash_pair(b, a, 0, keys)]


def test_what_belongs_to_key_or_value_or_is_padding_counts() -> None:
    """All of these have the same bytes one after the other, or the same pieces."""
    pairs = [(b"ab", b"c"), (b"a", b"bc"), (b"abc", b""), (b"", b"abc"), (b"abc\0", b""), (b"abc", b"\0"), (b"", b"")]
    pairs += [(b"x" * 16, b""), (b"", b"x" * 16), (b"x" * 16 + b"\0", b""), (b"x" * 16 + b"\0\0", b"")]
    arrays = [(array(a), array(b), place) for a, b in pairs for place in (0, 1)]
    assert len(set(hashes(LEVEL, arrays))) == 2 * len(pairs)


def test_sums_add_up_modulo_two_to_the_64th() -> None:
    assert Sum(2**64 - 1, 5, 2**64 - 3).plus(Sum(2, 2**64 - 5, 4)) == Sum(1, 0, 1)
    assert Sum(1, 2, 3).plus(Sum()) == Sum(1, 2, 3)


def test_pieces_of_a_level_are_made_once() -> None:
    assert pieces(LEVEL) is pieces(LEVEL)
    assert check_hash.encrypt_kernel(LEVEL) is check_hash._encrypt
