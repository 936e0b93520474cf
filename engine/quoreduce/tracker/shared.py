"""What the parts of a tracker share."""

from __future__ import annotations

from dataclasses import dataclass, field

from quoreduce.tracker.ledger import Ledger
from quoreduce.tracker.messages import Command, JobFailed, Reason, Task
from quoreduce.tracker.placement import Pool
from quoreduce.tracker.state import Attempt, Plan


@dataclass(slots=True)
class Shared:
    """The plan, who there is, what was launched, and what is to be said.

    Attributes:
        done: the job is over; nothing more is said.
        commands: what the event that is handled has led to so far.
    """

    plan: Plan
    pool: Pool
    ledger: Ledger = field(default_factory=Ledger)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    done: bool = False
    commands: list[Command] = field(default_factory=list)

    def emit(self, command: Command) -> None:
        """Say what to do. Nothing follows the end of a job."""
        if not self.done:
            self.commands.append(command)

    def fail(self, reason: Reason, task: Task | None, message: str) -> None:
        """End the job without an output."""
        self.emit(JobFailed(reason, task, message))
        self.done = True
