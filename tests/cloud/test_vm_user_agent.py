"""The user's agent and the insider before a manager that lies: names that become others', stores that lose."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from quoreduce.cloud import wire
from quoreduce.cloud.agents import insider, post
from quoreduce.cloud.agents.channel import Address, Listener
from quoreduce.cloud.agents.folder import StateFolder
from quoreduce.cloud.agents.link import enter
from quoreduce.cloud.agents.manager import Manager
from quoreduce.cloud.agents.user import UserAgent
from quoreduce.cloud.user import Kept, Vm, Wish
from quoreduce.errors import UsageError, VmError

ONE, OTHER = "000b" + "11" * 32, "000b" + "22" * 32
AT = datetime(2026, 1, 2, tzinfo=UTC)
PARTS = [b"first", b"second", b""]


def stream_digest() -> bytes:
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in PARTS)).digest()


def backed_up(stream: bytes) -> Vm:
    manifest = wire.Manifest(b"o" * 32, b"v" * 16, 1, 1, wire.Spec(), bytes(32), stream, 11)
    kept = Kept(1, bytes(32), wire.encode(manifest))
    return Vm(b"v" * 16, "web", b"", wire.Spec(), bytes(32), 1, "running", ONE, backup=kept)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Address]:
    manager = Manager(Address(f"{tmp_path}/m"), tmp_path / "store")
    thread = threading.Thread(target=manager.serve, daemon=True)
    thread.start()
    yield Address(f"{tmp_path}/m")
    manager.close()
    thread.join(5)


@pytest.fixture
def agent(address: Address, tmp_path: Path) -> Iterator[UserAgent]:
    with StateFolder(tmp_path / "user") as folder:
        folder.write("vms/" + (b"v" * 16).hex(), msgspec.json.encode(backed_up(stream_digest())))
        made = UserAgent(folder, lambda text: None)
        made.connect(str(address))
        yield made
        made.close()


def store(address: Address, parts: list[bytes]) -> None:
    channel = enter(address, "s1")
    for number, body in enumerate(parts):
        channel.send(post.encode(post.Put((b"o" * 32).hex(), number, body, number == len(parts) - 1)))
    frame = channel.receive(10)
    assert frame is not None
    assert post.decode(frame) == post.Stored((b"o" * 32).hex())
    channel.close()


def test_a_name_stays_the_server_that_it_was_when_it_was_first_asked_for(agent: UserAgent, address: Address) -> None:
    first = enter(address, "s1", ONE)
    assert agent.server("s1") == ONE
    assert agent.names() == {ONE: "s1"}
    first.close()
    other = enter(address, "s2", OTHER)
    assert agent.server(OTHER) == OTHER
    impostor = enter(address, "s1", "000b" + "33" * 32)
    with pytest.raises(VmError, match="another server than before"):
        agent.server("s1")
    other.close()
    impostor.close()


def test_the_manager_is_remembered(agent: UserAgent, address: Address, tmp_path: Path) -> None:
    agent.close()
    agent.connect(None)
    assert (tmp_path / "user" / "manager").read_text() == str(address)


def test_a_backup_that_is_stored_whole_is_found_so(agent: UserAgent, address: Address) -> None:
    store(address, PARTS)
    assert agent.vm("web").whole is None
    assert agent.check_stored(agent.vm("web")) == sum(map(len, PARTS))
    assert agent.vm("web").whole == agent.vm("web").backup


@pytest.mark.parametrize(
    "parts", [[b"first", b"second"], [b"firstsecond", b""], [b"first", b"seconD", b""]], ids=["cut", "joined", "flipped"]
)
def test_a_backup_that_was_stored_otherwise_is_no_backup(agent: UserAgent, address: Address, parts: list[bytes]) -> None:
    store(address, parts)
    with pytest.raises(VmError, match=r"not the backup: back web up again$"):
        agent.check_stored(agent.vm("web"))
    assert agent.vm("web").whole is None


def test_the_backup_before_one_that_was_lost_is_named(agent: UserAgent) -> None:
    vm = agent.vm("web")
    assert vm.backup is not None
    before = vm.with_(whole=vm.backup, backup=msgspec.structs.replace(vm.backup, counter=2))
    with pytest.raises(VmError, match=r"back web up again \(until then number 1 can be restored\)$"):
        agent.check_stored(before)


def test_a_backup_that_was_lost_is_said(agent: UserAgent) -> None:
    with pytest.raises(VmError, match="back web up again"):
        agent.check_stored(agent.vm("web"))


@pytest.mark.parametrize(
    ("ask", "hint"),
    [
        (lambda agent: agent.wish(Wish("ask", b"v" * 16, AT), timeout_s=30), "vm resume NAME"),
        (lambda agent: agent.check_stored(agent.vm("web")), "back web up again"),
        (lambda agent: agent.server("s1"), "start it again"),
    ],
)
def test_who_waits_for_a_manager_that_went_away_is_told_what_to_do(
    tmp_path: Path, ask: Callable[[UserAgent], object], hint: str
) -> None:
    listener = Listener(Address(f"{tmp_path}/m"))

    def let_in_and_go() -> None:
        channel = next(listener.accept())
        channel.receive(10)
        channel.send(post.encode(post.Entered()))
        channel.receive(10)
        channel.close()

    thread = threading.Thread(target=let_in_and_go, daemon=True)
    thread.start()
    with StateFolder(tmp_path / "user") as folder:
        folder.write("vms/" + (b"v" * 16).hex(), msgspec.json.encode(backed_up(stream_digest())))
        agent = UserAgent(folder, lambda text: None)
        agent.connect(f"unix:{tmp_path}/m")
        with pytest.raises(VmError, match="the manager is gone") as caught:
            ask(agent)
        agent.close()
    assert hint in str(caught.value)
    listener.close()
    thread.join(5)


def test_a_vm_is_known_by_its_name_and_its_id(agent: UserAgent) -> None:
    assert agent.vm("web") is agent.vm((b"v" * 16).hex())
    with pytest.raises(UsageError, match="there are: web"):
        agent.vm("other")


def test_a_name_that_has_a_vm_or_a_backup_is_not_used_again(agent: UserAgent, tmp_path: Path) -> None:
    from quoreduce.cloud.bundle import Bundle
    from quoreduce.cloud.ports import VmSpec

    image = tmp_path / "image"
    image.write_bytes(Bundle(b"kernel", b"initrd", "quiet").encode())
    with pytest.raises(UsageError, match="already"):
        agent.launch(str(image), "web", "s1", VmSpec(), 1)
    agent.core.vms[b"v" * 16] = backed_up(stream_digest()).with_(phase="terminated")
    with pytest.raises(UsageError, match="has a backup"):
        agent.launch(str(image), "web", "s1", VmSpec(), 1)
    with pytest.raises(VmError, match="no server s1"):
        agent.launch(str(image), "new", "s1", VmSpec(), 1)


def test_without_a_policy_nothing_is_trusted(agent: UserAgent) -> None:
    with pytest.raises(VmError, match="quoreduce vm policy"):
        agent.policy()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (post.Reply("x", json.dumps({"error": {"class": "CommandNotAllowed", "desc": "no"}}).encode()), "CommandNotAllowed: no"),
        (post.Reply("x", b"", "there is no VM"), "there is no VM"),
        (post.Reply("x", b"nonsense"), "nonsense"),
        (post.Reply("x", b"[]"), "nonsense"),
    ],
)
def test_an_insider_who_gets_nothing_is_told_why(address: Address, answer: post.Reply, said: str) -> None:
    server = enter(address, "s1", ONE)

    def serve() -> None:
        frame = server.receive(10)
        assert frame is not None
        asked = post.decode(frame)
        assert isinstance(asked, post.Console)
        server.send(post.encode(post.Reply(asked.sender, answer.line, answer.reason)))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with pytest.raises(VmError, match=said):
        insider.ask(address, "s1", "0" * 32, "dump-guest-memory", {})
    thread.join(5)


def test_an_insider_asks_servers_that_are_there(address: Address) -> None:
    with pytest.raises(VmError, match="nobody called s9"):
        insider.ask(address, "s9", "0" * 32, "query-status", {})
