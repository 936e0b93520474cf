"""What known-answer tests compute: every kernel, on data that a seed makes, its growth and its long keys too (R11).

Each case imports the kernels that it tests, and no others: a worker need not load those that its job has no use for.
What comes out is as bytes; the slow twins in tests/protocol/test_selftest.py give the same.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINES, WORDS_A_LINE, RECORDS, SPLITS = 400, 12, 400, 5
BLAKE3_LENGTHS = (
    0,
    1,
    63,
    64,
    65,
    1023,
    1024,
    1025,
    2048,
    2049,
    16384,
    31744,
    102400,
    300001,
)  # to 102400: official vectors
KEY = b"known-answer-key"
CHECK_KEY = b"known-answer-key".ljust(32, b".")
PIECE_RECORDS = 64
SHORT_WORDS, LONG_WORDS = 2200, 1050  # more than a new table has room for
CHUNK_BYTES = 777
HASHED = 34  # lengths, from 0
KEPT = ((100, 33.3), (37, 250.0))  # records seen, percent
GRID_WORDS = tuple(b"abcdefghijklmno"[: 3 + i % 13] + b"%c" % (65 + i) for i in range(20) if i % 13 < 12)
GRID_RANGES, GRID_BYTES, GRID_STREAM = (1, 3, 0, 5), 6000, 7
TEXT_BYTES, TEXT_SEED, TEXT_CHUNK, VOCABULARY = 3000, 5, 2, 50
GENERATED, KINDS = 20, ("binary", "ascii", "teragen")
SYNC = b"sixteen-sync-mark"[:16]
FORMS = (-1, -2, 8)  # Text, BytesWritable, values of 8 bytes
Bytes = NDArray[np.uint8]
Columns = tuple[NDArray[np.int64], Bytes, NDArray[np.int64], Bytes]


def numbers(stream: int, count: int) -> NDArray[np.uint64]:
    """Pseudo-random numbers u64[count] (splitmix64)."""
    u = np.uint64
    z = np.arange(1, count + 1, dtype=u) * u(0x9E3779B97F4A7C15) + u(stream)
    z = (z ^ (z >> u(30))) * u(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> u(27))) * u(0x94D049BB133111EB)
    return z ^ (z >> u(31))


@functools.cache
def text() -> Bytes:
    """Lines of words; the first word of a line is a key. Words repeat, and are of 1 to 24 letters."""
    draws = numbers(1, LINES * WORDS_A_LINE).tolist()
    words = [b"abcdefghijklmnopqrstuvwx"[: 1 + n % 24] + b"%d" % (n >> 60) for n in draws]
    lines = [
        b"\t".join((words[i], b" ".join(words[i + 1 : i + WORDS_A_LINE]))) for i in range(0, len(words), WORDS_A_LINE)
    ]
    return np.frombuffer(b"\n".join(lines) + b"\n", np.uint8)


@functools.cache
def records() -> Bytes:
    """Sort records u8[n, 100]; some keys are equal, or equal but for their end."""
    data = numbers(2, RECORDS * 13).view(np.uint8)[: RECORDS * 100].reshape(RECORDS, 100).copy()
    data[::5, :10] = data[0, :10]
    data[::7, :8] = data[1, :8]
    return data


@functools.cache
def splits() -> Bytes:
    """Keys u8[SPLITS, 10] that cut the records, in order."""
    keys = sorted(bytes(key) for key in records()[1::70, :10])[:SPLITS]
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 10)


@functools.cache
def many_words() -> Bytes:
    """A text of more different short and long words than a table begins with, and a long word under way at the end."""
    words = [b"w%x" % n for n in numbers(5, SHORT_WORDS).tolist()]
    words = [word[: 2 + n % 10] + b"%d" % n for n, word in enumerate(words)]
    longs = [b"a-long-word-%x-" % n * (1 + n % 3) + b"%d" % i for i, n in enumerate(numbers(6, LONG_WORDS).tolist())]
    return np.frombuffer(b" ".join(words + longs + words[::3] + longs[::5]) + b"\n" + b"endless" * 60, np.uint8)


@functools.cache
def payloads(form: int) -> list[bytes]:
    """Keys or values of a form: of 0 to 300 bytes, or of the bytes that the form says."""
    lengths = [form if form >= 0 else n % 301 for n in numbers(8, 150).tolist()]
    return [bytes(numbers(9 + i, 40).view(np.uint8)[:length]) for i, length in enumerate(lengths)]


def column(values: Sequence[bytes]) -> tuple[NDArray[np.int64], Bytes]:
    """Offsets i64[n + 1] and data of a column."""
    return np.cumsum([0, *map(len, values)], dtype=np.int64), np.frombuffer(b"".join(values), np.uint8)


@functools.cache
def sequence_records() -> Bytes:
    """Records of a SequenceFile without blocks, with a sync escape among them."""
    raw = []
    for i, (key, value) in enumerate(zip(payloads(-1), payloads(-2), strict=True)):
        raw += [b"\xff" * 4 + SYNC] if i == 50 else []
        raw.append((len(key) + len(value)).to_bytes(4, "big") + len(key).to_bytes(4, "big") + key + value)
    return np.frombuffer(b"".join(raw), np.uint8)


def _joined(arrays: Sequence[NDArray[Any]]) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


@functools.cache
def _pattern() -> Bytes:
    return (np.arange(max(BLAKE3_LENGTHS)) % 251).astype(np.uint8)


def _blake3() -> bytes:
    from quoreduce_kernels.blake3 import Blake3

    digests = []
    for length in BLAKE3_LENGTHS:
        state = Blake3()
        state.update(_pattern()[:length])
        digests.append(state.digest())
    return b"".join(digests)


def _runs(counter: Any) -> Iterator[tuple[NDArray[np.int64], Bytes, NDArray[np.uint64]]]:
    for r, (entries, nbytes) in enumerate(zip(*counter.partition_sizes(4), strict=True)):
        run = np.empty(entries + 1, np.int64), np.empty(nbytes, np.uint8), np.empty(entries, np.uint64)
        counter.fill(r, *run)
        yield run


@functools.cache
def _counter() -> Any:
    from quoreduce_kernels.words import WordCounter

    return WordCounter()


def _counted(counter: Any, data: Bytes) -> list[tuple[NDArray[np.int64], Bytes, NDArray[np.uint64]]]:
    counter.count(data)
    return list(_runs(counter))


def _words() -> bytes:
    return b"".join(_joined(run) for run in _counted(_counter(), text()))


def _counts() -> bytes:
    from quoreduce_kernels import words

    return words.format_counts(*words.merge_counts(_counted(_counter(), text()))).tobytes()


def _growth() -> bytes:
    """Tables that grow while words are counted and merged; and counts of more than 2^31, which are folded, and then
    grow.
    """
    from quoreduce_kernels import word_tables, words

    counter = words.WordCounter()
    runs = _counted(counter, many_words())
    merged = words.format_counts(*words.merge_counts(runs)).tobytes()
    counter = words.WordCounter()
    counter.count(text())
    table = counter._table
    counts = table._buckets.view(np.uint32).reshape(-1, 16)[:, 12:15]
    counts[counts > 0] |= 1 << 31
    word_tables.fold_counts(table.state)
    table.make_room(int(table.state["short_words_max"]), 0)
    counter._ranks, counter._references = table.order(by_hash=True)
    return b"".join(_joined(run) for run in runs) + merged + b"".join(_joined(run) for run in _runs(counter))


def _hashes() -> bytes:
    from quoreduce_kernels.words import hash64

    return b"".join(hash64(text()[:n].tobytes()).to_bytes(8, "little") for n in range(HASHED))


def _partition() -> bytes:
    from quoreduce_kernels import records as sorting

    ids, counts = sorting.plan_partition(records(), splits())
    targets = [np.empty(count * 100, np.uint8) for count in counts]
    sorting.scatter(records(), ids, targets)
    return _joined(targets)


def _sorted(runs: Sequence[Bytes], piece: int | None = None) -> Bytes:
    from quoreduce_kernels.records import RunSorter

    sorter = RunSorter() if piece is None else RunSorter(piece)
    return sorter.gather(0, sorter.sort(runs))


def _sort() -> bytes:
    return _sorted([records()[: RECORDS // 2], records()[RECORDS // 2 :]]).tobytes()


def _merge() -> bytes:
    from quoreduce_kernels.records import RunMerger

    merger, out = RunMerger([_sorted([records()[:200]]), _sorted([records()[200:]])]), np.empty_like(records())
    merger.next(out)
    return out.tobytes()


def near_records() -> Bytes:
    """Sort records whose keys differ in their last bytes only, so that whole keys fit into a word."""
    near = records().copy()
    near[:, :6] = near[0, :6]
    return near


def _pieces() -> bytes:
    """Sorting in pieces, of keys that are near and far."""
    return _joined([_sorted([rows], PIECE_RECORDS) for rows in (records(), near_records())])


def _fingerprints() -> bytes:
    from quoreduce_kernels import fingerprint

    values = fingerprint.fingerprints(records(), 100, KEY), fingerprint.fingerprints(text(), 1024, KEY)
    return _joined(values) + fingerprint.checksum128(text()).to_bytes(16, "little")


def _multiset() -> bytes:
    from quoreduce_kernels import fingerprint
    from quoreduce_kernels import records as sorting

    ids, counts = sorting.plan_partition(records(), splits())
    moved = fingerprint.fingerprint_scatter(records(), ids, np.concatenate(([0], np.cumsum(counts))), KEY)
    order = np.arange(RECORDS, dtype=np.uint64)[::-1].copy()
    turned = fingerprint.permute_fingerprints(moved, order, (1 << 32) - 1)
    total, bad = fingerprint.multiset128(records(), KEY)
    return _joined((moved, turned)) + b"%d %d %d" % (fingerprint.sum128(turned), total, bad)


def _prefix() -> bytes:
    from quoreduce_kernels import prefix

    rows = records()
    prefixed, count = prefix.select_lines(text(), b"abc")
    offsets, target = np.empty(len(prefixed) + 1, np.int64), np.empty(int(prefixed[:, 1].sum()), np.uint8)
    prefix.copy_lines(prefixed, offsets, target)
    picks = prefix.select_records(rows, bytes(rows[0, :3]))
    chosen = np.empty((len(picks), 100), np.uint8)
    prefix.copy_records(rows, picks, chosen)
    return b"%d " % count + target.tobytes() + chosen.tobytes()


def _pairs() -> bytes:
    from quoreduce_kernels import pairs

    table = pairs.lines(text())
    order, groups = pairs.sort(table)
    return b"%d " % groups + _chunks(pairs.text_chunks(table, order, np.empty(text().size, np.uint8)))


def _chunks(chunks: Iterator[tuple[Bytes, int]]) -> bytes:
    return b"".join(chunk.tobytes() for chunk, _ in chunks)


def _columns() -> bytes:
    """Pairs that are cut into partitions, copied to columns, read from there, and digested in chunks without a copy."""
    from quoreduce_kernels import pairs

    table = pairs.lines(text())
    ids, totals = pairs.partition(table, 3)
    order = pairs.by_partition(ids, totals)
    blocks: list[Columns] = []
    for n, *sizes in totals.tolist():
        arrays = [array for size in sizes for array in (np.empty(n + 1, np.int64), np.empty(size, np.uint8))]
        blocks.append(tuple(arrays))  # type: ignore[arg-type]
    pairs.scatter(table, ids, blocks)
    again, chunk = pairs.columns(blocks), np.empty(CHUNK_BYTES, np.uint8)
    keys = b"".join(piece.tobytes() for piece in pairs.column_chunks(table, order, "keys", chunk))
    values = b"".join(
        piece.tobytes() for piece in pairs.column_chunks(again, np.arange(LINES, dtype=np.uint64), "values", chunk)
    )
    return b"".join(map(_joined, blocks)) + keys + values + b"%d" % pairs.count_lines(text())


def _kept() -> bytes:
    from quoreduce_kernels.pairs import keep_positions

    return _joined([keep_positions(*one) for one in KEPT])


def _sequence() -> bytes:
    from quoreduce_kernels import sequence

    made: list[NDArray[Any]] = []
    for form in FORMS:
        offsets, data = column(payloads(form))
        raw, lengths = sequence.serialise(data, offsets, form)
        vints = sequence.encode_vints(lengths)
        read = sequence.decode_vints(vints, lengths.size)
        places = np.zeros(read.size + 1, np.int64)
        sequence.payload_offsets(read, form, places)
        run, picked = np.empty(data.size, np.uint8), np.empty(data.size, np.uint8)
        sequence.strip_run(raw, form, places, run)
        sequence.strip_at(raw, np.cumsum(read) - read, form, places, picked)
        made += [raw, vints, places, run, picked]
    found, end, why = sequence.walk_records(sequence_records(), np.frombuffer(SYNC, np.uint8))
    return _joined(made) + found.tobytes() + b"%d %d" % (end, why)


def _crc() -> bytes:
    from quoreduce_kernels import gensort

    return b"%d %d" % (gensort.crc_sum(records()), zlib.crc32(text().data))


def _generated() -> bytes:
    from quoreduce_kernels import gensort

    made = [gensort.generate_records(0, GENERATED, kind) for kind in KINDS]
    rows = _sorted([records()])
    checks = gensort.validate_sorted(rows), gensort.validate_sorted(records(), bytes(10))
    return _joined(made) + b"".join(b"%d %d " % one[:2] + one[2] for one in checks)


def _text() -> bytes:
    from quoreduce_kernels.textgen import generate_text, make_vocabulary

    return generate_text(TEXT_CHUNK, TEXT_BYTES, TEXT_SEED, make_vocabulary(VOCABULARY)).tobytes()


def _grid() -> bytes:
    from quoreduce_kernels import gridgen

    words, made = gridgen.WordList.of(GRID_WORDS), list[bytes]()
    for chunk in gridgen.draw_chunks(words, gridgen.Ranges(*GRID_RANGES), GRID_BYTES, GRID_STREAM):
        made += [gridgen.render(words, chunk, column).tobytes() for column in (0, 1)]
        made += [gridgen.render_lengths(chunk, column).tobytes() for column in (0, 1)]
        made += [gridgen.render_text(words, chunk).tobytes(), gridgen.deflate(words, chunk, 1)]
    return b"".join(made)


def _word_sums() -> bytes:
    """Checks of a word count: of its text, its blocks, its part, and an entry that is refused."""
    from quoreduce_kernels import check_hash, word_sums, words

    runs = _counted(_counter(), text())
    sums = [word_sums.sum_counts(*run, r, len(runs), CHECK_KEY) for r, run in enumerate(runs)]
    part = words.format_counts(*words.merge_counts(runs[:1]))
    sums += [word_sums.sum_text(text(), CHECK_KEY), word_sums.sum_text(many_words(), CHECK_KEY)]
    sums.append(word_sums.sum_lines(part, 0, len(runs), CHECK_KEY)[0])
    try:
        word_sums.sum_lines(part[::-1].copy(), 0, 1, CHECK_KEY)
    except check_hash.Refused as refused:
        return np.array(sums, np.uint64).tobytes() + b"%d" % refused.at
    return b""


def _record_sums() -> bytes:
    """Checks of a sort: of its split, blocks, part, and of the witness of its ties."""
    from quoreduce_kernels import record_sums

    part = _sorted([records()])
    order = np.array([row.tobytes() for row in records()[:, :10]]).argsort(kind="stable").astype(np.uint32)
    tied = record_sums.tied_keys(part)
    chosen = order[[row[:10].tobytes() in set(map(bytes, tied)) for row in part]]
    sums = [
        one for placed in (False, True) for one in record_sums.sum_split(records(), splits(), CHECK_KEY, placed=placed)
    ]
    sums += [record_sums.sum_records(records(), CHECK_KEY, first=first) for first in (None, 5)]
    sums += [record_sums.sum_sorted(rows, CHECK_KEY)[0] for rows in (part, records())]
    sums.append(record_sums.sum_tied(records(), tied, CHECK_KEY))
    witnessed, defects = record_sums.sum_witnessed(part, chosen % 3, chosen, 3, CHECK_KEY)
    more = record_sums.sum_sorted(records(), CHECK_KEY)[1:]
    return np.array(sums + witnessed, np.uint64).tobytes() + b"%d %d %d %d" % (len(tied), defects, *more)


def _pair_sums() -> bytes:
    """Checks of a sort of pairs: of a text, a block, and a part without and with a witness."""
    from quoreduce_kernels import pair_sums, pairs

    table = pairs.lines(text())
    order, _ = pairs.sort(table)
    part = np.concatenate([chunk for chunk, _ in pairs.text_chunks(table, order, np.empty(text().size, np.uint8))])
    block = [column([pair[c] for pair in table.pairs()]) for c in (0, 1)]
    sums = [pair_sums.sum_pairs_text(text(), CHECK_KEY, placed=placed) for placed in (False, True)]
    sums.append(pair_sums.sum_pairs(*block[0], *block[1], 0, 1, CHECK_KEY, first=3))
    witness = np.zeros(order.size, np.uint32), order.astype(np.uint32), 1
    found = [pair_sums.sum_pair_lines(part, 0, 1, CHECK_KEY, witness=one) for one in (None, witness)]
    sums += [one.sums[0] for one in found]
    return np.array(sums, np.uint64).tobytes() + b"%d" % found[0].ties


def integers() -> NDArray[np.uint64]:
    """numpy's own loops over whole numbers: multiply, shift, add, sort."""
    z = numbers(3, 2000)
    return np.concatenate((np.cumsum(z * (z >> np.uint64(7))), np.sort(z)))


