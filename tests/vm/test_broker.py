"""The broker: what is not named is refused, whatever it looks like; and what passes is written anew."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.errors import VmError
from quoreduce.vm.broker import REQUEST_BYTES_MAX, RULES, Broker, Ruled, Rules, parse, requests
from quoreduce.vm.qmp import Event, Qmp, QmpLost, QmpRefused, dial, short

CLOSED = 200
TIMEOUT_S = 10

DANGEROUS = [
    ("dump-guest-memory", {"paging": False, "protocol": "file:dump"}),
    ("pmemsave", {"val": 0, "size": 1 << 20, "filename": "dump"}),
    ("human-monitor-command", {"command-line": "xp /4xw 0"}),
    ("migrate", {"uri": "exec:cat"}),
    ("cont", {}),
    ("stop", {}),
    ("quit", {}),
    ("getfd", {"fdname": "outgoing"}),
    ("object-add", {"qom-type": "secret", "id": "x"}),
    ("query-status ", {}),
    ("QUERY-STATUS", {}),
    ("", {}),
]


class Machine:
    """In place of QEMU: remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.listeners: list[Callable[[Event], None]] = []

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        self.asked.append((command, arguments))
        if command == "query-name":
            raise QmpRefused(command, "GenericError", "it has none")
        return {"status": "running"}

    def on_event(self, listener: Callable[[Event], None]) -> None:
        self.listeners.append(listener)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def broker(machine: Machine, tmp_path: Path) -> Iterator[Broker]:
    folder = tmp_path / ("long" * 40)  # a socket's address has at most 107 bytes
    folder.mkdir()
    made = Broker(folder / "manager.sock", Ruled(machine, RULES, "manager"))  # type: ignore[arg-type]
    yield made
    made.close()


class Client:
    """Speaks raw QMP."""

    def __init__(self, path: Path) -> None:
        self.connection = dial(path)
        self.lines = self.connection.makefile("rb")
        assert "QMP" in self.read()

    def read(self) -> Any:
        line = self.lines.readline()
        return json.loads(line) if line else None

    def ask(self, raw: bytes) -> Any:
        self.connection.sendall(raw)
        return self.read()


@pytest.mark.parametrize(("command", "arguments"), DANGEROUS)
def test_a_command_that_is_not_named_is_refused_and_does_not_reach_qemu(
    broker: Broker, machine: Machine, command: str, arguments: dict[str, Any]
) -> None:
    answer = Client(broker.path).ask(json.dumps({"execute": command, "arguments": arguments, "id": 7}).encode() + b"\n")
    assert answer["error"]["class"] == "CommandNotAllowed"
    assert "is not what the manager of a guest may ask; that is: query-migrate" in answer["error"]["desc"]
    assert answer["id"] == 7
    assert machine.asked == []
    assert len(broker.refused) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b'{"execute": "query-status", "control": {}}',
        b'{"exec-oob": "query-status"}',
        b'{"execute": "query-status", "execute": "quit"}',
        b'{"execute": ["query-status"]}',
        b'{"execute": "query-status", "arguments": []}',
        b'{"execute": "query-status", "id": {"a": 1}}',
        b'{"execute": "query-status", "id": true}',
        b'{"execute": "query-status", "id": "' + b"x" * 200 + b'"}',
        b'{"execute": "query-status", "id": NaN}',
        b'["query-status"]',
        b"query-status\n",
        b'{"execute": "query-status\xff"}',
        b'{"execute": "query-status"]',
        b"[" * 5000 + b"]" * 5000,
    ],
)
def test_what_is_no_plain_request_is_refused(broker: Broker, machine: Machine, raw: bytes) -> None:
    client = Client(broker.path)
    assert client.ask(raw)["error"]["desc"].startswith("this is no request: ")
    assert machine.asked == []
    assert client.ask(b'{"execute": "query-status"}') == {"return": {"status": "running"}}  # it goes on


def test_an_argument_that_is_not_named_is_refused(broker: Broker, machine: Machine) -> None:
    answer = Client(broker.path).ask(b'{"execute": "query-status", "arguments": {"fd": 3}}')
    assert answer["error"] == {"class": "CommandNotAllowed", "desc": "query-status may not have the argument fd"}
    assert machine.asked == []


def test_a_request_without_end_is_cut_off(broker: Broker) -> None:
    client = Client(broker.path)
    answer = client.ask(b'{"execute": "' + b"x" * REQUEST_BYTES_MAX)
    assert "longer than" in answer["error"]["desc"]
    assert client.read() is None


def test_answers_and_errors_of_qemu_come_through(broker: Broker) -> None:
    client = Client(broker.path)
    assert client.ask(b'{"execute": "qmp_capabilities"}') == {"return": {}}
    assert client.ask(b'{"execute": "query-name", "id": "a"}') == {
        "error": {"class": "GenericError", "desc": "it has none"},
        "id": "a",
    }


