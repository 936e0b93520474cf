"""Mutation testing of tracker/ and data/: is each small change of the source seen by some test?

    python tests/campaigns/mutants.py --report docs/design/mutants.md   all mutants, and a document of the results
    python tests/campaigns/mutants.py --sample 10% --seed 7      a tenth of them
    python tests/campaigns/mutants.py --modules data/block       one module; survivors are printed
    python tests/campaigns/mutants.py --state FILE               results are kept in FILE; a mutant killed there is
                                                                 not run again

What a mutant is stands in operators.py. A mutant of tracker/ or data/ is shown to the tests of the same name,
tests/tracker or tests/data, and of these to the ones that run the changed statement (all that use the module, and those
of its own file, if it runs at import), the fastest first, until one fails. This process runs all the tests once,
unchanged, to learn that and to have all libraries and kernels loaded; then it forgets our modules, and for each mutant
a forked child imports them again, one of them changed. Tests that work in processes of their own see the unchanged
module. Hypothesis repeats the same examples.

A mutant is killed when a test fails, when the module cannot be imported, or when the child needs far more time or
memory than the tests did. Survivors are explained, one by one, in survivors.toml.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "engine")]

from operators import RULES, Mutant, mutants_of  # noqa: E402

PACKAGE = ROOT / "engine" / "quoreduce"
SURVIVORS = Path(__file__).with_name("survivors.toml")
AREAS = ("data", "tracker")
CONTROLS = {"data": "data/inputs", "tracker": "tracker/tracker"}
NOT_MUTATED = ("tracker/invariants",)  # nothing but assertions
NOT_FOR_MUTANTS = ("test_mutants.py",)  # plants bugs of its own, in the source as it is on disk
UNWATCHED = (
    "tests/data/test_inputs_s3.py"  # the threads of its servers would not survive a fork; shown last, as a whole
)
WITH_URIS = ("data/splits", "data/inputs", "data/commit", "data/manifest")
OTHERS_S = 4.0  # of tests in other files than the module's own, in seconds of CPU
URIS_S = 10.0  # that the unwatched tests may take
CPU_BASE_S, CPU_FACTOR, WALL_FACTOR = 3, 3, 4  # limits of a child, from the CPU time that its tests took
MEMORY_MAX = 6 << 30  # no bound on files: some tests make one of 1 TB, without contents
KILLED, SURVIVED, NO_PYTHON = "killed", "survived", "no Python"
UNCHANGED = "unchanged"
UNEXPLAINED = "Not explained: the tests have a gap here"


@dataclass
class Seen:
    """Which tests ran which statements, as (module's file, line), and each test's seconds of CPU."""

    lines: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    users: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by module's file
    seconds: dict[str, float] = field(default_factory=dict)


class Watcher:
    """Pytest plugin: what is measured while a test runs is that test's."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        self.measured.switch_context(item.nodeid)
        start = time.process_time()  # not of the clock: a busy machine must not change which tests are chosen
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - start


class Chosen:
    """Pytest plugin: only these tests, in this order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.rank = {test: n for n, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if {item.nodeid, item.nodeid.split("::")[0]} & self.rank.keys()]
        items[:] = sorted(chosen, key=lambda item: self.rank.get(item.nodeid, 0))


class Steady:
    """Pytest plugin: hypothesis repeats its examples, and does not look for the smallest one that fails."""

    def pytest_collection(self) -> None:
        from hypothesis import HealthCheck, Phase, settings

        settings.register_profile(
            "mutants", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        settings.load_profile("mutants")


def run_tests(paths: Sequence[str], *plugins: object) -> int:
    return int(pytest.main(["-x", "--assert=plain", "--tb=no", "-p", "no:cacheprovider", *paths], [Steady(), *plugins]))


def forget_ours() -> None:
    """Let the next import of our modules and tests read them again; kernels and libraries stay."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        is_test = file.startswith(f"{ROOT / 'tests'}{os.sep}") and "campaigns" not in file
        if is_test or name.split(".")[0] == "quoreduce":
            del sys.modules[name]


def watch(area: str) -> Seen:
    """Run the area's tests once; raise RuntimeError when they do not pass."""
    measured = coverage.Coverage(data_file=None, include=[str(PACKAGE / area / "*")], config_file=False)
    watcher = Watcher(measured)
    with quiet() as said, measured.collect():
        code = run_tests(tests_of(area), watcher)
        text = said() if code else ""
    forget_ours()
    if code:
        raise RuntimeError(f"the tests of {area} do not pass as they are:\n{text}")
    seen = Seen(seconds=watcher.seconds)
    for file in measured.get_data().measured_files():
        for line, tests in measured.get_data().contexts_by_lineno(file).items():
            seen.lines[file, line] |= {test for test in tests if test}
            seen.users[file] |= seen.lines[file, line]
    return seen


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Keep what is written to stdout and stderr in a file; the value gives it, cut at its start."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace")[-4000:]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])


