"""The driver's side of an attested job: who may vote, which answers still wait for evidence, and the receipt in the end.

The commit rule: an answer becomes a vote only when the batch that holds its leaf was quoted by the worker's µTPM, the quote was
checked against the leaves that the driver mirrored, and the launch of the worker's node was checked too. Until then the tracker
knows that the execution has ended (``Executed``), and no more. The checks are those of :mod:`quoreduce.trust`, the same code
that verifies the receipt afterwards.

A worker whose evidence is refused has no vote from then on: it gets nothing more to do, and is not replaced, for another one
in the same place would be made of the same. If it was to have the node's TPM quoted, another worker of the node is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from blake3 import blake3

from quoreduce.errors import AttestationError, EvidenceError, QuoreduceError
from quoreduce.runtime import wire
from quoreduce.runtime.outcome import outcome
from quoreduce.runtime.port import WorkerInfo
from quoreduce.tracker import messages as m
from quoreduce.trust import evidence
from quoreduce.trust.batcher import Batch, Batcher, Mode
from quoreduce.trust.eventlog import encode_binary
from quoreduce.trust.policy import Policy
from quoreduce.trust.receipt import JobRecord, Receipt, Seal, TaskLog, Utpm, job_id

ANSWER_S = 60.0  # for evidence from a worker that has nothing else to do
DRAFTS_MAX = 16  # of one receipt: each one more because a worker died, or had more to tell
Submit = Callable[[str, wire.Request], None]


@dataclass(frozen=True, slots=True)
class Trust:
    """What attests a job: :class:`quoreduce.runtime.options.Attest`, looked up. ``state`` is the folder of a node's TPM."""

    backend: str
    policy: Policy
    challenge: bytes
    scheme: str
    batch: Mode
    batch_size: int
    batch_ms: int
    state: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that waits for evidence: the events that it becomes, and what its leaf says."""

    events: tuple[m.Event, ...]
    kind: evidence.Kind
    index: int
    attempt: int
    input: bytes
    output: bytes


def answer_of(
    launch: m.Launch, request: wire.MapTask | wire.ReduceTask | wire.SampleTask, setup: wire.Setup, reply: wire.Reply,
    events: tuple[m.Event, ...],
) -> Answer:  # fmt: skip
    """The answer to a request that a launch became, as it waits for evidence; its leaf is the one that the worker makes of it."""
    from quoreduce.runtime.attester import input_digest

    task = launch.task
    return Answer(events, task.kind, task.index, launch.attempt, input_digest(request, setup), outcome(task.kind, reply))


@dataclass(slots=True, eq=False)
class Member:
    """A worker whose environment may vote, and its µTPM.

    Attributes:
        covered: whether a launch that was checked is for it too.
        answers: of the batch that is open. asked: batches that the worker is to commit, oldest first.
        committed: batches that were checked, with their answers; the first ``released`` of them count as votes.
        idle_since: since when it owes evidence and has nothing else to do.
    """

    info: WorkerInfo
    document: bytes
    public: bytes
    follower: evidence.Follower
    batcher: Batcher
    covered: bool = False
    answers: list[Answer] = field(default_factory=list)
    asked: deque[tuple[Batch, list[Answer]]] = field(default_factory=deque)
    committed: list[tuple[evidence.QuotedBatch, list[Answer]]] = field(default_factory=list)
    released: int = 0
    idle_since: float | None = None
    alive: bool = True

    @property
    def owes(self) -> bool:
        """Whether answers of it wait."""
        return self.alive and bool(self.answers or self.asked or self.released < len(self.committed))


@dataclass(slots=True, eq=False)
class Node:
    """The workers of a node that are made of the same: its TPM launches their environment and vouches for all of them.

    A worker that comes later has it launched anew, for those before it as well: one launch is one node in the receipt.

    Attributes:
        name: in the receipt. launch: that was checked, for ``members`` in the order of its log; some may be gone since.
        waiting: members that it does not cover. asked: the worker that is to launch anew, with ``joining`` of them.
    """

    name: str
    document: bytes
    launch: evidence.Launch | None = None
    members: list[Member] = field(default_factory=list)
    waiting: list[Member] = field(default_factory=list)
    joining: list[Member] = field(default_factory=list)
    asked: str = ""


class Gate:
    """Holds the answers of attested workers back until there is evidence for them. Times in seconds of the driver's clock."""

    def __init__(self, trust: Trust, job: JobRecord, submit: Submit) -> None:
        self.trust = trust
        self.record = job
        self.job = job_id(trust.challenge, job)
        self.refusals: dict[str, str] = {}  # domain -> why it has no vote
        self.barred: set[str] = set()  # workers that were refused
        self._submit = submit
        self._started = datetime.now(UTC)
        self._members: dict[str, Member] = {}  # by worker; those that are gone stay, for the receipt
        self._nodes: dict[tuple[str, bytes], Node] = {}  # by name and environment document
        self._busy: Collection[str] = ()  # workers, at the last flush
        self._drafts = 0
        self._sealers: set[str] = set()  # workers that are to seal the receipt
        self._sealing: dict[str, bytes] = {}  # worker -> body of the receipt that it is to seal
        self._seals: dict[str, wire.Quoted] = {}

    # ---- who may vote

    def told(self, domain: str) -> wire.Attested:
        """What a worker of a domain is told about attesting."""
        t = self.trust
        return wire.Attested(self.job, t.challenge, domain, t.scheme, t.batch)

    def admit(self, info: WorkerInfo, raw: bytes) -> bool:
        """Take what a worker says of itself; False if it may not vote."""
        t = self.trust
        try:
            said = wire.decode_evidence(raw, wire.Admission)
            environment = sha256(said.document).digest()
            if environment.hex() not in t.policy.environments:
                advice = "if the installation changed: quoreduce attest setup"
                raise EvidenceError(f"its environment, {environment.hex()}, is not in the policy ({advice})")
            if any(member.public == said.public for member in self._members.values()):
                raise EvidenceError("its µTPM's key is that of another worker")
            follower = evidence.Follower(said.public, environment, info.domain, self.job, t.challenge, t.batch)
        except EvidenceError as error:
            self.refusals[info.domain] = str(error)
            self.barred.add(info.name)
            return False
        member = Member(info, said.document, said.public, follower, Batcher(t.batch, t.batch_size, t.batch_ms))
        self._members[info.name] = member
        self._node_of(member).waiting.append(member)
        return True

    def _node_of(self, member: Member) -> Node:
        key = member.info.node, member.document
        if key not in self._nodes:
            others = sum(node == member.info.node for node, _ in self._nodes)
            self._nodes[key] = Node(member.info.node + f", environment {others + 1}" * bool(others), member.document)
        return self._nodes[key]

    def launch(self) -> None:
        """Have the TPM of each node launched and quoted if there are members that its launch does not cover. AttestationError.

        Not at the end any more, when the receipt is sealed, unless there are too few to seal it.
        """
        for node in self._nodes.values():
            node.waiting = [member for member in node.waiting if member.alive]
            if not node.waiting or node.asked or (self._drafts and not self.short):
                continue
            node.joining = list(node.waiting)
            if self.trust.backend in evidence.SOFTWARE:
                self._launched(node, None)
                continue
            everyone = [*node.members, *node.joining]
            node.asked = next(member.info.name for member in everyone if member.alive)
            keys = tuple(member.public for member in everyone)
            nonce = evidence.launch_nonce(self.trust.challenge, self.job, node.name)
            self._submit(node.asked, wire.RootTask(self.trust.backend, self.trust.state, node.document, keys, nonce))

    def rooted(self, worker: str, raw: bytes) -> list[m.Event]:
        """Take the quote of a node's TPM and return the answers that waited for it. AttestationError if it is refused."""
        node = self._asked_to_launch(worker)
        if node is None:
            raise EvidenceError("it sent a quote of its node that nobody asked for")
        self._launched(node, wire.decode_evidence(raw, evidence.Hardware))
        node.asked = ""
        self.launch()  # for those that came meanwhile
        return [event for member in node.members for event in self._release(member)]

    def _launched(self, node: Node, hardware: evidence.Hardware | None) -> None:
        from quoreduce.trust.verifier import check_launch  # here: it takes long to import, and workers are busy by now

        members = [*node.members, *node.joining]
        log = encode_binary(evidence.launch_log(node.document, [member.public for member in members]))
        launch = evidence.Launch(node.name, self.trust.backend, log, hardware)  # type: ignore[arg-type]
        check_launch(launch, self.job, self.trust.challenge, self.trust.policy, datetime.now(UTC))
        for member in node.joining:
            member.covered = True
        node.launch, node.members = launch, members
        node.waiting = [member for member in node.waiting if not member.covered]

    def _asked_to_launch(self, worker: str) -> Node | None:
        return next((node for node in self._nodes.values() if node.asked == worker), None)

    # ---- evidence

    def take(self, worker: str, reply: wire.Reply) -> list[m.Event]:
        """Take evidence of any kind, and return the answers that count now.

        Raises:
            AttestationError: it is refused, so the worker is shut out.
        """
        try:
            match reply.status:
                case "committed":
                    return self.committed(worker, reply.data)
                case "rooted":
                    return self.rooted(worker, reply.data)
                case "sealed":
                    self.sealed(worker, reply.data)
                case _ if self.owes(worker):
                    raise EvidenceError(reply.error or f"it answered {reply.status} where evidence was asked for")
            return []
        except AttestationError as error:
            self.refuse(worker, str(error))
            raise

    def blame(self, error: QuoreduceError) -> None:
        """If workers were shut out, that is why the job failed: raise AttestationError that says so."""
        if self.refusals:
            why = "; ".join(f"{domain}: {reason}" for domain, reason in sorted(self.refusals.items()))
            raise AttestationError(f"shut out by their evidence: {why}. So {error}") from error

    # ---- answers

    def hold(self, worker: str, answer: Answer, began: float, now: float) -> None:
        """Keep an answer until its batch is committed. A batch is as old as its first execution, which ``began`` then.

        So what takes longer than a batch may wait is committed at once, before the worker is given anything else to do.
        """
        member = self._members[worker]
        leaf = evidence.task_leaf(self.job, answer.kind, answer.index, answer.attempt, answer.input, answer.output)
        member.answers.append(answer)
        if member.batcher.add(leaf, round(began * 1000)) or member.batcher.due(round(now * 1000)):
            self._close(member)

    def flush(self, busy: Collection[str], now: float) -> list[str]:
        """Close batches that are old enough, or of workers that are not ``busy``; return workers that owe evidence too long."""
        late = []
        self._busy = busy
        for name, member in self._members.items():
            if member.alive and member.answers and (name not in busy or member.batcher.due(round(now * 1000))):
                self._close(member)
            if name in busy or not self.owes(name):
                member.idle_since = None
            elif member.idle_since is None:
                member.idle_since = now
            elif member.alive and now - member.idle_since > ANSWER_S:
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
        batch = member.batcher.close()
        assert batch is not None, "a batch is closed when it has answers"
        member.asked.append((batch, member.answers))
        member.answers = []
        self._submit(member.info.name, wire.CommitTask(len(batch.leaves)))

    def committed(self, worker: str, raw: bytes) -> list[m.Event]:
        """Take the quote of the oldest batch that was asked for, and return the answers that count now. AttestationError."""
        member = self._members.get(worker)
        if member is None or not member.alive or not member.asked:
            raise EvidenceError("it sent a batch that nobody asked for")
        batch, answers = member.asked.popleft()
        said = wire.decode_evidence(raw, wire.Committed)
        quoted = evidence.QuotedBatch(said.count, said.root, said.message, said.signature)
        evidence.check_batch(member.follower, quoted, batch.leaves)
        member.committed.append((quoted, answers))
        return self._release(member)

    def _release(self, member: Member) -> list[m.Event]:
        """Votes of the batches that are committed, once the launch is checked."""
        if not member.covered or not member.alive:
            return []
        first, member.released = member.released, len(member.committed)
        return [event for _, answers in member.committed[first:] for answer in answers for event in answer.events]

    @property
    def waiting(self) -> bool:
        """Whether evidence is still to come for answers that are held."""
        return any(member.owes for member in self._members.values())

    def owes(self, worker: str) -> bool:
        """Whether a worker was asked for evidence and has not sent it."""
        member = self._members.get(worker)
        return bool(self._asked_to_launch(worker) or worker in self._sealing or (member and member.asked))

    def lost(self, worker: str) -> None:
        """A worker is gone: the answers of it that were held are lost. Call :meth:`launch` for others that it was to launch."""
        self._sealing.pop(worker, None)
        if node := self._asked_to_launch(worker):
            node.asked = ""
        if worker in self._members:
            self._members[worker].alive = False

    def refuse(self, worker: str, reason: str) -> None:
        """The evidence of a worker was refused: it has no vote from now on."""
        self.barred.add(worker)
        if worker in self._members:
            self.refusals.setdefault(self._members[worker].info.domain, reason)
        self.lost(worker)

    # ---- the receipt

    def draft(self, manifest: bytes, agreed: Mapping[m.Task, int], reads: Sequence[int]) -> Receipt:
        """The receipt without seals. Those that still execute something need not seal it, if there are others enough.

        Args:
            manifest: the bytes of ``_SUCCESS``. agreed: the attempt that won each task. reads: records read, by reduce.
        """
        self._drafts += 1
        log = TaskLog()
        answers: dict[int, Answer] = {}
        for utpm, member in enumerate(self._covered()):
            for batch, (_, held) in enumerate(member.committed):
                for position, one in enumerate(held):
                    answers[one.attempt] = one
                    log.measured(
                        one.kind, one.index, one.input, one.output, utpm=utpm, batch=batch, position=position, attempt=one.attempt
                    )  # fmt: skip
        for task, attempt in agreed.items():
            log.agreed(task.kind, task.index, answers[attempt].input, answers[attempt].output)
        living = {member.info.name: member.info.domain for member in self._covered() if member.alive}
        idle = living.keys() - set(self._busy)
        enough = len({living[name] for name in idle}) >= self.record.need
        self._sealers = idle if enough else set(living)
        return Receipt(
            job=self.record, challenge=self.trust.challenge, started=self._started, ended=datetime.now(UTC),
            launches=self._launches(), utpms=self._utpms(), tasks=log.entries(), reads=tuple(reads),
            manifest=blake3(manifest).digest(),
        )  # fmt: skip

    def _launches(self) -> tuple[evidence.Launch, ...]:
        return tuple(node.launch for node in self._nodes.values() if node.launch is not None)

    def _covered(self) -> list[Member]:
        """The members as the receipt has them: by launch, and within a launch as its log has them."""
        return [member for node in self._nodes.values() for member in node.members]

    def _utpms(self) -> tuple[Utpm, ...]:
        launched = [node for node in self._nodes.values() if node.launch is not None]
        return tuple(
            Utpm(
                number, member.info.domain, member.public, member.alive and member.info.name in self._sealers,
                tuple(batch for batch, _ in member.committed),
            )
            for number, node in enumerate(launched) for member in node.members
        )  # fmt: skip

    def ask_seals(self, draft: Receipt) -> None:
        """Have a receipt sealed."""
        self._seals.clear()
        body = draft.body()
        for member, utpm in zip(self._covered(), draft.utpms, strict=True):
            if utpm.sealed:
                self._sealing[member.info.name] = body
                self._submit(member.info.name, wire.SealTask(evidence.seal_nonce(self.trust.challenge, body)))

    def sealed(self, worker: str, raw: bytes) -> None:
        """Take a seal. AttestationError if it is refused."""
        if worker not in self._sealing:
            raise EvidenceError("it sent a seal that nobody asked for")
        quoted = wire.decode_evidence(raw, wire.Quoted)
        self._members[worker].follower.check_seal(quoted.message, quoted.signature, self._sealing.pop(worker))
        self._seals[worker] = quoted

    @property
    def sealing(self) -> bool:
        """Whether seals are still to come, or the launch of somebody who may seal too."""
        return bool(self._sealing) or any(node.asked for node in self._nodes.values())

    @property
    def short(self) -> bool:
        """Whether those that live are too few domains to seal the receipt."""
        return len({member.info.domain for member in self._covered() if member.alive}) < self.record.need

    def finished(self, draft: Receipt) -> Receipt | None:
        """The receipt with its seals; None if more is known than when it was drafted: draft it anew.

        Raises:
            AttestationError: workers have died or were refused, and too few are left to seal it.
        """
        changed = (draft.launches, draft.utpms) != (self._launches(), self._utpms())
        if changed and self._drafts < DRAFTS_MAX:
            return None
        if changed or self.short:
            why = "; ".join(f"{domain}: {reason}" for domain, reason in sorted(self.refusals.items())) or "workers die"
            raise AttestationError(f"fewer than {self.record.need} domains are left to seal the receipt ({why}): run it again")
        seals = [(number, self._seals.get(member.info.name)) for number, member in enumerate(self._covered())]
        return draft.sealed(Seal(number, seal.message, seal.signature) for number, seal in seals if seal is not None)

    def summary(self, receipt: Receipt) -> dict[str, Any]:
        """What a result says about it."""
        return {
            "backend": self.trust.backend,
            "nonce": self.trust.challenge.hex(),
            "environments": sorted({sha256(member.document).hexdigest() for member in self._members.values()}),
            "utpms": len(receipt.utpms),
            "leaves": sum(len(entry.leaves) for entry in receipt.tasks),
            "batches": sum(len(utpm.batches) for utpm in receipt.utpms),
            "refused": dict(self.refusals),
        }
