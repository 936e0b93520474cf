"""The relay: letters by name, blobs as files, the insider's console, a record of all that goes through."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from towers import Tower, tower

from quoreduce.errors import OutputError, VmError
from quoreduce.files import MARKER
from quoreduce.vm.agents import manager as managers
from quoreduce.vm.agents.channel import Address, Channel, ChannelClosed, connect
from quoreduce.vm.agents.folder import LOCK
from quoreduce.vm.agents.manager import Manager, Store
from quoreduce.vm.agents.names import server_prover, user_prover
from quoreduce.vm.agents.post import (
    BlobPart,
    BlobStored,
    Console,
    ConsoleReply,
    Enter,
    Entered,
    Get,
    Letter,
    Lost,
    Names,
    Post,
    Proof,
    Prove,
    Put,
    Who,
    decode,
    encode,
)
from quoreduce.vm.user import User

VM = "00" * 16
ONE, TWO = tower(), tower()


class Cloud:
    def __init__(self, folder: Path) -> None:
        self.address, self.store, self.record = Address(f"{folder}/m"), folder / "store", folder / "record"
        self.manager = Manager(self.address, self.store, self.record)
        self._thread = threading.Thread(target=self.manager.serve, daemon=True)
        self._thread.start()

    def agent(self, name: str, server: Tower | None = None) -> Channel:
        channel = connect(self.address)
        say(channel, Enter(name, server.identity if server else ""))
        if server:
            asked = hear(channel)
            assert isinstance(asked, Prove)
            say(channel, server_prover(server)(asked.nonce))
        assert hear(channel) == Entered()
        return channel

    def close(self) -> None:
        self.manager.close()
        self._thread.join(5)
        assert not self._thread.is_alive()


def say(channel: Channel, *messages: Post) -> None:
    for message in messages:
        channel.send(encode(message))


def hear(channel: Channel) -> Post:
    frame = channel.receive(timeout_s=10)
    assert frame is not None
    return decode(frame)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path)
    yield made
    made.close()


def test_a_letter_is_passed_on_with_the_name_of_its_sender(cloud: Cloud) -> None:
    alice, server = cloud.agent("alice"), cloud.agent("s1", ONE)
    say(alice, Letter("somebody-else", "s1", b"hello"))
    assert hear(server) == Letter("alice", "s1", b"hello")
    say(alice, Letter("alice", ONE.identity, b"by identity"))
    assert hear(server) == Letter("alice", ONE.identity, b"by identity")


def test_a_letter_to_nobody_comes_back_as_lost(cloud: Cloud) -> None:
    alice = cloud.agent("alice")
    say(alice, Letter("alice", "s9", b"hello"))
    lost = hear(alice)
    assert isinstance(lost, Lost)
    assert "nobody called s9" in lost.reason


def test_a_name_belongs_to_one_agent_until_it_leaves(cloud: Cloud) -> None:
    first, second = cloud.agent("alice"), connect(cloud.address)
    say(second, Enter("alice"))
    assert hear(second) == Entered("the name alice is in use")
    with pytest.raises(ChannelClosed):
        second.receive(timeout_s=10)
    first.close()
    observer = cloud.agent("observer", ONE)
    while "alice" in cloud.manager._agents:  # its thread is leaving
        say(observer, Who())
        hear(observer)
    cloud.agent("alice")


def test_the_servers_that_are_there_are_listed(cloud: Cloud) -> None:
    alice, _one, _two = cloud.agent("alice"), cloud.agent("s1", ONE), cloud.agent("s2", TWO)
    say(alice, Who())
    assert hear(alice) == Names({"s1": ONE.identity, "s2": TWO.identity})


def entered(cloud: Cloud, enter: Enter, prove: Callable[[bytes], Proof]) -> tuple[Channel, Post]:
    """Whoever has to prove who he is, and does it like this: his channel, and what the manager says."""
    channel = connect(cloud.address)
    say(channel, enter)
    asked = hear(channel)
    assert isinstance(asked, Prove)
    say(channel, prove(asked.nonce))
    return channel, hear(channel)


def test_nobody_enters_as_a_server_or_a_user_whom_he_is_not(cloud: Cloud) -> None:
    """Each way to silence one by taking its name: another's TPM, an old proof, a proof for another name, none."""
    user = User(b"s" * 32, b"b" * 32, lambda n: bytes(n))
    prove = user_prover(b"s" * 32, user.keys.box)
    for enter, shown in (
        (Enter("s1", ONE.identity), server_prover(TWO)),
        (Enter("s1", ONE.identity), lambda _: server_prover(ONE)(b"o" * 32)),
        (Enter("s1", ONE.identity), lambda _: Proof(b"nonsense")),
        (Enter("s1", ONE.identity), prove),
        (Enter(user.address), lambda _: prove(b"o" * 32)),
        (Enter("0" * 32), prove),
        (Enter(user.address), server_prover(ONE)),
        (Enter(ONE.identity), server_prover(ONE)),
    ):
        _, said = entered(cloud, enter, shown)
        assert isinstance(said, Entered)
        assert said.reason
    _mine, said = entered(cloud, Enter(user.address), prove)
    assert said == Entered()
    assert user.address in cloud.manager._agents


