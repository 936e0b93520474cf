"""One stage of a campaign, as the main program of a process of its own: jobs one after the other until the time is
over.

It reads its orders, one JSON object, from stdin, and writes what it sees to stdout, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from quoreduce.chaos import jobs
from quoreduce.chaos.clusters import Ground, ground, skew
from quoreduce.chaos.monkey import FAKETIME, Monkey, wait_until_gone
from quoreduce.chaos.plan import COLLUSION, DEADLINE_S, REDUCERS, STAGES, JobPlan, plan_job
from quoreduce.chaos.tally import JobOutcome
from quoreduce.driver.result import Result
from quoreduce.errors import QuoreduceError
from quoreduce.protocol.options import Options, Place
from quoreduce.runtime.session import Session, verify

DISK_BYTES = 192 << 20
BASELINES = 2
COLLUSIONS = 3
DRIVER_WAIT_S = 10.0
MARKER = "QUOREDUCE_CHAOS"
COMMAND_MARKER = "QUOREDUCE_CHAOS_COMMAND"


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders of a stage. ``references``: job -> file -> digest of the right output.

    ``only``: run this job and no other; ``most``: jobs at most. ``first``: the first job that has not run yet.
    """

    stage: str
    seed: int
    seconds: float
    kinds: list[str]
    folder: str
    inputs: dict[str, str]
    references: dict[str, dict[str, str]]
    only: int | None = None
    most: int | None = None
    first: int = 0


