"""What the machine does to a job, and when that is enough to give up with a HostError that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence, Set

from quoreduce import errors
from quoreduce.data.splits import Split, public_name
from quoreduce.pressure import MemoryKills
from quoreduce.tracker import messages as m

HOST_ERRORS_MAX = 3
RESTARTS_WITHOUT_WORK_MAX = 3
MEMORY_KILLS_MAX = 3
OUT_OF_MEMORY = "the kernel killed its process, for memory ran out"


class HostFaults:
    """Counts errors of the machine. ``splits``: what the job's maps read."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self._splits = splits
        self._memory = MemoryKills()
        self._killed: Counter[m.Task | None] = Counter()
        self._errors: Counter[str] = Counter()  # by failure domain
        self._idle_deaths = 0

    def worked(self) -> None:
        """A worker has executed something."""
        self._idle_deaths = 0

    def failed(self, error: str, domain: str, domains: Set[str], needed: int) -> None:
        """A machine in ``domain`` could not execute something. One such domain is masked.

        Args:
            error: what its worker said.
            domains: all domains.
            needed: how many of them must agree.

        Raises:
            HostError: there were several such errors, and the domains without any are fewer than ``needed``.
        """
        self._errors[domain] += 1
        if self._errors.total() >= HOST_ERRORS_MAX and len(domains - self._errors.keys()) < needed:
            raise errors.HostError(error)

    def died_idle(self) -> None:
        """A worker that came in place of a dead one has died before it had begun the job."""
        self._idle_deaths += 1
        if self._idle_deaths >= RESTARTS_WITHOUT_WORK_MAX:
            raise errors.HostError("workers die before they begin: run `quoreduce doctor`")

    def out_of_memory(self, status: int | None) -> bool:
        """Whether a worker whose process ended with ``status`` was killed because memory ran out."""
        return self._memory.struck(status)

    def starved(self, running: Collection[m.Assignment]) -> None:
        """A worker was killed because memory ran out, while it executed these. Raises HostError if that happens
        repeatedly.
        """
        tasks: set[m.Task | None] = {launch.task for launch in running}
        for task in tasks or {None}:
            self._killed[task] += 1
            if self._killed[task] >= MEMORY_KILLS_MAX:
                raise errors.HostError(self._advice(task))

    def _advice(self, task: m.Task | None) -> str:
        what, less = f"{task}: " if task is not None else "", "a smaller --split-mb"
        if task is not None and task.kind == "map" and self._splits[task.index].compression != "none":
            what += f"{public_name(self._splits[task.index].path)} may decompress to more than there is: "
            less = "--store DIR on a disk"
        return (
            f"{what}memory ran out{self._memory.limit()}, and the kernel killed workers {MEMORY_KILLS_MAX} times: "
            f"use {less}, fewer --workers, or more memory"
        )
