"""What the gate holds back, and when it lets go: workers with real µTPMs, a fake clock and no job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pytest

from quoreduce.driver import gate as gate_module
from quoreduce.driver.gate import ANSWER_S, Answer, EvidenceGate, Trust
from quoreduce.errors import AttestationError, EvidenceError
from quoreduce.protocol import wire
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m
from quoreduce.trust import evidence, verifier
from quoreduce.trust.batcher import Batch, Mode
from quoreduce.trust.policy import Policy
from quoreduce.trust.receipt import JobRecord
from quoreduce.trust.utpm import MicroTpm

DOCUMENT = b'{"format":"quoreduce environment 1"}'
CHALLENGE = sha256(b"challenge").digest()
POLICY = Policy(environments=(sha256(DOCUMENT).hexdigest(),), backends=("utpm", "swtpm"))
RECORD = JobRecord(
    name="test", f=1, need=2, mode="bft", digest="blake3", batch="merkle", samples=0, maps=9, reduces=0, options={}
)
HARDWARE = wire.encode(evidence.Hardware((b"certificate",), b"ak", bytes(64), b"quote", b"signature"))  # type: ignore[arg-type]


@dataclass
class Worker:
    """A worker that answers what it is asked, when the test lets it."""

    name: str
    mode: Mode = "merkle"
    document: bytes = DOCUMENT
    node: str = "node"
    tpm: MicroTpm = field(default_factory=MicroTpm)
    leaves: list[bytes] = field(default_factory=list)
    batches: int = 0

    @property
    def info(self) -> WorkerInfo:
        return WorkerInfo(self.name, f"domain of {self.name}", self.node)

    def admission(self, told: wire.Attested) -> bytes:
        evidence.begin(self.tpm, self.document, told.job, told.domain)
        return wire.encode(wire.Admission(self.document, self.tpm.public.encode()))

    def commit(self, count: int) -> bytes:
        batch = Batch(self.batches, self.mode, tuple(self.leaves[:count]))
        del self.leaves[:count]
        self.batches += 1
        done = evidence.commit(self.tpm, batch, CHALLENGE)
        return wire.encode(wire.Committed(done.count, done.root, done.message, done.signature))

    def seal(self, nonce: bytes) -> bytes:
        quoted = self.tpm.quote(evidence.LEVEL2_PCRS, nonce)
        return wire.encode(wire.Quoted(quoted.message, quoted.signature))


class Bench:
    """A gate, its workers, and the requests that it has sent."""

    def __init__(self, backend: str = "utpm", batch: Mode = "merkle", size: int = 3, ms: int = 100) -> None:
        self.trust = Trust(backend, POLICY, CHALLENGE, "ecdsa", batch, size, ms, "state")
        self.sent: list[tuple[str, wire.Request]] = []
        self.gate = EvidenceGate(self.trust, RECORD, lambda worker, request: self.sent.append((worker, request)))
        self.workers: dict[str, Worker] = {}
        self.attempts = 0

    def join(self, *names: str, **options: Any) -> None:
        for name in names:
            worker = self.workers[name] = Worker(name, self.trust.batch, **options)
            assert self.gate.admit(worker.info, worker.admission(self.gate.attest_config(worker.info.domain)))

    def hold(self, name: str, now: float = 0.0, began: float | None = None, measured: bytes | None = None) -> m.Event:
        """A worker answers: the event that its answer becomes in the end."""
        attempt = self.attempts
        self.attempts += 1
        event = m.Failed(attempt, "", b"")
        answer = Answer((event,), "map", attempt, attempt, bytes(32), bytes(32))
        self.workers[name].leaves.append(measured or self.leaf(answer))
        self.gate.hold(name, answer, now if began is None else began, now)
        return event

    def leaf(self, answer: Answer) -> bytes:
        return evidence.task_leaf(self.gate.job, answer.kind, answer.index, answer.attempt, answer.input, answer.output)

    def requests(self, kind: type) -> list[tuple[str, Any]]:
        """Take the requests of one kind that were sent since the last look."""
        found = [(name, request) for name, request in self.sent if isinstance(request, kind)]
        self.sent = [one for one in self.sent if one not in found]
        return found

    def commit(self, name: str) -> list[m.Event]:
        """The worker answers the oldest of its commits."""
        place = next(
            i for i, (worker, one) in enumerate(self.sent) if worker == name and isinstance(one, wire.CommitTask)
        )
        _, request = self.sent.pop(place)
        assert isinstance(request, wire.CommitTask)
        return self.gate.committed(name, self.workers[name].commit(request.count))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[evidence.LateLaunch]]:
    """Takes the place of the check of launches: notes them; appending an exception makes the next one fail."""
    seen: list[Any] = []

    def check(launch: evidence.LateLaunch, *_: object) -> None:
        if seen and isinstance(seen[-1], Exception):
            raise seen.pop()
        seen.append(launch)

    monkeypatch.setattr(verifier, "check_launch", check)
    return seen


def two(**options: Any) -> Bench:
    bench = Bench(**options)
    bench.join("a", "b")
    bench.gate.launch()
    return bench


def test_answers_count_in_their_order_when_their_batch_is_committed() -> None:
    bench = two()
    events = [bench.hold("a") for _ in range(3)]
    other = bench.hold("b")
    assert bench.gate.waiting
    assert [(name, request.count) for name, request in bench.sent if isinstance(request, wire.CommitTask)] == [("a", 3)]
    assert bench.commit("a") == events
    assert bench.gate.waiting
    bench.gate.flush((), 0.0)
    assert bench.commit("b") == [other]
    assert not bench.gate.waiting


def test_batches_of_a_worker_are_asked_for_and_count_one_after_the_other() -> None:
    bench = two(size=2)
    events = [bench.hold("a") for _ in range(5)]
    bench.gate.flush((), 0.0)
    assert bench.commit("a") == events[:2]
    assert bench.commit("a") == events[2:4]
    assert bench.commit("a") == events[4:]
    assert not bench.gate.waiting


def test_without_batching_each_answer_is_committed_at_once() -> None:
    bench = two(batch="none")
    for _ in range(3):
        event = bench.hold("a")
        assert bench.commit("a") == [event]


def test_a_batch_of_a_busy_worker_waits_until_it_is_old_enough() -> None:
    bench = two(size=10, ms=100)
    assert bench.gate.next_due_s(5.0) == float("inf")
    bench.hold("a", now=5.0)
    bench.hold("a", now=5.04)
    assert bench.gate.next_due_s(5.04) == pytest.approx(0.06)
    bench.gate.flush({"a"}, 5.09)
    assert bench.requests(wire.CommitTask) == []
    bench.gate.flush({"a"}, 5.1)
    assert bench.requests(wire.CommitTask) == [("a", wire.CommitTask(2))]
    assert bench.gate.next_due_s(5.1) == float("inf")


def test_a_batch_of_an_idle_worker_does_not_wait() -> None:
    bench = two(size=10, ms=60_000)
    bench.hold("a")
    bench.hold("b")
    bench.gate.flush({"b"}, 0.0)
    assert bench.requests(wire.CommitTask) == [("a", wire.CommitTask(1))]


def test_an_answer_that_took_longer_than_a_batch_may_wait_is_committed_at_once() -> None:
    bench = two(size=10, ms=100)
    bench.hold("a", began=1.0, now=1.2)
    assert bench.requests(wire.CommitTask) == [("a", wire.CommitTask(1))]


def test_an_answer_that_comes_twice_counts_in_one_leaf() -> None:
    bench = two()
    event = m.Failed(0, "", b"")
    answer = Answer((event, event), "map", 0, 0, bytes(32), bytes(32))
    bench.workers["a"].leaves.append(bench.leaf(answer))
    bench.gate.hold("a", answer, 0.0, 0.0)
    bench.gate.flush((), 0.0)
    assert bench.commit("a") == [event, event]


def test_evidence_that_nobody_asked_for_is_refused() -> None:
    bench = two()
    for take in (bench.gate.committed, bench.gate.on_root_quote, bench.gate.sealed):
        for name in ("a", "stranger"):
            with pytest.raises(EvidenceError, match="nobody asked for"):
                take(name, b"")


@pytest.mark.parametrize("raw", [b"", b"\xc1", wire.encode(wire.Quoted(b"", b"")), b"\x91" * 2000])
def test_bytes_that_are_no_evidence_are_refused(raw: bytes) -> None:
    bench = two(size=1)
    bench.hold("a")
    with pytest.raises(AttestationError):
        bench.gate.committed("a", raw)


def test_a_leaf_that_was_not_answered_is_refused_and_so_is_all_that_follows() -> None:
    bench = two(size=2)
    bench.hold("a", measured=b"something else")
    bench.hold("a")
    with pytest.raises(EvidenceError, match="not that of the leaves listed"):
        bench.commit("a")
    for _ in range(2):
        bench.hold("a")
    with pytest.raises(EvidenceError, match=r"an earlier quote of this µTPM was refused"):
        bench.commit("a")


def test_a_worker_that_was_shut_out_has_no_vote_any_more() -> None:
    bench = two(size=1)
    bench.hold("a")
    bench.gate.refuse("a", "it lies")
    assert bench.gate.refusals == {"domain of a": "it lies"}
    assert not bench.gate.waiting
    with pytest.raises(EvidenceError, match="nobody asked for"):
        bench.commit("a")
    bench.gate.refuse("a", "and again")
    assert bench.gate.refusals == {"domain of a": "it lies"}, "the first reason is the reason"


def test_answers_of_a_worker_that_died_are_not_waited_for() -> None:
    bench = two(size=10)
    bench.hold("a")
    bench.gate.lost("a")
    assert not bench.gate.waiting
    bench.gate.flush((), 0.0)
    assert bench.requests(wire.CommitTask) == []
    assert bench.gate.next_due_s(0.0) == float("inf")
    assert bench.gate.refusals == {}


def test_a_worker_that_owes_evidence_and_does_nothing_else_is_late_in_the_end() -> None:
    bench = two(size=1)
    bench.hold("a")
    assert bench.gate.owes("a")
    assert not bench.gate.owes("b")
    assert bench.gate.flush({"a"}, 0.0) == [], "busy"
    assert bench.gate.flush((), 10.0) == []
    assert bench.gate.flush((), 10.0 + ANSWER_S) == []
    assert bench.gate.flush((), 10.1 + ANSWER_S) == ["a"]
    bench.commit("a")
    assert bench.gate.flush((), 20.0 + ANSWER_S) == []


def test_only_environments_of_the_policy_are_admitted() -> None:
    bench = Bench()
    worker = Worker("a", document=b"{}")
    assert not bench.gate.admit(worker.info, worker.admission(bench.gate.attest_config("domain of a")))
    assert sha256(b"{}").hexdigest() in bench.gate.refusals["domain of a"]


@pytest.mark.parametrize("raw", [b"", b"\xc1", *(wire.encode(wire.Admission(DOCUMENT, key)) for key in (b"", b"key"))])
def test_an_admission_that_is_none_is_refused(raw: bytes) -> None:
    bench = Bench()
    assert not bench.gate.admit(WorkerInfo("a", "domain of a", "node"), raw)
    assert bench.gate.refusals["domain of a"]


def test_one_key_is_one_worker() -> None:
    bench = Bench()
    bench.join("a")
    raw = wire.encode(wire.Admission(DOCUMENT, bench.workers["a"].tpm.public.encode()))
    assert not bench.gate.admit(WorkerInfo("b", "domain of b", "node"), raw)
    assert "another worker" in bench.gate.refusals["domain of b"]


def test_answers_wait_for_the_launch_of_their_node(launches: list[evidence.LateLaunch]) -> None:
    bench = two(backend="swtpm", size=1)
    assert bench.gate.owes("a")
    first = bench.hold("b")
    assert bench.commit("b") == []
    assert bench.gate.waiting, "the batch is committed, the launch is not checked"
    assert bench.gate.on_root_quote("a", HARDWARE) == [first]
    assert not bench.gate.waiting
    second = bench.hold("b")
    assert bench.commit("b") == [second]


def test_each_node_is_asked_once_for_all_its_workers(launches: list[evidence.LateLaunch]) -> None:
    bench = Bench(backend="swtpm")
    bench.join("a", "b", node="one")
    bench.join("c", node="two")
    bench.gate.launch()
    bench.gate.launch()
    asked = bench.requests(wire.RootTask)
    assert [(name, len(request.keys)) for name, request in asked] == [("a", 2), ("c", 1)]
    assert asked[0][1].nonce == evidence.launch_nonce(CHALLENGE, bench.gate.job, "one")
    bench.gate.on_root_quote("c", HARDWARE)
    bench.gate.on_root_quote("a", HARDWARE)
    assert [launch.node for launch in launches] == ["two", "one"]
    keys = [evidence.LaunchLog.decode(launch.log).keys for launch in launches]
    assert keys[1] == tuple(bench.workers[name].tpm.public.encode() for name in "ab")


def test_a_worker_that_comes_later_is_launched_with_those_before_it(launches: list[evidence.LateLaunch]) -> None:
    bench = two(backend="swtpm", size=1)
    bench.requests(wire.RootTask)
    bench.join("c")
    bench.gate.launch()
    assert bench.requests(wire.RootTask) == [], "one at a time"
    held = bench.hold("c")
    assert bench.commit("c") == []
    assert bench.gate.on_root_quote("a", HARDWARE) == []
    ((name, request),) = bench.requests(wire.RootTask)
    assert (name, request.keys) == ("a", tuple(bench.workers[one].tpm.public.encode() for one in "abc"))
    assert bench.gate.on_root_quote("a", HARDWARE) == [held]
    assert {launch.node for launch in launches} == {"node"}


@pytest.mark.parametrize("end", ["lost", "refused"])
def test_if_the_worker_that_was_asked_is_gone_another_one_is(end: str, launches: list[evidence.LateLaunch]) -> None:
    bench = two(backend="swtpm", size=1)
    held = bench.hold("b")
    bench.commit("b")
    if end == "lost":
        bench.gate.lost("a")
    else:
        bench.gate.refuse("a", "no TPM")
    bench.requests(wire.RootTask)
    bench.gate.launch()
    assert [name for name, _ in bench.requests(wire.RootTask)] == ["b"]
    assert bench.gate.on_root_quote("b", HARDWARE) == [held]


def test_a_launch_that_is_refused_covers_nobody(launches: list[Any]) -> None:
    bench = two(backend="swtpm", size=1)
    bench.hold("b")
    bench.commit("b")
    launches.append(AttestationError("no such AK"))
    with pytest.raises(AttestationError, match="no such AK"):
        bench.gate.on_root_quote("a", HARDWARE)
    assert bench.gate.waiting


def drafted(bench: Bench) -> Any:
    draft = bench.gate.draft(b"manifest", {}, ())
    bench.gate.ask_seals(draft)
    return draft


def seal(bench: Bench, *names: str) -> None:
    for name, request in bench.requests(wire.SealTask):
        if name in names:
            bench.gate.sealed(name, bench.workers[name].seal(request.nonce))


def test_a_receipt_has_the_batches_and_a_seal_of_each_worker() -> None:
    bench = two(size=2)
    for _ in range(2):
        bench.hold("b")
    bench.commit("b")
    draft = drafted(bench)
    seal(bench, "b")
    assert bench.gate.sealing
    draft_again = bench.gate.draft(b"manifest", {}, ())
    assert draft_again.utpms == draft.utpms
    bench.gate.sealed("a", bench.workers["a"].seal(evidence.seal_nonce(CHALLENGE, draft.body())))
    assert not bench.gate.sealing
    receipt = bench.gate.finished(draft)
    assert receipt is not None
    assert [utpm.domain for utpm in receipt.utpms] == ["domain of a", "domain of b"]
    assert [len(utpm.batches) for utpm in receipt.utpms] == [0, 1]
    assert [entry.leaves[0].position for entry in receipt.tasks] == [0, 1]
    assert [one.utpm for one in receipt.seals] == [0, 1]


def test_a_batch_that_was_asked_for_before_the_seal_is_in_the_receipt() -> None:
    """Else the seal would be over more than the receipt says."""
    bench = two(size=1)
    bench.hold("a")
    draft = drafted(bench)
    bench.commit("a")
    seal(bench, "a", "b")
    assert bench.gate.finished(draft) is None
    again = drafted(bench)
    seal(bench, "a", "b")
    receipt = bench.gate.finished(again)
    assert receipt is not None
    assert len(receipt.utpms[0].batches) == 1


def test_a_worker_that_dies_meanwhile_has_no_seal() -> None:
    bench = Bench()
    bench.join("a", "b", "c")
    bench.gate.launch()
    draft = drafted(bench)
    seal(bench, "a", "b")
    bench.gate.lost("c")
    assert not bench.gate.sealing
    assert bench.gate.finished(draft) is None
    bench.join("d")
    bench.gate.launch()
    again = drafted(bench)
    seal(bench, "a", "b")
    receipt = bench.gate.finished(again)
    assert receipt is not None
    assert [utpm.sealed for utpm in receipt.utpms] == [True, True, False], "d came too late, and is not needed"


def test_if_too_few_are_left_to_seal_one_that_comes_later_does() -> None:
    bench = two()
    draft = drafted(bench)
    seal(bench, "a")
    assert not bench.gate.short
    bench.gate.lost("b")
    assert bench.gate.short
    bench.join("c")
    bench.gate.launch()
    assert not bench.gate.short
    assert bench.gate.finished(draft) is None
    again = drafted(bench)
    seal(bench, "a", "c")
    receipt = bench.gate.finished(again)
    assert receipt is not None
    assert [utpm.sealed for utpm in receipt.utpms] == [True, False, True]


def test_with_too_few_to_seal_there_is_no_receipt() -> None:
    bench = two()
    drafted(bench)
    seal(bench, "a")
    bench.gate.refuse("b", "its seal is none")
    again = drafted(bench)
    seal(bench, "a")
    with pytest.raises(AttestationError, match=r"fewer than 2 domains .* \(domain of b: its seal is none\)"):
        bench.gate.finished(again)


def test_workers_that_die_one_after_the_other_do_not_keep_a_receipt_for_ever() -> None:
    bench = two()
    for number in range(gate_module.DRAFTS_MAX - 1):
        draft = drafted(bench)
        bench.gate.lost("b" if number == 0 else f"c{number - 1}")
        seal(bench, "a")
        bench.join(f"c{number}")
        bench.gate.launch()
        assert bench.gate.finished(draft) is None
    draft = drafted(bench)
    bench.gate.lost(f"c{gate_module.DRAFTS_MAX - 2}")
    with pytest.raises(AttestationError, match="workers die"):
        bench.gate.finished(draft)


def test_nobody_waits_for_the_seal_of_a_worker_that_is_still_busy() -> None:
    bench = Bench()
    bench.join("a", "b", "c")
    bench.gate.launch()
    bench.gate.flush({"b"}, 0.0)
    draft = drafted(bench)
    seal(bench, "a", "c")
    receipt = bench.gate.finished(draft)
    assert receipt is not None
    assert [utpm.sealed for utpm in receipt.utpms] == [True, False, True]
    assert [one.utpm for one in receipt.seals] == [0, 2]


def test_a_busy_worker_seals_if_the_others_are_too_few() -> None:
    bench = two()
    bench.gate.flush({"b"}, 0.0)
    assert [utpm.sealed for utpm in drafted(bench).utpms] == [True, True]


def test_a_seal_of_something_else_is_refused() -> None:
    bench = two()
    drafted(bench)
    with pytest.raises(EvidenceError, match="nonce"):
        bench.gate.sealed("a", bench.workers["a"].seal(bytes(32)))
