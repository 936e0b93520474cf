"""Asks workers about stored copies, when faults are diagnosed: what they are now, and where two of them differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec

from quoreduce.data import locate, tree
from quoreduce.driver.diagnosis import FirstDifference, differing_at
from quoreduce.driver.incidents import CompletedAttempt
from quoreduce.errors import QuoreduceError
from quoreduce.job import Job
from quoreduce.protocol import wire
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m

TREE_BYTES_MAX = 128 << 20
FIRST_QUESTION = 1 << 40
"""Questions and probes are numbered from here on: no attempt of the tracker has such a number."""


@dataclass(slots=True)
class Scene:
    """What the driver knows of a job that is done, and what it can still do.

    Attributes:
        completed: executions that ended with an output, by attempt.
        agreed: what won, by task.
        free: returns the workers that have nothing to do now.
        request: returns the request that executes a launch.
        ask: sends a request to a worker and returns its answer, or None if there is none within some seconds.
        part, attempt_path: where the published part of a number is, or None; and where an attempt wrote its part.
        clock: in seconds.
    """

    job: Job
    algorithm: str
    completed: Mapping[int, CompletedAttempt]
    agreed: Mapping[m.Task, m.Agreed]
    free: Callable[[], list[WorkerInfo]]
    request: Callable[[m.Launch], wire.Request]
    ask: Callable[[str, wire.InspectTask | wire.InputTask | wire.ProbeTask, float], wire.Attempted | None]
    part: Callable[[int], str | None]
    attempt_path: Callable[[int, int], str]
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class InspectedCopy:
    """A copy of a partition or part: where it lies, and its layout. ``node`` is None for a file that every node can
    read.
    """

    copy: wire.StoredCopy
    node: str | None
    domain: str
    layout: str


class NoAnswer(QuoreduceError):
    """A question was not answered: no worker could be asked, or the time was up."""


class Gone(NoAnswer):
    """A copy cannot be read."""


class CopyInspector:
    """Asks about copies, until the clock of the scene says ``end``."""

    def __init__(self, scene: Scene, end: float) -> None:
        self._scene = scene
        self._end = end
        self._number = FIRST_QUESTION

    def number(self) -> int:
        """A number for a question or a probe."""
        self._number += 1
        return self._number

    def left_s(self) -> float:
        """Seconds that are left for questions."""
        return self._end - self._scene.clock()

    def _as_it_is(self, stored: InspectedCopy) -> InspectedCopy:
        """A copy with the digest and size that it has now."""
        found, size = self.digest(stored)
        return replace(stored, copy=msgspec.structs.replace(stored.copy, digest=found or b"", nbytes=size))

    def compare(self, partition: int, wrong: InspectedCopy, right: Iterator[InspectedCopy]) -> FirstDifference | None:
        """The first difference of a wrong copy from a right one that can be read; None if it cannot be found."""
        for other in right:
            try:
                found = tree.first_difference(self._tree(self._as_it_is(wrong)), self._tree(other))
                if found is None:
                    return None
                spots = self._spot(other, found.offset), self._spot(wrong, found.offset)
                return differing_at(partition, found.offset, *spots, found.bits, self.pairs)
            except (NoAnswer, tree.TreeMismatch):
                continue
        return None

    @property
    def pairs(self) -> bool:
        """Whether blocks hold pairs of the Python style."""
        return self._scene.job.style == "python"

    def _tree(self, stored: InspectedCopy) -> tree.Copy:
        """A copy as the comparison of trees sees it. Only ``blake3`` digests cover the stored bytes, so answers are
        checked against these only.
        """
        if stored.copy.nbytes > TREE_BYTES_MAX:
            raise NoAnswer("it is too large")
        digest = stored.copy.digest if self._scene.algorithm == "blake3" and len(stored.copy.digest) == 32 else None
        return tree.Copy(
            stored.copy.nbytes, digest,
            lambda first, count, level: tree.decode(self._ask(stored, "nodes", first, count, level).data),
            lambda offset, nbytes: self._ask(stored, "bytes", offset, nbytes).data,
        )  # fmt: skip

    def _spot(self, stored: InspectedCopy, offset: int) -> locate.Spot:
        try:
            return msgspec.msgpack.decode(self._ask(stored, "spot", offset).data, type=locate.Spot)
        except (msgspec.MsgspecError, ValueError) as error:
            raise NoAnswer(str(error)) from error

    def digest(self, stored: InspectedCopy) -> tuple[bytes | None, int]:
        """The digest of a copy, and its size, as they are now."""
        reply = self._ask(stored, "digest")
        return reply.digest, reply.bytes_in

    def _ask(self, stored: InspectedCopy, what: str, first: int = 0, count: int = 0, level: int = 0) -> wire.Inspected:
        """Ask a worker that can read a copy, in another domain than its writer if possible.

        That is a worker on the copy's node. A digest may be recomputed on another node, which fetches the copy: where
        nodes are the domains, the copy's own node could say anything. The answers on the way down a tree are checked
        against that digest.
        """
        free, left = self._scene.free(), self.left_s()
        near = [w for w in free if stored.node in (None, w.node)]
        far = free if what == "digest" and stored.copy.nbytes <= TREE_BYTES_MAX else []
        if not (near or far) or left <= 0:
            raise NoAnswer("there is nobody to ask, or no time")
        who = min(near + far, key=lambda w: w.domain == stored.domain)
        holder = next(
            (w.name for w in near if w.name == stored.copy.worker), near[0].name if near else stored.copy.worker
        )
        copy = msgspec.structs.replace(stored.copy, node=stored.node or who.node, worker=holder)
        question = wire.InspectTask(self.number(), what, copy, stored.layout, first, count, level)  # type: ignore[arg-type]
        reply = self._scene.ask(who.name, question, left)
        if isinstance(reply, wire.JobRaised):
            raise Gone(reply.error)
        if not isinstance(reply, wire.Inspected):
            raise NoAnswer("nobody answered")
        return reply
