"""Start commands and end them by signals at random moments; see that nothing of them stays, and that their words are
true.

    python tests/campaigns/signals.py --count 200 --seed 0

A case is one `quoreduce run`, local or on a Ray of its own, that gets one or two of SIGINT, SIGTERM, SIGHUP and SIGKILL
at a random moment of its life, from its first instruction to its end. Then, and after SIGKILL when the next session has
been: shared memory, the folder for temporary files, the store and the folder of the output are as they were, but for
the output if the command said so; no process of it runs; the exit status is 128 + one of the signals, or 0 with the
right output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ending import left_after

from quoreduce import scratch
from quoreduce.data.commit import OutputDir

TEXT = Path(__file__).parents[1] / "data" / "kjv.txt"
TEXT_BYTES = 600_000
LIFE_MAX_S = 120.0
GONE_MAX_S = 30.0
RAY_EVERY = 8  # a Ray takes seconds to start
GENTLE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SWEEP = "from quoreduce import scratch; import sys; from pathlib import Path; scratch.sweep(Path(sys.argv[1]))"
SHARED = scratch.SHARED_MEMORY / f"quoreduce-{os.geteuid()}"
MARK = "QUOREDUCE_SIGNALS_CAMPAIGN"


class Wrong(Exception):
    """What must not happen."""


@dataclass(slots=True)
class Tally:
    """What came of the cases: (where, signal, how it ended) -> how many."""

    cases: int = 0
    ends: Counter[tuple[str, str, str]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to one command: where it runs, its signals, and when they come, as shares of an undisturbed life."""

    on: str
    default_store: bool
    signals: tuple[signal.Signals, ...]
    moment: float
    gap_s: float


def draw(rng: random.Random, number: int) -> Case:
    """A case; every RAY_EVERY-th is on Ray."""
    first = rng.choice((*GENTLE, signal.SIGKILL))
    second = (rng.choice((*GENTLE, signal.SIGKILL)),) if rng.random() < 0.4 and first != signal.SIGKILL else ()
    on = "ray" if number % RAY_EVERY == RAY_EVERY - 1 else "local"
    return Case(on, rng.random() < 0.5, (first, *second), rng.uniform(0, 1.05), rng.choice((0.0, rng.uniform(0, 0.3))))


