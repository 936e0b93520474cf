"""What a worker says is bytes, decoded under size caps, and a claim about its own execution only (R10, R12).

One worker of three says whatever it likes. It may cost executions; it may never decide anything.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from meddling import Meddler, Said, attempt_of, meddled_session
from runs import SORT, WORDCOUNT, Runner, left_in, parts_of

from quoreduce import Options, Session
from quoreduce.errors import HostError
from quoreduce.protocol import wire
from quoreduce.runtime import local
from quoreduce.runtime.session import verify

EVIL = "worker1"
OPTIONS = {"reducers": 2, "split_mb": 0.012}

digests = st.one_of(st.binary(min_size=32, max_size=32), st.just(bytes(32)))
counts = st.one_of(st.integers(0, 5), st.integers(0, 2**63 - 1))
part_replies = st.builds(wire.PartReply, digests, counts, counts, st.one_of(st.just(-1), counts))
attempts = st.one_of(st.integers(0, 40), counts)
bad = st.lists(st.integers(0, 40), max_size=5).map(tuple)
data, error = st.binary(max_size=50), st.text(max_size=20)
done = st.builds(
    wire.Done, attempts, st.lists(part_replies, max_size=4).map(tuple),
    st.sampled_from(["", "/dev/zero", "/nowhere", "../.."]), data, counts, counts, counts, bad, st.integers(0, 3),
)  # fmt: skip
replies = st.builds(
    lambda reply, cpu_s, generation: msgspec.structs.replace(reply, cpu_s=cpu_s, generation=generation),
    st.one_of(
        done, done, done, st.builds(wire.JobRaised, attempts, error),
        st.builds(wire.InputsRefused, attempts, bad, error),
        st.builds(wire.Summed, attempts, st.lists(part_replies, max_size=4).map(tuple), data, data, counts),
        st.builds(wire.HostFailed, attempts, error), st.builds(wire.Reread, attempts, digests),
        st.builds(wire.Inspected, attempts, data, st.one_of(st.none(), digests), counts),
        st.builds(wire.Tested, attempts, data), st.builds(wire.NotTested, attempts, error),
        st.builds(wire.Ready, data), st.builds(wire.NotReady, error, st.booleans()),
        *(st.builds(kind, data) for kind in (wire.LaunchQuoted, wire.BatchQuoted, wire.SealQuoted)),
        st.builds(wire.NotQuoted, error),
    ),
    st.floats(0, 10), st.integers(0, 3),
)  # fmt: skip


@pytest.fixture(scope="module")
def meddled() -> Iterator[tuple[Session, Meddler]]:
    with meddled_session() as both:
        yield both


@pytest.fixture(autouse=True)
def _honest(meddled: tuple[Session, Meddler]) -> Iterator[None]:
    yield
    for name in ("replies", "requests"):
        meddled[1].__dict__.pop(name, None)


@pytest.fixture(scope="module")
def right(verses: Path, processes: object, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    _, parts = Runner(processes, tmp_path_factory.mktemp("right"))(  # type: ignore[arg-type]
        "inline", WORDCOUNT, verses, mode="original", **OPTIONS
    )
    return parts


@given(st.binary(max_size=200))
@example(b"\x82\xa4type\xa6failed\xa5error\xa2\xff\xff")
@example(b"\x81\xa1\xff\x00")
@example(b"\x81\xa1z" + b"\x91" * 100_000)
@example(b"\x81\xa7attempt\xdf\xff\xff\xff\xff")
@example(b"\x81\xa5parts\xdd\xff\xff\xff\xff")
def test_any_bytes_are_a_reply_or_a_host_error(raw: bytes) -> None:
    with suppress(HostError):
        assert isinstance(wire.decode_reply(raw), wire.Reply)


@given(replies, st.data())
def test_a_damaged_reply_is_a_reply_or_a_host_error(reply: wire.Reply, data: st.DataObject) -> None:
    raw = bytearray(wire.encode(reply))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with suppress(HostError):
        assert isinstance(wire.decode_reply(bytes(raw)), wire.Reply)


@pytest.mark.parametrize(
    "reply",
    [wire.Done(0, (wire.PartReply(bytes(32), -1, 0, 0),)), wire.Done(0, (wire.PartReply(bytes(31), 0, 0, 0),)),
     wire.Done(0, (wire.PartReply(bytes(32), 0, 1 << 63, 0),)), wire.Done(0, records_in=-1),
     wire.Done(0, cpu_s=float("nan")), wire.Done(0, cpu_s=-1.0), wire.Done(0, bad=(-1,)),
     wire.Done(-1), wire.JobRaised(-1, ""), wire.JobRaised(0, "x" * 5000), wire.Reread(0, b""),
     wire.Summed(0, (), bytes(4097), b""), wire.Tested(-1, b"")],
)  # fmt: skip
def test_a_reply_out_of_bounds_is_a_host_error(reply: wire.Reply) -> None:
    with pytest.raises(HostError):
        wire.decode_reply(wire.encode(reply))


def test_what_a_worker_says_is_not_quoted_at_length() -> None:
    raw = wire.encode(wire.Done(0)).replace(b"\xa4done", b"\xda\xff\xff" + b"x\n" * 32767 + b"x")
    with pytest.raises(HostError, match="no reply: Invalid value") as caught:
        wire.decode_reply(raw)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_a_reply_over_the_size_cap_is_not_decoded() -> None:
    with pytest.raises(HostError, match="at most"):
        wire.decode_reply(bytes(wire.REPLY_BYTES_MAX + 1))


@pytest.mark.parametrize("length", [wire.REPLY_BYTES_MAX + 1, 1 << 40, (1 << 64) - 1])
def test_a_message_over_the_size_cap_is_not_even_received(length: int) -> None:
    """The worker behind the socket counts as dead: its driver does not fill its memory with what it sends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(struct.pack("<Q", 3) + b"abc" + struct.pack("<Q", length) + b"more")
        process = local._Process("w0", None, ours, None)  # type: ignore[arg-type]
        assert process.receive() == ([b"abc"], False)


