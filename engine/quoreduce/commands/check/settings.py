"""The settings under which ``quoreduce check`` runs a job: what a replica's surroundings may differ in, one by one."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal

from quoreduce.arguments import unknown_name
from quoreduce.errors import UsageError
from quoreduce_kernels.cache import VARIABLE

THREADS = "4"
ZONE = "AHEAD-23:30"  # another day, nearly always
GLIBC_OLD = "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F,-AVX2_Usable,-FMA_Usable,-FMA4_Usable,-AVX512F_Usable"
How = Literal["fresh", "again", "backward", "digests"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is changed; ``cause``: what in a job depends on it. ``elsewhere``: another current directory."""

    what: str
    cause: str
    env: Mapping[str, str] = field(default_factory=dict)
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """A run of the job.

    ``says``: what it is. ``how``: in a process of its own (fresh), there from the last task to the first (backward),
    there without storing anything (digests), or once more in the reference's process (again). ``cause``: of a
    difference, if no change says it. ``hidden``: why real runs may not show the difference. ``hints``: names in a job's
    code that tell more.
    """

    name: str
    says: str
    cause: str
    how: How = "fresh"
    changes: tuple[Change, ...] = ()
    hidden: str = ""
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """Say what is different, in a line."""
        return self.says + (": " + ", ".join(change.what for change in self.changes) if self.changes else "")


CHANCE = {
    **dict.fromkeys(
        ("random", "secrets", "uuid", "uuid1", "uuid4", "urandom", "default_rng", "getrandom", "token_bytes",
         "token_hex"),
        "random numbers",
    ),
    **dict.fromkeys(
        ("time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "now", "today", "utcnow"),
        "a clock"
    ),
    **dict.fromkeys(("id", "__repr__"), "addresses in memory"),
    **dict.fromkeys(("getpid", "get_ident", "current_thread"), "numbers of processes or threads"),
    **dict.fromkeys(("Thread", "ThreadPoolExecutor", "as_completed", "prange"), "threads that race"),
}  # fmt: skip
REPEAT = Setting(
    "repeat", "the same once more, in a new process",
    "two runs under the same setting differ: a clock, random numbers, addresses in memory, "
    "or something outside of the job",
    hints=CHANCE,
)  # fmt: skip
STATE = Setting(
    "state", "a second time in the same process",
    "leaking state: something that the job keeps between tasks (a global, a cache, "
    "a default argument) gets into its output",
    "again",
    hints={"global": "a global variable is assigned", "nonlocal": "a variable of an outer function is assigned"},
)  # fmt: skip
ORDER = Setting("order", "tasks from the last to the first", STATE.cause, "backward", hints=STATE.hints)
DIGESTS = Setting(
    "digests", "a replica that only digests, and stores nothing",
    "the job gives something else where ctx.store is False", "digests",
    hints={"store": "ctx.store", "takes_fingerprints": "ctx.takes_fingerprints"},
)  # fmt: skip
HASH_CAUSE = "hash order: of a set, of hash(), or of what is sorted by it"
HASH = Setting(
    "hash", "another hash seed", HASH_CAUSE, changes=(Change("PYTHONHASHSEED=1", HASH_CAUSE, {"PYTHONHASHSEED": "1"}),),
    hidden="workers run with PYTHONHASHSEED=0: replicas agree while all run the same Python, "
           "another may give other output",
    hints={"hash": "hash()", "set": "set()", "frozenset": "frozenset()"},
)  # fmt: skip


def _threads() -> Setting:
    names = {
        "OPENBLAS_NUM_THREADS": "how many threads numpy's linear algebra (np.dot, @) uses",
        "NUMBA_NUM_THREADS": "how many threads numba uses (parallel=True, prange)",
        "OMP_NUM_THREADS": "how many threads OpenMP uses", "MKL_NUM_THREADS": "how many threads MKL uses",
        "POLARS_MAX_THREADS": "how many threads Polars uses",
    }  # fmt: skip
    changes = tuple(Change(f"{name}={THREADS}", f"threads: {text}", {name: THREADS}) for name, text in names.items())
    return Setting(
        "threads", "more threads", "threads: how many of them a library uses", changes=changes,
        hidden="workers run with one thread for each library",
    )  # fmt: skip


def _place() -> Setting:
    locale = _locale()
    return Setting(
        "place", "another place", "the place: time zone, locale or current directory",
        changes=(
            Change(f"TZ={ZONE}", "the time zone or the date", {"TZ": ZONE}),
            Change(f"LC_ALL={locale}", "the locale", {"LC_ALL": locale}),
            Change(
                "another current directory", "the current directory: a relative path is another file there",
                elsewhere=True,
            ),
        ),
        hidden="workers run with TZ=UTC and LC_ALL=C.UTF-8; their current directory differs from node to node",
    )  # fmt: skip


def _cpu() -> Setting:
    changes = []
    if features := _numpy_features():
        env = {"NPY_DISABLE_CPU_FEATURES": features}
        changes.append(
            Change(f"NPY_DISABLE_CPU_FEATURES='{features}'", "numpy's exp, log, power, ... for this CPU type", env)
        )
    intel = platform.machine() in ("x86_64", "AMD64")
    if intel:
        text = "the C library's exp, log, sin, ... for this CPU type"
        changes.append(Change("GLIBC_TUNABLES=(no AVX2, FMA, AVX512)", text, {"GLIBC_TUNABLES": GLIBC_OLD}))
    core = "Nehalem" if intel else "ARMV8"
    text = "numpy's linear algebra (np.dot, @) for this CPU type"
    changes.append(Change(f"OPENBLAS_CORETYPE={core}", text, {"OPENBLAS_CORETYPE": core}))
    return Setting(
        "cpu", "an older CPU type", "the CPU type's math", changes=tuple(changes),
        hidden="machines with the same type of CPU agree",
    )  # fmt: skip


def _numba() -> Setting:
    env = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", VARIABLE: ""}  # none of those kept: compiled anew
    cause = "code that numba compiled for this CPU type (fastmath, math functions)"
    return Setting(
        "numba", "kernels compiled for an older CPU type", cause,
        changes=(Change("NUMBA_CPU_NAME=generic", cause, env),), hidden="machines with the same type of CPU agree",
    )  # fmt: skip


NAMES = ("repeat", "state", "order", "digests", "hash", "threads", "place", "cpu", "numba")


def find_settings(names: Sequence[str]) -> list[Setting]:
    """Return the settings of these names, in the order in which causes are ruled out; raise UsageError for an unknown
    one.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--settings: {unknown_name(name, (*NAMES, 'all'))}")
    every = [REPEAT, STATE, ORDER, DIGESTS, HASH, _threads(), _place(), _cpu(), _numba()]
    return [setting for setting in every if setting.name in names]


def _numpy_features() -> str:
    """The features of this CPU that numpy has code for, by the names that NPY_DISABLE_CPU_FEATURES takes."""
    try:
        umath = import_module("numpy._core._multiarray_umath")
    except ImportError:
        return ""
    return " ".join(name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name))


def _locale() -> str:
    """A locale of this machine that sorts and formats in another way than C, if there is one."""
    try:
        listed = subprocess.run(
            ["locale", "-a"], capture_output=True, text=True, timeout=10, check=False
        ).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        listed = []
    others = [name for name in listed if not name.startswith(("C", "POSIX", "en")) and "utf" in name.lower()]
    return (others or ["C"])[0]