def test_the_ordinary_client_is_served(broker: Broker) -> None:
    qmp = Qmp(broker.path)
    try:
        assert qmp.execute("query-status") == {"status": "running"}
        with pytest.raises(QmpRefused, match="may ask") as refused:
            qmp.execute("dump-guest-memory", {"paging": False, "protocol": "file:x"})
        assert refused.value.kind == "CommandNotAllowed"
    finally:
        qmp.close()


def test_only_named_events_are_heard(broker: Broker, machine: Machine) -> None:
    client = Client(broker.path)
    for name in ("MEMORY_FAILURE", "STOP"):
        machine.listeners[0]({"event": name, "data": {"secret": 1}, "timestamp": {"seconds": 1, "microseconds": 2}})
    assert client.read() == {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}


def test_who_does_not_read_is_disconnected_and_holds_nobody_up(broker: Broker, machine: Machine) -> None:
    deaf, other = Client(broker.path), Client(broker.path)
    for _ in range(20_000):
        machine.listeners[0]({"event": "STOP"})
        assert other.read() == {"event": "STOP"}
    while deaf.read() is not None:  # what fitted, and then the end
        pass


def test_connections_are_bounded(broker: Broker) -> None:
    clients = [Client(broker.path) for _ in range(8)]
    ninth = dial(broker.path)
    assert ninth.recv(1) == b""
    assert clients[0].ask(b'{"execute": "query-status"}')["return"]


def test_a_broker_that_is_closed_has_no_thread_any_more(machine: Machine, tmp_path: Path) -> None:
    """Whenever the thread is about to accept the next one."""
    before = set(threading.enumerate())
    for number in range(CLOSED):
        broker = Broker(tmp_path / f"{number}.sock", Ruled(machine, RULES, "manager"))  # type: ignore[arg-type]
        (thread,) = set(threading.enumerate()) - before
        broker.close()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_a_socket_in_use_is_refused_and_one_that_was_left_is_replaced(broker: Broker, machine: Machine) -> None:
    with pytest.raises(VmError, match="in use by another process"):
        Broker(broker.path, broker.qmp)
    broker.close()
    broker.close()
    with socket.socket(socket.AF_UNIX) as left, short(broker.path) as address:
        left.bind(address)
    again = Broker(broker.path, broker.qmp)
    assert Client(broker.path).ask(b'{"execute": "query-status"}')["return"]
    again.close()
    with pytest.raises(QmpLost, match="nobody listens"):
        Qmp(broker.path)


def test_a_tcom_itself_can_move_a_guest_into_what_it_was_given_only(machine: Machine) -> None:
    tcom = Ruled(machine, RULES, "tcom")  # type: ignore[arg-type]
    tcom.execute("migrate", {"uri": "fd:outgoing"})
    for uri in ("exec:cat>x", "unix:x", "fd:other", 1):
        with pytest.raises(QmpRefused, match="the uri of migrate must be"):
            tcom.execute("migrate", {"uri": uri})
    with pytest.raises(QmpRefused):
        tcom.execute("dump-guest-memory", {"paging": False, "protocol": "fd:outgoing"})
    with pytest.raises(QmpRefused):
        tcom.pass_fd("other", 0)
    assert machine.asked == [("migrate", {"uri": "fd:outgoing"})]


def test_the_document_changes_with_any_rule_and_not_with_their_order() -> None:
    document = json.loads(RULES.document())
    assert document["commands"]["manager"] == {
        "query-migrate": {},
        "query-name": {},
        "query-status": {},
        "query-version": {},
    }
    backwards = Rules(
        {role: dict(reversed(table.items())) for role, table in reversed(RULES.commands.items())},
        dict(reversed(RULES.events.items())),
    )
    assert backwards.document() == RULES.document()
    manager = {**RULES.commands["manager"], "dump-guest-memory": {"paging": (), "protocol": ()}}
    assert Rules({**RULES.commands, "manager": manager}, RULES.events).document() != RULES.document()
    assert Rules(RULES.commands, {**RULES.events, "manager": ("STOP",)}).document() != RULES.document()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@given(st.lists(st.dictionaries(st.text(), JSON), max_size=4), st.integers(1, 50), st.sampled_from(["", "\n", " \r\n"]))
def test_requests_are_cut_where_they_end_however_they_come(objects: list[Any], size: int, between: str) -> None:
    raw = between.join(json.dumps(each) for each in objects).encode()
    pieces = iter([raw[at : at + size] for at in range(0, len(raw), size)])
    assert [json.loads(each) for each in requests(lambda: next(pieces, b""))] == objects


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    for each in requests(iter([raw, b""]).__next__):
        try:
            command, arguments, identity = parse(each)
        except ValueError:
            continue
        assert isinstance(command, str)
        assert isinstance(arguments, dict)
        assert isinstance(identity, dict)
