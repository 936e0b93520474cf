"""``quoreduce check``: run a job over a sample of its input under several settings, and name what it depends on but
should not.

The reference is one run of every task by one worker. Every other run is compared with it, digest by digest; where one
differs, what it changes is tried one by one, and the first differing record is looked up. That all runs agree proves
nothing.
"""

from __future__ import annotations

import contextlib
import dis
import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from quoreduce.commands.check.difference import Difference, first_difference
from quoreduce.commands.check.settings import NAMES, REPEAT, Change, Setting, find_settings
from quoreduce.data.formats import parse_format
from quoreduce.data.splits import Split, plan_splits
from quoreduce.errors import HostError, InputError, JobError
from quoreduce.job import Job, record_width
from quoreduce.limits import NUMBERS
from quoreduce.printable import printable
from quoreduce.protocol.compile import ensure_kernels
from quoreduce.protocol.port import cores
from quoreduce.runtime.rehearse import OutOfTime, Rehearsal, RehearsalPlan, RehearsedTask
from quoreduce.runtime.session import pickle_job, usual_reducers
from quoreduce.scratch import temporary_folder

SPLITS_USUAL = 16
SPLITS_LEAST = 8  # of an input that is smaller than the sample
ROLES = ("map", "combine", "partition", "reduce", "sample")
SPLITS_FEW = 4
CUT = 8  # into so many pieces a split is cut, of which one is kept
SHARE = 20  # of the time limit, for one run: else the sample is made smaller
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """A setting under which the job's output differs. ``hints``: what was seen in the job's code; the rest: see
    Setting.
    """

    setting: str
    what: str
    cause: str
    hidden: str
    hints: tuple[str, ...]
    difference: Difference


@dataclass(slots=True)
class Report:
    """The settings that were tried (setting -> its text) or left out (setting -> why), and the findings. Sizes in
    bytes.
    """

    job: str
    input_bytes: int
    sample_bytes: int
    splits: int
    parts: int
    tried: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    findings: list[CheckFinding] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def agreed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def check(
    job: Job, inputs: Sequence[str], *, sample_mb: float = 16.0, limit_s: float = 60.0, settings: Sequence[str] = (),
    reducers: int | None = None, say: Say = lambda text: None,
) -> Report:  # fmt: skip
    """Run ``job`` under several settings and return what was found; nothing is published.

    Args:
        job: what to check.
        inputs: as for a run.
        sample_mb: bound on the input that is read, in MB as stored (or one split).
        limit_s: bound on the whole, in seconds; the sample is made smaller, and settings are left out, to keep it.
        settings: names of settings; none: all that are cheap.
        reducers: number of parts.
        say: told what takes long.

    Raises:
        InputError, UsageError: nothing was run.
        JobError: the job fails already in the reference.
        HostError: a worker died there, or it did not end in time, or no setting could be tried.
    """
    try:
        return _check(job, inputs, sample_mb, limit_s, settings, reducers, say)
    except (
        InputError,
        JobError,
    ) as error:  # they advise on the option of a run; here it is the sample that makes the splits
        raise type(error)(str(error).replace("--split-mb", "--sample-mb")) from error


def _check(
    job: Job, inputs: Sequence[str], sample_mb: float, limit_s: float, settings: Sequence[str], reducers: int | None,
    say: Say
) -> Report:  # fmt: skip
    NUMBERS["sample_mb"].checked("sample_mb", sample_mb)
    NUMBERS["time_limit_s"].checked("limit_s", limit_s)
    if reducers is not None:
        NUMBERS["reducers"].checked("reducers", reducers)
    wanted = find_settings(NAMES if not settings or "all" in settings else settings)
    planned, picked = _sample(job, inputs, round(sample_mb * 1e6))
    plan = RehearsalPlan(pickle_job(job), picked, reducers or usual_reducers(picked, job), job.sample is not None)
    ensure_kernels(say)
    start = time.monotonic()
    with temporary_folder("check") as folder:
        checker = _Checker(job, plan, folder, start, limit_s)
        report = checker.run(_affordable(job, wanted, bool(settings), checker.left_out))
    report.input_bytes = sum(split.length for split in planned)
    report.wall_s = time.monotonic() - start
    return report


