"""The six applications once more, slowly: plain Python over the same files. The oracle of the tests of the fast ones.

A record is (key, value); a split is a list of records; an output is a list of parts, each bytes.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quoreduce_kernels.reference import partition_of

Pair = tuple[bytes, bytes]
Split = list[Pair]
WORD_SPACE = b" \t\n\r\f"


@dataclass
class Output:
    """What an application writes and counts."""

    parts: list[bytes]
    counters: dict[str, int] = field(default_factory=dict)


def lines_of(files: list[Path], split_bytes: int) -> list[list[bytes]]:
    """The lines that begin in each split, with their ends."""
    splits = []
    for path in files:
        raw = path.read_bytes()
        places: dict[int, list[bytes]] = {start: [] for start in range(0, len(raw), split_bytes)}
        at = 0
        for line in raw.splitlines(keepends=True) if b"\r" not in raw else _lines(raw):
            places[at // split_bytes * split_bytes].append(line)
            at += len(line)
        splits += list(places.values())
    return splits


def _lines(raw: bytes) -> list[bytes]:
    whole = [line + b"\n" for line in raw.split(b"\n")]
    whole[-1] = whole[-1][:-1]
    return [line for line in whole if line]


def pair_of(line: bytes) -> Pair:
    """Key and value of a line."""
    if line.endswith(b"\r\n"):
        line = line[:-2]
    elif line.endswith(b"\n"):
        line = line[:-1]
    key, _, value = line.partition(b"\t")
    return key, value


def pairs_of(files: list[Path], split_bytes: int) -> list[Split]:
    """Records of the lines in each split."""
    return [[pair_of(line) for line in split] for split in lines_of(files, split_bytes)]


def kept(records: list[Pair], percent: float) -> list[Pair]:
    """What the load generator lets through."""
    share = np.float32(percent) / np.float32(100)
    out = list[Pair]()
    for seen, record in enumerate(records, 1):
        while np.float32(len(out)) / np.float32(seen) < share:
            out.append(record)
    return out


def shuffled(maps: list[Split], reducers: int) -> list[Split]:
    """Partitions in the total order (key, map, record)."""
    parts: list[list[tuple[bytes, int, int, bytes]]] = [[] for _ in range(reducers)]
    for m, split in enumerate(maps):
        for i, (key, value) in enumerate(split):
            parts[partition_of(key, reducers)].append((key, m, i, value))
    return [[(key, value) for key, _, _, value in sorted(part)] for part in parts]


def text_of(records: list[Pair]) -> bytes:
    """Records as lines."""
    return b"".join(b"%s\t%s\n" % pair for pair in records)


def load(splits: list[Split], keep_map: float, keep_reduce: float, reducers: int) -> Output:
    """A load generator; javaSort is one that keeps everything."""
    maps = [kept(split, keep_map) for split in splits]
    before = shuffled(maps, reducers)
    after = [kept(part, keep_reduce) for part in before]
    parts = [text_of(part) for part in after]
    counters = {
        "MAP_INPUT_RECORDS": sum(map(len, splits)),
        "MAP_OUTPUT_RECORDS": sum(map(len, maps)),
        "REDUCE_INPUT_RECORDS": sum(map(len, maps)),
        "REDUCE_INPUT_GROUPS": sum(len({key for key, _ in part}) for part in before),
        "REDUCE_OUTPUT_RECORDS": sum(map(len, after)),
        "BYTES_WRITTEN": sum(map(len, parts)),
    }
    return Output(parts, counters)


def tokens(record: Pair) -> list[bytes]:
    """The words in key and value."""
    table = bytes.maketrans(WORD_SPACE, b" " * len(WORD_SPACE))
    return [word for text in record for word in text.translate(table).split(b" ") if word]


def combiner(splits: list[Split], reducers: int) -> Output:
    """Token counts."""
    maps = [Counter(word for record in split for word in tokens(record)) for split in splits]
    total = sum(maps, Counter[bytes]())
    parts: list[dict[bytes, int]] = [{} for _ in range(reducers)]
    for word, count in total.items():
        parts[partition_of(word, reducers)][word] = count
    counters = {
        "MAP_INPUT_RECORDS": sum(map(len, splits)),
        "MAP_OUTPUT_RECORDS": sum(total.values()),
        "COMBINE_INPUT_RECORDS": sum(total.values()),
        "COMBINE_OUTPUT_RECORDS": sum(map(len, maps)),
        "REDUCE_INPUT_RECORDS": sum(map(len, maps)),
        "REDUCE_INPUT_GROUPS": len(total),
        "REDUCE_OUTPUT_RECORDS": len(total),
    }
    return Output([b"".join(b"%s\t%d\n" % item for item in sorted(part.items())) for part in parts], counters)


def stream(splits: list[list[bytes]], mapper: str, reducer: str, reducers: int) -> Output:
    """Hadoop streaming: a mapper for each split, a reducer for each partition, run by a shell."""
    maps = []
    for split in splits:
        text = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in split)
        maps.append([pair_of(line) for line in _lines(_run(mapper, text))])
    before = shuffled(maps, reducers)
    parts = [_run(reducer, text_of(part)) for part in before]
    parts = [part if part.endswith(b"\n") or not part else part + b"\n" for part in parts]
    counters = {
        "MAP_INPUT_RECORDS": sum(map(len, splits)),
        "MAP_OUTPUT_RECORDS": sum(map(len, maps)),
        "REDUCE_INPUT_GROUPS": sum(len({key for key, _ in part}) for part in before),
        "REDUCE_OUTPUT_RECORDS": sum(part.count(b"\n") for part in parts),
    }
    return Output(parts, counters)


def _run(command: str, text: bytes) -> bytes:
    return subprocess.run(
        ["sh", "-c", command], input=text, stdout=subprocess.PIPE, check=True, env={"LC_ALL": "C"}
    ).stdout
