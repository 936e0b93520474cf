"""Runs the applications: each with all variants in turn, over and over, and compares what they wrote.

A plain run is mode ``original``, as fast as it is, with its block checksums; a voted run is ``bft``. Outputs are
deleted and part files read for comparison between runs, never inside what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import structs

from quoreduce.arguments import unknown_name
from quoreduce.data.commit import output_errors, remove_output
from quoreduce.errors import InputError, OutputError, QuoreduceError, UsageError
from quoreduce_gridmix import data
from quoreduce_gridmix.noise import Noise, NoiseWatch
from quoreduce_gridmix.results import (
    FORMAT,
    MODIFICATIONS,
    PLAIN,
    Amounts,
    DataUsed,
    JobStage,
    Run,
    StudyResults,
    StudySetting,
    machine,
    now,
    versions,
)

if TYPE_CHECKING:
    from quoreduce import Job, Options, Result, Session

REPEAT_USUAL = 5
REPEAT_MAX = 1000
RESULTS = "gridmix.json"
UNKNOWN = Noise(0.0, 0.0, 0.0, False)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Application:
    """One of GridMix's: the set that it reads, its jobs, each of which reads what the one before wrote, and reducers by
    size.
    """

    name: str
    kind: data.Kind
    stages: tuple[Job, ...]
    reducers: dict[str, int]


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run a job."""

    mode: str
    f: int = 0
    off: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in tables: ``plain``, ``voted f=1``, ``basic f=1``, ``voted f=1 without deferred``."""
        if self.mode == "original":
            return PLAIN
        off = ", ".join(name.replace("_", " ") for name in self.off)
        return f"{'voted' if self.mode == 'bft' else self.mode} f={self.f}" + (f" without {off}" if off else "")


@dataclass(frozen=True, slots=True)
class Study:
    """The runs of a study.

    Attributes:
        apps, sizes, variants: every combination, the variants in turn; sizes as :meth:`data.DataSet.files` takes them.
        repeat: measured runs of each that nobody disturbs; while there are fewer, repetitions are added, as many again
            at most.
        warm_up: runs of each before, which do not count.
        split_mb, digest: as in Options; the digest is that of voted runs.
        reducers: of every stage; None: as GridMix has it for the size, and for ``parts:N`` as for small.
        keep: do not delete outputs when they have been compared.
    """

    apps: tuple[Application, ...]
    sizes: tuple[str, ...]
    variants: tuple[Variant, ...]
    repeat: int = REPEAT_USUAL
    warm_up: int = 1
    split_mb: float = 64.0
    digest: str = "blake3"
    reducers: int | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.repeat <= REPEAT_MAX or not 0 <= self.warm_up <= REPEAT_MAX:
            raise UsageError(f"repetitions are 1 to {REPEAT_MAX}, not {self.repeat} (and {self.warm_up} to warm up)")
        if not (self.apps and self.sizes and self.variants):
            raise UsageError("nothing to run: name an application, a size and a mode")
        for variant in self.variants:
            for app in self.apps:
                for size in self.sizes:
                    self.options(app, size, variant)

    def options(self, app: Application, size: str, variant: Variant) -> Options:
        """Options of every stage; raise UsageError if they contradict each other."""
        from quoreduce import Options

        known = app.reducers.get("small" if data.parts_in(size) else size)
        reducers = self.reducers if self.reducers is not None else known
        digest = None if variant.mode == "original" else self.digest
        return Options(
            f=variant.f, mode=variant.mode, digest=digest, split_mb=self.split_mb, reducers=reducers,  # type: ignore[arg-type]
            deferred="deferred" not in variant.off, tentative="tentative" not in variant.off,
            digest_outputs="digest_outputs" not in variant.off, tight_storage="tight_storage" not in variant.off,
        )  # fmt: skip


def applications(names: Sequence[str], stages: Literal["code", "readme"] = "code") -> tuple[Application, ...]:
    """Find applications by name; ``stages`` is for monsterQuery. Raise UsageError for names that GridMix does not
    have.
    """
    from quoreduce_gridmix import apps

    for name in names:
        if name not in apps.NAMES:
            raise UsageError(f"--app: {unknown_name(name, (*apps.NAMES, 'all'))}")
    return tuple(Application(name, apps.KINDS[name], apps.jobs_of(name, stages), apps.REDUCES[name]) for name in names)


def compared(fs: Sequence[int], modes: Sequence[str]) -> tuple[Variant, ...]:
    """Variants of some modes, each for every f (the plain one once)."""
    wanted = [Variant(mode, 0 if mode == "original" else f) for mode in modes for f in fs]
    return tuple(dict.fromkeys(wanted))


def ablation(f: int) -> tuple[Variant, ...]:
    """Plain, basic 2f+1, the whole of bft, and bft without one modification each."""
    whole = Variant("bft", f)
    return (Variant("original"), Variant("basic", f), whole, *(Variant("bft", f, (name,)) for name in MODIFICATIONS))


def find_sets(
    folder: str | Path, kinds: Sequence[data.Kind], sizes: Sequence[str] = ()
) -> dict[data.Kind, data.DataSet]:
    """Load the sets that are needed from ``folder``, where each has its name, or which is itself one.

    Raises:
        InputError: one is missing.
        UsageError: one has fewer part files than one of ``sizes`` needs.
    """
    path = Path(folder)
    if (path / data.DESCRIPTION).is_file():
        found = data.load(path)
        sets = {found.kind: found}
    else:
        sets = {kind: data.load(path / kind) for kind in kinds if (path / kind).exists()}
    for kind in kinds:
        if kind not in sets:
            raise InputError(f"no set {kind} in {folder}: quoreduce gridmix generate --set {kind} {folder}")
        for size in sizes:
            sets[kind].files(size)
    return sets


def run_study(
    study: Study, sets: dict[data.Kind, data.DataSet], out: str | Path, session: Session, say: Say = lambda text: None
) -> StudyResults:
    """Run all of it in ``session``; outputs go below ``out``.

    Raises:
        QuoreduceError (exit code 1): outputs of two runs of an application differ, or one is not what was voted on;
            they are kept. And what :meth:`Session.run` raises.
    """
    runs: list[Run] = []
    total = len(study.apps) * len(study.sizes) * len(study.variants) * study.repeat
    for app in study.apps:
        for size in study.sizes:
            folder = Path(out) / size.replace(":", "-") / app.name
            runner = _Runner(study, app, size, sets[app.kind].files(size), folder, session)
            for run in runner.runs():
                runs.append(run)
                number = "again" if run.extra else f"{sum(not r.extra for r in runs)}/{total}"
                disturbed = ", disturbed" if run.noise.dirty else ""
                say(
                    f"[{number}] {app.name}, {size}, {run.variant}: {run.wall_s:.3f} s, "
                    f"{run.cpu_s:.2f} CPU s{disturbed}"
                )
    return StudyResults(
        format=FORMAT, date=now(), versions=versions(), setting=_setting(study, sets, session), runs=runs
    )


def _setting(study: Study, sets: dict[data.Kind, data.DataSet], session: Session) -> StudySetting:
    known: dict[str, DataUsed] = {
        kind: {"nbytes": s.nbytes, "seed": s.seed, "parts": len(s.parts)} for kind, s in sorted(sets.items())
    }
    return StudySetting(
        on=session.on, workers=len(session.workers), domains=len(session.domains), machine=machine(), data=known,
        split_mb=study.split_mb, digest=study.digest,
    )  # fmt: skip


@dataclass(slots=True)
class _Runner:
    """Runs one application at one size."""

    study: Study
    app: Application
    size: str
    files: list[str]
    folder: Path
    session: Session
    _first: tuple[str, str] | None = None

    def runs(self) -> Iterator[Run]:
        """Run every variant in turn, and yield the runs that count; repetitions that were disturbed are made up for."""
        repeat, clean = self.study.repeat, 0
        for repetition in range(-self.study.warm_up, 2 * repeat):
            if clean == repeat:
                break
            disturbed = False
            for variant in self.study.variants:
                run = self._run(variant, repetition)
                disturbed |= run.noise.dirty
                if repetition >= 0:
                    yield structs.replace(run, extra=repetition >= repeat)
            clean += repetition >= 0 and not disturbed
        if not self.study.keep:
            for variant in self.study.variants:
                _clear(self._folder_of(variant))
            with suppress(OSError):  # others' outputs may be there, or files of the user's
                self.folder.rmdir()
                self.folder.parent.rmdir()

    def _folder_of(self, variant: Variant) -> Path:
        return self.folder / variant.name.replace(" ", "-").replace(",", "")

    def _run(self, variant: Variant, repetition: int) -> Run:
        folder = self._folder_of(variant)
        _clear(folder)
        options = self.study.options(self.app, self.size, variant)
        inputs, stages, output, watch = self.files, [], folder, NoiseWatch()
        for number, job in enumerate(self.app.stages, 1):
            output = folder / f"stage-{number}" if len(self.app.stages) > 1 else folder
            result = self.session.run(job, inputs, str(output), options)
            stages.append(result)
            inputs = [str(output)]
        noise = watch.close(sum(result.cpu_s for result in stages))
        digest = self._check(variant, output, stages[-1])
        run = _sum(self.app.name, self.size, variant, [_stage(result) for result in stages])
        return structs.replace(run, repetition=repetition, digest=digest, noise=noise)

    def _check(self, variant: Variant, output: Path, result: Result) -> str:
        """Digest the part files as they lie there, and compare with what was voted on and with all runs before."""
        digest = digest_parts(output)
        where = f"{self.app.name}, {self.size}, {variant.name}"
        if result.algorithm == "blake3" and result.digest != digest:
            raise QuoreduceError(
                f"{where}: the output is not what was voted on; see {output}: quoreduce verify, and report it"
            )
        if self._first is None:
            self._first = variant.name, digest
        name, wanted = self._first
        if digest != wanted:
            raise QuoreduceError(
                f"{where}: the output has other bytes than that of {name} (BLAKE3 {digest[:16]} and {wanted[:16]}); "
                f"both are kept, see {self.folder}"
            )
        return digest


def digest_parts(output: Path) -> str:
    """Digest the part files of an output as they lie there: what a manifest says of the whole, for blake3, whatever it
    says.

    Raises:
        OutputError: it is no output of a job, or cannot be read.
    """
    from quoreduce.data.digest import Digester
    from quoreduce.data.manifest import ManifestPart, output_digest, read_manifest

    digester, parts = Digester("blake3"), []
    try:
        for part in read_manifest(str(output)).parts:
            path = output / part.name
            parts.append(ManifestPart(part.name, digester.file(path).hex(), path.stat().st_size, part.records))
    except OSError as error:
        raise OutputError(f"cannot read {output}: {error.strerror or error}") from error
    return output_digest(parts)


def _clear(folder: Path) -> None:
    """Delete the outputs of the run before, outside of what is timed; OutputError if there is anything else."""
    with output_errors(folder):
        for stage in sorted(folder.glob("stage-*")):
            remove_output(stage)
        remove_output(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)


def _stage(result: Result) -> JobStage:
    return JobStage(
        job=result.job, wall_s=result.wall_s, cpu_s=result.cpu_s,
        bytes=Amounts(result.bytes_in, result.bytes_out, result.bytes_stored, result.bytes_shipped),
        executions=dict(result.executions), counters=dict(result.counters), splits=result.splits, parts=result.parts,
        reexecutions=result.reexecutions, faults_detected=result.faults.detected,
    )  # fmt: skip


def _sum(app: str, size: str, variant: Variant, stages: list[JobStage]) -> Run:
    amounts = [stage.bytes for stage in stages]
    return Run(
        app=app, size=size, variant=variant.name, mode=variant.mode, f=variant.f, off=list(variant.off), repetition=0,
        wall_s=sum(stage.wall_s for stage in stages), cpu_s=sum(stage.cpu_s for stage in stages),
        bytes=Amounts(
            sum(a.read for a in amounts), sum(a.written for a in amounts),
            sum(a.stored for a in amounts), sum(a.shipped for a in amounts),
        ),
        executions=_added([stage.executions for stage in stages]),
        counters=_added([stage.counters for stage in stages]),
        digest="", splits=sum(stage.splits for stage in stages), noise=UNKNOWN, stages=stages,
    )  # fmt: skip


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for name, n in count.items():
            total[name] = total.get(name, 0) + n
    return total
