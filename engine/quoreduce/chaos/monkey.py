"""Faults from outside: the monkey breaks processes, files and disks while a job runs. It strikes between two
steps of the driver.

A strike returns how many faults have really happened: a process that lived was killed, a byte of a file was changed.
One that found no victim is tried again at the next step. What must be undone (frozen processes, a full disk) is undone
when its time is over, and at the end of the job in any case.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from quoreduce.chaos.plan import DEADLINE_SHORT_S, JobPlan, Strike
from quoreduce.driver.figures import Progress
from quoreduce.protocol.port import WorkerInfo

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
PROBES = 64
FILL_CHUNK = 1 << 20
Striker = Callable[[Strike], int]


class Monkey:
    """Strikes one job.

    ``workers`` gives those that live; ``work``: folder of blocks and output; ``disk``: it is a small file system of
    ours; ``more``: strikes that only this ground has.
    """

    def __init__(
        self, plan: JobPlan, workers: Callable[[], list[WorkerInfo]], work: Path, disk: bool, more: dict[str, Striker]
    ) -> None:  # fmt: skip
        self.happened: Counter[str] = Counter()
        self.progress = Progress(0)
        self._plan = plan
        self._workers = workers
        self._work = work
        self._waiting = list(plan.strikes)
        self._undo: list[threading.Timer | _Slow] = []
        ours: dict[str, Striker] = {
            "kill": self._kill, "freeze": self._freeze, "slow": self._slow, "rot": self._rot, "part": self._part,
        }  # fmt: skip
        if disk:
            ours["fill"] = self._fill
        if FAKETIME is not None:
            ours["clock"] = self._clock
        self._strikers = ours | more

    def __call__(self, progress: Progress) -> None:
        """Strike if it is time; the driver calls this after each of its steps."""
        self.progress = progress
        planned = progress.tasks * (self._plan.f + 1)
        self._strike([strike for strike in self._waiting if progress.executions >= strike.at * planned])

    def before(self) -> None:
        """Strike workers that have nothing to do yet."""
        self._strike([strike for strike in self._waiting if strike.at <= 0])

    def _strike(self, due: list[Strike]) -> None:
        for strike in due:
            count = self._strikers[strike.kind](strike) if strike.kind in self._strikers else 0
            self.happened[strike.kind] += count
            if count:
                self._waiting.remove(strike)

    def finish(self) -> Counter[str]:
        """Undo what is still to be undone, and return what has happened, the engine's own faults included."""
        for undo in self._undo:
            undo.cancel()
            undo.join()
        for info in self._workers():
            _signal(info.pid, signal.SIGCONT)
        self._empty_disk()
        for name in ("LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"):
            os.environ.pop(name, None)
        return +(self.happened + Counter(self.progress.struck))

    def _victim(self, strike: Strike) -> int | None:
        living = [info.pid for info in self._workers() if lives(info.pid)]
        return living[strike.pick % len(living)] if living else None

    def _kill(self, strike: Strike) -> int:
        victim = self._victim(strike)
        return int(victim is not None and _signal(victim, signal.SIGKILL))

    def _freeze(self, strike: Strike) -> int:
        """One in three is frozen for so long that the driver gives it up; the others for a fraction of a second."""
        victim = self._victim(strike)
        if victim is None or not _signal(victim, signal.SIGSTOP):
            return 0
        hold_s = 2 * DEADLINE_SHORT_S if strike.pick % 3 == 0 else 0.2 + strike.pick % 10 / 10
        self._later(hold_s, lambda: _signal(victim, signal.SIGCONT))
        return 1

    def _slow(self, strike: Strike) -> int:
        victim = self._victim(strike)
        if victim is None:
            return 0
        self._undo.append(_Slow(victim))
        return 1

    def _clock(self, strike: Strike) -> int:
        """Have workers begin with another clock from now on, and make one begin. It is counted when it is there
        (``skewed``).
        """
        for name, value in skewed_environment(strike.pick).items():
            os.environ[name] = value
        victim = self._victim(strike)
        if victim is not None:
            _signal(victim, signal.SIGKILL)
            self._waiting.remove(strike)
        return 0

    def _rot(self, strike: Strike) -> int:
        """Flip a bit in a stored block: in a byte that is not zero if one is found soon, for segments are not full."""
        rng = random.Random(strike.pick)
        segments = sorted(self._work.glob("store/quoreduce-*/*/*/segment-*"))
        return int(bool(segments) and flip_bit(rng.choice(segments), rng))

    def _part(self, strike: Strike) -> int:
        rng = random.Random(strike.pick)
        attempts = sorted(path for path in self._work.glob(".out.*.staging/attempts/part-*") if _size(path))
        return int(bool(attempts) and flip_bit(rng.choice(attempts), rng))

    def _fill(self, strike: Strike) -> int:
        """Fill the disk; every second time only for a moment."""
        path = self._work / "filler"
        try:
            with open(path, "ab", buffering=0) as file:
                while True:
                    file.write(bytes(FILL_CHUNK))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        if strike.pick % 2:
            self._later(0.2, self._empty_disk)
        return 1

    def _empty_disk(self) -> None:
        (self._work / "filler").unlink(missing_ok=True)

    def _later(self, delay_s: float, do: Callable[[], object]) -> None:
        timer = threading.Timer(delay_s, do)
        timer.start()
        self._undo.append(timer)


