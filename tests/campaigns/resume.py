"""kill -9 of the driver at random moments, and then resume: ``python tests/campaigns/resume.py --kills 200 --seed 1``.

A *trial* is one durable job. Its driver, the real command line in a process of its own, is killed at a random moment;
so is, perhaps, the one that resumes it, and the one after that; in the end one is left alone. Then, without exception:

- the output is the reference, byte for byte, and there is nothing else beside it, in the store, or among the processes;
- no driver has executed a task that an earlier one agreed on: journals say what each has launched, the last one's
  result how much.

Moments are of three kinds: by the *clock*, anywhere in the life of a driver, start-up and end included; by the
*journal*, when it has grown to so many bytes; and at the *end*, when all parts are published and the output is about to
appear. Drivers are forked from this process, which has loaded and warmed everything, so that they are at work at once.
Two of three trials run in the driver's own process, the others on worker processes that outlive it for a moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ending import left_after

from quoreduce.data.journal import Begun, Decided, Launched, Record, decode
from quoreduce.protocol.compile import use_kernels
from quoreduce.scratch import sweep

TEXT = Path(__file__).parents[1] / "data" / "kjv.txt"
TEXT_BYTES, RECORDS = 160_000, 1500
JOBS = {"wordcount": "0.005", "sort": "0.005"}  # and their --split-mb
REDUCERS = 5
PLACES = {"inline": ("--inline", "--workers", "3"), "local": ("--on", "local", "--workers", "2", "--domain", "worker")}
LIFE_MAX_S, GONE_MAX_S = 120.0, 20.0
LOOKS_S = 0.0002  # between two looks at the journal
PHASES = ("before the journal", "nothing agreed on", "maps", "reduces", "all agreed on", "output in place")


class Wrong(Exception):
    """The campaign has found something."""


@dataclass(slots=True)
class Reference:
    """What a job puts out, and how long and how large its life is undisturbed: seconds, bytes of the journal."""

    parts: dict[str, bytes]
    digest: str
    tasks: dict[str, int]
    life_s: float
    journal_bytes: int


@dataclass(slots=True)
class Tally:
    """What came of it. ``phases``: (phase, number of the driver) -> kills."""

    phases: Counter[tuple[str, int]] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    jobs: int = 0
    torn: int = 0
    taken: int = 0
    executed: int = 0
    misses: int = 0

    @property
    def kills(self) -> int:
        return sum(self.phases.values())


def agreed_again(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Tasks that a driver has launched although an earlier one had agreed on them."""
    before: set[tuple[str, int]] = set()
    now: set[tuple[str, int]] = set()
    again = []
    for record in records:
        if isinstance(record, Begun):
            before |= now
        elif isinstance(record, Decided):
            now.add((record.kind, record.index))
        elif isinstance(record, Launched) and (record.kind, record.index) in before:
            again.append((record.kind, record.index))
    return again


def agreed(records: Sequence[Record]) -> Counter[str]:
    """How many tasks of each kind are agreed on."""
    return Counter(kind for kind, _ in {(one.kind, one.index) for one in records if isinstance(one, Decided)})


@dataclass(slots=True)
class Ended:
    """How a driver ended; ``killed``: by us. ``journal_bytes``: the most that was seen."""

    killed: bool
    code: int
    said: str
    error: str
    wall_s: float
    journal_bytes: int = 0


