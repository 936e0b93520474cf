"""Campaign: wrong outputs against the checks of checked execution, none of which may be accepted, and right ones.

    python tests/campaigns/checks.py --count 15000 --seed 0
    python tests/campaigns/checks.py --replay 4711

A schedule is one random output: of a map or a reduce of the word count, a sort of records, or one of pairs. It is
accepted as it is, and then some 135 mutants of it have to be refused: bits flipped in blocks and parts, and whatever a
fault may do to entries, counts, lines, records, partitions, order and witnesses while it keeps the form as it can. The
sums of the checks are also looked at with only 8 of their bits: these have to miss about one mutant in 256 of those
that nothing but the sum gives away. If they missed none, the mutants would be too coarse to say anything.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import seeded
from check_mutants import Findings, WordMap, WordReduce
from check_mutants_sorted import PairSort, Sort

COUNT = 15_000
SLICE = 50
BITS, ROUNDS = 40, 5
JOBS = (WordMap, WordReduce, Sort, PairSort)


@dataclass
class Tally(seeded.Tally):
    """And how many mutants and honest outputs of each kind, and what 8 bits of a sum would have missed."""

    mutants: Counter[str] = field(default_factory=Counter)
    honest: Counter[str] = field(default_factory=Counter)
    summed: int = 0
    weakly: int = 0

    def counted(self) -> str:
        return (
            f"{len(self.violations)} violations in {self.schedules:,} schedules: {self.mutants.total():,} mutants of "
            f"{len(self.mutants)} kinds, {self.honest.total():,} honest outputs"
        )

    def text(self) -> str:
        lines = [f"{kind:52}{n:>11,}" for kind, n in sorted(self.mutants.items())]
        lines += [f"honest: {kind:44}{n:>11,}" for kind, n in sorted(self.honest.items())]
        rate = f"one in {self.summed / self.weakly:.0f}" if self.weakly else "none"
        lines.append(
            f"of {self.summed:,} mutants that only the sum gives away, 8 bits of it miss {self.weakly:,}: {rate}"
        )
        return "\n".join(lines)


def play(seed: int) -> Findings:
    """One output, and its mutants."""
    rng, found = Random(f"checks {seed}"), Findings()
    JOBS[seed % len(JOBS)](rng).play(found, BITS, ROUNDS)
    return found


def wrongs(found: Findings) -> str:
    """What must not be, or ""."""
    missed = [f"accepted {n} of: {kind}" for kind, n in found.missed.items() if n]
    return "; ".join(missed + [f"refused, though right: {kind}" for kind, n in found.alarms.items() if n])


def explore(seeds: Iterable[int]) -> Tally:
    """Run the schedules of some numbers, here."""
    tally = Tally()
    for seed in seeds:
        found = play(seed)
        tally.schedules += 1
        tally.mutants += found.mutants
        tally.honest += found.honest
        tally.summed, tally.weakly = tally.summed + found.summed, tally.weakly + found.weakly
        if wrong := wrongs(found):
            tally.violations[seed] = wrong
    return tally


def told(seed: int) -> tuple[str, str]:
    """One as text, and what is wrong with it."""
    found = play(seed)
    rows = [(n, kind, found.missed[kind] and "ACCEPTED") for kind, n in sorted(found.mutants.items())]
    rows += [(n, f"honest: {kind}", found.alarms[kind] and "REFUSED") for kind, n in sorted(found.honest.items())]
    return "".join(f"{n:>6} {kind}{f' {what}' if what else ''}\n" for n, kind, what in rows), wrongs(found)


CAMPAIGN = seeded.Campaign(
    "checks.py", "Wrong outputs against the checks of checked execution.", COUNT, SLICE, Tally, explore, told
)

if __name__ == "__main__":
    sys.exit(seeded.main(CAMPAIGN))
