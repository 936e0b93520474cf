"""What happens when a worker is gone (R9)."""

from __future__ import annotations

from collections.abc import Callable

from quoreduce.driver.figures import KINDS_SILENT, Progress
from quoreduce.driver.hostfaults import OUT_OF_MEMORY, HostFaults
from quoreduce.driver.jobstate import JobState
from quoreduce.driver.plain import OpenGate, PlainRun
from quoreduce.driver.publication import Publication
from quoreduce.driver.retests import Retests
from quoreduce.driver.setups import Setups
from quoreduce.driver.underway import UnderWay
from quoreduce.protocol.port import Arrival, WorkerInfo
from quoreduce.tracker import messages as m


class Deaths:
    """Tells everybody that a worker is gone. ``clock``: in seconds."""

    def __init__(
        self, state: JobState, gate: OpenGate, run: PlainRun, under_way: UnderWay, setups: Setups,
        publication: Publication, retests: Retests, host: HostFaults, progress: Progress, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._state = state
        self._gate = gate
        self._run = run
        self._under_way = under_way
        self._setups = setups
        self._publication = publication
        self._retests = retests
        self._host = host
        self._progress = progress
        self._clock = clock

    def bury(self, arrival: Arrival) -> None:
        """Report that a worker is gone, and put another in its place if it has one."""
        state, worker = self._state, arrival.worker
        info = state.workers.pop(worker)
        gone = self._under_way.lost(worker)
        if worker not in state.incidents.killed and self._host.out_of_memory(arrival.status):
            state.incidents.killed[worker] = (OUT_OF_MEMORY, False)
            self._host.starved([one.launch for one in gone])
        if worker not in self._gate.barred:
            state.incidents.death(info, arrival.status, arrival.hung, [one.launch for one in gone])
        for one in gone:
            self._progress.struck_by(one.fault, KINDS_SILENT)
        state.events.append(m.WorkerLost(worker, arrival.blocks_lost and not self._run.durable))
        self._publication.reread_again(worker)
        self._retests.lost(worker)
        if self._setups.lost(worker):
            # Of those that this job began with only their successors tell whether workers can begin.
            self._host.died_idle()
        replacement = self._setups.replace(worker, self._clock()) if worker not in self._gate.barred else None
        state.events += [m.BlockLost(attempt) for attempt in self._unreachable(info, arrival)]
        self._gate.lost(worker)
        self._gate.launch()  # another one may have to ask the node's TPM
        if replacement is not None:
            state.events += self._gate.replaced(replacement)

    def _unreachable(self, info: WorkerInfo, arrival: Arrival) -> list[int]:
        """Attempts whose blocks went with a node on which no worker of ours is left to read them out."""
        if self._run.durable or arrival.blocks_lost or any(w.node == info.node for w in self._state.workers.values()):
            return []
        return [a for a, one in self._state.completed.items() if one.worker.node == info.node and one.reply.path]