def _affordable(job: Job, wanted: list[Setting], named: bool, left_out: dict[str, str]) -> list[Setting]:
    """Leave numba out unless the job has kernels of its own: to compile ours, which are whole-number code, takes a
    minute.
    """
    if named or _uses_numba(job):
        return wanted
    left_out["numba"] = "the job names no kernels of its own; --settings numba tries it, and may compile for a minute"
    return [setting for setting in wanted if setting.name != "numba"]


def _uses_numba(job: Job) -> bool:
    """Whether a module with a function of the job holds numba, or something that numba made."""
    for role in ROLES:
        function = getattr(job, role)
        for value in getattr(getattr(function, "__func__", function), "__globals__", {}).values():
            names = (getattr(value, "__name__", ""), type(value).__module__)
            if any(str(name).partition(".")[0] == "numba" for name in names):
                return True
    return False


def _sample(job: Job, inputs: Sequence[str], nbytes: int) -> tuple[tuple[Split, ...], tuple[Split, ...]]:
    """Return all splits, and of them up to SPLITS_USUAL that are spread over the input, numbered anew."""
    records = parse_format(job.input)
    width = record_width(job.input)
    planned = plan_splits(inputs, records, max(1, width, nbytes // SPLITS_USUAL))
    total = sum(split.length for split in planned)
    if total == 0:
        raise InputError("there is nothing in the input to check the job with")
    if total <= nbytes:
        planned = plan_splits(inputs, records, max(1, width, -(-total // SPLITS_LEAST)))
    return planned, _thinned(planned, SPLITS_USUAL, nbytes)


def _thinned(splits: tuple[Split, ...], count: int, nbytes: int) -> tuple[Split, ...]:
    count = min(count, len(splits)) if sum(split.length for split in splits) > nbytes else len(splits)
    picked: list[Split] = []
    for i in range(count):
        split = splits[i * len(splits) // count]
        if picked and sum(one.length for one in picked) + split.length > nbytes:
            break
        picked.append(replace(split, index=len(picked)))
    return tuple(picked)


def _smaller(job: Job, splits: tuple[Split, ...]) -> tuple[Split, ...]:
    """Make less of a sample: fewer splits, then shorter ones where they can be cut, then one; or nothing."""
    if len(splits) > SPLITS_FEW:
        return _thinned(splits, SPLITS_FEW, sum(split.length for split in splits) - 1)
    width = record_width(job.input) or 1
    if job.input != "sequence":
        lengths = [
            max(1, one.length // CUT // width) * width if one.compression == "none" else one.length for one in splits
        ]
        if any(length < split.length for length, split in zip(lengths, splits, strict=True)):
            return tuple(replace(split, length=length) for length, split in zip(lengths, splits, strict=True))
    return splits[:1] if len(splits) > 1 else ()


class _Checker:
    """Runs the reference, then the settings, as many at a time as there are cores."""

    def __init__(self, job: Job, plan: RehearsalPlan, folder: Path, start: float, limit_s: float) -> None:
        self._job = job
        self._plan = plan
        self._folder = folder
        self._elsewhere = folder / "elsewhere"
        self._elsewhere.mkdir()
        self._deadline = start + limit_s
        self._share_s = limit_s / SHARE
        self._cores: queue.SimpleQueue[int] = queue.SimpleQueue()
        for core in cores():
            self._cores.put(core)
        self._runs = itertools.count()
        self._stopped = threading.Event()
        self.left_out: dict[str, str] = {}

    def run(self, settings: Sequence[Setting]) -> Report:
        """Run them all and report."""
        with contextlib.ExitStack() as stack:
            rehearsal, reference = self._reference(stack)
            self._complain(reference)
            results = {
                setting.name: self._try(setting, reference, setting.changes, rehearsal)
                for setting in settings if setting.how == "again"
            }  # fmt: skip
            others = [setting for setting in settings if setting.how != "again"]
            with ThreadPoolExecutor(len(cores())) as pool:
                tries = [pool.submit(self._try, setting, reference, setting.changes) for setting in others]
                with self._stopping():
                    results.update({setting.name: each.result() for setting, each in zip(others, tries, strict=True)})
            findings = self._findings(settings, results, reference)
        plan = self._plan
        tried = {setting.name: setting.what for setting in settings if setting.name not in self.left_out}
        if not tried:
            raise HostError(
                "no setting could be tried: " + "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
            )
        nbytes = sum(split.length for split in plan.splits)
        return Report(self._job.name, 0, nbytes, len(plan.splits), plan.reducers, tried, self.left_out, findings)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Stop what runs and what waits if this thread is interrupted."""
        try:
            yield
        except BaseException:
            self._stopped.set()
            raise

    def _reference(self, stack: contextlib.ExitStack) -> tuple[Rehearsal, list[RehearsedTask]]:
        """Run the reference, over a smaller sample if it takes too long; its rehearsal stays open until the stack is
        unwound.
        """
        while True:
            smaller = _smaller(self._job, self._plan.splits)
            deadline = min(self._deadline, time.monotonic() + self._share_s) if smaller else self._deadline
            rehearsal = self._rehearsal((), cores()[0])
            try:
                with contextlib.ExitStack() as attempt:
                    attempt.enter_context(rehearsal)
                    tasks = rehearsal.run(deadline)
                    stack.push(attempt.pop_all())
                return rehearsal, tasks
            except OutOfTime:
                if not smaller or time.monotonic() >= self._deadline:
                    raise OutOfTime(
                        "the job takes too long over the smallest sample: use a larger --time-limit"
                    ) from None
                self._plan = RehearsalPlan(self._plan.job, smaller, self._plan.reducers, self._plan.sampled)

    def _complain(self, reference: list[RehearsedTask]) -> None:
        for task in reference:
            if task.failed or task.kind == "setup":
                raise JobError(f"{self._job.name}: {task.kind} {task.index}: {task.error}")

    def _rehearsal(self, changes: Sequence[Change], core: int) -> Rehearsal:
        env = {name: value for change in changes for name, value in change.env.items()}
        cwd = str(self._elsewhere) if any(change.elsewhere for change in changes) else None
        return Rehearsal(self._plan, self._folder / str(next(self._runs)), env, cwd, core, self._stopped)

    def _try(
        self, setting: Setting, reference: list[RehearsedTask], changes: Sequence[Change],
        known: Rehearsal | None = None,
    ) -> Difference | None:  # fmt: skip
        """Run under some changes and compare; a run that the machine fails is left out."""
        try:
            if known is not None:
                return first_difference(self._job, reference, known.run(self._deadline))
            return self._compare(setting, reference, changes)
        except HostError as error:
            self.left_out[setting.name] = str(error)
            return None

    def _compare(
        self, setting: Setting, reference: list[RehearsedTask], changes: Sequence[Change]
    ) -> Difference | None:
        """Run in a process of its own, on a core of its own."""
        core = self._cores.get()
        try:
            with self._rehearsal(changes, core) as rehearsal:
                blocks = reference if setting.how == "digests" else None
                tasks = rehearsal.run(self._deadline, setting.how == "backward", blocks)
                return first_difference(self._job, reference, tasks)
        finally:
            self._cores.put(core)

    def _findings(
        self, settings: Sequence[Setting], results: dict[str, Difference | None], reference: list[RehearsedTask]
    ) -> list[CheckFinding]:  # fmt: skip
        """Name the causes. What differs under the same setting explains all the rest; what a worker keeps, the order of
        tasks.
        """
        differing = [setting for setting in settings if results[setting.name] is not None]
        if differing and differing[0] is REPEAT:
            differing = differing[:1]
        elif any(setting.how == "again" for setting in differing):
            differing = [setting for setting in differing if setting.how != "backward"]
        findings = []
        for setting in differing:
            difference = results[setting.name]
            assert difference is not None
            findings.append(self._finding(setting, difference, reference))
        return findings

    def _finding(self, setting: Setting, difference: Difference, reference: list[RehearsedTask]) -> CheckFinding:
        """Try the changes of a setting one by one, if there are several."""
        guilty = list(setting.changes)
        if len(guilty) > 1:
            with contextlib.suppress(HostError):
                guilty = [
                    change for change in setting.changes if self._compare(setting, reference, (change,)) is not None
                ]
        hints = _hints(self._job, setting)
        what = setting.says + (
            ": " + ", ".join(change.what for change in guilty or setting.changes) if setting.changes else ""
        )
        cause = "; ".join(change.cause for change in guilty) or setting.cause
        return CheckFinding(setting.name, what, cause, setting.hidden, tuple(hints), difference)


def _hints(job: Job, setting: Setting) -> list[str]:
    """Say which names that explain the setting occur in the job's code, and where."""
    found: dict[str, None] = {}
    for role in ROLES:
        for code in _codes(getattr(job, role), set()):
            names = {*code.co_names, *_assigned(code)}
            for name in setting.hints:
                if name in names:
                    place = f"{Path(code.co_filename).name}:{code.co_firstlineno}"
                    found[f"{setting.hints[name]}: {name} in {role} ({place})"] = None
    return list(found)


def _assigned(code: Any) -> Iterator[str]:
    """Say whether the code assigns variables that are not its own."""
    for step in dis.get_instructions(code):
        if step.opname == "STORE_GLOBAL":
            yield "global"
        elif step.opname == "STORE_DEREF" and step.argval in code.co_freevars:
            yield "nonlocal"


def _codes(function: Any, seen: set[int]) -> Iterator[Any]:
    """Yield the code of a function, of functions in it, and of those of the same module that it names."""
    function = getattr(function, "py_func", getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    inner = [code]
    while inner:
        one = inner.pop()
        yield one
        inner += [const for const in one.co_consts if hasattr(const, "co_names")]
        for name in one.co_names:
            called = function.__globals__.get(name)
            if getattr(getattr(called, "py_func", called), "__module__", None) == function.__module__:
                yield from _codes(called, seen)


def print_report(report: Report, as_json: bool) -> int:
    """Print what was found; return 0 if all runs agree, else 5."""
    if as_json:
        print(json.dumps({"deterministic": report.agreed, **asdict(report)}))
    else:
        for line in _lines(report):
            print(printable(line))
    return 0 if report.agreed else 5


def _lines(report: Report) -> Iterator[str]:
    for finding in report.findings:
        found = finding.difference
        yield f"{report.job} is not deterministic: {found.place()}"
        yield f"  reference  {found.reference}"
        yield f"  differs    {found.other}"
        yield f"  under      {finding.setting}: {finding.what}"
        yield f"  cause      {finding.cause}"
        yield from (f"             {hint}" for hint in finding.hints)
        if finding.hidden:
            yield f"  note       {finding.hidden}"
    count = f"{report.splits} maps, {report.parts} reduces, {report.sample_bytes:,} of {report.input_bytes:,} bytes"
    if report.agreed:
        count_tried = f"all {len(report.tried)} settings" if len(report.tried) > 1 else "the one setting"
        yield f"{report.job}: the same output under {count_tried} tried; this is no proof"
        yield f"  {count}, {report.wall_s:.1f} s"
        yield from (f"  {name:<9}  {what}" for name, what in report.tried.items())
    else:
        yield f"tried: {', '.join(report.tried)} ({count}, {report.wall_s:.1f} s)"
    yield from (f"not tried: {name}: {why}" for name, why in report.left_out.items())
