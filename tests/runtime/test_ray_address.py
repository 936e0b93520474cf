"""An address at which no Ray answers: one line in a bounded time, whatever is there, and nothing half done is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import counted, parts_of, poll

from quoreduce.errors import HostError, UsageError
from quoreduce.protocol.options import Place
from quoreduce.runtime import ray as ray_module
from quoreduce.runtime import reach
from quoreduce.runtime.ray import RayExecutor
from quoreduce.runtime.reach import knock, parse, rehearsed

SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SCRIPT_TIMEOUT_S = 400.0
Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def closed() -> str:
    """An address at which nothing listens."""
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{link.getsockname()[1]}"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(answer)`` listens, hands each connection to ``answer`` and keeps it open; it returns the address."""
    with contextlib.ExitStack() as stack:

        def start(answer: Callable[[socket.socket], None]) -> str:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            links: list[socket.socket] = []

            def accept() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        link, _ = server.accept()
                        links.append(link)
                        answer(link)

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            stack.callback(lambda: [link.close() for link in links])
            stack.callback(server.shutdown, socket.SHUT_RDWR)
            return f"127.0.0.1:{server.getsockname()[1]}"

        yield start


def silent(link: socket.socket) -> None:
    """Accept, and say nothing."""


def greet(link: socket.socket) -> None:
    """Speak HTTP/2 as Ray does, and then say nothing: as a Ray that hangs."""
    link.sendall(SETTINGS_FRAME)


def answer_as_http(link: socket.socket) -> None:
    link.recv(1024)
    link.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    link.close()


def hang_up(link: socket.socket) -> None:
    link.close()


