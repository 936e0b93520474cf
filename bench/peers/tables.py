"""What is reported of a comparison: Markdown, and all runs for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import measure
from bench.peers.rounds import Engine


@dataclass(frozen=True, slots=True)
class Median:
    """Medians and extremes of an engine's runs, in seconds."""

    wall: float
    low: float
    high: float
    job: float
    cpu: float

    @classmethod
    def of(cls, engine: Engine) -> Median:
        walls = [run.wall_s for run in engine.kept]
        job, cpu = (
            statistics.median(values) for values in zip(*((r.job_s, r.cpu_s) for r in engine.kept), strict=True)
        )
        return cls(statistics.median(walls), min(walls), max(walls), job, cpu)


def markdown(title: str, found: Sequence[Engine]) -> str:
    """Two tables: what each engine took, and ours over theirs."""
    head = "| engine | wall s (min-max) | job s | CPU s | peak GB | clean runs |"
    lines = [f"### {title}", "", head, "|---|---|---|---|---|---|"]
    for engine in found:
        if engine.run is None:
            why = engine.why_missing.replace("|", "/")
            lines.append(f"| {engine.name} | {why} | | | | |")
            continue
        m = Median.of(engine)
        wall = f"{m.wall:.3f} ({m.low:.3f}-{m.high:.3f})"
        memory = f"{engine.memory_bytes / 1e9:.2f}"
        lines.append(f"| {engine.name} | {wall} | {m.job:.3f} | {m.cpu:.2f} | {memory} | {clean_runs(engine.runs)} |")
    theirs = [engine for engine in found if not engine.ours and engine.run is not None]
    return "\n".join([*lines, "", *_ratios(found, theirs)] if theirs else lines)


def clean_runs(runs: Sequence[measure.Run]) -> str:
    """``3 of 4``: runs that others did not disturb, of all."""
    return f"{sum(not run.noise.dirty for run in runs)} of {len(runs)}"


def _ratios(found: Sequence[Engine], theirs: Sequence[Engine]) -> list[str]:
    names = " | ".join(engine.name for engine in theirs)
    lines = [f"| wall: ours / theirs (min/min; job/job) | {names} |", "|---" * (1 + len(theirs)) + "|"]
    for engine in (engine for engine in found if engine.ours):
        m = Median.of(engine)
        cells = [f"{m.wall / p.wall:.3f} ({m.low / p.low:.3f}; {m.job / p.job:.3f})" for p in map(Median.of, theirs)]
        lines.append(f"| {engine.name} | " + " | ".join(cells) + " |")
    return lines


def as_json(engine: Engine) -> dict[str, Any]:
    """An engine and all its runs."""
    return {
        "engine": engine.name, "ours": engine.ours, "missing": engine.why_missing or None,
        "memory_bytes": engine.memory_bytes,
        "retries": engine.retries, "runs": [run_as_json(run) for run in engine.runs],
    }  # fmt: skip


def run_as_json(run: measure.Run) -> dict[str, Any]:
    """A run and what others did meanwhile."""
    return {
        "wall_s": run.wall_s, "job_s": run.job_s, "cpu_s": run.cpu_s, "dirty": run.noise.dirty,
        "others_s": run.noise.others_s, "steal_s": run.noise.steal_s, "pressure_s": run.noise.pressure_s,
    }  # fmt: skip
