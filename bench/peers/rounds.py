"""Engines in turn: rounds, and outputs compared after every run."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import measure
from bench.peers.apart import PeerFailed

CHUNK_BYTES = 1 << 20
SLOW_S = 40.0  # what an engine's rounds may take together, about
ROUNDS_MIN = 2
HASH_BYTES = 16


@dataclass(slots=True)
class Engine:
    """One way to do a job. ``run(input, output, job)`` does it once; None: it is missing here, is left out or
    failed.
    """

    name: str
    ours: bool
    run: Callable[[Path, Path, str], measure.Run] | None
    why_missing: str = ""
    runs: list[measure.Run] = field(default_factory=list)
    memory_bytes: int = 0
    retries: int = 0
    rounds: int = 0

    @property
    def kept(self) -> list[measure.Run]:
        """The clean runs; all, if fewer than half are clean."""
        clean = [run for run in self.runs if not run.noise.dirty]
        return clean if 2 * len(clean) >= len(self.runs) else self.runs


def fingerprint(output: Path, job: str) -> str:
    """What outputs are compared by: sorted records as they are; else lines in any order, each as often as it occurs."""
    files = part_files(output)
    if job == "sort":
        whole = hashlib.blake2b()
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK_BYTES):
                    whole.update(chunk)
        return whole.hexdigest()
    lines = (line for path in files for line in _lines(path))
    return lines_digest(map(word_and_count, lines) if job == "wordcount" else lines)


def part_files(output: Path) -> list[Path]:
    """The files of an output, in the order of their names, without those that only say something about it."""
    return sorted(path for path in output.iterdir() if path.name[0] not in "._") if output.is_dir() else [output]


def lines_digest(lines: Iterator[bytes]) -> str:
    """How many lines there are, and the sum of their hashes: the same for the same lines in whatever order."""
    count = total = 0
    for line in lines:
        total += int.from_bytes(hashlib.blake2b(line, digest_size=HASH_BYTES).digest(), "little")
        count += 1
    return f"{count} lines, {total % (1 << 8 * HASH_BYTES):0{2 * HASH_BYTES}x}"


def word_and_count(line: bytes) -> bytes:
    """``word<TAB>count`` of a line, which may be one of ``uniq -c``."""
    if b"\t" in line:
        return line
    count, _, word = line.strip().partition(b" ")
    return word + b"\t" + count


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for line in file:
            yield line.removesuffix(b"\n")


def delete(output: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def compare(job: str, source: Path, found: Sequence[Engine], rounds: int, folder: Path, pids: Sequence[int]) -> None:
    """Run all engines, first once for memory and warmth, then in rounds; RuntimeError if outputs differ.

    A peer that fails or takes too long is reported as such, and runs no more; quoreduce failing ends the comparison.
    """
    wanted = ""
    warm = set(pids)
    for engine in found:
        if engine.run is None:
            continue
        say(f"{job}, for memory: {engine.name}")
        watched = (lambda: warm) if "warm" in engine.name else (lambda: measure.processes_below(os.getpid()) - warm)
        with measure.watch_memory(watched) as peak:
            first = _once(engine, job, source, folder, wanted)
        if first is not None:
            engine.memory_bytes = peak.nbytes
            engine.rounds = min(rounds, max(ROUNDS_MIN, int(SLOW_S / max(first[0].wall_s, 1e-3))))
            wanted = first[1]
    for number in range(rounds):
        turn = number % len(found)
        for engine in (*found[turn:], *found[:turn]):
            if engine.run is not None and number < engine.rounds:
                say(f"{job}, round {number + 1} of {engine.rounds}: {engine.name}")
                _round(engine, job, source, folder, wanted, number if engine.rounds == rounds else -1)


def _round(engine: Engine, job: str, source: Path, folder: Path, wanted: str, retries: int) -> None:
    """One run; while it is disturbed another, until the engine has made more than ``retries`` in all."""
    done = _once(engine, job, source, folder, wanted)
    while done is not None and done[0].noise.dirty and engine.retries <= retries:
        engine.retries += 1
        done = _once(engine, job, source, folder, wanted)
    if done is not None:
        engine.runs.append(done[0])


def _once(engine: Engine, job: str, source: Path, folder: Path, wanted: str) -> tuple[measure.Run, str] | None:
    """Run an engine; None: it failed, which it is marked with."""
    assert engine.run is not None
    output = folder / "out"
    measure.wait_for_quiet()
    try:
        run = engine.run(source, output, job)
        found = fingerprint(output, job)
    except PeerFailed as error:
        if engine.ours:
            raise
        say(f"{job}: {engine.name}: {error}")
        last = (str(error).splitlines() or [""])[-1]
        engine.run, engine.why_missing = None, f"failed: {last}"
        return None
    finally:
        delete(output)
    if wanted and found != wanted:
        raise RuntimeError(f"{job}: the output of {engine.name} differs from that of the engines before it")
    return run, found


def say(message: str) -> None:
    """Tell whoever waits what is being done."""
    print(message, file=sys.stderr, flush=True)