class Evil:
    """Lets ``change`` alter the replies of one worker to tasks, once for each of ``strikes`` replies of some kinds."""

    def __init__(self, change: object, strikes: int = 1000, kinds: object = wire.Attempted) -> None:
        self.change, self.strikes, self.kinds = change, strikes, kinds

    def __call__(self, worker: str, reply: wire.Reply) -> list[Said]:
        if not worker.startswith(EVIL) or not isinstance(reply, self.kinds) or not self.strikes:
            return [reply]
        self.strikes -= 1
        said = self.change(reply)  # type: ignore[operator]
        return said if isinstance(said, list) else [said]


def replaced(before: set[str], session: Session) -> list[str]:
    """Which workers are no longer those that they were."""
    return [name.partition(".")[0] for name in before - {info.name for info in session.workers}]


def run_meddled(meddled: tuple[Session, Meddler], text: Path, folder: Path, **options: object) -> list[bytes]:
    output = folder / "out"
    meddled[0].run(WORDCOUNT, [str(text)], str(output), Options(**{**OPTIONS, **options}))  # type: ignore[arg-type]
    assert left_in(folder) == ["out"]
    assert verify(str(output)).ok
    return parts_of(output)


def test_a_worker_that_answers_garbage_is_killed_and_replaced(
    meddled: tuple[Session, Meddler], verses: Path, tmp_path: Path, right: list[bytes]
) -> None:
    meddled[1].replies = Evil(lambda reply: b"\xc1 garbage", strikes=2)
    before = {info.name for info in meddled[0].workers}
    assert run_meddled(meddled, verses, tmp_path) == right
    assert replaced(before, meddled[0]) == [EVIL]


def test_a_worker_that_answers_too_much_is_killed_and_replaced(
    meddled: tuple[Session, Meddler], verses: Path, tmp_path: Path, right: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "REPLY_BYTES_MAX", 1 << 20)
    meddled[1].replies = Evil(lambda reply: msgspec.structs.replace(reply, data=bytes(1 << 20)), 1, wire.Done)
    before = {info.name for info in meddled[0].workers}
    assert run_meddled(meddled, verses, tmp_path) == right
    assert replaced(before, meddled[0]) == [EVIL]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(said=st.lists(replies, min_size=1, max_size=12))
def test_whatever_one_worker_says_the_output_is_right(
    meddled: tuple[Session, Meddler], verses: Path, right: list[bytes], tmp_path_factory: pytest.TempPathFactory,
    said: list[wire.Reply],
) -> None:  # fmt: skip
    """Any reply that decodes, for itself or for others; the true one comes after it, and is late if that was for
    itself.
    """

    def speak(worker: str, reply: wire.Reply) -> list[Said]:
        if not worker.startswith(EVIL) or attempt_of(reply) < 0 or not said:
            return [reply]
        return [msgspec.structs.replace(said.pop(), generation=reply.generation), reply]

    meddled[1].replies = speak
    assert run_meddled(meddled, verses, tmp_path_factory.mktemp("said")) == right


