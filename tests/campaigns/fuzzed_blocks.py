"""Blocks, what is voted on in them, manifests and journals: samples, crafted ones, and how each is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

import mutations
import numpy as np

from quoreduce.data.block import Block, parse_schema
from quoreduce.data.digest import Digester

KEY = bytes(range(16))
DIGESTERS = (Digester("blake3"), Digester("fast", KEY), Digester("checksum"))


def _filled(rng: Random, schema: Sequence[str], records: int, values: Callable[[int], bytes] | None = None) -> Block:
    """A block of random content: text of few letters in binary columns, so that things are equal now and then."""
    columns = []
    for column, kind in enumerate(parse_schema(schema)):
        if kind.width:
            columns.append([rng.randbytes(kind.width) for _ in range(records)])
        elif values is not None:
            columns.append([values(column) for _ in range(records)])
        else:
            columns.append([bytes(rng.choices(b"ab \n\t\xff", k=rng.choice((0, 1, 2, 9, 70)))) for _ in range(records)])
    block = Block.create(schema, records, [sum(map(len, column)) for column in columns])
    for i, (kind, column) in enumerate(zip(block.layout.schema, columns, strict=True)):
        data = np.frombuffer(b"".join(column), np.uint8)
        if kind.width == 0:
            offsets, place = block.binary(i)
            offsets[:] = np.cumsum([0, *map(len, column)])
            place[:] = data
        else:
            block.buffer[block.layout.starts[i][1] :][: data.size] = data
    return block


SCHEMAS = (
    ("binary", "u64"),
    ("binary", "binary"),
    ("fixed:100",),
    ("fixed:10",),
    ("i64", "f64", "binary"),
    ("fixed:1", "u64"),
    ("binary",),
)


@cache
def block_samples() -> list[bytes]:
    rng = Random("blocks")
    return [_filled(rng, schema, n).buffer.tobytes() for schema in SCHEMAS for n in (0, 1, 7)]


def craft_block(rng: Random) -> bytes:
    """A block that is one, of any content, with one number of its header or offsets changed in half of the cases."""
    schema = rng.choice(SCHEMAS)
    raw = _filled(rng, schema, rng.choice((0, 1, 2, 5, 20))).buffer.tobytes()
    if rng.random() < 0.1:  # longer than its columns, and its header knows
        raw += bytes(8 * rng.randrange(1, 9))
        return raw[:16] + struct.pack("<Q", len(raw)) + raw[24:]
    return raw if rng.random() < 0.5 else mutations.number(rng, raw, ())


def open_block(raw: bytes) -> bytes:
    """Open, look at everything, build it again; its three digests stand for it."""
    block = Block.open(raw)
    again = Block.create(block.schema, block.records, block.layout.data_bytes)
    for i, kind in enumerate(block.schema):
        if kind == "binary":
            offsets, data = block.binary(i)
            assert (offsets.size, offsets[0], offsets[-1]) == (block.records + 1, 0, data.size)
            again.binary(i)[0][:], again.binary(i)[1][:] = offsets, data
        elif kind.startswith("fixed"):
            again.fixed(i)[:] = block.fixed(i)
        else:
            again.numbers(i).view(np.uint64)[:] = block.numbers(i).view(np.uint64)
    assert again.buffer.tobytes() == raw, "a block can be written in one way only"
    block.to_arrow().validate(full=True)
    return b"".join(digester.block(block) for digester in DIGESTERS)


@cache
def _reduces() -> list[Callable[[Sequence[Block], Any], None]]:
    from quoreduce.job import Job
    from quoreduce.jobs import pairs, sort, wordcount
    from quoreduce.jobs.python import block_style

    python = block_style(Job("pairs", map=_nothing, reduce=_first_of_each))
    return [
        wordcount.JOB.reduce,
        sort.JOB.reduce,
        python.reduce,
        lambda blocks, ctx: pairs.write_rows(pairs.sorted_rows(blocks, ctx), ctx),
        lambda blocks, ctx: pairs.write_rows(pairs.sorted_rows(blocks, ctx), ctx, "sequence"),
    ]


def _nothing(_: bytes) -> list[Any]:
    return []


def _first_of_each(key: Any, values: list[Any]) -> list[Any]:
    return [(key, values[0])]


@cache
def reduced() -> list[bytes]:
    rng = Random("reduces")
    words = [_filled(rng, ("binary", "u64"), n).buffer.tobytes() for n in (1, 9, 30)]
    records = [_filled(rng, ("fixed:100",), n).buffer.tobytes() for n in (1, 9, 30)]
    items = (b"sx", b"i\0\0\0\0\0\0\0\1", b"b\xff", b"\x93\x01\x02\x03", b"\xc0", b"\xa1x")
    pairs = [
        _filled(rng, ("binary", "binary"), n, lambda c: rng.choice(items[3 * c :][:3])).buffer.tobytes()
        for n in (1, 9, 30)
    ]
    return words + records + pairs


def craft_reduced(rng: Random) -> bytes:
    schema = rng.choice((("binary", "u64"), ("fixed:100",), ("binary", "binary")))
    return _filled(rng, schema, rng.choice((0, 1, 2, 50))).buffer.tobytes()


def give_to_reduces(raw: bytes) -> None:
    """Give a block to every reduce, with honest ones and without. What it raises is voted on; it must not do worse."""
    from quoreduce.worker.context import ReduceContext

    block = Block.open(raw)
    honest = [Block.open(sample) for sample in reduced()]
    beside = [sample for sample in honest if sample.schema == block.schema]
    for reduce in _reduces():
        for blocks in ([block], [*beside, block], [block, *beside], [block, block]):
            ctx = ReduceContext(0, 2, b"", 1, DIGESTERS[0], 100, ())
            try:
                reduce(blocks, ctx)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 (the worker answers with it: it is voted on)
                continue
            assert len(ctx.finish()) == 32


@cache
def manifests() -> list[bytes]:
    from quoreduce.data.commit import part_name
    from quoreduce.data.manifest import InputFile, Manifest, ManifestPart

    made = []
    for n, algorithm in ((0, "blake3"), (1, "fast"), (3, "blake3")):
        manifest = Manifest.build(
            quoreduce="0.1.0",
            job="wordcount",
            mode="bft",
            f=1,
            digest_algorithm=algorithm,
            records_in=9,
            parts=[ManifestPart(part_name(i), f"{i + 1:064x}", 100 * i, i) for i in range(n)],
            inputs=[InputFile("/data/a.txt", 7)],
            digest_key="00" * 16 if algorithm == "fast" else None,
            extras={"wall_s": 1.5, "counters": {"WORDS": 7}, "list": [None, True]},
        )
        made.append(manifest.encode())
    return made


def read_manifest(raw: bytes) -> None:
    from quoreduce.data.manifest import decode_manifest, output_digest

    manifest = decode_manifest(raw)
    assert decode_manifest(manifest.encode()) == manifest
    assert output_digest(manifest.parts) == manifest.digest
    for sample in map(decode_manifest, manifests()):
        assert (sample.digest == manifest.digest) == (sample.parts == manifest.parts), "one digest, other parts"


@cache
def _journal_records() -> list[list[Any]]:
    from quoreduce.data import journal as j

    source = j.JournalInput("/data/a.txt", 7, 9)
    header = j.Header(
        "0.1.0", "wordcount", b"\x80\x05.", b"{}", b"{}", ("/data/a.txt",), "words", 64, (source,), bytes(32), 2, b""
    )  # fmt: skip
    part = (bytes(range(32)), 3, 40, 0)
    decided = [
        j.Decided("sample", 0, 0, ("core0", "core1"), bytes(32), (part,), data=b"side"),
        j.Decided("map", 0, 1, ("core0", "core1"), bytes(32), (part, part), "/tmp/segment", b"", 9, 80, {"WORDS": 9}),
        j.Decided("reduce", 1, 10**9 + 7, ("core1", "core0"), bytes(32), (part,)),
    ]
    return [
        [header],
        [header, j.Begun(0), j.Launched("map", 0, 1), decided[1], j.BlocksGone((1,))],
        [header, j.Begun(0), *decided, j.Begun(1)],
    ]


@cache
def journals() -> list[bytes]:
    from quoreduce.data.journal import MAGIC, encode, start_of_chain

    return [MAGIC + encode(records, start_of_chain())[0] for records in _journal_records()]


def craft_journal(rng: Random) -> bytes:
    """A journal whose chain is right, and one of whose records is not."""
    import msgspec
    from blake3 import blake3

    from quoreduce.data.journal import MAGIC, start_of_chain

    raws = [msgspec.msgpack.encode(record) for record in rng.choice(_journal_records())]
    wrong = rng.randrange(len(raws))
    raws[wrong] = mutations.mutated(rng, raws, mutations.MSGPACK)
    chain, out = start_of_chain(), MAGIC
    for raw in raws:
        length = len(raw).to_bytes(4, "little")
        out += length + blake3(length, key=chain).digest(4)
        chain = blake3(chain + raw).digest()
        out += raw + chain
    return out


def read_journal(raw: bytes) -> None:
    from quoreduce.data.journal import MAGIC, decode, encode, start_of_chain

    records, used, chain = decode(raw)
    frames, _ = encode(records, start_of_chain())
    assert decode(MAGIC + frames)[0] == records
    assert used <= len(raw), "more was read than there is"
    assert decode(raw[:used])[2] == chain, "what was read stands on its own"
