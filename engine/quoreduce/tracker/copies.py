"""Where stored outputs are, and what a reduce that is launched now reads (R5, R6; slides 20-22)."""

from __future__ import annotations

from collections.abc import Iterable

from quoreduce.tracker.messages import Discard, Output, Source
from quoreduce.tracker.shared import Shared
from quoreduce.tracker.state import Attempt, TaskState
from quoreduce.tracker.vote import Candidate


class Copies:
    """The stored outputs of a job.

    Attributes:
        blocks: worker -> attempts stored there; outlives the worker.
        held: a copy to discard -> running reduces that still read it.
        sources: by map, what a reduce that is launched now reads.
        offered_nbytes: by reduce, the bytes of that; summed up as copies come and go.
        maps_unready: maps that no reduce can read now.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._plan = shared.plan
        self._attempts = shared.attempts
        self.blocks: dict[str, dict[int, None]] = {}
        self.held: dict[int, set[int]] = {}
        self.sources: list[tuple[Source, ...]] = [()] * shared.plan.maps
        self.offered_nbytes = [0] * shared.plan.reduces
        self.maps_unready = shared.plan.maps
        self._snapshot: tuple[tuple[Source, ...], ...] | None = None  # of sources; dropped when one changes

    def store(self, attempt: Attempt, candidate: Candidate, output: Output) -> None:
        """An attempt has stored its output."""
        attempt.stored = True
        candidate.copies.append(attempt.id)
        self.blocks.setdefault(attempt.worker, {})[attempt.id] = None
        self._shared.ledger.store(output)

    def offer(self, state: TaskState) -> None:
        """Let reduces read a map's copies: the winner's; before the vote, the only output seen so far (R5)."""
        candidate = state.winner
        if candidate is None and self._plan.eager and len(state.ballot.candidates) == 1:
            candidate = state.ballot.candidates[0]
        copies = candidate.copies if candidate is not None else []
        if not self._plan.stores_all:
            copies = copies[:1]
        m = state.task.index
        offered = tuple(Source(m, id_, self._attempts[id_].worker) for id_ in copies)
        if offered == state.offered:
            return
        self.maps_unready += (not offered) - (not state.offered)
        self._weigh(state.offered, -1)
        self._weigh(offered, +1)
        state.offered = self.sources[m] = offered
        self._snapshot = None
        if offered and state.winner is None:
            state.shown = candidate

    def _weigh(self, copies: tuple[Source, ...], sign: int) -> None:
        if copies:
            parts, times = self.output(copies[0]).parts, sign * len(copies)
            # One pass in a comprehension: with many partitions this is most of what an answer costs.
            self.offered_nbytes = [n + times * part.nbytes for n, part in zip(self.offered_nbytes, parts, strict=True)]

    def gather(self) -> tuple[tuple[Source, ...], ...]:
        """The copies of every map that a reduce launched now reads."""
        if self._snapshot is None:
            self._snapshot = tuple(self.sources)
        return self._snapshot

    def output(self, source: Source) -> Output:
        """The output that a copy holds."""
        candidate = self._attempts[source.attempt].candidate
        assert candidate is not None, "a stored attempt has voted"
        assert candidate.output is not None, "an error is never stored"
        return candidate.output

    def tidy(self, state: TaskState) -> None:
        """Give up stored copies of a won task that nobody will read: the losers', and surplus ones (slides 21, 22)."""
        for candidate in state.ballot.candidates:
            keep = 0 if candidate is not state.winner else len(candidate.copies) if self._plan.stores_all else 1
            for id_ in candidate.copies[keep:]:
                self.discard(self._attempts[id_])
            del candidate.copies[keep:]

    def hold(self, shown: Candidate, m: int, readers: Iterable[Attempt]) -> None:
        """Keep copies of map `m`, which has lost its vote, until these attempts, which read them, have ended."""
        for attempt in readers:
            for source in attempt.sources[m]:
                if source.attempt in shown.copies:
                    self.held.setdefault(source.attempt, set()).add(attempt.id)

    def discard(self, attempt: Attempt) -> None:
        """Give up a stored output, as soon as no running reduce reads it."""
        if attempt.stored and not self.held.get(attempt.id):
            self._forget(attempt)
            self._shared.ledger.discarded += 1
            self._shared.emit(Discard(attempt.id))

    def let_go(self, attempt: Attempt) -> None:
        """A reduce no longer reads its sources: discard the copies that were only kept for it."""
        for id_ in [id_ for id_, readers in self.held.items() if attempt.id in readers]:
            self.held[id_].discard(attempt.id)
            self.discard(self._attempts[id_])

    def drop(self, ids: Iterable[int], lost_too: bool = True) -> list[Attempt]:
        """Stored outputs are gone, or are not used any more if not ``lost_too``; return the attempts whose they
        were.
        """
        lost = [attempt for id_ in ids if (attempt := self._attempts[id_]).stored]
        for attempt in lost:
            self._forget(attempt)
            if attempt.candidate is not None and attempt.id in attempt.candidate.copies:
                attempt.candidate.copies.remove(attempt.id)
        self._shared.ledger.lost_blocks += len(lost) * lost_too
        return lost

    def _forget(self, attempt: Attempt) -> None:
        attempt.stored = False
        self.held.pop(attempt.id, None)
        self.blocks.get(attempt.worker, {}).pop(attempt.id, None)
