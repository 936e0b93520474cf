"""LLVM intrinsics that the kernels share: what numpy indexing cannot say, or not fast enough.

Addresses are ``uint64``. A load or store here needs no alignment unless its docstring says so, and checks nothing: the
caller guarantees that every byte touched exists. All code is portable LLVM vector IR (it lowers to SSE2, AVX2, AVX-512
or NEON); nothing here names a CPU. Little-endian byte order is assumed and checked at import.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quoreduce_kernels.options import part

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("quoreduce_kernels needs a little-endian CPU")

I1, I4, I8, I32, I64, I128 = (ir.IntType(bits) for bits in (1, 4, 8, 32, 64, 128))
V16X8 = ir.VectorType(I8, 16)
V64X8 = ir.VectorType(I8, 64)
V2X64 = ir.VectorType(I64, 2)
V4X64 = ir.VectorType(I64, 4)

_U64 = types.uint64

# Java's StringTokenizer, which Hadoop's WordCount uses: space, tab, line feed, carriage return, form feed.
SEPARATORS = b" \t\n\r\f"

# Multipliers of the word hash (see words.hash64). The first has the byte 0x20 and the second the byte 0x0A, so that
# eight bytes of a word, which holds no separator, never cancel either: no factor of the product can be zero.
SALT_LOW = 0xA0761D6478BD2065
SALT_HIGH = 0xE7037ED1A00AB4DB


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any, align: int = 1) -> Any:
    value = builder.load(_pointer(builder, address, kind))
    value.align = align
    return value


def _store(builder: Any, value: Any, address: Any, align: int = 1) -> None:
    builder.store(value, _pointer(builder, address, value.type)).align = align


def _splat(kind: Any, count: int, value: int) -> Any:
    return ir.Constant(ir.VectorType(kind, count), [value] * count)


def _loader(bits: int, doc: str) -> Any:
    def load(_typing: Any, address: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = _load(builder, args[0], ir.IntType(bits))
            return value if bits == 64 else builder.zext(value, I64)

        return _U64(_U64), codegen

    load.__doc__ = doc
    load.__name__ = f"ld{bits}"
    return intrinsic(load)


def _storer(bits: int, doc: str) -> Any:
    def store(_typing: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = args[1] if bits == 64 else builder.trunc(args[1], ir.IntType(bits))
            _store(builder, value, args[0])
            return context.get_dummy_value()

        return types.void(_U64, _U64), codegen

    store.__doc__ = doc
    store.__name__ = f"st{bits}"
    return intrinsic(store)


ld64 = _loader(64, "The 8 bytes at an address, little-endian.")
ld32 = _loader(32, "The 4 bytes at an address, little-endian, widened to uint64.")
ld16 = _loader(16, "The 2 bytes at an address, little-endian, widened to uint64.")
ld8 = _loader(8, "The byte at an address, widened to uint64.")
st64 = _storer(64, "Store 8 bytes, little-endian.")
st32 = _storer(32, "Store the low 4 bytes of a value, little-endian.")
st16 = _storer(16, "Store the low 2 bytes of a value, little-endian.")
st8 = _storer(8, "Store the low byte of a value.")


def _copier(size: int) -> Any:
    """Copy of a fixed number of bytes: the widest vectors first, then what is left in powers of two."""
    pieces = []
    offset = 0
    for width in (64, 32, 16, 8, 4, 2, 1):
        while size - offset >= width:
            pieces.append((offset, width))
            offset += width

    def copy(_typing: Any, target: Any, source: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            target, source = args
            kinds = [ir.VectorType(I8, width) for _, width in pieces]
            at = [I64(offset) for offset, _ in pieces]
            values = [_load(builder, builder.add(source, at[i]), kinds[i]) for i in range(len(pieces))]
            for i, value in enumerate(values):
                _store(builder, value, builder.add(target, at[i]))
            return context.get_dummy_value()

        return types.void(_U64, _U64), codegen

    copy.__name__ = f"copy{size}"
    copy.__doc__ = f"Copy {size} bytes: copy{size}(target, source). Loads all before storing, so overlap is allowed."
    return intrinsic(copy)


copy8 = _copier(8)
copy16 = _copier(16)
copy32 = _copier(32)
copy100 = _copier(100)


@intrinsic
def address_of(_typing: Any, array: Any) -> Any:
    """Address of the first element of an array. The caller keeps the array alive while the address is in use."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        return builder.ptrtoint(context.make_array(kind)(context, builder, args[0]).data, I64)

    return _U64(array), codegen


@intrinsic
def cttz(_typing: Any, x: Any) -> Any:
    """Number of trailing zero bits; 64 for 0."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], I1(0))

    return _U64(_U64), codegen


@intrinsic
def ctlz(_typing: Any, x: Any) -> Any:
    """Number of leading zero bits; 64 for 0."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], I1(0))

    return _U64(_U64), codegen


@intrinsic
def popcount(_typing: Any, x: Any) -> Any:
    """Number of one bits."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return _U64(_U64), codegen


@intrinsic
def bswap(_typing: Any, x: Any) -> Any:
    """The 8 bytes in reverse: turns bytes loaded little-endian into a number that orders as memcmp does."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bswap(args[0])

    return _U64(_U64), codegen


