"""The job tracker: pure, complete, and told everything by events (slides 11-22).

`JobTracker(plan)` takes events and returns commands; see `tracker` for how it decides, `messages` for the language,
`vote` for who wins, `schedule` for what is launched when, `placement` for who runs what, `executions` for what is under
way, `copies` for where outputs are stored, `pace` for who is slow, `accusations` and `suspicion` for who is not
trusted, `reasons` for why a job failed, `ledger` for what it cost. No clock, no randomness, no I/O.
"""

from quoreduce.tracker.ledger import Ledger
from quoreduce.tracker.messages import (
    Accused,
    Agreed,
    Assignment,
    BlockLost,
    Cancel,
    Check,
    Checked,
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
    Part,
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
from quoreduce.tracker.pace import Pace
from quoreduce.tracker.state import MODES, Mode, Plan, domains_needed, replicas_planned
from quoreduce.tracker.suspicion import Standing
from quoreduce.tracker.tracker import JobTracker

__all__ = [
    "MODES",
    "Accused",
    "Agreed",
    "Assignment",
    "BlockLost",
    "Cancel",
    "Check",
    "Checked",
    "Command",
    "Discard",
    "Event",
    "Executed",
    "Failed",
    "Finished",
    "JobDone",
    "JobFailed",
    "JobTracker",
    "Kind",
    "Launch",
    "Ledger",
    "Mode",
    "Output",
    "Pace",
    "Part",
    "Plan",
    "Published",
    "Reason",
    "Recovered",
    "Refused",
    "Retest",
    "Retested",
    "Slow",
    "Source",
    "Stalled",
    "Standing",
    "Task",
    "WorkerJoined",
    "WorkerLost",
    "domains_needed",
    "replicas_planned",
]
