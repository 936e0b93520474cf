"""AES-128, and separators by a compress instruction: what the kernels of checks cannot say in numpy.

Some pieces exist at several *levels*, named by what the CPU has to have, and give the same bytes at each:

========= ================================================== =====================================================
level     needs                                              AES
========= ================================================== =====================================================
vaes      x86-64, AVX-512 F, BW, VL, VBMI, VBMI2 and VAES    four blocks by one instruction a round
aes       x86-64 with AES-NI                                 one block by one instruction a round
portable  nothing                                            tables of 4 KiB, which FIPS 197 does not know
========= ================================================== =====================================================

LEVEL is the best that numba compiles for: under NUMBA_CPU_NAME=generic it is ``portable``, whatever the CPU. Addresses
are as in ``intrinsics``. Nothing here is shared with the kernels that count or sort, whose faults a check is to find.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from quoreduce_kernels.check_keys import LANES, NH, PIECES, ROUNDS
from quoreduce_kernels.intrinsics import I8, I32, I64, I128, V2X64, V16X8, V64X8, _load, _splat, _store, ld32, ld64
from quoreduce_kernels.options import part

LEVELS = ("portable", "aes", "vaes")
_NEEDS = {
    "vaes": {"+vaes", "+avx512f", "+avx512bw", "+avx512vl", "+avx512vbmi", "+avx512vbmi2"},
    "aes": {"+aes", "+sse2"},
}
_I1, _I4, _I16 = (ir.IntType(bits) for bits in (1, 4, 16))
_V8X64, _V32X16, _V4X16 = ir.VectorType(I64, 8), ir.VectorType(_I16, 32), ir.VectorType(_I16, 4)
_U64 = types.uint64
_U = np.uint64
# By low four bits: the separator that has them, else a byte that has others.
_BY_NIBBLE = [32, *[255] * 8, 9, 10, 255, 12, 13, 255, 0]


def level_of(triple: str, features: str) -> str:
    """The best level for a target: its triple, and its features as LLVM lists them, ``+aes,-avx,...``."""
    has = set(features.split(","))
    fit = [level for level in ("vaes", "aes") if triple.startswith("x86_64") and has >= _NEEDS[level]]
    return fit[0] if fit else "portable"


def _level_here() -> str:
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return level_of(triple, features)


LEVEL = _level_here()


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _vector(kind: Any, values: Any) -> Any:
    return ir.Constant(kind, list(values))


def _shuffle(builder: Any, a: Any, b: Any, picks: Any) -> Any:
    picks = list(picks)
    return builder.shuffle_vector(a, b, _vector(ir.VectorType(I32, len(picks)), picks))


def _spread(builder: Any, values: Any, count: int) -> Any:
    """A vector of ``count`` elements, the values in turn."""
    few = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        few = builder.insert_element(few, value, I32(i))
    return _shuffle(builder, few, few, [i % len(values) for i in range(count)])


def _aes(builder: Any, x: Any, keys: Any) -> Any:
    """AES-128 of a block (<2 x i64>) or of four (<8 x i64>) under the round keys at an address."""
    wide = x.type == _V8X64
    for i in range(ROUNDS + 1):
        key = _load(builder, builder.add(keys, I64(16 * i)), V2X64)
        key.set_metadata("invariant.load", builder.module.add_metadata([]))  # so that LLVM takes it out of loops
        key = _shuffle(builder, key, key, [0, 1] * 4) if wide else key
        name = f"llvm.x86.aesni.aesenc{'last' if i == ROUNDS else ''}{'.512' if wide else ''}"
        x = _call(builder, name, x.type, x, key) if i else builder.xor(x, key)
    return x


@intrinsic
def aes1_native(_typing: Any, low: Any, high: Any, keys: Any) -> Any:
    """(low, high) of the AES-128 of the block (low, high) under the round keys at an address. Needs AES-NI."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        block = _aes(builder, _spread(builder, args[:2], 2), args[2])
        halves = [builder.extract_element(block, I32(i)) for i in (0, 1)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(_U64, 2)(_U64, _U64, _U64), codegen


@intrinsic
def aes4_vaes(_typing: Any, source: Any, target: Any, keys: Any) -> Any:
    """Store the AES-128 of the four blocks at ``source`` at ``target``. Needs VAES."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, target, keys = args
        _store(builder, _aes(builder, _load(builder, source, _V8X64), keys), target)
        return context.get_dummy_value()

    return types.void(_U64, _U64, _U64), codegen


@part
def _entry(table, row, index):
    return ld32(table + _U(1024 * row) + (index << _U(2)))


@part
def _column(a, b, c, d, table):
    """A column after a full round but for its key, from the four columns that its rows come from."""
    byte = _U(255)
    x = _entry(table, 0, a & byte) ^ _entry(table, 1, (b >> _U(8)) & byte)
    return x ^ _entry(table, 2, (c >> _U(16)) & byte) ^ _entry(table, 3, d >> _U(24))


@part
def _last_column(a, b, c, d, table):
    """A column after the last round but for its key. The second byte of an entry of the first table is the S-box's."""
    byte, second = _U(255), _U(0xFF00)
    x = (_entry(table, 0, a & byte) & second) >> _U(8)
    x |= _entry(table, 0, (b >> _U(8)) & byte) & second
    x |= (_entry(table, 0, (c >> _U(16)) & byte) & second) << _U(8)
    return x | ((_entry(table, 0, d >> _U(24)) & second) << _U(16))


@part
def aes1_tables(low, high, keys, table):
    """(low, high) of the AES-128 of the block (low, high) under the round keys at an address, by the tables at one."""
    half, word = _U(0xFFFFFFFF), _U(32)
    low ^= ld64(keys)
    high ^= ld64(keys + _U(8))
    a, b, c, d = low & half, low >> word, high & half, high >> word
    for i in range(_U(1), _U(ROUNDS)):
        first, second = ld64(keys + _U(16) * i), ld64(keys + _U(16) * i + _U(8))
        e = _column(a, b, c, d, table) ^ (first & half)
        f = _column(b, c, d, a, table) ^ (first >> word)
        g = _column(c, d, a, b, table) ^ (second & half)
        h = _column(d, a, b, c, table) ^ (second >> word)
        a, b, c, d = e, f, g, h
    low = _last_column(a, b, c, d, table) | (_last_column(b, c, d, a, table) << word)
    high = _last_column(c, d, a, b, table) | (_last_column(d, a, b, c, table) << word)
    return low ^ ld64(keys + _U(16 * ROUNDS)), high ^ ld64(keys + _U(16 * ROUNDS + 8))


@intrinsic
def separators64(_typing: Any, address: Any) -> Any:
    """Bit i is set when byte i of the 64 bytes at an address is a separator: space, tab, LF, FF or CR."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        block = _load(builder, args[0], V64X8)
        near = builder.icmp_unsigned("<", builder.sub(block, _splat(I8, 64, 9)), _splat(I8, 64, 5))  # 9 to 13
        near = builder.and_(near, builder.icmp_unsigned("!=", block, _splat(I8, 64, 11)))
        return builder.bitcast(builder.or_(near, builder.icmp_unsigned("==", block, _splat(I8, 64, 32))), I64)

    return _U64(_U64), codegen


@intrinsic
def list64_compressed(_typing: Any, address: Any, target: Any, offset: Any) -> Any:
    """Store offset + i as u16 for each byte i of the 64 at an address that is a separator; return how many.

    Stores 128 bytes whatever their number. Needs AVX-512 VBMI2.
    """

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address, target, offset = args
        block = _load(builder, address, V64X8)
        table = _vector(V64X8, _BY_NIBBLE * 4)
        hit = builder.icmp_unsigned(
            "==", _call(builder, "llvm.x86.avx512.pshuf.b.512", V64X8, table, block), block
        )  # a byte of 128 or more looks up 0
        places = _call(
            builder, "llvm.x86.avx512.mask.compress.v64i8", V64X8, _vector(V64X8, range(64)), _splat(I8, 64, 0), hit
        )
        start = _spread(builder, [builder.trunc(offset, _I16)], 32)
        for half in (0, 32):
            some = builder.zext(_shuffle(builder, places, places, range(half, half + 32)), _V32X16)
            _store(builder, builder.add(some, start), builder.add(target, I64(2 * half)))
        return builder.ctpop(builder.bitcast(hit, I64))

    return _U64(_U64, _U64, _U64), codegen


@intrinsic
def list_longs32(_typing: Any, ends: Any, count: Any, begins: Any, lengths: Any) -> Any:
    """List begin and length, u16 each, of the words of 16 bytes or more among the next 32, but not beyond ``count``.

    They end at the offsets u16[count] at ``ends``, offset -1 is before it. Returns how many; reads and stores 64 bytes
    whatever their number. Needs AVX-512 VBMI2.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        ends, count, begins, lengths = args
        one = _splat(_I16, 32, 1)
        first = builder.add(_load(builder, builder.sub(ends, I64(2)), _V32X16), one)
        sizes = builder.sub(_load(builder, ends, _V32X16), first)
        longer = builder.icmp_unsigned(">", sizes, _splat(_I16, 32, 15))
        left = builder.select(builder.icmp_unsigned("<", count, I64(32)), count, I64(32))
        known = builder.trunc(builder.sub(builder.shl(I64(1), left), I64(1)), I32)
        found = builder.and_(builder.bitcast(longer, I32), known)
        mask = builder.bitcast(found, ir.VectorType(_I1, 32))
        for values, target in ((first, begins), (sizes, lengths)):
            few = _call(
                builder, "llvm.x86.avx512.mask.compress.v32i16", _V32X16, values, _splat(_I16, 32, 0), mask
            )  # fmt: skip
            _store(builder, few, target)
        return builder.zext(builder.ctpop(found), I64)

    return _U64(_U64, _U64, _U64, _U64), codegen


@intrinsic
def short_word(_typing: Any, source: Any, length: Any, target: Any) -> Any:
    """Store a word of ``length`` 1 to 15 as a block, filled up with the byte length - 1; return its (low, high), filled
    up with zeros, and a mask of separators in it. Reads 16 bytes.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, length, target = args
        raw = _load(builder, source, V16X8)
        size = _spread(builder, [builder.trunc(length, I8)], 16)
        inside = builder.icmp_unsigned("<", _vector(V16X8, range(16)), size)
        _store(builder, builder.select(inside, raw, builder.sub(size, _splat(I8, 16, 1))), target)
        near = builder.icmp_unsigned("<", builder.sub(raw, _splat(I8, 16, 9)), _splat(I8, 16, 5))
        near = builder.and_(near, builder.icmp_unsigned("!=", raw, _splat(I8, 16, 11)))
        bad = builder.or_(near, builder.icmp_unsigned("==", raw, _splat(I8, 16, 32)))
        bad = builder.zext(builder.bitcast(builder.and_(bad, inside), _I16), I64)
        word = builder.bitcast(builder.select(inside, raw, _splat(I8, 16, 0)), V2X64)
        halves = [builder.extract_element(word, I32(i)) for i in (0, 1)]
        return context.make_tuple(builder, signature.return_type, [*halves, bad])

    return types.UniTuple(_U64, 3)(_U64, _U64, _U64), codegen


def _four_lengths(builder: Any, ends: Any) -> tuple[Any, Any]:
    """(lengths, last) of the four words before the ends: <4 x i16>; last = length - 1 up to 255 in each byte of the
    word's lane, <64 x i8>, 255 for an empty word.
    """
    before = _load(builder, builder.sub(ends, I64(2)), _V4X16)
    lengths = builder.sub(builder.sub(_load(builder, ends, _V4X16), before), _splat(_I16, 4, 1))
    most = _splat(_I16, 4, 255)
    lasts = builder.sub(lengths, _splat(_I16, 4, 1))
    lasts = builder.select(builder.icmp_unsigned("<", lasts, most), lasts, most)
    wide = builder.bitcast(_shuffle(builder, lasts, lasts, [0, 1, 2, 3] * 8), V64X8)
    picks = _vector(V64X8, [2 * (i // 16) for i in range(64)])
    return lengths, _call(builder, "llvm.x86.avx512.permvar.qi.512", V64X8, wide, picks)


@intrinsic
def add_four_words(_typing: Any, ends: Any, origin: Any, keys: Any, sums: Any) -> Any:
    """Add AES of the four words that end at the offsets u16[4] at ``ends``, as blocks, to the sums u64[4, 2].

    Word i lies between the offsets i - 1 and i, counted from ``origin``; offset -1 is before ``ends``. Words of other
    lengths than 1 to 15 add nothing. Returns bit i for a word that was added, bit 4 + i for one of 16 bytes or more.
    Reads 16 bytes from the begin of each word. Needs the level ``vaes``.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        ends, origin, keys, sums = args
        lengths, last = _four_lengths(builder, ends)
        words = []
        for i in range(4):
            before = builder.zext(_load(builder, builder.add(ends, I64(2 * i - 2)), _I16), I64)
            words.append(_load(builder, builder.add(builder.add(origin, I64(1)), before), V16X8))
        pairs = [_shuffle(builder, words[i], words[i + 1], range(32)) for i in (0, 2)]
        block = _shuffle(builder, pairs[0], pairs[1], range(64))
        inside = builder.icmp_unsigned("<=", _vector(V64X8, list(range(16)) * 4), last)
        block = builder.bitcast(builder.select(inside, block, last), _V8X64)
        fits = builder.icmp_unsigned("<=", builder.bitcast(last, _V8X64), _splat(I64, 8, 0x0E0E0E0E0E0E0E0E))
        hashes = builder.select(fits, _aes(builder, block, keys), _splat(I64, 8, 0))
        _store(builder, builder.add(_load(builder, sums, _V8X64), hashes), sums)
        longer = builder.icmp_unsigned(">", lengths, _splat(_I16, 4, 15))
        added = builder.icmp_unsigned("<", builder.sub(lengths, _splat(_I16, 4, 1)), _splat(_I16, 4, 15))
        added, longer = (builder.zext(builder.bitcast(bits, _I4), I64) for bits in (added, longer))
        return builder.or_(added, builder.shl(longer, I64(4)))

    return _U64(_U64, _U64, _U64, _U64), codegen


def _placed(builder: Any, address: Any, length: Any, number: Any, keys: Any) -> Any:
    """Up to four pieces, filled up with zeros, each with its number of steps added: <8 x i64>."""
    bits = builder.lshr(I64(2**64 - 1), builder.sub(I64(64), length))
    mask = builder.bitcast(bits, ir.VectorType(_I1, 64))
    pointer = builder.inttoptr(address, V64X8.as_pointer())
    raw = _call(builder, "llvm.masked.load.v64i8.p0", V64X8, pointer, I32(1), mask, _splat(I8, 64, 0))
    step = [_load(builder, builder.add(keys, I64(LANES + 16 + 8 * i)), I64) for i in (0, 1)]
    steps = _spread(builder, [builder.mul(number, half) for half in step], 8)
    steps = builder.add(steps, _load(builder, builder.add(keys, I64(LANES)), _V8X64))
    return builder.add(builder.bitcast(raw, _V8X64), steps)


def _folded(builder: Any, block: Any, length: Any) -> Any:
    """The sum of the pieces that so many bytes have: <2 x i64>."""
    pieces = builder.lshr(builder.add(length, I64(15)), I64(4))
    # Not as a shift of 255: LLVM makes that one of 8 bits, which waits for the AES of the strip before.
    used = builder.sub(builder.shl(I64(1), builder.shl(pieces, I64(1))), I64(1))
    used = builder.bitcast(builder.trunc(used, I8), ir.VectorType(_I1, 8))
    block = builder.select(used, block, _splat(I64, 8, 0))
    four = builder.add(*(_shuffle(builder, block, block, range(i, i + 4)) for i in (0, 4)))
    return builder.add(*(_shuffle(builder, four, four, range(i, i + 2)) for i in (0, 2)))


@intrinsic
def sum_strip(_typing: Any, address: Any, length: Any, number: Any, keys: Any) -> Any:
    """(low, high) of the sum of AES_PIECES(piece i + i S) over up to four pieces: see ``check_hash``.

    length is 1 to 64; number: of the first piece. Reads nothing but the bytes. Needs the level ``vaes``.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, length, number, keys = args
        block = _aes(builder, _placed(builder, address, length, number, keys), builder.add(keys, I64(PIECES)))
        two = _folded(builder, block, length)
        halves = [builder.extract_element(two, I32(i)) for i in (0, 1)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(_U64, 2)(_U64, _U64, _U64, _U64), codegen


@intrinsic
def place_strip(_typing: Any, address: Any, length: Any, number: Any, keys: Any, target: Any) -> Any:
    """The first half of ``sum_strip``, which AES does not follow at once: store four blocks, to be encrypted."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _store(builder, _placed(builder, *args[:4]), args[4])
        return context.get_dummy_value()

    return types.void(_U64, _U64, _U64, _U64, _U64), codegen


@intrinsic
def fold_strip(_typing: Any, blocks: Any, length: Any, more: Any, target: Any) -> Any:
    """The second half: store the sum of the blocks that ``length`` bytes have, plus (more, 0), as a block.

    Reads 64 bytes.
    """

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        blocks, length, more, target = args
        two = _folded(builder, _load(builder, blocks, _V8X64), length)
        two = builder.add(two, builder.insert_element(_splat(I64, 2, 0), more, I32(0)))
        _store(builder, two, target)
        return context.get_dummy_value()

    return types.void(_U64, _U64, _U64, _U64), codegen


@intrinsic
def nh_record(_typing: Any, address: Any, place: Any, keys: Any, target: Any) -> Any:
    """Store NH of the 100 bytes at an address, 4 zero bytes and the place (8 bytes) as 16 bytes at ``target``."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address, place, keys, target = args
        words = [_load(builder, builder.add(address, I64(at)), I64) for at in range(0, 96, 8)]
        words += [builder.zext(_load(builder, builder.add(address, I64(96)), I32), I64), place]
        total = I128(0)
        for i in range(0, len(words), 2):
            factors = []
            for k in (i, i + 1):
                word = builder.add(words[k], _load(builder, builder.add(keys, I64(NH + 8 * k)), I64))
                factors.append(builder.zext(word, I128))
            total = builder.add(total, builder.mul(*factors))
        _store(builder, total, target)
        return context.get_dummy_value()

    return types.void(_U64, _U64, _U64, _U64), codegen
