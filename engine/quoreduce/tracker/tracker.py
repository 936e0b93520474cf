"""The job tracker: events in, commands out (slides 11-22; rules R1-R11, R13 of ARCHITECTURE.md).

Everything that decides about a job lives in this package, and nothing here knows a clock, a random number or a thread:
the same events in the same order give the same commands. The law of this file is `handle`: an event changes the state
through exactly one handler, then free slots are filled, then the job is over or it is not.

The way of a task: `Schedule.top_up` queues it while it lacks replicas; `Schedule.schedule` finds slots;
`Executions.launch`; a reply ends the execution (`Executions.end`, R10) and is cast into the task's ballot; `_judge`
sees whether somebody won. A map that wins against what reduces have read restarts them (`Contradictions`, R5).

A task with a check (R13) is executed once. Its answer makes it *running* still, with f checks of what was stored; those
that find it right stand behind it as votes do. If anything disagrees, its executions alone are voted on from then on.

=========== ============================================================= ===========================================
state       meaning                                                       events that leave it
=========== ============================================================= ===========================================
closed      a map or reduce while the sample is not agreed on             `Agreed` of the sample: waiting
waiting     it wants replicas, and no right domain has a slot             what frees a slot (`WorkerJoined`, `Executed`,
                                                                          an answer, `WorkerLost`): running
running     replicas are to answer                                        `Finished`, `Failed`: a vote; with f+1 equal
                                                                          ones won, else running, disputed or waiting.
                                                                          `Refused`, `WorkerLost`: waiting.
                                                                          `Slow`: running, with one replica more
disputed    votes differ, and no candidate can win without more of them   as waiting or running; at its bound (R3), or
                                                                          if types of CPU disagree: the job fails
provisional a reduce with f+1 equal votes, while a map has not won        the last map's vote: won. A map that wins
                                                                          against what it read: waiting (R5)
won         f+1 domains agree; its replicas that are left are cancelled   a stored copy is there: published. All copies
                                                                          are lost (`BlockLost`, `Refused`,
                                                                          `WorkerLost`): waiting, for one replica
published   a sample or reduce whose stored attempt `Agreed` announced    `Published`: confirmed. `BlockLost`: won
confirmed   a reduce whose part is in the output                          none
=========== ============================================================= ===========================================

A map that is won stays so, with a copy to read, until the job is done. Each state shows in the fields of `TaskState`.

The cost of an event is O(1) in the number of tasks. The exceptions: a map's output has O(reduces) parts; launching a
reduce gathers its sources if they changed since the last launch (O(maps)); a contradiction looks at every reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from quoreduce.tracker import invariants, reasons
from quoreduce.tracker.accusations import Accusations
from quoreduce.tracker.contradictions import Contradictions
from quoreduce.tracker.copies import Copies
from quoreduce.tracker.executions import Executions
from quoreduce.tracker.messages import (
    Agreed,
    BlockLost,
    Checked,
    Command,
    Event,
    Executed,
    Failed,
    Finished,
    JobDone,
    Kind,
    Output,
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
from quoreduce.tracker.placement import Pool
from quoreduce.tracker.schedule import Schedule
from quoreduce.tracker.shared import Shared
from quoreduce.tracker.speculation import Speculation
from quoreduce.tracker.state import Attempt, Plan, TaskState
from quoreduce.tracker.suspicion import Known, Standing
from quoreduce.tracker.vote import Candidate

__all__ = ["JobTracker", "Plan"]


class JobTracker:
    """Decides what runs where, who has won, and when the job is over.

    Feed it `WorkerJoined` for the workers there are, call `start` once, then `handle` for everything that happens,
    and carry out what both return, in order.

    Attributes:
        plan: what was asked for.
        ledger: what it has cost so far.
    """

    def __init__(self, plan: Plan, known: Mapping[str, Known] | None = None) -> None:
        """Plan a job. `known`: domains that earlier jobs have quarantined, or that are on probation (R11)."""
        self._pool = Pool(plan.need, known)
        self._shared = Shared(plan, self._pool)
        self._copies = Copies(self._shared)
        self._executions = Executions(self._shared, self._copies)
        self._schedule = Schedule(self._shared, self._copies, self._executions)
        self._speculation = Speculation(self._shared, self._copies, self._executions, self._schedule)
        self._contradictions = Contradictions(self._shared, self._copies, self._executions, self._schedule)
        self._accusations = Accusations(self._shared)
        self.plan, self.ledger, self._attempts = plan, self._shared.ledger, self._shared.attempts
        self._started = self._opened = False
        self._sample = self._state("sample", 0) if plan.sample else None
        self._maps = [self._state("map", m) for m in range(plan.maps)]
        self._reduces = [self._state("reduce", r) for r in range(plan.reduces)]
        self._maps_unwon = plan.maps  # not voted
        self._reduces_agreed = 0  # and stored
        self._reduces_confirmed = 0  # published, says the driver
        self._provisional: dict[int, TaskState] = {}  # reduces with a quorum that awaits their maps' votes (R5)
        self._handlers: dict[type, Callable[[Any], None]] = {
            WorkerJoined: self._on_joined,
            WorkerLost: self._on_lost,
            Executed: self._on_executed,
            Finished: self._on_finished,
            Checked: self._on_checked,
            Failed: self._on_failed,
            Refused: self._on_refused,
            BlockLost: self._on_block_lost,
            Published: self._on_published,
            Slow: self._on_slow,
            Retested: self._accusations.tested,
            Recovered: self._on_recovered,
            Stalled: self._on_stalled,
        }

    def _state(self, kind: Kind, index: int) -> TaskState:
        owed = self.plan.first if self.plan.upfront else 0
        return TaskState(Task(kind, index), owed, strict=not self.plan.is_checked(kind))

    def start(self) -> list[Command]:
        """Launch what can be launched on the workers that have joined."""
        self._started = True
        if len(self._pool.domains) < self.plan.need:
            self._shared.fail("too_few_domains", None, self._too_few())
        elif self._sample is not None:
            self._schedule.top_up(self._sample)
        else:
            self._open_gates()
        return self._flush()

    def handle(self, event: Event) -> list[Command]:
        """Take note of an event and return what is to be done about it."""
        if self._shared.done:
            self.ledger.ignored += 1
            return []
        self._handlers[type(event)](event)
        return self._flush() if self._started else []

    @property
    def done(self) -> bool:
        """Whether `JobDone` or `JobFailed` has been returned. Events are ignored from then on."""
        return self._shared.done

    @property
    def started(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._started

    def asked_of(self, domain: str) -> tuple[int, int]:
        """Executions that a domain began, and how many of them it answered with a vote."""
        asked = [attempt for attempt in self._attempts.values() if attempt.domain == domain]
        return len(asked), sum(attempt.candidate is not None for attempt in asked)

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
            "maps_readable": self.plan.maps - self._copies.maps_unready,
            "maps_agreed": self.plan.maps - self._maps_unwon,
            "reduces": self.plan.reduces,
            "reduces_agreed": self._reduces_agreed,
            "executions": self.ledger.executions,
            "running": self._pool.busy,
            "queued": sum(map(len, self._schedule.queues.values())),
            "domains": len(self._pool.domains),
            "quarantined": len(self._pool.domains) - len(self._pool.open),
        }

    def check(self) -> None:
        """Assert the invariants; O(tasks), for tests."""
        invariants.check(self)

    def _on_joined(self, event: WorkerJoined) -> None:
        self.ledger.ignored += not self._pool.join(event.worker, event.domain, event.slots, event.cpu)

    def _on_lost(self, event: WorkerLost) -> None:
        """Replace what ran there: a crash is not a vote (R9). Votes already cast stand."""
        occupants = self._pool.lose(event.worker)
        blocks = self._copies.blocks.pop(event.worker, {}) if event.blocks_lost else {}
        self.ledger.ignored += occupants is None and not blocks
        self._accusations.lost(event.worker)
        for attempt in self._executions.lost(event.worker, occupants or ()):
            self._crash(attempt)
        self._drop(blocks)

    def _on_executed(self, event: Executed) -> None:
        attempt = self._executions.seated(event.attempt)
        if attempt is not None:
            self._executions.executed(attempt)

    def _on_finished(self, event: Finished) -> None:
        attempt = self._executions.end(event.attempt)
        if attempt is None:
            return
        state, output = attempt.state, event.output
        if not self._well_formed(state, output) or attempt.checks is not None:
            self._malformed(attempt)
            return
        candidate = state.ballot.cast(attempt.id, attempt.domain, output.digest, output)
        if attempt.store:
            self._copies.store(attempt, candidate, output)
        self._judge(attempt, candidate)

    def _well_formed(self, state: TaskState, output: Output) -> bool:
        return len(output.parts) == (self.plan.reduces if state.task.kind == "map" else 1)

    def _malformed(self, attempt: Attempt) -> None:
        self.ledger.malformed += 1
        self._crash(attempt)

    def _on_checked(self, event: Checked) -> None:
        """A checker has summed up the input and the stored output: they agree here, and nowhere else (R13)."""
        attempt = self._executions.end(event.attempt)
        if attempt is None:
            return
        if not self._well_formed(attempt.state, event.output) or attempt.candidate is None or attempt.checks is None:
            self._malformed(attempt)
            return
        claimed = attempt.candidate.output
        assert claimed is not None, "errors are not stored"
        if [part.digest for part in event.output.parts] != [part.digest for part in claimed.parts]:
            self._reject(attempt, attempt.candidate, rotten=True)  # what is stored was changed: no checker is to blame
        elif event.output != claimed or event.given != event.found:
            attempt.state.verdicts.append(attempt)
            self._reject(attempt, attempt.candidate)
        else:
            self._approve(attempt, attempt.candidate)

    def _approve(self, check: Attempt, candidate: Candidate) -> None:
        state = check.state
        state.verdicts.append(check)
        check.approved = True
        candidate.vouchers[check.id] = check.domain
        self._try_win(state)
        self._refresh(state)
        self._schedule.top_up(state)

    def _reject(self, check: Attempt, candidate: Candidate, rotten: bool = False) -> None:
        """Something disagrees: the task is voted on, and the copy that was checked is not used."""
        state = check.state
        self.ledger.rejected += 1
        self._accusations.contest(check, candidate)
        self._schedule.vote(state)
        if check.checks is not None and self._attempts[check.checks].stored:
            self._drop([check.checks], rotten)
        self._refresh(state)
        self._schedule.top_up(state)

    def _on_failed(self, event: Failed) -> None:
        """An error of the user's code is a result: it takes f+1 equal ones to make it the job's own."""
        attempt = self._executions.end(event.attempt)
        if attempt is None:
            return
        if attempt.checks is not None and attempt.candidate is not None:
            attempt.state.verdicts.append(attempt)
            self._reject(attempt, attempt.candidate)
        else:
            self.ledger.errors += 1
            candidate = attempt.state.ballot.cast(attempt.id, attempt.domain, event.digest, None, event.error)
            self._judge(attempt, candidate)

    def _on_refused(self, event: Refused) -> None:
        """Drop the copies that a reduce, or a check, could not use and run it again (R6). It may name only what it was
        told to read.
        """
        attempt = self._executions.end(event.attempt)
        if attempt is None:
            return
        if attempt.checks is None:
            self.ledger.refuse(attempt.state.task.kind, attempt.speculative)
        attempt.state.refused += 1
        read = {source.attempt for copies in attempt.sources for source in copies} | {attempt.checks}
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
        attempt = self._executions.seated(event.attempt)
        if attempt is not None:
            self._speculation.slow(attempt)

    def _on_recovered(self, event: Recovered) -> None:
        """A vote of an earlier run stands. While the copy can be read the task is not executed again."""
        state = self._of(event.task)
        if self._started or state.winner is not None:
            self.ledger.ignored += 1
            return
        attempt = Attempt(event.attempt, state, "", event.domains[0], 0, event.stored, (), "over")
        self._attempts[attempt.id] = attempt
        for domain in event.domains:
            attempt.candidate = state.ballot.cast(attempt.id, domain, event.output.digest, event.output)
        assert attempt.candidate is not None, "f+1 domains agreed"
        attempt.candidate.vouchers = {-1 - n: domain for n, domain in enumerate(event.checkers)}
        if event.stored:
            attempt.stored = True
            attempt.candidate.copies.append(attempt.id)
        state.owed, state.executions, state.winner = 0, self.plan.planned(event.task.kind), attempt.candidate
        if event.task.kind == "map":
            self._map_won(state, attempt.candidate, event.output)
        self._refresh(state)
        self._schedule.top_up(state)

    def _of(self, task: Task) -> TaskState:
        if task.kind == "sample":
            assert self._sample is not None, "the job has a sample"
            return self._sample
        return (self._maps if task.kind == "map" else self._reduces)[task.index]

    def _on_stalled(self, _: Stalled) -> None:
        """No worker will come to the rescue. What cannot go on without one has failed."""
        if self._pool.busy or any(self._executions.awaited.values()) or self._accusations.tests or not self._started:
            self.ledger.ignored += 1
            return
        before = len(self._attempts)
        self._schedule.schedule()
        if len(self._attempts) > before:
            return
        if self._all_published():
            self._succeed()
            return
        stuck = self._schedule.first()
        task, story = (stuck.task, stuck.story()) if stuck is not None else (None, "anything")
        if len(self._pool.domains) < self.plan.need:
            self._shared.fail("too_few_domains", task, f"{self._too_few()} {story}.")
        else:
            self._shared.fail("no_quorum", task, f"no worker is left that could help with {story}.")

    def _open_gates(self) -> None:
        """Queue everything that waits for nothing but the sample."""
        self._opened = True
        for state in self._maps + self._reduces:
            self._schedule.top_up(state)

    def _crash(self, attempt: Attempt) -> None:
        self._executions.crash(attempt)
        self._replace(attempt.state)

    def _replace(self, state: TaskState) -> None:
        """Run one that ended without a vote again; an up-front plan always, others if it is missed. Checks likewise."""
        if self.plan.upfront and state.winner is None:
            state.owed += 1
        self._schedule.top_up(state)

    def _judge(self, attempt: Attempt, candidate: Candidate) -> None:
        """A vote was cast: has somebody won, or lost?"""
        state = attempt.state
        attempt.candidate = candidate
        self.ledger.votes += 1
        if not state.strict and state.winner is None and state.ballot.disputed:
            self._schedule.vote(state)
        if state.ballot.disputed and len(candidate.attempts) == 1:
            self._accusations.doubt(attempt)
        if state.ballot.disputed and state.ballot.split_along(self._pool.types):
            self._shared.fail("not_deterministic", state.task, reasons.by_types(state, self._pool.types))
        elif state.winner is None:
            self._try_win(state)
        else:
            self._accusations.late(attempt, candidate is not state.winner)
            self._copies.tidy(state)
        self._refresh(state)
        self._schedule.top_up(state)

    def _try_win(self, state: TaskState) -> None:
        """Let f+1 distinct domains win (R1), a reduce only when all its inputs have won (R5)."""
        winner = state.ballot.winner(self.plan.need)
        if winner is None:
            return
        if state.task.kind == "reduce" and self._maps_unwon:
            self._provisional[state.task.index] = state
        elif winner.output is None:
            self._shared.fail("job_error", state.task, winner.error)
        else:
            self._win(state, winner, winner.output)

    def _win(self, state: TaskState, winner: Candidate, output: Output) -> None:
        state.winner = winner
        state.tries = 0  # what is executed from now on is to bring a copy: bounded anew, once (R3)
        self._accusations.won(state, winner)
        if not self.plan.upfront:
            # A replica that stores is let finish when the winner has no readable copy: it may bring one.
            surplus = [a for a in state.running.values() if winner.copies or not a.store]
            for attempt in [*surplus, *state.checking.values()]:
                self._executions.cancel(attempt)
        if state.task.kind == "map":
            self._map_won(state, winner, output)
        self._copies.tidy(state)

    def _map_won(self, state: TaskState, winner: Candidate, output: Output) -> None:
        self._agree(state, winner, next(iter(winner.copies or winner.attempts)), output)
        self._maps_unwon -= 1
        if state.shown is not None and state.shown is not winner:
            self._contradictions.contradict(state, state.shown, output, self._reduces)
        if not self._maps_unwon:
            provisional, self._provisional = self._provisional, {}
            for reduce in provisional.values():
                self._try_win(reduce)
                self._refresh(reduce)
                self._schedule.top_up(reduce)

    def _agree(self, state: TaskState, winner: Candidate, attempt: int, output: Output) -> None:
        checkers: tuple[str, ...] = ()
        if len(winner.domains) < self.plan.need:
            checkers = tuple(dict.fromkeys(d for d in winner.vouchers.values() if d not in winner.domains))
        self._shared.emit(Agreed(state.task, attempt, output, tuple(winner.domains), checkers))

    def _refresh(self, state: TaskState) -> None:
        """A task's votes or copies have changed: what can be read of it now?"""
        if state.task.kind == "map":
            self._copies.offer(state)
        elif state.winner is not None and state.published is None and state.winner.copies:
            self._publish(state, state.winner)

    def _publish(self, state: TaskState, winner: Candidate) -> None:
        """Announce the stored attempt of an agreed output that is to be used."""
        assert winner.output is not None, "errors end the job"
        state.published = winner.copies[0]
        self._agree(state, winner, state.published, winner.output)
        if state.task.kind == "reduce":
            self._reduces_agreed += 1
        elif not self._opened:
            self._open_gates()

    def _drop(self, ids: Iterable[int], lost_too: bool = True) -> None:
        """Stored outputs are gone; find other copies, or execute again what is still needed (R6, R9)."""
        lost = self._copies.drop(ids, lost_too)
        for attempt in lost:
            state = attempt.state
            if state.published == attempt.id and state.task.kind == "reduce" and not state.confirmed:
                state.published = None
                self._reduces_agreed -= 1
        for state in dict.fromkeys(attempt.state for attempt in lost):  # when all are taken out, not before
            self._refresh(state)
            self._schedule.top_up(state)

    def _all_published(self) -> bool:
        count = self._reduces_confirmed if self.plan.confirm else self._reduces_agreed
        return count == self.plan.reduces

    def _too_few(self) -> str:
        return reasons.too_few(self.plan.need, len(self._pool.domains))

    def _succeed(self) -> None:
        self._shared.emit(JobDone())
        self._shared.done = True

    def _flush(self) -> list[Command]:
        """After each event: fill free slots, see whether the job is done, and hand out the commands."""
        if not self._shared.done:
            self._schedule.schedule()
        if self._all_published() and not self._schedule.owing() and not self._accusations.tests:
            self._succeed()
        if self._shared.done:
            self.ledger.suspicion = {name: one.lost for name, one in self.standings.items() if one.lost}
            self.ledger.suspects = {name: self.standings[name].why for name in self._pool.suspicion.named}
            self.ledger.quarantined = tuple(self._pool.quarantined)
        commands, self._shared.commands = self._shared.commands, []
        return commands
