"""What attesting a task costs (:mod:`quoreduce.commands.attest.bench`): a few of its figures, in µs, and ratios of one
run.

Extend and quote, each task with its leaf; Merkle with all inclusion proofs. Without swtpm its figures are missing
(NaN).
"""

from __future__ import annotations

import statistics
from typing import Any

from bench import measure

TASKS = 4096
SIZES = (1, 64, 1024)


def measure_all() -> measure.Cell:
    """All figures, by the name of the track."""
    from quoreduce.commands.attest import bench

    measure.two_cores()
    measure.wait_for_quiet()
    results = bench.measure(TASKS, SIZES, None)

    def us(**labels: Any) -> float:
        found = results.find(**labels)
        return found[0].us if found else float("nan")

    def task_us(backend: str, batch: str, size: int) -> float:
        return us(backend=backend, what=bench.QUOTE, batch=batch, size=size)

    def ratio(backend: str) -> float:
        return statistics.median(bench.batched_against(results, backend) or [float("nan")])

    return {
        "utpm_unbatched": task_us("utpm", "none", 1),
        "utpm_aggregate_1024": task_us("utpm", "aggregate", 1024),
        "utpm_merkle_64": task_us("utpm", "merkle", 64),
        "utpm_merkle_1024": task_us("utpm", "merkle", 1024),
        "swtpm_unbatched": task_us("swtpm", "none", 1),
        "swtpm_merkle_1024": task_us("swtpm", "merkle", 1024),
        "against_utpm": ratio("utpm"),
        "against_swtpm": ratio("swtpm"),
        "challenger_of_256": us(backend="utpm", what="challengers", size=256),
        "verify_proof_1024": us(what="verify proof", size=1024),
        "verify_quote": us(what="verify quote"),
    }


class Attest:
    """What attesting a task costs, and verifying it."""

    timeout = 120

    def setup_cache(self) -> measure.Cell:
        return measure_all()

    setup_cache.timeout = 600  # type: ignore[attr-defined]


measure.add_tracks(Attest, lambda figures: figures, [
    ("utpm_unbatched", "µs", "µTPM, a task that is extended and quoted by itself."),
    ("utpm_aggregate_1024", "µs", "µTPM, a task, one hash over 1024 of them."),
    ("utpm_merkle_64", "µs", "µTPM, a task, a tree over 64 of them, with all proofs."),
    ("utpm_merkle_1024", "µs", "µTPM, a task, a tree over 1024 of them, with all proofs."),
    ("swtpm_unbatched", "µs", "swtpm, a task that is extended and quoted by itself."),
    ("swtpm_merkle_1024", "µs", "swtpm, a task, a tree over 1024 of them, with all proofs."),
    ("against_utpm", "batched/unbatched", "µTPM, Merkle, 1024 tasks, to the µTPM unbatched; goal: 1/20."),
    ("against_swtpm", "batched/unbatched", "µTPM, Merkle, 1024 tasks, to swtpm unbatched; goal: 1/400."),
    ("challenger_of_256", "µs", "µTPM, one of 256 challengers whom one quote serves, with their proofs."),
    ("verify_proof_1024", "µs", "One leaf with its proof, in a tree of 1024; goal: 10."),
    ("verify_quote", "µs", "The quote of one batch: signature, nonce, replay."),
])  # fmt: skip
