"""Runs a command apart, from its start to its end, with everything that it starts: bounded in time, CPU counted in
full.

Between this process and the command stands a small one, this file run as a script: orphans of the command become its
children (PR_SET_CHILD_SUBREAPER), so that their CPU time is counted and none of them outlives the run. ``wall`` is that
of the command; what it leaves behind (a JVM that shuts down, Ray's daemons) has a few seconds to end, then is killed;
that is not in ``wall``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

GRACE_S = 10.0
LOOK_S = 0.02
MESSAGE_BYTES = 2000
PR_SET_CHILD_SUBREAPER = 36


class PeerFailed(RuntimeError):
    """A command ended with another exit code than 0, or took too long."""


class Ended(NamedTuple):
    """What a command took; ``own_cpu_s`` is the CPU time of watching it."""

    wall_s: float
    cpu_s: float
    own_cpu_s: float
    stdout: str


def run_apart(command: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> Ended:
    """Run a command; raise PeerFailed if it fails or takes longer than ``timeout_s``: then it is killed, and all below
    it.
    """
    import tempfile

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as report:
        line = [sys.executable, "-I", "-S", __file__, str(report.fileno()), str(timeout_s), *command]
        watcher = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment, pass_fds=[report.fileno()]
        )
        try:
            watcher.wait()
        except BaseException:
            watcher.terminate()  # it kills what it watches
            watcher.wait()
            raise
        for file in (out, errors, report):
            file.seek(0)
        said = errors.read().decode(errors="replace").strip()[-MESSAGE_BYTES:]
        if watcher.returncode:
            raise RuntimeError(f"cannot watch {command[0]}: {said}")
        ended: dict[str, Any] = json.loads(report.read())
        if ended["late"]:
            raise PeerFailed(f"stopped after {timeout_s:g} s")
        if ended["code"]:
            raise PeerFailed(f"{os.path.basename(command[0])} ended with {ended['code']}: {said}")
        return Ended(ended["wall_s"], ended["cpu_s"], ended["own_cpu_s"], out.read().decode())


def _main() -> None:
    import ctypes

    report, timeout_s, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    late = False

    def stop(number: int, frame: object) -> None:
        nonlocal late
        late = True
        _kill_below()

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    start = time.perf_counter()
    process = subprocess.Popen(command)
    signal.setitimer(signal.ITIMER_REAL, timeout_s, 1.0)  # again and again, for what is started while it kills
    code = process.wait()
    wall = time.perf_counter() - start
    signal.setitimer(signal.ITIMER_REAL, 0)
    _reap(0.0 if late else GRACE_S)
    used, own = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    ended = {
        "code": code, "late": late, "wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime,
        "own_cpu_s": own.ru_utime + own.ru_stime,
    }  # fmt: skip
    os.write(report, json.dumps(ended).encode())


def _reap(grace_s: float) -> None:
    """Wait for all that is left below this process, then kill it."""
    end = time.monotonic() + grace_s
    with suppress(ChildProcessError):
        while True:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            if time.monotonic() >= end:
                _kill_below()
            time.sleep(LOOK_S)


def _kill_below() -> None:
    for pid in _below(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _below(pid: int) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo:
        with suppress(OSError):
            number = todo.pop()
            for task in os.listdir(f"/proc/{number}/task"):
                with open(f"/proc/{number}/task/{task}/children") as file:
                    children = [int(child) for child in file.read().split()]
                found += children
                todo += children
    return found


if __name__ == "__main__":
    _main()
