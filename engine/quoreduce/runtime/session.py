"""Sessions: workers that are started once and run jobs one after the other; and :func:`run`, which makes one for a single job."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import cloudpickle
from msgspec import structs

import quoreduce
from quoreduce.data.commit import Output, open_output, part_name
from quoreduce.data.digest import Digester
from quoreduce.data.formats import parse_format
from quoreduce.data.inputs import Split, check_unchanged, local_path, plan_splits
from quoreduce.data.manifest import InputFile, Manifest, Part, VerifyReport, read_manifest, verify_output
from quoreduce.errors import NotDeterministic, OutputError, TooFewDomains, UsageError
from quoreduce.job import Job, record_width
from quoreduce.runtime import wire
from quoreduce.runtime.compile import ensure_kernels
from quoreduce.runtime.driver import Driver
from quoreduce.runtime.figures import Progress
from quoreduce.runtime.options import Options, Place, Result
from quoreduce.runtime.port import Executor, WorkerInfo, cores
from quoreduce.runtime.stragglers import renew
from quoreduce.runtime.suspects import Memory

if TYPE_CHECKING:
    from quoreduce.runtime.durable import Life
    from quoreduce.runtime.gate import Gate

REDUCERS_USUAL = 16
PART_BYTES_USUAL = 256_000_000
EXPANSION_USUAL = 4  # of text by zlib, and of the sets of GridMix
Report = Callable[[Progress], None]


class Session:
    """Workers on one machine or a cluster; a context manager. Jobs run one at a time.

    >>> with Session(Place(on="local")) as session:
    ...     result = session.run(job, ["input.txt"], "output", Options(f=1))
    """

    def __init__(self, place: Place | None = None, say: Callable[[str], None] = lambda text: None) -> None:
        self.place = place or Place()
        self.on = self.place.on or ("ray" if self.place.address or os.environ.get("RAY_ADDRESS") else "local")
        self._say = say
        self._executor: Executor | None = None
        self._workers: dict[str, WorkerInfo] = {}
        self._generation = 0
        self._late: set[str] = set()
        self._known: set[str] = set()

    def __enter__(self) -> Session:
        ensure_kernels(self._say)
        self._executor = _executor(self.on, self.place)
        try:
            self._workers = {info.name: info for info in self._executor.start()}
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and delete what they stored."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    @property
    def domains(self) -> list[str]:
        """Names of the failure domains."""
        return sorted({info.domain for info in self._workers.values()})

    @property
    def workers(self) -> list[WorkerInfo]:
        """The workers that are alive."""
        return list(self._workers.values())

    def run(
        self, job: Job, inputs: Sequence[str], output: str, options: Options | None = None,
        report: Report = lambda progress: None,
    ) -> Result:  # fmt: skip
        """Run one job.

        Args:
            job: what to run. inputs: files, directories, globs, URIs. output: a directory or URI that does not exist yet.
            options: how. report: called often, with the progress.

        Raises:
            InputError, OutputError, UsageError: nothing was run. JobError: the job's own code failed. NoQuorum, TooFewDomains,
            NotDeterministic, HostError: see :mod:`quoreduce.errors`. In all these cases nothing is published.
        """
        options = options or Options()
        self._make_ready(options)
        if options.durable and local_path(output) is None:
            raise UsageError("--durable keeps its journal beside the output, so that has to be a directory, not a URI")
        start, cpu = time.perf_counter(), time.process_time()
        split_bytes = _split_bytes(job, options)
        splits = plan_splits(inputs, parse_format(job.input), split_bytes)
        reducers = options.reducers or usual_reducers(splits, job)
        job_id = secrets.token_hex(6)
        with contextlib.ExitStack() as stack:
            scratch = Path(_scratch(output, job_id))
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            place = open_output(output, options.overwrite, inputs, job_id, scratch, options.sync)
            stack.callback(place.abort)
            key = secrets.token_bytes(16) if options.algorithm == "fast" else b""
            setup = self._setup(job, pickle_job(job), options, splits, reducers, key)
            life = None
            if options.durable:
                from quoreduce.runtime.durable import begin

                where = replace(self.place, on=self.on)
                life = begin(place, job, setup, where, inputs, splits, split_bytes, options)
            result = self._complete(job, options, splits, setup, place, output, report, life)
        return self._timed(result, start, cpu)

    def resume(self, output: str, report: Report = lambda progress: None) -> Result:
        """Go on with the durable job that was writing ``output`` and was cut short, on the workers of this session.

        Raises:
            JournalError: there is none, its journal is corrupt, or its inputs have changed; and as :meth:`run`.
        """
        from quoreduce.runtime.durable import reopen

        with reopen(output) as life:
            return self.go_on(life, report)

    def go_on(self, life: Life, report: Report = lambda progress: None) -> Result:
        """The same for a job that was taken up already."""
        start, cpu = time.perf_counter(), time.process_time()
        self._make_ready(life.options)
        job, header = life.job(), life.header
        setup = self._setup(job, header.job, life.options, life.splits, header.reducers, header.key)
        result = self._complete(job, life.options, life.splits, setup, life.place, str(life.place.path), report, life)
        return self._timed(result, start, cpu)

    def _complete(
        self, job: Job, options: Options, splits: Sequence[Split], setup: wire.Setup, place: Output, output: str, report: Report,
        life: Life | None,
    ) -> Result:  # fmt: skip
        """Run a job that is planned to its end, and publish its output."""
        assert self._executor is not None, "domains were checked"
        if life is not None:
            setup = structs.replace(setup, store=life.store())
        result = Result(job.name, options.mode, options.f, self.on, output, options.algorithm)
        gate = self._gate(job, options, len(splits), setup.reducers)
        heeded = not options.faults if options.suspects is None else options.suspects
        memory = Memory(self._workers.values(), heeded, self._say)
        driver = Driver(
            job, options, splits, setup.reducers, place, self._executor, self._workers, setup, result, report, gate, life,
            memory.known(),
        )  # fmt: skip
        with contextlib.nullcontext() if life is None else life.kept():
            try:
                driver.run()
            except NotDeterministic:
                memory.drop()
                raise
            finally:
                memory.note(driver.standings())
                self._late = driver.left_behind()
                self._known |= driver.newcomers
            manifest = _manifest(job, options, splits, setup.key, driver)
            raw = manifest.encode()
            check_unchanged(splits)
            place.finish(raw, driver.receipt(raw))
        result.digest, result.records_out, result.bytes_out = manifest.digest, manifest.records_out, manifest.bytes_out
        result.bytes_in = manifest.bytes_in
        result.splits, result.parts = len(splits), setup.reducers
        return result

    def _timed(self, result: Result, start: float, cpu: float) -> Result:
        result.wall_s = time.perf_counter() - start
        result.cpu_s = time.process_time() - cpu + (0.0 if self.on == "inline" else result.cpu_s)
        return result

    def _setup(
        self, job: Job, raw: bytes, options: Options, splits: Sequence[Split], reducers: int, key: bytes
    ) -> wire.Setup:
        self._generation += 1
        sources = tuple(splits) if job.sample is not None else ()
        gone = tuple(sorted(self._known - self._workers.keys()))  # what they stored, their node kept for that job alone
        self._known = set(self._workers)
        return wire.Setup(
            self._generation, raw, options.algorithm, key, reducers, options.seed, sources, len(splits), gone=gone
        )  # fmt: skip

    def _gate(self, job: Job, options: Options, maps: int, reducers: int) -> Gate | None:
        """What holds answers back until there is evidence for them, if the job is to be attested."""
        if options.attest is None:
            return None
        from quoreduce.runtime.gate import Gate
        from quoreduce.runtime.trusted import job_record, look_up

        executor = self._executor
        assert executor is not None
        record = job_record(job, options, maps, reducers)
        return Gate(look_up(options.attest), record, lambda worker, request: executor.submit(worker, wire.encode(request)))

    def _make_ready(self, options: Options) -> None:
        """Replace workers that are still busy with an earlier job, and see whether there are enough for this one."""
        if self._executor is None:
            raise UsageError("use a Session as a context manager: with Session(...) as session")
        renew(self._executor, self._workers, self._late)
        need = options.replicas_needed
        have = self.domains
        if len(have) < need:
            raise TooFewDomains(
                f"f={options.f} needs {need} failure domains, there {'is' if len(have) == 1 else 'are'} {len(have)} "
                f"({', '.join(have)}): use more machines or cores, a smaller -f, or --domain worker --workers {need + 1} "
                "(enough for transient faults only)"
            )


def run(
    job: Job, inputs: Sequence[str] | str, output: str, *, on: str | None = None, workers: int | None = None,
    domain: str | None = None, address: str | None = None, store: str | None = None, **options: Any,
) -> Result:  # fmt: skip
    """Run one job on workers of its own and return its :class:`Result`.

    Args:
        job: what to run.
        inputs: one or several files, directories, globs, URIs.
        output: a directory that does not exist yet.
        on: ``local``, ``ray`` or ``inline``; this, workers, domain, address and store: see :class:`Place`.
        options: fields of :class:`Options`.
    """
    place = Place(on, workers, domain, address, store)  # type: ignore[arg-type]
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise UsageError(str(error).replace("Options.__init__()", "run()")) from error
    with Session(place) as session:
        return session.run(job, [inputs] if isinstance(inputs, str) else inputs, output, chosen)


def resume(
    output: str, *, on: str | None = None, workers: int | None = None, domain: str | None = None, address: str | None = None,
    store: str | None = None,
) -> Result:  # fmt: skip
    """Go on with the durable job that was writing ``output`` and was cut short; only what was not agreed on is executed.

    Args:
        output: the directory that was named when the job was begun.
        on, workers, domain, address, store: see :class:`Place`; None: as before.
    """
    from quoreduce.runtime.durable import reopen

    with reopen(output) as life:
        place = life.where(on=on, workers=workers, domain=domain, address=address, store=store)
        with Session(place) as session:
            return session.go_on(life)


def verify(output: str) -> VerifyReport:
    """Recompute the digest of every part of ``output`` and compare it with the manifest; raise OutputError if there is none."""
    manifest = read_manifest(output)
    algorithm = manifest.digest_algorithm
    try:
        digester = Digester(algorithm, bytes.fromhex(manifest.digest_key or ""))  # type: ignore[arg-type]
    except UsageError as error:
        raise OutputError(f"{output}/_SUCCESS: {error}") from error
    stride = manifest.extras.get("stride", 128)
    if not isinstance(stride, int) or not 1 <= stride <= 1 << 16:
        raise OutputError(f"{output}/_SUCCESS: stride {stride!r} is not a width in bytes")
    return verify_output(output, lambda path: digester.file(path, stride))


def usual_reducers(splits: Sequence[Split], job: Job) -> int:
    """Choose the number of parts from the input and the job alone, so that output does not depend on workers.

    What is compressed counts EXPANSION_USUAL times its size: ``.gz`` and ``.zst`` members, and SequenceFiles, which mostly are.
    """
    packed = [job.input == "sequence" or split.compression != "none" for split in splits]
    nbytes = sum(split.length * (EXPANSION_USUAL if more else 1) for split, more in zip(splits, packed, strict=True))
    if job.part_bytes:
        return max(1, -(-nbytes // job.part_bytes))
    return max(1, min(len(splits), REDUCERS_USUAL), -(-nbytes // PART_BYTES_USUAL))


def _split_bytes(job: Job, options: Options) -> int:
    width = record_width(job.input)
    return max(width, options.split_bytes // width * width) if width else options.split_bytes


def _scratch(output: str, job_id: str) -> str:
    import tempfile

    return os.path.join(tempfile.gettempdir(), f"quoreduce-upload-{job_id}")


def _executor(on: str, place: Place) -> Executor:
    if on == "inline":
        from quoreduce.runtime.inline import InlineExecutor

        if place.domain not in (None, "worker"):
            raise UsageError("inline has domains in name only: use --domain worker")
        return InlineExecutor(place.workers or 3, place.store)
    if on == "local":
        from quoreduce.runtime.local import LocalExecutor

        return LocalExecutor(place.workers or len(cores()), place.domain or "core", place.store)
    from quoreduce.runtime.ray import RayExecutor

    return RayExecutor(place)


def _manifest(job: Job, options: Options, splits: Sequence[Split], key: bytes, driver: Driver) -> Manifest:
    inputs = [InputFile(split.path, split.size) for split in splits if split.start == 0]
    parts = [Part(part_name(i), p.digest.hex(), p.nbytes, p.records) for i, p in enumerate(driver.parts())]
    return Manifest.build(
        quoreduce=quoreduce.__version__, job=job.name, mode=options.mode, f=options.f, digest_algorithm=options.algorithm,
        digest_key=key.hex() or None, parts=parts, inputs=inputs,
        records_in=driver.result.records_in, extras={"stride": record_width(job.output) or 128, "output": job.output},
    )  # fmt: skip


def pickle_job(job: Job) -> bytes:
    """Pickle a job, or raise UsageError; modules that are not installed (a script, a notebook, a file) go by value."""
    registered: list[ModuleType] = []
    try:
        for function in (job.map, job.reduce, job.combine, job.partition, job.sample):
            module = sys.modules.get(getattr(function, "__module__", None) or "")
            if module is not None and module.__name__ != "__main__" and not _installed(module):
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        return bytes(cloudpickle.dumps(job))
    except Exception as error:
        raise UsageError(f"job {job.name} cannot be sent to workers: {type(error).__name__}: {error}") from error
    finally:
        for module in registered:
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)


def _installed(module: ModuleType) -> bool:
    if module.__name__.partition(".")[0] in ("quoreduce", "quoreduce_kernels", "quoreduce_gridmix"):
        return True
    path = getattr(module, "__file__", None)
    roots = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return path is None or any(path.startswith(root) for root in roots)