class _Slow(threading.Thread):
    """Lets a process run a tenth of the time, until cancelled."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.is_set() and _signal(self._pid, signal.SIGSTOP):
            self._over.wait(0.045)
            _signal(self._pid, signal.SIGCONT)
            self._over.wait(0.005)

    def cancel(self) -> None:
        self._over.set()


def skewed_environment(pick: int) -> dict[str, str]:
    """Variables with which a process has a clock of its own: hours to years off, and up to twice as fast or slow."""
    days, rate = (-400.0, -0.2, 0.04, 3650.0)[pick % 4], (0.5, 1.0, 1.3, 2.0)[pick // 4 % 4]
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{days:+g}d x{rate:g}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def skewed(pid: int) -> bool:
    """Whether a process has a clock of its own."""
    with contextlib.suppress(OSError):
        return b"\0FAKETIME=" in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def sweep_clocks(since: float, folder: Path = Path("/dev/shm")) -> int:
    """Delete what libfaketime has left of killed processes since then (seconds of time.time), and say how many files it
    was.
    """
    swept = 0
    for path in (*folder.glob("faketime_shm_*"), *folder.glob("sem.faketime_sem_*")):
        pid = path.name.rpartition("_")[2]
        with contextlib.suppress(OSError):
            if pid.isdigit() and not lives(int(pid)) and _is_left(path.lstat(), since):
                path.unlink()
                swept += 1
    return swept


def _is_left(status: os.stat_result, since: float) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_mtime >= since


def lives(pid: int) -> bool:
    """Whether a process runs, or is stopped; one that has ended but was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return pid > 0 and state not in ("Z", "X")


def marked(marker: str) -> Iterator[int]:
    """The processes that have ``marker`` (``NAME=value``) in their environment, but this one."""
    wanted = marker.encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") and lives(int(entry)):
                    yield int(entry)


def wait_until_gone(marker: str, limit_s: float) -> list[int]:
    """Wait until no process has ``marker`` any more; after ``limit_s`` seconds kill those that have, and return
    them.
    """
    end = time.monotonic() + limit_s
    while left := list(marked(marker)):
        if time.monotonic() > end:
            for pid in left:
                _signal(pid, signal.SIGKILL)
            return left
        time.sleep(0.05)
    return []


def flip_bit(path: Path, rng: random.Random) -> bool:
    """Flip one bit of a file that is in use; tell whether it was done."""
    try:
        with open(path, "r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for probe in range(PROBES if size else 0):
                position = rng.randrange(size)
                byte = os.pread(file.fileno(), 1, position)
                if byte and (byte[0] or probe == PROBES - 1):
                    return os.pwrite(file.fileno(), bytes([byte[0] ^ (1 << rng.randrange(8))]), position) == 1
    except OSError:  # it is gone: somebody was faster
        pass
    return False


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
