"""What is fuzzed: every decoder of bytes that come from a worker, a disk or a user, with samples, and the errors that
fit.

Another one takes three lines in TARGETS: a name, the samples, and a function of bytes, which returns whatever it likes
or raises one of the errors that its callers know. A function may also look at what it was given back, with assert; and
what it returns as bytes must belong to these bytes alone: if damaged bytes give what a sample gives, that is a finding.

Receipts, policies, quotes, event logs and TPM structures have a campaign of their own (tests/trust/test_tampering.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import mutations
from fuzzed_blocks import (
    block_samples,
    craft_block,
    craft_journal,
    craft_reduced,
    give_to_reduces,
    journals,
    manifests,
    open_block,
    read_journal,
    read_manifest,
    reduced,
)
from fuzzed_inputs import craft_gz, craft_sequence, craft_zst, gz, read_sequence, read_splits, sequences, zst
from fuzzed_messages import evidence, read_reply, replies
from fuzzed_results import calibrations, data_sets, load_data_set, read_calibration, report_results, results

from quoreduce.errors import BlockError, EvidenceError, HostError, InputError, JournalError, QuoreduceError, UsageError


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes:
        samples: well-formed inputs; made once.
        decode: takes bytes; returns, or raises one of `errors`.
        errors: what it may raise.
        ways: how samples are damaged.
        craft: makes an input that passes the first checks, for three in ten inputs.
        weight: how often it has its turn.
    """

    samples: Callable[[], Sequence[bytes]]
    decode: Callable[[bytes], bytes | None]
    errors: tuple[type[Exception], ...]
    ways: Sequence[mutations.Mutation] = mutations.BYTES
    craft: Callable[[Random], bytes] | None = None
    weight: int = 1


INPUT = (InputError,)
TARGETS: dict[str, Target] = {
    "block": Target(block_samples, open_block, (BlockError,), craft=craft_block, weight=4),
    "reduce": Target(reduced, give_to_reduces, (BlockError,), craft=craft_reduced, weight=2),
    "journal": Target(journals, read_journal, (JournalError,), craft=craft_journal, weight=4),
    "manifest": Target(manifests, read_manifest, (QuoreduceError,), mutations.JSON, weight=4),
    "sequencefile": Target(sequences, read_sequence, INPUT, craft=craft_sequence, weight=4),
    "sequencefile in splits": Target(sequences, read_splits(".seq"), INPUT, craft=craft_sequence, weight=2),
    "gz": Target(gz, read_splits(".gz"), INPUT, craft=craft_gz, weight=2),
    "zst": Target(zst, read_splits(".zst"), INPUT, craft=craft_zst, weight=2),
    "reply": Target(replies, read_reply, (HostError,), mutations.MSGPACK, weight=4),
    **{
        f"evidence: {name}": Target(*evidence(name), (EvidenceError,), mutations.MSGPACK)
        for name in ("admission", "committed", "quoted", "hardware")
    },
    "calibration": Target(calibrations, read_calibration, (InputError, UsageError), mutations.JSON),
    "gridmix data": Target(data_sets, load_data_set, INPUT, mutations.JSON),
    "gridmix results": Target(results, report_results, INPUT, mutations.JSON),
}
