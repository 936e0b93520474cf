"""The driver's side of an attested job: who may vote, which answers still wait for evidence, and the receipt in the end.

The commit rule: an answer becomes a vote only when the batch that holds its leaf was quoted by the worker's µTPM, the quote was
checked against the leaves that the driver mirrored, and the launch of the worker's node was checked too. Until then the tracker
knows that the execution has ended (``Executed``), and no more. The checks are those of :mod:`quoreduce.trust`, the same code
that verifies the receipt afterwards.

A worker whose evidence is refused has no vote from then on: it gets nothing more to do, and is not replaced, for another one
in the same place would be made of the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from blake3 import blake3

from quoreduce.errors import EvidenceError
from quoreduce.runtime import wire
from quoreduce.runtime.port import WorkerInfo
from quoreduce.tracker import messages as m
from quoreduce.trust import evidence
from quoreduce.trust.batcher import Batch, Batcher, Mode
from quoreduce.trust.eventlog import encode_binary
from quoreduce.trust.policy import Policy
from quoreduce.trust.receipt import JobRecord, Receipt, Seal, TaskLog, Utpm, job_id
from quoreduce.trust.verifier import check_launch

ANSWER_S = 60.0  # for evidence from a worker that has nothing else to do
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


@dataclass(slots=True, eq=False)
class Member:
    """A worker whose environment may vote, and its µTPM.

    Attributes:
        launch: number of the launch that covers it; None until that is checked.
        answers: of the batch that is open. asked: batches that the worker is to commit, oldest first.
        committed: batches that were checked, with their answers; the first ``released`` of them count as votes.
        idle_since: since when it owes evidence and has nothing else to do.
    """

    info: WorkerInfo
    document: bytes
    public: bytes
    follower: evidence.Follower
    batcher: Batcher
    launch: int | None = None
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


class Gate:
    """Holds the answers of attested workers back until there is evidence for them. Times in seconds of the driver's clock."""

    def __init__(self, trust: Trust, job: JobRecord, submit: Submit) -> None:
        self.trust = trust
        self.record = job
        self.job = job_id(trust.challenge, job)
        self.refusals: dict[str, str] = {}  # domain -> why it has no vote
        self._submit = submit
        self._started = datetime.now(UTC)
        self._members: dict[str, Member] = {}  # by worker; those that are gone stay, for the receipt
        self._launches: list[tuple[evidence.Launch, Sequence[Member]]] = []
        self._roots: dict[str, tuple[str, Sequence[Member]]] = {}  # worker that was asked -> name of the launch, its members
        self._names = 0
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
            follower = evidence.Follower(said.public, environment, info.domain, self.job, t.challenge, t.batch)
        except EvidenceError as error:
            self.refusals[info.domain] = str(error)
            return False
        batcher = Batcher(t.batch, t.batch_size, t.batch_ms)
        self._members[info.name] = Member(info, said.document, said.public, follower, batcher)
        return True

    def launch(self) -> None:
        """Have the TPM of each node quoted for all members that no launch covers yet. AttestationError."""
        asked = {member for _, members in self._roots.values() for member in members}
        groups: dict[tuple[str, bytes], list[Member]] = {}
        for member in self._members.values():
            if member.alive and member.launch is None and member not in asked:
                groups.setdefault((member.info.node, member.document), []).append(member)
        for (node, document), members in groups.items():
            self._names += 1
            name = f"{node}, launch {self._names}"
            if self.trust.backend in evidence.SOFTWARE:
                self._launched(name, members, None)
                continue
            first = members[0].info.name
            self._roots[first] = name, members
            keys = tuple(member.public for member in members)
            nonce = evidence.launch_nonce(self.trust.challenge, self.job, name)
            self._submit(first, wire.RootTask(self.trust.backend, self.trust.state, document, keys, nonce))

    def rooted(self, worker: str, raw: bytes) -> list[m.Event]:
        """Take the quote of a node's TPM and return the answers that waited for it. AttestationError if it is refused."""
        if worker not in self._roots:
            raise EvidenceError("it sent a quote of its node that nobody asked for")
        name, members = self._roots[worker]
        self._launched(name, members, wire.decode_evidence(raw, evidence.Hardware))
        del self._roots[worker]
        return [event for member in members for event in self._release(member)]

    def _launched(self, name: str, members: Sequence[Member], hardware: evidence.Hardware | None) -> None:
        keys = [member.public for member in members]
        log = encode_binary(evidence.launch_log(members[0].document, keys))
        launch = evidence.Launch(name, self.trust.backend, log, hardware)  # type: ignore[arg-type]
        check_launch(launch, self.job, self.trust.challenge, self.trust.policy, datetime.now(UTC))
        for member in members:
            member.launch = len(self._launches)
        self._launches.append((launch, members))

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
        for name, member in self._members.items():
            if member.alive and member.answers and (name not in busy or member.batcher.due(round(now * 1000))):
                self._close(member)
            if name in busy or not (member.asked or name in self._roots or name in self._sealing):
                member.idle_since = None
            elif member.idle_since is None:
                member.idle_since = now
            elif member.alive and now - member.idle_since > ANSWER_S:
                late.append(name)
        return late

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
        if member is None or not member.asked:
            raise EvidenceError("it sent a batch that nobody asked for")
        batch, answers = member.asked.popleft()
        said = wire.decode_evidence(raw, wire.Committed)
        quoted = evidence.QuotedBatch(said.count, said.root, said.message, said.signature)
        evidence.check_batch(member.follower, quoted, batch.leaves)
        member.committed.append((quoted, answers))
        return self._release(member)

    def _release(self, member: Member) -> list[m.Event]:
        """Votes of the batches that are committed, once the launch is checked."""
        if member.launch is None:
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
        return worker in self._roots or worker in self._sealing or bool(member and member.asked)

    def lost(self, worker: str) -> None:
        """A worker is gone: the answers of it that were held are lost, and with it the launch that it was to quote."""
        self._sealing.pop(worker, None)
        self._roots.pop(worker, None)
        if worker in self._members:
            self._members[worker].alive = False

    def refuse(self, worker: str, reason: str) -> list[str]:
        """The evidence of a worker was refused: it, and all whose launch it was to quote, have no vote from now on."""
        _, members = self._roots.pop(worker, ("", ()))
        names = dict.fromkeys([worker, *(member.info.name for member in members)])
        for name in names:
            if name in self._members:
                self.refusals[self._members[name].info.domain] = reason
                self._members[name].alive = False
        return list(names)

    # ---- the receipt

    def draft(self, manifest: bytes, agreed: Mapping[m.Task, int], reads: Sequence[int]) -> Receipt:
        """The receipt without seals.

        Args:
            manifest: the bytes of ``_SUCCESS``. agreed: the attempt that won each task. reads: records read, by reduce.
        """
        log, numbers = TaskLog(), self._numbers()
        answers: dict[int, Answer] = {}
        for name, utpm in numbers.items():
            for batch, (_, held) in enumerate(self._members[name].committed):
                for position, one in enumerate(held):
                    answers[one.attempt] = one
                    log.measured(
                        one.kind, one.index, one.input, one.output, utpm=utpm, batch=batch, position=position, attempt=one.attempt
                    )  # fmt: skip
        for task, attempt in agreed.items():
            log.agreed(task.kind, task.index, answers[attempt].input, answers[attempt].output)
        utpms = tuple(
            Utpm(one.launch or 0, one.info.domain, one.public, one.alive, tuple(batch for batch, _ in one.committed))
            for one in (self._members[name] for name in numbers)
        )
        return Receipt(
            job=self.record, challenge=self.trust.challenge, started=self._started, ended=datetime.now(UTC),
            launches=tuple(launch for launch, _ in self._launches), utpms=utpms, tasks=log.entries(), reads=tuple(reads),
            manifest=blake3(manifest).digest(),
        )  # fmt: skip

    def _numbers(self) -> dict[str, int]:
        """The places of workers in the receipt: by launch, and within a launch as its log has them."""
        names = [member.info.name for _, members in self._launches for member in members]
        return {name: number for number, name in enumerate(names)}

    def ask_seals(self, draft: Receipt) -> None:
        """Have every living member seal a receipt."""
        self._seals.clear()
        body = draft.body()
        for name in self._numbers():
            if self._members[name].alive:
                self._sealing[name] = body
                self._submit(name, wire.SealTask(evidence.seal_nonce(self.trust.challenge, body)))

    def sealed(self, worker: str, raw: bytes) -> None:
        """Take a seal. AttestationError if it is refused."""
        if worker not in self._sealing:
            raise EvidenceError("it sent a seal that nobody asked for")
        quoted = wire.decode_evidence(raw, wire.Quoted)
        self._members[worker].follower.check_seal(quoted.message, quoted.signature, self._sealing.pop(worker))
        self._seals[worker] = quoted

    @property
    def sealing(self) -> bool:
        """Whether seals are still to come."""
        return bool(self._sealing)

    def finished(self, draft: Receipt) -> Receipt | None:
        """The receipt with its seals; None if a member that was to seal it is gone: draft it anew."""
        numbers = self._numbers()
        if {numbers[name] for name in self._seals} != {i for i, utpm in enumerate(draft.utpms) if utpm.sealed}:
            return None
        order = sorted(self._seals, key=numbers.__getitem__)
        return draft.sealed(Seal(numbers[name], self._seals[name].message, self._seals[name].signature) for name in order)

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
