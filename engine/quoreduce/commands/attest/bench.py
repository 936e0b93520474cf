"""``quoreduce attest bench``: what attesting a task costs, on each backend, by how the leaves of tasks are batched.

A batch of B tasks is attested so: make their leaves, hash them, extend the batch into µPCR 16, quote once. In
mode ``none`` each leaf is extended by itself, so that with B = 1 each task has its own extend and quote: that is
*unbatched*. In mode ``merkle`` the inclusion proofs of all leaves are made, too. One process; batches are not checked
meanwhile.

The figures are measured in turns: each is the median of several samples, taken in rounds over all figures, each round
beginning with another figure, so that ratios are of one run; a ratio is the median of the ratios of the
rounds. The spread is the distance between the quartiles. Figures of hardware are *modelled*
(:mod:`quoreduce.trust.modelled`): added up from published latencies of extends and quotes only; they are always
labelled so, and have no spread.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, Final

from quoreduce.errors import HostError
from quoreduce.trust import merkle
from quoreduce.trust.batcher import BATCH_PCR, MODES, Batch, Mode
from quoreduce.trust.evidence import LEVEL2_PCRS, Follower, QuotedBatch, begin, commit, task_leaf
from quoreduce.trust.modelled import CHIPS, DEFAULT_CHIP, Chip, ModelledTpm
from quoreduce.trust.port import Tpm
from quoreduce.trust.swtpm import Swtpm, setup
from quoreduce.trust.utpm import MicroTpm
from quoreduce.version import __version__

TASKS: Final = 4096
SIZES: Final = (1, 16, 64, 256, 1024)
CHALLENGERS: Final = (1, 16, 256)
ROUNDS: Final = 15
ROUNDS_S: Final = 22.0  # no further round begins later than this
LIMIT_S: Final = 30  # of all, by default
SAMPLE_S: Final = 0.02  # of one figure in one round, unless one batch takes longer
EXTEND: Final = "extend"
QUOTE: Final = "extend + quote"
HARDWARE_PER_S: Final = 2  # attestations a second of a hardware TPM: the talk that this work follows, slide 33
GOAL_SIZE: Final = 1024
MEASURED: Final = "measured"

_JOB, _CHALLENGE, _DIGEST = (sha256(name).digest() for name in (b"job", b"challenge", b"output"))
_DOCUMENT: Final = b"{}"
_DOMAIN: Final = "core 0"
_QUOTES: Final = 16  # of batches that are verified in one sample, or more


@dataclass(slots=True)
class CostFigure:
    """A repeated operation, and how long it took.

    Attributes:
        labels: identify it, as in JSON.
        run: does it once.
        units: tasks, challengers, proofs or quotes in one run.
        samples: µs a unit, one for each round.
        runs: in one sample.
    """

    labels: dict[str, Any]
    run: Callable[[], object]
    units: int = 1
    samples: list[float] = field(default_factory=list)
    runs: int = 1

    @property
    def us(self) -> float:
        """µs a unit, the median."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """From the lower to the upper quartile, µs."""
        return _spread(self.samples)

    def prepare(self, units: int) -> None:
        """Warm up, and choose how many runs a sample has: for at most so many units."""
        self.run()
        self.runs = max(1, min(units // self.units, int(SAMPLE_S / self._seconds())))

    def sample(self) -> None:
        """Take one sample."""
        self.samples.append(self._seconds() / (self.runs * self.units) * 1e6)

    def _seconds(self) -> float:
        run = self.run
        start = time.perf_counter()
        for _ in range(self.runs):
            run()
        return time.perf_counter() - start


def attest(tpm: Tpm, mode: Mode, size: int, *, quote: bool) -> None:
    """Attest a batch of ``size`` tasks as a worker does; in mode ``none`` ``size`` batches, of which the last is
    quoted.
    """
    leaves = tuple(task_leaf(_JOB, "map", number, number, _DIGEST, _DIGEST) for number in range(size))
    parts: Iterable[tuple[bytes, ...]] = ((leaf,) for leaf in leaves) if mode == "none" else (leaves,)
    *others, last = (Batch(number, mode, part) for number, part in enumerate(parts))
    for batch in others:
        tpm.extend(BATCH_PCR, batch.digest)
    if quote:
        commit(tpm, last, _CHALLENGE)
    else:
        tpm.extend(BATCH_PCR, last.digest)
    if mode == "merkle":
        last.tree.proofs()


def answer(tpm: Tpm, challengers: int) -> None:
    """Answer this many challengers with one quote: its nonce is the root over theirs, and each gets a proof."""
    tree = merkle.Tree([number.to_bytes(32, "big") for number in range(challengers)])
    tpm.quote(LEVEL2_PCRS, tree.root)
    tree.proofs()


def figures_of(tpm: Tpm, sizes: Sequence[int], labels: dict[str, Any]) -> list[CostFigure]:
    """All figures of one backend."""
    tasks = [
        CostFigure(
            {**labels, "what": what, "batch": mode, "size": size},
            partial(attest, tpm, mode, size, quote=what == QUOTE),
            size,
        )
        for what in (EXTEND, QUOTE)
        for mode in MODES
        for size in sizes
    ]
    return tasks + [
        CostFigure({**labels, "what": "challengers", "size": number}, partial(answer, tpm, number), number)
        for number in CHALLENGERS
    ]


def modelled_figures(chip: Chip, sizes: Sequence[int]) -> list[CostFigure]:
    """The same figures of a chip, in its virtual time, so that one sample is exact."""
    tpm = ModelledTpm(chip.name)
    labels = {"backend": "modelled", "modelled": True, "label": chip.label, "chip": chip.name, "source": chip.source}
    figures = figures_of(tpm, sizes, labels)
    for figure in figures:
        before = tpm.elapsed_ms
        figure.run()
        figure.samples.append((tpm.elapsed_ms - before) * 1e3 / figure.units)
    return figures


def verifier_figures(sizes: Sequence[int]) -> list[CostFigure]:
    """What one leaf with its proof costs to verify, for each size of tree; and the quote of one batch."""
    labels: dict[str, Any] = {"backend": "verifier", "modelled": False, "label": MEASURED}
    figures = []
    for size in sizes:
        leaves = [task_leaf(_JOB, "map", number, number, _DIGEST, _DIGEST) for number in range(size)]
        tree, index = merkle.Tree(leaves), size // 2
        path = tree.proof(index)
        run = partial(verify_proof, leaves[index], index, size, path, tree.root)
        figures.append(CostFigure({**labels, "what": "verify proof", "size": size, "bytes": sum(map(len, path))}, run))
    tpm = MicroTpm()
    begin(tpm, _DOCUMENT, _JOB, _DOMAIN)
    quoted = [commit(tpm, Batch(number, "merkle", (b"leaf",)), _CHALLENGE) for number in range(_QUOTES)]
    size = len(quoted[0].message) + len(quoted[0].signature)
    labels |= {"what": "verify quote", "bytes": size}
    return [*figures, CostFigure(labels, partial(verify_quotes, tpm.public.encode(), quoted), _QUOTES)]


def verify_proof(leaf: bytes, index: int, count: int, path: Sequence[bytes], root: bytes) -> bool:
    """Hash a leaf and check its proof."""
    return merkle.verify(merkle.leaf_hash(leaf), index, count, path, root)


def verify_quotes(public: bytes, quoted: Sequence[QuotedBatch]) -> None:
    """Check the quotes of all batches of a µTPM (TPMT_PUBLIC), without their leaves. Raises EvidenceError."""
    follower = Follower(public, sha256(_DOCUMENT).digest(), _DOMAIN, _JOB, _CHALLENGE, "merkle")
    for batch in quoted:
        follower.follow(batch)


@dataclass(frozen=True, slots=True)
class CostResults:
    """All figures, and why a backend could not be measured."""

    figures: tuple[CostFigure, ...]
    missing: dict[str, str]
    seconds: float

    def find(self, **labels: Any) -> list[CostFigure]:
        """Return the figures with these labels."""
        return [figure for figure in self.figures if labels.items() <= figure.labels.items()]


def measure(tasks: int, sizes: Sequence[int], state: Path | None) -> CostResults:
    """Measure all.

    Args:
        tasks: in each sample, at most; but at least one batch, and no longer than SAMPLE_S then.
        sizes: of batches; unbatched is measured always.
        state: a folder for swtpm, which is set up if it is not; by default a temporary one.
    """
    start = time.perf_counter()
    sizes = sorted({1, *sizes})
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        tpms: list[Tpm] = [MicroTpm()]
        try:
            tpms.append(stack.enter_context(_swtpm(state)))
        except HostError as error:
            missing["swtpm"] = str(error)
        labels = {"modelled": False, "label": MEASURED}
        measured = [figure for tpm in tpms for figure in figures_of(tpm, sizes, {"backend": tpm.name, **labels})]
        measured += verifier_figures(sizes)
        take_turns(measured, tasks)
    modelled = [figure for chip in CHIPS.values() for figure in modelled_figures(chip, sizes)]
    return CostResults((*measured, *modelled), missing, time.perf_counter() - start)


def take_turns(figures: Sequence[CostFigure], tasks: int) -> None:
    """Sample all figures in rounds, each round beginning at another one."""
    end = time.perf_counter() + ROUNDS_S
    for figure in figures:
        figure.prepare(tasks)
    for number in range(ROUNDS):
        first = number * len(figures) // ROUNDS
        for figure in (*figures[first:], *figures[:first]):
            figure.sample()
        if time.perf_counter() > end:
            break


@contextmanager
def _swtpm(state: Path | None) -> Iterator[Swtpm]:
    with ExitStack() as stack:
        folder = state or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quoreduce-swtpm-")))
        setup(folder)
        yield stack.enter_context(Swtpm(folder))


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


_BATCHED: Final = {"backend": "utpm", "what": QUOTE, "batch": "merkle", "size": GOAL_SIZE}


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that should be at most ``limit``, in its unit; ``modelled``: a ratio to a modelled figure."""

    name: str
    value: float
    spread: float
    limit: float
    unit: str
    modelled: bool = False

    @property
    def met(self) -> bool:
        """Whether it is met."""
        return self.value <= self.limit


