"""Campaign: damaged inputs to everything that decodes bytes; each is read, or refused with an error that fits, and
soon.

    python tests/campaigns/fuzz.py                                     100,000 inputs, shared out over all kinds
    python tests/campaigns/fuzz.py --count 10000 --seed 0              what CI runs
    python tests/campaigns/fuzz.py --kind block --kind reply           of these kinds only
    python tests/campaigns/fuzz.py --kind block --replay 4711          one of them: where it is saved, and its result

Input number N of a kind is a function of the two alone (mutations.py, decoders.py). It is a finding if the decoder
raises anything else than the errors of its kind, or one that is not a clear line; if it needs more than CPU_S_MAX
seconds; if it cannot do with MEMORY_MAX bytes more than its process had before (RLIMIT_AS: nothing can be reserved
either); if it kills or hangs its process; if it contradicts itself, or takes damaged bytes for a sample. The bytes of
findings are saved. The end is 0 if there was none, else 1.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import multiprocessing
import os
import resource
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from decoders import TARGETS, Target
from mutations import mutated

Targets = dict[str, Target]

COUNT = 100_000
SLICE = 500
CRAFTED = 0.3
CPU_S_MAX = 2.0
HANG_S_MAX = 60.0
MEMORY_MAX = 256 << 20
SHOWN_MAX = 20
FRESH = 1 << 40  # seeds that are drawn lie below


class Slow(BaseException):
    """Not an Exception: no decoder may take it for one of its own."""


@dataclass(frozen=True)
class Finding:
    """What was wrong with an input."""

    kind: str
    number: int
    what: str


@dataclass
class Tally:
    """(kind, outcome) -> how many; the slowest input, CPU seconds; findings."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return sum(self.outcomes.values())

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.findings += other.findings

    def text(self) -> str:
        """The tally as a table: for each kind how many were read, and how many refused with which error."""
        lines = []
        for kind in dict.fromkeys(kind for kind, _ in sorted(self.outcomes)):
            ends = {end: n for (of, end), n in sorted(self.outcomes.items()) if of == kind}
            lines.append(f"{kind:26}{sum(ends.values()):>9,}  " + ", ".join(f"{end} {n:,}" for end, n in ends.items()))
        return "\n".join([*lines, f"slowest: {self.slowest_s:.2f} CPU s of {CPU_S_MAX:g}"])


def verdict(tally: Tally) -> str:
    """The last lines: what counts."""
    lines = [f"{len(tally.findings)} findings in {tally.inputs:,} inputs"]
    for found in tally.findings[:SHOWN_MAX]:
        lines.append(f"  {found.kind} {found.number}: {found.what}")
        lines.append(f'    python tests/campaigns/fuzz.py --kind "{found.kind}" --replay {found.number}')
    return "\n".join(lines)


def made(kind: str, number: int, targets: Targets = TARGETS) -> bytes:
    """Input `number` of a kind."""
    target, rng = targets[kind], Random(f"{kind} {number}")
    if target.craft is not None and rng.random() < CRAFTED:
        return target.craft(rng)
    return mutated(rng, target.samples(), target.ways)


def outcome(target: Target, raw: bytes) -> tuple[str, str]:
    """(how it ended, what is wrong with that or "")."""
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S_MAX)
    try:
        meaning = target.decode(raw)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except target.errors as error:
        text = str(error)
        wrong = "" if text and "\n" not in text and len(text) < 2000 else f"no clear line: {text[:200]!r}"
        return type(error).__name__, wrong
    except Slow:
        return "slow", f"not over after {CPU_S_MAX:g} s of CPU time"
    except Exception as error:  # noqa: BLE001 (that is what is looked for)
        at = traceback.extract_tb(error.__traceback__)[-1]
        return "finding", f"{type(error).__name__}: {str(error)[:200]} ({Path(at.filename).name}:{at.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if meaning is not None and raw not in target.samples() and meaning in _meanings(target):
        return "finding", "damaged, and taken for a sample"
    return "read", ""


def _meanings(target: Target) -> frozenset[bytes]:
    if target not in _known:
        _known[target] = frozenset(filter(None, map(target.decode, target.samples())))
    return _known[target]


_known: dict[Any, frozenset[bytes]] = {}


def explore(todo: Sequence[tuple[str, int]], targets: Targets = TARGETS, at: Any = None) -> Tally:
    """Make and decode these inputs, here; `at` is told which of them is next."""
    tally = Tally()
    for position, (kind, number) in enumerate(todo):
        if at is not None:
            at.value = position
        raw = made(kind, number, targets)
        begun = time.process_time()
        end, wrong = outcome(targets[kind], raw)
        tally.slowest_s = max(tally.slowest_s, time.process_time() - begun)
        tally.outcomes[kind, end] += 1
        if wrong:
            tally.findings.append(Finding(kind, number, wrong))
    return tally


