"""Finds out what the masked faults of a job were, when it is done: asks workers about stored copies, and has tasks
executed again.

Executions (PROBES_MAX) and time (LIMIT_S) are bounded; what is not found out in time is reported as unknown. Copies of
an accused domain are read by a worker of another domain if possible. Two copies are compared down the tree inside
BLAKE3: see :mod:`quoreduce.data.tree`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from quoreduce.data import locate, tree
from quoreduce.driver.copies import CopyInspector, Gone, InspectedCopy, NoAnswer, Scene
from quoreduce.driver.diagnosis import (
    CopyState,
    Diagnosis,
    FirstDifference,
    LostVote,
    Seen,
    Verdict,
    all_of_one_kind,
    differing_at,
    judge_copy,
    judge_death,
    judge_vote,
    repeated,
)
from quoreduce.driver.incidents import CompletedAttempt, Incident, Incidents, RaisedAttempt
from quoreduce.protocol import wire
from quoreduce.protocol.outcome import outcome
from quoreduce.tracker import messages as m

PROBES_MAX = 12
WITNESSES_MAX = 4
LIMIT_S = 5.0
DIAGNOSES_MAX = 64
SHOWN_CHARS = 100


@dataclass(slots=True)
class Detective:
    """Looks into the incidents of a job.

    ``found``: what they were. ``more``: how many were not looked into. ``probes``: executions that it asked for.
    """

    scene: Scene
    incidents: Incidents
    found: list[Diagnosis] = field(default_factory=list)
    more: int = 0
    probes: int = 0
    _witnesses: int = WITNESSES_MAX
    _copies: CopyInspector = field(init=False)
    _attempts: dict[m.Task, list[int]] = field(default_factory=lambda: defaultdict(list))
    _probed: dict[int, CompletedAttempt | RaisedAttempt] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._copies = CopyInspector(self.scene, self.scene.clock() + LIMIT_S)

    def diagnose(self) -> None:
        """Look into every incident, up to DIAGNOSES_MAX."""
        for group in (self.scene.completed, self.incidents.raised):
            for attempt, kept in group.items():
                self._attempts[kept.launch.task].append(attempt)
        # A copy that was refused because its digest had been wrong from the start is part of a lost vote.
        incidents = [i for i in self.incidents.found if not (i.what == "copy" and i.attempt in self.incidents.accused)]
        self.more = self.incidents.more + max(0, len(incidents) - DIAGNOSES_MAX)
        for incident in incidents[:DIAGNOSES_MAX]:
            if (diagnosis := self._look(incident)) is not None:
                self.found.append(diagnosis)
        self.found[:] = all_of_one_kind(self.found)

    def _look(self, incident: Incident) -> Diagnosis | None:
        match incident.what:
            case "vote":
                return self._vote(incident)
            case "copy" | "part":
                return self._copy(incident)
            case "slip":
                return self._slip(incident)
            case "check":
                return _said(incident, Verdict("compute", incident.why))
            case "late":
                return _said(incident, Verdict("network", incident.why))
            case "garbage":
                return _said(incident, Verdict("metadata", incident.why))
            case "death":
                return _said(
                    incident, judge_death(incident.hung, incident.why, self.incidents.deaths[incident.worker.domain])
                )

    def _vote(self, incident: Incident) -> Diagnosis | None:
        assert incident.task is not None
        assert incident.attempt is not None
        task, agreed = incident.task, self.scene.agreed.get(incident.task)
        own = self._known(incident.attempt)
        if agreed is None or own is None or agreed.attempt not in self.scene.completed:
            return None
        winner = self.scene.completed[agreed.attempt]
        partition = _first_wrong(own, agreed.output)
        number = task.index if task.kind == "reduce" and partition is not None else partition
        vote = LostVote(
            incident.worker.domain, _voted(own), _voted(winner),
            [self._seen(a) for a in self._attempts[task] if a != incident.attempt and self._same_inputs(a, winner)],
            own.reply.error.partition("\n")[0][:SHOWN_CHARS] if isinstance(own.reply, wire.JobRaised) else "", number,
            None if partition is None else (_parts(own)[partition].digest, agreed.output.parts[partition].digest),
        )  # fmt: skip
        stored = None if partition is None else self._stored(incident.attempt, partition)
        if stored is not None and vote.digests is not None and incident.attempt not in self.incidents.dropped:
            vote = replace(vote, copy=self._state(stored, *vote.digests))
        if self._read_differently(own, winner):
            vote = replace(vote, inputs=self._inputs_now(incident, own))
        if vote.inputs is None or vote.inputs[0] == vote.inputs[1]:
            vote = self._again(vote, incident, winner)
        if vote.inputs is None and repeated(vote):  # as it would if its input had rotted before it was read
            vote = replace(vote, inputs=self._inputs_now(incident, own))
        if vote.copy == "none" and vote.digests is not None and partition is not None:
            probed = self._stored(self._same_probe(task, vote), partition)
            vote = vote if probed is None else replace(vote, copy=self._state(probed, *vote.digests))
        verdict = judge_vote(vote)
        difference = None
        if partition is not None and not vote.raised and verdict.kind != "metadata":
            difference = self._differing(task, partition, number or 0, vote, incident.attempt)
        return _said(incident, verdict, difference)

    def _read_differently(self, own: CompletedAttempt | RaisedAttempt, winner: CompletedAttempt) -> bool:
        """Whether one of two replicas of a map read its split through the page cache, and the other past it."""
        first, second = self._map(own.launch), self._map(winner.launch)
        return first is not None and second is not None and first.direct != second.direct

    def _map(self, launch: m.Launch) -> wire.MapTask | None:
        """The request that executes a map on a free worker; None for other tasks, or if no worker is free."""
        worker = next((w.name for w in self.scene.free()), None)
        if launch.task.kind != "map" or worker is None:
            return None
        request = self.scene.request(replace(launch, worker=worker))
        return request if isinstance(request, wire.MapTask) else None

    def _inputs_now(self, incident: Incident, own: CompletedAttempt | RaisedAttempt) -> tuple[bytes, bytes] | None:
        """Read the split of a map through the page cache and past it.

        The reader is on the accused worker's machine, because its page cache is in question, and in another domain,
        because the accused core may read wrong.
        """
        here, accused = incident.worker.node, incident.worker.domain
        reader = next((w.name for w in self.scene.free() if w.node == here and w.domain != accused), None)
        request = self._map(own.launch)
        if reader is None or request is None:
            return None
        digests: list[bytes] = []
        for direct in (False, True):
            left, question = self._copies.left_s(), wire.InputTask(self._copies.number(), request.split, direct)
            reply = self.scene.ask(reader, question, left) if left > 0 else None
            if not isinstance(reply, wire.Inspected) or reply.digest is None:
                return None
            digests.append(reply.digest)
        return digests[0], digests[1]

    def _known(self, attempt: int) -> CompletedAttempt | RaisedAttempt | None:
        return self.scene.completed.get(attempt) or self.incidents.raised.get(attempt) or self._probed.get(attempt)

    def _seen(self, attempt: int) -> Seen:
        kept = self._known(attempt)
        assert kept is not None
        return Seen(kept.worker.domain, _voted(kept), attempt in self._probed)

    def _same_inputs(self, attempt: int, winner: CompletedAttempt) -> bool:
        """Whether an execution read what the winner has read: a reduce may have read a partition that lost its vote
        (R5).
        """
        kept = self._known(attempt)
        return kept is not None and self._inputs(kept.launch) == self._inputs(winner.launch)

    def _inputs(self, launch: m.Launch) -> list[bytes]:
        return [
            self.scene.completed[copies[0].attempt].reply.parts[launch.task.index].digest for copies in launch.sources
        ]

    def _state(self, stored: InspectedCopy, claimed: bytes, right: bytes) -> CopyState:
        try:
            found, _ = self._copies.digest(stored)
        except NoAnswer as error:
            return "gone" if isinstance(error, Gone) else "unseen"
        return "right" if found == right else "claimed" if found == claimed else "other"

    def _again(self, vote: LostVote, incident: Incident, winner: CompletedAttempt) -> LostVote:
        """Have the accused domain execute the task again if it has not; for a few tasks, have a domain that was right
        do so, too.
        """
        domain, others = vote.domain, list(vote.others)
        unasked = ""
        if not any(seen.domain == domain for seen in others):
            attempt, unasked = self._probe(domain, incident.worker.name, winner.launch)
            others += [self._seen(attempt)] if attempt is not None else []
        honest = sorted({seen.domain for seen in others if seen.outcome == vote.right} - {domain})
        wavering = {seen.domain for seen in others if seen.outcome != vote.right}
        for witness in sorted(honest, key=lambda name: name in wavering)[:1] * min(2, self._witnesses):
            self._witnesses -= 1
            attempt, _ = self._probe(witness, "", winner.launch)
            others += [self._seen(attempt)] if attempt is not None else []
        return replace(vote, others=others, unasked=unasked)

    def _probe(self, domain: str, worker: str, launch: m.Launch) -> tuple[int | None, str]:
        """Have a domain execute a task, on the named worker if it is free; return the number of the probe, or None and
        the reason.
        """
        free = sorted((w for w in self.scene.free() if w.domain == domain), key=lambda w: w.name != worker)
        left = self._copies.left_s()
        if not free:
            return None, "it has no worker that is free"
        if self.probes >= PROBES_MAX:
            return None, f"{PROBES_MAX} executions were asked for"
        # By the CPU time of who took least: others may have waited for a compiler, or for a turn.
        if 2 * min(kept.reply.cpu_s for a in self._attempts[launch.task] if (kept := self._known(a))) > left:
            return None, "it takes too long"
        self.probes += 1
        probe = replace(launch, attempt=self._copies.number(), worker=free[0].name, store=True)
        task = self.scene.request(probe)
        assert isinstance(task, wire.MapTask | wire.ReduceTask | wire.SampleTask)
        reply = self.scene.ask(free[0].name, wire.ProbeTask(probe.attempt, task), left)
        match reply:
            case wire.Done():
                self._probed[probe.attempt] = CompletedAttempt(reply, free[0], probe)
            case wire.JobRaised():
                self._probed[probe.attempt] = RaisedAttempt(reply, free[0], probe)
            case _:
                return None, "it did not answer" if reply is None else "its inputs are gone"
        self._attempts[launch.task].append(probe.attempt)
        return probe.attempt, ""

    def _copy(self, incident: Incident) -> Diagnosis | None:
        """A copy that its readers could not use."""
        assert incident.attempt is not None
        assert incident.task is not None
        stored = self._stored(incident.attempt, incident.partition if incident.what == "copy" else 0)
        if stored is None:
            return None
        readers = [reader.domain for reader in incident.readers]
        found, state = None, "there"
        try:
            found, _ = self._copies.digest(stored)
        except NoAnswer as error:
            state = "gone" if isinstance(error, Gone) else "unseen"
        verdict = judge_copy(stored.copy.digest, found, state, readers)
        if verdict.kind == "network" and incident.readers:
            reader = incident.readers[0]
            what = f"the copy of partition {incident.partition} that {incident.worker.domain} stored: "
            return _said(replace(incident, worker=reader), replace(verdict, why=what + verdict.why))
        difference = None
        if state == "there":
            right = self._right(incident.task, incident.partition, incident.attempt)
            difference = self._copies.compare(incident.partition, stored, right)
        return _said(incident, verdict, difference)

    def _slip(self, incident: Incident) -> Diagnosis:
        """A partition that its reader fetched wrong once, and right the second time."""
        slip = incident.slip
        assert slip is not None
        holder = self.scene.completed.get(slip.attempt)
        why = "a partition was read wrong once, and right when it was fetched again"
        if holder is not None:
            why = f"{why}: of {holder.launch.task}, stored by {holder.worker.domain}"
        difference = None
        if slip.right is not None and slip.wrong is not None:
            difference = differing_at(
                incident.partition, slip.offset, slip.right, slip.wrong, slip.bits, self._copies.pairs
            )
        return _said(incident, Verdict("network", why, "no"), difference)

    def _stored(self, attempt: int, partition: int) -> InspectedCopy | None:
        """Where an execution has stored a partition, or a part; None if it has not."""
        kept = self._known(attempt)
        if not isinstance(kept, CompletedAttempt) or not kept.launch.store or kept.launch.task.kind == "sample":
            return None
        task, number = kept.launch.task, partition if kept.launch.task.kind == "map" else 0
        if number >= len(kept.reply.parts):
            return None
        part = kept.reply.parts[number]
        path, node, layout = kept.reply.path, kept.worker.node, "block"
        if task.kind == "reduce":
            agreed = self.scene.agreed.get(task)
            published = self.scene.part(task.index) if agreed is not None and agreed.attempt == attempt else None
            path, layout = published or self.scene.attempt_path(task.index, attempt), self.scene.job.output
        copy = wire.StoredCopy(attempt, kept.worker.name, node, path, max(0, part.offset), part.nbytes, part.digest)
        return InspectedCopy(copy, node if task.kind == "map" else None, kept.worker.domain, layout)

    def _right(self, task: m.Task, partition: int, but: int) -> Iterator[InspectedCopy]:
        """Copies of what was agreed on, the agreed one first, then those of probes."""
        agreed = self.scene.agreed.get(task)
        if agreed is None:
            return
        wanted = agreed.output.parts[partition if task.kind == "map" else 0].digest
        for attempt in sorted(self._attempts[task], key=lambda a: a != agreed.attempt):
            stored = self._stored(attempt, partition) if attempt != but else None
            if stored is not None and stored.copy.digest == wanted:
                yield stored

    def _differing(
        self, task: m.Task, partition: int, number: int, vote: LostVote, attempt: int
    ) -> FirstDifference | None:
        """Compare what lost with what won: the bytes that were voted on, or those of a probe with the same output."""
        if task.kind == "sample":
            own, winner = self._known(attempt), self.scene.completed[self.scene.agreed[task].attempt]
            return _in_samples(own.reply.data, winner.reply.data) if isinstance(own, CompletedAttempt) else None
        for lost in (attempt, self._same_probe(task, vote)):
            stored = self._stored(lost, partition)
            if stored is not None and (
                found := self._copies.compare(number, stored, self._right(task, partition, attempt))
            ):
                return found
        return None

    def _same_probe(self, task: m.Task, vote: LostVote) -> int:
        """A probe with the output that lost, or -1."""
        return next((a for a in self._attempts[task] if a in self._probed and self._seen(a).outcome == vote.own), -1)


def _parts(one: CompletedAttempt | RaisedAttempt) -> tuple[wire.PartReply, ...]:
    return one.reply.parts if isinstance(one, CompletedAttempt) else ()


def _voted(kept: CompletedAttempt | RaisedAttempt) -> bytes:
    return outcome(kept.launch.task.kind, kept.reply)


def _first_wrong(own: CompletedAttempt | RaisedAttempt, output: m.Output) -> int | None:
    pairs = enumerate(zip(_parts(own), output.parts, strict=False))
    return next((i for i, (own, right) in pairs if own.digest != right.digest), None)


def _in_samples(wrong: bytes, right: bytes) -> FirstDifference | None:
    found = tree.in_memory(wrong, right)
    if found is None:
        return None
    there, here = (locate.find(np.frombuffer(data, np.uint8), found.offset, "") for data in (right, wrong))
    return differing_at(0, found.offset, there, here, found.bits, False)


def _said(incident: Incident, verdict: Verdict, difference: FirstDifference | None = None) -> Diagnosis:
    return Diagnosis(
        verdict.kind, str(incident.task or ""), incident.worker.domain, incident.worker.name, incident.attempt,
        verdict.why, verdict.repeats, difference, verdict.exonerates,
    )  # fmt: skip


def cleared(suspects: Mapping[str, int], diagnoses: Collection[Diagnosis]) -> dict[str, int]:
    """Lost votes by domain, without those that a diagnosis exonerates (R11); a domain counts once for each task."""
    left = dict(suspects)
    for domain, _ in {(d.domain, d.task) for d in diagnoses if d.exonerates}:
        left[domain] = left.get(domain, 0) - 1
    return {domain: tasks for domain, tasks in left.items() if tasks > 0}
