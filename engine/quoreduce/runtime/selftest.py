"""Known-answer tests of a core: every kernel on data that a seed makes, and what must come out (R11).

The worker under test returns digests; whoever asked compares them with ANSWERS, which the tests prove right against the kernels'
slow twins (tests/runtime/test_selftest.py). So nothing rests on what a suspect says of itself, nor on the core of the driver.
The digests are made by the library blake3, and not by the kernel that is also under test.
"""

from __future__ import annotations

import functools
import hashlib
import random
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from quoreduce.runtime.wire import SelfTest

ROUNDS = 16
DIGEST_BYTES = 16
LINES, WORDS_A_LINE, RECORDS, SPLITS = 400, 12, 400, 5
BLAKE3_LENGTHS = (0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 2049, 16384, 31744, 102400)  # of the official vectors
KEY = b"known-answer-key"
Bytes = NDArray[np.uint8]

ANSWERS = {
    "blake3": "8b555d60297b5ea0cc4e1dcaf6e0ff7c",
    "words": "feaab12a9c9d9ed190454e6d9034d593",
    "counts": "2cb21c4465e0e53f73fbd9bcae8c9e51",
    "partition": "949de756b8f221e75ddf534d951a8572",
    "sort": "ac90a3d70dfb982b98a5454798a30a75",
    "merge": "ac90a3d70dfb982b98a5454798a30a75",
    "fingerprints": "1a8387705a12ad1a4c0e0fa64f4a9bbf",
    "prefix": "5fdb662fabcdf8a483db12e1aefef45c",
    "crc": "dc0ae544df6f380d16ebce02adee9622",
    "pairs": "518a1285fd7b5d9f7a8aa5e422730d2d",
    "integers": "919eaa9e8ac62581cf2a1f1e14b81839",
    "floats": "97a874d081570b73ecba2716fcbd9281",
}


def numbers(stream: int, count: int) -> NDArray[np.uint64]:
    """Pseudo-random numbers u64[count] (splitmix64)."""
    u = np.uint64
    z = np.arange(1, count + 1, dtype=u) * u(0x9E3779B97F4A7C15) + u(stream)
    z = (z ^ (z >> u(30))) * u(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> u(27))) * u(0x94D049BB133111EB)
    return z ^ (z >> u(31))


def text() -> Bytes:
    """Lines of words; the first word of a line is a key. Words repeat, and are of 1 to 24 letters."""
    draws = numbers(1, LINES * WORDS_A_LINE).tolist()
    words = [b"abcdefghijklmnopqrstuvwx"[: 1 + n % 24] + b"%d" % (n >> 60) for n in draws]
    lines = [b"\t".join((words[i], b" ".join(words[i + 1 : i + WORDS_A_LINE]))) for i in range(0, len(words), WORDS_A_LINE)]
    return np.frombuffer(b"\n".join(lines) + b"\n", np.uint8)


def records() -> Bytes:
    """Sort records u8[n, 100]; some keys are equal, or equal but for their end."""
    data = numbers(2, RECORDS * 13).view(np.uint8)[: RECORDS * 100].reshape(RECORDS, 100).copy()
    data[::5, :10] = data[0, :10]
    data[::7, :8] = data[1, :8]
    return data


def splits() -> Bytes:
    """Keys u8[SPLITS, 10] that cut the records, in order."""
    keys = sorted(bytes(key) for key in records()[1::70, :10])[:SPLITS]
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 10)


