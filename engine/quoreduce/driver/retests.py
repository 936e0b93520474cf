"""Known-answer tests of suspects while a job runs: the tracker asks for them, a worker computes, the driver compares
(R11).
"""

from __future__ import annotations

from collections.abc import Sequence

from quoreduce.driver.result import Suspect
from quoreduce.errors import QuoreduceError
from quoreduce.job import Job
from quoreduce.protocol import wire
from quoreduce.protocol.faults import FaultPlan
from quoreduce.protocol.port import Executor
from quoreduce.protocol.selftest import ROUNDS, failures, names_for
from quoreduce.tracker import Retest, Retested
from quoreduce.tracker.tracker import JobTracker

LIMIT_S = 60.0  # the first test of a worker loads kernels, on a machine that may be busy


class Retests:
    """The tests that are under way in a job, and what came out of those that are over.

    A worker takes one after the task that it executes, and before those that it is sent later.
    """

    def __init__(self, executor: Executor, faults: FaultPlan, job: Job, checked: bool = False) -> None:
        self._executor = executor
        self._tests = names_for(job, checked)
        self._faults = faults
        self._under_way: dict[int, tuple[Retest, float]] = {}
        self._wrong: dict[str, dict[str, int]] = {}  # domain -> kernel -> wrong answers

    @property
    def waiting(self) -> bool:
        """Whether a test is under way."""
        return bool(self._under_way)

    def awaits(self, worker: str, test: int) -> bool:
        """Whether a worker is to answer the test of this number."""
        one = self._under_way.get(test)
        return one is not None and one[0].worker == worker

    def engage(self, worker: str) -> bool:
        """Whether a worker has a test to do."""
        return any(test.worker == worker for test, _ in self._under_way.values())

    def begin(self, test: Retest, names: Sequence[str], free_at: float) -> None:
        """Send a test to a worker that is free by ``free_at`` (monotonic clock). ``names``: of its domain, for
        faults.
        """
        struck = self._faults.strike_test(test.test, names)
        fault, percent = struck if struck is not None else (None, 0)
        self._under_way[test.test] = test, free_at + LIMIT_S
        self._executor.submit(test.worker, wire.encode(wire.SelfTest(test.test, ROUNDS, self._tests, fault, percent)))

    def ended(self, worker: str, reply: wire.Tested) -> list[Retested]:
        """Compare a worker's answers; return nothing if it was not asked for this test (R10)."""
        test, _ = self._under_way.get(reply.test, (None, 0.0))
        if test is None or test.worker != worker:
            return []
        del self._under_way[reply.test]
        wrong = failures(reply.data, ROUNDS, self._tests)
        for kernel, times in wrong.items():
            counts = self._wrong.setdefault(test.domain, {})
            counts[kernel] = counts.get(kernel, 0) + times
        return [Retested(reply.test, not wrong)]

    def lost(self, worker: str) -> None:
        """A worker is gone: its test has no outcome."""
        self._under_way = {number: one for number, one in self._under_way.items() if one[0].worker != worker}

    def postpone(self, away_s: float) -> None:
        """The driver was away: that time is not the workers'."""
        self._under_way = {number: (test, due + away_s) for number, (test, due) in self._under_way.items()}

    def late(self, now: float) -> list[str]:
        """Workers whose test is past its deadline."""
        return [test.worker for test, deadline in self._under_way.values() if deadline <= now]

    def suspects(self, tracker: JobTracker) -> dict[str, Suspect]:
        """The suspects of a job, with all that was seen of them."""
        shut, found = set(tracker.quarantined), {}
        for name, one in tracker.standings.items():
            if one.why:
                wrong = dict(sorted(self._wrong.get(name, {}).items()))
                asked, answered = tracker.asked_of(name)
                found[name] = Suspect(
                    one.why, one.lost, one.judged, one.passed, one.failed, wrong, name in shut, asked, answered
                )  # fmt: skip
        return found

    def blame(self, tracker: JobTracker, error: QuoreduceError) -> None:
        """If a domain is a suspect, that may be why the job failed: raise an error of the same type that says so."""
        suspects = self.suspects(tracker)
        if suspects:
            why = "; ".join(f"{name}: {one}" for name, one in suspects.items())
            raise type(error)(f"{error} Suspect: {why}.") from error
