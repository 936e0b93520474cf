"""Evidence that someone has edited, sealed anew or not, and what a verifier has to say of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from attested import Attested
from msgspec.structs import replace as put

from quoreduce.trust import verifier
from quoreduce.trust.receipt import TaskEntry

CLAIMS = [
    "format", "nonce", "freshness", "ek_chain", "enrolment", "ak_signature", "pcr_values",
    "environment", "utpm", "batches", "leaves", "votes", "output", "seal",
]  # fmt: skip
OTHER_NONCE = bytes(32)


def swap(items: tuple[Any, ...], place: int, *new: Any) -> tuple[Any, ...]:
    """``items`` with one of them replaced by ``new``, or removed."""
    return (*items[:place], *new, *items[place + 1 :])


def refused(made: Attested, claim: str, says: str, **arguments: Any) -> None:
    """It is refused at this claim, for this reason; claims before it hold and claims after it are not reached."""
    verdict = made.verify(**arguments)
    assert not verdict.accepted
    assert verdict.reason.startswith(f"{claim}: "), verdict.as_text()
    assert says in verdict.reason
    assert [one.name for one in verdict.claims] == CLAIMS
    place = CLAIMS.index(claim)
    assert all(one.status != "failed" for one in verdict.claims[:place])
    assert all(one == verifier.Claim(one.name, "not_checked", "not reached") for one in verdict.claims[place + 1 :])


def with_receipt(made: Attested, **changes: Any) -> Attested:
    """A receipt edited by someone who cannot seal it anew."""
    return replace(made, receipt=put(made.receipt, **changes))


def with_hardware(made: Attested, **changes: Any) -> Attested:
    launch = made.receipt.launches[0]
    assert launch.hardware is not None
    return with_launch(made, hardware=put(launch.hardware, **changes))


def with_launch(made: Attested, **changes: Any) -> Attested:
    """The first launch edited, and sealed anew: what a driver that lies could do."""
    return made.changed(launches=swap(made.receipt.launches, 0, put(made.receipt.launches[0], **changes)))


def with_utpm(made: Attested, number: int, **changes: Any) -> Attested:
    utpms = made.receipt.utpms
    return made.changed(utpms=swap(utpms, number, put(utpms[number], **changes)))


def with_batch(made: Attested, **changes: Any) -> Attested:
    batches = made.receipt.utpms[0].batches
    return with_utpm(made, 0, batches=swap(batches, 0, put(batches[0], **changes)))


def with_entry(
    made: Attested, chosen: Callable[[TaskEntry], bool], change: Callable[[TaskEntry], tuple[TaskEntry, ...]]
) -> Attested:
    place = next(i for i, entry in enumerate(made.receipt.tasks) if chosen(entry))
    tasks = swap(made.receipt.tasks, place, *change(made.receipt.tasks[place]))
    return made.changed(tasks=tuple(sorted(tasks, key=lambda one: (one.kind, one.index, one.input, one.output))))