def goals(results: CostResults) -> list[Goal]:
    """The goals whose figures were measured: batches of GOAL_SIZE, swtpm."""
    name = f"extend + quote of a task, µTPM, Merkle, B = {GOAL_SIZE}, against"
    found = []
    for backend, limit in (("utpm", 1 / 20), ("swtpm", 1 / 400)):
        if ratios := batched_against(results, backend):
            found.append(
                Goal(f"{name} unbatched {backend}", statistics.median(ratios), _spread(ratios), limit, "ratio")
            )
    for figure in results.find(**_BATCHED):
        hardware = 1e6 / HARDWARE_PER_S
        ratio, spread = figure.us / hardware, figure.spread / hardware
        found.append(
            Goal(f"{name} hardware, modelled at {HARDWARE_PER_S}/s", ratio, spread, 1 / 200_000, "ratio", True)
        )
    for proof in results.find(what="verify proof", size=GOAL_SIZE):
        found.append(Goal(f"verification of one proof, B = {GOAL_SIZE}", proof.us, proof.spread, 10.0, "µs"))
    return found


def batched_against(results: CostResults, backend: str) -> list[float]:
    """Of each round: extend and quote of a task on the µTPM, Merkle, B = GOAL_SIZE, to unbatched on ``backend``; or
    nothing.
    """
    pairs = product(results.find(**_BATCHED), results.find(backend=backend, what=QUOTE, batch="none", size=1))
    return [a / b for batched, single in pairs for a, b in zip(batched.samples, single.samples, strict=True)]


