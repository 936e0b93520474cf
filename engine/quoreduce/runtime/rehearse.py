"""Rehearsals: one worker process runs a whole job in an environment of its own, and publishes nothing.

The worker is the same as on every executor, and gets the same messages; its replies are what it would vote with.
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
from quoreduce.protocol import wire
from quoreduce.protocol.outcome import outcome
from quoreduce.runtime.local import LocalExecutor

TICK_S = 0.2


class OutOfTime(HostError):
    """A rehearsal did not end in time."""


@dataclass(frozen=True, slots=True)
class RehearsalPlan:
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
class RehearsedTask:
    """One execution of a task. ``kind``: setup (if that failed), sample, map or reduce. Its blocks live as long as its
    rehearsal.
    """

    kind: str
    index: int
    reply: wire.Done | wire.JobRaised | wire.NotReady

    @property
    def failed(self) -> bool:
        """Whether the job's code raised."""
        return not isinstance(self.reply, wire.Done)

    @property
    def done(self) -> wire.Done:
        """The output of a task that did not fail."""
        assert isinstance(self.reply, wire.Done), "it failed"
        return self.reply

    @property
    def error(self) -> str:
        """What the job's code raised; empty if it did not."""
        return "" if isinstance(self.reply, wire.Done) else self.reply.error

    @property
    def outcome(self) -> bytes:
        """What a replica would vote with."""
        assert not isinstance(self.reply, wire.NotReady), "there is no vote on how a job begins"
        return outcome(self.kind, self.reply)


class Rehearsal:
    """A worker process of its own; a context manager.

    Args:
        plan: what to run.
        folder: where outputs of reduces go, made here and deleted at the end.
        env: variables over those of a worker.
        cwd: its current directory; None: this process's.
        core: the core it is pinned to.
        stopped: when it is set, what runs ends with OutOfTime.
    """

    def __init__(
        self, plan: RehearsalPlan, folder: Path, env: Mapping[str, str], cwd: str | None, core: int,
        stopped: threading.Event,
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self, deadline: float, backward: bool = False, blocks: Sequence[RehearsedTask] | None = None
    ) -> list[RehearsedTask]:
        """Run every task once and return them in the order of their numbers. A second call uses the same process.

        Args:
            deadline: by the monotonic clock, in seconds.
            backward: start with the last task.
            blocks: maps whose blocks the reduces read. Nothing is stored then: this is a replica that only digests.

        Raises:
            OutOfTime: the deadline has passed.
            HostError: the worker died, or the machine failed it.
        """
        self._deadline = deadline
        if not self._ready:
            begun = self._ask(self._plan.setup())
            if isinstance(begun, wire.NotReady):
                return [RehearsedTask("setup", 0, begun)]
            self._ready = True
        done = [self._sample()] if self._plan.sampled else []
        if any(task.failed for task in done):
            return done
        side = done[0].done.data if done else b""
        maps = [self._map(i, side, blocks is None) for i in _ordered(len(self._plan.splits), backward)]
        done += sorted(maps, key=lambda task: task.index)
        if any(task.failed for task in maps):
            return done
        sources = [task for task in (done if blocks is None else blocks) if task.kind == "map"]
        reduces = [self._reduce(i, side, sources, blocks is None) for i in _ordered(self._plan.reducers, backward)]
        return done + sorted(reduces, key=lambda task: task.index)

    def _sample(self) -> RehearsedTask:
        return RehearsedTask("sample", 0, self._execute(wire.SampleTask(self._next())))

    def _map(self, index: int, side: bytes, store: bool) -> RehearsedTask:
        return RehearsedTask(
            "map", index, self._execute(wire.MapTask(self._next(), index, self._plan.splits[index], side, store))
        )

    def _reduce(self, index: int, side: bytes, maps: Sequence[RehearsedTask], store: bool) -> RehearsedTask:
        attempt = self._next()
        paths = (str(self._folder / f"part-{attempt}"),) if store else ()
        sources = tuple((self._stored(task.done, index),) for task in maps)
        return RehearsedTask("reduce", index, self._execute(wire.ReduceTask(attempt, index, side, sources, paths)))

    def _stored(self, reply: wire.Done, index: int) -> wire.StoredCopy:
        part = reply.parts[index]
        return wire.StoredCopy(reply.attempt, self._worker, "local", reply.path, part.offset, part.nbytes, part.digest)

    def _next(self) -> int:
        self._attempt += 1
        return self._attempt

    def _execute(self, task: wire.SampleTask | wire.MapTask | wire.ReduceTask) -> wire.Done | wire.JobRaised:
        reply = self._ask(task)
        if isinstance(reply, wire.Done | wire.JobRaised):
            return reply
        raise HostError("blocks changed after they were written")

    def _ask(self, request: wire.Request) -> wire.Reply:
        self._executor.submit(self._worker, wire.encode(request))
        while (left := self._deadline - time.monotonic()) > 0 and not self._stopped.is_set():
            for arrival in self._executor.wait(min(left, TICK_S)):
                if arrival.raw is None:
                    raise HostError("the worker that ran the job died")
                match reply := wire.decode_reply(arrival.raw):
                    case wire.HostFailed(_, error) | wire.InputsRefused(_, _, error) | wire.NotReady(error, True):
                        raise HostError(error or "blocks changed after they were written")
                return reply
        raise OutOfTime("it did not end in time")


def _ordered(count: int, backward: bool) -> Iterable[int]:
    return reversed(range(count)) if backward else range(count)
