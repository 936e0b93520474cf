"""BLAKE3 of large buffers, 16 chunks at a time: the same digest as the library's, faster where data comes from memory.

The input is cut into chunks of 1024 bytes, whose chaining values (CVs) are the leaves of a binary tree (BLAKE3
specification, section 2). One call of the compression function works on 16 nodes, one in each 32-bit lane of a 512-bit
vector; the next 64 KiB are prefetched in order meanwhile, which is what the library lacks (4.7 against 5.5 GB/s from
memory on a Zen 4 core).

A *group* is 256 chunks (256 KiB): its subtree is compressed in vectors up to the two children of its top, the *pair*.
The pair waits until more input comes: only then it is known not to be the root, is compressed, and goes to the stack of
subtrees.

Without AVX-512 the library is the faster one: see :data:`VECTORS`.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import ld8, ld32
from quoreduce_kernels.options import kernel, part

U8Array = NDArray[np.uint8]

VECTORS = bool(llvm.get_host_cpu_features().get("avx512f", False))
"""Whether this CPU has the 512-bit vectors that make this kernel worth its while."""

CHUNK_BYTES = 1024
GROUP_CHUNKS = 256
GROUP_BYTES = GROUP_CHUNKS * CHUNK_BYTES
STEP_BYTES = 16 * CHUNK_BYTES
WORD_STRIDE = 4 * GROUP_CHUNKS
STACK_MAX = 64
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8

_U = np.uint64
_U32 = np.uint32
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_LANES = 16
_V = ir.VectorType(_I32, _LANES)
_UNDEFINED = ir.Constant(_V, ir.Undefined)


def _mask(lanes: list[int]) -> Any:
    return ir.Constant(_V, lanes)


def _all(value: int) -> Any:
    return ir.Constant(_V, [value] * _LANES)


def _broadcast(builder: Any, value: Any) -> Any:
    one = builder.insert_element(_UNDEFINED, value, _I32(0))
    return builder.shuffle_vector(one, _UNDEFINED, _all(0))


def _rotate(builder: Any, value: Any, bits: int) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_V, [_V, _V, _V]), "llvm.fshr.v16i32")
    return builder.call(function, [value, value, _all(bits)])


def _mix(b: Any, v: list[Any], at: tuple[int, int, int, int], x: Any, y: Any) -> None:
    """The function G of the specification, on columns or diagonals ``at`` of the state."""
    i, j, k, n = at
    for word, first, second in ((x, 16, 12), (y, 8, 7)):
        v[i] = b.add(b.add(v[i], v[j]), word)
        v[n] = _rotate(b, b.xor(v[n], v[i]), first)
        v[k] = b.add(v[k], v[n])
        v[j] = _rotate(b, b.xor(v[j], v[k]), second)


def _compress(b: Any, h: list[Any], m: list[Any], tail: list[Any]) -> list[Any]:
    """Seven rounds over 16 nodes; h: 8 words of CV, m: 16 words of message, tail: counter low and high, length,
    flags.
    """
    v = [*h, *(_all(word) for word in IV[:4]), *tail]
    order = list(range(16))
    for _ in range(7):
        for i in range(4):
            _mix(b, v, (i, 4 + i, 8 + i, 12 + i), m[order[2 * i]], m[order[2 * i + 1]])
        for i in range(4):
            at = (i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
            _mix(b, v, at, m[order[8 + 2 * i]], m[order[9 + 2 * i]])
        order = [order[p] for p in PERMUTATION]
    return [b.xor(v[i], v[i + 8]) for i in range(8)]


def _transpose(b: Any, rows: list[Any]) -> list[Any]:
    """16 rows of 16 words -> 16 columns, in four stages of two-vector shuffles."""

    def shuffle(x: Any, y: Any, lanes: list[int]) -> Any:
        return b.shuffle_vector(x, y, _mask(lanes))

    quads = [4 * q for q in range(4)]
    low32 = [lane for o in quads for lane in (o, 16 + o, o + 1, 17 + o)]
    high32 = [lane for o in quads for lane in (o + 2, 18 + o, o + 3, 19 + o)]
    low64 = [lane for o in quads for lane in (o, o + 1, 16 + o, 17 + o)]
    high64 = [lane for o in quads for lane in (o + 2, o + 3, 18 + o, 19 + o)]
    even = [lane for o in (0, 8, 16, 24) for lane in range(o, o + 4)]
    odd = [lane + 4 for lane in even]
    pairs = [shuffle(rows[i], rows[i + 1], lanes) for i in range(0, 16, 2) for lanes in (low32, high32)]
    fours = [
        shuffle(pairs[i + j], pairs[i + j + 2], lanes)
        for i in range(0, 16, 4)
        for j in (0, 1)
        for lanes in (low64, high64)
    ]
    columns: list[Any] = [None] * 16
    for j in range(4):
        top = [shuffle(fours[j], fours[4 + j], lanes) for lanes in (even, odd)]
        bottom = [shuffle(fours[8 + j], fours[12 + j], lanes) for lanes in (even, odd)]
        for half in (0, 1):
            columns[j + 4 * half] = shuffle(top[half], bottom[half], even)
            columns[j + 4 * half + 8] = shuffle(top[half], bottom[half], odd)
    return columns


def _load(b: Any, address: Any) -> Any:
    value = b.load(b.inttoptr(address, _V.as_pointer()))
    value.align = 1
    return value


def _store(b: Any, value: Any, address: Any) -> None:
    store = b.store(value, b.inttoptr(address, _V.as_pointer()))
    store.align = 1


def _prefetch(b: Any, address: Any) -> None:
    pointer = _I8.as_pointer()
    function = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32]), "llvm.prefetch.p0"
    )
    b.call(function, [b.inttoptr(address, pointer), _I32(0), _I32(3), _I32(1)])


@intrinsic
def chunks16(_typing: Any, data: Any, counter: Any, out: Any) -> Any:
    """CVs of the 16 whole chunks at address data; counter: number of the first, a multiple of 16; word w of CV i goes
    to u32 [w, i] of an array u32[8, 256] at address out.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        data, counter, out = args
        low = b.add(_broadcast(b, b.trunc(counter, _I32)), _mask(list(range(_LANES))))
        high = _broadcast(b, b.trunc(b.lshr(counter, _I64(32)), _I32))
        cv = [cgutils.alloca_once_value(b, _all(word)) for word in IV]
        with cgutils.for_range(b, ir.Constant(_I64, 16)) as block:
            at = b.add(data, b.shl(block.index, _I64(6)))
            ahead = b.add(b.add(data, _I64(2 * 16 * CHUNK_BYTES)), b.shl(block.index, _I64(10)))
            rows = []
            for i in range(_LANES):
                rows.append(_load(b, b.add(at, _I64(CHUNK_BYTES * i))))
                _prefetch(b, b.add(ahead, _I64(64 * i)))
            start = b.zext(b.icmp_unsigned("==", block.index, _I64(0)), _I32)
            end = b.shl(b.zext(b.icmp_unsigned("==", block.index, _I64(15)), _I32), _I32(1))
            tail = [low, high, _all(64), _broadcast(b, b.or_(start, end))]
            words = _compress(b, [b.load(word) for word in cv], _transpose(b, rows), tail)
            for word, value in zip(cv, words, strict=True):
                b.store(value, word)
        for w in range(8):
            _store(b, b.load(cv[w]), b.add(out, _I64(WORD_STRIDE * w)))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