def _product(builder: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """(low, high) halves of the 128-bit product."""
    product = builder.mul(builder.zext(x, I128), builder.zext(y, I128))
    return builder.trunc(product, I64), builder.trunc(builder.lshr(product, I128(64)), I64)


@intrinsic
def mulfold(_typing: Any, x: Any, y: Any) -> Any:
    """Low half xor high half of the 128-bit product x * y."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.xor(*_product(builder, args[0], args[1]))

    return _U64(_U64, _U64), codegen


@intrinsic
def mulhi(_typing: Any, x: Any, y: Any) -> Any:
    """High half of the 128-bit product: (x * y) >> 64."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _product(builder, args[0], args[1])[1]

    return _U64(_U64, _U64), codegen


@intrinsic
def prefetch(_typing: Any, address: Any) -> Any:
    """Ask for the cache line of an address, for reading. Any address is safe."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], I8)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(_U64), codegen


@intrinsic
def increment32(_typing: Any, address: Any) -> Any:
    """Add one to the aligned 4-byte counter at an address (it wraps)."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        value = _load(builder, args[0], I32, align=4)
        _store(builder, builder.add(value, I32(1)), args[0], align=4)
        return context.get_dummy_value()

    return types.void(_U64), codegen


@intrinsic
def separator_mask(_typing: Any, address: Any) -> Any:
    """Bit i is set when byte i of the 64 bytes at an address is a separator (SEPARATORS)."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        block = _load(builder, args[0], V64X8)
        mask = None
        for separator in SEPARATORS:
            hit = builder.icmp_unsigned("==", block, _splat(I8, 64, separator))
            mask = hit if mask is None else builder.or_(mask, hit)
        return builder.bitcast(mask, I64)

    return _U64(_U64), codegen


@intrinsic
def load_key(_typing: Any, source: Any, length: Any, target: Any) -> Any:
    """Make the 16-byte key of a word of ``length`` 1..15: its bytes, zeros, and the length in byte 15; return its hash.

    Reads 16 bytes at ``source`` whatever the length; stores to ``target``, which is aligned to 16. The hash is
    mulfold(low ^ SALT_LOW, high ^ SALT_HIGH) of the key's two halves. Other lengths give a key of no meaning.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, length, target = args
        undefined = ir.Constant(V16X8, ir.Undefined)
        length8 = builder.trunc(length, I8)
        lengths = builder.insert_element(undefined, length8, I32(0))
        lengths = builder.shuffle_vector(lengths, undefined, _splat(I32, 16, 0))
        inside = builder.icmp_unsigned("<", ir.Constant(V16X8, list(range(16))), lengths)
        word = builder.select(inside, _load(builder, source, V16X8), _splat(I8, 16, 0))
        key = builder.bitcast(builder.insert_element(word, length8, I32(15)), V2X64)
        _store(builder, key, target, align=16)
        low = builder.xor(builder.extract_element(key, I32(0)), I64(SALT_LOW))
        high = builder.xor(builder.extract_element(key, I32(1)), I64(SALT_HIGH))
        return builder.xor(*_product(builder, low, high))

    return _U64(_U64, _U64, _U64), codegen


@intrinsic
def probe_bucket(_typing: Any, bucket: Any, key: Any) -> Any:
    """Compare the key (16 bytes, aligned) with the 3 keys at the start of a bucket (64 bytes, aligned).

    Returns bit 0, 2 or 4 set for the first, second or third key, and 0 if there is none.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bucket, key = args
        one = _load(builder, key, V2X64, align=16)
        two = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, 4), [0, 1, 0, 1]))
        first = builder.icmp_unsigned("==", _load(builder, bucket, V4X64, align=32), two)
        third = builder.icmp_unsigned("==", _load(builder, builder.add(bucket, I64(32)), V2X64, align=16), one)
        halves = builder.or_(
            builder.zext(builder.bitcast(first, I4), I64),
            builder.shl(builder.zext(builder.bitcast(third, ir.IntType(2)), I64), I64(4)),
        )
        return builder.and_(builder.and_(halves, builder.lshr(halves, I64(1))), I64(0b010101))

    return _U64(_U64, _U64), codegen


@intrinsic
def byte_mask(_typing: Any, address: Any, byte: Any) -> Any:
    """Bit i is set when byte i of the 64 bytes at an address is ``byte``."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        block = _load(builder, args[0], V64X8)
        undefined = ir.Constant(V64X8, ir.Undefined)
        first = builder.insert_element(undefined, builder.trunc(args[1], I8), I32(0))
        wanted = builder.shuffle_vector(first, undefined, _splat(I32, 64, 0))
        return builder.bitcast(builder.icmp_unsigned("==", block, wanted), I64)

    return _U64(_U64, _U64), codegen


@intrinsic
def copy_memory(_typing: Any, target: Any, source: Any, length: Any) -> Any:
    """Copy any number of bytes that do not overlap: memcpy of the C library."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        target, source, length = args
        cgutils.raw_memcpy(builder, _pointer(builder, target, I8), _pointer(builder, source, I8), length, 1)
        return context.get_dummy_value()

    return types.void(_U64, _U64, _U64), codegen


@part
def bit_length(x):
    """Number of bits of a uint64 up to its highest set one; 0 for 0."""
    bits = 0
    while bits < 64 and (x >> np.uint64(bits)) != np.uint64(0):
        bits += 1
    return bits


@part
def find_byte(at, end, last, byte):
    """Address of the first ``byte`` in [at, end), or end. 64 bytes can be read at any address up to ``last``."""
    while at < end:
        if at <= last:
            mask = byte_mask(at, byte)
            if mask:
                return min(at + cttz(mask), end)
            at += np.uint64(64)
        else:
            if ld8(at) == byte:
                return at
            at += np.uint64(1)
    return end


@part
def last_block(at, end):
    """The last address at which 64 bytes before ``end`` can be read; 0 if there is none from ``at`` on."""
    return end - np.uint64(64) if end - at >= np.uint64(64) else np.uint64(0)
