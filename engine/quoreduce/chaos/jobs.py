"""The jobs of a campaign, and their inputs: small, of every style, with MAPS_LEAST or more maps each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from quoreduce.chaos.plan import MAPS_LEAST, REDUCERS
from quoreduce.job import Job

SIZES = {"wordcount": 4_000_000, "sort": 12_000_000, "scan": 12_000_000, "python": 200_000, "stream": 1_000_000}
RECORD_BYTES = 100


def job_of(name: str) -> Job:
    """Return a job of a campaign."""
    if name in ("wordcount", "sort"):
        from quoreduce.jobs.find import find_job

        return find_job(name)
    if name == "scan":
        from quoreduce.jobs.scan import scan_job

        return scan_job(b"A")
    if name == "stream":
        from quoreduce.jobs.streaming import stream_job

        return stream_job("tr a-z A-Z", "uniq -c")
    return Job("lengths", map_lengths, reduce_lengths)


def map_lengths(line: bytes) -> Iterator[tuple[int, int]]:
    """Yield (length, 1) for each word of a line."""
    for word in line.split():
        yield len(word), 1


def reduce_lengths(length: int, ones: list[int]) -> Iterator[tuple[int, int]]:
    """Count the words of one length."""
    yield length, sum(ones)


def make_inputs(folder: Path) -> dict[str, str]:
    """Write the inputs to ``folder``: job -> path. Text with Zipf-like words, and records as gensort makes them."""
    from quoreduce_kernels.gensort import generate_records
    from quoreduce_kernels.textgen import CHUNK_BYTES, generate_text

    text = generate_text(0, CHUNK_BYTES, 1).tobytes()
    records = generate_records(0, SIZES["sort"] // RECORD_BYTES, "ascii").tobytes()
    paths = {}
    for name, size in SIZES.items():
        path = folder / f"{name}.in"
        path.write_bytes((records if name in ("sort", "scan") else text)[:size])
        paths[name] = str(path)
    return paths


def split_mb(name: str) -> float:
    """The size of splits, in MB, with which a job has MAPS_LEAST maps."""
    return SIZES[name] / MAPS_LEAST / 1e6


def contents(output: Path) -> dict[str, str]:
    """The BLAKE3 digests (hex) of all files of an output but its manifest."""
    return {path.name: blake3(path.read_bytes()).hexdigest() for path in output.iterdir() if path.name != "_SUCCESS"}


def references(inputs: dict[str, str], folder: Path) -> dict[str, dict[str, str]]:
    """The right output of each job, from a run without replicas or faults in this process."""
    from quoreduce.protocol.options import Options, Place
    from quoreduce.runtime.session import Session

    found = {}
    with Session(Place("inline", 1, "worker", store=str(folder / "inline"))) as session:
        for name, path in inputs.items():
            output = folder / f"{name}.out"
            session.run(
                job_of(name), [path], str(output), Options(mode="original", reducers=REDUCERS, split_mb=split_mb(name))
            )
            found[name] = contents(output)
    return found