def bounded(targets: Targets = TARGETS) -> None:
    """Give this process, once it has everything that it needs, MEMORY_MAX bytes more and a clock for each input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGVTALRM, _slow)
    for kind, target in targets.items():
        for sample in target.samples():
            with suppress(*target.errors):
                target.decode(sample)  # without a clock: kernels may have to be compiled
            end, wrong = outcome(target, sample)
            assert not wrong, f"a sample of {kind} ended in {end}: {wrong}"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MAX, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _slow(_signal: int, _frame: object) -> None:
    raise Slow


def _work(pipe: Any, at: Any, module: str) -> None:
    """In a process of its own: slices come in, tallies go out."""
    targets = importlib.import_module(module).TARGETS
    bounded(targets)
    pipe.send(None)
    while (todo := pipe.recv()) is not None:
        pipe.send(explore(todo, targets, at))


class _Worker:
    """A process that may die of what it is given; then it is known of what."""

    def __init__(self, module: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.at = context.Value("q", -1, lock=False)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.at, module), daemon=True)
        self.process.start()
        theirs.close()
        self.todo: list[tuple[str, int]] = []
        self.seen, self.since = -1, time.monotonic()

    def give(self, todo: list[tuple[str, int]]) -> None:
        self.todo, self.at.value, self.since = todo, 0, time.monotonic()
        self.pipe.send(todo)

    def hangs(self, hang_s_max: float) -> bool:
        """Whether it has been busy with the same input for too long."""
        now = int(self.at.value)
        if now != self.seen:
            self.seen, self.since = now, time.monotonic()
        return bool(self.todo) and time.monotonic() - self.since > hang_s_max

    def post_mortem(self, hung: bool) -> tuple[Tally, list[tuple[str, int]]]:
        """What it died of, and what it did not come to. Those before are done again, for their tally died with it."""
        self.process.kill()
        self.process.join()
        position = int(self.at.value)
        assert self.todo, f"a worker ended before it began, with {self.process.exitcode}"
        kind, number = self.todo[position]
        what = "hung" if hung else f"killed its process (exit code {self.process.exitcode})"
        tally = Tally(Counter({(kind, "killed"): 1}), 0.0, [Finding(kind, number, what)])
        return tally, self.todo[:position] + self.todo[position + 1 :]


def campaign(
    first: int,
    count: int,
    jobs: int,
    kinds: Sequence[str] = (),
    module: str = "decoders",
    hang_s_max: float = HANG_S_MAX,
) -> Iterator[Tally]:
    """Try `count` inputs, numbers from `first` on of each kind, in `jobs` processes; yield what is known, again and
    again.

    `module` has the TARGETS; `kinds` are some of them.
    """
    targets: Targets = importlib.import_module(module).TARGETS
    turns = [kind for kind in kinds or targets for _ in range(targets[kind].weight)]
    numbers = {kind: itertools.count(first) for kind in turns}
    todo = [(kind, next(numbers[kind])) for kind in itertools.islice(itertools.cycle(turns), count)]
    slices = [todo[at : at + SLICE] for at in range(0, count, SLICE)]
    tally, workers = Tally(), [_Worker(module) for _ in range(min(jobs, len(slices)))]
    try:
        while workers:
            ready = wait([worker.pipe for worker in workers], timeout=1.0)
            for worker in [w for w in workers if w.pipe in ready or w.hangs(hang_s_max)]:
                try:
                    part = worker.pipe.recv() if worker.pipe in ready else None
                    died = worker.pipe not in ready
                except (EOFError, OSError):
                    part, died = None, True
                if died:
                    part, rest = worker.post_mortem(worker.pipe not in ready)
                    slices += [rest] if rest else []
                    workers.remove(worker)
                    workers += [_Worker(module)] if slices else []
                elif slices:
                    worker.give(slices.pop(0))
                else:
                    worker.pipe.send(None)
                    workers.remove(worker)
                if part is not None:
                    tally.add(part)
                    yield tally
    finally:
        for worker in workers:
            worker.process.kill()


def saved(found: Finding, folder: Path) -> Path:
    """Keep the bytes of a finding."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found.kind.replace(': ', '-').replace(' ', '-')}.{found.number}"
    path.write_bytes(made(found.kind, found.number))
    return path


def replay(kind: str, number: int, folder: Path) -> int:
    """Make one input again and say what comes of it; whatever it raises is shown in full."""
    path = saved(Finding(kind, number, ""), folder)
    print(f"{path}: {path.stat().st_size} bytes", flush=True)
    bounded()
    end, wrong = outcome(TARGETS[kind], path.read_bytes())
    print(f"{end}{': ' + wrong if wrong else ''}", flush=True)
    if wrong:
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
        TARGETS[kind].decode(path.read_bytes())
    return bool(wrong)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Damaged inputs to everything that decodes bytes.")
    parser.add_argument("--count", type=int, default=COUNT, help=f"how many in all (default {COUNT:,})")
    parser.add_argument("--seed", type=int, help="number of the first of each kind (default: drawn, and printed)")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)"
    )
    parser.add_argument("--kind", action="append", choices=tuple(TARGETS), help="of this kind only; can be repeated")
    parser.add_argument("--replay", type=int, metavar="N", help="input number N of the kind")
    parser.add_argument(
        "--save", type=Path, default=Path(tempfile.gettempdir()) / "quoreduce-findings", help="folder for findings"
    )
    options = parser.parse_args(arguments)
    kinds = options.kind or list(TARGETS)
    if options.replay is not None:
        if len(kinds) != 1:
            parser.error("--replay needs the --kind")
        return replay(kinds[0], options.replay, options.save)
    first = secrets.randbelow(FRESH) if options.seed is None else options.seed
    count = max(1, options.count)
    print(f"{count:,} inputs of {len(kinds)} kinds, numbers from {first} on, on {options.jobs} processes", flush=True)
    begun, said, tally = time.monotonic(), 0.0, Tally()
    for tally in campaign(first, count, options.jobs, kinds):
        now = time.monotonic() - begun
        if now - said > 2 or tally.inputs == count:
            said = now
            print(f"{tally.inputs:,} of {count:,} after {now:.0f} s, {len(tally.findings)} findings", file=sys.stderr)
    print(f"{tally.text()}\n{verdict(tally)}")
    for found in tally.findings[:SHOWN_MAX]:
        print(f"saved: {saved(found, options.save)}")
    again = "".join(f' --kind "{kind}"' for kind in options.kind or ())
    print(f"again: python tests/campaigns/fuzz.py --count {count} --seed {first}{again}")
    return bool(tally.findings)


if __name__ == "__main__":
    sys.exit(main())
