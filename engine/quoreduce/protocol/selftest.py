"""Known-answer tests of a core: kernels on data from a seed, and the right results (R11).

The worker under test returns digests, and whoever asked compares them with ANSWERS, which the tests check against the
kernels' slow twins (tests/protocol/test_selftest.py). So nothing depends on what a suspect says of itself, or on the
driver's core. The request names the tests, and an answer without one of them is wrong. The digests are made by the
library blake3, not by the kernel that is also under test.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from blake3 import blake3

from quoreduce.job import Job
from quoreduce.protocol.vectors import CASES, ROUNDS_APART
from quoreduce.protocol.wire import SelfTest

ROUNDS = 16
DIGEST_BYTES = 16

ANSWERS = {
    "blake3": "4226666f15aaf18e9b48e770dc7cc7bf",
    "words": "feaab12a9c9d9ed190454e6d9034d593",
    "counts": "2cb21c4465e0e53f73fbd9bcae8c9e51",
    "growth": "8e6b59d466914efba2003685f0979a10",
    "hashes": "6654a33387c2973b3dfa7da63b888b15",
    "partition": "949de756b8f221e75ddf534d951a8572",
    "sort": "ac90a3d70dfb982b98a5454798a30a75",
    "merge": "ac90a3d70dfb982b98a5454798a30a75",
    "pieces": "c75f56da13f9d9d0425601c8095abe16",
    "fingerprints": "1e6e7a37415d53d9014d97efe7003eaa",
    "multiset": "725dffdc68269771c2eac7369e5dbae5",
    "prefix": "5fdb662fabcdf8a483db12e1aefef45c",
    "pairs": "518a1285fd7b5d9f7a8aa5e422730d2d",
    "columns": "57944c84514e9adc8baa274598fdd2d8",
    "kept": "46a10410c65b45b2ba70e738abad0a10",
    "sequence": "c4deddb6363baa65f6a035d1f055e9a2",
    "crc": "dc0ae544df6f380d16ebce02adee9622",
    "generated": "2ffe27199a359eccd1741e203d5a6bcc",
    "text": "33a2f6de01aa7b254ed1dbbc4f6448e7",
    "grid": "d7359f17fc2341a0f4a5699b20347a49",
    "word sums": "11dbe904d1b626391d146af850a120cb",
    "record sums": "2c0d18b19d05edabe19cf3efa44487ad",
    "pair sums": "f90a048f2ded8c2eaa20fceb28ea0f2f",
    "integers": "919eaa9e8ac62581cf2a1f1e14b81839",
    "floats": "97a874d081570b73ecba2716fcbd9281",
}
ALL = tuple(ANSWERS)
_ALWAYS = ("integers", "floats", "blake3", "fingerprints")  # what digests and checksums of every job are made with
_OF_JOBS = {
    "quoreduce.jobs.wordcount": ("words", "counts", "growth", "hashes"),
    "quoreduce.jobs.sort": ("partition", "sort", "merge", "pieces", "multiset"),
    "quoreduce.jobs.scan": ("prefix",),
    "quoreduce.jobs.streaming": ("pairs", "columns", "hashes"),
}


def names_for(job: Job) -> tuple[str, ...]:
    """Names of the tests of the kernels that a job computes with; all tests for a user's own job, which may import any
    kernel.

    No worker should load kernels during a job that has no use for them. `quoreduce suspects --test` runs all tests.
    """
    functions = (job.map, job.reduce, job.combine, job.partition, job.sample)
    own = {getattr(function, "__module__", "") for function in functions if function is not None}
    if not own <= _OF_JOBS.keys():
        return ALL
    wanted = {*_ALWAYS, *(name for module in own for name in _OF_JOBS[module])}
    wanted |= {"sequence"} if "sequence" in (job.input, job.output) else set()
    return tuple(name for name in ALL if name in wanted)


def schedule(rounds: int, names: Sequence[str]) -> list[str]:
    """The tests that are run, in their order."""
    return [name for turn in range(rounds) for name in names if turn % ROUNDS_APART.get(name, 1) == 0]


def answer(request: SelfTest) -> bytes:
    """Run the tests of a request and return the digests of their results; zeros for a test that raises."""
    answers = []
    rng = random.Random(f"known answers {request.fault.seed if request.fault else 0}")
    for name in schedule(request.rounds, request.names):
        try:
            made = bytearray(CASES[name]())
        except Exception:  # noqa: BLE001 - a core that computes wrongly may fail in any way
            answers.append(bytes(DIGEST_BYTES))
            continue
        if request.fault and rng.random() * 100 < request.percent:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        answers.append(blake3(made).digest(DIGEST_BYTES))
    return b"".join(answers)


def failures(answers: bytes, rounds: int, names: Sequence[str] = ALL) -> dict[str, int]:
    """Name of a test -> how often its answer was wrong in ``rounds`` rounds. An answer of another length fails all
    tests.
    """
    run = schedule(rounds, names)
    if len(answers) != len(run) * DIGEST_BYTES:
        return dict(Counter(run))
    found = (answers[i : i + DIGEST_BYTES] for i in range(0, len(answers), DIGEST_BYTES))
    return dict(Counter(name for name, one in zip(run, found, strict=True) if one.hex() != ANSWERS[name]))


def wrong_here() -> list[str]:
    """Names of the tests that this process fails."""
    return sorted(failures(answer(SelfTest(0, 1, ALL)), 1))