@intrinsic
def parents16(_typing: Any, source: Any, out: Any) -> Any:
    """CVs of the parents of 32 neighbouring nodes; arrays as in chunks16."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source, out = args
        left, right = [], []
        for w in range(8):
            x, y = (_load(b, b.add(source, _I64(WORD_STRIDE * w + 64 * half))) for half in (0, 1))
            left.append(b.shuffle_vector(x, y, _mask(list(range(0, 32, 2)))))
            right.append(b.shuffle_vector(x, y, _mask(list(range(1, 32, 2)))))
        tail = [_all(0), _all(0), _all(64), _all(PARENT)]
        words = _compress(b, [_all(word) for word in IV], left + right, tail)
        for w in range(8):
            _store(b, words[w], b.add(out, _I64(WORD_STRIDE * w)))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


def _constants() -> NDArray[np.uint32]:
    """Return u32[120]: for each of 7 rounds which of 16 message words is taken where, and then the 8 words of IV."""
    order = list(range(16))
    rounds: list[int] = []
    for _ in range(7):
        rounds += order
        order = [order[p] for p in PERMUTATION]
    return np.array([*rounds, *IV], np.uint32)


CONSTANTS = _constants()


@part
def _rotate32(x, bits):
    return _U32((x >> _U32(bits)) | (x << _U32(32 - bits)))


@part
def _quarter(v, i, j, k, n, x, y):
    v[i] = _U32(v[i] + v[j] + x)
    v[n] = _rotate32(v[n] ^ v[i], 16)
    v[k] = _U32(v[k] + v[n])
    v[j] = _rotate32(v[j] ^ v[k], 12)
    v[i] = _U32(v[i] + v[j] + y)
    v[n] = _rotate32(v[n] ^ v[i], 8)
    v[k] = _U32(v[k] + v[n])
    v[j] = _rotate32(v[j] ^ v[k], 7)


@kernel("void(u4[::1], u4[::1], u8, u4, u4, u4[::1], u4[::1])")
def _compress_one(h, m, counter, length, flags, constants, out):
    """One node: CV h u32[8], message m u32[16], CONSTANTS, result out u32[8], which may be h."""
    v = np.empty(16, np.uint32)
    for i in range(8):
        v[i] = h[i]
    for i in range(4):
        v[8 + i] = constants[112 + i]
    v[12] = _U32(counter & _U(0xFFFFFFFF))
    v[13] = _U32(counter >> _U(32))
    v[14] = length
    v[15] = flags
    for r in range(0, 112, 16):
        for i in range(4):
            _quarter(v, i, 4 + i, 8 + i, 12 + i, m[constants[r + 2 * i]], m[constants[r + 2 * i + 1]])
        for i in range(4):
            x, y = m[constants[r + 8 + 2 * i]], m[constants[r + 9 + 2 * i]]
            _quarter(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, x, y)
    for i in range(8):
        out[i] = v[i] ^ v[i + 8]


@part
def _push(cv, total, stack, depth, constants):
    """Add the CV of a finished subtree and merge complete pairs; total: subtrees of this size so far; return the new
    depth.
    """
    while total & _U(1) == _U(0):
        depth -= 1
        pair = np.empty(16, np.uint32)
        pair[:8] = stack[depth]
        pair[8:] = cv
        _compress_one(constants[112:], pair, _U(0), _U32(64), _U32(PARENT), constants, cv)
        total >>= _U(1)
    stack[depth] = cv
    return depth + 1


@part
def _last_chunk(data, size, number, root, constants, cv):
    """CV (or digest, if root) of a chunk of size bytes, 0 to 1024, at address data."""
    m = np.empty(16, np.uint32)
    block = np.empty(64, np.uint8)
    cv[:] = constants[112:]
    blocks = max(1, (size + 63) // 64)
    for k in range(blocks):
        used = min(64, size - 64 * k)
        block[:] = 0
        for i in range(used):
            block[i] = ld8(data + _U(64 * k + i))
        for i in range(16):
            m[i] = _U32(ld32(_U(block.ctypes.data) + _U(4 * i)))
        flags = CHUNK_START if k == 0 else 0
        if k == blocks - 1:
            flags |= CHUNK_END | (ROOT if root else 0)
        _compress_one(cv, m, number, _U32(used), _U32(flags), constants, cv)


@part
def _climb(nodes, ping, pong):
    """Replace the CVs of neighbours in ping by their parents' until two are left; pong is spare; both u32[8, 256]."""
    a, b = _U(ping.ctypes.data), _U(pong.ctypes.data)
    while nodes > 2:
        for i in range(0, nodes, 32):
            parents16(a + _U(4 * i), b + _U(2 * i))
        a, b = b, a
        nodes //= 2
    return a


