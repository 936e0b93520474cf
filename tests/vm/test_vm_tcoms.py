"""TCOMs are small, and import nothing beyond what is measured with them; a crash anywhere leaves a VM in one place."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from vm_parts import keys_watched
from world import World

from quoreduce.errors import VmError
from quoreduce.vm import evidence, ports, wire
from quoreduce.vm.owners import Owners
from quoreduce.vm.ports import Received, VmSpec, decode_record
from quoreduce.vm.server import Server
from quoreduce.vm.user_record import decode_vm

TCOMS = ("launch", "migrate_out", "migrate_in", "backup", "terminate", "status")
LINES_MAX = 300
PURE = {"__future__", "collections.abc", "dataclasses", "datetime", "hashlib", "typing"}
OURS = ("quoreduce.vm.wire", "quoreduce.vm.sealing", "quoreduce.vm.evidence", "quoreduce.vm.ports",
        "quoreduce.trust.", "quoreduce.errors")  # fmt: skip


@pytest.mark.parametrize("name", TCOMS)
def test_a_tcom_is_small_and_imports_little(name: str) -> None:
    source = files("quoreduce.vm.tcom").joinpath(f"{name}.py").read_text()
    assert source.count("\n") <= LINES_MAX
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= PURE
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "quoreduce.vm"
                else [node.module or ""]
            )
            assert all(one in PURE or one.startswith(OURS) for one in names), names
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("__import__", "eval", "exec", "open", "compile")


@pytest.mark.parametrize("spec", [(15, 16, 1), (128, 0, 1), (128, 16, 0), (1 << 21, 16, 1), (128, 16, 257)])
def test_a_spec_out_of_bounds_is_refused(spec: tuple[int, int, int]) -> None:
    with pytest.raises(VmError, match="a VM has"):
        VmSpec(*spec)


@pytest.mark.parametrize("decode", [decode_record, decode_vm])
@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b'{"vmid":1}'])
def test_a_record_that_is_none_is_refused(decode: Callable[[bytes], object], raw: bytes) -> None:
    with pytest.raises(VmError, match="no record of a VM"):
        decode(raw)


def test_a_server_takes_no_more_than_it_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anyone may order: what he can use up is bounded, and he is told."""
    monkeypatch.setattr("quoreduce.vm.server_admission.SESSIONS_MAX", 2)
    world = World(1, recorded=True, vms=3)
    for number in range(3):
        world.request("launch", number, "A")
    for letter in world.letters[:3]:
        world.deliver(letter)
    assert any("the server is full" in reason for reason in world.notes)


def test_nonsense_is_noted_and_changes_nothing() -> None:
    server = Server("ab" * 34, lambda n: bytes(n), Owners({}))
    for message in (
        wire.Signed(b"x", wire.Keys(bytes(32), bytes(32)), bytes(64)),
        wire.AttestedMessage(b"x", b"y"),
        wire.Hello(b"x", bytes(32)),
        wire.StreamChunk(bytes(32), b"x"),
        wire.SealedMessage(bytes(32), b"x"),
        wire.Refusal(bytes(32), "x"),
    ):
        commands = server.step(Received(message, World(1).now))
        assert [type(one) for one in commands] == [ports.Note]
        assert not server.records


def test_every_tcom_has_a_document() -> None:
    """What is attested as an operation is one that the environment lists."""
    from quoreduce.vm.measure import MODULES

    assert set(MODULES.values()) == {f"tcom/{name}.py" for name in TCOMS}
    assert evidence.CODE == 0


STORIES = ("launch", "migrate", "backup", "terminate", "restore")
PARTIES = ("A", "B", "user")


def story(operation: str, party: str, moment: int) -> tuple[World, str]:
    """An operation in which a party is killed (kill -9) at its moment-th step; it is started again, and the user
    resolves.

    Returns the world, and what the user knows in the end.
    """
    world = World(11, recorded=True)
    with keys_watched(world.kit, world.secrets.add):
        if operation != "launch":
            world.request("launch", to="A")
            world.settle_down()
        for before in ("backup", "terminate") if operation == "restore" else ():
            world.request(before)
            world.settle_down()
        world.kill_at = (party, moment)
        world.request(operation, to={"launch": "A", "restore": "B", "migrate": "B"}.get(operation, ""))
        world.settle_down()
        if world.kill_at is not None:
            return world, "over"
        for host in world.hosts.values():
            if host.core is None:
                host.start()
        world.settle_down()
        for _ in range(2):
            world.tick(61)  # time runs out for what waits for a process that is no more
            world.settle_down()
        world.judge()
        world.end()
        world.judge()
    vm = world.user.vms.get(world.vmids[0])
    phase = vm.phase if vm else "not ordered"
    return world, f"runs on {world.names[vm.server]}" if phase == "running" else phase


