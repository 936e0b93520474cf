"""A cluster of lies around the tracker: workers that err, crash, collude, repeat themselves and lose what they stored.

`Cluster` executes the tracker's commands on invented data and plays the driver; every step is a method, so a seeded
schedule, a golden scenario and hypothesis can all choose what happens next. Its referee (`driver_referee`) watches:
whatever the tracker does that no tracker may do, at any time, is an AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any

from check_answers import CheckAnswers
from driver_referee import Block, Contents, Wrong, output_of, read_by

from quoreduce.tracker import (
    Agreed,
    BlockLost,
    Check,
    Checked,
    Event,
    Executed,
    Failed,
    Finished,
    Launch,
    Output,
    Plan,
    Published,
    Recovered,
    Refused,
    Retested,
    Slow,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)

A_LIFE = 10**6  # attempts are numbered from here in the second life of a job, and so on


@dataclass(slots=True)
class Cluster(CheckAnswers):
    """Workers and blocks, and all that can happen to them."""

    def join(self, worker: str, domain: str, slots: int = 1, cpu: str = "") -> None:
        self.domain_of[worker], self.slots[worker] = domain, slots
        self.send(WorkerJoined(worker, domain, slots, cpu))

    def reply(self, k: int, spoil: Callable[[Launch, Contents], Contents] | None = None, error: str = "") -> None:
        """The k-th of those in flight answers: the truth, or what `spoil` makes of it, or an error. Checks are
        honest.
        """
        if isinstance(self.flying[k], Check):
            self.check(k, error=error)
            return
        c = self._land(k)
        assert isinstance(c, Launch)
        made = self.computed(c)
        event: Event
        if made and isinstance(made[0], int):
            event = Refused(c.attempt, made)  # type: ignore[arg-type]
            if c.attempt not in self.cancelled:
                self.told_lost.update(made)  # type: ignore[arg-type]
        elif error:
            event = Failed(c.attempt, error, error.encode())
            if c.attempt not in self.cancelled:
                self.said.setdefault(c.task, set()).add(error.encode())
        else:
            parts: Contents = made if spoil is None else spoil(c, made)  # type: ignore[assignment, arg-type]
            event = Finished(c.attempt, self._store(c, parts))
        self.replies.append(event)
        self.send(event)

    def malformed(self, k: int, parts: int) -> None:
        """The k-th of those in flight answers with a wrong number of partitions: that is a crash, and no vote (R9)."""
        c = self._land(k)
        before, output = self.tracker.ledger.malformed, output_of((b"malformed",) * parts)
        self.send(Finished(c.attempt, output) if isinstance(c, Launch) else Checked(c.attempt, output, b"", b""))
        assert self.tracker.ledger.malformed == before + (c.attempt not in self.cancelled), (
            "what is malformed is noticed"
        )

    def refuse(self, k: int, bad: tuple[int, ...]) -> None:
        """The k-th of those in flight says that it can use none of `bad`. Of what it has read it is believed (R6)."""
        c = self._land(k)
        if c.attempt not in self.cancelled:
            self.told_lost.update(read_by(c).intersection(bad))
        self.send(Refused(c.attempt, bad))

    def execute(self, k: int) -> None:
        """The k-th of those in flight has ended, and keeps its answer for later: its slot is free, and once only."""
        c = self.flying[k]
        before = self.tracker.ledger.ignored
        if c.attempt not in self.executed:
            self.executed.add(c.attempt)
            self.busy[c.worker] -= 1
            before -= 1
        self.send(Executed(c.attempt))
        assert self.tracker.ledger.ignored == before + 1, "a slot is freed once"

    def lag(self, c: Launch | Check) -> None:
        """One of those in flight is overdue, and may be overtaken: once, where nobody else is in the way (R9)."""
        owed = [one for one in self.flying if one.worker == c.worker and one.attempt in self.executed]
        late = [one for one in [c, *owed] if one.attempt not in self.cancelled]
        self.lagging.update(one.attempt for one in late)
        # What a reduce was asked before it was restarted does not count (R5), so of reduces only those that run are
        # sure.
        asked: dict[Task, set[str]] = {}
        for launch in self.launches.values():
            if launch.attempt >= self.plan.first_attempt and (launch.task.kind != "reduce" or launch in late):
                asked.setdefault(launch.task, set()).add(self.domain_of[launch.worker])
        before, running = len(self.launches), [one for one in self.flying if isinstance(one, Launch)]
        checks = len(self.checks)
        self.send(Slow(c.attempt))
        for one in list(self.launches.values())[before:]:
            self._judge_speculative(one, asked[one.task], [other for other in running if other.task == one.task])
        assert len(self.launches) + len(self.checks) - before - checks <= len(late), (
            "one speculative attempt for each (R9)"
        )

    def _judge_speculative(self, launch: Launch, asked: set[str], running: list[Launch]) -> None:
        task = launch.task
        self.speculative[task] += 1
        assert self.speculative[task] <= self.plan.need, "speculation has an end"
        assert self.domain_of[launch.worker] not in asked, (
            "a speculative attempt goes to a domain that is new to its task (R1)"
        )
        in_time = [one for one in running if one.attempt not in self.cancelled | self.lagging]
        if (
            task.kind == "map" and task not in self.agreed and not self.by_checks(task)
        ):  # votes of others may be withdrawn, or want a copy only
            candidates = [voters for (voted, _), voters in self.voters.items() if voted == task]
            domains = {self.domain_of[one.worker] for one in in_time}
            assert all(len(voters | domains) < self.plan.need for voters in candidates), (
                "the vote can do without the late one (R2)"
            )
        storing = [one for one in in_time if one.store]
        stored = [a for a in self.blocks if self.launches[a].task == task and a not in self.told_lost | self.discarded]
        assert launch.store or storing or stored, "somebody in time stores, or the speculative attempt does (R6)"

    def _store(self, c: Launch, parts: Contents) -> Output:
        output = self.outputs[c.attempt] = output_of(parts)
        if c.store and c.attempt not in self.cancelled:
            self.blocks[c.attempt] = Block(c.worker, parts)
        if c.attempt not in self.cancelled:
            self.said.setdefault(c.task, set()).add(output.digest)
            self.voters.setdefault((c.task, output.digest), set()).add(self.domain_of[c.worker])
        return output

    def repeat(self, k: int) -> None:
        """An answer comes once more."""
        self.ignored(self.replies[k])

    def ignored(self, event: Event) -> None:
        """Something comes that means nothing: a duplicate, or about what is not there (R10)."""
        before = self.tracker.ledger.ignored
        commands = self.tracker.handle(event)
        if self.transcript is not None:
            self.transcript.append((event, commands))
        assert self.tracker.ledger.ignored == before + 1, f"ignored (R10): {event}"
        assert not commands, f"{event} means nothing, yet: {commands}"

    def crash(self, worker: str, blocks_lost: bool, replacement: str | None = None) -> None:
        """A worker dies, with or without what it has stored; perhaps another one comes in its place (R9)."""
        slots = self.slots.pop(worker)
        self.testing = {test: c for test, c in self.testing.items() if c.worker != worker}
        del self.busy[worker]
        self.flying = [c for c in self.flying if c.worker != worker]
        if blocks_lost:
            mine = [id_ for id_, block in self.blocks.items() if block.worker == worker]
            self.told_lost.update(mine)
            for id_ in mine:
                self.blocks[id_].gone = True
        self.send(WorkerLost(worker, blocks_lost))
        if replacement is not None and self.result is None:
            self.join(replacement, self.domain_of[worker], slots)

    def lose_block(self, id_: int, told: bool) -> None:
        """A stored output vanishes; the driver notices, or a reader will."""
        self.blocks[id_].gone = True
        if told:
            self.told_lost.add(id_)
            self.send(BlockLost(id_))

    def publish(self, k: int) -> None:
        """The driver has the k-th of the agreed outputs checked, and publishes it if it is what was voted on (R8)."""
        agreed = self.checking.pop(k)
        attempt = agreed.attempt
        block, stale = self.blocks[attempt], attempt in self.told_lost
        block.gone |= agreed.task in self.unreadable
        self.lost_in_check |= block.gone or stale
        if block.gone and not stale:
            self.told_lost.add(attempt)
            self.send(BlockLost(attempt))
            return
        before = self.tracker.ledger.ignored
        event = Published(attempt)
        self.replies.append(event)
        self.send(event)
        assert self.tracker.ledger.ignored == before + stale, "another attempt has taken its place"

    def test(self) -> None:
        """The oldest test that is under way is over: healthy domains pass."""
        test = next(iter(self.testing))
        event = Retested(test, self.testing.pop(test).domain not in self.broken)
        self.replies.append(event)
        self.send(event)

    def reborn(self, make: Callable[[Plan], Any]) -> Cluster:
        """The driver has died, and its workers with it. Another one is told what was agreed on; its workers are to
        join.

        What was stored can still be read, if it was not lost before.
        """
        plan = replace(self.plan, first_attempt=self.plan.first_attempt + A_LIFE)
        new = Cluster(plan, make(plan), self.checked, transcript=self.transcript)
        new.contested.update(self.contested & self.agreed.keys())
        for task, agreed in self.agreed.items():
            stored = [
                id_ for id_ in self.blocks.keys() - self.told_lost - self.discarded
                if self.launches[id_].task == task and self.outputs[id_] == agreed.output
            ]  # fmt: skip
            new.recover(self, agreed, min(stored) if stored else agreed.attempt, bool(stored))
        return new

    def recover(self, before: Cluster, agreed: Agreed, attempt: int, stored: bool) -> None:
        task, output = agreed.task, agreed.output
        self.agreed[task], self.recovered[task] = agreed, attempt
        self.launches[attempt], self.outputs[attempt] = before.launches[attempt], output
        if stored:
            self.blocks[attempt] = replace(before.blocks[attempt], worker="")
        else:
            self.told_lost.add(attempt)
        self.said[task], self.voters[task, output.digest] = {output.digest}, before.voters[task, output.digest]
        self.vouchers[task, output.digest] = before.vouchers.get((task, output.digest), set())
        self.executions[str(task)] = self.first(task)
        self.send(Recovered(task, attempt, output, agreed.domains, stored, agreed.checkers))

    def stall(self) -> None:
        self.send(Stalled())
        assert self.result is not None or self.flying, "the job hangs"

    def alone(self, c: Launch, parts: Contents) -> Contents:
        """Wrong as nobody else is."""
        return (*parts[:-1], parts[-1] + b"!%d" % c.attempt)

    def stuck(self, c: Launch, parts: Contents) -> Contents:
        """Wrong in the same way whenever this domain is asked: it repeats itself (R1)."""
        return (parts[0] + b"@" + self.domain_of[c.worker].encode(), *parts[1:])

    def collude(self, c: Launch, parts: Contents) -> Contents:
        """Wrong in the same way as others, of f domains at most."""
        gang = self.colluders.setdefault(c.task, set())
        domain = self.domain_of[c.worker]
        if domain not in gang and len(gang) >= self.plan.need - 1:
            return self.alone(c, parts)
        gang.add(domain)
        where = c.task.index % len(parts)
        return tuple(b"evil" if n == where else part for n, part in enumerate(parts))

    def fruitless(self, task: Task, domains: Container[str]) -> int:
        """How many executions of a task in these domains did not bring the truth."""
        right = output_of(self.truth(task))
        asked = [id_ for id_, c in self.launches.items() if c.task == task and self.domain_of.get(c.worker) in domains]
        return sum(self.outputs.get(id_) != right for id_ in asked)

    def expect_truth(self) -> None:
        """Everything agreed on so far is what an honest execution of the whole job gives."""
        for task, agreed in self.agreed.items():
            want = self.truth(task)
            if agreed.output != output_of(want):
                raise Wrong(f"{task}: agreed on {agreed.output}, but the truth is {want}")
            if task.kind == "map" or (agreed.attempt == self.recovered.get(task) and agreed.attempt not in self.blocks):
                continue  # what an earlier life agreed on may be gone, and is to be made again
            if agreed.attempt not in self.blocks or self.blocks[agreed.attempt].parts != want:
                raise Wrong(f"{task}: agreed on {want}, but this is not what is stored")

    def first(self, task: Task) -> int:
        """Executions of a task without faults."""
        return 1 if task.kind in self.plan.checked else self.plan.first

    def by_checks(self, task: Task) -> bool:
        """Whether checks stand for executions of this task, and nothing has disagreed."""
        return task.kind in self.plan.checked and task not in self.contested and len(self.said.get(task, ())) < 2

    def planned(self) -> dict[str, int]:
        """Executions, and checks, of a job without faults (R2, R13)."""
        tasks = {"sample": self.plan.sample, "map": self.plan.maps, "reduce": self.plan.reduces}
        kinds = {kind: n * self.first(Task(kind, 0)) for kind, n in tasks.items()}  # type: ignore[arg-type]
        checked = sum(n for kind, n in tasks.items() if kind in self.plan.checked)
        return kinds | {"check": checked * (self.plan.need - 1)}