@part
def _read_pair(address, pair):
    """The first two CVs of an array u32[8, 256] as the message u32[16] of their parent."""
    for w in range(8):
        both = address + _U(WORD_STRIDE * w)
        pair[w] = _U32(ld32(both))
        pair[8 + w] = _U32(ld32(both + _U(4)))


@part
def _push_pair(pair, total, stack, depth, constants):
    """Compress a pair that is not the root and push it; total: subtrees of its size so far, with it."""
    cv = np.empty(8, np.uint32)
    _compress_one(constants[112:], pair, _U(0), _U32(64), _U32(PARENT), constants, cv)
    return _push(cv, total, stack, depth, constants)


@kernel("i8(u8, i8, u8, u4[:, ::1], i8, u4[::1], u4[::1])")
def _absorb(data, groups, first, stack, depth, pair, constants):
    """Compress whole groups at address data, the first of which is group number first.

    pair, u32[16], is that of group first - 1 (if first > 0), then of the last one here. Returns the stack's new depth.
    """
    ping = np.empty((8, GROUP_CHUNKS), np.uint32)
    pong = np.empty((8, GROUP_CHUNKS), np.uint32)
    for g in range(groups):
        number = first + _U(g)
        if number > _U(0):
            depth = _push_pair(pair, number, stack, depth, constants)
        for i in range(0, GROUP_CHUNKS, 16):
            at = data + _U(g * GROUP_BYTES + i * CHUNK_BYTES)
            chunks16(at, number * _U(GROUP_CHUNKS) + _U(i), _U(ping.ctypes.data) + _U(4 * i))
        _read_pair(_climb(GROUP_CHUNKS, ping, pong), pair)
    return depth


