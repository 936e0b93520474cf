"""What a worker is told to execute: the requests of a job, made of the tracker's launches and what is stored where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from quoreduce.data.commit import OutputPlace
from quoreduce.data.splits import Split
from quoreduce.driver.incidents import CompletedAttempt
from quoreduce.protocol import wire
from quoreduce.protocol.options import Options
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m

STORAGE_COPIES = 3


@dataclass(slots=True)
class Requests:
    """Makes the requests of a job.

    Attributes:
        completed, workers: executions by attempt, and living workers by name. They are the driver's own, and change
            while the job runs.
        everywhere: every node can read what is stored.
        side: the sample that was agreed on.
    """

    options: Options
    splits: Sequence[Split]
    output: OutputPlace
    completed: Mapping[int, CompletedAttempt]
    workers: Mapping[str, WorkerInfo]
    everywhere: bool
    side: bytes = b""

    def of(self, launch: m.Launch, fault: wire.Fault | None) -> wire.MapTask | wire.ReduceTask | wire.SampleTask:
        """The request that executes a launch."""
        task = launch.task
        if task.kind == "sample":
            return wire.SampleTask(launch.attempt, fault)
        if task.kind == "map":
            split, direct = self.splits[task.index], self._direct(launch)
            return wire.MapTask(launch.attempt, task.index, split, self.side, launch.store, fault, direct)
        sources = tuple(tuple(self._stored(s, task.index) for s in copies) for copies in launch.sources)
        paths = tuple(self._paths(task.index, launch.attempt)) if launch.store else ()
        # Of any f+1 replicas that agree one is not among the first f: it watches what they share, and the others need
        # not (R6).
        watch = self.options.mode != "original" and launch.replica >= self.options.f
        return wire.ReduceTask(launch.attempt, task.index, self.side, sources, paths, fault, watch)

    def check(self, check: m.Check, key: bytes, fault: wire.Fault | None) -> wire.CheckTask:
        """The request that checks a stored output under ``key``, 32 bytes."""
        kind, index, done = check.task.kind, check.task.index, self.completed[check.stored]
        assert kind != "sample", "samples are voted on"
        if kind == "map":
            copies = [self._stored(m.Source(index, check.stored, ""), r) for r in range(len(done.reply.parts))]
            stored = tuple(structs.replace(copy, digest=b"") for copy in copies)
            return wire.CheckTask(check.attempt, kind, index, key, self.side, stored, self.splits[index], (), fault)
        path, nbytes = str(self.output.attempt_path(index, check.stored)), done.reply.parts[0].nbytes
        part = wire.StoredCopy(check.stored, done.worker.name, "", path, 0, nbytes, b"")
        sources = tuple(tuple(self._stored(s, index) for s in copies) for copies in check.sources)
        return wire.CheckTask(check.attempt, kind, index, key, self.side, (part,), None, sources, fault)

    def release(self, part: int, reducers: int) -> dict[str, wire.DiscardTask]:
        """By worker, the request that gives back the memory of partition ``part`` of all maps."""
        ranges: dict[str, list[tuple[str, int, int]]] = {}
        for kept in self.completed.values():
            if kept.reply.path and len(kept.reply.parts) == reducers and kept.reply.parts[part].offset >= 0:
                p = kept.reply.parts[part]
                ranges.setdefault(kept.worker.name, []).append((kept.reply.path, p.offset, p.nbytes))
        return {worker: wire.DiscardTask((), tuple(items)) for worker, items in ranges.items()}

    def _direct(self, launch: m.Launch) -> bool:
        """Whether a map is to read past the page cache (R6).

        Those beyond the first plan are: if a page has rotted between two reads, a third read from the cache would make
        the wrong output win. With ``direct_input`` all replicas but the first f are: of any f+1 that agree, one is
        among these. Where each domain has a machine of its own, and so a page cache of its own, none is.
        """
        o = self.options
        if o.replicas_needed < 2 or launch.replica < (o.f if o.direct_input else o.replicas_first):
            return False
        return len({info.node for info in self.workers.values()}) < len({info.domain for info in self.workers.values()})

    def _paths(self, part: int, attempt: int) -> list[str]:
        """The files that an attempt writes: one, or without tight storage (R7) as many as a replicating file system
        would.
        """
        path = str(self.output.attempt_path(part, attempt))
        return [path] + [f"{path}.copy{i}" for i in range(1, self.copies)]

    @property
    def copies(self) -> int:
        """Copies of its output that a reduce writes (R7)."""
        return STORAGE_COPIES if self.options.mode == "basic" or not self.options.tight_storage else 1

    def _stored(self, source: m.Source, part: int) -> wire.StoredCopy:
        kept = self.completed[source.attempt]
        p = kept.reply.parts[part]
        node = "" if self.everywhere else kept.worker.node
        return wire.StoredCopy(
            source.attempt, self._holder(kept.worker), node, kept.reply.path, p.offset, p.nbytes, p.digest
        )

    def _holder(self, writer: WorkerInfo) -> str:
        """The worker that serves what ``writer`` has stored: itself, or, if it is dead, any worker on its node."""
        if writer.name in self.workers:
            return writer.name
        return next((w.name for w in self.workers.values() if w.node == writer.node), writer.name)
