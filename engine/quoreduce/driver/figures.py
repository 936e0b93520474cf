"""The figures of a job: those of a progress bar, and in the end what the ledger and the agreed attempts add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quoreduce.data.splits import Split
from quoreduce.driver.incidents import CompletedAttempt
from quoreduce.driver.jobstate import JobState
from quoreduce.protocol import wire
from quoreduce.protocol.options import Options
from quoreduce.tracker import messages as m
from quoreduce.tracker.ledger import Ledger

KINDS_SILENT = ("crash", "hang")  # after these no answer comes
KINDS_ANSWERED = ("flip", "wrong", "lie", "swap", "lose", "late", "wire", "slow", "stuck", "bad")


@dataclass(slots=True)
class Progress:
    """What a progress bar shows; ``struck``: faults on demand that have happened, by kind."""

    tasks: int
    agreed: int = 0
    executions: int = 0
    votes: int = 0
    faults: int = 0
    struck: dict[str, int] = field(default_factory=dict)

    def struck_by(self, fault: wire.Fault | None, kinds: Sequence[str]) -> None:
        """Count the fault on demand of an execution that has ended, if it was one of ``kinds``: then it has
        happened.
        """
        if fault is not None and fault.kind in kinds:
            self.struck[fault.kind] = self.struck.get(fault.kind, 0) + 1


def account(state: JobState, ledger: Ledger, injected: int) -> None:
    """Fill in the result of a job that is done. ``injected``: faults on demand."""
    r, completed = state.result, state.completed
    r.executions = {kind: n for kind, n in ledger.launched.items() if kind != "sample" or n}
    r.assurance = state.options.assurance
    r.checks, r.rejected = {kind: n for kind, n in ledger.checks.items() if n}, ledger.rejected
    r.checked = sum(bool(one.checkers) for one in state.agreed.values())
    r.reexecutions, r.spares = ledger.re_executions, ledger.speculative
    r.bytes_stored += ledger.stored_nbytes
    r.lost_votes = dict(ledger.suspicion)
    winners = [completed.get(one.attempt) for task, one in state.agreed.items() if task.kind == "map"]
    r.records_in = sum(one.reply.records_in for one in winners if one)
    r.bytes_in = sum(one.reply.bytes_in for one in winners if one)
    r.counters = counters(state.splits, completed, state.agreed)
    r.faults.injected = injected
    r.faults.detected = r.faults.masked = detected(state, ledger)
    r.domains = sorted({info.domain for info in state.workers.values()})


def assurance(options: Options, agreed: Mapping[m.Task, m.Agreed], reduces: int) -> dict[str, Any]:
    """What a manifest says of a checked job (R13): how each part was agreed on, and how many maps were checked; nothing
    of one that was voted on.
    """
    if options.assurance == "strict":
        return {}
    parts = ["checked" if agreed[m.Task("reduce", r)].checkers else "voted" for r in range(reduces)]
    maps = sum(bool(one.checkers) for task, one in agreed.items() if task.kind == "map")
    return {"assurance": {"parts": parts, "maps_checked": maps}}


def detected(state: JobState, ledger: Ledger) -> int:
    """Faults that were detected so far, by the tracker and otherwise."""
    return state.detected + ledger.lost_votes + ledger.lost_blocks + ledger.crashed


def counters(
    splits: Sequence[Split], kept: Mapping[int, CompletedAttempt], agreed: Mapping[m.Task, m.Agreed]
) -> dict[str, int]:
    """Hadoop's counters and the job's, over the agreed attempts. What follows from votes goes before what a job
    says.
    """
    won = [(task.kind, kept[one.attempt].reply) for task, one in agreed.items() if one.attempt in kept]
    maps = [reply for kind, reply in won if kind == "map"]
    reduces = [reply for kind, reply in won if kind == "reduce"]
    between = [part for reply in maps for part in reply.parts]
    written = [part for reply in reduces for part in reply.parts]
    voted = {
        "MAP_INPUT_RECORDS": sum(reply.records_in for reply in maps),
        "REDUCE_SHUFFLE_BYTES": sum(part.nbytes for part in between),
        "REDUCE_INPUT_RECORDS": sum(part.records for part in between),
        "REDUCE_OUTPUT_RECORDS": sum(part.records for part in written),
        "BYTES_READ": sum(split.length for split in splits),
        "BYTES_WRITTEN": sum(part.nbytes for part in written),
    }
    counted: dict[str, int] = {}
    for reply in (*maps, *reduces):
        for name, n in reply.counters.items():
            counted[name] = counted.get(name, 0) + n
    before_combine = {"MAP_OUTPUT_RECORDS": voted["REDUCE_INPUT_RECORDS"]}  # unless the job says that it combined
    return dict(sorted((before_combine | counted | voted).items()))
