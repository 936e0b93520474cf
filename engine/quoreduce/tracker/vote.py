"""Who agrees with whom: replicas' outputs in, candidates out (slides 12 and 19; R1-R4).

A *candidate* is what one or more replicas of a task produced. It wins with f+1 distinct domains behind it; a domain
that repeats itself still counts once (R1), so asking a bad core twice never outvotes a good one.

Nothing here knows of workers, of time or of which task it is about.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from quoreduce.tracker.messages import Output


@dataclass(slots=True, eq=False)
class Candidate:
    """An output of one task, or an error, and the replicas that produced it.

    Attributes:
        output: what they produced; None when they raised.
        error: what they raised; empty when they produced an output.
        digest: of the output or of the error: the two are voted on in namespaces of their own.
        attempts: attempt -> its domain, in order of arrival.
        domains: domain -> number of its latest vote. Their count is what wins (R1).
        vouchers: check -> domain in which it found this output right (R13); void once the task is voted on.
        copies: attempts whose stored output can still be read; the first is the one that readers use first (R6).
    """

    output: Output | None
    error: str
    digest: bytes
    attempts: dict[int, str] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)
    vouchers: dict[int, str] = field(default_factory=dict)
    copies: list[int] = field(default_factory=list)

    @property
    def backers(self) -> AbstractSet[str]:
        """The distinct domains that produced this output, or checked it."""
        return self.domains.keys() | self.vouchers.values() if self.vouchers else self.domains.keys()

    def holds(self, digest: bytes, output: Output | None) -> bool:
        """Whether an output (or, with None, an error) of this digest belongs here."""
        mine = self.output
        if mine is None or output is None:
            return mine is output and self.digest == digest
        # The digest stands for the parts (R4), but readers rely on the parts' digests: a reply whose digest is right
        # and whose parts are not must not hide behind the digest.
        return self.digest == digest and (
            mine.parts == output.parts or [part.digest for part in mine.parts] == [part.digest for part in output.parts]
        )


@dataclass(slots=True, eq=False)
class Ballot:
    """All votes on one task. Candidates are in order of their first vote."""

    candidates: list[Candidate] = field(default_factory=list)
    votes: int = 0

    @property
    def disputed(self) -> bool:
        """Whether replicas have contradicted each other."""
        return len(self.candidates) > 1

    def cast(self, attempt: int, domain: str, digest: bytes, output: Output | None, error: str = "") -> Candidate:
        """Count one replica's result and return its candidate. `output` is None for an error."""
        for candidate in self.candidates:
            if candidate.holds(digest, output):
                break
        else:
            candidate = Candidate(output, error, digest)
            self.candidates.append(candidate)
        candidate.attempts[attempt] = domain
        candidate.domains[domain] = self.votes
        self.votes += 1
        return candidate

    def withdraw(self, stale: Collection[int]) -> None:
        """Take back the votes of these attempts: they rest on inputs that lost their own vote (R5)."""
        for candidate in self.candidates:
            candidate.attempts = {a: domain for a, domain in candidate.attempts.items() if a not in stale}
            candidate.copies = [a for a in candidate.copies if a not in stale]
            left = set(candidate.attempts.values())
            candidate.domains = {domain: nth for domain, nth in candidate.domains.items() if domain in left}
        self.candidates = [candidate for candidate in self.candidates if candidate.attempts]

    def leader(self) -> Candidate | None:
        """The candidate of most distinct domains; of several such one with a stored copy, then the first."""
        return max(
            self.candidates, key=lambda candidate: (len(candidate.backers), bool(candidate.copies)), default=None
        )

    def winner(self, need: int) -> Candidate | None:
        """The leader, if `need` = f+1 distinct domains stand behind it (R1, R13)."""
        leader = self.leader()
        return leader if leader is not None and len(leader.backers) >= need else None

    def missing(self, running: AbstractSet[str], need: int) -> int:
        """How many more domains must be asked before `need` equal outputs can be reached at all.

        Args:
            running: domains of the replicas that have yet to answer; each is presumed to agree with the leader (R2).
            need: f+1.
        """
        lacking = need - len(running)
        for candidate in self.candidates:
            lacking = min(lacking, need - len(candidate.domains.keys() | running))
        return max(0, lacking)

    def split_along(self, types: Mapping[str, str]) -> bool:
        """Whether candidates are types of CPU: each of one type, no type in two, two domains at least in each (R11).

        Two domains that are wrong in the same way are no accident. That all of their type are, and no other, is no
        fault.
        """
        sides = [{types.get(domain, "") for domain in candidate.domains} for candidate in self.candidates]
        apart = len(set().union(*sides)) == len(sides) > 1 and all(len(side) == 1 and "" not in side for side in sides)
        return apart and all(len(candidate.domains) > 1 for candidate in self.candidates)

    def latest(self, domain: str) -> int:
        """Number of the domain's latest vote, or -1."""
        latest = -1
        for candidate in self.candidates:
            nth = candidate.domains.get(domain, -1)
            if nth > latest:
                latest = nth
        return latest

    def wavering(self) -> int:
        """How many domains contradicted themselves: the mark of a job that is not deterministic (R11)."""
        seen = [domain for candidate in self.candidates for domain in candidate.domains]
        return len({domain for domain in seen if seen.count(domain) > 1})
