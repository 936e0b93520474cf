"""Sessions: workers that are started once and run jobs one after the other; and :func:`run`, for a single job."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Unpack

import cloudpickle
from msgspec import structs

from quoreduce import interrupts
from quoreduce.data.commit import OutputPlace, open_output, part_name
from quoreduce.data.digest import Digester
from quoreduce.data.formats import parse_format
from quoreduce.data.manifest import InputFile, Manifest, ManifestPart, VerifyReport, read_manifest, verify_output
from quoreduce.data.splits import Split, check_unchanged, is_uri, local_path, plan_splits
from quoreduce.driver.driver import Driver
from quoreduce.driver.figures import Progress, assurance
from quoreduce.driver.jobstate import JobState
from quoreduce.driver.plain import OpenGate, PlainRun
from quoreduce.driver.result import Result
from quoreduce.driver.stragglers import replace_busy_workers
from quoreduce.driver.suspects import Memory
from quoreduce.errors import NotDeterministic, OutputError, TooFewDomains, UsageError, host_errors
from quoreduce.job import Job, record_width
from quoreduce.protocol import wire
from quoreduce.protocol.compile import use_kernels
from quoreduce.protocol.options import On, Options, OptionsGiven, Place
from quoreduce.protocol.port import Domain, Executor, WorkerInfo, cores
from quoreduce.runtime.turns import Turns
from quoreduce.scratch import make_folder
from quoreduce.version import __version__

if TYPE_CHECKING:
    from quoreduce.driver.durable import DurableRun

REDUCERS_USUAL = 16
PART_BYTES_USUAL = 256_000_000
EXPANSION_USUAL = 4  # of text by zlib, and of the sets of GridMix
Report = Callable[[Progress], None]
_PICKLING = threading.Lock()


class Session:
    """Workers on one machine or a cluster; a context manager. Jobs run one at a time.

    It belongs to the process that opened it: a forked one can neither use nor close it. It is closed when the process
    ends, by SIGINT, SIGTERM or SIGHUP too, if it was opened in the main thread and the script has no handlers of its
    own for them.

    Attributes:
        published: the output of the last job that was published.

    >>> with Session(Place(on="local")) as session:
    ...     result = session.run(job, ["input.txt"], "output", Options(f=1))

    Threads may share a session: their jobs run one after the other, in the order of the calls. To run two jobs at once
    use two sessions. A report callback cannot run another job on its own session (UsageError). :meth:`close` stops the
    job that another thread runs, and those that wait: they raise UsageError and publish nothing. It returns when they
    no longer use the workers. A session that is closed can be entered again, with new workers.
    """

    def __init__(self, place: Place | None = None, say: Callable[[str], None] = lambda text: None) -> None:
        self.place = place or Place()
        self.on = self.place.on or ("ray" if self.place.address or os.environ.get("RAY_ADDRESS") else "local")
        self._say = say
        self._turns = Turns()
        self._stopping = threading.RLock()
        self._executor: Executor | None = None
        self._workers: dict[str, WorkerInfo] = {}
        self._generation = 0
        self._late: set[str] = set()
        self._known: set[str] = set()
        self._pid = 0
        self._took = False
        self.published: str | None = None

    @host_errors("cannot start workers")
    def __enter__(self) -> Session:
        with interrupts.scope(), self._turns.first():
            self._took = interrupts.take()
            try:
                use_kernels(self._say)
                with interrupts.held():
                    self._pid = os.getpid()
                    self._executor = _executor(self.on, self.place)
                self._workers = {info.name: info for info in self._executor.start()}
                atexit.register(self.close)  # only now: it is to come before what a library that was loaded registers
            except BaseException:
                self._stop()
                self._give_back()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @host_errors("cannot stop workers")
    def close(self) -> None:
        """Stop the workers and delete what they stored; first the job that another thread runs, if any, is stopped.

        In another process than the one that opened it this does nothing.
        """
        if self._pid == os.getpid():
            with interrupts.scope():
                try:
                    self._turns.close()
                finally:
                    self._stop()
                    atexit.unregister(self.close)
                    self._give_back()

    def _give_back(self) -> None:
        if self._took:
            self._took = False
            interrupts.give_back()

    def _stop(self) -> None:
        with interrupts.held():
            with self._stopping:
                executor, self._executor = self._executor, None
            if executor is not None:
                executor.close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One job: this thread's turn, which a signal ends through its clean-up."""
        if self._pid not in (0, os.getpid()):
            raise UsageError(f"this Session belongs to process {self._pid}, which opened it: open one in this process")
        with interrupts.scope(), self._turns.take():
            yield

    @property
    def domains(self) -> list[str]:
        """Names of the failure domains."""
        return sorted({info.domain for info in self.workers})

    @property
    def workers(self) -> list[WorkerInfo]:
        """The workers that are alive."""
        return list(self._workers.values())

    @host_errors("the machine failed")
    def run(
        self, job: Job, inputs: Sequence[str], output: str, options: Options | None = None,
        report: Report = lambda progress: None,
    ) -> Result:  # fmt: skip
        """Run one job.

        Args:
            job: what to run.
            inputs: files, directories, globs, URIs.
            output: a directory or URI that does not exist yet.
            options: how to run it; None: the defaults.
            report: called often, with the progress.

        Raises:
            UsageError: nothing was run; as with the next two.
            InputError: an input is missing, unreadable or not of the job's format.
            OutputError: the output exists, or cannot be written.
            JobError: the job's own code failed.
            NotDeterministic: the job disagrees with itself.
            NoQuorum: no output of a task won a vote.
            TooFewDomains: there are fewer than f+1 failure domains.
            HostError: the machine or the cluster failed. In none of these cases anything is published.
        """
        with self._turn():
            return self._run(job, inputs, output, options or Options(), report)

    def _run(self, job: Job, inputs: Sequence[str], output: str, options: Options, report: Report) -> Result:
        self._make_ready(options)
        if options.durable and local_path(output) is None:
            raise UsageError("--durable keeps its journal beside the output, so that has to be a directory, not a URI")
        start, cpu = time.perf_counter(), time.process_time()
        split_bytes = _split_bytes(job, options)
        splits = plan_splits(inputs, parse_format(job.input), split_bytes)
        reducers = options.reducers or usual_reducers(splits, job)
        job_id = secrets.token_hex(6)
        with contextlib.ExitStack() as stack:
            with interrupts.held():
                scratch = _scratch(output, stack)
                place = open_output(output, options.overwrite, inputs, job_id, scratch, options.sync)
                stack.callback(place.abort)
            key = secrets.token_bytes(16) if options.algorithm == "fast" else b""
            setup = self._setup(job, pickle_job(job), options, splits, reducers, key)
            run = PlainRun()
            if options.durable:
                from quoreduce.driver.durable import begin

                where = replace(self.place, on=self.on)
                run = begin(place, job, setup, where, inputs, splits, split_bytes, options)
            result = self._complete(job, options, splits, setup, place, output, report, run, start)
        return self._counted(result, cpu)

    def resume(self, output: str, report: Report = lambda progress: None, job: Job | None = None) -> Result:
        """Go on with the durable job that was writing ``output`` and was cut short, on the workers of this session.

        Args:
            output: the directory that was named when the job was begun.
            report: called often, with the progress.
            job: the job that it has to be; None: the job of the journal, which has to be this user's own file.

        Raises:
            JournalError: there is no journal, it is corrupt, not this user's or of another job, or inputs have changed.
            QuoreduceError: as :meth:`run`.
        """
        from quoreduce.driver.durable import reopen

        with self._turn(), reopen(output, None if job is None else pickle_job(job)) as begun:
            return self._go_on(begun, report)

    @host_errors("the machine failed")
    def go_on(self, begun: DurableRun, report: Report = lambda progress: None) -> Result:
        """Resume a durable job that was taken up already."""
        with self._turn():
            return self._go_on(begun, report)

    def _go_on(self, begun: DurableRun, report: Report) -> Result:
        start, cpu = time.perf_counter(), time.process_time()
        self._make_ready(begun.options)
        job, header = begun.job(), begun.header
        setup = self._setup(job, header.job, begun.options, begun.splits, header.reducers, header.key)
        result = self._complete(
            job, begun.options, begun.splits, setup, begun.place, str(begun.place.path), report, begun, start
        )
        return self._counted(result, cpu)

    def _complete(
        self, job: Job, options: Options, splits: Sequence[Split], setup: wire.Setup, place: OutputPlace, output: str,
        report: Report, run: PlainRun, start: float,
    ) -> Result:  # fmt: skip
        """Run a planned job to its end, publish its output, and diagnose what was masked. ``start``: by the clock."""
        assert self._executor is not None, "domains were checked"
        report = self._turns.heed(report)
        setup = structs.replace(setup, store=run.store())
        result = Result(job.name, options.mode, options.f, self.on, output, options.algorithm)
        gate = self._gate(job, options, len(splits), setup.reducers)
        heeded = not options.faults if options.suspects is None else options.suspects
        memory = Memory(self._workers.values(), heeded, self._say)
        state = JobState(job, options, splits, place, self._executor, self._workers, setup, result)
        driver = Driver(state, report, gate, run, memory.known())
        try:
            with run.kept():
                driver.run()
                manifest = _manifest(job, options, splits, setup.key, driver)
                raw = manifest.encode()
                receipt = driver.receipt(raw)
                check_unchanged(splits)
                with interrupts.held():
                    place.commit(raw, receipt)
                    self.published = output
            result.wall_s = time.perf_counter() - start
            try:
                driver.diagnose()
            finally:
                place.abort()
        except NotDeterministic:
            memory.drop()
            raise
        finally:
            memory.note(driver.standings())
            self._late = driver.left_behind()
            self._known |= driver.newcomers
        result.digest, result.records_out, result.bytes_out = manifest.digest, manifest.records_out, manifest.bytes_out
        result.bytes_in = manifest.bytes_in
        result.splits, result.parts = len(splits), setup.reducers
        return result

    def _counted(self, result: Result, cpu: float) -> Result:
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

    def _gate(self, job: Job, options: Options, maps: int, reducers: int) -> OpenGate:
        """The gate that holds answers back until there is evidence for them; an open one if the job is not attested."""
        if options.attest is None:
            return OpenGate()
        from quoreduce.driver.gate import EvidenceGate
        from quoreduce.driver.trusted import job_record, look_up

        executor = self._executor
        assert executor is not None
        record = job_record(job, options, maps, reducers)
        return EvidenceGate(
            look_up(options.attest), record, lambda worker, request: executor.submit(worker, wire.encode(request))
        )

    def _make_ready(self, options: Options) -> None:
        """Replace workers that are still busy with an earlier job, and see whether there are enough for this one."""
        assert self._executor is not None, "it has its turn"
        replace_busy_workers(self._executor, self._workers, self._late)
        need = options.replicas_needed
        have = self.domains
        if len(have) < need:
            raise TooFewDomains(
                f"f={options.f} needs {need} failure domains, there {'is' if len(have) == 1 else 'are'} {len(have)} "
                f"({', '.join(have)}): use more machines or cores, a smaller -f, or --domain worker --workers "
                f"{need + 1} (enough for transient faults only)"
            )


