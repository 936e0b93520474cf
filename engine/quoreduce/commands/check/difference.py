"""Where two rehearsals of a job part: the first task, partition and record that differ, with both values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import msgspec
import numpy as np

from quoreduce.data.block import Block
from quoreduce.data.inputs import read_sequence_split
from quoreduce.data.splits import Split
from quoreduce.errors import QuoreduceError
from quoreduce.job import Job, record_width
from quoreduce.jobs.python import decode_key, records_of
from quoreduce.protocol.wire import PartReply
from quoreduce.runtime.rehearse import RehearsedTask

SHOWN_CHARS = 100
BEFORE_CHARS = 24
Record = tuple[object, ...]
Shown = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference.

    ``task``: such as ``map 0``. ``partition`` and ``record``: their numbers, from 0; None if the difference is not in
    one. ``key``: of the record if all values have one. ``reference`` and ``other``: both values, shortened.
    """

    task: str
    partition: int | None
    record: int | None
    key: str | None
    reference: str
    other: str

    def place(self) -> str:
        """Say where it is, in a line."""
        words = [self.task]
        words += [f"partition {self.partition}"] if self.partition is not None else []
        words += [f"record {self.record}"] if self.record is not None else []
        return ", ".join(words) + (f", key {self.key}" if self.key else "")


def first_difference(job: Job, reference: Sequence[RehearsedTask], other: Sequence[RehearsedTask]) -> Difference | None:
    """Return where two rehearsals of ``job``, whose blocks and files still exist, first differ in what they would vote
    with.
    """
    for one, two in zip_longest(reference, other):
        if one is None or two is None:
            task = one or two
            return Difference(f"{task.kind} {task.index}", None, None, None, _whether(one), _whether(two))
        if one.kind != two.kind or one.failed or two.failed:
            if _verdict(one) != _verdict(two):
                return Difference(f"{one.kind} {one.index}", None, None, None, *_shown(_verdict(one), _verdict(two)))
        elif one.outcome != two.outcome:
            return _within(job, one, two)
    return None


def _whether(task: RehearsedTask | None) -> str:
    return "not run" if task is None else _verdict(task)


def _verdict(task: RehearsedTask) -> str:
    return f"failed: {task.error.partition(chr(10))[0]}" if task.failed or task.kind == "setup" else "succeeded"


def _within(job: Job, one: RehearsedTask, two: RehearsedTask) -> Difference:
    """Both succeeded, and differ."""
    name = f"{one.kind} {one.index}"
    for part, (a, b) in enumerate(zip(one.done.parts, two.done.parts, strict=False)):
        if (a.digest, a.records, a.nbytes) != (b.digest, b.records, b.nbytes):
            number = one.index if one.kind == "reduce" else part
            found = _records(job, one, two, a, b)
            if found is None:
                return Difference(name, number, None, None, _digest(a), _digest(b))
            record, key, shown = found
            return Difference(name, number, record, key, *shown)
    records = (f"{task.done.records_in} records read" for task in (one, two))
    return Difference(name, None, None, None, *records)


def _digest(part: PartReply) -> str:
    return f"{part.records} records, {part.nbytes} bytes, digest {part.digest.hex()[:16]}"


def _records(
    job: Job, one: RehearsedTask, two: RehearsedTask, a: PartReply, b: PartReply
) -> tuple[int | None, str | None, Shown] | None:
    """Return the first record that differs: its number, key and values; None if there is nothing to look at."""
    if one.kind == "sample":
        return None, None, _shown(repr(one.done.data), repr(two.done.data))
    if not one.done.path or not two.done.path:
        return None
    if one.kind == "map":
        pairs = job.style == "python"
        rows = _rows(_block(one.done.path, a), pairs), _rows(_block(two.done.path, b), pairs)
    else:
        rows = _output(job, one.done.path), _output(job, two.done.path)
    for number, (left, right) in enumerate(zip_longest(*rows)):
        if repr(left) != repr(right):  # by value to the bit: 0.0 is not -0.0, NaN is NaN
            keys = {repr(row[0]) for row in (left, right) if row is not None}
            key = keys.pop() if len(keys) == 1 and left and right and len(left) > 1 else None
            return number, key and _short(key, 0), _shown(*(_value(row, key is not None) for row in (left, right)))
    return None


def _value(row: Record | None, keyed: bool) -> str:
    if row is None:
        return "no such record"
    return ", ".join(repr(value) for value in (row[1:] if keyed else row))


def _shown(one: str, two: str) -> Shown:
    """Shorten both to what is around the first character that differs."""
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return _short(one, same), _short(two, same)


def _short(text: str, at: int) -> str:
    start = max(0, at - BEFORE_CHARS) if len(text) > SHOWN_CHARS else 0
    end = start + SHOWN_CHARS
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")


def _block(path: str, part: PartReply) -> Block:
    with open(path, "rb") as file:
        file.seek(part.offset)
        return Block.open(file.read(part.nbytes))


def _rows(block: Block, pairs: bool) -> Iterator[Record]:
    """Yield the records of a block; ``pairs``: of key and value, as jobs in Python style make them."""
    columns = [_column(block, i) for i in range(len(block.schema))]
    if not pairs:
        return zip(*columns, strict=True)
    return ((decode_key(key), msgspec.msgpack.decode(value)) for key, value in zip(*columns, strict=True))


def _column(block: Block, column: int) -> list[object]:
    kind = block.schema[column]
    if kind == "binary":
        offsets, data = block.binary(column)
        raw, bounds = data.tobytes(), offsets.tolist()
        return [raw[bounds[i] : bounds[i + 1]] for i in range(block.records)]
    if kind.startswith("fixed"):
        return [row.tobytes() for row in block.fixed(column)]
    return list(block.numbers(column).tolist())


def _output(job: Job, path: str) -> Iterator[Record]:
    """Yield the records of a reduce's output; of text, lines, as key and value where there is a tab."""
    if job.output == "sequence":
        size = os.path.getsize(path)
        try:
            yield from _rows(
                read_sequence_split(Split(path, 0, size, size, "none", False, 0), os.path.dirname(path)), False
            )
        except QuoreduceError as error:  # a job in block style may write what it likes
            yield (f"not a SequenceFile: {error}",)
        return
    data = np.fromfile(path, np.uint8) if os.path.getsize(path) else np.empty(0, np.uint8)
    for record in records_of(data, job.output if record_width(job.output) else "lines"):
        yield tuple(record.split(b"\t", 1)) if job.output == "text" else (record,)
