"""The stored answers of the known-answer tests are right: the kernels' slow twins, and libraries, give the same."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from blake3 import blake3

from quoreduce.job import Job
from quoreduce.jobs.find import find_job
from quoreduce.jobs.scan import scan_job
from quoreduce.jobs.streaming import stream_job
from quoreduce.protocol import vectors
from quoreduce.protocol.selftest import ALL, ANSWERS, DIGEST_BYTES, answer, failures, names_for, schedule
from quoreduce.protocol.wire import Fault, SelfTest
from quoreduce_kernels import check_reference as check
from quoreduce_kernels import gridgen, textgen
from quoreduce_kernels import reference as slow

TEXT = vectors.text().tobytes()
RECORDS = [record.tobytes() for record in vectors.records()]
SPLITS = [key.tobytes() for key in vectors.splits()]
WORD = (1 << 64) - 1


def run_bytes(run: slow.Run) -> bytes:
    offsets = np.cumsum([0, *(len(word) for word, _ in run)], dtype=np.int64)
    return offsets.tobytes() + b"".join(word for word, _ in run) + struct.pack(f"<{len(run)}Q", *(n for _, n in run))


def fingerprint_bytes(data: bytes, stride: int) -> bytes:
    return b"".join(struct.pack("<QQ", *value) for value in slow.fingerprints(data, stride, vectors.KEY))


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


def growth() -> bytes:
    data = vectors.many_words().tobytes()
    runs = slow.partitions_of(slow.count_words(data), 4)
    merged = slow.format_counts(slow.merge_counts([slow.count_words(data)]))
    folded = [(word, n + (1 << 31) if len(word) < 16 else n) for word, n in slow.count_words(TEXT)]
    return b"".join(map(run_bytes, runs)) + merged + b"".join(map(run_bytes, slow.partitions_of(folded, 4)))


def near_records() -> list[bytes]:
    return [RECORDS[0][:6] + record[6:] for record in RECORDS]


def multiset() -> bytes:
    ids = slow.partition_ids(RECORDS, SPLITS)
    moved = slow.fingerprints(b"".join(slow.scatter(RECORDS, ids, len(SPLITS) + 1)), 100, vectors.KEY)
    bad = sum(slow.key_of(a) > slow.key_of(b) for a, b in itertools.pairwise(RECORDS))
    total = slow.sum128(moved)
    return b"".join(struct.pack("<QQ", *v) for v in [*moved, *moved[::-1]]) + b"%d %d %d" % (total, total, bad)


def column_bytes(values: list[bytes]) -> bytes:
    return np.cumsum([0, *map(len, values)], dtype=np.int64).tobytes() + b"".join(values)


def columns() -> bytes:
    parts = slow.partition_pairs(slow.split_pairs(TEXT), 3)
    moved = [pair for part in parts for pair in part]
    blocks = b"".join(column_bytes([pair[c] for pair in part]) for part in parts for c in (0, 1))
    return (
        blocks + b"".join(key for key, _ in moved) + b"".join(value for _, value in moved) + b"%d" % TEXT.count(b"\n")
    )


def sequence() -> bytes:
    made = []
    for form in vectors.FORMS:
        payloads = vectors.payloads(form)
        items = [slow.serialised(payload, form) for payload in payloads]
        places = np.cumsum([0, *map(len, payloads)], dtype=np.int64).tobytes()
        made += [b"".join(items), b"".join(slow.vint(len(item)) for item in items), places, *2 * [b"".join(payloads)]]
    data = vectors.sequence_records().tobytes()
    walked = slow.walk_records(data, vectors.SYNC)
    assert walked == list(zip(vectors.payloads(-1), vectors.payloads(-2), strict=True))
    at, rows = 0, []
    for i, (key, value) in enumerate(walked):
        at += 20 * (i == 50)
        rows.append((at + 8, len(key), at + 8 + len(key), len(value)))
        at += 8 + len(key) + len(value)
    return b"".join(made) + np.array(rows, np.int64).tobytes() + b"%d 0" % len(data)


def generated() -> bytes:
    made = b"".join(slow.generate_record(i, kind) for kind in vectors.KINDS for i in range(vectors.GENERATED))
    in_order = [RECORDS[i] for i in slow.sort_runs([RECORDS])]
    checks = slow.validate_sorted(in_order), slow.validate_sorted(RECORDS, bytes(10))
    return made + b"".join(b"%d %d " % one[:2] + one[2] for one in checks)


def generated_text() -> bytes:
    v = textgen.make_vocabulary(vectors.VOCABULARY)
    return slow.generate_text(vectors.TEXT_CHUNK, vectors.TEXT_BYTES, vectors.TEXT_SEED, v.words(), v.law.tolist())


def grid() -> bytes:
    words = vectors.GRID_WORDS
    records = slow.grid_chunk(words, vectors.GRID_RANGES, vectors.GRID_BYTES, vectors.GRID_STREAM)
    texts = [tuple(slow.grid_text(words, tokens) for tokens in record) for record in records]
    made = [b"".join(slow.serialised(record[c], -1) for record in texts) for c in (0, 1)]
    made += [b"".join(slow.vint(len(slow.serialised(record[c], -1))) for record in texts) for c in (0, 1)]
    made.append(b"".join(key + b"\t" + value + b"\n" for key, value in texts))
    lengths = gridgen.code_lengths([word + b" " for word in words])
    made.append(slow.grid_deflate(words, [values for _, values in records], lengths))
    return b"".join(made)


def sums_bytes(sums: Iterable[check.Triple | None]) -> bytes:
    return b"".join(struct.pack("<QQQ", *one) for one in sums if one)


def word_sums() -> bytes:
    runs = slow.partitions_of(slow.count_words(TEXT), 4)
    sums = [check.sum_counts(run, r, 4, vectors.CHECK_KEY) for r, run in enumerate(runs)]
    sums += [check.sum_text(data, vectors.CHECK_KEY) for data in (TEXT, vectors.many_words().tobytes())]
    sums.append(check.sum_lines(slow.format_counts(sorted(runs[0])), 0, 4, vectors.CHECK_KEY)[0])  # type: ignore[index]
    return sums_bytes(sums) + b"0"


def record_sums() -> bytes:
    key = vectors.CHECK_KEY
    order = slow.sort_runs([RECORDS])
    part, tied = [RECORDS[i] for i in order], check.tied_keys(RECORDS)
    witness = [(i % 3, i) for i in order if RECORDS[i][:10] in tied]
    sums = [one for placed in (False, True) for one in check.sum_split(RECORDS, SPLITS, key, placed)]
    sums += [check.sum_records(RECORDS, key, first) for first in (None, 5)]
    sums += [check.sum_sorted(rows, key)[0] for rows in (part, RECORDS)]
    sums.append(check.sum_tied(RECORDS, tied, key))
    witnessed = check.sum_witnessed(part, witness, 3, key)
    assert witnessed is not None
    more = check.sum_sorted(RECORDS, key)[1:]
    return sums_bytes(sums + witnessed[0]) + b"%d %d %d %d" % (len(tied), witnessed[1], *more)


def pair_sums() -> bytes:
    key, rows = vectors.CHECK_KEY, slow.split_pairs(TEXT)
    order, _ = slow.sort_pairs(rows)
    part = slow.format_pairs(rows[i] for i in order)
    sums = [check.sum_pairs(rows, key, first) for first in (None, 0, 3)]
    found = [check.sum_pair_lines(part, 0, 1, key, one) for one in (None, ([(0, i) for i in order], 1))]
    return sums_bytes(sums + [one[0][0] for one in found if one]) + b"%d" % found[0][1]  # type: ignore[index]


TWINS: dict[str, Callable[[], bytes]] = {
    "blake3": lambda: b"".join(blake3(bytes(i % 251 for i in range(n))).digest() for n in vectors.BLAKE3_LENGTHS),
    "words": lambda: b"".join(map(run_bytes, slow.partitions_of(slow.count_words(TEXT), 4))),
    "counts": lambda: slow.format_counts(slow.merge_counts([slow.count_words(TEXT)])),
    "partition": lambda: b"".join(slow.scatter(RECORDS, slow.partition_ids(RECORDS, SPLITS), len(SPLITS) + 1)),
    "sort": lambda: b"".join(RECORDS[i] for i in slow.sort_runs([RECORDS])),
    "merge": lambda: b"".join(RECORDS[i] for i in slow.sort_runs([RECORDS])),
    "fingerprints": lambda: (
        fingerprint_bytes(b"".join(RECORDS), 100)
        + fingerprint_bytes(TEXT, 1024)
        + slow.checksum128(TEXT).to_bytes(16, "little")
    ),
    "growth": growth,
    "hashes": lambda: b"".join(struct.pack("<Q", slow.hash64(TEXT[:n])) for n in range(vectors.HASHED)),
    "pieces": lambda: b"".join(rows[i] for rows in (RECORDS, near_records()) for i in slow.sort_runs([rows])),
    "multiset": multiset,
    "columns": columns,
    "kept": lambda: b"".join(
        struct.pack(f"<{len(p)}q", *p) for p in (slow.keep_positions(*one) for one in vectors.KEPT)
    ),
    "sequence": sequence,
    "generated": generated,
    "text": generated_text,
    "grid": grid,
    "prefix": prefixes,
    "crc": lambda: b"%d %d" % (slow.crc_sum(RECORDS), zlib.crc32(TEXT)),
    "pairs": pairs,
    "word sums": word_sums,
    "record sums": record_sums,
    "pair sums": pair_sums,
    "integers": integers,
    "floats": floats,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_stored_answer_is_what_the_definition_says(name: str) -> None:
    assert blake3(TWINS[name]()).digest(DIGEST_BYTES).hex() == ANSWERS[name]


def test_the_kernels_give_the_stored_answers_every_time() -> None:
    assert failures(answer(SelfTest(0, 3, ALL)), 3) == {}


def test_the_data_is_worth_sorting_and_counting() -> None:
    assert len(set(slow.split_words(TEXT))) < len(slow.split_words(TEXT)) / 5
    assert len({record[:10] for record in RECORDS}) < len(RECORDS) - 50
    assert min(np.bincount(slow.partition_ids(RECORDS, SPLITS))) > 0


def test_one_wrong_answer_of_many_is_found_and_named() -> None:
    raw = bytearray(answer(SelfTest(0, 4, ALL)))
    at = DIGEST_BYTES * [i for i, name in enumerate(schedule(4, ALL)) if name == "sort"][2]
    raw[at] ^= 1
    assert failures(bytes(raw), 4) == {"sort": 1}


@pytest.mark.parametrize("raw", [b"", b"x" * 16, answer(SelfTest(0, 1, ALL)) + b"x"])
def test_a_reply_of_another_length_fails_everything(raw: bytes) -> None:
    assert failures(raw, 1) == dict.fromkeys(ANSWERS, 1)


def test_tests_that_take_long_are_run_in_a_few_rounds_and_others_in_all() -> None:
    counts = Counter(schedule(16, ALL))
    assert {counts[name] for name in ALL} == {2, 16}
    assert counts["growth"] == 2
    assert set(schedule(1, ALL)) == set(ALL)


def test_faults_strike_the_given_share_of_kernel_runs_each_in_its_own_way() -> None:
    rounds = 20
    wrong = failures(answer(SelfTest(0, rounds, ALL, Fault("bad", 7), 30)), rounds)
    runs = len(schedule(rounds, ALL))
    assert 0.2 < sum(wrong.values()) / runs < 0.4
    raw = answer(SelfTest(0, rounds, ALL, Fault("bad", 7), 100))
    digests = {raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES)}
    assert len(digests) > 0.95 * runs  # answers of a few bytes repeat by chance


def test_a_kernel_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bytes:
        raise IndexError

    monkeypatch.setitem(vectors.CASES, "pairs", broken)
    assert failures(answer(SelfTest(0, 2, ALL)), 2) == {"pairs": 2}


@pytest.mark.parametrize("names", [ALL[1:], ALL[:-1], ALL[::-1], ()])
def test_an_answer_without_a_test_that_was_asked_for_is_wrong(names: tuple[str, ...]) -> None:
    assert failures(answer(SelfTest(0, 1, names)), 1)


def test_a_job_is_tested_with_what_it_computes_with() -> None:
    own = Job("own", lambda record: [], lambda key, values: [])
    assert "growth" in names_for(find_job("wordcount"))
    assert "sort" not in names_for(find_job("wordcount"))
    assert {"sort", "merge", "pieces", "partition", "multiset"} < set(names_for(find_job("sort")))
    assert "prefix" in names_for(scan_job(b"abc"))
    assert {"pairs", "columns"} < set(names_for(stream_job("cat", "cat")))
    assert names_for(own) == ALL
    for job in (find_job("wordcount"), find_job("sort"), scan_job(b"abc")):
        assert {"blake3", "fingerprints", "integers", "floats"} < set(names_for(job))


REACHED = """
import importlib, json
from numba.core.dispatcher import Dispatcher
from quoreduce.protocol.selftest import names_for
from quoreduce.protocol.vectors import CASES
from quoreduce_kernels import cache