@part
def _push_steps(data, size, first, stack, depth, ping, pong, constants):
    """Push the steps of 16 chunks, and of the rest the chunks, that are not the last of size bytes; return (chunks,
    depth).
    """
    cv = np.empty(8, np.uint32)
    pair = np.empty(16, np.uint32)
    done = 0
    last = (size - 1) // CHUNK_BYTES
    while done < last:
        chunks16(data + _U(done * CHUNK_BYTES), first + _U(done), _U(ping.ctypes.data))
        if last - done >= 16:
            _read_pair(_climb(16, ping, pong), pair)
            done += 16
            depth = _push_pair(pair, (first + _U(done)) >> _U(4), stack, depth, constants)
        else:
            for lane in range(last - done):
                cv[:] = ping[:, lane]
                depth = _push(cv, first + _U(done + lane + 1), stack, depth, constants)
            done = last
    return last, depth


@kernel("void(u8, i8, u8, u4[:, ::1], i8, u4[::1], u4[::1], u4[::1])")
def _finish(data, size, first, stack, depth, pair, constants, out):
    """Digest: the last size bytes at address data (with STEP_BYTES readable after them), from chunk number first on."""
    ping = np.empty((8, GROUP_CHUNKS), np.uint32)
    pong = np.empty((8, GROUP_CHUNKS), np.uint32)
    cv = np.empty(8, np.uint32)
    if size > 0 or first == _U(0):
        if first > _U(0):
            depth = _push_pair(pair, first // _U(GROUP_CHUNKS), stack, depth, constants)
        done, depth = _push_steps(data, max(size, 1), first, stack, depth, ping, pong, constants)
        _last_chunk(
            data + _U(done * CHUNK_BYTES), size - done * CHUNK_BYTES, first + _U(done), depth == 0, constants, cv
        )
    else:
        flags = PARENT | (0 if depth else ROOT)
        _compress_one(constants[112:], pair, _U(0), _U32(64), _U32(flags), constants, cv)
    while depth > 0:
        depth -= 1
        pair[:8] = stack[depth]
        pair[8:] = cv
        flags = PARENT | (0 if depth else ROOT)
        _compress_one(constants[112:], pair, _U(0), _U32(64), _U32(flags), constants, cv)
    out[:] = cv


class Blake3:
    """A streaming BLAKE3-256; ``update`` takes contiguous bytes or u8 arrays of any length."""

    __slots__ = ("_depth", "_groups", "_pair", "_rest", "_size", "_stack")

    def __init__(self) -> None:
        self._stack = np.empty((STACK_MAX, 8), np.uint32)
        self._depth = 0
        self._groups = 0
        self._pair = np.empty(16, np.uint32)
        self._rest: U8Array | None = None
        self._size = 0

    def update(self, data: Any, /) -> None:
        """Add ``data``."""
        view = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
        if view.dtype != np.uint8 or not view.flags.c_contiguous:
            raise ValueError(f"BLAKE3 needs contiguous bytes, not {view.dtype}{view.shape}")
        view = view.reshape(-1)
        if self._size:
            view = self._fill(view)
        groups = view.size // GROUP_BYTES if not self._size else 0
        if groups:
            self._take(view, groups)
            view = view[groups * GROUP_BYTES :]
        if view.size:
            self._fill(view)

    def _fill(self, view: U8Array) -> U8Array:
        """Keep bytes until they are a group; return those that do not belong to it."""
        if self._rest is None:
            self._rest = np.empty(GROUP_BYTES + STEP_BYTES, np.uint8)
        taken = min(GROUP_BYTES - self._size, view.size)
        self._rest[self._size : self._size + taken] = view[:taken]
        self._size += taken
        if self._size == GROUP_BYTES:
            self._take(self._rest, 1)
            self._size = 0
        return view[taken:]

    def _take(self, data: U8Array, groups: int) -> None:
        address = data.ctypes.data
        self._depth = int(_absorb(address, groups, self._groups, self._stack, self._depth, self._pair, CONSTANTS))
        self._groups += groups

    def digest(self) -> bytes:
        """Return the 32-byte digest of all bytes so far; more may be added afterwards."""
        out = np.empty(8, np.uint32)
        rest = self._rest if self._rest is not None else np.empty(STEP_BYTES, np.uint8)
        stack, pair = self._stack.copy(), self._pair.copy()
        first = self._groups * GROUP_CHUNKS
        _finish(rest.ctypes.data, self._size, first, stack, self._depth, pair, CONSTANTS, out)
        return out.astype("<u4").tobytes()
