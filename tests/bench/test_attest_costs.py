"""What attesting costs in things that can be counted: extends, quotes, hashes, bytes. They are equal on every machine,
and gate.

Times are recorded (``pytest tests/bench --benchmark-only``) and never decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pytest

from quoreduce.commands.attest import bench as attest_bench
from quoreduce.trust import batcher, merkle
from quoreduce.trust.batcher import MODES, Batch, Batcher
from quoreduce.trust.evidence import LEVEL2_PCRS, QuotedBatch, commit, task_leaf
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import QuoteResponse

CHALLENGE = bytes(32)
TASKS = 1000
SIZE = 64
BATCHES = 16  # of 1000 tasks, 64 each
LEAVES = [task_leaf(bytes(32), "map", i, i, bytes(32), bytes(32)) for i in range(1024)]


class CountingTpm(MicroTpm):
    """A µTPM that counts what is asked of it."""

    __slots__ = ("extends", "quotes")

    def __init__(self) -> None:
        super().__init__()
        self.extends = self.quotes = 0

    def extend(self, pcr: int, digest: bytes) -> None:
        self.extends += 1
        super().extend(pcr, digest)

    def quote(self, pcrs: Any, nonce: bytes) -> QuoteResponse:
        self.quotes += 1
        return super().quote(pcrs, nonce)


@pytest.fixture
def tpm() -> CountingTpm:
    return CountingTpm()


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all that batches and trees hash."""
    found: list[int] = []

    def counted(data: bytes) -> Any:
        found.append(len(data))
        return sha256(data)

    for module in (merkle, batcher):
        monkeypatch.setattr(module, "sha256", counted)
    return found


def committed(tpm: CountingTpm, mode: Any, leaves: Sequence[bytes]) -> list[QuotedBatch]:
    """All leaves, through a batcher."""
    batches, open_ = [], Batcher(mode, SIZE, 1000)
    for leaf in leaves:
        if open_.add(leaf, 0) and (batch := open_.close()) is not None:
            batches.append(commit(tpm, batch, CHALLENGE))
    if (batch := open_.close()) is not None:
        batches.append(commit(tpm, batch, CHALLENGE))
    return batches


@pytest.mark.parametrize(("mode", "batches"), [("none", TASKS), ("aggregate", BATCHES), ("merkle", BATCHES)])
def test_a_batch_costs_one_extend_and_one_quote(tpm: CountingTpm, mode: Any, batches: int) -> None:
    done = committed(tpm, mode, LEAVES[:TASKS])
    assert (tpm.extends, tpm.quotes) == (batches, batches)
    assert sum(batch.count for batch in done) == TASKS


@pytest.mark.parametrize("size", [1, 16, 64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("quote", [False, True])
def test_what_is_timed_extends_and_quotes_as_often_as_it_says(
    tpm: CountingTpm, mode: Any, size: int, quote: bool
) -> None:
    attest_bench.attest(tpm, mode, size, quote=quote)
    assert (tpm.extends, tpm.quotes) == (size if mode == "none" else 1, int(quote))


@pytest.mark.parametrize("challengers", [1, 16, 256])
def test_one_quote_serves_all_challengers(tpm: CountingTpm, challengers: int) -> None:
    attest_bench.answer(tpm, challengers)
    assert (tpm.extends, tpm.quotes) == (0, 1)


@pytest.mark.parametrize("count", [1, 2, 7, 1024])
def test_each_node_of_a_tree_is_hashed_once_for_the_root_the_event_and_all_proofs(
    tpm: CountingTpm, hashes: list[int], count: int
) -> None:
    batch = Batch(0, "merkle", tuple(LEAVES[:count]))
    commit(tpm, batch, CHALLENGE)
    batch.tree.proofs()
    event = 23 + 8 + 1 + 8 + 32
    assert sorted(hashes) == sorted([130] * count + [65] * (count - 1) + [event])


def test_an_aggregate_hashes_each_leaf_once(tpm: CountingTpm, hashes: list[int]) -> None:
    commit(tpm, Batch(0, "aggregate", tuple(LEAVES)), CHALLENGE)
    assert hashes.count(130) == len(LEAVES)
    assert len(hashes) == len(LEAVES) + 2  # and the whole, and the event


@pytest.mark.parametrize(("count", "nbytes"), [(1, 0), (2, 32), (16, 128), (64, 192), (256, 256), (1024, 320)])
def test_a_proof_has_32_bytes_for_each_level(count: int, nbytes: int) -> None:
    assert {sum(map(len, proof)) for proof in merkle.proofs(LEAVES[:count])} == {nbytes}


@pytest.mark.benchmark(group="attestation: make")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 64, 1024])
def test_attest_tasks(benchmark: Any, tpm: CountingTpm, mode: Any, size: int) -> None:
    benchmark.extra_info["tasks"] = size
    benchmark(attest_bench.attest, tpm, mode, size, quote=True)
    assert tpm.quotes > 0


@pytest.mark.benchmark(group="attestation: make")
def test_tree_and_all_proofs(benchmark: Any) -> None:
    benchmark.extra_info["leaves"] = len(LEAVES)
    assert len(benchmark(merkle.proofs, LEAVES)) == len(LEAVES)


@pytest.mark.benchmark(group="attestation: check")
def test_verify_a_proof(benchmark: Any) -> None:
    tree = merkle.Tree(LEAVES)
    assert benchmark(attest_bench.verify_proof, LEAVES[777], 777, 1024, tree.proof(777), tree.root)


@pytest.mark.benchmark(group="attestation: quotes")
@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa"])
def test_quote_of_a_micro_tpm(benchmark: Any, scheme: Any) -> None:
    one = MicroTpm(scheme)
    assert set(benchmark(one.quote, LEVEL2_PCRS, bytes(32)).values) == set(LEVEL2_PCRS)


@pytest.mark.benchmark(group="attestation: check")
def test_verify_the_quotes_of_batches(benchmark: Any) -> None:
    figure = attest_bench.verifier_figures([1])[-1]
    benchmark.extra_info["quotes"] = figure.units
    benchmark(figure.run)
