"""A job as a user declares it: a map, a reduce, and the shuffle between them.

A job is written in one of two styles, and the same engine runs, replicates and votes on both:

*Python style* (``Job(...)``): functions over records, which yield ``key, value`` pairs. Keys are ``bytes``, ``str`` or
``int`` (64 bits, signed); values are anything that msgpack can hold (None, bool, int, float, str, bytes, lists, tuples,
dicts).

*Block style* (``Job.of_blocks(...)``): kernels over whole blocks, typically numba functions over numpy arrays.

Both must be deterministic: honest replicas must agree to the bit (no clock, no unseeded randomness, no order of sets).
The total order of values in a reduce is (key, map number, record number).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from quoreduce.errors import UsageError

Function = Callable[..., Any]
WIDTH_MAX = 1 << 16  # of a record in bytes


@dataclass(frozen=True, slots=True)
class Sums:
    """How one kind of task is checked (rule R13): its input and its output add up to the same.

    Both functions return numbers, as many on both sides, as an array or a sequence of u64; the engine compares them.
    They are sums under ``ctx.key``, 32 bytes that nobody knew when the output was made: sums that do not depend on the
    key miss changes that cancel out. Whoever rejects too much makes a job slower; whoever accepts too much makes it
    wrong: ``quoreduce check`` alters outputs and demands that each is refused.

    Attributes:
        of_input: of a map ``of_input(data, ctx)`` gets what the map got; of a reduce ``of_input(blocks, ctx)`` the
            blocks that it read. It sets ``ctx.records_in`` if the map does.
        of_output: of a map ``of_output(block, r, ctx)`` gets each partition's block in turn, and the engine adds up
            what it returns, modulo 2^64; of a reduce ``of_output(data, ctx)`` gets the part as a u8 array, with
            ``ctx.padding`` readable bytes after it, and sets ``ctx.records``, the number of its records. Both raise
            ValueError for what is not in the only right form: order, layout, partition.
    """

    of_input: Function
    of_output: Function


@dataclass(frozen=True, slots=True)
class Check:
    """How the tasks of a job are checked instead of executed again (rule R13); None: they are not."""

    map: Sums | None = None
    reduce: Sums | None = None

    @property
    def kinds(self) -> frozenset[Literal["map", "reduce"]]:
        """The kinds of tasks that are checked."""
        return frozenset(kind for kind, sums in (("map", self.map), ("reduce", self.reduce)) if sums is not None)  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Job:
    """A map/reduce job in Python style.

    Args:
        name: what the job is called in messages and in the manifest; letters, digits, ``-``, ``_`` and ``.``.
        map: ``map(record: bytes)`` yields ``(key, value)``; a record is a line without its end, or ``fixed:N`` bytes;
            with ``sequence`` it is a tuple ``(key, value)`` of bytes.
        reduce: ``reduce(key, values)`` yields ``(key, value)``; ``values`` is a list in the total order.
        combine: like ``reduce``, run on each map's output before it is voted on; must not change the result.
        partition: ``partition(key, reducers) -> int`` in ``range(reducers)``; default: CRC-32 of the encoded key.
        sample: block style only, see :meth:`of_blocks`.
        input: ``lines``, ``words`` (cut where a word begins), ``fixed:N`` (records of N bytes) or ``sequence``
            (Hadoop's SequenceFiles of Text, BytesWritable, IntWritable, LongWritable).
        output: ``text`` (``key<TAB>value`` lines), ``fixed:N`` (records of N bytes) or ``sequence`` (a SequenceFile of
            Text).
        style: ``python`` or ``blocks``; set by the constructor used.
        part_bytes: block style only, see :meth:`of_blocks`.
        check: block style only, see :meth:`of_blocks`.
    """

    name: str
    map: Function
    reduce: Function
    combine: Function | None = None
    partition: Function | None = None
    sample: Function | None = None
    input: str = "lines"
    output: str = "text"
    style: Literal["python", "blocks"] = "python"
    part_bytes: int = 0
    check: Check | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UsageError(f"a job's name has letters, digits, '-', '_' and '.', not {self.name!r}")
        for role in ("map", "reduce"):
            if not callable(getattr(self, role)):
                raise UsageError(f"job {self.name}: {role} is not callable")
        for role in ("combine", "partition", "sample"):
            if getattr(self, role) is not None and not callable(getattr(self, role)):
                raise UsageError(f"job {self.name}: {role} is not callable")
        if self.style == "python" and self.sample is not None:
            raise UsageError(f"job {self.name}: sample goes with Job.of_blocks")
        if self.part_bytes < 0:
            raise UsageError(f"job {self.name}: part_bytes is at least 0, not {self.part_bytes}")
        if self.output not in ("text", "sequence") and record_width(self.output) == 0:
            raise UsageError(f"job {self.name}: output is 'text', 'fixed:N' or 'sequence', not {self.output!r}")

    @classmethod
    def of_blocks(
        cls,
        name: str,
        *,
        map: Function,  # noqa: A002 - the field's standard term
        reduce: Function,
        combine: Function | None = None,
        partition: Function | None = None,
        sample: Function | None = None,
        input: str = "lines",  # noqa: A002 - the field's standard term
        output: str = "text",
        part_bytes: int = 0,
        check: Check | None = None,
    ) -> Job:
        """Make a job in block style.

        Args:
            name: as for :class:`Job`.
            map: ``map(data, ctx)`` gets the split's records as one u8 array (with ``sequence``: as one :class:`Block`
                of two binary columns, keys and values) and returns one :class:`Block`, or a list with one for each
                partition; make them with ``ctx.new_blocks``, which puts them where they will be read.
            reduce: ``reduce(blocks, ctx)`` gets the blocks of one partition in map order and calls
                ``ctx.write(bytes_or_u8_array, records)`` as often as it likes.
            combine: ``combine(block, ctx) -> Block``, when map returns one block.
            partition: ``partition(block, ctx) -> array of i64[n]`` in ``range(ctx.reducers)``, when map returns one
                block; default: by hash of the first column.
            sample: ``sample(splits, ctx) -> bytes``, at most 1 MiB, agreed on before any map starts; maps and reduces
                find it in ``ctx.side``. ``splits`` is a list of callables that each open one split as map gets it.
            input: as for :class:`Job`.
            output: as for :class:`Job`; the reduce writes bytes of that format (``sequence``: with a
                ``SequenceWriter``).
            part_bytes: bytes of input for each part of the output, where the user names no number of reducers; for jobs
                that write little. Default, 0: as many parts as splits, up to 16, and no part of more than 256 MB of
                input.
            check: how its tasks are checked, where the user asks for checked execution.
        """
        return cls(name, map, reduce, combine, partition, sample, input, output, "blocks", part_bytes, check)


def record_width(kind: str) -> int:
    """Return N of ``fixed:N``, 1 to WIDTH_MAX, or 0 for what is not of that form."""
    name, _, width = kind.partition(":")
    well_formed = name == "fixed" and width.isascii() and width.isdigit() and len(width) < 9
    return int(width) if well_formed and int(width) <= WIDTH_MAX else 0
