"""Rehearsals: a whole job run by one worker process, under an environment of its own, with nothing published.

The worker is that of every executor, and is told what to do by the same messages; what it returns is what it would vote with.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from quoreduce.data.splits import Split
from quoreduce.errors import HostError
from quoreduce.runtime import wire
from quoreduce.runtime.local import LocalExecutor
from quoreduce.runtime.outcome import outcome

TICK_S = 0.2


class OutOfTime(HostError):
    """A rehearsal did not end in time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is rehearsed: a pickled job, over ``splits`` that are numbered from 0. ``sampled``: it has a sample."""

    job: bytes
    splits: tuple[Split, ...]
    reducers: int
    sampled: bool
    seed: int = 0

    def setup(self) -> wire.Setup:
        """The message that begins it."""
        sources = self.splits if self.sampled else ()
        return wire.Setup(1, self.job, "blake3", b"", self.reducers, self.seed, sources, len(self.splits))


@dataclass(frozen=True, slots=True)
class Task:
    """One execution of a task: ``kind`` is setup (it failed), sample, map or reduce. Its blocks live as long as its rehearsal."""

    kind: str
    index: int
    reply: wire.Reply

    @property
    def failed(self) -> bool:
        """Whether the job's code raised."""
        return self.reply.status == "failed"

    @property
    def outcome(self) -> bytes:
        """What a replica would vote with."""
        return outcome(self.kind, self.reply)


class Rehearsal:
    """A worker process of its own; a context manager.

    Args:
        plan: what to run. folder: where outputs of reduces go, made here and deleted at the end.
        env: variables over those of a worker. cwd: its current directory; None: this process's. core: the core it is pinned to.
        stopped: when it is set, what runs ends with OutOfTime.
    """

    def __init__(
        self, plan: Plan, folder: Path, env: Mapping[str, str], cwd: str | None, core: int, stopped: threading.Event
    ) -> None:  # fmt: skip
        self._plan = plan
        self._folder = folder
        self._executor = LocalExecutor(1, "worker", None, env, cwd, [core])
        self._stopped = stopped
        self._attempt = 0
        self._deadline = 0.0
        self._ready = False

    def __enter__(self) -> Rehearsal:
        try:
            self._folder.mkdir()
            (info,) = self._executor.start()
        except BaseException:
            self._executor.close()
            raise
        self._worker = info.name
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._executor.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, deadline: float, backward: bool = False, blocks: Sequence[Task] | None = None) -> list[Task]:
        """Run every task once and return them in the order of their numbers; a second call runs them again in the same process.

        Args:
            deadline: by the monotonic clock, in seconds.
            backward: start with the last task.
            blocks: maps whose blocks the reduces are to read; then nothing is stored: this is a replica that only digests.

        Raises:
            OutOfTime: the deadline has passed. HostError: the worker died, or the machine failed it.
        """
        self._deadline = deadline
        if not self._ready:
            begun = self._ask(self._plan.setup())
            if begun.status != "ready":
                return [Task("setup", 0, begun)]
            self._ready = True
        done = [self._sample()] if self._plan.sampled else []
        if any(task.failed for task in done):
            return done
        side = done[0].reply.data if done else b""
        maps = [self._map(i, side, blocks is None) for i in _ordered(len(self._plan.splits), backward)]
        done += sorted(maps, key=lambda task: task.index)
        if any(task.failed for task in maps):
            return done
        sources = [task for task in (done if blocks is None else blocks) if task.kind == "map"]
        reduces = [self._reduce(i, side, sources, blocks is None) for i in _ordered(self._plan.reducers, backward)]
        return done + sorted(reduces, key=lambda task: task.index)

    def _sample(self) -> Task:
        return Task("sample", 0, self._ask(wire.SampleTask(self._next())))

    def _map(self, index: int, side: bytes, store: bool) -> Task:
        return Task("map", index, self._ask(wire.MapTask(self._next(), index, self._plan.splits[index], side, store)))

    def _reduce(self, index: int, side: bytes, maps: Sequence[Task], store: bool) -> Task:
        attempt = self._next()
        paths = (str(self._folder / f"part-{attempt}"),) if store else ()
        sources = tuple((self._stored(task.reply, index),) for task in maps)
        return Task("reduce", index, self._ask(wire.ReduceTask(attempt, index, side, sources, paths)))

    def _stored(self, reply: wire.Reply, index: int) -> wire.Stored:
        part = reply.parts[index]
        return wire.Stored(reply.attempt, self._worker, "local", reply.path, part.offset, part.nbytes, part.digest)

    def _next(self) -> int:
        self._attempt += 1
        return self._attempt

    def _ask(self, request: wire.Request) -> wire.Reply:
        self._executor.submit(self._worker, wire.encode(request))
        while (left := self._deadline - time.monotonic()) > 0 and not self._stopped.is_set():
            for arrival in self._executor.wait(min(left, TICK_S)):
                if arrival.raw is None:
                    raise HostError("the worker that ran the job died")
                reply = wire.decode_reply(arrival.raw)
                if reply.status in ("host", "refused"):
                    raise HostError(reply.error or "blocks changed after they were written")
                return reply
        raise OutOfTime("it did not end in time")


def _ordered(count: int, backward: bool) -> Iterable[int]:
    return reversed(range(count)) if backward else range(count)
