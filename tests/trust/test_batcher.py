"""The batcher: full or old, numbered without gaps, and the event that is extended."""

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.errors import UsageError
from quoreduce.trust import merkle
from quoreduce.trust.batcher import MODES, Batch, Batcher, batch_event, batch_root


def test_a_batch_is_due_when_it_is_full() -> None:
    batcher = Batcher("merkle", size=3, age_ms=1000)
    assert [batcher.add(leaf, 0) for leaf in (b"a", b"b", b"c")] == [False, False, True]
    assert batcher.close() == Batch(0, "merkle", (b"a", b"b", b"c"))


def test_a_batch_is_due_when_its_first_leaf_is_old() -> None:
    batcher = Batcher("merkle", size=9, age_ms=50)
    assert not batcher.due(10**9)
    assert batcher.deadline_ms is None
    batcher.add(b"a", 100)
    batcher.add(b"b", 140)
    assert batcher.deadline_ms == 150
    assert (batcher.due(149), batcher.due(150)) == (False, True)
    assert batcher.add(b"c", 151)


def test_age_counts_anew_for_each_batch() -> None:
    batcher = Batcher("aggregate", size=9, age_ms=50)
    batcher.add(b"a", 0)
    batcher.close()
    assert not batcher.add(b"b", 60)
    assert batcher.deadline_ms == 110


def test_an_age_of_zero_waits_for_nobody() -> None:
    assert Batcher("merkle", size=9, age_ms=0).add(b"a", 5)


def test_without_batching_each_leaf_is_a_batch() -> None:
    batcher = Batcher("none", size=64)
    assert batcher.add(b"a", 0)
    batch = batcher.close()
    assert batch is not None
    assert batch.root == merkle.leaf_hash(b"a")


def test_a_batch_that_is_due_is_closed_before_it_takes_more() -> None:
    batcher = Batcher("merkle", size=1)
    batcher.add(b"a", 0)
    with pytest.raises(ValueError, match="full"):
        batcher.add(b"b", 0)


ARRIVALS = st.lists(st.tuples(st.binary(max_size=3), st.integers(0, 9)))  # leaf, milliseconds since the one before


@given(st.sampled_from(MODES), st.integers(1, 7), st.integers(0, 20), ARRIVALS)
def test_every_leaf_is_in_one_batch_in_order_and_numbers_have_no_gap(
    mode: Any, size: int, age: int, arrivals: list[tuple[bytes, int]]
) -> None:
    batcher, now, batches = Batcher(mode, size, age), 0, []
    for leaf, later in arrivals:
        now += later
        if batcher.due(now):
            batches.append(batcher.close())
        if batcher.add(leaf, now):
            batches.append(batcher.close())
        assert batcher.deadline_ms is None or batcher.deadline_ms > now
    batches.append(batcher.close())
    assert batcher.close() is None
    closed = [batch for batch in batches if batch is not None]
    assert [batch.number for batch in closed] == list(range(len(closed)))
    assert [leaf for batch in closed for leaf in batch.leaves] == [leaf for leaf, _ in arrivals]
    assert all(1 <= len(batch.leaves) <= (1 if mode == "none" else size) for batch in closed)


def test_what_is_extended_is_laid_out_as_documented() -> None:
    batch = Batch(258, "aggregate", (b"x", b"y"))
    event = b"quoreduce batch event 1" + (258).to_bytes(8, "big") + b"\x01" + (2).to_bytes(8, "big") + batch.root
    assert batch_event(258, "aggregate", 2, merkle.aggregate([b"x", b"y"])) == event
    assert batch.digest == sha256(event).digest()


def test_number_mode_count_and_root_all_change_the_event() -> None:
    events = [
        batch_event(0, "merkle", 2, bytes(32)),
        batch_event(1, "merkle", 2, bytes(32)),
        batch_event(0, "aggregate", 2, bytes(32)),
        batch_event(0, "merkle", 3, bytes(32)),
        batch_event(0, "merkle", 2, b"\x01" * 32),
    ]
    assert len(set(events)) == len(events)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("zip", 1, 1), "zip"),
        (("merkle", 0, 1), "leaves"),
        (("merkle", 1 << 21, 1), "leaves"),
        (("merkle", 1, -1), "-1 ms"),
    ],
)
def test_a_batcher_that_cannot_be_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Batcher(*arguments)


@pytest.mark.parametrize(("mode", "leaves"), [("merkle", []), ("aggregate", []), ("none", []), ("none", [b"a", b"b"])])
def test_a_root_needs_leaves_and_without_batching_just_one(mode: Any, leaves: list[bytes]) -> None:
    with pytest.raises(ValueError, match="leaf"):
        batch_root(mode, leaves)