def run(
    job: Job, inputs: Sequence[str] | str, output: str, *, on: On | None = None, workers: int | None = None,
    domain: Domain | None = None, address: str | None = None, store: str | None = None, **options: Unpack[OptionsGiven],
) -> Result:  # fmt: skip
    """Run one job on workers of its own and return its :class:`Result`.

    Args:
        job: what to run.
        inputs: one or several files, directories, globs, URIs.
        output: a directory that does not exist yet.
        on: ``local``, ``ray`` or ``inline``, see :class:`Place`.
        workers: see :class:`Place`.
        domain: see :class:`Place`.
        address: see :class:`Place`.
        store: see :class:`Place`.
        options: fields of :class:`Options`.
    """
    place = Place(on, workers, domain, address, store)
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise UsageError(str(error).replace("Options.__init__()", "run()")) from error
    with Session(place) as session:
        return session.run(job, [inputs] if isinstance(inputs, str) else inputs, output, chosen)


@host_errors("the machine failed")
def resume(
    output: str, *, job: Job | None = None, on: On | None = None, workers: int | None = None,
    domain: Domain | None = None, address: str | None = None, store: str | None = None,
) -> Result:  # fmt: skip
    """Go on with the durable job that was writing ``output`` and was cut short; only what was not agreed on is
    executed.

    Args:
        output: the directory that was named when the job was begun.
        job: the job that it has to be, by the digest of its code; None: the job of the journal.
        on: see :class:`Place`; None, here and below: as before.
        workers: see :class:`Place`.
        domain: see :class:`Place`.
        address: see :class:`Place`.
        store: see :class:`Place`.
    """
    from quoreduce.driver.durable import reopen

    with reopen(output, None if job is None else pickle_job(job)) as begun:
        place = begun.where(on=on, workers=workers, domain=domain, address=address, store=store)
        with Session(place) as session:
            return session.go_on(begun)


