"""The driver's side of an attested job: who may vote, which answers still wait for evidence, and the receipt in the
end.

The commit rule: an answer becomes a vote only when the batch that holds its leaf was quoted by the worker's µTPM, the
quote was checked against the leaves that the driver mirrored, and the launch of the worker's node was checked too.
Until then the tracker knows that the execution has ended (``Executed``), and no more. The checks are those of
:mod:`quoreduce.trust`, the same code that verifies the receipt afterwards.

A worker whose evidence is refused has no vote from then on: it gets nothing more to do, and is not replaced, for
another one in the same place would be made of the same. If it was to have the node's TPM quoted, another worker of the
node is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from blake3 import blake3
from msgspec import structs

from quoreduce.driver.nodes import Answer, Member, Nodes, Submit, Trust, member_of, task_log, utpms
from quoreduce.driver.plain import OpenGate, Pump
from quoreduce.errors import AttestationError, EvidenceError, QuoreduceError
from quoreduce.protocol import wire
from quoreduce.protocol.outcome import Answered, input_digest, outcome
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m
from quoreduce.trust import evidence
from quoreduce.trust.receipt import JobRecord, Receipt, Seal, job_id

ANSWER_S = 60.0  # for evidence from a worker that has nothing else to do
DRAFTS_MAX = 16  # of one receipt: each one more because a worker died, or had more to tell


def answer_of(
    launch: m.Launch, request: wire.MapTask | wire.ReduceTask | wire.SampleTask, setup: wire.Setup,
    reply: wire.Done | wire.JobRaised, events: Sequence[m.Event],
) -> Answer:  # fmt: skip
    """The answer of an execution, as it waits for evidence. Its leaf is the one that the worker makes."""
    task = launch.task
    given, voted = input_digest(request, setup), outcome(task.kind, reply)
    return Answer(tuple(events), task.kind, task.index, launch.attempt, given, voted)


class EvidenceGate(OpenGate):
    """Holds answers of attested workers back until there is evidence. Times in seconds of the driver's clock."""

    admits = True

    def __init__(self, trust: Trust, job: JobRecord, submit: Submit) -> None:
        self.trust = trust
        self.record = job
        self.job = job_id(trust.challenge, job)
        self.refusals: dict[str, str] = {}  # domain -> why it has no vote
        self.barred: set[str] = set()  # workers that were refused
        self._submit = submit
        self._started = datetime.now(UTC)
        self._members: dict[str, Member] = {}  # by worker; those that are gone stay, for the receipt
        self._nodes = Nodes(trust, self.job, submit)
        self._setup: wire.Setup | None = None
        self._opened = False
        self._busy: Collection[str] = ()  # workers, at the last flush
        self._drafts = 0
        self._sealers: set[str] = set()  # workers that are to seal the receipt
        self._sealing: dict[str, bytes] = {}  # worker -> body of the receipt that it is to seal
        self._seals: dict[str, wire.Quoted] = {}

    def attest_config(self, domain: str) -> wire.Attested:
        """What a worker of a domain is told about attesting."""
        t = self.trust
        return wire.Attested(self.job, t.challenge, domain, t.scheme, t.batch)

    def setup(self, setup: wire.Setup, domain: str) -> wire.Setup:
        """What a worker of a domain is told when it is to begin the job."""
        self._setup = setup
        return structs.replace(setup, attested=self.attest_config(domain))

    def open(self) -> None:
        """The first workers were admitted, or not: have their nodes attested. Raises AttestationError."""
        self._opened = True
        self.launch()

    def replaced(self, info: WorkerInfo) -> list[m.Event]:
        """A worker was started in the place of a dead one: it joins when it is admitted."""
        return []

    def ready(self, info: WorkerInfo, admission: bytes) -> list[m.Event]:
        """Take what a worker says of itself; it joins if it may vote. Raises AttestationError."""
        if not self.admit(info, admission) or not self._opened:
            return []
        self.launch()
        return super().replaced(info)

    def admit(self, info: WorkerInfo, raw: bytes) -> bool:
        """Take what a worker says of itself; False if it may not vote."""
        try:
            member = member_of(info, raw, self.trust, self.job)
            if any(other.public == member.public for other in self._members.values()):
                raise EvidenceError("its µTPM's key is that of another worker")
        except EvidenceError as error:
            self.refusals[info.domain] = str(error)
            self.barred.add(info.name)
            return False
        self._members[info.name] = member
        self._nodes.join(member)
        return True

    def launch(self) -> None:
        """Have nodes attested whose launch does not cover all of their members. Raises AttestationError.

        At the end, when the receipt is sealed, that is done only if too few are left to seal it.
        """
        self._nodes.launch(wanted=not self._drafts or self.short)

    def on_root_quote(self, worker: str, raw: bytes) -> list[m.Event]:
        """Take the quote of a node's TPM; return the answers that waited for it. Raises AttestationError."""
        node = self._nodes.quoted(worker, raw)
        self.launch()  # for those that came meanwhile
        return [event for member in node.members for event in member.release()]

    def take(self, worker: str, reply: wire.SetupReply | wire.EvidenceReply) -> list[m.Event]:
        """Take evidence of any kind, and return the answers that count now.

        Raises:
            AttestationError: it is refused, so the worker is shut out.
        """
        try:
            match reply:
                case wire.BatchQuoted(quoted):
                    return self.committed(worker, quoted)
                case wire.LaunchQuoted(quoted):
                    return self.on_root_quote(worker, quoted)
                case wire.SealQuoted(quoted):
                    self.sealed(worker, quoted)
                case wire.NotQuoted(error) if self.owes(worker):
                    raise EvidenceError(error)
                case wire.Ready() | wire.NotReady() if self.owes(worker):
                    raise EvidenceError("it said that it begins the job where evidence was asked for")
            return []
        except AttestationError as error:
            self.refuse(worker, str(error))
            raise

    def blame(self, error: QuoreduceError) -> None:
        """If workers were shut out, that is why the job failed: raise AttestationError that says so."""
        if self.refusals:
            raise AttestationError(f"shut out by their evidence: {self._why()}. So {error}") from error

    def _why(self) -> str:
        return "; ".join(f"{domain}: {reason}" for domain, reason in sorted(self.refusals.items()))

    def hear(
        self, launch: m.Launch, began: float, reply: wire.Attempted, events: Sequence[m.Event],
        request: Callable[[], Answered], now: float,
    ) -> Sequence[m.Event]:  # fmt: skip
        """Hold the answer of an execution; what is no vote needs no evidence."""
        if not isinstance(reply, wire.Done | wire.JobRaised):
            return events
        assert self._setup is not None, "its worker has begun"
        self.hold(launch.worker, answer_of(launch, request(), self._setup, reply, events), began, now)
        return [m.Executed(reply.attempt)]

    def hold(self, worker: str, answer: Answer, began: float, now: float) -> None:
        """Keep an answer until its batch is committed. The age of a batch is that of its first execution, which
        ``began`` then.

        So an execution that takes longer than a batch may wait is committed at once, before the worker gets anything
        else to do.
        """
        member = self._members[worker]
        leaf = evidence.task_leaf(self.job, answer.kind, answer.index, answer.attempt, answer.input, answer.output)
        member.answers.append(answer)
        if member.batcher.add(leaf, round(began * 1000)) or member.batcher.due(round(now * 1000)):
            self._close(member)

    def flush(self, busy: Collection[str], now: float) -> list[str]:
        """Close batches that are old enough, or of workers that are not ``busy``; return workers that owe evidence for
        too long.
        """
        late = []
        self._busy = busy
        for name, member in self._members.items():
            if member.alive and member.answers and (name not in busy or member.batcher.due(round(now * 1000))):
                self._close(member)
            idle_s = member.idle_s(name not in busy and self.owes(name), now)
            if member.alive and idle_s > ANSWER_S:
                late.append(name)
        return late

    def postpone(self, away_s: float) -> None:
        """The driver was away: that time is not the workers'."""
        for member in self._members.values():
            if member.idle_since is not None:
                member.idle_since += away_s

    def next_due_s(self, now: float) -> float:
        """Seconds until a batch is due; infinity if none is open."""
        due = [member.batcher.deadline_ms for member in self._members.values() if member.alive and member.answers]
        return min((one / 1000 - now for one in due if one is not None), default=float("inf"))

    def _close(self, member: Member) -> None:
        self._submit(member.info.name, wire.CommitTask(member.close()))

    def committed(self, worker: str, raw: bytes) -> list[m.Event]:
        """Take the quote of the oldest batch that was asked for; return the answers that count now. Raises
        AttestationError.
        """
        member = self._members.get(worker)
        if member is None or not member.alive or not member.asked:
            raise EvidenceError("it sent a batch that nobody asked for")
        batch, answers = member.asked.popleft()
        said = wire.decode_evidence(raw, wire.Committed)
        quoted = evidence.QuotedBatch(said.count, said.root, said.message, said.signature)
        evidence.check_batch(member.follower, quoted, batch.leaves)
        member.committed.append((quoted, answers))
        return member.release()

    @property
    def waiting(self) -> bool:
        """Whether evidence is still to come for answers that are held."""
        return any(member.owes for member in self._members.values())

    def owes(self, worker: str) -> bool:
        """Whether a worker was asked for evidence and has not sent it."""
        member = self._members.get(worker)
        return bool(self._nodes.asked_of(worker) or worker in self._sealing or (member and member.asked))

    def lost(self, worker: str) -> None:
        """A worker is gone: its held answers are lost. Call :meth:`launch` for others that it was to launch."""
        self._sealing.pop(worker, None)
        self._nodes.lost(worker)
        if worker in self._members:
            self._members[worker].alive = False

    def refuse(self, worker: str, reason: str) -> None:
        """The evidence of a worker was refused: it has no vote from now on."""
        self.barred.add(worker)
        if worker in self._members:
            self.refusals.setdefault(self._members[worker].info.domain, reason)
        self.lost(worker)

    def receipt(
        self, manifest: bytes, agreed: Mapping[m.Task, int], reads: Sequence[int], pump: Pump,
        begins: Callable[[], bool]
    ) -> tuple[bytes, dict[str, Any]]:  # fmt: skip
        """The receipt, sealed by all workers that are left, and what the result says about it.

        Args:
            manifest, agreed, reads: see :meth:`draft`.
            pump: takes what arrives until something is so.
            begins: whether a worker is about to begin, which may seal, too.

        Raises:
            AttestationError: workers have died or were refused, and too few are left to seal it.
        """
        while True:
            draft = self.draft(manifest, agreed, reads)
            self.ask_seals(draft)
            pump(lambda: not (self.sealing or (self.short and begins())))
            finished = self.finished(draft)
            if finished is not None:
                raw = finished.encode()
                return raw, {**self.summary(finished), "receipt_bytes": len(raw)}

    def draft(self, manifest: bytes, agreed: Mapping[m.Task, int], reads: Sequence[int]) -> Receipt:
        """The receipt without seals. Those that still execute something need not seal it, if there are others enough.

        Args:
            manifest: the bytes of ``_SUCCESS``.
            agreed: the attempt that won each task.
            reads: records read, by reduce.
        """
        self._drafts += 1
        living = {member.info.name: member.info.domain for member in self._nodes.covered() if member.alive}
        idle = living.keys() - set(self._busy)
        enough = len({living[name] for name in idle}) >= self.record.need
        self._sealers = idle if enough else set(living)
        return Receipt(
            job=self.record, challenge=self.trust.challenge, started=self._started, ended=datetime.now(UTC),
            launches=self._nodes.launches(), utpms=utpms(self._nodes, self._sealers),
            tasks=task_log(self._nodes, agreed).entries(), reads=tuple(reads), manifest=blake3(manifest).digest(),
        )  # fmt: skip

    def ask_seals(self, draft: Receipt) -> None:
        """Have a receipt sealed."""
        self._seals.clear()
        body = draft.body()
        for member, utpm in zip(self._nodes.covered(), draft.utpms, strict=True):
            if utpm.sealed:
                self._sealing[member.info.name] = body
                self._submit(member.info.name, wire.SealTask(evidence.seal_nonce(self.trust.challenge, body)))

    def sealed(self, worker: str, raw: bytes) -> None:
        """Take a seal. Raises AttestationError if it does not hold."""
        if worker not in self._sealing:
            raise EvidenceError("it sent a seal that nobody asked for")
        quoted = wire.decode_evidence(raw, wire.Quoted)
        self._members[worker].follower.check_seal(quoted.message, quoted.signature, self._sealing.pop(worker))
        self._seals[worker] = quoted

    @property
    def sealing(self) -> bool:
        """Whether seals are still to come, or the launch of a worker that may seal too."""
        return bool(self._sealing) or any(node.asked for node in self._nodes)

    @property
    def short(self) -> bool:
        """Whether those that live are too few domains to seal the receipt."""
        return len({member.info.domain for member in self._nodes.covered() if member.alive}) < self.record.need

    def finished(self, draft: Receipt) -> Receipt | None:
        """The receipt with its seals; None if more is known than when it was drafted, so that it must be drafted anew.

        Raises:
            AttestationError: workers have died or were refused, and too few are left to seal it.
        """
        changed = (draft.launches, draft.utpms) != (self._nodes.launches(), utpms(self._nodes, self._sealers))
        if changed and self._drafts < DRAFTS_MAX:
            return None
        if changed or self.short:
            why = self._why() or "workers die"
            raise AttestationError(
                f"fewer than {self.record.need} domains are left to seal the receipt ({why}): run it again"
            )
        seals = [(number, self._seals.get(member.info.name)) for number, member in enumerate(self._nodes.covered())]
        return draft.sealed(Seal(number, seal.message, seal.signature) for number, seal in seals if seal is not None)

    def summary(self, receipt: Receipt) -> dict[str, Any]:
        """What a result says about it."""
        environments = {sha256(member.document).hexdigest() for member in self._members.values()}
        return {
            "backend": self.trust.backend, "nonce": self.trust.challenge.hex(), "environments": sorted(environments),
            "utpms": len(receipt.utpms), "leaves": sum(len(entry.leaves) for entry in receipt.tasks),
            "batches": sum(len(utpm.batches) for utpm in receipt.utpms), "refused": dict(self.refusals),
        }  # fmt: skip