class Campaign:
    """Runs cases in ``folder``, whose path has to be short: sockets of Ray are below it."""

    def __init__(self, folder: Path) -> None:
        for (
            number
        ) in GENTLE:  # below nohup, or in a shell's background, some are ignored, and so they are in what is started
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        self._folder = folder
        self._text, self._store, self._outputs, self._temporary = (
            folder / name for name in ("text", "store", "outputs", "t")
        )
        for path in (self._store, self._outputs, self._temporary):
            path.mkdir()
        self._text.write_bytes(TEXT.read_bytes()[:TEXT_BYTES])
        self._mark = f"{MARK}={os.getpid()}-{folder.name}"
        self._lives: dict[str, float] = {}
        self._right: dict[str, bytes] = {}
        self.tally = Tally()

    @property
    def _output(self) -> Path:
        return self._outputs / "deep" / "out"

    def _start(self, case: Case, undisturbed: bool = False) -> subprocess.Popen[bytes]:
        words = [
            "run",
            "wordcount",
            str(self._text),
            str(self._output),
            "--on",
            case.on,
            "--workers",
            "2",
            "--domain",
            "worker",
        ]
        words += ["--split-mb", "0.1", "--reducers", "2", "--quiet"]
        words += [] if case.default_store else ["--store", str(self._store)]
        name, _, value = self._mark.partition("=")
        environment = {**os.environ, "TMPDIR": str(self._temporary), name: value}
        return subprocess.Popen(
            [sys.executable, "-m", "quoreduce.cli", *words], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def life_s(self, on: str) -> float:
        """How long a command takes that is let alone; the first one warms up what is loaded, and its output is the
        right one.
        """
        if on not in self._lives:
            for _ in range(2):
                start = time.monotonic()
                process = self._start(Case(on, False, (), 0, 0))
                _, said = process.communicate(timeout=LIFE_MAX_S)
                if process.returncode:
                    raise Wrong(f"without signals: {said.decode()}")
                self._lives[on] = time.monotonic() - start
                self._right = self._parts()
                self._clear()
        return self._lives[on]

    def one(self, case: Case) -> None:
        """Run one case; raise Wrong."""
        life_s, before = self.life_s(case.on), self._state()
        process = self._start(case)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(case.moment * life_s)
        for number in case.signals:
            if process.poll() is None:
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(case.gap_s)
        try:
            stdout, stderr = process.communicate(timeout=LIFE_MAX_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Wrong("it does not end") from None
        killed = process.returncode == -signal.SIGKILL
        self._judge(case, process.returncode, stdout.decode(), stderr.decode(), killed)
        self._nothing_is_left(case, before, killed)
        self.tally.cases += 1
        names = "+".join(number.name for number in case.signals)
        self.tally.ends[case.on, names, "killed" if killed else f"exit {process.returncode}"] += 1

    def _judge(self, case: Case, code: int, stdout: str, stderr: str, killed: bool) -> None:
        complete = self._output.exists()
        if complete and self._parts() != self._right:
            raise Wrong("the output is not the right one")
        if killed or code in {-number for number in case.signals}:
            return  # it was killed, or ended by Python before it had begun or when all was done
        if "KeyboardInterrupt" in stderr and "quoreduce" not in stderr:
            return  # SIGINT before the first line of ours
        if "Traceback" in stderr or "Exception ignored" in stderr:
            raise Wrong(f"a traceback: {stderr}")
        if code == 0:
            if not complete or "digest" not in stdout:
                raise Wrong(f"exit 0, and no output: {stdout} {stderr}")
            return
        if code not in {128 + number for number in case.signals}:
            raise Wrong(f"exit {code}: {stderr}")
        if complete and "nothing was published" in stderr:
            raise Wrong(f"it is not true: {stderr}")
        if not complete and "nothing was published" not in stderr:
            raise Wrong(f"it does not say what became of the output: {stderr!r}")

    def _parts(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._output.glob("part-*")}

    def _clear(self) -> None:
        shutil.rmtree(self._outputs / "deep", ignore_errors=True)

    def _state(self) -> set[str]:
        """What is there; in shared memory, where others work too: what tells of our store, and sessions whose makers
        are dead.
        """
        found = {str(path) for root in (self._store, self._outputs, self._temporary) for path in root.rglob("*")}
        found |= {str(path) for path in SHARED.glob(f"*{scratch.ELSEWHERE}") if str(self._folder) in os.readlink(path)}
        left = {one.path for one in scratch.find_left()}
        ours = {str(path) for path in left if path.is_relative_to(SHARED) or path.is_relative_to(self._folder)}
        return found | ours | set(processes(self._mark))

    def _nothing_is_left(self, case: Case, before: set[str], killed: bool) -> None:
        """After SIGKILL, the next session and the next run that writes there have been."""
        if killed and case.on == "ray":
            self._sweep()  # its agents look for it for a minute
        if running := left_after(lambda: processes(self._mark), GONE_MAX_S):
            raise Wrong(f"processes live on: {running}")
        if killed:
            self._sweep()
            self._write_there_again()
        else:
            self._clear_output()
        if left := {path for path in self._state() - before if not (killed and self._is_probe(Path(path)))}:
            raise Wrong(f"left behind: {sorted(left)[:10]}")

    def _sweep(self) -> None:
        """As the next session does."""
        environment = {**os.environ, "TMPDIR": str(self._temporary)}
        subprocess.run([sys.executable, "-c", SWEEP, str(self._store)], env=environment, check=True)

    def _clear_output(self) -> None:
        """Delete the output, and the folder that was made for it; there must be nothing else in it."""
        if self._output.exists():
            for path in self._output.iterdir():
                path.unlink()
            self._output.rmdir()
            if left := os.listdir(self._output.parent):
                raise Wrong(f"left beside the output: {left}")
            self._output.parent.rmdir()

    def _is_probe(self, path: Path) -> bool:
        """Whether it is what Python's tempfile writes, and deletes at once, to see whether it may write there."""
        return path.parent == self._temporary and len(path.name) == 8 and path.is_file() and path.stat().st_size <= 4

    def _write_there_again(self) -> None:
        """As the next run does, in this process."""
        OutputDir(str(self._output), True, [], "again").abort()
        if not self._output.exists() and self._output.parent.is_dir() and not os.listdir(self._output.parent):
            self._output.parent.rmdir()  # the killed one had made it, and nobody can tell
        self._clear_output()


def processes(mark: str) -> Iterator[str]:
    """Processes whose environment has ``mark``, but for those that have ended."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                yield (
                    f"{path.name}: "
                    f"{(path / 'cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')[:120]}"
                )


def table(tally: Tally) -> str:
    """How the commands ended."""
    lines = [f"{'where':<8}{'signals':<20}{'end':<12}{'cases':>6}"]
    lines += [f"{on:<8}{names:<20}{end:<12}{n:>6}" for (on, names, end), n in sorted(tally.ends.items())]
    return "\n".join([*lines, f"{tally.cases} starts and kills, nothing left behind"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="End commands by signals at random moments, and see that nothing of them stays."
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="leave out the cases before this one")
    parser.add_argument("--on", choices=["local", "ray"], help="only there")
    parser.add_argument(
        "--folder", default="/tmp", help="where to work; a short path, for Ray's sockets (default /tmp)"
    )
    a = parser.parse_args(argv)
    print(f"seed {a.seed}", flush=True)
    rng = random.Random(a.seed)
    with tempfile.TemporaryDirectory(prefix="s", dir=a.folder) as folder:
        campaign = Campaign(Path(folder))
        number = -1
        while campaign.tally.cases < a.count:
            number += 1
            case = draw(rng, number)
            if number < a.first or a.on not in (None, case.on):
                continue
            try:
                campaign.one(case)
            except Wrong as error:
                print(
                    table(campaign.tally).rpartition("\n")[0],
                    f"\nWRONG in case {number} of seed {a.seed}, {case}: {error}",
                )
                return 1
    print(table(campaign.tally))
    return 0


if __name__ == "__main__":
    sys.exit(main())