def cases(lines: Bytes, rows: Bytes, keys: Bytes) -> dict[str, Callable[[], bytes]]:
    """Name of a test -> what computes its answer."""
    from quoreduce_kernels import fingerprint, gensort, pairs, prefix
    from quoreduce_kernels import records as sorting
    from quoreduce_kernels import words as counting
    from quoreduce_kernels.blake3 import Blake3

    counter, sorter = counting.WordCounter(), sorting.RunSorter()
    pattern = (np.arange(max(BLAKE3_LENGTHS)) % 251).astype(np.uint8)
    half = rows.shape[0] // 2

    def hashed() -> bytes:
        digests = []
        for length in BLAKE3_LENGTHS:
            state = Blake3()
            state.update(pattern[:length])
            digests.append(state.digest())
        return b"".join(digests)

    def runs() -> Iterator[tuple[NDArray[np.int64], Bytes, NDArray[np.uint64]]]:
        counter.count(lines)
        for r, (entries, nbytes) in enumerate(zip(*counter.partition_sizes(4), strict=True)):
            run = np.empty(entries + 1, np.int64), np.empty(nbytes, np.uint8), np.empty(entries, np.uint64)
            counter.fill(r, *run)
            yield run

    def partitioned() -> bytes:
        ids, counts = sorting.plan_partition(rows, keys)
        targets = [np.empty(count * 100, np.uint8) for count in counts]
        sorting.scatter(rows, ids, targets)
        return b"".join(target.tobytes() for target in targets)

    def gathered(low: int, high: int) -> Bytes:
        sorter.sort([rows[low:high]])
        return sorter.gather(0, high - low)

    def merged() -> bytes:
        merger, out = sorting.RunMerger([gathered(0, half), gathered(half, rows.shape[0])]), np.empty_like(rows)
        merger.next(out)
        return out.tobytes()

    def sort() -> bytes:
        sorter.sort([rows[:half], rows[half:]])
        return sorter.gather(0, rows.shape[0]).tobytes()

    def prefixes() -> bytes:
        prefixed, count = prefix.select_lines(lines, b"abc")
        offsets, target = np.empty(len(prefixed) + 1, np.int64), np.empty(int(prefixed[:, 1].sum()), np.uint8)
        prefix.copy_lines(prefixed, offsets, target)
        picks = prefix.select_records(rows, bytes(rows[0, :3]))
        chosen = np.empty((len(picks), 100), np.uint8)
        prefix.copy_records(rows, picks, chosen)
        return b"%d " % count + target.tobytes() + chosen.tobytes()

    def paired() -> bytes:
        table = pairs.lines(lines)
        order, groups = pairs.sort(table)
        chunk = np.empty(lines.size, np.uint8)
        return b"%d " % groups + b"".join(part.tobytes() for part, _ in pairs.text_chunks(table, order, chunk))

    return {
        "blake3": hashed,
        "words": lambda: b"".join(column.tobytes() for run in runs() for column in run),
        "counts": lambda: counting.format_counts(*counting.merge_counts(list(runs()))).tobytes(),
        "partition": partitioned,
        "sort": sort,
        "merge": merged,
        "fingerprints": lambda: (
            fingerprint.fingerprints(rows, 100, KEY).tobytes() + fingerprint.fingerprints(lines, 1024, KEY).tobytes()
        ),
        "prefix": prefixes,
        "crc": lambda: b"%d %d" % (gensort.crc_sum(rows), zlib.crc32(lines.data)),
        "pairs": paired,
        "integers": lambda: integers().tobytes() + hashlib.sha256(lines.data).digest(),
        "floats": lambda: floats().tobytes(),
    }


def integers() -> NDArray[np.uint64]:
    """numpy's own loops over whole numbers: multiply, shift, add, sort."""
    z = numbers(3, 2000)
    return np.concatenate((np.cumsum(z * (z >> np.uint64(7))), np.sort(z)))


def floats() -> NDArray[np.float64]:
    """Products and sums of floating point numbers that are whole, so that every order of summation gives the same."""
    a = (numbers(4, 2048) >> np.uint64(44)).astype(np.float64).reshape(32, 64)
    return np.concatenate(((a @ a.T).ravel(), np.sqrt(a * a).ravel(), (a * 0.5 + a / 4).ravel()))


@functools.cache
def _cases() -> dict[str, Callable[[], bytes]]:
    return cases(text(), records(), splits())


def answer(request: SelfTest) -> bytes:
    """Run all tests as often as asked for and return the digests of what came out. One that raises has a digest of zeros."""
    answers = []
    rng = random.Random(f"known answers {request.fault.seed if request.fault else 0}")
    for _ in range(request.rounds):
        for case in _cases().values():
            try:
                made = bytearray(case())
            except Exception:  # noqa: BLE001 - a core that computes wrongly may fail in any way
                answers.append(bytes(DIGEST_BYTES))
                continue
            if request.fault and rng.random() * 100 < request.percent:
                made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
            answers.append(blake3(made).digest(DIGEST_BYTES))
    return b"".join(answers)


def failures(answers: bytes, rounds: int) -> dict[str, int]:
    """Name of a test -> how often its answer was wrong, of ``rounds``; a reply of another length fails them all."""
    right = b"".join(map(bytes.fromhex, ANSWERS.values()))
    if len(answers) != rounds * len(right):
        return dict.fromkeys(ANSWERS, rounds)
    wrong: dict[str, int] = {}
    for i in range(0, len(answers), DIGEST_BYTES):
        at = i % len(right)
        if answers[i : i + DIGEST_BYTES] != right[at : at + DIGEST_BYTES]:
            name = list(ANSWERS)[at // DIGEST_BYTES]
            wrong[name] = wrong.get(name, 0) + 1
    return wrong