def run_bench(
    tasks: int = TASKS, sizes: Sequence[int] = SIZES, as_json: bool = False, state: Path | None = None
) -> int:
    """Measure, print tables or one JSON object, return 0; arguments as of :func:`measure`."""
    print(f"measuring for at most {LIMIT_S} s: leave the machine alone meanwhile ...", file=sys.stderr, flush=True)
    results = measure(tasks, sizes, state)
    if as_json:
        print(json.dumps(to_json(results, tasks)))
    else:
        _print_tables(results)
    return 0


def to_json(results: CostResults, tasks: int) -> dict[str, Any]:
    """All figures, for programs. Times in µs; rates a second; each figure says whether it is modelled."""
    return {
        "format": "quoreduce attest bench 1",
        "quoreduce": __version__,
        "python": platform.python_version(),
        "tasks": tasks,
        "rounds": len(results.figures[0].samples),
        "seconds": _rounded(results.seconds),
        "figures": [
            {
                **figure.labels,
                "us": _rounded(figure.us),
                "spread_us": _rounded(figure.spread),
                "per_s": _rounded(1e6 / figure.us),
            }
            for figure in results.figures
        ],
        "missing": results.missing,
        "goals": [
            {"name": goal.name, "modelled": goal.modelled, "unit": goal.unit, "value": _rounded(goal.value),
             "spread": _rounded(goal.spread), "limit": goal.limit, "met": goal.met}
            for goal in goals(results)
        ],
    }  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _print_tables(results: CostResults) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for what in (EXTEND, QUOTE):
        found = [figure.labels for figure in results.find(backend="utpm", what=what)]
        rows = [({"what": what, "batch": labels["batch"], "size": labels["size"]}, labels["batch"]) for labels in found]
        _print_backends(console, results, f"{what}: µs a task, attestations a second", rows)
    rows = [({"what": "challengers", "size": number}, "one quote") for number in CHALLENGERS]
    _print_backends(console, results, "one quote for B challengers: µs for each, attestations a second", rows)
    _print_chips(console, results)
    _print_verifier(console, results)
    for backend, reason in results.missing.items():
        console.print(f"{backend} was not measured: {reason}", soft_wrap=True)
    for goal in goals(results):
        console.print(f"{goal.name}: {_said(goal)}", soft_wrap=True)