def test_who_looks_runs_nothing_from_the_current_directory(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be anybody's."""
    planted = "import os; open('ran', 'w').close(); os._exit(0)"
    for name in ("ray.py", "socket.py", "quoreduce.py"):
        (tmp_path / name).write_text(planted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(reach, "LOOK_S", 3.0)
    with contextlib.suppress(HostError), rehearsed(serve(greet)):
        pass
    assert not (tmp_path / "ran").exists()


def test_a_port_where_nothing_listens(closed: str) -> None:
    with pytest.raises(HostError, match=r"nothing listens there \(Connection refused\)"):
        knock(closed)
    with pytest.raises(HostError, match="nothing listens there"):
        knock(f"ray://{closed}")


def test_a_port_that_says_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "GREETING_S", 0.2)
    with pytest.raises(HostError, match="accepts connections and says nothing"):
        knock(serve(silent))


@pytest.mark.parametrize("other", [answer_as_http, hang_up])
def test_a_port_of_something_else(other: Callable[[socket.socket], None], serve: Serve) -> None:
    with pytest.raises(HostError, match=r"what listens there is no Ray|breaks the connection off"):
        knock(serve(other))


def test_a_port_that_speaks_as_ray_does(serve: Serve) -> None:
    knock(serve(greet))


def test_a_host_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object, **more: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(reach.socket, "getaddrinfo", unknown)
    with pytest.raises(HostError, match=r"the host head\.example is not known"):
        knock("head.example:6379")
    with pytest.raises(HostError, match="is not known"):
        knock(f"{'x' * 70}.example:6379")


def test_all_addresses_of_a_host_are_tried(closed: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [("127.0.0.1", int(one.rpartition(":")[2])) for one in (closed, serve(greet))]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    monkeypatch.setattr(reach.socket, "getaddrinfo", lambda *arguments, **more: found)
    knock("head:6379")
    monkeypatch.setattr(reach.socket, "getaddrinfo", lambda *arguments, **more: found[:1] * 2)
    with pytest.raises(HostError, match="nothing listens there"):
        knock("head:6379")


def test_a_greeting_under_tls_is_not_looked_at(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    knock(serve(hang_up))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("head:6379", ("head", 6379)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[::1]:6379", ("::1", 6379)),
        ("ray://head:10001", ("head", 10001)), ("ray://head", ("head", 10001)), ("auto", None), ("k8s://x", None),
    ],
)  # fmt: skip
def test_addresses(text: str, place: tuple[str, int] | None) -> None:
    assert parse(text) == place


@pytest.mark.parametrize(
    "text",
    ["", "head", "head:", ":6379", "head:x", "head:0", "head:65536", "::1:6379", "a b:1", "head:6379/x", "ray://"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="an address is HOST:PORT"):
        parse(text)


def test_a_ray_that_hangs_is_given_up_and_leaves_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It greets, and then never answers: what waits for it is another process, which is ended."""
    import ray

    monkeypatch.setattr(reach, "LOOK_S", 1.0)
    started: list[Any] = []
    popen = reach.subprocess.Popen
    monkeypatch.setattr(reach.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    address = serve(greet)
    with pytest.raises(HostError, match=f"{re.escape(address)}: it does not answer within 1 s; correct --address"):
        RayExecutor(Place("ray", address=address)).start()
    assert [one.returncode is not None for one in started] == [True]
    assert not ray.is_initialized()
    assert ray_module._CONNECTION.users == 0


def test_what_the_other_process_finds_is_said(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line, and whose fault it is; what it prints else is not."""
    popen = reach.subprocess.Popen
    for code, kind in ((4, HostError), (2, UsageError), (-9, HostError)):
        end = f"os.kill(os.getpid(), {-code})" if code < 0 else f"sys.exit({code})"
        script = f"import os, sys; print('chatter'); print('a reason', flush=True); {end}"
        with monkeypatch.context() as patch:
            patch.setattr(reach.subprocess, "Popen", lambda argv, *, s=script, **k: popen([argv[0], "-c", s], **k))
            with pytest.raises(kind, match=r"cannot use Ray at .*: a reason; correct --"), rehearsed(serve(greet)):
                pass


def test_ctrl_c_ends_the_other_process(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = reach.subprocess.Popen
    monkeypatch.setattr(reach.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with pytest.raises(KeyboardInterrupt), rehearsed(serve(greet)):
        raise KeyboardInterrupt
    poll(lambda: started[0].returncode is not None, "its end")


@pytest.mark.parametrize("error", [RuntimeError("half way"), KeyboardInterrupt()])
def test_a_connection_that_fails_half_way_is_taken_back(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    done: list[str] = []

    def init(**settings: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: done.append("shutdown"))
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else HostError):
        RayExecutor(Place("ray")).start()
    assert done == ["shutdown"]
    assert ray_module._CONNECTION.users == 0


@pytest.mark.parametrize(
    "command",
    [
        ("run", "wordcount", "text", "out", "--address"), ("run", "wordcount", "text", "out"), ("doctor", "--address"),
        ("stream", "--mapper", "cat", "--reducer", "cat", "text", "out", "--on", "ray"), ("doctor",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_commands_say_so_in_one_line(
    command: tuple[str, ...], closed: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """The address comes last, or from RAY_ADDRESS."""
    (tmp_path / "text").write_text("a b\n")
    last = command[-1] == "--address"
    ended = cli(*command, *[closed] * last, env={} if last else {"RAY_ADDRESS": closed}, cwd=tmp_path)
    said = ended.stdout + ended.stderr
    assert ended.code == 4, said
    (line,) = [line for line in said.splitlines() if "cannot use Ray" in line]
    assert f"cannot use Ray at {closed}: nothing listens there (Connection refused); correct --address or" in line
    assert line.count("cannot use Ray") == 1
    assert os.listdir(tmp_path) == ["text"]


@pytest.mark.ray
def test_a_ray_that_is_there(verses: Path, verses_counted: list[tuple[bytes, int]]) -> None:
    """A job goes there by its address; when Ray is stopped the next one says that nothing answers."""
    with tempfile.TemporaryDirectory(prefix="qr-", dir="/tmp") as folder:  # a short name, for Ray's sockets
        script = Path(__file__).parent / "address_script.py"
        done = subprocess.run(
            [sys.executable, str(script), str(verses), folder],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=SCRIPT_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["run"][0] == 0, seen
        assert counted(parts_of(Path(folder) / "out")) == verses_counted
        assert seen["stopped"][0] == 4
        assert "accepts connections and says nothing" in seen["stopped"][1]
        assert not (Path(folder) / "none").exists()