def floats() -> NDArray[np.float64]:
    """Products and sums of floating point numbers that are whole, so that every order of summation gives the same."""
    a = (numbers(4, 2048) >> np.uint64(44)).astype(np.float64).reshape(32, 64)
    return np.concatenate(((a @ a.T).ravel(), np.sqrt(a * a).ravel(), (a * 0.5 + a / 4).ravel()))


CASES: dict[str, Callable[[], bytes]] = {
    "blake3": _blake3, "words": _words, "counts": _counts, "growth": _growth, "hashes": _hashes,
    "partition": _partition, "sort": _sort, "merge": _merge, "pieces": _pieces,
    "fingerprints": _fingerprints, "multiset": _multiset, "prefix": _prefix,
    "pairs": _pairs, "columns": _columns, "kept": _kept, "sequence": _sequence,
    "crc": _crc, "generated": _generated, "text": _text, "grid": _grid,
    "word sums": _word_sums, "record sums": _record_sums, "pair sums": _pair_sums,
    "integers": lambda: integers().tobytes() + hashlib.sha256(text().data).digest(),
    "floats": lambda: floats().tobytes(),
}  # fmt: skip
"""Name of a case -> what computes its answer."""
ROUNDS_APART = {"growth": 8, "grid": 8}
"""Cases that take long are run in one round of so many, others in each."""