class Campaign:
    """Runs trials in ``folder``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._inputs = {"wordcount": folder / "text", "sort": folder / "records"}
        self._store = folder / "store"
        self._output = folder / "outputs" / "out"
        self._output.parent.mkdir()
        self._store.mkdir()
        self._references: dict[tuple[str, str], Reference] = {}
        self.tally = Tally()

    def prepare(self) -> None:
        """Make inputs, warm this process, and run every job once at every place."""
        use_kernels()
        from quoreduce_kernels.gensort import generate_records

        self._inputs["wordcount"].write_bytes(TEXT.read_bytes()[:TEXT_BYTES])
        self._inputs["sort"].write_bytes(generate_records(0, RECORDS, "ascii").tobytes())
        for job in JOBS:
            self._in_this_process(job)
            for on in PLACES:
                self._references[job, on] = self._reference(job, on)

    def _in_this_process(self, job: str) -> None:
        from quoreduce import Options, Place, Session
        from quoreduce.jobs.find import find_job

        with Session(Place("inline", store=str(self._store))) as session:
            session.run(
                find_job(job), [str(self._inputs[job])], str(self._output), Options(durable=True, reducers=REDUCERS)
            )
        self._clear()

    def _reference(self, job: str, on: str) -> Reference:
        self._driver(self._run(job, on), None)
        self._clear()
        ended = self._driver(self._run(job, on), None)
        if ended.code:
            raise Wrong(f"{job} on {on} without kills: {ended.error}")
        result, parts = json.loads(ended.said), self._parts()
        for other in (one for (name, _), one in self._references.items() if name == job):
            if other.parts != parts:
                raise Wrong(f"{job}: the reference on {on} is another")
        self._clear()
        tasks = {kind: n // 2 for kind, n in result["executions"].items()}
        return Reference(parts, result["digest"], tasks, ended.wall_s, ended.journal_bytes)

    def _run(self, job: str, on: str) -> list[str]:
        words = [
            "run",
            job,
            str(self._inputs[job]),
            str(self._output),
            "--durable",
            "--json",
            "--reducers",
            str(REDUCERS),
        ]
        return [*words, "--split-mb", JOBS[job], "--store", str(self._store), *PLACES[on]]

    def trial(self, kills: int) -> None:
        """One job, whose drivers are killed up to ``kills`` times."""
        rng, tally = self._rng, self.tally
        job, on = rng.choice(list(JOBS)), rng.choice(("inline", "inline", "local"))
        reference = self._references[job, on]
        first, again = self._run(job, on), ["resume", str(self._output), "--json"]
        command, life, before, tally.trials = first, 0, Counter[str](), tally.trials + 1
        while True:
            moment, due = self._moment(reference) if kills else ("", None)
            ended = self._driver(command, due)
            if ended.killed:
                kills -= 1
                phase, before = self._look(reference)
                tally.phases[phase, min(life, 3)] += 1
                tally.moments[moment] += 1
                command, life = again, life + 1
                continue
            tally.misses += due is not None
            if "no durable job was writing" in ended.error and before.total() == 0 and command is again:
                command = first  # it was killed before it had begun
                continue
            self._judge(ended, reference, before)
            return

    def _moment(self, reference: Reference) -> tuple[str, Callable[[float, int], bool]]:
        """A moment to kill a driver: its name, and whether it has come, by seconds since the start and bytes of the
        journal.
        """
        rng = self._rng
        kind = rng.choice(("clock", "clock", "journal", "journal", "end"))
        if kind == "clock":
            at_s = rng.uniform(0, 1.05 * reference.life_s)
            return kind, lambda now_s, nbytes: now_s >= at_s
        if kind == "journal":
            nbytes_at = rng.randrange(1, reference.journal_bytes)
            return kind, lambda now_s, nbytes: nbytes >= nbytes_at
        since: list[float] = []
        more_s = rng.uniform(0, 0.004)

        def due(now_s: float, nbytes: int) -> bool:
            if not since and (self._all_published() or self._output.exists()):
                since.append(now_s)
            return bool(since) and now_s >= since[0] + more_s

        return kind, due

    def _all_published(self) -> bool:
        return any(len(os.listdir(path)) >= REDUCERS for path in self._output.parent.glob(".out.*.staging/output"))

    def _look(self, reference: Reference) -> tuple[str, Counter[str]]:
        """After a kill: what phase it was in, and how many tasks of each kind are agreed on; the journal is checked."""
        records = self._journal()
        if again := agreed_again(records):
            raise Wrong(f"executed again although agreed on before: {again}")
        have, kinds = agreed(records), reference.tasks
        if self._output.exists():
            return "output in place", have
        if not records:
            return "before the journal", have
        if not have:
            return "nothing agreed on", have
        if have["map"] < kinds["map"]:
            return "maps", have
        return "reduces" if have["reduce"] < kinds["reduce"] else "all agreed on", have

    def _journal(self) -> list[Record]:
        for path in self._output.parent.glob(".out.*.staging/journal"):
            raw = path.read_bytes()
            records, good, _ = decode(raw)
            self.tally.torn += good < len(raw)
            return records
        return []

    def _judge(self, ended: Ended, reference: Reference, before: Counter[str]) -> None:
        """The last driver ended by itself, or the one before was killed when the output was in place."""
        if ended.code == 0:
            result = json.loads(ended.said)
            left = {kind: 2 * (n - before[kind]) for kind, n in reference.tasks.items()}
            executed = {kind: n for kind, n in result["executions"].items() if kind in left}
            if result["recovered"] != before.total() or executed != {k: n for k, n in left.items() if k in executed}:
                raise Wrong(f"agreed on before: {before}; taken over {result['recovered']}, executed {executed}")
            self.tally.taken += result["recovered"]
            self.tally.executed += sum(executed.values())
        elif not (ended.code == 2 and ended.error.endswith("is complete\n")):
            raise Wrong(f"exit {ended.code}: {ended.error}")
        if self._parts() != reference.parts:
            raise Wrong("the output is another")
        if json.loads((self._output / "_SUCCESS").read_text())["digest"] != reference.digest:
            raise Wrong("the manifest is another")
        self._clear()
        self._nothing_is_left()
        self.tally.jobs += 1

    def _parts(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._output.glob("part-*")}

    def _clear(self) -> None:
        """Delete the output; there must be nothing beside it."""
        if os.listdir(self._output.parent) != ["out"]:
            raise Wrong(f"left beside the output: {os.listdir(self._output.parent)}")
        for path in self._output.iterdir():
            path.unlink()
        self._output.rmdir()

    def _nothing_is_left(self) -> None:
        until = time.monotonic() + GONE_MAX_S
        while True:  # again only if a driver was killed while it started a worker, which nothing names yet
            running = left_after(lambda: processes(str(self._folder)), until - time.monotonic())
            sweep(self._store)  # as the next session does, of those whose processes were all killed
            left = [*running, *(str(path) for path in self._store.rglob("*"))]
            if not left:
                return
            if time.monotonic() > until:
                raise Wrong(f"left behind: {left}")

    def _driver(self, words: Sequence[str], due: Callable[[float, int], bool] | None) -> Ended:
        """Run the command line in a forked process, and kill it when it is ``due``."""
        said, error = self._folder / "stdout", self._folder / "stderr"
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_the_command(words, said, error)
        end, largest = os.pidfd_open(pid), 0
        try:
            while True:
                ended, _, _ = select.select([end], [], [], LOOKS_S)
                now_s = time.monotonic() - start
                if ended:
                    break
                largest = max(largest, self._journal_bytes())
                if now_s > LIFE_MAX_S or (due is not None and due(now_s, largest)):
                    os.kill(pid, signal.SIGKILL)
                    break
        finally:
            os.close(end)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not ended and now_s > LIFE_MAX_S:
            raise Wrong(f"{' '.join(words)} hangs")
        if not ended and code == -signal.SIGKILL:
            return Ended(True, code, "", "", now_s)
        return Ended(False, code, said.read_text(), error.read_text(), now_s, largest)  # perhaps as it was to be killed

    def _journal_bytes(self) -> int:
        for path in self._output.parent.glob(".out.*.staging/journal"):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0


def _be_the_command(words: Sequence[str], said: Path, error: Path) -> None:
    """What the forked process does: it is the command line from here on."""
    code = 70
    try:
        for path, number in ((said, 1), (error, 2)):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, number)
        from quoreduce.cli import main

        code = main([*words, "--quiet"])
        sys.stdout.flush()
    except SystemExit as leave:
        code = int(leave.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def processes(text: str) -> Iterator[str]:
    """Command lines of processes other than this one that name ``text``."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line and path.parent.name != str(os.getpid()):
                yield f"{path.parent.name}: {line}"


