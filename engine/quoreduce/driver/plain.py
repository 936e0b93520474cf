"""A job that is neither attested nor durable: its answers count as they come, and nothing is written down.

:class:`quoreduce.driver.gate.EvidenceGate` and :class:`quoreduce.driver.durable.DurableRun` do more, behind the same
methods; so nobody asks which of the two it has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from quoreduce.driver.incidents import CompletedAttempt
from quoreduce.errors import QuoreduceError
from quoreduce.protocol import wire
from quoreduce.protocol.outcome import Answered
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m

Pump = Callable[[Callable[[], bool]], None]
"""Takes what arrives until something is so."""
Replies = Callable[[int], wire.Done | None]
"""What an attempt replied, if it ended with an output."""


class OpenGate:
    """Lets every answer count at once. Times in seconds of the driver's clock."""

    admits = False  # whether a worker gets nothing to do before its evidence was accepted
    barred: Set[str] = frozenset()  # workers that were shut out by their evidence

    @property
    def waiting(self) -> bool:
        """Whether evidence is still to come for answers that are held."""
        return False

    def setup(self, setup: wire.Setup, domain: str) -> wire.Setup:
        """What a worker of a domain is told when it is to begin the job."""
        return setup

    def open(self) -> None:
        """The workers that begin the job are known; others may come in the place of dead ones."""

    def replaced(self, info: WorkerInfo) -> list[m.Event]:
        """A worker was started in the place of a dead one; return what the tracker is told now."""
        return [m.WorkerJoined(info.name, info.domain, cpu=info.cpu)]

    def ready(self, info: WorkerInfo, admission: bytes) -> list[m.Event]:
        """A worker has begun the job; return what the tracker is told now."""
        return []

    def hear(
        self, launch: m.Launch, began: float, reply: wire.Attempted, events: Sequence[m.Event],
        request: Callable[[], Answered], now: float,
    ) -> Sequence[m.Event]:  # fmt: skip
        """An execution that ``began`` then was answered; return what the tracker is told now: the ``events`` that its
        answer becomes.
        """
        return events

    def take(self, worker: str, reply: wire.SetupReply | wire.EvidenceReply) -> list[m.Event]:
        """Take evidence of any kind, and return the answers that count now."""
        return []

    def lost(self, worker: str) -> None:
        """A worker is gone."""

    def launch(self) -> None:
        """Have the nodes of new workers attested."""

    def flush(self, busy: Collection[str], now: float) -> list[str]:
        """Ask for evidence that is due; return workers that owe some for too long."""
        return []

    def postpone(self, away_s: float) -> None:
        """The driver was away: that time is not the workers'."""

    def next_due_s(self, now: float) -> float:
        """Seconds until evidence is due; infinity if none is."""
        return float("inf")

    def blame(self, error: QuoreduceError) -> None:
        """If workers were shut out, that is why the job failed: raise AttestationError that says so."""

    def receipt(
        self, manifest: bytes, agreed: Mapping[m.Task, int], reads: Sequence[int], pump: Pump,
        begins: Callable[[], bool]
    ) -> tuple[bytes, dict[str, Any]] | None:  # fmt: skip
        """The receipt of a job that is done, and what the result says about it; None if it is not attested."""
        return None


class PlainRun:
    """Writes nothing down: a job that is cut short is lost, and what its workers stored with it."""

    __slots__ = ()

    @property
    def first_attempt(self) -> int:
        """Number of the first attempt."""
        return 0

    @property
    def durable(self) -> bool:
        """Whether what maps store outlives its worker, in a folder that every node sees."""
        return False

    def store(self) -> str:
        """The folder for what maps store; empty: the workers' own."""
        return ""

    def executed(self) -> Iterable[CompletedAttempt]:
        """What earlier runs have executed and agreed on."""
        return ()

    def recovered(self) -> Sequence[m.Recovered]:
        """The same, as the tracker is told before its start."""
        return ()

    def record(self, event: m.Event | None, commands: Sequence[m.Command], replies: Replies) -> None:
        """Write down an event and what the tracker wants done about it, before it is done."""

    def commit(self) -> None:
        """Force what was agreed on to disk, before anything is published that stands on it."""

    def kept(self) -> AbstractContextManager[None]:
        """Keep what was written down if the job is cut short."""
        return nullcontext()
