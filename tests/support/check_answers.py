"""Answers to checks: honest ones, and the worst that f faulty domains can give (R13)."""

from __future__ import annotations

from dataclasses import dataclass

from driver_referee import CheckedDriver, Contents, output_of, true_map, true_reduce

from quoreduce.tracker import Check, Checked, Event, Failed, Launch, Refused, Task


@dataclass(slots=True)
class CheckAnswers(CheckedDriver):
    """What honest workers compute, and what checkers say of it."""

    def computed(self, c: Launch | Check) -> Contents | tuple[int, ...]:
        """What an honest worker makes of a launch: contents, or the attempts whose blocks it had to refuse."""
        if c.task.kind == "sample":
            return (b"sample",)
        if c.task.kind == "map":
            return true_map(c.task.index, self.plan.reduces)
        read, bad = [], []
        for copies in c.sources:
            usable = [s for s in copies if not (self.blocks[s.attempt].spoilt or self.blocks[s.attempt].gone)]
            if usable:
                read.append(self.blocks[usable[0].attempt].parts[c.task.index])
            else:
                bad += [s.attempt for s in copies]
        return tuple(bad) if bad else (b"r%d<%s>" % (c.task.index, b",".join(read)),)

    def truth(self, task: Task) -> Contents:
        """What an honest execution of the whole job makes of a task."""
        if task.kind == "map":
            return true_map(task.index, self.plan.reduces)
        return true_reduce(task.index, self.plan.maps) if task.kind == "reduce" else (b"sample",)

    def _land(self, k: int) -> Launch | Check:
        """The k-th of those in flight flies no more."""
        self.flying[k], self.flying[-1] = self.flying[-1], self.flying[k]
        c = self.flying.pop()
        self.busy[c.worker] -= c.attempt not in self.executed
        return c

    def check(self, k: int, lie: str = "", error: str = "") -> None:
        """The k-th of those in flight, a check, answers: honestly, or it approves or rejects whatever it read, or says
        that it read something else.
        """
        c = self._land(k)
        assert isinstance(c, Check)
        block, claimed, given = self.blocks[c.stored], self.outputs[c.stored], self.computed(c)
        bad = tuple(id_ for id_ in given if isinstance(id_, int)) or (c.stored,) * block.gone
        event: Event
        if bad and not lie:
            event = Refused(c.attempt, bad)
            if c.attempt not in self.cancelled:
                self.told_lost.update(bad)
        elif error:
            event = Failed(c.attempt, error, error.encode())
            self._note(c, False)
        elif lie == "garble":
            event = Checked(c.attempt, output_of((b"garbled",) * len(claimed.parts)), b"", b"")
            self._note(c, None)
        elif lie:
            event = Checked(c.attempt, claimed, b"sum", b"sum" * (1 + (lie == "reject")))
            self._note(c, lie == "approve")
        else:
            parts = tuple(part + b"rot" for part in block.parts) if block.spoilt else block.parts
            sums = [b"|".join(one) for one in (given, parts)]  # type: ignore[arg-type]
            event = Checked(c.attempt, output_of(parts), *sums)
            self._note(c, None if block.spoilt else sums[0] == sums[1])
        self.replies.append(event)
        self.send(event)

    def _note(self, c: Check, verdict: bool | None) -> None:
        """What the referee takes from a check; None: it read something else than what was voted for."""
        if c.attempt in self.cancelled:
            return
        if verdict is not None:
            claimed = tuple(part.digest for part in self.outputs[c.stored].parts)
            read = self.computed(c)
            lost = any(isinstance(one, int) for one in read)  # who has read nothing has made it up
            self.sound[c.attempt] = not lost and verdict == (read == claimed)
        if verdict:
            key = c.task, self.outputs[c.stored].digest
            self.vouchers.setdefault(key, set()).add(self.domain_of[c.worker])
        else:
            self.contested.add(c.task)
            self.told_lost.add(c.stored)

    def conspire(self, k: int) -> None:
        """The k-th of those in flight, a check, lies as badly as f faulty domains can: it approves what is wrong."""
        c, f = self.flying[k], self.plan.need - 1
        assert isinstance(c, Check)
        output, domain = self.outputs[c.stored], self.domain_of[c.worker]
        gang = self.colluders.setdefault(c.task, set())
        evil = any(part.digest == b"evil" for part in output.parts)
        liars = self.backers(c.task, output) | {domain} | (gang if evil else set())
        if output == output_of(self.truth(c.task)) or len(liars) > f:
            self.check(k, "reject")
            return
        gang.update({domain} if evil else ())
        self.check(k, "approve")