def forge_others(reply: wire.Attempted) -> list[Said]:
    """Vote for everybody else's executions too, and check everybody else's parts."""
    if not isinstance(reply, wire.Done):
        return [msgspec.structs.replace(reply, attempt=attempt) for attempt in range(40)]
    wrong = tuple(wire.PartReply(bytes(32), p.records, p.nbytes, p.offset) for p in reply.parts)
    return [msgspec.structs.replace(reply, attempt=attempt, parts=wrong) for attempt in range(40)]


def lie_about_sizes(reply: wire.Done) -> wire.Done:
    """Right digests with wrong sizes: the manifest must not believe them."""
    parts = tuple(wire.PartReply(p.digest, p.records, p.nbytes + 8, p.offset) for p in reply.parts)
    return msgspec.structs.replace(reply, parts=parts, records_in=reply.records_in + 1)


def lie_about_records(reply: wire.Done) -> wire.Done:
    parts = tuple(wire.PartReply(p.digest, p.records + 1, p.nbytes, p.offset) for p in reply.parts)
    return msgspec.structs.replace(reply, parts=parts)


def point_elsewhere(reply: wire.Done) -> wire.Done:
    """Claim that the output lies in another file."""
    return msgspec.structs.replace(reply, path="/dev/zero" if reply.path else "")


def blame_others(reply: wire.Done) -> wire.Done:
    """Say that everything it has read, and everything else, is bad."""
    return msgspec.structs.replace(reply, bad=tuple(range(50)))


def no_parts(reply: wire.Done) -> wire.Done:
    return msgspec.structs.replace(reply, parts=(), data=b"x")


def too_many_parts(reply: wire.Done) -> wire.Done:
    return msgspec.structs.replace(reply, parts=reply.parts * 3)


def says_it_failed(reply: wire.Attempted) -> wire.Reply:
    return wire.JobRaised(reply.attempt, "made up", generation=reply.generation)


def says_it_refused(reply: wire.Attempted) -> wire.Reply:
    return wire.InputsRefused(reply.attempt, (0, 1, 2), generation=reply.generation)


LIES = [(lie, wire.Done) for lie in (lie_about_sizes, lie_about_records, point_elsewhere, blame_others, no_parts,
                                     too_many_parts)]  # fmt: skip
LIES += [(lie, wire.Attempted) for lie in (forge_others, says_it_failed)]


@pytest.mark.parametrize(("lie", "kinds"), LIES)
def test_a_worker_that_always_lies_decides_nothing(
    lie: object, kinds: object, meddled: tuple[Session, Meddler], verses: Path, tmp_path: Path, right: list[bytes]
) -> None:
    meddled[1].replies = Evil(lie, kinds=kinds)
    assert run_meddled(meddled, verses, tmp_path) == right


def test_a_worker_that_refuses_everything_for_a_while_decides_nothing(
    meddled: tuple[Session, Meddler], verses: Path, tmp_path: Path, right: list[bytes]
) -> None:
    meddled[1].replies = Evil(says_it_refused, strikes=6)
    assert run_meddled(meddled, verses, tmp_path) == right


def test_a_forged_sample_decides_nothing(
    meddled: tuple[Session, Meddler], records: Path, records_sorted: bytes, tmp_path: Path
) -> None:
    """The digest is right and the data that come with it are not: the split keys are not taken on trust."""
    meddled[1].replies = Evil(lambda reply: msgspec.structs.replace(reply, data=b""), kinds=wire.Done)
    options = Options(reducers=3, split_mb=0.05)
    meddled[0].run(SORT, [str(records)], str(tmp_path / "out"), options)
    assert b"".join(parts_of(tmp_path / "out")) == records_sorted


def test_only_the_worker_that_was_asked_may_check_a_part(
    meddled: tuple[Session, Meddler], verses: Path, tmp_path: Path, right: list[bytes]
) -> None:
    """An answer to a check from anybody else changes nothing; and whoever checks is not who wrote."""
    checkers: list[str] = []

    def note(worker: str, request: wire.Request) -> bool:
        if isinstance(request, wire.RereadTask):
            checkers.append(worker)
        return True

    meddled[1].requests = note
    assert run_meddled(meddled, verses, tmp_path) == right
    assert len(checkers) == OPTIONS["reducers"]
