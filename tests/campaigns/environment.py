"""Errors of the environment at every file call: ``python tests/campaigns/environment.py --count 1000 --seed 1``.

A *trial* is one command, one file call of its driver or of its workers, and one error with which that call ends, once
or from then on: EIO, ENOSPC, EMFILE, EINTR or ESTALE. Calls are those on the input, on the folder of the output, in the
store, in the record of suspects and in the kernel cache; a first run of each command without errors counts them. They
are made to fail by a small library that is preloaded into all processes (failing_calls.c, compiled here). Then, without
exception:

- the command ends in time, with an exit code that fits, and one line that says why if it is not 0; no traceback;
- the output is right, or there is none, or the one that it was to replace; nothing lies beside it but what a durable
  job keeps to be resumed, or what could not be removed because removing failed: then the next run removes it;
- no process is left.

Drivers are forked from this process, which has loaded and warmed everything, so that they are at work at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import faulthandler
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ending import left_after
from resume import processes

from quoreduce.protocol.compile import use_kernels
from quoreduce.protocol.port import kernel_cache

SOURCE = Path(__file__).with_name("failing_calls.c")
TEXT = Path(__file__).parents[1] / "data" / "kjv.txt"
OURS = ("quoreduce: ", "the record of suspects", "what was seen of suspects", "compiling kernels", "kernels in ")
COUNT = 2000
TEXT_BYTES, RECORDS = 60_000, 600
ERRORS = ("EIO", "ENOSPC", "EMFILE", "EINTR", "ESTALE")
ENDS_IN_S, GONE_IN_S = 60.0, 20.0
COMPILED_IN_S = 300.0  # if nothing of the kernel cache can be read, or kept, every kernel is compiled anew
CODES = {0, 2, 4}  # that fit: 1 is nobody's, 3 was not asked for, and neither the job nor a proof of it is to blame
# What removes things may fail in these, so that something stays.
REMOVERS = ("unlink", "rmdir", "opendir", "rename", "open", "stat", "close", "flock")
SMALL = ("--split-mb", "0.02", "--reducers", "3")
INLINE = ("--on", "inline", "--workers", "3")
LOCAL = ("--on", "local", "--workers", "2", "--domain", "worker")
FOUND_MAX = 400

Call = tuple[str, str, str]  # role, call, place


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command, and how often this campaign draws it."""

    words: tuple[str, ...]
    weight: int

    @property
    def job(self) -> str:
        return "sort" if "sort" in self.words else "wordcount"


