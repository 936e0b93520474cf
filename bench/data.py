"""Data of the benchmarks, made once and kept: a text of Zipf-distributed words, 100-byte records, and GridMix's three
sets.

``python -m bench.data`` makes it and prints where it lies. What it depends on, from the environment:

QUOREDUCE_BENCH_SIZE     ``quick`` (default: 256 MB each) or ``full`` (1 GiB of text, 1 GB of records);
                         of each of GridMix's sets 50 MB or 400 MB, before compression
QUOREDUCE_BENCH_TEXT     bytes of text instead (256M, 1G: powers of 1000)
QUOREDUCE_BENCH_RECORDS  number of records instead
QUOREDUCE_BENCH_GRIDMIX  bytes of keys and values of each of GridMix's sets instead
QUOREDUCE_BENCH_DATA     folder; default: ``bench`` in the cache of quoreduce, ~/.cache/quoreduce

The records are those of ``gensort -a`` with the carriage return before each line feed made a space: there are engines
that take a carriage return for the end of a line, and all shall read, sort and write the same bytes.
"""

from __future__ import annotations

import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZES = {"quick": (256_000_000, 2_560_000), "full": (1 << 30, 10_000_000)}
GRIDMIX_BYTES = {"quick": 50_000_000, "full": 400_000_000}
GRIDMIX_PARTS = 8
RECORD_BYTES = 100
CARRIAGE_RETURN_AT = 98
SEED = 1
READ_BYTES = 1 << 20


def size() -> str:
    """``quick`` or ``full``."""
    chosen = os.environ.get("QUOREDUCE_BENCH_SIZE", "quick")
    if chosen not in SIZES:
        raise ValueError(f"QUOREDUCE_BENCH_SIZE is quick or full, not {chosen!r}")
    return chosen


def text_bytes() -> int:
    """Bytes of the text."""
    return _amount("QUOREDUCE_BENCH_TEXT", SIZES[size()][0])


def record_count() -> int:
    """Number of records."""
    return _amount("QUOREDUCE_BENCH_RECORDS", SIZES[size()][1])


def gridmix_bytes() -> int:
    """Bytes of keys and values of each of GridMix's sets."""
    return _amount("QUOREDUCE_BENCH_GRIDMIX", GRIDMIX_BYTES[size()])


def folder() -> Path:
    """The folder of the data, which exists."""
    from quoreduce.protocol.port import kernel_cache

    chosen = os.environ.get("QUOREDUCE_BENCH_DATA")
    path = Path(chosen) if chosen else kernel_cache() / "bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


def prepare() -> None:
    """Have the kernels compiled and this process load them from where workers do; call before they are imported."""
    from quoreduce.protocol.compile import use_kernels

    use_kernels(_say)


def text() -> Path:
    """The text, made if it is missing, in the page cache."""
    from quoreduce.commands.generate.generate import text_chunks

    nbytes = text_bytes()
    return _made(f"text-{nbytes}", "textgen", lambda: text_chunks(nbytes, SEED))


def records() -> Path:
    """The records, made if they are missing, in the page cache."""
    count = record_count()
    return _made(f"records-{count}", "gensort", lambda: _lines(count))


def gridmix() -> Path:
    """The folder of GridMix's three sets, made if it is missing, in the page cache."""
    from quoreduce_gridmix import data as sets

    name = f"gridmix-{gridmix_bytes()}-{GRIDMIX_PARTS}"
    path = folder() / f"{name}-{_version('quoreduce_kernels.gridgen')}{_version('quoreduce_gridmix.words')}"
    if not path.exists():
        prepare()
        for old in _older(name):
            shutil.rmtree(old)
        _say(f"generating {path} ...")
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            for kind in sets.KINDS:
                sets.generate(kind, unfinished / kind, gridmix_bytes(), GRIDMIX_PARTS, SEED)
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    for part in path.glob("*/part-*"):
        _read(part)
    return path


def _lines(count: int) -> Iterator[NDArray[np.uint8]]:
    from quoreduce.commands.generate.generate import record_chunks

    for chunk in record_chunks("ascii", 0, count):
        chunk[:, CARRIAGE_RETURN_AT] = ord(" ")
        yield chunk


def _amount(variable: str, usual: int) -> int:
    from quoreduce.limits import BYTES

    given = os.environ.get(variable)
    return BYTES(given) if given else usual


def _made(name: str, generator: str, chunks: Callable[[], Iterator[Any]]) -> Path:
    """The file of a name and of the generator's version; older versions are deleted."""
    from quoreduce.commands.generate.generate import write_file

    path = folder() / f"{name}-{_version(f'quoreduce_kernels.{generator}')}"
    if not path.exists():
        prepare()
        for old in _older(name):
            old.unlink()
        _say(f"generating {path} ...")
        write_file(path, chunks())
    _read(path)
    return path


def _older(name: str) -> list[Path]:
    """What earlier versions made, which is deleted; nothing in a folder of the user's choice, for names prove
    nothing.
    """
    return [] if os.environ.get("QUOREDUCE_BENCH_DATA") else list(folder().glob(f"{name}-*"))


def _version(module: str) -> str:
    """Eight hexadecimal digits that change when the source of a generator does."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return f"{zlib.crc32(Path(spec.origin).read_bytes()):08x}"


def _read(path: Path) -> None:
    """Bring a file into the page cache."""
    chunk = bytearray(READ_BYTES)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(chunk):
            pass


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    for path in (text(), records()):
        print(f"{path}: {path.stat().st_size:,} bytes")
    sets = gridmix()
    print(f"{sets}: {sum(part.stat().st_size for part in sets.glob('*/part-*')):,} bytes")


if __name__ == "__main__":
    main()
