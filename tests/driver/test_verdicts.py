"""From facts to a verdict: the pure part of a diagnosis, case by case, and its laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.data.locate import Spot, Value
from quoreduce.driver.diagnosis import (
    Diagnosis,
    LostVote,
    Seen,
    all_of_one_kind,
    differing_at,
    judge_copy,
    judge_death,
    judge_vote,
    shown,
)

RIGHT, OWN, THIRD = b"right", b"own", b"third"
FAR = (bytes(32), b"\xff" * 32)
NEAR = (bytes(32), b"\x01" + bytes(31))
VOTE = LostVote("a", OWN, RIGHT, [Seen("b", RIGHT), Seen("c", RIGHT)], partition=2, digests=FAR)


def asked_again(*outcomes: bytes, domain: str = "a") -> list[Seen]:
    return [*VOTE.others, *(Seen(domain, outcome, probe=True) for outcome in outcomes)]


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({}, "compute", "no copy was kept"),
        ({"copy": "claimed"}, "compute", "that is what it stored"),
        ({"copy": "gone"}, "compute", "what it stored is gone"),
        ({"copy": "unseen"}, "compute", "nobody could look"),
        ({"copy": "right"}, "metadata", "the bytes that it stored are right"),
        ({"copy": "other"}, "store", "has changed since"),
        ({"digests": NEAR}, "metadata", "1 of 256 bits differ"),
        ({"digests": NEAR, "copy": "claimed"}, "compute", "that is what it stored"),
        ({"partition": None, "digests": None}, "metadata", "counts"),
        ({"raised": "ValueError: no", "partition": None, "digests": None}, "compute", "it raised 'ValueError: no'"),
    ],
)
def test_the_class_of_a_lost_vote(changes: dict[str, object], kind: str, says: str) -> None:
    verdict = judge_vote(replace(VOTE, **changes))  # type: ignore[arg-type]
    assert (verdict.kind, verdict.exonerates) == (kind, False)
    assert says in verdict.why


@pytest.mark.parametrize(
    ("others", "repeats"),
    [(asked_again(OWN), "yes"), (asked_again(RIGHT), "no"), (asked_again(THIRD), "no"),
    (asked_again(RIGHT, OWN), "yes"), ([*VOTE.others, Seen("a", RIGHT)], "no"), (VOTE.others, "unknown")],
)  # fmt: skip
def test_whether_it_repeats(others: list[Seen], repeats: str) -> None:
    assert judge_vote(replace(VOTE, others=others)).repeats == repeats


def test_why_it_was_not_asked_again_is_said() -> None:
    assert judge_vote(replace(VOTE, unasked="it takes too long")).why.endswith(
        "(not executed again: it takes too long)"
    )


@pytest.mark.parametrize(
    "others",
    [[*asked_again(RIGHT), Seen("b", THIRD, probe=True)],  # who was right gives something else
     [*asked_again(OWN), Seen("b", OWN, probe=True)],  # ... and what lost
     [*VOTE.others, Seen("b", OWN)]],
)  # fmt: skip
def test_who_was_right_and_is_not_shows_that_the_job_is_not_deterministic(others: list[Seen]) -> None:
    verdict = judge_vote(replace(VOTE, others=others))
    assert (verdict.kind, verdict.exonerates) == ("non-determinism", True)
    assert "b" in verdict.why


@pytest.mark.parametrize(
    "others",
    [[*VOTE.others, Seen("d", OWN)],  # two that collude
     [*VOTE.others, Seen("b", THIRD)],  # two transient faults, one of them of a domain that was right then
     [*asked_again(RIGHT), Seen("b", RIGHT, probe=True)],
     [*VOTE.others, Seen("d", THIRD, probe=True)]],  # a domain that never was right
)  # fmt: skip
def test_several_faults_at_once_are_no_sign_of_it(others: list[Seen]) -> None:
    assert judge_vote(replace(VOTE, others=others)).kind == "compute"


@given(
    st.lists(st.builds(Seen, st.sampled_from("abcd"), st.sampled_from([RIGHT, OWN, THIRD]), st.booleans()), max_size=9)
)
def test_nobody_is_cleared_by_what_it_says_itself(others: list[Seen]) -> None:
    """However often the accused domain answers, and whatever: only another domain can clear it."""
    own = [seen for seen in others if seen.domain == "a"]
    assert judge_vote(replace(VOTE, others=own)).exonerates is False
    honest = [Seen(seen.domain, RIGHT, seen.probe) for seen in others if seen.domain != "a"]
    assert judge_vote(replace(VOTE, others=own + honest)).exonerates is False


def test_if_one_map_is_not_deterministic_the_other_maps_prove_nothing() -> None:
    def of(task: str, kind: str, clear: bool = False) -> Diagnosis:
        return Diagnosis(kind, task, "a", "a.0", 1, "why", exonerates=clear)  # type: ignore[arg-type]

    found = all_of_one_kind(
        [
            of("map 1", "compute"),
            of("map 2", "non-determinism", True),
            of("reduce 0", "compute"),
            of("map 3", "metadata"),
        ]
    )
    assert [(one.kind, one.exonerates) for one in found] == [
        ("non-determinism", True), ("non-determinism", True), ("compute", False), ("metadata", False),
    ]  # fmt: skip
    assert "see map 2" in found[0].evidence


def test_what_became_of_a_copy() -> None:
    voted = bytes(32)
    assert judge_copy(voted, None, "gone", ["b"]).kind == "store"
    assert judge_copy(voted, b"\1" * 32, "there", ["b"]).kind == "store"
    assert judge_copy(voted, None, "there", ["b"]).kind == "store"
    assert judge_copy(voted, voted, "there", ["b"]).kind == "network"
    assert "nobody could look" in judge_copy(voted, None, "unseen", ["b"]).why


def test_deaths() -> None:
    assert (judge_death(False, "why", 1).kind, judge_death(False, "why", 1).repeats) == ("crash", "unknown")
    assert (judge_death(True, "why", 2).kind, judge_death(True, "why", 2).repeats) == ("hang", "yes")


def value(kind: str, data: bytes, start: int = 0, nbytes: int | None = None) -> Value:
    return Value(kind, data, start, len(data) if nbytes is None else nbytes)


def test_values_are_shown_by_their_types() -> None:
    number, real = value("u64", (5).to_bytes(8, "little")), value("f64", bytes(8))
    assert shown(Spot("record", 1, 4, (value("binary", b"key"), number, real))) == "b'key', 5, 0.0"
    assert shown(Spot("record", -1, 4, (value("line", b"cut", 3, 9),))) == "...b'cut'..."
    assert shown(Spot("end", -1, -1, ())) == "nothing"
    assert shown(Spot("header", -1, -1, (number,))) == "5 records"
    assert shown(Spot("padding", -1, -1, ())) == "padding"


def test_pairs_of_the_python_style_are_decoded_if_they_can_be() -> None:
    key, good, bad = value("binary", b"sword"), value("binary", b"\x92\x01\x02"), value("binary", b"\xc1")
    assert shown(Spot("record", 1, 0, (key, good)), pairs=True) == "'word', [1, 2]"
    assert shown(Spot("record", 1, 0, (key, bad)), pairs=True) == r"'word', b'\xc1'"
    assert shown(Spot("record", 1, 0, (value("binary", b"s\xff"), good)), pairs=True) == r"b's\xff', [1, 2]"


def test_a_difference_says_where_it_is() -> None:
    spots = (Spot("record", 0, 3, (value("binary", data),)) for data in (b"right", b"wrong"))
    told = "partition 2, record 3, column 0, byte 130: b'wrong' instead of b'right'"
    assert str(differing_at(2, 130, *spots, 40, False)) == told


def test_few_bits_are_counted() -> None:
    spots = Spot("record", 0, 3, (value("binary", b"a"),)), Spot("record", 0, 3, (value("binary", b"c"),))
    assert str(differing_at(0, 1, *spots, 1, False)).endswith("b'c' instead of b'a' (1 bit)")
    assert str(differing_at(0, 1, *spots, 2, False)).endswith("(2 bits)")
