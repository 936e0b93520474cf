"""Who takes part in an attested job: workers with their µTPMs, and the nodes whose TPMs vouch for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256

from quoreduce.errors import EvidenceError
from quoreduce.protocol import wire
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m
from quoreduce.trust import evidence
from quoreduce.trust.batcher import Batch, Batcher, Mode
from quoreduce.trust.eventlog import encode_binary
from quoreduce.trust.policy import Policy
from quoreduce.trust.receipt import TaskLog, Utpm

Submit = Callable[[str, wire.Request], None]


@dataclass(frozen=True, slots=True)
class Trust:
    """:class:`quoreduce.protocol.options.Attest`, looked up. ``state``: the folder of a node's TPM."""

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
        covered: whether a launch that was checked is for it too.
        answers: of the batch that is open.
        asked: batches that the worker is to commit, oldest first.
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

    def close(self) -> int:
        """Close the batch that is open, for the worker to commit; return its number of leaves."""
        batch = self.batcher.close()
        assert batch is not None, "a batch is closed when it has answers"
        self.asked.append((batch, self.answers))
        self.answers = []
        return len(batch.leaves)

    def release(self) -> list[m.Event]:
        """Votes of the batches that are committed, once the launch is checked."""
        if not self.covered or not self.alive:
            return []
        first, self.released = self.released, len(self.committed)
        return [event for _, answers in self.committed[first:] for answer in answers for event in answer.events]

    def idle_s(self, idle: bool, now: float) -> float:
        """For how long it has been ``idle`` while it owes evidence."""
        if not idle:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now
        return 0.0 if self.idle_since is None else now - self.idle_since


@dataclass(slots=True, eq=False)
class Node:
    """The workers of a node with the same environment: the node's TPM launches it and vouches for all of them.

    When a worker joins later, the environment is launched anew, for those before it as well: one launch is one node in
    the receipt.

    Attributes:
        name: in the receipt.
        launch: the launch that was checked, for ``members`` in the order of its log; some may be gone since.
        waiting: members that the launch does not cover.
        asked: the worker that is to launch anew, for ``joining`` as well.
    """

    name: str
    document: bytes
    launch: evidence.LateLaunch | None = None
    members: list[Member] = field(default_factory=list)
    waiting: list[Member] = field(default_factory=list)
    joining: list[Member] = field(default_factory=list)
    asked: str = ""


def member_of(info: WorkerInfo, raw: bytes, trust: Trust, job: bytes) -> Member:
    """The member that a worker becomes by its admission. Raises EvidenceError if it may not vote."""
    said = wire.decode_evidence(raw, wire.Admission)
    environment = sha256(said.document).digest()
    if environment.hex() not in trust.policy.environments:
        advice = "if the installation changed: quoreduce attest setup"
        raise EvidenceError(f"its environment, {environment.hex()}, is not in the policy ({advice})")
    follower = evidence.Follower(said.public, environment, info.domain, job, trust.challenge, trust.batch)
    batcher = Batcher(trust.batch, trust.batch_size, trust.batch_ms)
    return Member(info, said.document, said.public, follower, batcher)


class Nodes:
    """Has the TPM of each node launch the environment of its workers, and keeps the launches that were checked.

    ``job``: its id in evidence.
    """

    def __init__(self, trust: Trust, job: bytes, submit: Submit) -> None:
        self._trust = trust
        self._job = job
        self._submit = submit
        self._nodes: dict[tuple[str, bytes], Node] = {}  # by name and environment document

    def __iter__(self) -> Iterator[Node]:
        """All of them, in the order in which they came."""
        return iter(self._nodes.values())

    def join(self, member: Member) -> None:
        """A worker waits for a launch that is for it, too."""
        key = member.info.node, member.document
        if key not in self._nodes:
            others = sum(node == member.info.node for node, _ in self._nodes)
            self._nodes[key] = Node(member.info.node + f", environment {others + 1}" * bool(others), member.document)
        self._nodes[key].waiting.append(member)

    def launch(self, wanted: bool) -> None:
        """If it is ``wanted``, have each node launched anew whose launch does not cover all of its members.

        Raises:
            AttestationError: a launch was refused.
        """
        for node in self:
            node.waiting = [member for member in node.waiting if member.alive]
            if not node.waiting or node.asked or not wanted:
                continue
            node.joining = list(node.waiting)
            if self._trust.backend in evidence.SOFTWARE:
                self._launched(node, None)
                continue
            everyone = [*node.members, *node.joining]
            node.asked = next(member.info.name for member in everyone if member.alive)
            keys = tuple(member.public for member in everyone)
            nonce = evidence.launch_nonce(self._trust.challenge, self._job, node.name)
            self._submit(node.asked, wire.RootTask(self._trust.backend, self._trust.state, node.document, keys, nonce))

    def quoted(self, worker: str, raw: bytes) -> Node:
        """Take the quote of a node's TPM. Raises AttestationError if it does not hold."""
        node = self.asked_of(worker)
        if node is None:
            raise EvidenceError("it sent a quote of its node that nobody asked for")
        self._launched(node, wire.decode_evidence(raw, evidence.Hardware))
        node.asked = ""
        return node

    def asked_of(self, worker: str) -> Node | None:
        """The node that a worker was asked to launch, if there is one."""
        return next((node for node in self if node.asked == worker), None)

    def lost(self, worker: str) -> None:
        """A worker is gone: its node's launch has to be asked of another."""
        if node := self.asked_of(worker):
            node.asked = ""

    def covered(self) -> list[Member]:
        """The members as the receipt has them: by launch, and within a launch as its log has them."""
        return [member for node in self for member in node.members]

    def launches(self) -> tuple[evidence.LateLaunch, ...]:
        """The launches that were checked."""
        return tuple(node.launch for node in self if node.launch is not None)

    def _launched(self, node: Node, hardware: evidence.Hardware | None) -> None:
        from quoreduce.trust.verifier import check_launch  # here: it takes long to import, and workers are busy by now

        members = [*node.members, *node.joining]
        log = encode_binary(evidence.launch_log(node.document, [member.public for member in members]))
        launch = evidence.LateLaunch(node.name, self._trust.backend, log, hardware)  # type: ignore[arg-type]
        check_launch(launch, self._job, self._trust.challenge, self._trust.policy, datetime.now(UTC))
        for member in node.joining:
            member.covered = True
        node.launch, node.members = launch, members
        node.waiting = [member for member in node.waiting if not member.covered]


def task_log(nodes: Nodes, agreed: Mapping[m.Task, int]) -> TaskLog:
    """What was executed, as the receipt has it. ``agreed``: the attempt that won each task."""
    log = TaskLog()
    answers: dict[int, Answer] = {}
    for utpm, member in enumerate(nodes.covered()):
        for batch, (_, held) in enumerate(member.committed):
            for position, one in enumerate(held):
                answers[one.attempt] = one
                log.measured(
                    one.kind, one.index, one.input, one.output, utpm=utpm, batch=batch, position=position,
                    attempt=one.attempt
                )  # fmt: skip
    for task, attempt in agreed.items():
        log.agreed(task.kind, task.index, answers[attempt].input, answers[attempt].output)
    return log


def utpms(nodes: Nodes, sealers: Set[str]) -> tuple[Utpm, ...]:
    """The µTPMs, as the receipt has them. ``sealers``: workers that are to seal it."""
    launched = [node for node in nodes if node.launch is not None]
    return tuple(
        Utpm(
            number, member.info.domain, member.public, member.alive and member.info.name in sealers,
            tuple(batch for batch, _ in member.committed),
        )
        for number, node in enumerate(launched) for member in node.members
    )  # fmt: skip
