"""Which domain may run which replica: anti-affinity (R1), suspicion and quarantine (R11).

Every operation costs O(1) or O(domains that the task has used), except when a task has used every domain there is
and one must be asked again, which is rare and costs O(domains).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from quoreduce.tracker.suspicion import Group, Known, Suspicion
from quoreduce.tracker.vote import Ballot, Candidate


@dataclass(slots=True, eq=False)
class LiveWorker:
    """A live worker and what occupies its slots; cancelled attempts do until they answer."""

    name: str
    domain: Domain
    slots: int
    busy: dict[int, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Domain:
    """What fails together: the live workers of one core, node or rack. `idle` are those with a free slot."""

    name: str
    workers: dict[str, LiveWorker] = field(default_factory=dict)
    idle: OrderedDict[str, LiveWorker] = field(default_factory=OrderedDict)


class Pool:
    """The live workers, by domain.

    Attributes:
        domains: domains with at least one live worker.
        open: those of them that replicas may be launched in, i.e. that are not quarantined.
        suspicion: what was seen of each domain; kept when the domain dies.
        busy: number of slots in use.
        types: domain -> type of CPU, if all its workers have the same and it is known; kept when the domain dies.
    """

    def __init__(self, need: int, known: Mapping[str, Known] | None = None) -> None:
        """Make an empty pool. `need` (f+1) is how many open domains quarantine must leave; `known`: from earlier
        jobs.
        """
        self.need = need
        self.workers: dict[str, LiveWorker] = {}
        self.domains: dict[str, Domain] = {}
        self.open: dict[str, Domain] = {}
        self.suspicion = Suspicion(known or {})
        self.busy = 0
        self.types: dict[str, str] = {}
        # Open domains with a free slot. Taken from the front, put back at the end: that spreads the load. An
        # OrderedDict, because finding the first key of a dict whose front was deleted is not O(1).
        self.free: OrderedDict[str, Domain] = OrderedDict()

    def join(self, name: str, domain_name: str, slots: int, cpu: str = "") -> bool:
        """Add a worker. False if it is known already or has no slots."""
        if name in self.workers or slots < 1:
            return False
        domain = self.domains.get(domain_name)
        if domain is None:
            domain = self.domains[domain_name] = Domain(domain_name)
            self.open[domain_name] = domain
        if self.types.setdefault(domain_name, cpu) != cpu:
            self.types[domain_name] = ""
        worker = LiveWorker(name, domain, slots)
        self.workers[name] = domain.workers[name] = domain.idle[name] = worker
        if domain_name in self.open:
            self.free[domain_name] = domain
        self._review()
        return True

    def lose(self, name: str) -> list[int] | None:
        """Remove a worker and return the attempts that occupied it, or None if it is not known."""
        worker = self.workers.pop(name, None)
        if worker is None:
            return None
        domain = worker.domain
        del domain.workers[name]
        domain.idle.pop(name, None)
        if not domain.idle:
            self.free.pop(domain.name, None)
        if not domain.workers:
            del self.domains[domain.name]
            self.open.pop(domain.name, None)
        self.busy -= len(worker.busy)
        self._review()
        return list(worker.busy)

    def take(self, domain: Domain, attempt: int) -> str:
        """Occupy a slot of the domain, which must have a free one, and return the worker's name."""
        name, worker = next(iter(domain.idle.items()))
        worker.busy[attempt] = None
        self.busy += 1
        if len(worker.busy) == worker.slots:
            del domain.idle[name]
        else:
            domain.idle.move_to_end(name)
        if not domain.idle:
            self.free.pop(domain.name, None)
        elif domain.name in self.free:
            self.free.move_to_end(domain.name)
        return name

    def release(self, name: str, attempt: int) -> None:
        """Free the slot that an attempt occupied."""
        worker = self.workers[name]
        del worker.busy[attempt]
        self.busy -= 1
        domain = worker.domain
        domain.idle[name] = worker
        if domain.name in self.open:
            self.free[domain.name] = domain

    def choose(
        self, asked: Mapping[str, int], running: Container[str], ballot: Ballot, winner: Candidate | None
    ) -> Domain | None:
        """The domain for a task's next replica, or None when the right one has no free slot now.

        A domain that the task has not used comes first, and is waited for while it is busy (R1).
        """
        if not self.open.keys() <= asked.keys():
            return self.fresh(asked)
        again = self.domains.get(self._again(asked, running, ballot, winner))
        return again if again is not None and again.idle else None

    def fresh(self, asked: Container[str]) -> Domain | None:
        """An open domain with a free slot that is not among those asked."""
        for name, domain in self.free.items():
            if name not in asked:
                return domain
        return None

    def _again(
        self, asked: Mapping[str, int], running: Container[str], ballot: Ballot, winner: Candidate | None
    ) -> str:
        """Which domain to ask again (R1): the one asked least, and among those the one that `rank` puts first.

        Re-asking who challenged the first output keeps the work that tentative reduces have done on it, and with two
        domains makes a transient fault cost exactly one more execution. Only a stored copy of a known winner is
        better sought where that was produced before.

        A quarantined domain counts as asked once more than it was: it comes last, but it comes. Otherwise three bad
        days of a good domain could leave a task to f+1 domains of which one is broken for good.
        """
        times = {
            name: asked.get(name, 0) + (name not in self.open) for name in self.domains if name not in running
        } or dict.fromkeys(self.domains, 0)
        least = min(times.values(), default=0)
        names = [name for name, n in times.items() if n == least]
        if len(names) == 1:
            return names[0]
        leader = winner or ballot.leader()

        def rank(name: str) -> tuple[bool, bool, int, int]:
            leads = leader is not None and name in leader.domains
            suspicion = self.suspicion.of(name).lost
            sought = (not leads, suspicion) if winner is not None else (leads, -suspicion)
            return sought[0], name not in self.open, sought[1], -ballot.latest(name)

        return min(names, key=rank, default="")

    def judge(self, domain: str, judged: bool, lost: bool) -> None:
        """Note that a domain was judged on a task, or lost its vote, for the first time each (R11)."""
        if self.suspicion.judge(domain, judged, lost):
            self._review()

    def compare(self, domain: str, group: Group, lost: bool) -> None:
        """Note a vote of the first plan that was won or lost (R11)."""
        if self.suspicion.compare(domain, group, lost):
            self._review()

    def tested(self, domain: str, passed: bool) -> None:
        """Note the outcome of a known-answer test (R11)."""
        if self.suspicion.tested(domain, passed):
            self._review()

    @property
    def quarantined(self) -> list[str]:
        """Live domains that get no more replicas while others can help."""
        return [name for name in self.domains if name not in self.open]

    def _review(self) -> None:
        """Quarantine the worst suspects, as many as leave f+1 domains open; call back those that are missed."""
        live = [name for name in self.suspicion.named if name in self.domains]
        worst = sorted(live, key=self.suspicion.weight, reverse=True)[: max(0, len(self.domains) - self.need)]
        for name in live:
            if name in worst:
                self.open.pop(name, None)
                self.free.pop(name, None)
            elif name not in self.open:
                domain = self.open[name] = self.domains[name]
                if domain.idle:
                    self.free[name] = domain
