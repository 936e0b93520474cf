"""The broker: what others than a TCOM may ask of a guest's QEMU. Deny by default.

Access to QMP is control over the guest: ``dump-guest-memory`` and ``pmemsave`` write its memory to a file, ``migrate``
sends it away, ``human-monitor-command`` does anything. So QMP's own socket lies in the guest's private folder, and
others reach a broker only: a proxy that reads each request, looks it up in :class:`Rules`, encodes it anew and passes
it on.

The rules are data. They are a part of what is measured as the environment (:meth:`Rules.document`): a server whose
rules allow its manager one more command is another environment, which an owner's policy does not list.

A role's table says what it may ask: ``{command: {argument: values}}``; no values: any. All else is refused with the
class ``CommandNotAllowed``. A TCOM's own calls have a table, too: it moves a guest only into a file descriptor that it
was given.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from quoreduce.errors import VmError, one_line
from quoreduce.vm.qmp import Event, Qmp, QmpRefused, listen

NOT_ALLOWED: Final = "CommandNotAllowed"
REQUEST_BYTES_MAX: Final = 16 << 10  # of a request; the longest that is allowed has under 200
CONNECTIONS_MAX: Final = 8
IDLE_S: Final = 300.0
REMEMBERED: Final = 100  # refusals
_QUOTE, _BACKSLASH = b'"\\'
ID_CHARS_MAX: Final = 128
_VERSION: Final = {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": "quoreduce broker"}
GREETING: Final = {"QMP": {"version": _VERSION, "capabilities": []}}

Values = tuple[Any, ...]
Table = Mapping[str, Mapping[str, Values]]

_WATCH: Final[Table] = {"query-migrate": {}, "query-name": {}, "query-status": {}, "query-version": {}}


@dataclass(frozen=True)
class Rules:
    """The commands that each role may use.

    Attributes:
        commands: role → command → argument → the values it may have (none: any). An argument that is not named is
            refused.
        events: role → the events that it hears.
    """

    commands: Mapping[str, Table]
    events: Mapping[str, tuple[str, ...]]

    def document(self) -> bytes:
        """The rules as canonical JSON (keys sorted, no spaces): a part of the environment's document."""
        tables = {
            role: {
                command: {name: list(values) for name, values in arguments.items()}
                for command, arguments in table.items()
            }
            for role, table in self.commands.items()
        }
        events = {role: sorted(names) for role, names in self.events.items()}
        return json.dumps({"commands": tables, "events": events}, sort_keys=True, separators=(",", ":")).encode()

    def why_not(self, role: str, command: str, arguments: Mapping[str, Any]) -> str | None:
        """Return None if the role may ask this, else the reason in one sentence."""
        table = self.commands.get(role, {})
        if command not in table:
            return (
                f"{command} is not what the {role} of a guest may ask; that is: {', '.join(sorted(table)) or 'nothing'}"
            )
        for name, value in arguments.items():
            if name not in table[command]:
                return f"{command} may not have the argument {name}"
            wanted = table[command][name]
            if wanted and not any(value == one and type(value) is type(one) for one in wanted):
                return f"the {name} of {command} must be {' or '.join(json.dumps(one) for one in wanted)}"
        return None


RULES: Final = Rules(
    commands={
        # The manager watches. It may not stop or resume: a source that it resumed after a migration would be a second
        # owner's.
        "manager": _WATCH,
        "owner": {**_WATCH, "system_powerdown": {}},
        "tcom": {
            **_WATCH,
            "cont": {},
            "getfd": {"fdname": ("incoming", "outgoing")},
            "migrate": {"uri": ("fd:outgoing",)},
            "migrate-incoming": {"uri": ("fd:incoming",)},
            "migrate-set-capabilities": {"capabilities": ([{"capability": "late-block-activate", "state": True}],)},
            "migrate-set-parameters": {"downtime-limit": (), "max-bandwidth": ()},
            "migrate_cancel": {},
            "quit": {},
            "stop": {},
        },
    },
    events={
        "manager": ("POWERDOWN", "RESUME", "SHUTDOWN", "STOP"),
        "owner": ("POWERDOWN", "RESUME", "SHUTDOWN", "STOP"),
        "tcom": (),
    },
)


