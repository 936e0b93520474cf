"""The user's agent and the insider before a manager that lies: names that become others', stores that lose."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from towers import AT, tower

from quoreduce.errors import InputError, UsageError, VmError
from quoreduce.vm import wire
from quoreduce.vm.agents import insider, post
from quoreduce.vm.agents.channel import Address, Listener
from quoreduce.vm.agents.folder import StateFolder
from quoreduce.vm.agents.link import enter
from quoreduce.vm.agents.manager import Manager
from quoreduce.vm.agents.names import server_prover
from quoreduce.vm.agents.user import UserAgent, import_keys
from quoreduce.vm.user_ports import Tell, UserRequest
from quoreduce.vm.user_record import KeptBackup, LeftCopy, Vm

FIRST, SECOND, THIRD = tower(), tower(), tower()
ONE, OTHER = FIRST.identity, SECOND.identity
PARTS = [b"first", b"second", b""]


def stream_digest() -> bytes:
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in PARTS)).digest()


def backed_up(stream: bytes) -> Vm:
    manifest = wire.BackupManifest(b"o" * 32, b"v" * 16, 1, 1, wire.Spec(), bytes(32), stream, 11)
    kept = KeptBackup(1, bytes(32), wire.encode(manifest))
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
    assert post.decode(frame) == post.BlobStored((b"o" * 32).hex())
    channel.close()


def test_a_name_stays_the_server_that_it_was_when_it_was_first_asked_for(agent: UserAgent, address: Address) -> None:
    first = enter(address, "s1", ONE, server_prover(FIRST))
    assert agent.server("s1") == ONE
    assert agent.names() == {ONE: "s1"}
    first.close()
    other = enter(address, "s2", OTHER, server_prover(SECOND))
    assert agent.server(OTHER) == OTHER
    impostor = enter(address, "s1", THIRD.identity, server_prover(THIRD))
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
    "parts",
    [[b"first", b"second"], [b"firstsecond", b""], [b"first", b"seconD", b""]],
    ids=["cut", "joined", "flipped"],
)
def test_a_backup_that_was_stored_otherwise_is_no_backup(
    agent: UserAgent, address: Address, parts: list[bytes]
) -> None:
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
        (lambda agent: agent.request(UserRequest("ask", b"v" * 16, AT), timeout_s=30), "vm resume NAME"),
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
    from quoreduce.vm.bundle import Bundle
    from quoreduce.vm.ports import VmSpec

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
        (
            post.ConsoleReply("x", json.dumps({"error": {"class": "CommandNotAllowed", "desc": "no"}}).encode()),
            "CommandNotAllowed: no",
        ),
        (post.ConsoleReply("x", b"", "there is no VM"), "there is no VM"),
        (post.ConsoleReply("x", b"nonsense"), "nonsense"),
        (post.ConsoleReply("x", b"[]"), "nonsense"),
    ],
)
def test_an_insider_who_gets_nothing_is_told_why(address: Address, answer: post.ConsoleReply, said: str) -> None:
    server = enter(address, "s1", ONE, server_prover(FIRST))

    def serve() -> None:
        frame = server.receive(10)
        assert frame is not None
        asked = post.decode(frame)
        assert isinstance(asked, post.Console)
        server.send(post.encode(post.ConsoleReply(asked.sender, answer.line, answer.reason)))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with pytest.raises(VmError, match=said):
        insider.ask(address, "s1", "0" * 32, "dump-guest-memory", {})
    thread.join(5)


def test_an_insider_asks_servers_that_are_there(address: Address) -> None:
    with pytest.raises(VmError, match="nobody called s9"):
        insider.ask(address, "s9", "0" * 32, "query-status", {})


def test_a_folder_is_exported_and_imported_and_its_vms_are_out_of_date_there(agent: UserAgent, tmp_path: Path) -> None:
    agent.core.vms[b"v" * 16] = agent.vm("web").with_(phase="terminated")
    agent._folder.write(f"vms/{(b'v' * 16).hex()}", msgspec.json.encode(agent.vm("web")))
    file = tmp_path / "export"
    assert agent.export(file) == 1
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists"):
        agent.export(file)
    said: list[str] = []
    with StateFolder(tmp_path / "other") as folder:
        assert import_keys(folder, file) == 1
        other = UserAgent(folder, said.append)
        assert other.core.address == agent.core.address
        assert other.vm("web") == agent.vm("web").with_(stale=True)
        (told,) = other.core.step(UserRequest("restore", b"v" * 16, AT, ONE))
        assert isinstance(told, Tell)
        assert "may be out of date" in told.text
        with pytest.raises(UsageError, match="has keys already"):
            import_keys(folder, file)
    assert not said


@pytest.mark.parametrize("raw", [b"", b"{}", b"nonsense", b"\xff"])
def test_a_file_that_is_no_export_is_refused_and_nothing_is_written(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "export").write_bytes(raw)
    with StateFolder(tmp_path / "other") as folder:
        with pytest.raises(InputError, match="no file of `quoreduce vm key export`"):
            import_keys(folder, tmp_path / "export")
        assert sorted(path.name for path in folder.path.iterdir()) == ["lock"]


def test_a_copied_folder_knows_that_it_is_one_and_a_moved_one_does_not(agent: UserAgent, tmp_path: Path) -> None:
    said: list[str] = []
    shutil.copytree(tmp_path / "user", tmp_path / "copy")
    with StateFolder(tmp_path / "copy") as folder:
        assert UserAgent(folder, said.append).vm("web").stale
    assert len(said) == 1
    assert "is a copy" in said[0]
    (tmp_path / "copy").rename(tmp_path / "moved")
    with StateFolder(tmp_path / "moved") as folder:
        assert UserAgent(folder, said.append).vm("web").stale  # it still is one
    assert len(said) == 1
    assert not agent.vm("web").stale


def test_a_name_is_not_used_again_while_a_copy_is_left(agent: UserAgent) -> None:
    left = agent.vm("web").with_(phase="terminated", backup=None, left=(LeftCopy(OTHER, 1),))
    with pytest.raises(UsageError, match="not all of web is attested to be overwritten"):
        agent._forget(left)
