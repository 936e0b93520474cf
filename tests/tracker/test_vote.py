"""The vote against a twin too simple to be wrong, on random ballots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quoreduce.tracker.messages import Output, Part
from quoreduce.tracker.vote import Ballot

VOTES = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)), max_size=12)  # (domain, what it says)
SETS = st.sets(st.sampled_from("abcdefgh"))


def output(n: int) -> Output:
    return Output(b"%d" % n, (Part(b"%d" % n, 1, 1),))


def ballot_of(votes: list[tuple[str, int]]) -> Ballot:
    ballot = Ballot()
    for attempt, (domain, said) in enumerate(votes):
        ballot.cast(attempt, domain, b"%d" % said, output(said) if said else None)
    return ballot


def backers(votes: list[tuple[str, int]], said: int) -> set[str]:
    return {domain for domain, s in votes if s == said}


@given(VOTES, st.integers(1, 4))
def test_f_plus_1_distinct_domains_win(votes: list[tuple[str, int]], need: int) -> None:
    """R1, R4."""
    winner = ballot_of(votes).winner(need)
    most = max((len(backers(votes, said)) for said in range(4)), default=0)
    assert (winner is not None) == (most >= need)
    if winner is not None:
        assert set(winner.domains) == backers(votes, int(winner.digest))
        assert len(winner.domains) == most


@given(VOTES, SETS, st.integers(1, 4))
def test_missing_is_what_even_unanimity_of_the_rest_would_not_reach(
    votes: list[tuple[str, int]], running: set[str], need: int
) -> None:
    """R2: try every way in which those running could all say the same."""
    best = max(len(backers(votes, said) | running) for said in range(5))
    assert ballot_of(votes).missing(running, need) == max(0, need - best)


@given(VOTES, st.sets(st.integers(0, 11)))
def test_withdrawn_votes_leave_no_trace(votes: list[tuple[str, int]], stale: set[int]) -> None:
    """R5."""
    ballot = ballot_of(votes)
    ballot.withdraw(stale)
    left = [vote for attempt, vote in enumerate(votes) if attempt not in stale]
    assert {int(c.digest): set(c.domains) for c in ballot.camps} == {s: backers(left, s) for _, s in left}


@given(VOTES)
def test_wavering_domains_are_those_that_said_two_things(votes: list[tuple[str, int]]) -> None:
    """R11."""
    said = {domain: {s for d, s in votes if d == domain} for domain, _ in votes}
    assert ballot_of(votes).wavering() == sum(len(things) > 1 for things in said.values())


def test_errors_and_outputs_of_one_digest_are_two_things() -> None:
    ballot = Ballot()
    ballot.cast(0, "a", b"1", output(1))
    ballot.cast(1, "b", b"1", None, "an error whose digest happens to be the same")
    assert ballot.disputed
    assert ballot.winner(2) is None
