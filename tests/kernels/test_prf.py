"""The function of 16-byte blocks: FIPS 197, the vectors of SipHash, the library, and the plain twins."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from quoreduce_kernels import check_reference, prf

KEY = bytes(range(16))
BLOCKS = st.binary(min_size=16, max_size=16)


def mixed(blocks: bytes, key: bytes) -> bytes:
    """The function of 8 blocks as the kernel has it, four under each of the keys of a schedule."""
    keys, out = prf.expand(key), np.zeros(128, np.uint8)
    source = np.frombuffer(blocks, np.uint8)
    prf.mix_blocks(source.ctypes.data, 8, keys.ctypes.data, out.ctypes.data)
    return out.tobytes()


def library(block: bytes, key: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return encryptor.update(block) + encryptor.finalize()


def test_the_twin_gives_the_vector_of_fips_197() -> None:
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert check_reference.aes128(block, KEY).hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"  # appendix C.1


def test_the_round_keys_are_those_of_fips_197() -> None:
    keys = prf.round_keys(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))  # appendix A.1
    assert keys[1].tobytes().hex() == "a0fafe1788542cb123a339392a6c7605"
    assert keys[10].tobytes().hex() == "d014f9a8c9ee2589e13f0cc8b6630ca6"


def test_the_twin_gives_the_vector_of_siphash() -> None:
    assert check_reference.siphash128(KEY, KEY).hex() == "6ee2a4ca67b054bbfd3315bf85230577"  # vectors.h, 16 bytes


@given(BLOCKS, BLOCKS)
def test_the_twin_is_the_librarys_aes(block: bytes, key: bytes) -> None:
    assert check_reference.aes128(block, key) == library(block, key)


@given(st.binary(min_size=128, max_size=128), st.binary(min_size=32, max_size=32))
def test_the_kernel_is_its_twin_under_both_keys(blocks: bytes, key: bytes) -> None:
    first, second, _, _ = check_reference._expanded(key)
    twin = check_reference.aes128 if prf.function() == "aes" else check_reference.siphash128
    want = [twin(blocks[i : i + 16], first if i < 64 else second) for i in range(0, 128, 16)]
    assert mixed(blocks, key) == b"".join(want)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        prf.expand(bytes(16))