SCENARIOS = {
    "wordcount-inline": Scenario(("run", "wordcount", *INLINE), 2),
    "sort-inline": Scenario(("run", "sort", *INLINE, "--digest", "fast"), 2),
    "durable-inline": Scenario(("run", "wordcount", *INLINE, "--durable"), 3),
    "sync-inline": Scenario(("run", "wordcount", *INLINE, "--sync"), 1),
    "wordcount-local": Scenario(("run", "wordcount", *LOCAL), 5),
    "sort-local": Scenario(("run", "sort", *LOCAL), 3),
    "durable-local": Scenario(("run", "wordcount", *LOCAL, "--durable"), 4),
    "overwrite-inline": Scenario(("run", "sort", *INLINE, "--overwrite"), 2),
    "resume": Scenario(("resume",), 3),
    "verify": Scenario(("verify",), 1),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One call that fails: the ``number``-th of its kind in a process, with this error, and perhaps all after it."""

    scenario: str
    call: Call
    number: int
    error: str
    forever: bool

    def __str__(self) -> str:
        return (
            f"{self.scenario}:{':'.join(self.call)}:{self.number}:{self.error}:{'forever' if self.forever else 'once'}"
        )

    @classmethod
    def parse(cls, text: str) -> Trial:
        scenario, role, call, place, number, error, how = text.split(":")
        return cls(scenario, (role, call, place), int(number), error, how == "forever")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended; ``code`` is None if it did not, in time."""

    code: int | None
    said: str
    complaint: str


@dataclass(slots=True)
class Tally:
    """What came of it. ``ends``: (error, end) -> trials. ``calls``: calls that failed. ``found``: (trial, what was
    wrong).
    """

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[Call] = field(default_factory=Counter)
    found: list[tuple[Trial, str]] = field(default_factory=list)
    trials: int = 0
    missed: int = 0


class Wrong(Exception):
    """What must not be."""


class Campaign:
    """Runs trials in ``folder``; this process has the library preloaded."""

    def __init__(self, folder: Path, errors: Sequence[str] = ERRORS) -> None:
        self._folder = folder
        self._errors = errors
        self._inputs = folder / "inputs"
        self._parent = folder / "outputs"
        self._output = self._parent / "out"
        self._store = folder / "store"
        self._places = {
            "input": self._inputs, "output": self._parent, "store": self._store, "state": folder / "state",
            "cache": folder / "cache",
        }  # fmt: skip
        self._calls: dict[str, Counter[Call]] = {}
        self._right: dict[str, dict[str, bytes]] = {}
        self.tally = Tally()

    def prepare(self) -> None:
        """Make inputs, warm this process, and run every command once, to see what is right and which calls there
        are.
        """
        shutil.copytree(kernel_cache(), self._places["cache"])
        os.environ |= {
            "QUOREDUCE_CACHE": str(self._places["cache"]),
            "QUOREDUCE_STATE": str(self._places["state"] / "state"),
        }
        os.environ.pop("NUMBA_CACHE_DIR", None)
        use_kernels()
        from quoreduce_kernels.gensort import generate_records

        for place in self._places.values():
            place.mkdir(exist_ok=True)
        (self._inputs / "wordcount").write_bytes(TEXT.read_bytes()[:TEXT_BYTES])
        (self._inputs / "sort").write_bytes(generate_records(0, RECORDS, "ascii").tobytes())
        self._warm()
        for name, scenario in SCENARIOS.items():
            self._calls[name] = self._count(name, scenario)

    def _warm(self) -> None:
        """Load what drivers need, and run both jobs."""
        from quoreduce import Options, Place, Session
        from quoreduce.jobs.find import find_job
        from quoreduce.runtime.session import verify

        for job in ("wordcount", "sort"):
            with Session(Place("inline", 3, store=str(self._store))) as session:
                source = [str(self._inputs / job)]
                session.run(find_job(job), source, str(self._output), Options(reducers=3, split_mb=0.02, durable=True))
            assert verify(str(self._output)).ok
            self._right[job] = self._parts()
            shutil.rmtree(self._output)

    def _cut_short(self) -> int:
        """Begin a durable job, and leave it when some tasks are agreed on: what a command does in a process of its
        own.
        """
        from quoreduce import Options, Place, Session
        from quoreduce.errors import HostError
        from quoreduce.jobs.find import find_job

        def cut(progress: object) -> None:
            if getattr(progress, "agreed", 0) >= 3:
                raise HostError("cut short")

        with Session(Place("inline", 3, store=str(self._store))) as session, contextlib.suppress(HostError):
            options = Options(reducers=3, split_mb=0.02, durable=True)
            session.run(find_job("wordcount"), [str(self._inputs / "wordcount")], str(self._output), options, cut)
        return 0

    def _count(self, name: str, scenario: Scenario) -> Counter[Call]:
        log = self._folder / "log"
        self._set_up(scenario)
        ended = self._command(scenario, {"FAIL_LOG": str(log)})
        if ended.code != 0:
            raise Wrong(f"{name} without errors: exit {ended.code}: {ended.complaint}")
        self._expect_right(scenario)
        self._clear()
        calls: Counter[Call] = Counter()
        for line in log.read_text().splitlines():
            role, call, place = line.split()
            calls[role, call, place] += 1
        log.unlink()
        return calls

    def draw(self, rng: random.Random) -> Trial:
        """A trial: all kinds of calls of a command are equally likely, and of each all that there are."""
        names = list(SCENARIOS)
        name = rng.choices(names, [SCENARIOS[one].weight for one in names])[0]
        calls = self._calls[name]
        call = rng.choice(sorted(calls))
        processes = 2 if call[0] == "workers" else 1
        number = rng.randrange(max(1, calls[call] // processes))
        error = rng.choice(self._errors)
        return Trial(name, call, number, error, error != "EINTR" and rng.random() < 0.4)

    def run(self, trial: Trial) -> None:
        """Run one, and note what came of it."""
        scenario, token = SCENARIOS[trial.scenario], self._folder / "token"
        token.unlink(missing_ok=True)
        self._set_up(scenario)
        role, call, place = trial.call
        ended = self._command(scenario, {
            "FAIL_ROLE": role, "FAIL_CALL": call, "FAIL_PLACE": place, "FAIL_AT": str(trial.number),
            "FAIL_TOKEN": str(token),
            "FAIL_ERRNO": str(getattr(errno, trial.error)), "FAIL_FOREVER": str(int(trial.forever)),
        }, COMPILED_IN_S if place == "cache" else ENDS_IN_S)  # fmt: skip
        self.tally.trials += 1
        if not token.exists():
            self.tally.missed += 1
        self.tally.calls[trial.call] += 1
        try:
            end = self._judge(trial, scenario, ended)
        except Wrong as wrong:
            end = "WRONG"
            self.tally.found.append(
                (trial, f"{wrong}; at {self._struck(token)}; exit {ended.code}: {ended.complaint.strip()}")
            )
        self.tally.ends[trial.error, end] += 1
        self._clear()

    def _struck(self, token: Path) -> str:
        return token.read_text().strip().replace(str(self._folder), "") if token.exists() else "no call"

    def _judge(self, trial: Trial, scenario: Scenario, ended: Ended) -> str:
        """How a trial ended; or raise Wrong."""
        if ended.code is None:
            raise Wrong("it does not end")
        if not all(line.startswith(OURS) for line in ended.complaint.splitlines()):
            raise Wrong("a traceback, or what is no message of ours")
        if ended.code not in CODES:
            raise Wrong("an exit code that does not fit")
        if ended.code and not ended.complaint.strip() and "problems" not in ended.said:
            raise Wrong("it does not say why")
        there = self._output.exists()
        before = "--overwrite" in scenario.words and self._parts() == self._right["wordcount"]
        if there and not (before and ended.code):
            self._expect_right(scenario)
        if ended.code == 0 and not there:
            raise Wrong("no output, and exit 0")
        if (
            ended.code
            and there
            and scenario.words[0] != "verify"
            and not before
            and "is complete" not in ended.complaint
        ):
            raise Wrong("an error, and the output is there")
        if not there and "--overwrite" in scenario.words and not self._kept():
            raise Wrong("the old output is gone")
        left = sorted(path.name for path in self._parent.iterdir() if path != self._output)
        if left and not self._may_stay(trial, ended):
            raise Wrong(f"left beside the output: {left}")
        self._nobody_is_left()
        if left:
            self._sweep(scenario)
        return "right" if ended.code == 0 else f"exit {ended.code}"

    def _may_stay(self, trial: Trial, ended: Ended) -> bool:
        """Whether something may lie beside the output: it can be resumed, which is said; or it could not be removed."""
        return "quoreduce resume" in ended.complaint or (trial.call[2] == "output" and trial.call[1] in REMOVERS) or (
            SCENARIOS[trial.scenario].words[0] == "resume" and ended.code != 0
        )  # fmt: skip

    def _sweep(self, scenario: Scenario) -> None:
        """The next run, without errors, removes what was left."""
        words = ("run", scenario.job, *INLINE, "--overwrite")
        ended = self._command(Scenario(words, 0), {})
        if ended.code != 0:
            raise Wrong(f"the next run does not go: {ended.complaint}")
        self._expect_right(scenario)
        if left := [path.name for path in self._parent.iterdir() if path != self._output]:
            raise Wrong(f"the next run leaves {left}")

    def _expect_right(self, scenario: Scenario) -> None:
        if self._parts() != self._right[scenario.job]:
            raise Wrong("the output is wrong")
        if not (self._output / "_SUCCESS").is_file():
            raise Wrong("the output has no manifest")

    def _kept(self) -> bool:
        """Whether an output that was to be replaced could not be put back, and lies where the next run finds it."""
        return any(path.is_dir() for path in self._parent.glob(".out.*.staging/old"))

    def _parts(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._output.glob("part-*")}

    def _set_up(self, scenario: Scenario) -> None:
        """What a command finds: nothing; or an output; or what a durable job left that was cut short."""
        if scenario.words[0] == "verify" or "--overwrite" in scenario.words:
            if self._command(SCENARIOS["wordcount-inline"], {}).code:
                raise Wrong("no output to verify")
        elif scenario.words[0] == "resume" and self._in_a_child(self._cut_short, {}).code:
            raise Wrong("no job to resume")

    def _clear(self) -> None:
        for path in [*self._parent.iterdir(), *self._store.iterdir(), *self._places["state"].iterdir()]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _nobody_is_left(self) -> None:
        if left := left_after(lambda: processes(str(self._folder)), GONE_IN_S):
            raise Wrong(f"left behind: {left}")

    def _command(self, scenario: Scenario, failing: dict[str, str], ends_in_s: float = ENDS_IN_S) -> Ended:
        """Run a command in a forked process, whose calls fail as said."""
        words = list(scenario.words)
        if words[0] == "run":
            words[2:2] = [str(self._inputs / scenario.job), str(self._output), *SMALL, "--store", str(self._store)]
        else:
            words[1:1] = [str(self._output)]
        if words[0] != "verify":
            words.append("--quiet")

        def command() -> int:
            from quoreduce.cli import main

            return main(words)

        return self._in_a_child(command, failing, ends_in_s)

    def _in_a_child(self, act: Callable[[], int], failing: dict[str, str], ends_in_s: float = ENDS_IN_S) -> Ended:
        said, complaint = self._folder / "stdout", self._folder / "stderr"
        places = ":".join(f"{name}={path}" for name, path in self._places.items())
        pid = os.fork()
        if pid == 0:
            _act(act, said, complaint, {"FAIL_PLACES": places, **failing} if failing else {})
        code = _ended_with(pid, ends_in_s)
        return Ended(code, said.read_text(), complaint.read_text())


def _ended_with(pid: int, ends_in_s: float) -> int | None:
    """The exit code of a process; None if it did not end in time: it says where it is, and is killed."""
    end = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([end], [], [], ends_in_s)
    finally:
        os.close(end)
    if ended:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.kill(pid, signal.SIGABRT)  # faulthandler says where
    os.waitpid(pid, 0)
    return None


def _act(act: Callable[[], int], said: Path, complaint: Path, failing: dict[str, str]) -> None:
    """What the forked process does: ``act``, with calls that fail, and then it ends."""
    code = 70
    try:
        for path, number in ((said, 1), (complaint, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        faulthandler.enable(2)
        os.environ |= failing
        ctypes.CDLL(None).fail_arm()
        code = act()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        import traceback

        code = 1
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def build(folder: Path) -> Path:
    """Compile the library that makes calls fail, and return its path."""
    library = folder / "failing_calls.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


def table(tally: Tally) -> str:
    """Trials by error and end, and by place and call."""
    ends = sorted({end for _, end in tally.ends})
    lines = [f"{'error':<10}" + "".join(f"{end:>10}" for end in ends)]
    for error in sorted({error for error, _ in tally.ends}):
        lines.append(f"{error:<10}" + "".join(f"{tally.ends[error, end]:>10}" for end in ends))
    roles = Counter(role for role, _, _ in tally.calls.elements())
    places = Counter(place for _, _, place in tally.calls.elements())
    calls = Counter(call for _, call, _ in tally.calls.elements())
    for title, counts in (("in", roles), ("on", places), ("calls", calls)):
        lines.append(f"{title}: " + ", ".join(f"{name} {n}" for name, n in counts.most_common()))
    lines.append(f"{tally.trials} trials, {tally.missed} whose call never came; {len(tally.found)} findings")
    return "\n".join(lines)


def findings(found: Sequence[tuple[Trial, str]]) -> Iterator[str]:
    """What was wrong, each with what repeats it."""
    for trial, wrong in found:
        yield f"WRONG: {trial}\n    {' | '.join(wrong.splitlines()[:40])[:3500]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Errors of the environment at every file call of small jobs.")
    parser.add_argument("--count", type=int, help="trials (default 2000; none with --replay)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), metavar="M", help="stop after so many (default: never)"
    )
    parser.add_argument("--seed", type=int, help="of what is drawn (default: drawn, and printed)")
    parser.add_argument("--errno", choices=ERRORS, help="this error only")
    parser.add_argument("--replay", metavar="TRIAL", nargs="+", default=[], help="these trials, as they were printed")
    parser.add_argument("--calls", action="store_true", help="list the calls of every command, and do no more")
    a = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1 << 32) if a.seed is None else a.seed
    folder = os.environ.get("FAIL_FOLDER")
    if folder is None:  # the library has to be there when a process begins
        with tempfile.TemporaryDirectory(prefix="environment-campaign-") as made:
            environment = {**os.environ, "FAIL_FOLDER": made, "LD_PRELOAD": str(build(Path(made)))}
            again = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--seed", str(seed)]
            return subprocess.run(again, env=environment, check=False).returncode
    campaign = Campaign(Path(folder), [a.errno] if a.errno else ERRORS)
    campaign.prepare()
    if a.calls:
        for name, calls in campaign._calls.items():
            print(name, *(f"  {' '.join(call)} {n}" for call, n in sorted(calls.items())), sep="\n")
        return 0
    print(f"seed {seed}", flush=True)
    rng, begun = random.Random(seed), time.monotonic()
    said = begun
    count = (0 if a.replay else COUNT) if a.count is None else a.count
    for trial in (*map(Trial.parse, a.replay), *(campaign.draw(rng) for _ in range(count))):
        known = len(campaign.tally.found)
        campaign.run(trial)
        print(
            *findings(campaign.tally.found[known:]),
            sep="\n",
            end="\n" * (len(campaign.tally.found) > known),
            flush=True,
        )
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{campaign.tally.trials} trials, {len(campaign.tally.found)} findings", file=sys.stderr, flush=True)
        if len(campaign.tally.found) >= FOUND_MAX or time.monotonic() - begun > 60 * a.minutes:
            break
    print(table(campaign.tally))
    print(f"again: python tests/campaigns/environment.py --count {count} --seed {seed}")
    return bool(campaign.tally.found)


if __name__ == "__main__":
    sys.exit(main())
