"""Channels: frames whole and bounded, addresses that are in use, peers that vanish or talk nonsense."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce.errors import UsageError, VmError
from quoreduce.vm.agents import channel as channels
from quoreduce.vm.agents.channel import FRAME_BYTES_MAX, Address, Channel, ChannelClosed, Listener, connect


def pair() -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return Channel(one), Channel(other)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=5000), max_size=8))
def test_frames_arrive_as_they_were_sent(frames: list[bytes]) -> None:
    one, other = pair()
    for frame in frames:
        one.send(frame)
    one.close()
    assert [other.receive() for _ in frames] == frames
    with pytest.raises(ChannelClosed):
        other.receive()


def test_the_largest_frame_passes_and_a_larger_one_is_not_sent() -> None:
    one, other = pair()
    whole = os.urandom(1024) * (FRAME_BYTES_MAX // 1024)
    sender = threading.Thread(target=one.send, args=(whole,))
    sender.start()
    assert other.receive() == whole
    sender.join()
    with pytest.raises(ValueError, match="over the bound"):
        one.send(whole + b"x")


@pytest.mark.parametrize("head", [b"\x02" + bytes(4), b"\x01\xff\xff\xff\xff", b"GET /", b"\x01\x00\x40\x00\x01"])
def test_what_is_no_frame_of_ours_closes_the_channel(head: bytes) -> None:
    raw, far = socket.socketpair()
    other = Channel(far)
    raw.sendall(head)
    with pytest.raises(ChannelClosed, match="speaks something else"):
        other.receive()
    assert raw.recv(1) == b""


def test_a_peer_that_vanishes_in_the_middle_of_a_frame_is_noticed() -> None:
    raw, far = socket.socketpair()
    raw.sendall(b"\x01\x00\x00\x00\x09half")
    raw.close()
    with pytest.raises(ChannelClosed):
        Channel(far).receive()


def test_a_peer_that_falls_silent_in_the_middle_of_a_frame_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "STALL_S", 0.05)
    raw, far = socket.socketpair()
    other = Channel(far)
    raw.sendall(b"\x01\x00\x00\x00\x09half")
    with pytest.raises(ChannelClosed, match="silent"):
        other.receive()
    assert raw.recv(1) == b""


def test_a_peer_that_does_not_read_makes_the_sender_wait_and_is_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "STALL_S", 0.05)
    one, _other = pair()

    def send_for_ever() -> None:
        while True:
            one.send(bytes(1 << 20))

    with pytest.raises(ChannelClosed, match="did not read"):
        send_for_ever()


def test_receiving_with_a_limit_gives_nothing_if_nothing_comes() -> None:
    one, other = pair()
    assert other.receive(timeout_s=0) is None
    one.send(b"now")
    assert other.receive(timeout_s=5) == b"now"


def test_closing_a_channel_wakes_whoever_waits_in_it() -> None:
    one, _other = pair()
    caught: list[type] = []

    def wait() -> None:
        try:
            one.receive()
        except ChannelClosed as error:
            caught.append(type(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    one.close()
    waiting.join(5)
    assert caught == [ChannelClosed]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "tcp:127.0.0.1",
        "tcp:127.0.0.1:0",
        "tcp:127.0.0.1:70000",
        "tcp:10.0.0.1:80",
        "/tmp/x",
        "tcp:[::1]:9",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unix:PATH or tcp:127"):
        Address.parse(text)


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(UsageError, match="shorter"):
        Address.parse("unix:/" + "x" * 200)


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return Address.parse(f"unix:{tmp_path}/s" if request.param == "unix" else f"tcp:127.0.0.1:{free_port()}")


def test_an_address_in_use_is_said_to_be(address: Address) -> None:
    listener = Listener(address)
    with pytest.raises(UsageError, match="in use"):
        Listener(address)
    listener.close()
    Listener(address).close()


def test_what_connects_is_accepted(address: Address) -> None:
    listener = Listener(address)
    one = connect(address)
    other = next(listener.accept())
    one.send(b"hello")
    assert other.receive() == b"hello"
    listener.close()
    assert list(listener.accept()) == []


def test_nobody_there_is_said_with_what_to_do(address: Address) -> None:
    with pytest.raises(VmError, match="quoreduce vm manager") as caught:
        connect(address)
    assert caught.value.exit_code == 6


def test_a_socket_left_by_a_killed_process_is_replaced_and_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    listener = Listener(Address(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.close()
    assert not path.exists()


def test_a_file_in_the_place_of_the_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(UsageError, match="in use"):
        Listener(Address(str(path)))
    assert path.read_text() == "mine"


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot listen"):
        Listener(Address(str(tmp_path / "no" / "s")))
