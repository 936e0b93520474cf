"""The verifier, of a job: batches, leaves, votes, output and seals, each edited once."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from attested import ENDED, STARTED, Attested, attested, digest_of, manifest_of
from blake3 import blake3
from editing import refused, swap, with_batch, with_entry, with_receipt, with_utpm
from msgspec.structs import replace as put

from quoreduce.trust.receipt import Leaf, TaskEntry


@pytest.fixture(scope="module")
def made() -> Attested:
    return attested()


def test_batches_are_replayed_in_order_and_none_twice(made: Attested) -> None:
    one, two, *rest = made.receipt.utpms[0].batches
    for batches in ((two, one, *rest), (one, one, two, *rest), (two, *rest)):
        refused(with_utpm(made, 0, batches=batches), "batches", "the quote answers another nonce")
    foreign = made.receipt.utpms[1].batches[0]
    refused(with_utpm(made, 0, batches=(foreign, two, *rest)), "batches", "signature: it is not one")
    refused(with_batch(made, root=bytes(32)), "batches", "other PCR values")


def test_leaves_have_one_order_and_one_place(made: Attested) -> None:
    tasks = made.receipt.tasks
    refused(made.changed(tasks=tasks[::-1]), "leaves", "not in order")
    refused(made.changed(tasks=(tasks[0], *tasks)), "leaves", "not in order")

    def moved(**where: int) -> Attested:
        leaves = swap(tasks[0].leaves, 0, put(tasks[0].leaves[0], **where))
        return made.changed(tasks=swap(tasks, 0, put(tasks[0], leaves=leaves)))

    first = tasks[0].leaves
    refused(moved(position=9), "leaves", "is missing among those listed")
    refused(moved(utpm=9), "leaves", "µTPM")
    refused(moved(attempt=first[1].attempt), "leaves", "listed twice")
    refused(
        moved(utpm=first[1].utpm, batch=first[1].batch, position=first[1].position), "leaves", "two leaves at position"
    )
    more = put(tasks[0], leaves=(*first, Leaf(7, 0, 0, 10**6)))
    refused(made.changed(tasks=swap(tasks, 0, more)), "leaves", "of a batch that is not there: (7, 0)")


def test_two_leaves_that_change_places_are_noticed(made: Attested) -> None:
    leaves = [leaf for entry in made.receipt.tasks for leaf in entry.leaves]
    one, two = (leaf for leaf in leaves if (leaf.utpm, leaf.batch) == (0, 0))
    trade = {one: put(one, position=two.position), two: put(two, position=one.position)}
    tasks = tuple(
        put(entry, leaves=tuple(trade.get(leaf, leaf) for leaf in entry.leaves)) for entry in made.receipt.tasks
    )  # fmt: skip
    refused(made.changed(tasks=tasks), "leaves", "batch 0 of µTPM 0 (core 0): the root of the batch is not that")


@pytest.mark.parametrize("member", ["input", "output"])
def test_a_digest_that_was_not_measured_is_refused(made: Attested, member: str) -> None:
    refused(
        with_entry(made, lambda one: True, lambda one: (put(one, **{member: bytes(32)}),)),
        "leaves",
        "the root of the batch",
    )


def test_only_f_plus_1_distinct_domains_win_a_vote(made: Attested) -> None:
    def said_to_win(one: TaskEntry) -> tuple[TaskEntry, ...]:
        return (put(one, agreed=1),)

    lost = with_entry(made, lambda one: not one.agreed, said_to_win)
    refused(lost, "votes", "map 1 has 1 votes of distinct domains, 2 are needed")
    nobody = with_entry(made, lambda one: bool(one.agreed) and one.kind == 2, lambda one: (put(one, agreed=0),))
    refused(nobody, "votes", "no output of reduce 0 won")


def test_a_domain_that_repeats_itself_has_one_vote() -> None:
    made = attested(workers=1, nodes=1, hardware=False, wrong=())
    refused(made, "votes", "map 0 has 1 votes of distinct domains, 2 are needed")


def test_the_rule_of_the_vote_goes_with_mode_and_f() -> None:
    made = attested(hardware=False, wrong=())
    for changes in ({"need": 1}, {"f": 2}, {"mode": "original"}):
        one = rebuilt(made, **changes)
        refused(one, "votes", "votes do not win in mode")
    refused(replace(made, policy=made.authority.policy(f_min=2)), "votes", "masks 1 faults, the policy wants 2")


def rebuilt(made: Attested, **changes: Any) -> Attested:
    """The same tasks with another record of the job, run from the start by honest µTPMs: what a careless driver could
    do.
    """
    return attested(hardware=False, wrong=(), authority=made.authority, record=changes)


def test_one_output_of_a_task_wins() -> None:
    made = attested(hardware=False, record={"need": 1, "mode": "original"})
    assert made.verify().reason.startswith("output: the manifest is of another job")
    both = with_entry(made, lambda one: not one.agreed, lambda one: (put(one, agreed=1),))
    refused(both, "votes", "two outputs of map 1 are said to have won")


def test_every_task_of_the_job_was_voted_on_and_no_other(made: Attested) -> None:
    assert "no output of map 3 won a vote" in rebuilt(made, maps=4).verify().reason
    assert "the job has no map 2" in rebuilt(made, maps=2).verify().reason
    assert "no output of sample 0 won a vote" in rebuilt(made, samples=1).verify().reason


def test_the_output_is_what_was_voted(made: Attested) -> None:
    refused(made, "output", "not the one of this receipt", manifest=made.manifest + b" ")
    parts = {f"part-r-{i:05d}": digest_of("part", i).hex() for i in range(2)}
    refused(made, "output", "part-r-00001 is not what was voted", part_digests=parts | {"part-r-00001": "00" * 32})
    refused(made, "output", "part-r-00000 is missing", part_digests={"part-r-00001": parts["part-r-00001"]})


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ('"bytes": 9', '"bytes": 8', "part-r-00000 is not what reduce 0"),
        ('"records": 7', '"records": 6', "part-r-00000 is not what reduce 0"),
        ("part-r-00001", "../../etc", "../../etc is not what reduce 1"),
        ('"wordcount"', '"sort"', "another job"),
        ('"parts"', '"party"', "parts"),
    ],
)
def test_a_manifest_that_the_driver_made_up_does_not_match_the_votes(
    made: Attested, was: str, now: str, says: str
) -> None:
    forged = manifest_of(2).decode().replace(was, now, 1).encode()
    refused(replace(made.changed(manifest=blake3(forged).digest()), manifest=forged), "output", says)


def test_parts_records_read_and_reduces_are_as_many(made: Attested) -> None:
    refused(made.changed(reads=(0,)), "output", "2 reduces, but 2 parts and 1 record counts")
    refused(made.changed(reads=(0, 2)), "output", "part-r-00001 is not what reduce 1")
    fewer = manifest_of(1)
    refused(replace(made.changed(manifest=blake3(fewer).digest()), manifest=fewer), "output", "1 parts")


@pytest.mark.parametrize(
    "changes",
    [{"ended": ENDED - timedelta(seconds=1)}, {"started": STARTED - timedelta(days=1)}],
    ids=["ended", "started"],
)
def test_what_no_leaf_holds_is_held_by_the_seals(made: Attested, changes: dict[str, Any]) -> None:
    refused(with_receipt(made, **changes), "seal", "the seal of µTPM 0 (core 0): the quote answers another nonce")


def test_seals_are_those_of_the_utpms_that_say_so(made: Attested) -> None:
    seals = made.receipt.seals
    for wrong in ((), seals[1:], seals[::-1], (*seals, seals[0])):
        refused(with_receipt(made, seals=wrong), "seal", "missing, too many, or out of order")
    refused(
        with_receipt(made, seals=(put(seals[1], utpm=0), *seals[1:])),
        "seal",
        "µTPM 0 (core 0): signature: it is not one",
    )
    lonely = made.changed(utpms=tuple(put(one, sealed=number == 0) for number, one in enumerate(made.receipt.utpms)))
    refused(lonely, "seal", "1 domains sealed the receipt; 2 are needed")
