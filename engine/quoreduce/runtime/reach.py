"""Looks whether a Ray answers at an address. Ray's own client looks for minutes, or waits without a deadline.

First it looks at the port: it is clear at once if nothing listens there, or something else than Ray. Then another
process, which can be killed, connects as a job would. So a Ray that hangs leaves nothing half done in this process.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from quoreduce.errors import HostError, QuoreduceError, UsageError, one_line
from quoreduce.runtime.connecting import connect, found_address

LOOK_S = 60.0  # for all of it; most of this is for a machine on which Python starts slowly
CONNECT_S = 5.0
GREETING_S = 5.0
CLIENT = "ray://"
CLIENT_PORT = 10001
# What a client of HTTP/2 says first; a server, so Ray too, answers with its settings (a frame of type 4).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HEADER_BYTES, _SETTINGS = 9, 4
_ADVICE = "correct --address or RAY_ADDRESS, start Ray there (ray start --head), or use --on local"


@contextlib.contextmanager
def rehearsed(address: str) -> Iterator[None]:
    """Look at the port, then connect in another process while the body runs; raise HostError or UsageError."""
    try:
        knock(address)
    except QuoreduceError as error:
        raise _refused(address, str(error), error.exit_code) from error
    command = [sys.executable, "-P", "-m", "quoreduce.runtime.reach", address]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    looker = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        yield
        said, _ = looker.communicate(timeout=LOOK_S)
    except subprocess.TimeoutExpired:
        raise _refused(address, f"it does not answer within {LOOK_S:g} s", HostError.exit_code) from None
    finally:
        looker.kill()
        looker.communicate()
    if looker.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"connecting to it ended with {looker.returncode}"
        raise _refused(address, reason, looker.returncode)


def _refused(address: str, reason: str, code: int) -> QuoreduceError:
    kind = UsageError if code == UsageError.exit_code else HostError
    return kind(f"cannot use Ray at {address}: {one_line(reason)}; {_ADVICE}")


def parse(address: str) -> tuple[str, int] | None:
    """Return host and port of an address, or None if only Ray knows (``auto``, other schemes); raise UsageError."""
    rest = address.removeprefix(CLIENT)
    if address == "auto" or "://" in rest:
        return None
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:/\s]+))(?::(\d{1,5}))?", rest)
    port = int(found[3] or (CLIENT_PORT if rest != address else 0)) if found else 0
    if found is None or not 0 < port < 1 << 16:
        raise UsageError("an address is HOST:PORT, [IPv6]:PORT, ray://HOST:PORT or auto")
    return found[1] or found[2], port


def knock(address: str) -> None:
    """Look whether something answers like Ray on one of the host's addresses. Raises HostError, UsageError."""
    place = parse(address)
    if place is None:
        return
    host, port = place
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise HostError(f"the host {host} is not known ({getattr(error, 'strerror', None) or error})") from error
    reason = "it has no address"
    for family, kind, protocol, _, where in places:
        with socket.socket(family, kind, protocol) as link:
            link.settimeout(CONNECT_S)
            try:
                link.connect(where)
            except OSError as error:
                reason = f"nothing listens there ({error.strerror or 'no answer'})"
                continue
            if os.environ.get("RAY_USE_TLS") == "1":
                return  # its greeting is another one
            reason = _greet(link)
            if not reason:
                return
    raise HostError(reason)


def _greet(link: socket.socket) -> str:
    """Greet as a client of HTTP/2, and say what is wrong with the answer, if anything is."""
    link.settimeout(GREETING_S)
    answer = b""
    try:
        link.sendall(_GREETING)
        while len(answer) < _HEADER_BYTES and (more := link.recv(_HEADER_BYTES - len(answer))):
            answer += more
    except TimeoutError:
        return f"it accepts connections and says nothing for {GREETING_S:.0f} s"
    except OSError as error:
        return f"it breaks the connection off ({error.strerror})"
    if len(answer) < _HEADER_BYTES or answer[3] != _SETTINGS:
        return "what listens there is no Ray"
    return ""


def main(address: str) -> None:
    """Connect to Ray as a job would, and end with 0, or print a line that says why not."""
    signal.alarm(int(LOOK_S) + 1)  # should the parent be gone
    try:
        _connect(address)
    except QuoreduceError as error:
        print(error)
        code = error.exit_code
    except BaseException as error:  # noqa: BLE001 - Ray's, of many types
        lines = str(error).strip().splitlines()
        print(lines[0] if lines else type(error).__name__)
        code = HostError.exit_code
    else:
        code = 0
    sys.stdout.flush()
    os._exit(code)


def _connect(address: str) -> None:
    if address == "auto":
        address = found_address()
        knock(address)
    connect(address)


if __name__ == "__main__":
    main(sys.argv[1])
