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
    assert {int(c.digest): set(c.domains) for c in ballot.candidates} == {s: backers(left, s) for _, s in left}


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


@given(VOTES)
def test_the_leader_has_most_domains_and_of_equals_a_stored_copy_then_the_first_vote(
    votes: list[tuple[str, int]],
) -> None:
    ballot = ballot_of(votes)
    leader = ballot.leader()
    if not votes:
        assert leader is None
        return
    most = max(len(candidate.domains) for candidate in ballot.candidates)
    assert leader is next(candidate for candidate in ballot.candidates if len(candidate.domains) == most)
    last = [candidate for candidate in ballot.candidates if len(candidate.domains) == most][-1]
    last.copies.append(0)
    assert ballot.leader() is last


@given(VOTES)
def test_the_latest_vote_of_a_domain_is_the_last_that_it_cast(votes: list[tuple[str, int]]) -> None:
    ballot = ballot_of(votes)
    for domain in "abcdef":
        assert ballot.latest(domain) == max((n for n, (who, _) in enumerate(votes) if who == domain), default=-1)
    assert ballot.disputed == (len({said for _, said in votes}) > 1)


def test_a_camp_knows_its_attempts_and_gives_up_the_copies_of_withdrawn_votes() -> None:
    ballot = ballot_of([("a", 1), ("b", 1), ("a", 1), ("c", 2)])
    candidate, other = ballot.candidates
    assert (candidate.attempts, candidate.domains, candidate.digest, candidate.error) == (
        {0: "a", 1: "b", 2: "a"},
        {"a": 2, "b": 1},
        b"1",
        "",
    )
    candidate.copies += [0, 1]
    ballot.withdraw([0, 3])
    assert (candidate.attempts, candidate.domains, candidate.copies) == ({1: "b", 2: "a"}, {"a": 2, "b": 1}, [1])
    assert ballot.candidates == [candidate]
    assert other.attempts == {}


def test_errors_agree_by_digest_and_the_first_text_is_kept() -> None:
    ballot = Ballot()
    first = ballot.cast(0, "a", b"e", None, "ValueError: at 0x1")
    assert ballot.cast(1, "b", b"e", None, "ValueError: at 0x2") is first
    assert ballot.cast(2, "c", b"f", None) is not first
    assert (first.error, first.output, ballot.winner(2), ballot.winner(3)) == ("ValueError: at 0x1", None, first, None)


def test_parts_that_are_equal_or_of_equal_digests_are_one_output_and_others_are_not() -> None:
    """R4: records and sizes are claims; what is voted on is over digests and counts."""
    ballot = Ballot()
    first = ballot.cast(0, "a", b"w", Output(b"w", (Part(b"p", 1, 1), Part(b"q", 1, 1))))
    assert ballot.cast(1, "b", b"w", Output(b"w", (Part(b"p", 1, 1), Part(b"q", 1, 1)))) is first
    assert ballot.cast(2, "c", b"w", Output(b"w", (Part(b"p", 1, 1), Part(b"q", 1, 9)))) is first
    assert ballot.cast(3, "d", b"w", Output(b"w", (Part(b"p", 1, 1), Part(b"x", 1, 1)))) is not first
    assert ballot.cast(4, "e", b"v", Output(b"v", first.output.parts)) is not first  # type: ignore[union-attr]


def test_votes_split_along_types_only_if_each_side_has_one_that_is_known() -> None:
    """R11. Domains of an earlier life have no type."""
    two = ballot_of([("a", 1), ("b", 1), ("c", 2), ("d", 2)])
    assert two.split_along({"a": "old", "b": "old", "c": "new", "d": "new"})
    assert not two.split_along({"c": "new", "d": "new"})
    assert not two.split_along({"a": "", "b": "", "c": "new", "d": "new"})
    assert not two.split_along({})
    assert not ballot_of([("a", 1), ("b", 1)]).split_along({"a": "old", "b": "old"})
