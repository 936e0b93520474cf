"""The results of a campaign, and the table of faults and outcomes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from quoreduce.chaos.plan import COLLUSION, KINDS, STAGES

FAILED = ("wrong", "partial", "untyped", "hang")
NAMES_MOST = 6
FLAT_SHARE, FLAT_MB = 0.10, 24.0


@dataclass(slots=True)
class JobOutcome:
    """A job and its end.

    ``outcome``: right, stopped, wrong, partial, rotten (the output was altered after it was checked, and ``verify``
    finds that), untyped (an error that is not one of errors.py), hang, or warm (it only warmed up). ``extra``:
    executions over plan. ``left``: files and processes that it left behind. ``rss_mb``: resident memory of the driver's
    process afterwards.
    """

    stage: str
    number: int
    job: str
    f: int
    outcome: str
    faults: dict[str, int]
    wall_s: float = 0.0
    extra: int = 0
    error: str = ""
    left: int = 0
    rss_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of fault. ``jobs``: hit by it, of which so many ended right, were stopped, and so on.

    ``extra``: executions over plan for each fault, ``ratio``: time against jobs without faults; both over the jobs that
    only this kind has hit and that ended right; None if there are none. ``names``: jobs that did not end right.
    """

    kind: str
    text: str
    injected: int
    jobs: int
    masked: int
    stopped: int
    rotten: int
    failed: int
    extra: float | None
    ratio: float | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Resident memory of a stage's driver process, in MB. ``growth``: of the last quarter's median over the
    second's.
    """

    stage: str
    jobs: int
    first: float
    last: float
    peak: float
    growth: float

    @property
    def flat(self) -> bool:
        """Whether it stops growing after the first quarter, in which caches fill."""
        return self.growth <= max(FLAT_MB, FLAT_SHARE * self.first)


@dataclass(slots=True)
class Campaign:
    """A campaign and all that was seen in it.

    ``not_run``: kind -> why it could not be had here. ``setups_failed``: how often workers, or a Ray, did not start;
    these are no jobs. ``not_set_up``: stage -> why it ended early, or never began. ``folder``: where the campaign was.
    """

    seed: int
    minutes: float
    kinds: tuple[str, ...]
    records: list[JobOutcome] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    orphans: int = 0
    files_left: int = 0
    wall_s: float = 0.0
    folder: str = ""
    setups_failed: int = 0
    not_set_up: dict[str, str] = field(default_factory=dict)

    @property
    def inside(self) -> list[JobOutcome]:
        """The jobs inside the model, with faults or without."""
        return [record for record in self.records if COLLUSION not in record.faults and record.outcome != "warm"]

    def count(self, *outcomes: str) -> int:
        """Jobs inside the model that ended so."""
        return sum(record.outcome in outcomes for record in self.inside)

    @property
    def struck(self) -> int:
        """Faults that have happened inside the model."""
        return sum(sum(record.faults.values()) for record in self.inside)

    @property
    def left(self) -> int:
        """Files that jobs or stages have left behind."""
        return self.files_left + sum(record.left for record in self.records)

    @property
    def ok(self) -> bool:
        """No wrong, partial or missing end, no orphan; memory is reported, and judged by those who read it."""
        return not (self.count(*FAILED) or self.orphans or self.left)

    def rows(self) -> list[Row]:
        """The table, in the order of the kinds; those that never happened are not in it."""
        usual = _usual(self.records)
        rows = [_row(kind.name, kind.text, self.inside, usual) for kind in KINDS.values()]
        return [row for row in rows if row.injected or row.failed]

    def collusion(self) -> Row | None:
        """The row of what the model excludes: f+1 domains that give the same wrong answers."""
        records = [record for record in self.records if COLLUSION in record.faults]
        return _row(COLLUSION, "f+1 domains give the same wrong answers", records, {}) if records else None

    def memory(self) -> list[MemoryUse]:
        """Memory by stage."""
        found = []
        for stage in STAGES:
            sizes = [record.rss_mb for record in self.records if record.stage == stage and record.rss_mb]
            if len(sizes) >= 4:
                quarter = len(sizes) // 4
                growth = median(sizes[-quarter:]) - median(sizes[quarter : 2 * quarter])
                found.append(MemoryUse(stage, len(sizes), sizes[0], sizes[-1], max(sizes), growth))
        return found

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        collusion = self.collusion()
        return {
            "seed": self.seed, "minutes": self.minutes, "wall_s": round(self.wall_s, 1), "ok": self.ok,
            "jobs": len(self.inside),
            "faults": self.struck, "kinds": len(self.rows()), "right": self.count("right"),
            "stopped": self.count("stopped"),
            "rotten": self.count("rotten"), "wrong": self.count("wrong"), "partial": self.count("partial"),
            "untyped": self.count("untyped"), "hangs": self.count("hang"), "orphans": self.orphans,
            "files_left": self.left,
            "setups_failed": self.setups_failed, "not_set_up": self.not_set_up, "not_run": self.not_run,
            "folder": self.folder, "rows": [asdict(row) for row in self.rows()],
            "outside_the_model": asdict(collusion) if collusion else None,
            "memory": [{**asdict(memory), "flat": memory.flat} for memory in self.memory()],
            "records": [asdict(record) for record in self.records],
        }  # fmt: skip


def _usual(records: Iterable[JobOutcome]) -> dict[tuple[str, str], float]:
    """Median seconds of the jobs without faults, by stage and job; on a Ray that loses RPCs those of the one that does
    not.
    """
    walls: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if not record.faults and record.outcome == "right" and record.f == 1:
            walls.setdefault((record.stage, record.job), []).append(record.wall_s)
    usual = {key: median(times) for key, times in walls.items()}
    return usual | {("rpc", job): seconds for (stage, job), seconds in usual.items() if stage == "ray"}


def _row(kind: str, text: str, records: Sequence[JobOutcome], usual: dict[tuple[str, str], float]) -> Row:
    hit = [record for record in records if kind in record.faults]
    ends = Counter(record.outcome for record in hit)
    alone = [record for record in hit if record.outcome == "right" and _alone(kind, record)]
    faults = sum(record.faults[kind] for record in alone)
    ratios = [
        record.wall_s / usual[record.stage, record.job]
        for record in alone
        if record.f == 1
        and (record.stage, record.job) in usual
        and kind != "driver"  # that one's time has a start in it
    ]
    return Row(
        kind, text, sum(record.faults[kind] for record in hit), len(hit), ends["right"], ends["stopped"],
        ends["rotten"],
        sum(ends[outcome] for outcome in FAILED), sum(record.extra for record in alone) / faults if faults else None,
        median(ratios) if ratios else None,
        tuple(f"{record.stage}:{record.number}" for record in hit if record.outcome != "right")[:NAMES_MOST],
    )  # fmt: skip


def _alone(kind: str, record: JobOutcome) -> bool:
    """Whether no other kind has hit a job, except those that act all the time."""
    return not (record.faults.keys() - {kind} - set(STAGES[record.stage].around))