class Ruled:
    """QMP as one role sees it; the same calls as :class:`quoreduce.vm.qmp.Qmp`, refused unless the rules allow them."""

    def __init__(self, qmp: Qmp, rules: Rules, role: str) -> None:
        self._qmp, self._rules, self.role = qmp, rules, role

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, **more: float) -> Any:
        """As :meth:`Qmp.execute`; QmpRefused, of the class ``CommandNotAllowed``, if the rules do not allow it."""
        self._check(command, arguments or {})
        return self._qmp.execute(command, arguments, **more)

    def pass_fd(self, name: str, fd: int) -> None:
        """As :meth:`Qmp.pass_fd`. Raises QmpRefused if the rules do not allow it."""
        self._check("getfd", {"fdname": name})
        self._qmp.pass_fd(name, fd)

    def on_event(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` with the events that this role hears."""
        heard = self._rules.events.get(self.role, ())
        self._qmp.on_event(lambda event: listener(event) if event.get("event") in heard else None)

    def _check(self, command: str, arguments: Mapping[str, Any]) -> None:
        reason = self._rules.why_not(self.role, command, arguments)
        if reason is not None:
            raise QmpRefused(one_line(command), NOT_ALLOWED, one_line(reason))


@dataclass
class Broker:
    """Serves one role on a Unix socket (mode 0600), until it is closed.

    Attributes:
        refused: the last refusals, one line each.

    Raises:
        VmError: the socket is in use, or cannot be made.
    """

    path: Path
    qmp: Ruled
    refused: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __post_init__(self) -> None:
        self._server = listen(self.path, CONNECTIONS_MAX)
        self._clients: set[socket.socket] = set()
        self._closed = False
        self._guard = threading.Lock()
        self.qmp.on_event(self._tell)
        threading.Thread(target=self._accept, name=f"broker for the {self.qmp.role}", daemon=True).start()

    def close(self) -> None:
        """Stop serving, and disconnect clients. May be called again."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            clients = list(self._clients)
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, and it ends
        self._server.close()
        self.path.unlink(missing_ok=True)
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            client.settimeout(IDLE_S)
            with self._guard:
                if self._closed:
                    client.close()
                    return
                if len(self._clients) >= CONNECTIONS_MAX:
                    client.close()
                    continue
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                self._send(client, GREETING)
                for request in requests(lambda: client.recv(REQUEST_BYTES_MAX)):
                    self._send(client, self._answer(request))
                    if len(request) > REQUEST_BYTES_MAX:
                        break  # where the next request begins is unknown
        finally:
            with self._guard:
                self._clients.discard(client)
                client.close()

    def _answer(self, raw: bytes) -> dict[str, Any]:
        try:
            command, arguments, identity = parse(raw)
        except ValueError as error:
            return self._refusal("GenericError", f"this is no request: {error}", {})
        if command == "qmp_capabilities":  # of this connection, which has none; QEMU's was negotiated by us
            return {"return": {}, **identity}
        try:
            return {"return": self.qmp.execute(command, arguments), **identity}
        except QmpRefused as error:
            return self._refusal(error.kind, error.reason, identity)
        except VmError as error:
            return self._refusal("GenericError", str(error), identity)

    def _refusal(self, kind: str, reason: str, identity: dict[str, Any]) -> dict[str, Any]:
        reason = one_line(reason)
        self.refused.append(f"{kind}: {reason}")
        return {"error": {"class": kind, "desc": reason}, **identity}

    def _tell(self, event: Event) -> None:
        with self._guard:
            clients = list(self._clients)
        for client in clients:
            with contextlib.suppress(OSError):
                self._send(client, {name: event[name] for name in ("event", "timestamp") if name in event})

    def _send(self, client: socket.socket, message: Mapping[str, Any]) -> None:
        """Send without waiting: a client that has left too much unread is disconnected."""
        data = json.dumps(message).encode() + b"\r\n"
        with self._guard:
            if client not in self._clients:
                raise ConnectionError("disconnected")
            try:
                sent = os.write(client.fileno(), data)  # with a timeout, a socket's descriptor does not block
            except OSError:
                sent = 0
            if sent < len(data):
                client.shutdown(socket.SHUT_RDWR)
                raise ConnectionError("it does not read")


def requests(receive: Callable[[], bytes]) -> Iterator[bytes]:
    """Cut what is received into requests: a JSON object each, or a line of something else. Stops at the end of what is
    received.

    One that is longer than REQUEST_BYTES_MAX is given as far as it has come, and is the last.
    """
    request, depth, quoted, escaped = bytearray(), 0, False, False
    while data := receive():
        for byte in data:
            if not request and byte in b" \t\r\n":
                continue
            request.append(byte)
            if quoted:
                quoted, escaped = escaped or byte != _QUOTE, not escaped and byte == _BACKSLASH
            else:
                quoted = byte == _QUOTE
                depth += (byte in b"{[") - (byte in b"}]")
            whole = depth <= 0 and not quoted and byte in b"}]\n"
            if whole or len(request) > REQUEST_BYTES_MAX:
                yield bytes(request)
                request.clear()
                depth, quoted, escaped = 0, False, False


def parse(raw: bytes) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read a request: its command, its arguments, and ``{"id": ...}`` or nothing. Raises ValueError if
    malformed.

    Stricter than QEMU: one object, with ``execute``, ``arguments`` and ``id`` and nothing else, no name twice, an id
    that is a string or an integer. So two readers cannot disagree about the request; and the broker passes on a new
    encoding.
    """
    if len(raw) > REQUEST_BYTES_MAX:
        raise ValueError(f"it is longer than {REQUEST_BYTES_MAX} bytes")
    try:
        request = json.loads(raw, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError("it is not one JSON object") from error
    if not isinstance(request, dict) or not isinstance(request.get("execute"), str):
        raise ValueError('it is not {"execute": COMMAND, ...}')
    if unknown := sorted(set(request) - {"execute", "arguments", "id"}):
        raise ValueError(f"it has other names than execute, arguments and id: {', '.join(unknown)}")
    arguments = request.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError("its arguments are not an object")
    identity = {"id": request["id"]} if "id" in request else {}
    if identity and not (
        type(request["id"]) is int or (isinstance(request["id"], str) and len(request["id"]) <= ID_CHARS_MAX)
    ):
        raise ValueError(f"its id is neither an integer nor a string of at most {ID_CHARS_MAX} characters")
    return request["execute"], arguments, identity


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a name twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
