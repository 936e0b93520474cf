"""The stored answers of the known-answer tests are right: the kernels' slow twins, and libraries, give the same."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from blake3 import blake3

from quoreduce.runtime import selftest
from quoreduce.runtime.selftest import ANSWERS, DIGEST_BYTES, answer, failures
from quoreduce.runtime.wire import Fault, SelfTest
from quoreduce_kernels import reference as slow

TEXT = selftest.text().tobytes()
RECORDS = [record.tobytes() for record in selftest.records()]
SPLITS = [key.tobytes() for key in selftest.splits()]
WORD = (1 << 64) - 1


def run_bytes(run: slow.Run) -> bytes:
    offsets = np.cumsum([0, *(len(word) for word, _ in run)], dtype=np.int64)
    return offsets.tobytes() + b"".join(word for word, _ in run) + struct.pack(f"<{len(run)}Q", *(n for _, n in run))


def fingerprint_bytes(data: bytes, stride: int) -> bytes:
    return b"".join(struct.pack("<QQ", *value) for value in slow.fingerprints(data, stride, selftest.KEY))


def numbers(stream: int, count: int) -> list[int]:
    found = []
    for k in range(1, count + 1):
        z = (k * 0x9E3779B97F4A7C15 + stream) & WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
        found.append(z ^ (z >> 31))
    return found


def prefixes() -> bytes:
    lines, count = slow.select_lines(TEXT, b"abc")
    assert 10 < len(lines) < count
    picks = slow.select_records(RECORDS, RECORDS[0][:3])
    assert 10 < len(picks) < len(RECORDS)
    return b"%d " % count + b"".join(lines) + b"".join(RECORDS[i] for i in picks)


def pairs() -> bytes:
    rows = slow.split_pairs(TEXT)
    order, groups = slow.sort_pairs(rows)
    return b"%d " % groups + slow.format_pairs(rows[i] for i in order)


def integers() -> bytes:
    z = numbers(3, 2000)
    sums, total = [], 0
    for n in z:
        total = (total + n * (n >> 7)) & WORD
        sums.append(total)
    return struct.pack(f"<{2 * len(z)}Q", *sums, *sorted(z)) + hashlib.sha256(TEXT).digest()


def floats() -> bytes:
    flat = [n >> 44 for n in numbers(4, 2048)]
    rows = [flat[i : i + 64] for i in range(0, 2048, 64)]
    products = [sum(x * y for x, y in zip(a, b, strict=True)) for a in rows for b in rows]
    return struct.pack("<1024d2048d2048d", *products, *flat, *(0.75 * n for n in flat))


TWINS: dict[str, Callable[[], bytes]] = {
    "blake3": lambda: b"".join(blake3(bytes(i % 251 for i in range(n))).digest() for n in selftest.BLAKE3_LENGTHS),
    "words": lambda: b"".join(map(run_bytes, slow.partitions_of(slow.count_words(TEXT), 4))),
    "counts": lambda: slow.format_counts(slow.merge_counts([slow.count_words(TEXT)])),
    "partition": lambda: b"".join(slow.scatter(RECORDS, slow.partition_ids(RECORDS, SPLITS), len(SPLITS) + 1)),
    "sort": lambda: b"".join(RECORDS[i] for i in slow.sort_runs([RECORDS])),
    "merge": lambda: b"".join(RECORDS[i] for i in slow.sort_runs([RECORDS])),
    "fingerprints": lambda: fingerprint_bytes(b"".join(RECORDS), 100) + fingerprint_bytes(TEXT, 1024),
    "prefix": prefixes,
    "crc": lambda: b"%d %d" % (slow.crc_sum(RECORDS), zlib.crc32(TEXT)),
    "pairs": pairs,
    "integers": integers,
    "floats": floats,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_stored_answer_is_what_the_definition_says(name: str) -> None:
    assert blake3(TWINS[name]()).digest(DIGEST_BYTES).hex() == ANSWERS[name]


def test_the_kernels_give_the_stored_answers_every_time() -> None:
    assert failures(answer(SelfTest(0, 3)), 3) == {}


def test_the_data_is_worth_sorting_and_counting() -> None:
    assert len(set(slow.split_words(TEXT))) < len(slow.split_words(TEXT)) / 5
    assert len({record[:10] for record in RECORDS}) < len(RECORDS) - 50
    assert min(np.bincount(slow.partition_ids(RECORDS, SPLITS))) > 0


def test_one_wrong_answer_of_many_is_found_and_named() -> None:
    raw = bytearray(answer(SelfTest(0, 4)))
    at = 2 * len(ANSWERS) * DIGEST_BYTES + list(ANSWERS).index("sort") * DIGEST_BYTES
    raw[at] ^= 1
    assert failures(bytes(raw), 4) == {"sort": 1}


@pytest.mark.parametrize("raw", [b"", b"x" * 16, answer(SelfTest(0, 1)) + b"x"])
def test_a_reply_of_another_length_fails_everything(raw: bytes) -> None:
    assert failures(raw, 1) == dict.fromkeys(ANSWERS, 1)


def test_faults_strike_the_given_share_of_kernel_runs_each_in_its_own_way() -> None:
    rounds = 40
    wrong = failures(answer(SelfTest(0, rounds, Fault("bad", 7), 30)), rounds)
    assert 0.2 < sum(wrong.values()) / rounds / len(ANSWERS) < 0.4
    raw = answer(SelfTest(0, rounds, Fault("bad", 7), 100))
    digests = {raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES)}
    assert len(digests) > 0.95 * rounds * len(ANSWERS)  # answers of a few bytes repeat by chance


def test_a_kernel_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bytes:
        raise IndexError

    monkeypatch.setitem(selftest._cases(), "pairs", broken)
    assert failures(answer(SelfTest(0, 2)), 2) == {"pairs": 2}