def test_who_shows_who_he_is_takes_the_place_of_his_older_connection(cloud: Cloud) -> None:
    user = User(b"s" * 32, b"b" * 32, lambda n: bytes(n))
    prove = user_prover(b"s" * 32, user.keys.box)
    first, _ = entered(cloud, Enter(user.address), prove)
    _second, said = entered(cloud, Enter(user.address), prove)
    assert said == Entered()
    with pytest.raises(ChannelClosed):
        first.receive(timeout_s=10)


def test_a_server_whose_name_was_taken_is_reached_and_listed_all_the_same(cloud: Cloud) -> None:
    _squatter = cloud.agent("s1", TWO)
    mine, alice = cloud.agent("s1", ONE), cloud.agent("alice")
    say(alice, Letter("alice", ONE.identity, b"hello"), Who())
    assert hear(mine) == Letter("alice", ONE.identity, b"hello")
    assert hear(alice) == Names({"s1": TWO.identity, f"s1-{ONE.identity[4:16]}": ONE.identity})


def test_those_who_need_not_show_who_they_are_leave_room_for_others(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managers, "UNPROVED_MAX", 1)
    _alice, other = cloud.agent("alice"), connect(cloud.address)
    say(other, Enter("bob"))
    assert hear(other) == Entered("1 others are here who need not show who they are")
    cloud.agent("s1", ONE)


def test_a_blob_comes_back_in_its_parts_and_again_after_a_restart(tmp_path: Path) -> None:
    parts = [b"one", b"", b"three" * 1000]
    cloud = Cloud(tmp_path)
    alice = cloud.agent("alice")
    say(alice, *(Put("b1", number, body, number == 2) for number, body in enumerate(parts)))
    assert hear(alice) == BlobStored("b1")
    cloud.close()
    cloud = Cloud(tmp_path)
    bob = cloud.agent("bob")
    say(bob, Get("b1", 7))
    assert [hear(bob) for _ in parts] == [BlobPart(7, number, body, number == 2) for number, body in enumerate(parts)]
    cloud.close()


def blobs(cloud: Cloud) -> list[Path]:
    return [path for path in cloud.store.iterdir() if path.name != LOCK and not path.name.startswith(f"{MARKER}.")]


def test_a_blob_is_invisible_until_it_is_whole_and_gone_with_its_writer(cloud: Cloud) -> None:
    alice, bob = cloud.agent("alice"), cloud.agent("bob")
    say(alice, Put("b1", 0, b"half", False), Who())
    assert isinstance(hear(alice), Names)
    say(bob, Get("b1", 7))
    part = hear(bob)
    assert isinstance(part, BlobPart)
    assert "no stored blob b1" in part.reason
    alice.close()
    while blobs(cloud):
        say(bob, Who())
        hear(bob)


