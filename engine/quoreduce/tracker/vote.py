"""Who agrees with whom: replicas' outputs in, camps out (slides 12 and 19; R1-R4).

A *camp* is all replicas of a task that produced the same thing. It wins with f+1 distinct domains behind it; a domain
that repeats itself still counts once (R1), so asking a bad core twice never outvotes a good one.

Nothing here knows of workers, of time or of which task it is about.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from quoreduce.tracker.messages import Output


@dataclass(slots=True, eq=False)
class Camp:
    """Replicas of one task that produced the same output, or raised the same error.

    Attributes:
        output: what they produced; None when they raised.
        error: what they raised; empty when they produced an output.
        digest: of the output or of the error: the two are voted on in namespaces of their own.
        attempts: attempt -> its domain, in order of arrival.
        domains: domain -> number of its latest vote. Their count is what wins (R1).
        copies: attempts whose stored output can still be read; the first is the carrier (R6).
    """

    output: Output | None
    error: str
    digest: bytes
    attempts: dict[int, str] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)
    copies: list[int] = field(default_factory=list)

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
    """All votes on one task. Camps are in order of their first vote."""

    camps: list[Camp] = field(default_factory=list)
    votes: int = 0

    @property
    def disputed(self) -> bool:
        """Whether replicas have contradicted each other."""
        return len(self.camps) > 1

    def cast(self, attempt: int, domain: str, digest: bytes, output: Output | None, error: str = "") -> Camp:
        """Count one replica's result and return its camp. `output` is None for an error."""
        for camp in self.camps:
            if camp.holds(digest, output):
                break
        else:
            camp = Camp(output, error, digest)
            self.camps.append(camp)
        camp.attempts[attempt] = domain
        camp.domains[domain] = self.votes
        self.votes += 1
        return camp

    def withdraw(self, stale: Collection[int]) -> None:
        """Take back the votes of these attempts: they rest on inputs that lost their own vote (R5)."""
        for camp in self.camps:
            camp.attempts = {a: domain for a, domain in camp.attempts.items() if a not in stale}
            camp.copies = [a for a in camp.copies if a not in stale]
            left = set(camp.attempts.values())
            camp.domains = {domain: nth for domain, nth in camp.domains.items() if domain in left}
        self.camps = [camp for camp in self.camps if camp.attempts]

    def leader(self) -> Camp | None:
        """The camp of most distinct domains; of several such one with a stored copy (the carrier's), then the first."""
        return max(self.camps, key=lambda camp: (len(camp.domains), bool(camp.copies)), default=None)

    def winner(self, need: int) -> Camp | None:
        """The leader, if `need` = f+1 distinct domains stand behind it (R1)."""
        leader = self.leader()
        return leader if leader is not None and len(leader.domains) >= need else None

    def missing(self, running: AbstractSet[str], need: int) -> int:
        """How many more domains must be asked before `need` equal outputs can be reached at all.

        Args:
            running: domains of the replicas that have yet to answer; each is presumed to agree with the leader (R2).
            need: f+1.
        """
        lacking = need - len(running)
        for camp in self.camps:
            lacking = min(lacking, need - len(camp.domains.keys() | running))
        return max(0, lacking)

    def latest(self, domain: str) -> int:
        """Number of the domain's latest vote, or -1."""
        latest = -1
        for camp in self.camps:
            nth = camp.domains.get(domain, -1)
            if nth > latest:
                latest = nth
        return latest

    def wavering(self) -> int:
        """How many domains contradicted themselves: the mark of a job that is not deterministic (R11)."""
        seen = [domain for camp in self.camps for domain in camp.domains]
        return len({domain for domain in seen if seen.count(domain) > 1})