@host_errors("the machine failed")
def verify(output: str) -> VerifyReport:
    """Recompute the digest of every part of ``output`` and compare it with the manifest; raise OutputError if there is
    none.
    """
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

    What is compressed counts EXPANSION_USUAL times its size: ``.gz`` and ``.zst`` members, and SequenceFiles, which
    mostly are.
    """
    packed = [job.input == "sequence" or split.compression != "none" for split in splits]
    nbytes = sum(split.length * (EXPANSION_USUAL if more else 1) for split, more in zip(splits, packed, strict=True))
    if job.part_bytes:
        return max(1, -(-nbytes // job.part_bytes))
    return max(1, min(len(splits), REDUCERS_USUAL), -(-nbytes // PART_BYTES_USUAL))


def _split_bytes(job: Job, options: Options) -> int:
    width = record_width(job.input)
    return max(width, options.split_bytes // width * width) if width else options.split_bytes


def _scratch(output: str, stack: contextlib.ExitStack) -> Path:
    """A folder for the parts of an output behind a URI, until they are uploaded; others need none."""
    root = Path(tempfile.gettempdir())
    if not is_uri(output):
        return root
    hold = make_folder(root, "upload")
    stack.callback(hold.remove)
    return hold.path


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
    parts = [ManifestPart(part_name(i), p.digest.hex(), p.nbytes, p.records) for i, p in enumerate(driver.parts())]
    return Manifest.build(
        quoreduce=__version__, job=job.name, mode=options.mode, f=options.f, digest_algorithm=options.algorithm,
        digest_key=key.hex() or None, parts=parts, inputs=inputs,
        records_in=driver.state.result.records_in,
        extras={"stride": record_width(job.output) or 128, "output": job.output}
        | assurance(options, driver.state.agreed, len(parts)),
    )  # fmt: skip


def pickle_job(job: Job) -> bytes:
    """Pickle a job, or raise UsageError; modules that are not installed (a script, a notebook, a file) go by value.

    That is a setting of the whole process: one thread at a time does this, and what the user has set stays as it is.
    """
    with _PICKLING:
        return _pickled(job)


def _pickled(job: Job) -> bytes:
    functions = (job.map, job.reduce, job.combine, job.partition, job.sample)
    modules = {module for function in functions if (module := _module_of(function)) is not None}
    before = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in modules if module.__name__ not in before]
    try:
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        return bytes(cloudpickle.dumps(job))
    except Exception as error:
        raise UsageError(f"job {job.name} cannot be sent to workers: {type(error).__name__}: {error}") from error
    finally:
        for module in added:
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)


def _module_of(function: object) -> ModuleType | None:
    """The module of a job's function, if it has to go by value."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return None if module is None or module.__name__ == "__main__" or _installed(module) else module


def _installed(module: ModuleType) -> bool:
    if module.__name__.partition(".")[0] in ("quoreduce", "quoreduce_kernels", "quoreduce_gridmix"):
        return True
    path = getattr(module, "__file__", None)
    roots = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return path is None or any(path.startswith(root) for root in roots)