def _print_backends(console: Any, results: CostResults, title: str, rows: Sequence[tuple[dict[str, Any], str]]) -> None:
    """Print a table: a row for each of ``rows`` (labels, mode), and columns for each backend."""
    table = _table(title, ["batch", "B"])
    backends = ({"backend": "utpm"}, {"backend": "swtpm"}, {"chip": DEFAULT_CHIP})
    for name in ("µTPM", "swtpm"):
        for column in (f"{name}, measured µs", "spread µs", "a second"):
            table.add_column(column, justify="right")
    for column in (f"{DEFAULT_CHIP}, modelled µs", "modelled, a second"):
        table.add_column(column, justify="right")
    for labels, mode in rows:
        cells = [mode, f"{labels['size']:,}"]
        for backend in backends:
            with_spread = "chip" not in backend
            found = results.find(**labels, **backend)
            cells += _cells(found[0], with_spread) if found else ["-", "-", "-"]
        table.add_row(*cells)
    console.print(table)


def _cells(figure: CostFigure, with_spread: bool) -> list[str]:
    return [_number(figure.us), *([_number(figure.spread)] if with_spread else []), _number(1e6 / figure.us)]


def _print_chips(console: Any, results: CostResults) -> None:
    """Print the chips, all modelled."""
    size = max(figure.labels["size"] for figure in results.find(backend="utpm", what=QUOTE))
    table = _table(f"{QUOTE}, hardware, modelled: attestations a second", ["chip"])
    for column in ("modelled, unbatched", f"modelled, Merkle, B = {size:,}"):
        table.add_column(column, justify="right")
    for chip in CHIPS.values():
        figures = [
            results.find(chip=chip.name, what=QUOTE, batch=b, size=n)[0] for b, n in (("none", 1), ("merkle", size))
        ]
        table.add_row(chip.label, *(_number(1e6 / figure.us) for figure in figures))
    console.print(table)


def _print_verifier(console: Any, results: CostResults) -> None:
    table = _table("verifying, measured", ["what"])
    for column in ("B", "bytes", "µs", "spread µs"):
        table.add_column(column, justify="right")
    for figure in results.find(backend="verifier"):
        labels = figure.labels
        name = "one leaf with its proof" if labels["what"] == "verify proof" else "the quote of one batch"
        size = f"{labels['size']:,}" if "size" in labels else "any"
        table.add_row(name, size, str(labels["bytes"]), _number(figure.us), _number(figure.spread))
    console.print(table)


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column == "B" else "left", no_wrap=True)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _said(goal: Goal) -> str:
    """A ratio as one of so many."""
    met = "met" if goal.met else "missed"
    if goal.unit == "ratio":
        return f"1/{_number(1 / goal.value)} (goal: at most 1/{1 / goal.limit:,.0f}): {met}"
    return f"{_number(goal.value)} {goal.unit} (goal: at most {goal.limit:g} {goal.unit}): {met}"
