"""A pseudo-random function of 16-byte blocks, four at a time: what the sums of checks rest on (R13).

AES-128 (FIPS 197) where the CPU has instructions for it: of 512 bits (VAES) or of 128 (AES-NI). Elsewhere SipHash-2-4
with 128 bits of output (Aumasson and Bernstein, INDOCRYPT 2012), which is made of additions, rotations and xors. A
check compares sums that it has taken itself under a key of its own, so workers on different CPUs need not use the
same one.

A schedule of keys is u64[KEY_WORDS], see :func:`expand`: two keys, one for each kind of block, and key words of NH.
It is secret until the output is made that it is to check. Plain twins are in ``check_reference``.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

from quoreduce_kernels.options import kernel

KEY_BYTES = 32
ROUNDS = 10
# Places in a schedule, in bytes: the round keys for blocks of the first kind, each four times, and of the second; then
# the two keys as they are, for SipHash; then 16 words of NH and its multiplier (low, high), which is odd.
FIRST = 0
SECOND = 64 * (ROUNDS + 1)
SIP = 2 * SECOND
NH = SIP + 32
KEY_WORDS = (NH + 18 * 8) // 8

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_Q8, _Q4, _Q2 = (ir.VectorType(_I64, n) for n in (8, 4, 2))
_U64 = types.uint64
_SIP_START = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_LENGTH = 16 << 56  # the last block of SipHash: the length of the message


def features(context: Any) -> frozenset[str]:
    """What numba compiles for, as LLVM names it."""
    listed = context.codegen().magic_tuple()[2]
    return frozenset(name[1:] for name in listed.split(",") if name.startswith("+"))


def function() -> str:
    """Which function this process uses: ``aes`` or ``siphash``."""
    return "aes" if "aes" in features(cpu_target.target_context) else "siphash"


def load(builder: Any, address: Any, kind: Any) -> Any:
    """The value of a kind at an address of any alignment."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(builder: Any, value: Any, address: Any) -> None:
    """Store a value at an address of any alignment."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def constant(kind: Any, values: Any) -> Any:
    """A constant vector."""
    return ir.Constant(kind, list(values))


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call an intrinsic of LLVM."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def mix(context: Any, builder: Any, blocks: Any, keys: Any, kind: int) -> Any:
    """The function of four blocks, <8 x i64>, under the key of a ``kind`` (FIRST or SECOND) in a schedule."""
    known = features(context)
    round_keys = builder.add(keys, _I64(kind))
    if {"vaes", "avx512f"} <= known:
        return _aes(builder, blocks, round_keys, _Q8, ".512")
    if "aes" in known:
        lanes = [
            _aes(builder, _lanes(builder, blocks, (2 * i, 2 * i + 1)), round_keys, _Q2, "") for i in range(4)
        ]  # fmt: skip
        halves = [builder.shuffle_vector(lanes[i], lanes[i + 1], constant(_of_i32(4), range(4))) for i in (0, 2)]
        return builder.shuffle_vector(halves[0], halves[1], constant(_of_i32(8), range(8)))
    return _sip(builder, blocks, builder.add(keys, _I64(SIP + 16 * (kind == SECOND))))


def _of_i32(count: int) -> Any:
    return ir.VectorType(_I32, count)


def _lanes(builder: Any, vector: Any, lanes: Any) -> Any:
    return builder.shuffle_vector(vector, vector, constant(_of_i32(len(lanes)), lanes))


def _aes(builder: Any, block: Any, round_keys: Any, kind: Any, suffix: str) -> Any:
    words = [load(builder, builder.add(round_keys, _I64(64 * i)), kind) for i in range(ROUNDS + 1)]
    block = builder.xor(block, words[0])
    for word in words[1:ROUNDS]:
        block = call(builder, f"llvm.x86.aesni.aesenc{suffix}", kind, block, word)
    return call(builder, f"llvm.x86.aesni.aesenclast{suffix}", kind, block, words[ROUNDS])


def _sip(builder: Any, blocks: Any, key: Any) -> Any:
    """SipHash-2-4-128 of four messages of 16 bytes, a lane each."""
    words = [_lanes(builder, blocks, lanes) for lanes in ((0, 2, 4, 6), (1, 3, 5, 7))]
    halves = [_lanes(builder, load(builder, key, _Q2), (half,) * 4) for half in (0, 1)]
    v = [builder.xor(constant(_Q4, [start] * 4), halves[i % 2]) for i, start in enumerate(_SIP_START)]
    v[1] = builder.xor(v[1], constant(_Q4, [0xEE] * 4))
    for word in (*words, constant(_Q4, [_LENGTH] * 4)):
        v[3] = builder.xor(v[3], word)
        v = _sip_rounds(builder, v, 2)
        v[0] = builder.xor(v[0], word)
    out = []
    for lane, value in ((2, 0xEE), (1, 0xDD)):
        v[lane] = builder.xor(v[lane], constant(_Q4, [value] * 4))
        v = _sip_rounds(builder, v, 4)
        out.append(builder.xor(builder.xor(v[0], v[1]), builder.xor(v[2], v[3])))
    return builder.shuffle_vector(out[0], out[1], constant(_of_i32(8), (0, 4, 1, 5, 2, 6, 3, 7)))


def _sip_rounds(builder: Any, v: list[Any], rounds: int) -> list[Any]:
    def turn(x: Any, bits: int) -> Any:
        left, right = (constant(_Q4, [n] * 4) for n in (bits, 64 - bits))
        return builder.or_(builder.shl(x, left), builder.lshr(x, right))

    a, b, c, d = v
    for _ in range(rounds):
        a, c = builder.add(a, b), builder.add(c, d)
        b, d = builder.xor(turn(b, 13), a), builder.xor(turn(d, 16), c)
        a = turn(a, 32)
        c, a = builder.add(c, b), builder.add(a, d)
        b, d = builder.xor(turn(b, 17), c), builder.xor(turn(d, 21), a)
        c = turn(c, 32)
    return [a, b, c, d]


def _four(kind: int) -> Any:
    def mix_four(_typing: Any, source: Any, keys: Any, target: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            source, keys, target = args
            store(builder, mix(context, builder, load(builder, source, _Q8), keys, kind), target)
            return context.get_dummy_value()

        return types.void(_U64, _U64, _U64), codegen

    mix_four.__name__ = "mix_first" if kind == FIRST else "mix_second"
    return intrinsic(mix_four)


mix_first, mix_second = _four(FIRST), _four(SECOND)


@kernel("void(u8, u8, u8, u8)")
def mix_blocks(source, count, keys, target):
    """The function of ``count`` blocks, a multiple of 4, under both keys in turn: for tests, four by four."""
    for i in range(count >> np.uint64(2)):
        at = np.uint64(64) * i
        if i & np.uint64(1):
            mix_second(source + at, keys, target + at)
        else:
            mix_first(source + at, keys, target + at)


def _sbox() -> bytes:
    """The S-box of AES: inverses in GF(2^8), then an affine map (FIPS 197, 5.1.1)."""
    exp, value = [0] * 255, 1
    for i in range(255):
        exp[i] = value
        value ^= (value << 1) ^ (0x11B if value & 0x80 else 0)
    log = {value: i for i, value in enumerate(exp)}
    inverses = [0] + [exp[-log[value] % 255] for value in range(1, 256)]
    out = []
    for inverse in inverses:
        turned = inverse * 0x101
        out.append((inverse ^ (turned >> 4) ^ (turned >> 5) ^ (turned >> 6) ^ (turned >> 7)) & 0xFF ^ 0x63)
    return bytes(out)


_SBOX = _sbox()


def round_keys(key: bytes) -> NDArray[np.uint8]:
    """The round keys of AES-128, u8[11, 16] (FIPS 197, 5.2)."""
    words = [key[i : i + 4] for i in range(0, 16, 4)]
    constant_ = 1
    while len(words) < 4 * (ROUNDS + 1):
        word = words[-1]
        if len(words) % 4 == 0:
            turned = bytes(_SBOX[byte] for byte in word[1:] + word[:1])
            word = bytes((turned[0] ^ constant_,)) + turned[1:]
            constant_ = (constant_ << 1) ^ (0x11B if constant_ & 0x80 else 0)
        words.append(bytes(a ^ b for a, b in zip(words[-4], word, strict=True)))
    return np.frombuffer(b"".join(words), np.uint8).reshape(ROUNDS + 1, 16)


def expand(key: bytes) -> NDArray[np.uint64]:
    """The schedule of a check's key, u64[KEY_WORDS].

    Args:
        key: 32 bytes, drawn at random for one check.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a check's key has {KEY_BYTES} bytes, not {len(key)}")
    raw = hashlib.shake_256(b"quoreduce check 1" + key).digest(32 + 18 * 8)
    schedules = [np.repeat(round_keys(half)[:, None, :], 4, axis=1).tobytes() for half in (raw[:16], raw[16:32])]
    schedule = np.frombuffer(b"".join((*schedules, raw)), np.uint64).copy()
    schedule[-2] |= np.uint64(1)  # the multiplier is odd
    return schedule
