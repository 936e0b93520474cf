"""What attesting a task costs (:mod:`quoreduce.report.attest_bench`): few figures of it, in µs, and ratios of one run.

Extend and quote, each task with its leaf; Merkle with all inclusion proofs. Without swtpm its figures are missing (NaN).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from bench import measure

TASKS = 4096
SIZES = (1, 64, 1024)
Figures = dict[str, float]


def measure_all() -> Figures:
    """All figures, by the name of the track."""
    from quoreduce.report import attest_bench as bench

    measure.two_cores()
    measure.wait_for_quiet()
    results = bench.measure(TASKS, SIZES, None)

    def us(**labels: Any) -> float:
        found = results.find(**labels)
        return found[0].us if found else float("nan")

    figures = {
        name: us(backend=backend, what=bench.QUOTE, batch=batch, size=size)
        for name, backend, batch, size in (
            ("utpm_unbatched_us", "utpm", "none", 1),
            ("utpm_aggregate_1024_us", "utpm", "aggregate", 1024),
            ("utpm_merkle_64_us", "utpm", "merkle", 64),
            ("utpm_merkle_1024_us", "utpm", "merkle", 1024),
            ("swtpm_unbatched_us", "swtpm", "none", 1),
            ("swtpm_merkle_1024_us", "swtpm", "merkle", 1024),
        )
    }
    ratios = {
        f"merkle_against_{backend}": statistics.median(bench.batched_against(results, backend) or [float("nan")])
        for backend in ("utpm", "swtpm")
    }
    return {
        **figures,
        **ratios,
        "challenger_of_256_us": us(backend="utpm", what="challengers", size=256),
        "verify_proof_1024_us": us(what="verify proof", size=1024),
        "verify_quote_us": us(what="verify quote"),
    }


class Attest:
    """The figures of :func:`measure_all`."""

    timeout = 120

    def setup_cache(self) -> Figures:
        return measure_all()

    setup_cache.timeout = 600  # type: ignore[attr-defined]


def _track(figure: str, unit: str, about: str) -> Callable[..., float]:
    def track(self: Any, figures: Figures) -> float:
        return measure.rounded(figures[figure])

    track.__doc__ = about
    track.unit = unit  # type: ignore[attr-defined]
    return track


for _figure, _unit, _about in (
    ("utpm_unbatched_us", "µs/task", "µTPM: each task extended and quoted by itself."),
    ("utpm_aggregate_1024_us", "µs/task", "µTPM, one hash over 1024 tasks."),
    ("utpm_merkle_64_us", "µs/task", "µTPM, a tree over 64 tasks, with all proofs."),
    ("utpm_merkle_1024_us", "µs/task", "µTPM, a tree over 1024 tasks, with all proofs."),
    ("swtpm_unbatched_us", "µs/task", "swtpm: each task extended and quoted by itself."),
    ("swtpm_merkle_1024_us", "µs/task", "swtpm, a tree over 1024 tasks, with all proofs."),
    ("merkle_against_utpm", "batched/unbatched", "µTPM, Merkle, 1024 tasks, against the µTPM unbatched; goal: 0.05."),
    ("merkle_against_swtpm", "batched/unbatched", "µTPM, Merkle, 1024 tasks, against swtpm unbatched; goal: 0.0025."),
    ("challenger_of_256_us", "µs/challenger", "µTPM, one quote for 256 challengers, with their proofs."),
    ("verify_proof_1024_us", "µs", "One leaf with its proof, tree of 1024; goal: 10."),
    ("verify_quote_us", "µs", "The quote of one batch: signature, nonce, replay."),
):
    setattr(Attest, f"track_{_figure}", _track(_figure, _unit, _about))
