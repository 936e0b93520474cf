"""The job tracker: events in, commands out (slides 11-22; rules R1-R11 of ARCHITECTURE.md).

Everything that decides about a job lives here, and nothing here knows a clock, a random number or a thread: the same
events in the same order give the same commands. The law of this file is `handle`: an event changes the state through
exactly one `_on_...` method, then free slots are filled, then the job is over or it is not.

The way of a task: `_top_up` queues it while it lacks replicas; `_schedule` finds slots; `_launch`; a reply is `_end`ed
(R10) and cast into the task's ballot; `_judge` sees whether somebody won. A map that wins against what reduces have
read `_contradict`s them (R5).

The cost of an event is O(1) in the number of tasks. The exceptions: a map's output has O(reduces) parts; launching a
reduce gathers its sources if they changed since the last launch (O(maps)); a contradiction looks at every reduce.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from quoreduce.tracker import invariants
from quoreduce.tracker.ledger import Ledger
from quoreduce.tracker.messages import (
    Accused,
    Agreed,
    BlockLost,
    Cancel,
    Command,
    Discard,
    Event,
    Executed,
    Failed,
    Finished,
    JobDone,
    JobFailed,
    Kind,
    Launch,
    Output,
    Published,
    Reason,
    Recovered,
    Refused,
    Retest,
    Retested,
    Slow,
    Source,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)
from quoreduce.tracker.placement import Domain, Pool
from quoreduce.tracker.state import Attempt, Plan, TaskState
from quoreduce.tracker.suspicion import Known, Standing
from quoreduce.tracker.vote import Camp

__all__ = ["JobTracker", "Plan"]

# Tasks that cannot be launched now and are stepped over, per event, in search of one that can.
LOOK_AHEAD_TASKS = 64


class JobTracker:
    """Decides what runs where, who has won, and when the job is over.

    Feed it `WorkerJoined` for the workers there are, call `start` once, then `handle` for everything that happens,
    and carry out what both return, in order.

    Attributes:
        plan: what was asked for.
        ledger: what it has cost so far.
        done: whether `JobDone` or `JobFailed` has been returned. Events are ignored from then on.
    """

    def __init__(self, plan: Plan, known: Mapping[str, Known] | None = None) -> None:
        """Plan a job. `known`: domains that earlier jobs have quarantined, or that are on probation (R11)."""
        self.plan = plan
        self.ledger = Ledger()
        self.done = False
        self._started = self._opened = False
        self._out: list[Command] = []
        self._pool = Pool(plan.need, known)
        self._attempts: dict[int, Attempt] = {}
        self._next = plan.first_attempt
        self._awaited: dict[str, dict[int, None]] = {}  # worker -> attempts executed there whose answers are to come
        self._blocks: dict[str, dict[int, None]] = {}  # worker -> attempts stored there; outlives the worker
        self._tests: dict[int, Retest] = {}  # under way (R11)
        self._sample = self._state("sample", 0) if plan.sample else None
        self._maps = [self._state("map", m) for m in range(plan.maps)]
        self._reduces = [self._state("reduce", r) for r in range(plan.reduces)]
        self._maps_unwon = self._maps_unready = plan.maps  # not voted; not readable by a reduce
        self._reduces_agreed = 0  # and stored
        self._reduces_confirmed = 0  # published, says the driver
        self._provisional: dict[int, TaskState] = {}  # reduces with a quorum that awaits their maps' votes (R5)
        self._sources: list[tuple[Source, ...]] = [()] * plan.maps
        self._offered_nbytes = [0] * plan.reduces  # of all copies a reduce would read; summed as they come and go
        self._snapshot: tuple[tuple[Source, ...], ...] | None = None  # of _sources; dropped when one changes
        self._held: dict[int, set[int]] = {}  # a copy to discard -> running reduces that still read it
        # Work without a slot: for each kind, tasks that were begun come before fresh ones.
        self._queues: dict[tuple[Kind, bool], OrderedDict[int, TaskState]] = {
            (kind, begun): OrderedDict() for kind in ("sample", "map", "reduce") for begun in (True, False)
        }
        self._handlers: dict[type, Callable[[Any], None]] = {
            WorkerJoined: self._on_joined,
            WorkerLost: self._on_lost,
            Executed: self._on_executed,
            Finished: self._on_finished,
            Failed: self._on_failed,
            Refused: self._on_refused,
            BlockLost: self._on_block_lost,
            Published: self._on_published,
            Slow: self._on_slow,
            Retested: self._on_tested,
            Recovered: self._on_recovered,
            Stalled: self._on_stalled,
        }

    def _state(self, kind: Kind, index: int) -> TaskState:
        return TaskState(Task(kind, index), owed=self.plan.first if self.plan.upfront else 0)

    # ---- what the driver calls ------------------------------------------------------------------------------------

    def start(self) -> list[Command]:
        """Launch what can be launched on the workers that have joined."""
        self._started = True
        if len(self._pool.domains) < self.plan.need:
            self._fail("too_few_domains", None, self._too_few())
        elif self._sample is not None:
            self._top_up(self._sample)
        else:
            self._open_gates()
        return self._flush()

    def handle(self, event: Event) -> list[Command]:
        """Take note of an event and return what is to be done about it."""
        if self.done:
            self.ledger.ignored += 1
            return []
        self._handlers[type(event)](event)
        return self._flush() if self._started else []

    @property
    def started(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._started

    def asked_of(self, domain: str) -> tuple[int, int]:
        """Executions that a domain began, and how many of them it answered with a vote."""
        asked = [attempt for attempt in self._attempts.values() if attempt.domain == domain]
        return len(asked), sum(attempt.camp is not None for attempt in asked)

    @property
    def standings(self) -> dict[str, Standing]:
        """What was seen of each domain so far (R11)."""
        return self._pool.suspicion.standings

    @property
    def quarantined(self) -> list[str]:
        """Live domains that get no work, for they are suspects and others are enough (R11)."""
        return self._pool.quarantined

    def counters(self) -> dict[str, int]:
        """Figures for a progress display."""
        return {
            "maps": self.plan.maps,
            "maps_readable": self.plan.maps - self._maps_unready,
            "maps_agreed": self.plan.maps - self._maps_unwon,
            "reduces": self.plan.reduces,
            "reduces_agreed": self._reduces_agreed,
            "executions": self.ledger.executions,
            "running": self._pool.busy,
            "queued": sum(map(len, self._queues.values())),
            "domains": len(self._pool.domains),
            "quarantined": len(self._pool.domains) - len(self._pool.open),
        }

    def check(self) -> None:
        """Assert the invariants; O(tasks), for tests."""
        invariants.check(self)

    # ---- events: exactly one of these per event -------------------------------------------------------------------

    def _on_joined(self, event: WorkerJoined) -> None:
        self.ledger.ignored += not self._pool.join(event.worker, event.domain, event.slots, event.cpu)

    def _on_lost(self, event: WorkerLost) -> None:
        """Replace what ran there: a crash is not a vote (R9). Votes already cast stand."""
        occupants = self._pool.lose(event.worker)
        blocks = self._blocks.pop(event.worker, {}) if event.blocks_lost else {}
        self.ledger.ignored += occupants is None and not blocks
        self._tests = {test: one for test, one in self._tests.items() if one.worker != event.worker}
        unanswered = [*self._awaited.pop(event.worker, ()), *(occupants or ())]
        crashed = [self._attempts[a] for a in unanswered if self._attempts[a].status == "running"]
        for id_ in unanswered:
            self._attempts[id_].status = "over"
        for attempt in crashed:
            self._crash(attempt)
        self._drop(blocks)

    def _on_executed(self, event: Executed) -> None:
        """The worker may go on; until the answer comes the attempt counts as running."""
        attempt = self._attempts.get(event.attempt)
        if attempt is None or attempt.status == "over" or not attempt.seated:
            self.ledger.ignored += 1
            return
        attempt.seated = False
        self._pool.release(attempt.worker, attempt.id)
        self._awaited.setdefault(attempt.worker, {})[attempt.id] = None

    def _on_finished(self, event: Finished) -> None:
        attempt = self._end(event.attempt)
        if attempt is None:
            return
        state, output = attempt.state, event.output
        if len(output.parts) != (self.plan.reduces if state.task.kind == "map" else 1):
            self.ledger.malformed += 1
            self._crash(attempt)
            return
        camp = state.ballot.cast(attempt.id, attempt.domain, output.digest, output)
        if attempt.store:
            attempt.stored = True
            camp.copies.append(attempt.id)
            self._blocks.setdefault(attempt.worker, {})[attempt.id] = None
            self.ledger.store(output)
        self._judge(attempt, camp)

    def _on_failed(self, event: Failed) -> None:
        """An error of the user's code is a result: it takes f+1 equal ones to make it the job's own."""
        attempt = self._end(event.attempt)
        if attempt is not None:
            self.ledger.errors += 1
            camp = attempt.state.ballot.cast(attempt.id, attempt.domain, event.digest, None, event.error)
            self._judge(attempt, camp)

    def _on_refused(self, event: Refused) -> None:
        """Drop the copies a reduce could not use and run it again (R6). It may name only what it was told to read."""
        attempt = self._end(event.attempt)
        if attempt is None:
            return
        self.ledger.refuse(attempt.state.task.kind, attempt.spare)
        attempt.state.refused += 1
        read = {source.attempt for copies in attempt.sources for source in copies}
        self._drop([id_ for id_ in event.bad if id_ in read])
        self._replace(attempt.state)

    def _on_block_lost(self, event: BlockLost) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is None or not attempt.stored:
            self.ledger.ignored += 1
            return
        if attempt.state is self._sample and self._sample.published == attempt.id:
            self._sample.published = None  # the driver says that it could not read it after all
        self._drop([attempt.id])

    def _on_published(self, event: Published) -> None:
        """The driver has published a reduce's output: what becomes of its stored attempt matters no more (R8)."""
        attempt = self._attempts.get(event.attempt)
        if attempt is None or attempt.state.published != attempt.id or attempt.state.confirmed:
            self.ledger.ignored += 1
        elif attempt.state.task.kind == "reduce":
            attempt.state.confirmed = True
            self._reduces_confirmed += 1

    def _on_slow(self, event: Slow) -> None:
        """Have an overdue attempt overtaken (R9), and those whose answers its worker still owes."""
        attempt = self._attempts.get(event.attempt)
        if attempt is None or attempt.status == "over" or not attempt.seated:
            self.ledger.ignored += 1
            return
        for id_ in (attempt.id, *self._awaited.get(attempt.worker, ())):
            if self._attempts[id_].status == "running":
                self._overtake(self._attempts[id_])

    def _overtake(self, attempt: Attempt) -> None:
        """Launch one spare, if those in time cannot do without.

        Only where it is in nobody's way: now, on a free slot of a domain that is new to the task. The slow one goes on, and if
        it is the first to answer, so much the better.
        """
        attempt.slow, state = True, attempt.state
        if state.spares >= self.plan.need or self._wanted(state) or not self._lacking(state, state.in_time()):
            return
        domain = self._pool.fresh(state.asked)
        if domain is not None and not (state.task.kind == "reduce" and self._maps_unready):
            self._launch(state, domain, spare=True)

    def _on_tested(self, event: Retested) -> None:
        """The outcome of a test; of one that was asked for."""
        test = self._tests.pop(event.test, None)
        if test is None:
            self.ledger.ignored += 1
        else:
            self._pool.tested(test.domain, event.passed)

    def _on_recovered(self, event: Recovered) -> None:
        """A vote of an earlier life stands. While the copy can be read the task is not executed again."""
        state = self._of(event.task)
        if self._started or state.winner is not None:
            self.ledger.ignored += 1
            return
        attempt = Attempt(event.attempt, state, "", event.domains[0], 0, event.stored, (), "over")
        self._attempts[attempt.id] = attempt
        for domain in event.domains:
            attempt.camp = state.ballot.cast(attempt.id, domain, event.output.digest, event.output)
        assert attempt.camp is not None, "f+1 domains agreed"
        if event.stored:
            attempt.stored = True
            attempt.camp.copies.append(attempt.id)
        state.owed, state.executions, state.winner = 0, self.plan.first, attempt.camp
        if event.task.kind == "map":
            self._map_won(state, attempt.camp, event.output)
        self._refresh(state)
        self._top_up(state)

    def _of(self, task: Task) -> TaskState:
        if task.kind == "sample":
            assert self._sample is not None, "the job has a sample"
            return self._sample
        return (self._maps if task.kind == "map" else self._reduces)[task.index]

    def _on_stalled(self, _: Stalled) -> None:
        """No worker will come to the rescue. What cannot go on without one has failed."""
        if self._pool.busy or any(self._awaited.values()) or self._tests or not self._started:
            self.ledger.ignored += 1
            return
        before = len(self._attempts)
        self._schedule()
        if len(self._attempts) > before:
            return
        if self._all_published():
            self._succeed()
            return
        stuck = next((state for queue in self._queues.values() for state in queue.values()), None)
        task, story = (stuck.task, stuck.story()) if stuck is not None else (None, "anything")
        if len(self._pool.domains) < self.plan.need:
            self._fail("too_few_domains", task, f"{self._too_few()} {story}.")
        else:
            self._fail("no_quorum", task, f"no worker is left that could help with {story}.")

    # ---- replicas: which are wanted, where they run, how they end -------------------------------------------------

    def _open_gates(self) -> None:
        """Queue everything that waits for nothing but the sample."""
        self._opened = True
        for state in self._maps + self._reduces:
            self._top_up(state)

    def _wanted(self, state: TaskState) -> int:
        """How many replicas to launch now: what the vote lacks, or what an up-front plan still owes (slide 18)."""
        return max(state.owed, self._lacking(state, state.running.values()))

    def _lacking(self, state: TaskState, running: Collection[Attempt]) -> int:
        """How many replicas the task cannot do without (R2): as many as must agree, less those `running` that may."""
        if state.winner is None:
            return state.ballot.missing({attempt.domain for attempt in running}, self.plan.need)
        # Won. But a stored copy of what won is needed: a map's until the job is done, another's until published (R6).
        needed = state.task.kind == "map" or state.published is None
        return needed and not state.winner.copies and not any(attempt.store for attempt in running)

    def _top_up(self, state: TaskState) -> None:
        """Queue a task if it wants replicas, take it off the queue if it does not, give up at the bound (R3)."""
        kind, index = state.task.kind, state.task.index
        queue = self._queues[kind, state.executions > 0]
        state.wanted = self._wanted(state)
        if state.wanted <= 0 or self._exhausted(state):
            queue.pop(index, None)
        elif index not in queue:
            queue[index] = state

    def _exhausted(self, state: TaskState) -> bool:
        """Whether a task that wants another replica is at its bound (R3); fails the job if it cannot do without."""
        if state.tries < self.plan.bound:
            return False
        if not self._lacking(state, state.running.values()):
            state.owed = 0
            return True
        reason = state.fruitless()
        if reason == "copies_lost":
            won = "its output was agreed on, and no copy of it could be made and read back"
            what = won if state.winner is not None else "nobody could read its inputs"
            self._fail(reason, state.task, f"{what}: {state.story()}.")
            return True
        domains = len(self._pool.domains)
        hint = (
            f" With {domains} domains, one that is wrong again and again cannot be outvoted; one more domain would mask it."
        ) * (domains <= self.plan.need)
        if reason == "not_deterministic":
            hint = (
                " Domains contradicted themselves and never each other: the job's own code is not deterministic "
                "(quoreduce check looks for the cause)."
            )
        self._fail(reason, state.task, f"no {self.plan.need} domains agreed on {state.story()}.{hint}")
        return True

    def _schedule(self) -> None:
        """Fill free slots: sample, maps, reduces; within a kind, tasks already begun first."""
        for (kind, begun), queue in self._queues.items():
            if not self._pool.free or (kind == "reduce" and self._maps_unready):
                break
            if not queue:
                continue
            skipped = 0
            fed: list[int] = []
            for index, state in queue.items():
                if not self._pool.free or skipped >= LOOK_AHEAD_TASKS or self.done:
                    break
                satisfied = self._feed(state)
                skipped += not satisfied
                if satisfied or (state.executions and not begun):
                    fed.append(index)
                    if not satisfied:
                        self._queues[kind, True][index] = state
            for index in fed:  # not before: a dict must not shrink while it is gone through
                del queue[index]

    def _feed(self, state: TaskState) -> bool:
        """Launch as many replicas as the task wants. False if it has to wait for slots or for more domains."""
        while state.wanted > 0:
            if self._exhausted(state):
                return True
            running = state.running_domains()
            if self._hopeless(state, running):
                return False
            domain = self._pool.choose(state.asked, running, state.ballot, state.winner)
            if domain is None:
                return False
            self._launch(state, domain)
            state.wanted = self._wanted(state)
        return True

    def _hopeless(self, state: TaskState, running: set[str]) -> bool:
        """Whether even all live domains together could not win the vote, so that executions would be wasted."""
        if state.winner is not None or len(self._pool.domains) >= self.plan.need:
            return False
        return state.ballot.missing(running | self._pool.domains.keys(), self.plan.need) > 0

    def _launch(self, state: TaskState, domain: Domain, spare: bool = False) -> None:
        id_, task, replica = self._next, state.task, state.executions
        self._next += 1
        store = self._stores(state)
        sources: tuple[tuple[Source, ...], ...] = ()
        if task.kind == "reduce":
            sources = self._gather()
            self.ledger.shipped_nbytes += self._offered_nbytes[task.index]
        worker = self._pool.take(domain, id_)
        attempt = Attempt(id_, state, worker, domain.name, replica, store, sources, spare=spare)
        self._attempts[id_] = state.running[id_] = attempt
        state.asked[domain.name] = state.asked.get(domain.name, 0) + 1
        state.executions += 1
        state.tries += not spare
        state.spares += spare
        state.owed = max(0, state.owed - 1)
        self.ledger.launch(task.kind, replica < self.plan.first, spare)
        self._emit(Launch(id_, task, replica, worker, store, sources))

    def _stores(self, state: TaskState) -> bool:
        """Whether the next replica stores its output (R6): the carrier does, and a spare for one that is slow.

        In a dispute all further ones do too, for the carrier may be the one that is wrong.
        """
        if self.plan.stores_all or state.ballot.disputed:
            return True
        stored = any(camp.copies for camp in state.ballot.camps)
        return not stored and not any(attempt.store for attempt in state.in_time())

    def _end(self, id_: int) -> Attempt | None:
        """Take an answer for an attempt: free its slot. None if the answer is not to be used (R10)."""
        attempt = self._attempts.get(id_)
        if attempt is None or attempt.status == "over":
            self.ledger.ignored += 1
            return None
        cancelled = attempt.status == "cancelled"
        attempt.status = "over"
        if attempt.seated:
            self._pool.release(attempt.worker, id_)
        else:
            del self._awaited[attempt.worker][id_]
        if cancelled:
            self.ledger.ignored += 1
            if attempt.store:
                self._emit(Discard(id_))
            return None
        del attempt.state.running[id_]
        self._let_go(attempt)
        return attempt

    def _crash(self, attempt: Attempt) -> None:
        """An execution is lost without an answer that counts (R9)."""
        self.ledger.crashed += 1
        attempt.state.crashed += 1
        if attempt.state.running.pop(attempt.id, None) is not None:
            self._let_go(attempt)
        self._replace(attempt.state)

    def _replace(self, state: TaskState) -> None:
        """Run one that ended without a vote again; an up-front plan always, others if it is missed."""
        if self.plan.upfront and state.winner is None:
            state.owed += 1
        self._top_up(state)

    def _cancel(self, attempt: Attempt) -> None:
        attempt.status = "cancelled"
        del attempt.state.running[attempt.id]
        self.ledger.cancelled += 1
        self._emit(Cancel(attempt.id))
        self._let_go(attempt)

    # ---- votes ----------------------------------------------------------------------------------------------------

    def _judge(self, attempt: Attempt, camp: Camp) -> None:
        """A vote was cast: has somebody won, or lost?"""
        state = attempt.state
        attempt.camp = camp
        self.ledger.votes += 1
        if state.ballot.disputed and len(camp.attempts) == 1:
            self._doubt(attempt)
        if state.ballot.disputed and state.ballot.split_along(self._pool.types):
            self._blame_types(state)
        elif state.winner is None:
            self._try_win(state)
        else:
            self._judge_late(attempt, camp is not state.winner)
            self._tidy(state)
        self._refresh(state)
        self._top_up(state)

    def _try_win(self, state: TaskState) -> None:
        """Let f+1 distinct domains win (R1), a reduce only when all its inputs have won (R5)."""
        winner = state.ballot.winner(self.plan.need)
        if winner is None:
            return
        if state.task.kind == "reduce" and self._maps_unwon:
            self._provisional[state.task.index] = state
        elif winner.output is None:
            self._fail("job_error", state.task, winner.error)
        else:
            self._win(state, winner, winner.output)

    def _win(self, state: TaskState, winner: Camp, output: Output) -> None:
        state.winner, state.tries = winner, 0  # what is executed from now on is to bring a copy: bounded anew, once (R3)
        lost = {id_: domain for camp in state.ballot.camps if camp is not winner for id_, domain in camp.attempts.items()}
        losers = set(lost.values())
        for domain in dict.fromkeys(domain for camp in state.ballot.camps for domain in camp.attempts.values()):
            self._pool.judge(domain, True, domain in losers)
        for camp in state.ballot.camps:
            for id_ in camp.attempts:
                self._compare(self._attempts[id_], camp is not winner)
        for id_, domain in lost.items():
            self._accuse(state, id_, domain)
        if not self.plan.upfront:
            # A replica that stores is let finish when the winner has no readable copy: it may bring one.
            surplus = [a for a in state.running.values() if winner.copies or not a.store]
            for attempt in surplus:
                self._cancel(attempt)
        if state.task.kind == "map":
            self._map_won(state, winner, output)
        self._tidy(state)

    def _map_won(self, state: TaskState, winner: Camp, output: Output) -> None:
        self._emit(Agreed(state.task, next(iter(winner.copies or winner.attempts)), output, tuple(winner.domains)))
        self._maps_unwon -= 1
        if state.shown is not None and state.shown is not winner:
            self._contradict(state, state.shown, output)
        if not self._maps_unwon:
            provisional, self._provisional = self._provisional, {}
            for reduce in provisional.values():
                self._try_win(reduce)
                self._refresh(reduce)
                self._top_up(reduce)

    def _accuse(self, state: TaskState, id_: int, domain: str) -> None:
        """A vote is lost (R11). Never before the task has a winner: until then it may be the job that is wrong, not the
        domain."""
        self.ledger.lost_votes += 1
        self._emit(Accused(state.task, id_, domain))

    def _judge_late(self, attempt: Attempt, lost: bool) -> None:
        """A vote came after the task was won. Several votes of a domain on one task, in this life, count once (R11)."""
        state, domain = attempt.state, attempt.domain
        before = [
            camp is not state.winner
            for camp in state.ballot.camps
            for id_, other in camp.attempts.items()
            if other == domain and id_ != attempt.id and id_ >= self.plan.first_attempt
        ]
        self._pool.judge(domain, not before, lost and not any(before))
        self._compare(attempt, lost)
        if lost:
            self._accuse(state, attempt.id, domain)

    def _blame_types(self, state: TaskState) -> None:
        """The job's output depends on the type of CPU: nobody is wrong but the job (R11)."""
        types = " and ".join(self._pool.types[next(iter(camp.domains))] for camp in state.ballot.camps)
        hint = "quoreduce check --settings cpu looks for the cause"
        why = f"domains with the same type of CPU agree, and those of different types ({types}) do not"
        self._fail("not_deterministic", state.task, f"{why}: the job is not deterministic ({hint}). {state.story()}.")

    def _compare(self, attempt: Attempt, lost: bool) -> None:
        if attempt.replica < self.plan.first:
            group = attempt.state.task.kind, attempt.replica, self._pool.types[attempt.domain]
            self._pool.compare(attempt.domain, group, lost)

    def _doubt(self, attempt: Attempt) -> None:
        """An answer contradicts those before it: it is time to test who gave it, and who gave the first that is contradicted.

        Nobody is accused by that. But with f+1 domains, of which one is broken for good, no vote is ever won, and only a test
        tells who it is; with more of them a test comes sooner than the vote (R11).
        """
        camps = attempt.state.ballot.camps
        first = {self._attempts[id_].domain: self._attempts[id_] for id_ in camps[0].attempts} if len(camps) == 2 else {}
        for name, one in ({attempt.domain: attempt} | first).items():
            domain = self._pool.domains.get(name)
            if domain is None or not self._pool.suspicion.dispute(name):
                continue
            if all(test.domain != name for test in self._tests.values()):  # else it is being tested just now
                worker = one.worker if one.worker in domain.workers else next(iter(domain.workers))
                test = self._tests[self.ledger.tests] = Retest(self.ledger.tests, name, worker)
                self.ledger.tests += 1
                self._emit(test)

    def _contradict(self, state: TaskState, shown: Camp, output: Output) -> None:
        """A map's vote went against what reduces have read: restart those that read a losing partition (R5)."""
        m, read = state.task.index, shown.output
        assert read is not None, "only outputs are shown to reduces"
        for r, reduce in enumerate(self._reduces):
            if read.parts[r].digest != output.parts[r].digest:
                self._restart(reduce, m, shown)
                continue
            # This partition is right, though others of the same copy are not: let its readers finish.
            for attempt in reduce.running.values():
                for source in attempt.sources[m]:
                    if source.attempt in shown.copies:
                        self._held.setdefault(source.attempt, set()).add(attempt.id)

    def _restart(self, reduce: TaskState, m: int, lost: Camp) -> None:
        """Withdraw what a reduce has done on a losing partition of map `m`: running, voted and stored (R5)."""

        def stale(attempt: Attempt) -> bool:
            return any(source.attempt in lost.attempts for source in attempt.sources[m])

        for attempt in [a for a in reduce.running.values() if stale(a)]:
            self._cancel(attempt)
        votes = [self._attempts[id_] for camp in reduce.ballot.camps for id_ in camp.attempts]
        withdrawn = [attempt.id for attempt in votes if stale(attempt)]
        for id_ in withdrawn:
            self._discard(self._attempts[id_])
        reduce.ballot.withdraw(withdrawn)
        self.ledger.withdrawn_votes += len(withdrawn)
        # What is left are the executions that count; the task begins anew with them (R1, R3).
        left = [a for a in votes if a.id not in withdrawn] + list(reduce.running.values())
        reduce.asked = dict(Counter(attempt.domain for attempt in left))
        reduce.tries = len(left)
        if self.plan.upfront:
            reduce.owed = max(0, self.plan.first - len(left))
        self._top_up(reduce)

    # ---- stored copies --------------------------------------------------------------------------------------------

    def _refresh(self, state: TaskState) -> None:
        """A task's votes or copies have changed: what can be read of it now?"""
        if state.task.kind == "map":
            self._offer(state)
        elif state.winner is not None and state.published is None and state.winner.copies:
            self._publish(state, state.winner)

    def _offer(self, state: TaskState) -> None:
        """Let reduces read a map's copies: the winner's; before the vote, the only output seen so far (R5)."""
        camp = state.winner
        if camp is None and self.plan.eager and len(state.ballot.camps) == 1:
            camp = state.ballot.camps[0]
        copies = camp.copies if camp is not None else []
        if not self.plan.stores_all:
            copies = copies[:1]
        m = state.task.index
        offered = tuple(Source(m, id_, self._attempts[id_].worker) for id_ in copies)
        if offered == state.offered:
            return
        self._maps_unready += (not offered) - (not state.offered)
        self._weigh(state.offered, -1)
        self._weigh(offered, +1)
        state.offered = self._sources[m] = offered
        self._snapshot = None
        if offered and state.winner is None:
            state.shown = camp

    def _weigh(self, copies: tuple[Source, ...], sign: int) -> None:
        if copies:
            parts, times = self._output(copies[0]).parts, sign * len(copies)
            # One pass in a comprehension: with many partitions this is most of what an answer costs.
            self._offered_nbytes = [n + times * part.nbytes for n, part in zip(self._offered_nbytes, parts, strict=True)]

    def _publish(self, state: TaskState, winner: Camp) -> None:
        """Announce the stored attempt of an agreed output that is to be used."""
        assert winner.output is not None, "errors end the job"
        state.published = winner.copies[0]
        self._emit(Agreed(state.task, state.published, winner.output, tuple(winner.domains)))
        if state.task.kind == "reduce":
            self._reduces_agreed += 1
        elif not self._opened:
            self._open_gates()

    def _gather(self) -> tuple[tuple[Source, ...], ...]:
        """The copies of every map that a reduce launched now reads."""
        if self._snapshot is None:
            self._snapshot = tuple(self._sources)
        return self._snapshot

    def _output(self, source: Source) -> Output:
        camp = self._attempts[source.attempt].camp
        assert camp is not None, "a stored attempt has voted"
        assert camp.output is not None, "an error is never stored"
        return camp.output

    def _tidy(self, state: TaskState) -> None:
        """Give up stored copies of a won task that nobody will read: the losers', and surplus ones (slides 21, 22)."""
        for camp in state.ballot.camps:
            keep = 0 if camp is not state.winner else len(camp.copies) if self.plan.stores_all else 1
            for id_ in camp.copies[keep:]:
                self._discard(self._attempts[id_])
            del camp.copies[keep:]

    def _discard(self, attempt: Attempt) -> None:
        """Give up a stored output, as soon as no running reduce reads it."""
        if attempt.stored and not self._held.get(attempt.id):
            attempt.stored = False
            self._held.pop(attempt.id, None)
            self._blocks.get(attempt.worker, {}).pop(attempt.id, None)
            self.ledger.discarded += 1
            self._emit(Discard(attempt.id))

    def _let_go(self, attempt: Attempt) -> None:
        """A reduce no longer reads its sources: discard the copies that were only kept for it."""
        for id_ in [id_ for id_, readers in self._held.items() if attempt.id in readers]:
            self._held[id_].discard(attempt.id)
            self._discard(self._attempts[id_])

    def _drop(self, ids: Iterable[int]) -> None:
        """Stored outputs are gone; find other copies, or execute again what is still needed (R6, R9)."""
        lost = [attempt for id_ in ids if (attempt := self._attempts[id_]).stored]
        for attempt in lost:
            attempt.stored = False
            self._held.pop(attempt.id, None)
            self._blocks.get(attempt.worker, {}).pop(attempt.id, None)
            if attempt.camp is not None and attempt.id in attempt.camp.copies:
                attempt.camp.copies.remove(attempt.id)
            state = attempt.state
            if state.published == attempt.id and state.task.kind == "reduce" and not state.confirmed:
                state.published = None
                self._reduces_agreed -= 1
        self.ledger.lost_blocks += len(lost)
        for state in dict.fromkeys(attempt.state for attempt in lost):  # when all are taken out, not before
            self._refresh(state)
            self._top_up(state)

    # ---- the end --------------------------------------------------------------------------------------------------

    def _all_published(self) -> bool:
        count = self._reduces_confirmed if self.plan.confirm else self._reduces_agreed
        return count == self.plan.reduces

    def _owing(self) -> bool:
        """Whether replicas of an up-front plan are still to be launched: it is executed in full (slide 18)."""
        if not self.plan.upfront or not self._pool.workers:
            return False
        return any(state.owed for queue in self._queues.values() for state in queue.values())

    def _too_few(self) -> str:
        return (
            f"{self.plan.need} domains must agree on every output (f={self.plan.need - 1}), and only"
            f" {len(self._pool.domains)} are there."
        )

    def _succeed(self) -> None:
        self._emit(JobDone())
        self.done = True

    def _fail(self, reason: Reason, task: Task | None, message: str) -> None:
        self._emit(JobFailed(reason, task, message))
        self.done = True

    def _emit(self, command: Command) -> None:
        """Say what to do. Nothing follows the end of a job."""
        if not self.done:
            self._out.append(command)

    def _flush(self) -> list[Command]:
        """After each event: fill free slots, see whether the job is done, and hand out the commands."""
        if not self.done:
            self._schedule()
        if self._all_published() and not self._owing() and not self._tests:
            self._succeed()
        if self.done:
            self.ledger.suspicion = {name: one.lost for name, one in self.standings.items() if one.lost}
            self.ledger.suspects = {name: self.standings[name].why for name in self._pool.suspicion.named}
            self.ledger.quarantined = tuple(self._pool.quarantined)
        out, self._out = self._out, []
        return out
