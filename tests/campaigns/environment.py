"""Campaign: each call on a file fails as on a bad disk, a full one, or a server that is lost, in the driver or in its workers.

    python tests/campaigns/environment.py                      every call, every error: about an hour
    python tests/campaigns/environment.py --count 12 --seed 0  some of them, drawn from the seed
    python tests/campaigns/environment.py --replay worker:pread:EIO:1:ever   one, with all that the command said

A word count runs on local workers with `failing_calls.c` preloaded, which knows the files of the run: input, output, store.
First it only counts the calls of each process. Then there is one run for each case: role, call, errno, which call of it fails
first, and how often: once, or ever after (EINTR, which a kernel does not give for ever, three times). What must hold: the
command ends in time; its exit code is documented; no traceback; the output is right if it says so, else it is not there. The
end is 0 if all held, else 1.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

SHIM = Path(__file__).with_name("failing_calls.c")
ERRORS = ("EIO", "ENOSPC", "EMFILE", "EINTR", "ESTALE")
EVER = 1 << 40
LIMIT_S = 120.0
CODES = (0, 2, 4)  # right; the input or the output cannot be used; the machine failed


@dataclass(frozen=True, slots=True)
class Case:
    """A call of one role that fails with an error, ``count`` times from its ``first`` on."""

    role: str
    call: str
    error: str
    first: int
    count: int

    def __str__(self) -> str:
        return f"{self.role}:{self.call}:{self.error}:{self.first}:{'ever' if self.count == EVER else self.count}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case that is written so."""
        role, call, error, first, count = text.split(":")
        return cls(role, call, error, int(first), EVER if count == "ever" else int(count))


class Rig:
    """A folder with the preloaded library and an input; its runs are word counts of that input."""

    def __init__(self, folder: Path, text: bytes) -> None:
        self.folder = folder
        self.library = folder / "failing_calls.so"
        command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", str(self.library), str(SHIM), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        (folder / "in").mkdir()
        (folder / "in" / "text").write_bytes(text)
        self.right = sorted(Counter(text.split()).items())

    def calls(self) -> Counter[tuple[str, str]]:
        """How often a process of each role makes each call, at most, in a run without faults."""
        log = self.folder / "log"
        code, said = self.run({"FAILING_LOG": str(log)})
        assert code == 0, said
        per_process = Counter(log.read_text().splitlines())
        most: Counter[tuple[str, str]] = Counter()
        for line, n in per_process.items():
            _, role, call = line.split()
            most[role, call] = max(most[role, call], n)
        return most

    def run(self, env: dict[str, str]) -> tuple[int | None, str]:
        """Run the job; return its exit code, None if it was killed after LIMIT_S, and what it wrote to stderr."""
        for name in ("out", "store"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        places = [str(self.folder / "in/text"), str(self.folder / "out/o")]
        arguments = [sys.executable, "-m", "quoreduce.cli", "run", "wordcount", *places]
        arguments += ["--on", "local", "--workers", "2", "--domain", "worker", "--store", str(self.folder / "store")]
        arguments += ["--reducers", "2", "--split-mb", "0.02", "--durable", "--deadline", "20", "--direct-input"]
        paths = ":".join(str(self.folder / name) + "/" for name in ("in", "out", "store"))
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, "LD_PRELOAD": str(self.library), "FAILING_PATHS": paths, **env},
        )  # fmt: skip
        try:
            _, said = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[1]
        return process.returncode, said

    def wrong(self, case: Case) -> str:
        """Run a case, and say what did not hold; "" if all did."""
        number = getattr(errno, case.error)
        code, said = self.run({"FAILING_CALLS": f"{case.role}:{case.call}:{number}:{case.first}:{case.count}"})
        if code is None:
            return f"no end after {LIMIT_S:g} s: {said}"
        if "Traceback" in said:
            return f"a traceback: {said}"
        if code not in CODES:
            return f"exit code {code}: {said}"
        output = self.folder / "out/o"
        if code != 0:
            return "an output though it failed" if output.exists() else ""
        lines = [line.split(b"\t") for part in output.glob("part-*") for line in part.read_bytes().splitlines()]
        return "" if sorted((word, int(n)) for word, n in lines) == self.right else "a wrong output"


def cases(calls: Counter[tuple[str, str]]) -> list[Case]:
    """Every call with every error: the first, one in the middle, and the last; once, and ever after."""
    found = []
    for (role, call), n in sorted(calls.items()):
        for error in ERRORS:
            for first in sorted({1, (n + 1) // 2, n}):
                found += [Case(role, call, error, first, count) for count in ((3,) if error == "EINTR" else (1, EVER))]
    return found


def main(argv: list[str]) -> int:
    """The campaign."""
    parser = argparse.ArgumentParser(description="Every call on a file fails.")
    parser.add_argument("--count", type=int, default=None, help="that many cases, drawn from the seed; all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", metavar="CASE", help="one case, such as worker:pread:EIO:1:ever")
    a = parser.parse_args(argv)
    text = (Path(__file__).parent.parent / "data/kjv.txt").read_bytes()[:60_000]
    with tempfile.TemporaryDirectory(prefix="environment-") as folder:
        rig = Rig(Path(folder), text)
        if a.replay:
            todo = [Case.parse(a.replay)]
        else:
            todo = cases(rig.calls())
            todo = todo if a.count is None else Random(a.seed).sample(todo, min(a.count, len(todo)))
        bad = 0
        for case in todo:
            if why := rig.wrong(case):
                bad += 1
                print(f"{case}: {why}", flush=True)
    print(f"{len(todo)} cases, {bad} in which something did not hold")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