def table() -> str:
    """Every operation, every party killed at every step: where the VM is in the end, as the user knows (and the referee
    has seen).
    """
    lines = ["| operation | who is killed | at its step | the VM in the end |", "|---|---|---|---|"]
    for operation in STORIES:
        for party in PARTIES:
            ends: list[str] = []
            while len(ends) < 200 and (end := story(operation, party, len(ends))[1]) != "over":
                ends.append(end)
            first = 0
            for at, end in enumerate(ends):
                if at + 1 == len(ends) or ends[at + 1] != end:
                    steps = f"{first + 1}" if first == at else f"{first + 1} to {at + 1}"
                    lines.append(f"| {operation} | {party} | {steps} | {end} |")
                    first = at + 1
    return "\n".join(lines) + "\n"


def test_a_crash_at_any_step_leaves_the_vm_in_one_place(golden: Callable[[str, str], None]) -> None:
    """docs/design/vm-protocols.md has this table."""
    golden("vm/crashes.md", table())


def test_the_table_in_the_docs_is_that_of_the_test() -> None:
    root = Path(__file__).parents[2]
    assert (root / "tests/golden/vm/crashes.md").read_text() in (root / "docs/design/vm-protocols.md").read_text()


def test_an_order_that_goes_on_is_waited_for_and_one_that_does_not_is_settled() -> None:
    """A big VM takes its time; a server that is silent does not get it."""
    world = World(3, recorded=True)
    world.request("launch", to="A")
    world.settle_down()
    world.request("migrate", to="B")
    while not any("A: Outgoing" in line for line in world.lines or ()):
        world.deliver(world.letters.pop(0))
    for _ in range(48):  # 4 minutes in which the stream goes on, slowly
        world.tick(5)
        world.hosts["A"].core.sessions.open[next(iter(world.hosts["A"].core.sessions.open))].since = world.now
        world.hosts["B"].core.sessions.open[next(iter(world.hosts["B"].core.sessions.open))].since = world.now
        for letter in [one for one in world.letters if one.what.startswith("Status")]:
            world.letters.remove(letter)
            world.deliver(letter)
        for letter in [one for one in world.letters if one.what.startswith("Status")]:
            world.letters.remove(letter)
            world.deliver(letter)
    assert not any("settle" in line for line in world.lines or ())
    world.letters.clear()
    for _ in range(5):
        world.tick(30)
        world.letters.clear()
    assert any("settle" in line for line in world.lines or ())


def backing_up() -> World:
    world = World(3, recorded=True)
    world.request("launch", to="A")
    world.settle_down()
    world.request("backup")
    while not any("A: Outgoing" in line for line in world.lines or ()):
        world.deliver(world.letters.pop(0))
    world.hosts["A"].crash()
    return world


def test_a_backup_that_its_server_knows_nothing_of_any_more_is_settled_at_the_next_look() -> None:
    world = backing_up()
    world.hosts["A"].start()
    for _ in range(2):  # at first it is busy with what it found
        world.tick(5)
        world.settle_down()
    assert any("the backup was not done, order it anew" in line for line in world.lines or ())


@pytest.mark.parametrize("gone", ["A", "B"])
def test_a_migration_is_settled_when_one_of_its_servers_is_gone_whatever_the_other_says(gone: str) -> None:
    world = World(3, recorded=True)
    world.request("launch", to="A")
    world.settle_down()
    world.request("migrate", to="B")
    while not any("A: Outgoing" in line for line in world.lines or ()):
        world.deliver(world.letters.pop(0))
    world.hosts[gone].crash()
    for _ in range(12):
        world.tick(5)
        while letter := next((one for one in world.letters if "Status" in one.what or "settle" in one.what), None):
            world.letters.remove(letter)
            world.deliver(letter)
    assert any("user is told (failed)" in line for line in world.lines or ())


def test_whoever_waits_for_a_server_that_is_gone_is_told_what_to_do_within_a_minute() -> None:
    world = backing_up()
    for _ in range(12):
        world.tick(5)
        world.letters.clear()
    assert any("Resolve it when server" in line and "declare it lost" in line for line in world.lines or ())