class StageRunner:
    """Runs jobs on a ground, with a monkey."""

    def __init__(self, orders: Orders, out: TextIO) -> None:
        self._orders = orders
        self._out = out
        self._folder = Path(orders.folder)
        self._work = self._folder / "work"
        self._work.mkdir(parents=True)
        self._disk = orders.stage == "local" and _mount(self._work)
        self._session: Session | None = None
        self._seen: set[int] = set()
        self._kinds = [kind for kind in orders.kinds if self._can(kind)]

    def _can(self, kind: str) -> bool:
        """Say so if a kind cannot be had here."""
        stages = STAGES[self._orders.stage]
        if kind == "fill" and stages.name == "local" and not self._disk:
            self._say(note="NOT RUN: fill, for it needs root, to mount a small disk", not_run=kind)
            return False
        if kind == "clock" and stages.name in ("local", "cluster") and FAKETIME is None:
            self._say(note="NOT RUN: clock, for it needs libfaketime (apt-get install libfaketime)", not_run=kind)
            return False
        return True

    def _say(self, **what: Any) -> None:
        self._out.write(json.dumps(what) + "\n")
        self._out.flush()

    def run(self) -> None:
        """Run everything; a line for each job, and two around each set-up: what is raised between these is no job's."""
        here = ground(self._orders.stage, self._folder, self._work)
        start = time.monotonic()
        try:
            self._say(set_up="begun")
            self._session = here.open()
            self._say(note=f"{self._orders.stage}: ready after {time.monotonic() - start:.1f} s", set_up="done")
            if self._orders.first == 0:
                self._baseline()
            end = start + self._orders.seconds
            least = (
                time.monotonic() + self._orders.seconds / 2
            )  # starting takes long on a slow machine; that is not to be all
            for number in self._numbers():
                if time.monotonic() > max(end, least) and number >= STAGES[self._orders.stage].jobs_least:
                    break
                self._one(here, plan_job(self._orders.seed, self._orders.stage, number, self._kinds))
        finally:
            here.close()
        if self._orders.stage == "local" and self._orders.only is None:
            self._collude()
        left = [str(path.relative_to(self._work)) for path in self._work.rglob("*") if path.is_file()]
        self._say(left=left)

    def _numbers(self) -> Iterator[int]:
        if self._orders.only is not None:
            return iter([self._orders.only])
        first, most = self._orders.first, self._orders.most
        return count(first) if most is None else iter(range(first, most))

    def _baseline(self) -> None:
        """Each job without faults: once to warm up, then to compare with."""
        where = STAGES[self._orders.stage]
        for job in where.jobs if where.quiet_at_first else ():
            for i in range(1 + BASELINES):
                plan = JobPlan(self._orders.stage, -1, job, 1, (), (), (), DEADLINE_S * 3, 0)
                record = self._classified(plan, lambda plan=plan: self._job(plan, lambda progress: None, ()))  # type: ignore[misc]
                record.outcome = "warm" if i == 0 and record.outcome == "right" else record.outcome
                self._say(record=asdict(record))

    def _one(self, here: Ground, plan: JobPlan) -> None:
        """Run one job with its faults."""
        assert self._session is not None
        session = self._session
        self._say(begin=plan.name, job=plan.job, kinds=plan.kinds)
        if plan.kinds == ("driver",):
            self._say(record=asdict(self._kill_command(plan)))
            return
        here.begin(plan.kinds)
        monkey = Monkey(plan, lambda: session.workers, self._work, self._disk, here.strikers)
        domains = session.domains
        faults = tuple(_named(spec, domains) for spec in plan.faults)
        monkey.before()
        record = self._classified(plan, lambda: self._job(plan, monkey, faults), monkey.finish)
        clocks = Counter({"clock": skew(session.workers, self._seen)})
        record.faults = dict(+(monkey.happened + Counter(monkey.progress.struck) + here.around() + clocks))
        self._say(record=asdict(record))
        self._say(set_up="begun")
        self._session = here.mend() or session
        self._say(set_up="done")

    def _job(self, plan: JobPlan, report: Callable[[Any], None], faults: tuple[str, ...]) -> Result:
        assert self._session is not None
        options = Options(
            f=plan.f, reducers=REDUCERS, split_mb=jobs.split_mb(plan.job), faults=faults, fault_seed=plan.fault_seed,
            deadline_s=plan.deadline_s,
        )  # fmt: skip
        inputs = [self._orders.inputs[plan.job]]
        return self._session.run(jobs.job_of(plan.job), inputs, str(self._work / "out"), options, report)

    def _classified(
        self, plan: JobPlan, run: Callable[[], Result], tidy: Callable[[], object] = lambda: None
    ) -> JobOutcome:
        """Run a job, report its end, and delete its output."""
        record = JobOutcome(plan.stage, plan.number, plan.job, plan.f, "right", {})
        output = self._work / "out"
        start = time.monotonic()
        try:
            result = run()
            record.wall_s, record.extra = result.wall_s, result.reexecutions
        except QuoreduceError as error:
            record.outcome, record.error = "stopped", f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            record.outcome, record.error = "untyped", f"{type(error).__name__}: {error}"
        finally:
            tidy()
        record.wall_s = record.wall_s or time.monotonic() - start
        if record.outcome == "right":
            record.outcome = self._judge(plan.job, output)
        elif output.exists():
            record.outcome = "partial"
        shutil.rmtree(output, ignore_errors=True)
        left = [name for name in os.listdir(self._work) if name != "store"]
        record.left = len(left)
        if left:
            record.error += f"; left: {left}"
            _empty(self._work)
        record.rss_mb = _rss_mb()
        return record

    def _judge(self, job: str, output: Path) -> str:
        right, found = self._orders.references[job], jobs.contents(output)
        if found == right:
            return "right"
        if found.keys() != right.keys() or not (output / "_SUCCESS").exists():
            return "partial"
        return "wrong" if verify(str(output)).ok else "rotten"

    def _kill_command(self, plan: JobPlan) -> JobOutcome:
        """Kill a command somewhere in its job; nothing of it may stay; then the same command is to give the right
        output.
        """
        record = JobOutcome(plan.stage, plan.number, plan.job, plan.f, "right", {})
        output, marker = self._work / "out", f"{plan.stage}-{plan.number}-{os.getpid()}"
        command = self._command(plan, output, marker)
        delay_s = plan.strikes[0].pick % 50 / 100
        end = time.monotonic() + DRIVER_WAIT_S
        while not list(self._work.glob(".out.*.staging")) and command.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        try:
            command.wait(delay_s)
        except subprocess.TimeoutExpired:
            command.send_signal(signal.SIGKILL)
            record.faults = {"driver": 1}
        command.wait()
        orphans = wait_until_gone(f"{COMMAND_MARKER}={marker}", DRIVER_WAIT_S)
        if record.faults and output.exists() and self._judge(plan.job, output) != "right":
            record.outcome = "partial"
        shutil.rmtree(output, ignore_errors=True)
        start = time.monotonic()
        again = self._command(plan, output, marker)  # or one day: quoreduce resume
        code = again.wait(DRIVER_WAIT_S * 6)
        record.wall_s = time.monotonic() - start
        if record.outcome == "right":
            record.outcome = self._judge(plan.job, output) if code == 0 else "stopped"
            record.error = "" if code == 0 else f"run again: exit code {code}"
        shutil.rmtree(output, ignore_errors=True)
        left = [name for name in os.listdir(self._work) if name != "store"]
        record.left = len(left) + len(orphans)
        record.error += f"; left: {left} {orphans}" if left or orphans else ""
        record.rss_mb = _rss_mb()
        return record

    def _command(self, plan: JobPlan, output: Path, marker: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "quoreduce.cli", "run"]
        command += [plan.job, *(["--starts-with", "A"] if plan.job == "scan" else [])]
        command += [self._orders.inputs[plan.job], str(output)]
        command += ["--on", "local", "--workers", "3", "--domain", "worker", "--quiet"]
        command += [
            "--reducers",
            str(REDUCERS),
            "--split-mb",
            str(jobs.split_mb(plan.job)),
            "--store",
            str(self._work / "store"),
        ]
        return subprocess.Popen(
            command, env={**os.environ, COMMAND_MARKER: marker}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _collude(self) -> None:
        """Two domains out of three give the same wrong answers at f=1: the bound is broken, and the output is wrong."""
        with Session(Place("local", 3, "worker", store=str(self._work / "store"))) as self._session:
            for i in range(COLLUSIONS):
                plan = JobPlan("local", i, "wordcount", 1, (COLLUSION,), (), (), DEADLINE_S, i)
                monkey = Monkey(plan, list, self._work, False, {})
                faults = tuple(f"stuck:{domain}" for domain in self._session.domains[:2])
                record = self._classified(plan, lambda m=monkey, p=plan, f=faults: self._job(p, m, f))  # type: ignore[misc]
                record.faults = {COLLUSION: monkey.progress.struck.get("stuck", 0)}
                self._say(record=asdict(record))


def _named(spec: str, domains: list[str]) -> str:
    """Put the name of a domain in the place of its number: names stay when domains are lost."""
    kind, _, number = spec.partition(":#")
    return f"{kind}:{domains[int(number) % len(domains)]}" if number else spec


def _mount(folder: Path) -> bool:
    """Mount a small disk, which only this process and its children see (campaign started it in a name space of its
    own).
    """
    if os.geteuid() != 0 or os.readlink("/proc/self/ns/mnt") == os.environ.get("QUOREDUCE_CHAOS_MOUNTS"):
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "quoreduce-chaos", str(folder)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "store":
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True) if path.is_file() else None


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Run the stage that stdin describes; what others print goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    StageRunner(Orders(**json.load(sys.stdin)), out).run()


if __name__ == "__main__":
    main()
