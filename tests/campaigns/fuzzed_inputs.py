"""Input files that are compressed, SequenceFiles or both: samples, crafted ones, and how each is read."""

from __future__ import annotations

import gzip
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import mutations

from quoreduce.data import sequencefile as sf
from quoreduce.data import sequencewriter as sw
from quoreduce.data.block import Block

BOMB_BYTES = 24 << 20
MEMBER_BYTES_MAX = 4 << 20
RECORDS_BYTES_MAX = 4 << 20


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
def sequences() -> list[bytes]:
    rng = Random("sequences")
    files = [_sequence(rng, *way, "Text", "BytesWritable", n, block_bytes=500) for way in _WAYS for n in (0, 3, 40)]
    files += [_sequence(rng, *way, "LongWritable", "NullWritable", 9, metadata={"a": "b"}) for way in _WAYS]
    return files


@cache
def _bomb(wbits: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return stream.compress(bytes(BOMB_BYTES)) + stream.flush()


def craft_sequence(rng: Random) -> bytes:
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


def read_sequence(raw: bytes) -> None:
    """Read; what was read is written, and read again."""
    block = sf.read_sequence(stored(raw, ".seq"), RECORDS_BYTES_MAX)
    Block.open(block.buffer)
    assert block.buffer.size <= RECORDS_BYTES_MAX + (1 << 16), "over the bound"
    header = sf.read_header(lambda at, n: raw[at : at + n], len(raw), "")
    if block.records > 2000:
        return
    out = bytearray()
    with sw.SequenceWriter(out.extend, 1, key=_CLASS[header.key_form], value=_CLASS[header.value_form]) as writer:
        writer.write_columns(*block.binary(0), *block.binary(1))
    again = sf.read_sequence(stored(bytes(out), ".seq"))
    assert again.buffer.tobytes() == block.buffer.tobytes(), "what was read is not what was written"


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="quoreduce-fuzz.")


def stored(raw: bytes, suffix: str) -> str:
    path = Path(folder().name) / f"input{suffix}"
    path.write_bytes(raw)
    return str(path)


TEXT = b"to be\tor not to be\n" * 40


@cache
def gz() -> list[bytes]:
    return [gzip.compress(content, 6, mtime=0) for content in (b"", TEXT, bytes(3000), *sequences()[1:4])] + [
        gzip.compress(TEXT, 0, mtime=0) + gzip.compress(TEXT, 9, mtime=0)
    ]


@cache
def zst() -> list[bytes]:
    import zstandard

    sure, plain = zstandard.ZstdCompressor(write_checksum=True), zstandard.ZstdCompressor(write_content_size=False)
    return [
        sure.compress(TEXT),
        plain.compress(TEXT),
        sure.compress(TEXT) + plain.compress(bytes(3000)),
        sure.compress(sequences()[1]),
    ]


def craft_gz(rng: Random) -> bytes:
    """Sound members around unsound SequenceFiles, bombs, and trailers that lie."""
    raw = rng.choice((craft_sequence(rng), TEXT, rng.randbytes(50)))
    member = _bomb(31) if rng.random() < 0.03 else gzip.compress(raw, 1, mtime=0)
    cut = rng.choice(
        (
            member,
            member[:-8] + rng.randbytes(8),
            member[:-4] + struct.pack("<I", rng.choice(mutations.EXTREMES) % (1 << 32)),
        )
    )
    return rng.choice((b"", b"\0" * 9, gzip.compress(b"", mtime=0))) + cut + rng.choice((b"", b"\0" * 50, b"x", member))


def craft_zst(rng: Random) -> bytes:
    """Frames by hand: a header with any window, and blocks of one repeated byte, raw or reserved."""
    descriptor = rng.choice((0, 0x20, 0x40, 0x80, 0xC0, 0x04, rng.randrange(256)))
    out = struct.pack("<IB", 0xFD2FB528, descriptor) + rng.randbytes(rng.choice((0, 1, 2, 5, 9)))
    for _ in range(rng.choice((1, 2, 200))):
        size = rng.choice((0, 1, 1 << 17, (1 << 21) - 1, rng.randrange(1 << 21)))
        out += ((size << 3) | (rng.choice((1, 1, 1, 0, 2, 3)) << 1) | (rng.random() < 0.02)).to_bytes(
            3, "little"
        ) + rng.randbytes(1)
    return out


def read_splits(suffix: str) -> Callable[[bytes], None]:
    """Plan splits over a file and read all of them, in the format that its bytes happen to choose."""
    from quoreduce.data.formats import parse_format
    from quoreduce.data.inputs import open_split, read_sequence_split
    from quoreduce.data.splits import plan_splits

    def read(raw: bytes) -> None:
        chosen = zlib.crc32(raw)
        fmt = parse_format("sequence" if suffix == ".seq" else ("lines", "words", "fixed:10", "sequence")[chosen % 4])
        splits = plan_splits([stored(raw, suffix)], fmt, max(1, len(raw) // (1 + chosen // 4 % 5)))
        assert sum(split.length for split in splits) == len(raw)
        for split in splits[:8]:
            if fmt.kind == "sequence":
                assert Block.open(read_sequence_split(split, folder().name, RECORDS_BYTES_MAX).buffer)
                continue
            with open_split(split, fmt, folder().name, MEMBER_BYTES_MAX) as data:
                assert data.size <= MEMBER_BYTES_MAX

    return read