def test_parts_out_of_order_are_refused_once_and_nothing_is_left(cloud: Cloud) -> None:
    alice = cloud.agent("alice")
    say(alice, Put("b1", 0, b"a", False), Put("b1", 2, b"c", False), Put("b1", 3, b"d", True), Who())
    refused = hear(alice)
    assert isinstance(refused, BlobStored)
    assert "part 2 in the place of 1" in refused.reason
    assert isinstance(hear(alice), Names)
    assert not blobs(cloud)


def test_a_full_disk_is_told_and_what_was_written_is_removed(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(managers.os, "fsync", full)
    alice = cloud.agent("alice")
    say(alice, Put("b1", 0, b"all", True))
    refused = hear(alice)
    assert isinstance(refused, BlobStored)
    assert "No space left" in refused.reason
    assert not blobs(cloud)


@pytest.mark.parametrize("damage", [b"\x00\x00\x00\x09half", b"\xff\xff\xff\xff", b"\x00"])
def test_a_stored_blob_that_was_damaged_is_no_blob(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path / "store")
    (store.folder / "b1").write_bytes(damage)
    with pytest.raises(VmError, match="b1"):
        list(store.parts("b1"))


def test_a_folder_of_others_is_no_store_and_nothing_in_it_is_deleted(tmp_path: Path) -> None:
    (tmp_path / ".vimrc.new").touch()
    with pytest.raises(OutputError, match="is no store of ours, and not empty: choose another folder with --store"):
        Store(tmp_path)
    assert (tmp_path / ".vimrc.new").exists()


def test_a_second_manager_on_a_store_is_refused(tmp_path: Path) -> None:
    first = Store(tmp_path / "store")
    (first.folder / ".b1.alice.new").touch()
    with pytest.raises(VmError, match="in use by another process"):
        Store(tmp_path / "store")
    assert (first.folder / ".b1.alice.new").exists()
    first.close()
    assert not (Store(tmp_path / "store").folder / ".b1.alice.new").exists()


def test_no_blob_takes_the_place_of_the_stores_lock(cloud: Cloud) -> None:
    alice = cloud.agent("alice")
    say(alice, Put(LOCK, 0, b"x", True), Get(LOCK, 1))
    refused, part = hear(alice), hear(alice)
    assert isinstance(refused, BlobStored)
    assert isinstance(part, BlobPart)
    assert "no blob can be called lock" in refused.reason
    assert "no blob can be called lock" in part.reason


def test_a_store_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--store"):
        Store(tmp_path / "file" / "store")


def test_all_that_comes_in_is_recorded(cloud: Cloud) -> None:
    alice, bob = cloud.agent("alice"), cloud.agent("bob")
    say(alice, Letter("alice", "bob", b"in a letter"), Put("b1", 0, b"in a blob", True))
    hear(bob), hear(alice)
    cloud.close()
    recorded = cloud.record.read_bytes()
    assert b"in a letter" in recorded
    assert b"in a blob" in recorded


def test_the_insiders_command_goes_to_the_server_and_its_answer_back(cloud: Cloud) -> None:
    insider, server = cloud.agent("mallory"), cloud.agent("s1", ONE)
    say(insider, Console("x", "s1", VM, b"{}"))
    asked = hear(server)
    assert asked == Console("mallory", "s1", VM, b"{}")
    say(server, ConsoleReply("mallory", b'{"error": 1}'))
    assert hear(insider) == ConsoleReply("mallory", b'{"error": 1}')


@pytest.mark.parametrize("frame", [b"", b"nonsense", encode(BlobStored("b1")), encode(Letter("a", "b", b""))[:-1]])
def test_nonsense_costs_its_sender_the_connection_and_nobody_else(cloud: Cloud, frame: bytes) -> None:
    alice, bob, carol = cloud.agent("alice"), cloud.agent("bob"), cloud.agent("carol")
    alice.send(frame)
    with pytest.raises(ChannelClosed):
        alice.receive(timeout_s=10)
    say(bob, Letter("bob", "carol", b"still here"))
    assert hear(carol) == Letter("bob", "carol", b"still here")


def test_whoever_does_not_say_his_name_is_not_served(cloud: Cloud) -> None:
    channel = connect(cloud.address)
    say(channel, Who())
    with pytest.raises(ChannelClosed):
        channel.receive(timeout_s=10)
