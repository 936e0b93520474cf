"""How parts get into the output: agreed on, read again in another domain, published (R8)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from quoreduce.driver.incidents import Incident
from quoreduce.driver.jobstate import JobState
from quoreduce.driver.plain import OpenGate, PlainRun
from quoreduce.driver.requests import Requests
from quoreduce.driver.rereads import Rereading, Rereads
from quoreduce.driver.underway import DEADLINE_FIRST_S, UnderWay
from quoreduce.errors import one_line
from quoreduce.job import record_width
from quoreduce.protocol import wire
from quoreduce.tracker import messages as m

PUNCH_SHARE = 0.25


class Publication:
    """Publishes the parts of a job.

    Args:
        bound: readings of one part (R3).
        stored_nbytes: what maps have stored so far, in bytes.
        clock: in seconds.
    """

    def __init__(
        self, state: JobState, gate: OpenGate, run: PlainRun, requests: Requests, under_way: UnderWay, bound: int,
        stored_nbytes: Callable[[], int], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._state = state
        self._gate = gate
        self._run = run
        self._requests = requests
        self._under_way = under_way
        self._stored_nbytes = stored_nbytes
        self._clock = clock
        limit_s = 2 * (state.options.deadline_s or DEADLINE_FIRST_S)  # it may have to wait for a task that runs there
        self.rereads = Rereads(state.executor, record_width(state.job.output) or 128, limit_s, bound)

    def agreed(self, agreed: m.Agreed) -> None:
        """A reduce was agreed on."""
        if self._state.options.mode == "original":
            self._publish(agreed)
        else:
            self._have_read(agreed)
        self._release(agreed.task.index)

    def reread_again(self, worker: str) -> None:
        """Ask somebody else, if there is anybody, for what a worker was to read."""
        for agreed in self.rereads.lost(worker):
            self._have_read(agreed)

    def reread(self, reading: Rereading, reply: wire.Attempted) -> None:
        """A part was read again."""
        agreed, state = reading.agreed, self._state
        state.result.cpu_s += reply.cpu_s
        if isinstance(reply, wire.Reread) and reply.digest == agreed.output.parts[0].digest:
            self._publish(agreed)
            return
        writer, reader = state.completed[agreed.attempt].worker, state.workers[reading.worker]
        state.incidents.add(Incident("part", writer, agreed.task, agreed.attempt, agreed.task.index, [reader]))
        error = "" if isinstance(reply, wire.Done | wire.Summed | wire.Reread | wire.Inspected) else reply.error
        self.unread([agreed.task], error or "its digest is not the one that was agreed on")
        self._lose(agreed)

    def unread(self, tasks: Iterable[m.Task], why: str) -> None:
        """Remember why what was stored could not be read, for the message of a job that fails of it (R3)."""
        self.rereads.unread |= dict.fromkeys(tasks, one_line(why))

    def why_unread(self, task: m.Task) -> str:
        """Why the stored output of a task could not be read the last time."""
        return self.rereads.unread.get(task) or "it is gone"

    def _have_read(self, agreed: m.Agreed) -> None:
        """Have another domain recompute the digest of the part that will be published: what is stored is what was voted
        on.
        """
        state, under_way = self._state, self._under_way
        writer = state.completed[agreed.attempt].worker
        usable = [w for w in state.workers.values() if w.name not in self._gate.barred]
        late = {one.launch.worker for one in under_way.cancelled.values()} | under_way.left_behind()
        running = [one.launch.worker for one in under_way.running.values()]
        path = state.output.attempt_path(agreed.task.index, agreed.attempt)
        if not self.rereads.begin(agreed, path, writer, usable, running, late, self._clock()):
            self._lose(agreed)

    def _lose(self, agreed: m.Agreed) -> None:
        self._state.events.append(m.BlockLost(agreed.attempt))

    def _publish(self, agreed: m.Agreed) -> None:
        self._run.commit()
        self._state.output.publish(agreed.task.index, agreed.attempt)
        self._state.events.append(m.Published(agreed.attempt))

    def _release(self, part: int) -> None:
        """Give back the memory of partition ``part`` of all maps, if there is much of it: its reduce is agreed on."""
        much = PUNCH_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self._run.durable or self._stored_nbytes() < much:
            return
        for worker, request in self._requests.release(part, self._state.reducers).items():
            self._state.send(worker, request)