class Changed(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module of ours from another source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname: str, path: object, target: object = None) -> Any:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_source(self, fullname: str) -> str:
        return self.source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, str(self.path), "exec")


@dataclass
class Child:
    """A process that shows a mutant to its tests in `folder`; it is killed at `until`, of the monotonic clock."""

    mutant: Mutant
    folder: Path
    pid: int
    fd: int
    until: float

    def kill(self) -> None:
        """It, and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def in_child(mutant: Mutant, tests: Sequence[str], seconds: float, scratch: Path) -> Child:
    """Fork; the child ends with 0 if all tests pass. Its own alarm would not do: tests have alarms, too."""
    cpu = int(CPU_BASE_S + CPU_FACTOR * seconds)
    pid = os.fork()
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # both do it: whoever comes first
        return Child(mutant, scratch, pid, os.pidfd_open(pid), time.monotonic() + WALL_FACTOR * cpu)
    code = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        log = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        name = "quoreduce." + mutant.module.replace("/", ".")
        sys.meta_path.insert(0, Changed(name, PACKAGE / f"{mutant.module}.py", mutant.source))
        try:
            compile(mutant.source, mutant.module, "exec")
        except SyntaxError:
            os._exit(99)
        own = own_file(mutant)
        groups = [
            [test for test in tests if test.startswith(own)],
            [test for test in tests if not test.startswith(own)],
        ]
        if mutant.module in WITH_URIS:
            groups.append([UNWATCHED])
        for group in groups:
            files = list(dict.fromkeys(test.split("::")[0] for test in group))
            code = run_tests([*files, f"--basetemp={scratch / 'tmp'}"], Chosen(group)) if group else 0
            if code:
                break
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def own_file(mutant: Mutant) -> str:
    area, module = mutant.module.split("/")
    return f"tests/{area}/test_{module}.py"


def tests_for(mutant: Mutant, seen: Seen) -> list[str]:
    """The tests that run the changed statement, fastest first: those of the module's own file, and the fastest
    others.
    """
    file, own = str(PACKAGE / f"{mutant.module}.py"), own_file(mutant)
    if mutant.imported:
        tests = seen.users[file] | {
            test for test in seen.seconds if test.startswith(own)
        }  # dataclasses run no line of it
    else:
        first, last = mutant.lines
        tests = set().union(*(seen.lines.get((file, line), set()) for line in range(first, last + 1)))
    chosen: list[str] = []
    left = OTHERS_S
    for test in sorted(tests, key=lambda test: (seen.seconds[test], test)):
        if test.startswith(own) or (left := left - seen.seconds[test]) > 0 or not chosen:
            chosen.append(test)
    return chosen


@dataclass
class Score:
    """How mutants ended: (mutant, killed or survived), in the order in which they ended; the rest is left."""

    ends: list[tuple[Mutant, str]] = field(default_factory=list)
    left: int = 0  # for which there was no time

    def survivors(self) -> list[Mutant]:
        return [mutant for mutant, end in self.ends if end == SURVIVED]

    def count(self, module: str | None = None) -> Counter[str]:
        return Counter(end for mutant, end in self.ends if module in (None, mutant.module))


def area_of(mutant: Mutant) -> str:
    return mutant.module.split("/")[0]


def modules_of(area: str) -> list[Path]:
    return sorted((PACKAGE / area).glob("*.py"))


def tests_of(area: str) -> list[str]:
    found = sorted((ROOT / "tests" / area).glob("test_*.py"))
    names = [str(path.relative_to(ROOT)) for path in found if path.name not in NOT_FOR_MUTANTS]
    return [name for name in names if name != UNWATCHED]


def all_mutants(wanted: Sequence[str]) -> list[Mutant]:
    """The mutants of the modules that are wanted, as ``data`` or ``tracker/vote``."""
    mutants: list[Mutant] = []
    for area in AREAS:
        for path in modules_of(area):
            name = f"{area}/{path.stem}"
            if name not in NOT_MUTATED and {name, area} & set(wanted):
                mutants += mutants_of(name, path.read_text())
    return mutants


def told(area: str, say: Callable[[str], None]) -> Seen:
    """Watch the tests of an area, and say how many there are."""
    start = time.perf_counter()
    seen = watch(area)
    say(f"{area}: {len(seen.seconds)} tests pass in {time.perf_counter() - start:.0f} s, watched")
    return seen


class Campaign:
    """Shows mutants to their tests, ``jobs`` at a time. Each child has a folder of its own: what one leaves behind must
    not kill the next.
    """

    def __init__(self, seen: dict[str, Seen], jobs: int, score: Score, say: Callable[[str], None]) -> None:
        self._seen, self._jobs, self._score, self._say = seen, jobs, score, say
        self._scratch = Path(tempfile.mkdtemp(prefix="quoreduce-mutants-"))
        self._running: dict[int, Child] = {}

    def show(self, mutant: Mutant, tests: Sequence[str]) -> None:
        """Start a child for a mutant, and wait until fewer than ``jobs`` run."""
        watched = self._seen[area_of(mutant)]
        seconds = sum(watched.seconds[test] for test in tests) + URIS_S * (mutant.module in WITH_URIS)
        child = in_child(mutant, tests, seconds, Path(tempfile.mkdtemp(dir=self._scratch)))
        self._running[child.fd] = child
        while len(self._running) >= self._jobs:  # one that is killed for its time has not ended at once
            self._collect()

    def wait(self) -> None:
        """Wait until all children have ended."""
        while self._running:
            self._collect()

    def close(self) -> None:
        """Kill what still runs, and remove the folders."""
        for child in self._running.values():
            child.kill()
        remove(self._scratch)

    def note(self, mutant: Mutant, end: str) -> None:
        """Add the end of a mutant to the score."""
        if mutant.name != UNCHANGED:
            self._score.ends.append((mutant, end))
            if end == SURVIVED:
                self._say(f"survived: {mutant.module}:{mutant.lines[0]} {mutant.name}")

    def _collect(self) -> None:
        """Wait until a child has ended, or its time is over."""
        left = min(child.until for child in self._running.values()) - time.monotonic()
        ended, _, _ = select.select(list(self._running), [], [], max(0.0, left))
        for child in [child for child in self._running.values() if child.until <= time.monotonic()]:
            child.kill()
        for fd in ended:
            self._finish(self._running.pop(fd))

    def _finish(self, child: Child) -> None:
        mutant, folder = child.mutant, child.folder
        _, status = os.waitpid(child.pid, 0)
        os.close(child.fd)
        child.kill()
        end = {0: SURVIVED, 99: NO_PYTHON}.get(os.waitstatus_to_exitcode(status), KILLED)
        if mutant.name == UNCHANGED and end != SURVIVED:
            self._score.ends.clear()
            log = (folder / "log").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{mutant.module} does not survive as it is, in a forked child:\n{log}")
        remove(folder)
        self.note(mutant, end)


def run_campaign(
    mutants: Sequence[Mutant], jobs: int, minutes: float, score: Score, say: Callable[[str], None]
) -> None:
    """Show each mutant to its tests, `jobs` at a time, start none after `minutes` of it, and note in `score` how they
    end.

    First and last a module of each area is shown unchanged to all tests: it must survive, or nothing would mean
    anything; then `score` is empty (RuntimeError).
    """
    seen = {area: told(area, say) for area in sorted({area_of(mutant) for mutant in mutants})}
    gc.collect()
    gc.freeze()  # children collect what is theirs
    until = time.monotonic() + 60 * minutes
    modules = [CONTROLS[area] for area in seen]
    controls = [Mutant(name, UNCHANGED, (0, 0), True, (PACKAGE / f"{name}.py").read_text()) for name in modules]
    campaign = Campaign(seen, jobs, score, say)
    try:
        for control in controls:
            campaign.show(control, list(seen[area_of(control)].seconds))
        for mutant in mutants:
            if time.monotonic() > until:
                break
            tests = tests_for(mutant, seen[area_of(mutant)])
            if tests or mutant.module in WITH_URIS:
                campaign.show(mutant, tests)
            else:
                campaign.note(mutant, SURVIVED)
        for control in controls:
            campaign.show(control, list(seen[area_of(control)].seconds))
        campaign.wait()
    finally:
        campaign.close()


def remove(folder: Path) -> None:
    """Also what is mounted there, by a test that was killed before it could undo it."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in mounts:
        if mount.startswith(f"{folder}{os.sep}"):
            subprocess.run(["umount", "--lazy", mount], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def reasons() -> dict[str, str]:
    """Why a survivor is one, by name; a name that ends with ``*`` is the beginning of several."""
    groups = tomllib.loads(SURVIVORS.read_text())["because"]
    return {f"{group['module']} {name}": group["reason"] for group in groups for name in group["mutants"]}


def key_of(mutant: Mutant) -> str:
    return f"{mutant.module} {mutant.name}"


def reason_of(mutant: Mutant, known: dict[str, str]) -> str | None:
    name = key_of(mutant)
    starts = (why for start, why in known.items() if start[-1] == "*" and name.startswith(start[:-1]))
    return known.get(name) or next(starts, None)


def table(score: Score, every: Sequence[Mutant]) -> list[str]:
    """Lines of a Markdown table: a row for each module, and their sums."""
    known = reasons()
    names = ("module", "mutants", "tried", "killed", "survived", "of which explained", "score")
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * 6]
    modules = sorted({mutant.module for mutant, _ in score.ends})
    areas = [f"{area}/" for area in AREAS if any(module.startswith(f"{area}/") for module in modules)]
    for begin in [*modules, *areas, ""]:
        there = sum(mutant.module.startswith(begin) for mutant in every)
        ends = [(mutant, end) for mutant, end in score.ends if mutant.module.startswith(begin) and end != NO_PYTHON]
        killed = sum(end == KILLED for _, end in ends)
        explained = sum(end == SURVIVED and reason_of(mutant, known) is not None for mutant, end in ends)
        share = f"{killed / len(ends):.1%}" if ends else "-"
        cells = (begin.rstrip("/") or "all", there, len(ends), killed, len(ends) - killed, explained, share)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def report(score: Score, every: Sequence[Mutant], how: str) -> str:
    """The document: the table, the rules, and all survivors by reason."""
    known, by_reason = reasons(), defaultdict(list)
    for mutant in score.survivors():
        by_reason[reason_of(mutant, known) or UNEXPLAINED].append(f"{mutant.module}.py {mutant.name}")
    lines = [
        "# Mutation testing of tracker/ and data/", "",
        "Is each small change of the source seen by some test? This file is written by the campaign: "
        "`make mutants`, or",
        "`python tests/campaigns/mutants.py`, which says with `--help` what else it can do.", "", how, "",
        *table(score, every), "",
        "A score is killed / tried; explained survivors count as survivors.", "",
        "## What a mutant is", "", RULES.replace("``", "`"), "", "## Survivors", "",
    ]  # fmt: skip
    for why, names in sorted(by_reason.items(), key=lambda item: (item[0] == UNEXPLAINED, item)):
        lines += [f"{why} ({len(names)}):", "", "```text", *names, "```", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; exit code 1 if fewer mutants than ``--score`` percent were killed."""
    parser = argparse.ArgumentParser(description="Mutation testing of tracker/ and data/.")
    parser.add_argument(
        "--modules", default=",".join(AREAS), help="areas or modules, as data or tracker/vote,data/seal"
    )
    parser.add_argument("--sample", default="100%", help="how many of the mutants, in percent")
    parser.add_argument("--seed", type=int, default=None, help="of the sample")
    parser.add_argument(
        "--minutes", type=float, default=None, help="show mutants for this long; 0: only say what --state knows"
    )
    parser.add_argument("--score", type=float, default=90, help="percent that must be killed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--state", type=Path, default=None, help="keep ends here; what was killed is not shown again")
    parser.add_argument("--report", type=Path, default=None, help="write what became of all as Markdown")
    options = parser.parse_args(arguments)
    options.state, options.report = (path and path.absolute() for path in (options.state, options.report))
    os.chdir(ROOT)
    start = time.monotonic()
    mutants = every = all_mutants(options.modules.split(","))
    if (
        options.sample != "100%" or options.minutes is not None
    ):  # a random order: those that are left for want of time are any
        seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
        mutants = random.Random(seed).sample(every, round(len(every) * float(options.sample.rstrip("%")) / 100))
        print(f"{len(mutants)} of {len(every)} mutants, --seed {seed}", flush=True)
    before = json.loads(options.state.read_text()) if options.state and options.state.exists() else {}
    known = {key_of(mutant): before[key_of(mutant)] for mutant in mutants if key_of(mutant) in before}
    new = [mutant for mutant in mutants if known.get(key_of(mutant), SURVIVED) == SURVIVED]
    minutes = float("inf") if options.minutes is None else options.minutes
    score = Score()
    try:
        run_campaign(new if minutes else [], options.jobs, minutes, score, lambda line: print(line, flush=True))
    finally:
        if options.state:  # whatever happens, what was learnt is kept
            options.state.write_text(json.dumps(before | {key_of(mutant): end for mutant, end in score.ends}, indent=0))
    shown = {key_of(mutant) for mutant, _ in score.ends}
    old = [(mutant, known[key]) for mutant in mutants if (key := key_of(mutant)) in known and key not in shown]
    score.ends += old
    score.left = len(mutants) - len(score.ends)
    took = f"{(time.monotonic() - start) / 60:.0f} minutes, {options.jobs} at a time"
    print("\n".join(table(score, every)), f"{took}; {score.left} mutants were left for want of time", sep="\n")
    if options.report:
        again = f" What became of {len(old)} of these is from earlier runs (--state)." if old else ""
        how = f"The last run tried {len(score.ends)} of {len(every)} mutants: {took}.{again}"
        options.report.write_text(report(score, every, how))
    counts = score.count()
    return int(counts[KILLED] < options.score / 100 * (counts[KILLED] + counts[SURVIVED]))


if __name__ == "__main__":
    sys.exit(main())
