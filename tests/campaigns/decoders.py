"""What is fuzzed: every decoder of bytes that come from a worker, a disk or a user, with samples, and the errors that
fit.

Another one takes three lines in TARGETS: a name, the samples, and a function of bytes, which returns whatever it likes
or raises one of the errors that its callers know. A function may also look at what it was given back, with assert; and
what it returns as bytes must belong to these bytes alone: if damaged bytes give what a sample gives, that is a finding.

Receipts, policies, quotes, event logs and TPM structures have a campaign of their own (tests/trust/test_tampering.py).
"""

from __future__ import annotations

import gzip
import math
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import mutations
import numpy as np

from quoreduce.data import sequencefile as sf
from quoreduce.data import sequencewriter as sw
from quoreduce.data.block import Block, parse_schema
from quoreduce.data.digest import Digester
from quoreduce.errors import BlockError, EvidenceError, HostError, InputError, JournalError, QuoreduceError, UsageError

KEY = bytes(range(16))
DIGESTERS = (Digester("blake3"), Digester("fast", KEY), Digester("checksum"))
BOMB_BYTES = 24 << 20
MEMBER_BYTES_MAX = 4 << 20
RECORDS_BYTES_MAX = 4 << 20


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes:
        samples: well-formed inputs; made once.
        decode: takes bytes; returns, or raises one of `errors`.
        errors: what it may raise.
        ways: how samples are damaged.
        craft: makes an input that passes the first checks, for three in ten inputs.
        weight: how often it has its turn.
    """

    samples: Callable[[], Sequence[bytes]]
    decode: Callable[[bytes], bytes | None]
    errors: tuple[type[Exception], ...]
    ways: Sequence[mutations.Mutation] = mutations.BYTES
    craft: Callable[[Random], bytes] | None = None
    weight: int = 1


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
def _blocks() -> list[bytes]:
    rng = Random("blocks")
    return [_filled(rng, schema, n).buffer.tobytes() for schema in SCHEMAS for n in (0, 1, 7)]


def _craft_block(rng: Random) -> bytes:
    """A block that is one, of any content, with one number of its header or offsets changed in half of the cases."""
    schema = rng.choice(SCHEMAS)
    raw = _filled(rng, schema, rng.choice((0, 1, 2, 5, 20))).buffer.tobytes()
    if rng.random() < 0.1:  # longer than its columns, and its header knows
        raw += bytes(8 * rng.randrange(1, 9))
        return raw[:16] + struct.pack("<Q", len(raw)) + raw[24:]
    return raw if rng.random() < 0.5 else mutations.number(rng, raw, ())


def _open_block(raw: bytes) -> bytes:
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
def _reduced() -> list[bytes]:
    rng = Random("reduces")
    words = [_filled(rng, ("binary", "u64"), n).buffer.tobytes() for n in (1, 9, 30)]
    records = [_filled(rng, ("fixed:100",), n).buffer.tobytes() for n in (1, 9, 30)]
    items = (b"sx", b"i\0\0\0\0\0\0\0\1", b"b\xff", b"\x93\x01\x02\x03", b"\xc0", b"\xa1x")
    pairs = [
        _filled(rng, ("binary", "binary"), n, lambda c: rng.choice(items[3 * c :][:3])).buffer.tobytes()
        for n in (1, 9, 30)
    ]
    return words + records + pairs


def _craft_reduced(rng: Random) -> bytes:
    schema = rng.choice((("binary", "u64"), ("fixed:100",), ("binary", "binary")))
    return _filled(rng, schema, rng.choice((0, 1, 2, 50))).buffer.tobytes()


def _reduce(raw: bytes) -> None:
    """Give a block to every reduce, with honest ones and without. What it raises is voted on; it must not do worse."""
    from quoreduce.worker.context import ReduceContext

    block = Block.open(raw)
    honest = [Block.open(sample) for sample in _reduced()]
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
def _manifests() -> list[bytes]:
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


def _read_manifest(raw: bytes) -> None:
    from quoreduce.data.manifest import decode_manifest, output_digest

    manifest = decode_manifest(raw)
    assert decode_manifest(manifest.encode()) == manifest
    assert output_digest(manifest.parts) == manifest.digest
    for sample in map(decode_manifest, _manifests()):
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
def _journals() -> list[bytes]:
    from quoreduce.data.journal import MAGIC, encode, start_of_chain

    return [MAGIC + encode(records, start_of_chain())[0] for records in _journal_records()]


def _craft_journal(rng: Random) -> bytes:
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


def _read_journal(raw: bytes) -> None:
    from quoreduce.data.journal import MAGIC, decode, encode, start_of_chain

    records, used, chain = decode(raw)
    frames, _ = encode(records, start_of_chain())
    assert decode(MAGIC + frames)[0] == records
    assert used <= len(raw), "more was read than there is"
    assert decode(raw[:used])[2] == chain, "what was read stands on its own"


_CLASS = {form: name for name, form in sf.CLASSES.items()}
_WAYS = (("block", "zlib"), ("block", "gzip"), ("record", "zlib"), ("record", "gzip"), ("none", "zlib"))


def _sequence(rng: Random, compression: Any, codec: str, key: str, value: str, records: int, **options: Any) -> bytes:
    out = bytearray()
    with sw.SequenceWriter(
        out.extend, 1, key=key, value=value, compression=compression, codec=codec, **options
    ) as writer:
        for _ in range(records):
            writer.write(_payload(rng, key), _payload(rng, value))
    return bytes(out)


def _payload(rng: Random, name: str) -> bytes:
    form = sf.CLASSES[name]
    return rng.randbytes(form if form >= 0 else rng.choice((0, 1, 5, 90, 130)))


@cache
def _sequences() -> list[bytes]:
    rng = Random("sequences")
    files = [_sequence(rng, *way, "Text", "BytesWritable", n, block_bytes=500) for way in _WAYS for n in (0, 3, 40)]
    files += [_sequence(rng, *way, "LongWritable", "NullWritable", 9, metadata={"a": "b"}) for way in _WAYS]
    return files


@cache
def _bomb(wbits: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return stream.compress(bytes(BOMB_BYTES)) + stream.flush()


def _craft_sequence(rng: Random) -> bytes:
    """A file of compressed blocks whose buffers are sound streams of unsound content, among them bombs."""
    codec = rng.choice(("zlib", "gzip"))
    wbits = sf.CODECS[sf.CODEC_NAMES[codec]]
    sync = sf.sync_marker(1, 0)
    names = [rng.choice(list(sf.CLASSES)) for _ in range(2)]
    out = sf.file_header(sync, *names, "block", codec)
    for _ in range(rng.choice((1, 1, 2, 5))):
        records, buffers = rng.choice((0, 1, 3, 30)), []
        for name in names:
            payloads = [sw._serialise(_payload(rng, name), sf.CLASSES[name]) for _ in range(records)]
            lengths = b"".join(sf.vint(len(payload)) for payload in payloads)
            buffers += [lengths, b"".join(payloads)]
        if rng.random() < 0.8:
            which = rng.randrange(4)
            buffers[which] = mutations.mutated(rng, [buffers[which]], mutations.BYTES)
        packed = [zlib.compressobj(1, zlib.DEFLATED, wbits) for _ in buffers]
        streams = [stream.compress(buffer) + stream.flush() for stream, buffer in zip(packed, buffers, strict=True)]
        if rng.random() < 0.05:
            streams[rng.randrange(4)] = _bomb(wbits)
        count = rng.choice((records, records, records, records + 1, rng.choice(mutations.EXTREMES) % (1 << 31)))
        out += sw.block_frame(sync, count, streams)
    return out if rng.random() < 0.7 else mutations.mutated(rng, [out], mutations.BYTES)


def _read_sequence(raw: bytes) -> None:
    """Read; what was read is written, and read again."""
    block = sf.read_sequence(_stored(raw, ".seq"), RECORDS_BYTES_MAX)
    Block.open(block.buffer)
    assert block.buffer.size <= RECORDS_BYTES_MAX + (1 << 16), "over the bound"
    header = sf.read_header(lambda at, n: raw[at : at + n], len(raw), "")
    if block.records > 2000:
        return
    out = bytearray()
    with sw.SequenceWriter(out.extend, 1, key=_CLASS[header.key_form], value=_CLASS[header.value_form]) as writer:
        writer.write_columns(*block.binary(0), *block.binary(1))
    again = sf.read_sequence(_stored(bytes(out), ".seq"))
    assert again.buffer.tobytes() == block.buffer.tobytes(), "what was read is not what was written"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="quoreduce-fuzz.")


def _stored(raw: bytes, suffix: str) -> str:
    path = Path(_folder().name) / f"input{suffix}"
    path.write_bytes(raw)
    return str(path)


TEXT = b"to be\tor not to be\n" * 40


@cache
def _gz() -> list[bytes]:
    return [gzip.compress(content, 6, mtime=0) for content in (b"", TEXT, bytes(3000), *_sequences()[1:4])] + [
        gzip.compress(TEXT, 0, mtime=0) + gzip.compress(TEXT, 9, mtime=0)
    ]


@cache
def _zst() -> list[bytes]:
    import zstandard

    sure, plain = zstandard.ZstdCompressor(write_checksum=True), zstandard.ZstdCompressor(write_content_size=False)
    return [
        sure.compress(TEXT),
        plain.compress(TEXT),
        sure.compress(TEXT) + plain.compress(bytes(3000)),
        sure.compress(_sequences()[1]),
    ]


def _craft_gz(rng: Random) -> bytes:
    """Sound members around unsound SequenceFiles, bombs, and trailers that lie."""
    raw = rng.choice((_craft_sequence(rng), TEXT, rng.randbytes(50)))
    member = _bomb(31) if rng.random() < 0.03 else gzip.compress(raw, 1, mtime=0)
    cut = rng.choice(
        (
            member,
            member[:-8] + rng.randbytes(8),
            member[:-4] + struct.pack("<I", rng.choice(mutations.EXTREMES) % (1 << 32)),
        )
    )
    return rng.choice((b"", b"\0" * 9, gzip.compress(b"", mtime=0))) + cut + rng.choice((b"", b"\0" * 50, b"x", member))


def _craft_zst(rng: Random) -> bytes:
    """Frames by hand: a header with any window, and blocks of one repeated byte, raw or reserved."""
    descriptor = rng.choice((0, 0x20, 0x40, 0x80, 0xC0, 0x04, rng.randrange(256)))
    out = struct.pack("<IB", 0xFD2FB528, descriptor) + rng.randbytes(rng.choice((0, 1, 2, 5, 9)))
    for _ in range(rng.choice((1, 2, 200))):
        size = rng.choice((0, 1, 1 << 17, (1 << 21) - 1, rng.randrange(1 << 21)))
        out += ((size << 3) | (rng.choice((1, 1, 1, 0, 2, 3)) << 1) | (rng.random() < 0.02)).to_bytes(
            3, "little"
        ) + rng.randbytes(1)
    return out


def _read_splits(suffix: str) -> Callable[[bytes], None]:
    """Plan splits over a file and read all of them, in the format that its bytes happen to choose."""
    from quoreduce.data.formats import parse_format
    from quoreduce.data.inputs import open_split, read_sequence_split
    from quoreduce.data.splits import plan_splits

    def read(raw: bytes) -> None:
        chosen = zlib.crc32(raw)
        fmt = parse_format("sequence" if suffix == ".seq" else ("lines", "words", "fixed:10", "sequence")[chosen % 4])
        splits = plan_splits([_stored(raw, suffix)], fmt, max(1, len(raw) // (1 + chosen // 4 % 5)))
        assert sum(split.length for split in splits) == len(raw)
        for split in splits[:8]:
            if fmt.kind == "sequence":
                assert Block.open(read_sequence_split(split, _folder().name, RECORDS_BYTES_MAX).buffer)
                continue
            with open_split(split, fmt, _folder().name, MEMBER_BYTES_MAX) as data:
                assert data.size <= MEMBER_BYTES_MAX

    return read


@cache
def _replies() -> list[bytes]:
    from quoreduce.protocol import wire

    parts = tuple(wire.PartReply(bytes([i]) * 32, 10 * i, 100 * i, i - 1) for i in range(3))
    return [
        wire.encode(reply)
        for reply in (
            wire.Done(
                3,
                parts,
                "/dev/shm/x/3",
                b"side",
                7,
                70,
                700,
                counters={"WORDS": 9, "LINES": 1},
                generation=2,
                cpu_s=0.25,
            ),
            wire.JobRaised(4, "ValueError: x"),
            wire.InputsRefused(5, (1, 2, 3), "its digest is another"),
            wire.HostFailed(6, "no space"),
            wire.Reread(7, b"e" * 32),
            wire.Summed(7, parts, b"given", b"found", 9),
            wire.Inspected(8, b"nodes", b"e" * 32, 9),
            wire.Tested(9, b"digests"),
            wire.NotTested(10, "out of memory"),
            wire.Ready(wire.encode(wire.Admission(b"document", b"public"))),
            wire.NotReady("no module named x", True),
            wire.LaunchQuoted(b"launch"),
            wire.BatchQuoted(b"batch"),
            wire.SealQuoted(b"seal"),
            wire.NotQuoted("no TPM"),
        )
    ]


def _read_reply(raw: bytes) -> None:
    from quoreduce.protocol import wire

    reply = wire.decode_reply(raw)
    assert wire.decode_reply(wire.encode(reply)) == reply
    assert math.isfinite(reply.cpu_s)
    assert reply.cpu_s >= 0, "a figure that is none"
    for text in (getattr(reply, "error", ""), getattr(reply, "path", "")):
        text.encode()


def _evidence(name: str) -> tuple[Callable[[], Sequence[bytes]], Callable[[bytes], None]]:
    def kind() -> tuple[Any, Any]:
        from quoreduce.protocol import wire
        from quoreduce.trust.evidence import Hardware

        quote = (b"message" * 20, b"signature" * 8)
        return {
            "admission": (wire.Admission, wire.Admission(b'{"document": 1}' * 9, b"public" * 15)),
            "committed": (wire.Committed, wire.Committed(64, bytes(32), *quote)),
            "quoted": (wire.Quoted, wire.Quoted(*quote)),
            "hardware": (Hardware, Hardware((b"ek" * 99, b"ca" * 99), b"ak" * 50, bytes(64), *quote)),
        }[name]

    def decode(raw: bytes) -> None:
        from quoreduce.protocol import wire

        found = wire.decode_evidence(raw, kind()[0])
        assert wire.decode_evidence(wire.encode(found), kind()[0]) == found

    def samples() -> list[bytes]:
        from quoreduce.protocol import wire

        return [wire.encode(kind()[1])]

    return samples, decode


@cache
def _calibrations() -> list[bytes]:
    from quoreduce.sim.calibration import USUAL, Calibration

    few = Calibration(
        "by hand", {"sort": USUAL.job("sort"), "monsterQuery": USUAL.job("monsterQuery")}, 1e-9, 1e-4, 0.1
    )
    return [USUAL.encode().encode(), few.encode().encode()]


def _read_calibration(raw: bytes) -> None:
    """Read it as the command does, and simulate a small job of each kind with it."""
    from quoreduce.commands.simulate.command import _read, describe
    from quoreduce.sim import Calibration, Load, Shape, simulate

    calibration = _read(_stored(raw, ".json"))
    assert Calibration.decode(calibration.encode()) == calibration
    for name in sorted(calibration.jobs)[:2]:
        cost = calibration.job(name)
        if cost.stages <= 3 and max(cost.mapped.made(1e6), cost.out.made(2e6)) <= 2e7:  # else it may be right, and long
            describe(simulate(Shape(nodes=3), Load(name, cost, 2, 1, 1e6), calibration)).encode()


@cache
def _results() -> list[bytes]:
    from quoreduce_gridmix import results as r
    from quoreduce_gridmix.noise import Noise

    def run(app: str, size: str, variant: str, mode: str, repetition: int, wall_s: float) -> r.Run:
        amounts, executions = r.Amounts(100, 90, 100, 20), {"map": 6, "reduce": 4}
        stage = r.JobStage(
            job=app,
            wall_s=wall_s,
            cpu_s=wall_s,
            bytes=amounts,
            executions=executions,
            counters={"A": 1},
            splits=3,
            parts=2,
            reexecutions=0,
            faults_detected=0,
        )
        return r.Run(
            app=app,
            size=size,
            variant=variant,
            mode=mode,
            f=int(mode == "bft"),
            off=[],
            repetition=repetition,
            wall_s=wall_s,
            cpu_s=wall_s,
            bytes=amounts,
            executions=executions,
            counters={"A": 1},
            digest="0" * 64,
            splits=3,
            noise=Noise(0.0, 0.1, 0.0, repetition == 2),
            stages=[stage],
        )

    setting = r.StudySetting(
        on="local",
        workers=2,
        domains=2,
        machine={"cpu": "x", "cores": 2, "cores_used": 2, "memory_gb": 8.0, "kernel": "6", "architecture": "x"},
        split_mb=64.0,
        data={"varinfltext": {"nbytes": 1000, "seed": 1, "parts": 10}},
        digest="blake3",
    )
    runs = [
        run(app, size, variant, mode, k, 1.0 + k)
        for app in ("javaSort", "combiner")
        for size in ("small", "parts:3")
        for k in range(3)
        for variant, mode in (("plain", "original"), ("voted f=1", "bft"))
    ]
    made = [
        r.StudyResults(
            format=2, date="2026-01-02T03:04:05+00:00", versions={"numpy": "2"}, setting=setting, runs=runs[:n]
        )
        for n in (2, 4, 24)
    ]
    return [result.encode() for result in made]


def _read_results(raw: bytes) -> None:
    """Read it as the command does, and make the page of it."""
    from quoreduce_gridmix.report import render
    from quoreduce_gridmix.results import StudyResults, read_results

    results = read_results(_stored(raw, ".json"))
    assert isinstance(results, StudyResults)
    page, drawings = render([results])
    page.encode(), [drawing.svg.encode() for drawing in drawings]


@cache
def _data_sets() -> list[bytes]:
    from quoreduce_gridmix.data import generate

    made = Path(_folder().name) / "set"
    generate("varinfltext", made, 400, parts=2, workers=1)
    return [(made / "_gridmix.json").read_bytes()]


def _load_data_set(raw: bytes) -> None:
    from quoreduce_gridmix.data import DESCRIPTION, load

    made = Path(_folder().name) / "set"
    (made / DESCRIPTION).write_bytes(raw)
    found = load(made)
    assert [part.name for part in found.parts] == [f"part-{i:05d}" for i in range(len(found.parts))], "leads elsewhere"
    assert all(type(n) is int for n in (found.nbytes, found.seed)), "no numbers"


INPUT = (InputError,)
TARGETS: dict[str, Target] = {
    "block": Target(_blocks, _open_block, (BlockError,), craft=_craft_block, weight=4),
    "reduce": Target(_reduced, _reduce, (BlockError,), craft=_craft_reduced, weight=2),
    "journal": Target(_journals, _read_journal, (JournalError,), craft=_craft_journal, weight=4),
    "manifest": Target(_manifests, _read_manifest, (QuoreduceError,), mutations.JSON, weight=4),
    "sequencefile": Target(_sequences, _read_sequence, INPUT, craft=_craft_sequence, weight=4),
    "sequencefile in splits": Target(_sequences, _read_splits(".seq"), INPUT, craft=_craft_sequence, weight=2),
    "gz": Target(_gz, _read_splits(".gz"), INPUT, craft=_craft_gz, weight=2),
    "zst": Target(_zst, _read_splits(".zst"), INPUT, craft=_craft_zst, weight=2),
    "reply": Target(_replies, _read_reply, (HostError,), mutations.MSGPACK, weight=4),
    **{
        f"evidence: {name}": Target(*_evidence(name), (EvidenceError,), mutations.MSGPACK)
        for name in ("admission", "committed", "quoted", "hardware")
    },
    "calibration": Target(_calibrations, _read_calibration, (InputError, UsageError), mutations.JSON),
    "gridmix data": Target(_data_sets, _load_data_set, INPUT, mutations.JSON),
    "gridmix results": Target(_results, _read_results, INPUT, mutations.JSON),
}
