"""What a masked fault was: facts in, verdict out. Pure; :mod:`quoreduce.driver.detective` finds the facts.

================================================================================== ================= ===============
what is known                                                                      class             accused
================================================================================== ================= ===============
a map's vote was lost, and its split differs in the page cache and on the disk     input             nobody
a vote was lost, and a domain that voted right, asked again, gives something else  non-determinism   nobody
a vote was lost; the digest is not that of the bytes, or only the counts are wrong metadata          who voted
a vote was lost; what was stored is neither what was voted on nor right            store             who voted
a vote was lost otherwise                                                          compute           who voted
a stored copy is gone, or its digest, recomputed elsewhere, is not the voted one   store             who stored it
a stored copy is right, and a reader saw other bytes once, or twice                network           who read it
an answer came twice                                                               network           who answered
what came is no answer                                                             metadata          who answered
a worker died; did not answer in time                                              crash; hang       its domain
================================================================================== ================= ===============
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quoreduce.data.locate import Spot, Value

Kind = Literal["compute", "store", "network", "metadata", "input", "non-determinism", "crash", "hang"]
Repeats = Literal["yes", "no", "unknown"]
CopyState = Literal["none", "unseen", "gone", "right", "claimed", "other"]
FEW_BITS = 8
NEAR_BITS = 32
"""Digests of different bytes differ in 128 of 256 bits, give or take 8: in 32 or fewer with odds below 1e-34."""
_NUMBERS = {"u64": "<Q", "i64": "<q", "f64": "<d"}


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The first byte that differs, and what lies there. Numbers are from 0; None where there is none.

    Attributes:
        partition: or part.
        offset: of the byte, in the partition.
        what: ``record``, or which part of a block it is.
        column, record: of the block; for a part, the record or the line.
        right, wrong: the record's values, shortened.
        bits: how many differ in the 1024 bytes around it: one is a bit that flipped.
    """

    partition: int
    offset: int
    what: str
    column: int | None
    record: int | None
    right: str
    wrong: str
    bits: int

    def __str__(self) -> str:
        words = [f"partition {self.partition}"]
        words += [f"record {self.record}"] if self.record is not None else []
        words += [f"column {self.column}"] if self.column is not None else []
        words += [self.what] if self.what not in ("record", "bytes") else []
        bits = f" ({self.bits} bit{'s' * (self.bits > 1)})" if 0 < self.bits <= FEW_BITS else ""
        return f"{', '.join(words)}, byte {self.offset}: {self.wrong} instead of {self.right}{bits}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What one masked fault was.

    Attributes:
        kind: the class.
        task: such as ``map 3``; empty for none.
        attempt: number of the execution in the job, or None.
        domain, worker: who is accused, or with ``exonerates`` who would have been.
        evidence: what it follows from, a sentence or two.
        repeats: whether the same domain does it again.
        exonerates: the fault is not the domain's: the lost vote is not to be held against it.
    """

    kind: Kind
    task: str
    domain: str
    worker: str
    attempt: int | None
    evidence: str
    repeats: Repeats = "unknown"
    difference: FirstDifference | None = None
    exonerates: bool = False

    def line(self) -> str:
        """Say it in a line: with the first difference, or without one what else it follows from."""
        again = {"yes": ", repeats", "no": ", does not repeat", "unknown": ""}[self.repeats]
        return f"{self.kind}{again}: {self.task or 'idle'} on {self.domain}: {self.difference or self.evidence}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A class, and why."""

    kind: Kind
    why: str
    repeats: Repeats = "unknown"
    exonerates: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one execution of a task on the agreed inputs; ``probe``: after the vote, to see whether it
    repeats.
    """

    domain: str
    outcome: bytes
    probe: bool = False


@dataclass(frozen=True, slots=True)
class LostVote:
    """What is known of a vote that was lost.

    Attributes:
        domain: whose.
        own, right: what it voted with, and what won.
        others: what came of all other executions of the task, probes among them.
        raised: the error that it raised, if it did.
        partition: the first whose digest is not right; None if all are.
        digests: of that partition: its own, and the right one.
        copy: its stored copy of that partition: there is none, nobody could look at it, it is gone, or its digest,
            recomputed elsewhere, is the right one, the one that it claimed, another.
        unasked: why the domain was not asked again, if it was not.
        inputs: of the task's split, read by somebody else through the page cache and past it: both digests, if that was
            tried.
    """

    domain: str
    own: bytes
    right: bytes
    others: Sequence[Seen] = ()
    raised: str = ""
    partition: int | None = None
    digests: tuple[bytes, bytes] | None = None
    copy: CopyState = "none"
    unasked: str = ""
    inputs: tuple[bytes, bytes] | None = None


def judge_vote(vote: LostVote) -> Verdict:
    """Say what a lost vote was."""
    if vote.inputs is not None and vote.inputs[0] != vote.inputs[1]:
        cached, stored = (digest.hex()[:12] for digest in vote.inputs)
        return Verdict("input", f"its split reads {cached} in the page cache and {stored} on the disk", exonerates=True)
    if why := _not_deterministic(vote):
        return Verdict("non-determinism", why, "unknown", exonerates=True)
    repeats, again = _repeats(vote)
    kind, why = _class(vote)
    return Verdict(kind, why + again, repeats)


def repeated(vote: LostVote) -> bool:
    """Whether what a domain gave comes again: from it, or from one that was right before."""
    return _repeats(vote)[0] == "yes" or bool(_not_deterministic(vote))


def _not_deterministic(vote: LostVote) -> str:
    """Why it is the job's fault, if it is: one of those that voted right gave something else to the same input.

    That two domains are wrong at once is no sign of it: faults may come in numbers. That one is wrong in the same way
    as another, or when it is asked for no other reason than to see, is.
    """
    honest = {seen.domain for seen in vote.others if seen.outcome == vote.right and not seen.probe} - {vote.domain}
    for seen in vote.others:
        if seen.domain in honest and seen.outcome == vote.own:
            return f"{seen.domain} gave this output too, and the agreed one, of the same input"
        if seen.domain in honest and seen.probe and seen.outcome != vote.right:
            why = "gave another one of the same input when it was asked again"
            return f"{seen.domain}, which gave the agreed output, {why}"
    return ""


def all_of_one_kind(diagnoses: Sequence[Diagnosis]) -> list[Diagnosis]:
    """If one map (reduce, sample) is not deterministic none of them is: that others computed something else proves
    nothing.
    """
    seen = {d.task.partition(" ")[0]: d.task for d in reversed(diagnoses) if d.kind == "non-determinism"}
    found = []
    for one in diagnoses:
        by = seen.get(one.task.partition(" ")[0]) if one.kind == "compute" else None
        why = f"{one.evidence}; but the job is not deterministic, see {by}"
        found.append(one if by is None else replace(one, kind="non-determinism", evidence=why, exonerates=True))
    return found


def _repeats(vote: LostVote) -> tuple[Repeats, str]:
    again = [seen.outcome for seen in vote.others if seen.domain == vote.domain]
    if vote.own in again:
        return "yes", ", the same again when executed again"
    if again and all(outcome == vote.right for outcome in again):
        return "no", ", right when executed again"
    if again:
        return "no", ", and wrong in another way when executed again"
    return "unknown", f" (not executed again: {vote.unasked})" if vote.unasked else ""


def _class(vote: LostVote) -> tuple[Kind, str]:
    if vote.raised:
        return "compute", f"it raised {vote.raised!r} where others did not"
    if vote.partition is None or vote.digests is None:
        return "metadata", "its partitions are right, the counts that it gave are not"
    own, right = vote.digests
    told = f"digest {own.hex()[:12]} instead of {right.hex()[:12]} of partition {vote.partition}"
    bits = (int.from_bytes(own) ^ int.from_bytes(right)).bit_count()
    match vote.copy:
        case "right":
            return "metadata", f"{told}; the bytes that it stored are right"
        case "other":
            return "store", f"{told}; what it stored has changed since"
        case "claimed":
            return "compute", f"{told}; that is what it stored"
        case _ if bits <= NEAR_BITS:
            return "metadata", f"{told}: {bits} of 256 bits differ, so it was right once"
        case "gone":
            return "compute", f"{told}; what it stored is gone"
        case "unseen":
            return "compute", f"{told}; nobody could look at what it stored"
    return "compute", f"{told}; no copy was kept"


def judge_copy(voted: bytes, found: bytes | None, state: str, readers: Sequence[str]) -> Verdict:
    """Say what became of a stored copy that ``readers`` (domains) could not use.

    ``found``: its digest, recomputed by somebody else, or None. ``state``: ``there``, ``gone``, ``unseen`` if nobody
    could look.
    """
    who = ", ".join(sorted(set(readers))) or "nobody"
    if state != "there":
        what = (
            "what it stored is gone; missed by"
            if state == "gone"
            else "nobody could look at what it stored; not usable for"
        )
        return Verdict("store", f"{what} {who}")
    if found == voted:
        return Verdict("network", f"read wrong twice by {who}; what is stored is right", "yes")
    digest = f"has digest {found.hex()[:12]} instead of {voted.hex()[:12]} now" if found else "is no block any more"
    return Verdict("store", f"what it stored {digest}; noticed by {who}", "yes")


def judge_death(hung: bool, why: str, deaths: int) -> Verdict:
    """Say what the death of a worker was; ``deaths``: of workers of this domain in this job, with this one."""
    again: Repeats = "yes" if deaths > 1 else "unknown"
    return Verdict("hang" if hung else "crash", why + (f"; {deaths} times in this job" if deaths > 1 else ""), again)


def differing_at(partition: int, offset: int, right: Spot, wrong: Spot, bits: int, pairs: bool) -> FirstDifference:
    """Put what lies at the first differing byte of two copies into words; ``pairs``: of key and value, of the Python
    style.
    """
    column, record = (n if n >= 0 else None for n in (right.column, right.record))
    return FirstDifference(
        partition, offset, right.what, column, record, shown(right, pairs), shown(wrong, pairs), bits
    )


def shown(spot: Spot, pairs: bool = False) -> str:
    """The values of a record as text."""
    if spot.what == "end":
        return "nothing"
    if spot.what == "header":
        return f"{_value(spot.values[0])} records" if spot.values else "a header"
    whole = all(value.start == 0 and len(value.data) == value.nbytes for value in spot.values)
    if pairs and whole and [value.kind for value in spot.values] == ["binary", "binary"]:
        return _pair(*(value.data for value in spot.values))
    return ", ".join(map(_value, spot.values)) or spot.what


def _value(value: Value) -> str:
    form = _NUMBERS.get(value.kind)
    if form is not None and len(value.data) == 8:
        return repr(struct.unpack(form, value.data)[0])
    before, after = "..." * (value.start > 0), "..." * (value.start + len(value.data) < value.nbytes)
    return f"{before}{value.data!r}{after}"


def _pair(key: bytes, value: bytes) -> str:
    import msgspec

    from quoreduce.jobs.python import decode_key

    return ", ".join(_tried(decode, raw) for decode, raw in ((decode_key, key), (msgspec.msgpack.decode, value)))


def _tried(decode: Callable[[bytes], object], raw: bytes) -> str:
    try:
        return repr(decode(raw))
    except Exception:  # noqa: BLE001 - wrong bytes need not be anything
        return repr(raw)
