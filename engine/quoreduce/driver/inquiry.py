"""What the masked faults of a job were, asked of its workers when it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from quoreduce import errors
from quoreduce.driver.jobstate import JobState
from quoreduce.driver.plain import OpenGate
from quoreduce.driver.questions import Questions
from quoreduce.driver.requests import Requests
from quoreduce.driver.setups import Setups
from quoreduce.driver.underway import UnderWay
from quoreduce.protocol import wire
from quoreduce.protocol.faults import FaultPlan
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m
from quoreduce.tracker.suspicion import Standing


class Inquiry:
    """Diagnoses the incidents of a job, and clears domains that lost votes for which the job was to blame."""

    def __init__(
        self, state: JobState, gate: OpenGate, setups: Setups, under_way: UnderWay, requests: Requests,
        faults: FaultPlan, questions: Questions, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._state = state
        self._gate = gate
        self._setups = setups
        self._under_way = under_way
        self._requests = requests
        self._faults = faults
        self._questions = questions
        self._clock = clock
        self._cleared: set[str] = set()

    def diagnose(self) -> None:
        """Find out what the masked faults were, if there are any. The output is published, whatever comes of this."""
        state = self._state
        if not (state.incidents.found and state.options.diagnose):
            return
        from quoreduce.driver.copies import Scene
        from quoreduce.driver.detective import Detective, cleared

        state.incidents.closed = True
        scene = Scene(
            state.job, state.options.algorithm, state.completed, state.agreed, self._free, self._probe,
            self._questions.ask, state.output.part_path, state.output.attempt_path, self._clock,
        )  # fmt: skip
        detective = Detective(scene, state.incidents)
        with contextlib.suppress(errors.QuoreduceError):
            detective.diagnose()
        r = state.result
        r.cpu_s += self._questions.cpu_s
        r.diagnoses, r.diagnoses_more, r.probes = detective.found, detective.more, detective.probes
        before, r.lost_votes = r.lost_votes, cleared(r.lost_votes, detective.found)
        self._cleared = {domain for domain, tasks in before.items() if r.lost_votes.get(domain) != tasks}

    def standings(self, seen: Mapping[str, Standing]) -> dict[str, Standing]:
        """What was seen of each domain, without those that lost votes for which the job was to blame (R11)."""
        return {name: one for name, one in seen.items() if name not in self._cleared}

    def _free(self) -> list[WorkerInfo]:
        """Workers that can be asked, those that have yet to begin the job last."""
        busy = {one.launch.worker for one in self._under_way.cancelled.values()} | self._gate.barred
        free = [info for info in self._state.workers.values() if info.name not in busy]
        return sorted(free, key=lambda info: (info.name in self._setups, info.name))

    def _probe(self, launch: m.Launch) -> wire.Request:
        """The request that executes a task once more; what is broken for good strikes it too."""
        names = self._state.names(launch.worker)
        return self._requests.of(launch, self._faults.stuck(launch.task.kind, launch.task.index, names))