modules = [importlib.import_module(name) for name in cache.modules()]
kernels = {id(one): one for module in modules for one in vars(module).values()
           if isinstance(one, Dispatcher) and one.signatures and not one._can_compile}
def name(one):
    return one.py_func.__module__.rpartition(".")[2] + "." + one.py_func.__name__
seen = set()
class Seen:
    def __init__(self, kernel):
        self.kernel = kernel
    def __call__(self, *arguments):
        seen.add(name(self.kernel))
        return self.kernel(*arguments)
for module in modules:
    for key, one in list(vars(module).items()):
        if id(one) in kernels:
            setattr(module, key, Seen(one))
found = {}
for case, run in CASES.items():
    seen.clear()
    run()
    found[case] = sorted(seen)
calls = {name(one): [name(other.kernel) for used in one.py_func.__code__.co_names
                     if isinstance(other := one.py_func.__globals__.get(used), Seen)] for one in kernels.values()}
print(json.dumps({"kernels": sorted(map(name, kernels.values())), "found": found, "calls": calls}))
"""


def reached(names: Iterable[str], calls: dict[str, list[str]]) -> set[str]:
    """Kernels that are called from Python, and those that these call."""
    todo, found = list(names), set[str]()
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += calls[one]
    return found


def test_every_kernel_is_reached_by_a_known_answer_test() -> None:
    done = subprocess.run([sys.executable, "-c", REACHED], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert len(said["kernels"]) > 60
    every = {name for names in said["found"].values() for name in names}
    missing = set(said["kernels"]) - reached(every, said["calls"])
    assert not missing, f"no case in protocol/vectors.py calls {sorted(missing)}: add one, and its twin and answer"


def test_the_growth_case_grows_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    from quoreduce_kernels import word_tables, words

    calls: dict[str, int] = {}
    for name in ("rehash_short", "rebuild_index", "add_long", "fold_counts"):
        kernel = getattr(words, name)

        def counted(*arguments: object, name: str = name, kernel: Callable[..., None] = kernel) -> None:
            calls[name] = calls.get(name, 0) + 1
            kernel(*arguments)

        monkeypatch.setattr(word_tables if name == "fold_counts" else words, name, counted)
    vectors.CASES["growth"]()
    assert calls["rehash_short"] >= 3  # while counting, merging, and with folded counts
    assert calls["rebuild_index"] >= 1
    assert calls["add_long"] >= 1
    assert calls["fold_counts"] >= 1
