"""Hypothesis chooses every single event, and shrinks what breaks to the shortest story."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulator import Cluster

from quoreduce.tracker import JobDone, JobFailed, JobTracker, Plan

PLANS = st.builds(
    Plan,
    maps=st.integers(0, 4),
    reduces=st.integers(1, 3),
    f=st.integers(1, 2),
    mode=st.sampled_from(("bft", "bft", "basic")),
    sample=st.booleans(),
    deferred=st.booleans(),
    tentative=st.booleans(),
    digest_outputs=st.booleans(),
    confirm=st.booleans(),
)
WRONG_PER_JOB_MAX = 5
PICKS = st.integers(0, 10_000)


class Job(RuleBasedStateMachine):
    """One job; domains number f+2 at least and are replaced when they die, so it must end right."""

    cluster: Cluster

    @initialize(plan=PLANS, spare=st.integers(1, 3), slots=st.integers(1, 2))
    def begin(self, plan: Plan, spare: int, slots: int) -> None:
        self.cluster = Cluster(plan, JobTracker(plan), checked=True)
        self.wrong = self.crashes = 0
        for d in range(plan.need + spare):
            self.cluster.join(f"w{d}", f"d{d}", slots)
        self.cluster.start()

    def over(self) -> bool:
        return self.cluster.result is not None

    def pick(self, n: int) -> int:
        return n % len(self.cluster.flying)

    @precondition(lambda self: not self.over() and self.cluster.flying)
    @rule(n=PICKS)
    def answer(self, n: int) -> None:
        self.cluster.reply(self.pick(n))

    @precondition(lambda self: not self.over() and self.cluster.flying and self.wrong < WRONG_PER_JOB_MAX)
    @rule(n=PICKS, how=st.sampled_from(("alone", "collude", "stuck", "error")))
    def answer_wrongly(self, n: int, how: str) -> None:
        self.wrong += 1
        if how == "error":
            self.cluster.reply(self.pick(n), error=f"fault {self.wrong}")
        else:
            self.cluster.reply(self.pick(n), getattr(self.cluster, how))

    @precondition(lambda self: not self.over() and self.crashes < 3)
    @rule(n=PICKS, blocks_lost=st.booleans())
    def crash(self, n: int, blocks_lost: bool) -> None:
        self.crashes += 1
        workers = list(self.cluster.slots)
        self.cluster.crash(workers[n % len(workers)], blocks_lost, f"r{self.crashes}")

    @precondition(lambda self: not self.over() and self.cluster.flying)
    @rule(n=PICKS)
    def lag(self, n: int) -> None:
        c = self.cluster.flying[self.pick(n)]
        if c.attempt not in self.cluster.cancelled:
            self.cluster.lag(c)

    @precondition(lambda self: not self.over() and self.cluster.blocks and self.crashes < 3)
    @rule(n=PICKS, told=st.booleans())
    def lose_block(self, n: int, told: bool) -> None:
        stored = [
            id_
            for id_, block in self.cluster.blocks.items()
            if not block.gone and (told or self.cluster.launches[id_].task.kind == "map")
        ]
        if stored:
            self.crashes += 1
            self.cluster.lose_block(stored[n % len(stored)], told)

    @precondition(lambda self: not self.over() and self.cluster.checking)
    @rule(n=PICKS)
    def publish(self, n: int) -> None:
        self.cluster.publish(n % len(self.cluster.checking))

    @precondition(lambda self: not self.over() and self.cluster.testing)
    @rule()
    def test(self) -> None:
        self.cluster.test()

    @precondition(lambda self: self.cluster.replies)
    @rule(n=PICKS)
    def repeat(self, n: int) -> None:
        self.cluster.repeat(n % len(self.cluster.replies))

    @invariant()
    def only_the_truth_is_agreed_on(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.expect_truth()
            assert not isinstance(self.cluster.result, JobFailed), self.cluster.result

    def teardown(self) -> None:
        """Once everybody is honest again, the job ends."""
        if not hasattr(self, "cluster"):
            return
        for _ in range(2000):
            if self.over():
                break
            if self.cluster.checking:
                self.cluster.publish(0)
                continue
            if self.cluster.testing:
                self.cluster.test()
                continue
            assert self.cluster.flying, "the job hangs"
            self.cluster.reply(0)
        self.cluster.expect_truth()
        assert isinstance(self.cluster.result, JobDone)


Job.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestJob = Job.TestCase
