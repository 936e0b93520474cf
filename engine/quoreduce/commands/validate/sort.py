"""``quoreduce validate sort``: what TeraValidate checks (order, count, duplicates, checksum), and the same against the
input.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quoreduce.data.formats import parse_format
from quoreduce.data.inputs import open_split
from quoreduce.data.manifest import read_manifest
from quoreduce.data.splits import plan_splits
from quoreduce.errors import InputError, OutputError
from quoreduce.printable import printable
from quoreduce.protocol.compile import use_kernels

RECORD_BYTES = 100
CHUNK_RECORDS = 500_000


@dataclass(slots=True)
class Summary:
    """The result of checking a set of records. ``checksum`` is the sum of CRC-32 of all records, modulo 2**128."""

    records: int = 0
    duplicates: int = 0
    checksum: int = 0
    unordered: str = ""


def validate_sort(output: str, inputs: Sequence[str] | None, as_json: bool) -> int:
    """Check an output of the job ``sort`` (or one file of records); print the findings; return 0 if all is well, else
    2.
    """
    use_kernels(lambda text: print(text, file=sys.stderr))
    found = _summary_of_output(output)
    sources = list(inputs) if inputs else _sources(output)
    expected = summarise(sources) if sources else None
    problems = [found.unordered] if found.unordered else []
    if expected is not None and (expected.records, expected.checksum) != (found.records, found.checksum):
        problems.append(
            f"input has {expected.records} records with checksum {expected.checksum:x}, "
            f"output {found.records} with {found.checksum:x}"
        )
    if as_json:
        state = {**asdict(found), "checksum": f"{found.checksum:x}", "compared_with_input": expected is not None}
        print(json.dumps({**state, "problems": problems, "ok": not problems}))
    else:
        print(f"records: {found.records}\nchecksum: {found.checksum:x}\nduplicate keys: {found.duplicates}")
        print(
            "input: " + ("the same records" if expected and not problems else "differs" if expected else "not compared")
        )
        for problem in problems:
            print(printable(problem))
        print("FAILURE" if problems else "SUCCESS")
    return 2 if problems else 0


def summarise(inputs: Sequence[str]) -> Summary:
    """Count and sum the records of files, directories, globs or URIs, in any order."""
    from quoreduce_kernels.gensort import crc_sum

    total = Summary()
    record_format = parse_format(f"fixed:{RECORD_BYTES}")
    for split in plan_splits(inputs, record_format, CHUNK_RECORDS * RECORD_BYTES):
        with open_split(split, record_format, Path(os.environ.get("TMPDIR", "/tmp"))) as data:
            total.records += data.size // RECORD_BYTES
            total.checksum += crc_sum(data)
            del data
    total.checksum %= 1 << 128
    return total


def _summary_of_output(output: str) -> Summary:
    path = Path(output)
    if path.is_file():
        return _check_files([path])
    manifest = read_manifest(output)
    if manifest.extras.get("output") != f"fixed:{RECORD_BYTES}":
        raise OutputError(f"{output} is no output of sort: its parts are not records of {RECORD_BYTES} bytes")
    return _check_files([path / part.name for part in manifest.parts])


def _check_files(paths: Sequence[Path]) -> Summary:
    """Go through the records of all parts in order, a chunk at a time."""
    from quoreduce_kernels.gensort import crc_sum, validate_sorted

    total = Summary()
    previous = b""
    for path in paths:
        size = _record_file_size(path)
        if size == 0:
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as memory:
            for start in range(0, size, CHUNK_RECORDS * RECORD_BYTES):
                data = np.frombuffer(memory, np.uint8, min(CHUNK_RECORDS * RECORD_BYTES, size - start), start)
                bad, duplicates, previous = validate_sorted(data, previous)
                if bad >= 0 and not total.unordered:
                    total.unordered = f"{path}: record {start // RECORD_BYTES + bad} is less than the one before it"
                total.duplicates += duplicates
                total.checksum += crc_sum(data)
                total.records += data.size // RECORD_BYTES
                del data
    total.checksum %= 1 << 128
    return total


def _record_file_size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if size % RECORD_BYTES:
        raise InputError(f"{path}: {size} bytes is not a whole number of {RECORD_BYTES}-byte records")
    return size


def _sources(output: str) -> list[str]:
    """The inputs that the manifest names, if they are all still there as they were."""
    if Path(output).is_file():
        return []
    files = read_manifest(output).inputs
    there = all(Path(one.path).is_file() and Path(one.path).stat().st_size == one.bytes for one in files)
    return [one.path for one in files] if there else []
