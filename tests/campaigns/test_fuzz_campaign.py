"""Damaged inputs are read, or refused with an error that fits, in little time and memory.

With --nightly there are 12,000, elsewhere 3,000, or as many as `QUOREDUCE_FUZZED` says, from number `QUOREDUCE_SEED`
(0) on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from bad_decoders import TARGETS as BAD
from decoders import TARGETS
from fuzz import campaign, made, outcome, verdict

INPUTS = int(os.environ.get("QUOREDUCE_FUZZED", "12000" if os.environ.get("QUOREDUCE_NIGHTLY") else "3000"))
SEED = int(os.environ.get("QUOREDUCE_SEED", "0"))


def test_damaged_inputs_are_read_or_refused_with_an_error_that_fits(says: Callable[[str], None]) -> None:
    begun = time.monotonic()
    *_, tally = campaign(SEED, INPUTS, len(os.sched_getaffinity(0)))
    says(
        f"fuzzed inputs, numbers from {SEED} on of {len(TARGETS)} kinds: {verdict(tally)}, in "
        f"{time.monotonic() - begun:.0f} s; again: python tests/campaigns/fuzz.py --count {INPUTS} --seed {SEED}"
    )
    assert not tally.findings, f"{verdict(tally)}\n{tally.text()}"
    assert tally.inputs == INPUTS
    if INPUTS >= 3000:  # the inputs are worth something only if some are good enough to be read, and others are not
        for kind in TARGETS:
            ends = {end: n for (of, end), n in tally.outcomes.items() if of == kind}
            assert ends.pop("read", 0), f"no {kind} was read"
            assert ends, f"no {kind} was refused"


def test_the_same_number_gives_the_same_bytes() -> None:
    for kind in TARGETS:
        assert [made(kind, n) for n in range(9)] == [made(kind, n) for n in range(9)]


@pytest.mark.parametrize("kind", TARGETS)
def test_samples_are_read(kind: str) -> None:
    """Of gz and zst at least one, for it is up to the bytes in which format these are read."""
    target = TARGETS[kind]
    ends = [outcome(target, sample) for sample in target.samples()]
    assert ("read", "") in ends
    assert not [wrong for _, wrong in ends if wrong]
    assert kind in ("gz", "zst") or set(ends) == {("read", "")}


@pytest.mark.parametrize(
    ("kind", "what"),
    [("raises anything", "KeyError"), ("is not clear", "no clear line"), ("reserves too much", "MemoryError"),
     ("computes for ever", "CPU time"), ("contradicts itself", "AssertionError: not what it was"),
     ("dies", "exit code -11"),
     ("hangs", "hung"), ("takes damage for a sample", "taken for a sample")],
)  # fmt: skip
def test_what_no_decoder_may_do_is_found(kind: str, what: str) -> None:
    """And those that it did not come to, because one killed the process, are done after all."""
    count = 1 if kind == "computes for ever" else 2
    *_, tally = campaign(1, count, 1, [kind], "bad_decoders", hang_s_max=1.0 if kind == "hangs" else 60.0)
    assert tally.inputs == count
    assert tally.findings
    assert all(found.kind == kind and what in found.what for found in tally.findings), verdict(tally)
    assert f'--kind "{kind}" --replay {tally.findings[0].number}' in verdict(tally)
    assert made(kind, tally.findings[0].number, BAD)