def table(tally: Tally) -> str:
    """Kills by phase and by driver: the first, the one that resumes, the one that resumes that, and later ones."""
    lines = [f"{'killed':<22}{'run':>8}{'resume':>8}{'again':>8}{'later':>8}"]
    for phase in PHASES:
        lines.append(f"{phase:<22}" + "".join(f"{tally.phases[phase, life]:>8}" for life in range(4)))
    total = [sum(n for (_, life), n in tally.phases.items() if life == one) for one in range(4)]
    lines.append(f"{'all':<22}" + "".join(f"{n:>8}" for n in total))
    moments = ", ".join(f"{name} {n}" for name, n in sorted(tally.moments.items()))
    return "\n".join([
        *lines,
        f"{tally.kills} kills ({moments}; {tally.misses} came too late);",
        f"{tally.jobs} jobs, their outputs right, and nothing left of them;",
        f"the last drivers took over {tally.taken} tasks and executed {tally.executed} times, "
        "never what was agreed on before;",
        f"{tally.torn} journals had a torn end",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill the drivers of durable jobs at random moments, and resume.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--folder", help="where to work (default: a folder for temporary files)")
    a = parser.parse_args(argv)
    print(f"seed {a.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="resume-campaign-", dir=a.folder) as folder:
        campaign = Campaign(Path(folder), a.seed)
        campaign.prepare()
        try:
            while campaign.tally.kills < a.kills:
                more = a.kills - campaign.tally.kills
                campaign.trial(min(more, campaign._rng.choice((1, 1, 2, 2, 3, 5))))
        except Wrong as error:
            print(table(campaign.tally), f"\nWRONG in job {campaign.tally.trials} of seed {a.seed}: {error}")
            return 1
    print(table(campaign.tally))
    return 0


if __name__ == "__main__":
    sys.exit(main())
