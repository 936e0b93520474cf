"""swtpm, a TPM 2.0 in software, started and stopped by us: it behaves as hardware does, but root of the machine
controls it.

A state folder (mode 0700) holds the TPM's state and, by default, the certificate authority that certified it::

    tpm/    the TPM's non-volatile state
    ca/     the authority: a root, and the one below it that signs EK certificates (several states may share one)
    lock    held while a process uses this state

The TPM's commands and its control channel go over socket pairs: no path, no port, no other process can connect, and
swtpm ends when the thread that started it does. Needs the programs of :data:`PACKAGES`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quoreduce.errors import AttestationError, EvidenceError, HostError
from quoreduce.trust import commands
from quoreduce.trust.drtm import LAUNCHED, Control
from quoreduce.trust.tpm2 import Tpm2, check_kinds

PACKAGES: Final = ("swtpm", "swtpm-tools")  # of Debian and Ubuntu
TIMEOUT_S: Final = 20.0  # for one answer; the slowest, an RSA key, takes under a second
_SETUP_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 5.0
_LOCK_PAUSE_S: Final = 0.005
_LOG_BYTES: Final = 500  # of swtpm's last words, in errors
_DONE: Final = "setup-done"
_NO_CAPABILITIES: Final = (
    "--inh-caps=-all",
    "--ambient-caps=-all",
    "--bounding-set=-all",
)  # of setpriv: root without its rights

_SETUP_CONF: Final = """\
create_certs_tool = {localca}
create_certs_tool_config = localca.conf
create_certs_tool_options = localca.options
"""
_LOCALCA_CONF: Final = """\
statedir = {ca}
signingkey = {ca}/signkey.pem
issuercert = {ca}/issuercert.pem
certserial = {ca}/certserial
"""
_LOCALCA_OPTIONS: Final = """\
--platform-manufacturer quoreduce
--platform-version 1
--platform-model swtpm
"""


@dataclass(frozen=True, slots=True)
class SwtpmSetup:
    """A TPM state, set up.

    Attributes:
        state: its folder.
        roots: certificates of the authority's roots, PEM: what a verifier trusts.
        intermediates: certificates between a root and the EK's, DER, the EK's issuer first.
    """

    state: Path
    roots: tuple[str, ...]
    intermediates: tuple[bytes, ...]


def setup(state: Path, ca: Path | None = None) -> SwtpmSetup:
    """Make a TPM with endorsement keys (RSA-2048, ECC P-384) and a certificate for each; an existing one
    stays.

    Args:
        state: its folder; made if it is missing. Nothing is written elsewhere, except to ``ca``.
        ca: the folder of the authority, made if it is missing; by default one of the state's own.

    Raises:
        HostError: swtpm's programs are missing or fail, the folder cannot be written, another process uses the state.
    """
    localca = _program("swtpm_localca")
    state, ca = state.resolve(), (ca or state / "ca").resolve()
    try:
        for folder in (state, state / "tpm", ca):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(state):
            if not (state / _DONE).exists():
                _manufacture(state, ca, localca)
    except OSError as error:
        raise HostError(f"cannot set up a TPM in {state}: {error}") from error
    return read_setup(state)


def read_setup(state: Path) -> SwtpmSetup:
    """Return what :func:`setup` made. Raises HostError if it was not run on this folder."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        ca = state / (state / _DONE).read_text(encoding="utf-8")
        root = (ca / "swtpm-localca-rootca-cert.pem").read_text(encoding="ascii")
        issuer = x509.load_pem_x509_certificate((ca / "issuercert.pem").read_bytes())
    except (OSError, ValueError) as error:
        raise HostError(f"{state} holds no TPM: make one with `quoreduce attest setup` ({error})") from error
    return SwtpmSetup(state, (root,), (issuer.public_bytes(Encoding.DER),))


class Swtpm(Tpm2):
    """A running swtpm. Only one can run on a state; it is stopped by :meth:`close`, and at the latest when this process
    ends.

    Args:
        state: a folder that :func:`setup` made.
        scheme: of the AK: ecdsa (P-256) or rsassa (RSA-2048).
        ek: the endorsement key that vouches for it: ecc (P-384) or rsa (2048).
        timeout_s: for one answer.
        wait_s: for another process to release the state.

    Raises:
        UsageError: an unknown scheme or kind of EK.
        HostError: no swtpm, no such state, it is in use, it does not answer.
    """

    def __init__(
        self, state: Path, scheme: str = "ecdsa", ek: str = "ecc", timeout_s: float = TIMEOUT_S, wait_s: float = 0.0
    ) -> None:
        check_kinds(scheme, ek)
        if not (state / _DONE).exists():
            raise HostError(f"{state} holds no TPM: make one with `quoreduce attest setup`")
        self._state = state
        self._running = _SwtpmProcess(state, timeout_s, wait_s)
        self._stop = weakref.finalize(self, self._running.stop)
        try:
            super().__init__(self._running.transmit, "swtpm", scheme, ek)
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Swtpm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def setup(self) -> SwtpmSetup:
        """What :func:`setup` made."""
        return read_setup(self._state)

    @property
    def pid(self) -> int:
        """The process id of swtpm."""
        return self._running.process.pid

    def launch(self, measured: bytes) -> None:
        """Launch an environment: a DRTM event that measures these bytes into PCR 17 (:mod:`quoreduce.trust.drtm`)."""
        with self._lock:
            self._running.control.launch(measured)

    def extend_launched(self, pcr: int, digest: bytes) -> None:
        """Extend a PCR as the launched environment does, from locality 2: PCR 19 can be extended so, 17 and 18 too."""
        with self._lock:
            self._running.control.set_locality(LAUNCHED)
            try:
                self.extend(pcr, digest)
            finally:
                self._running.control.set_locality(0)

    def close(self) -> None:
        """Stop swtpm in order, so that its clock stays safe; may be called again."""
        if self._stop.alive:
            with contextlib.suppress(HostError, AttestationError):  # it is gone already, or hangs: then it is killed
                super().close()
                self._send(commands.shutdown())
            self._stop()


class _SwtpmProcess:
    """The process, the connections to it, the lock on its state."""

    def __init__(self, state: Path, timeout_s: float, wait_s: float) -> None:
        program = _program("swtpm")
        self._log = state / "swtpm.log"
        self._timeout_s = timeout_s
        self._owner = os.getpid()
        with contextlib.ExitStack() as undo:
            self._lock_fd = undo.enter_context(_locked(state, wait_s))
            self._commands, far_commands = socket.socketpair()
            control, far_control = socket.socketpair()
            undo.callback(self._commands.close)
            undo.callback(control.close)
            self._commands.settimeout(timeout_s)
            control.settimeout(timeout_s)
            self.control = Control(control)
            with far_commands, far_control:
                self.process = self._start(program, state, far_commands.fileno(), far_control.fileno())
            self._undo = undo.pop_all()

    def _start(self, program: str, state: Path, commands_fd: int, control_fd: int) -> subprocess.Popen[bytes]:
        line = [
            program, "socket", "--tpm2", "--tpmstate", "dir=tpm,mode=0600", "--fd", str(commands_fd),
            "--ctrl", f"type=unixio,clientfd={control_fd}", "--flags", "not-need-init,startup-clear",
            "--log", "file=swtpm.log,level=1,truncate", "--seccomp", "action=kill",
        ]  # fmt: skip
        # killed with the thread that started it: without its owner it can spin for ever on a closed connection
        rights = ["--no-new-privs", *(_NO_CAPABILITIES if os.geteuid() == 0 else ())]
        line[:0] = [setpriv, "--pdeathsig", "KILL", *rights] if (setpriv := shutil.which("setpriv")) else []
        try:
            # the lock goes along: the state is in use until swtpm has ended, even if this process dies first
            return subprocess.Popen(
                line, cwd=state, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=(commands_fd, control_fd, self._lock_fd), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise HostError(f"cannot start {program}: {error}") from error

    def transmit(self, command: bytes) -> bytes:
        """Send one command and return its response; after an error no other can be sent."""
        if self._commands.fileno() < 0:
            raise HostError("swtpm is gone: it was stopped, or failed before")
        try:
            return exchange(self._commands, command)
        except TimeoutError as error:
            self._commands.close()
            raise HostError(
                f"swtpm did not answer {commands.command_name(command)} within {self._timeout_s:g} s"
            ) from error
        except EvidenceError:
            self._commands.close()
            raise
        except OSError as error:
            self._commands.close()
            raise HostError(f"swtpm is gone: {error}; its log says: {self._last_words()}") from error

    def stop(self) -> None:
        """End swtpm, kill it if it does not end, and release the state. In a forked child it does nothing."""
        if os.getpid() != self._owner:
            return
        self._commands.close()
        with contextlib.suppress(HostError):  # it ended already, or hangs
            self.control.shutdown()
        try:
            self.process.wait(min(self._timeout_s, _STOP_TIMEOUT_S))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._undo.close()

    def _last_words(self) -> str:
        try:
            return self._log.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip() or "nothing"
        except OSError:
            return "nothing"


def exchange(connection: socket.socket, command: bytes) -> bytes:
    """Send a command and receive its response, at most 4096 bytes.

    Raises:
        OSError: the connection is closed or broken, or (TimeoutError) silent for longer than its timeout.
        EvidenceError: the response is malformed.
    """
    connection.sendall(command)
    response = _receive(connection, commands.MESSAGE_BYTES_MAX)
    while len(response) < commands.HEADER_BYTES:
        response += _receive(connection, commands.MESSAGE_BYTES_MAX)
    size = commands.message_size(response)
    while len(response) < size:
        response += _receive(connection, size - len(response))
    return response


def _receive(connection: socket.socket, limit: int) -> bytes:
    received = connection.recv(limit)
    if not received:
        raise ConnectionError("the connection was closed")
    return received


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise HostError(f"{name} is not installed; on Debian and Ubuntu: sudo apt-get install {' '.join(PACKAGES)}")
    return path


@contextlib.contextmanager
def _locked(state: Path, wait_s: float = 0.0) -> Iterator[int]:
    """Hold the lock on a state; give its file descriptor. Raises HostError if another process holds it for longer than
    ``wait_s``.
    """
    try:
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot use the TPM state in {state}: {error}") from error
    try:
        limit = time.monotonic() + wait_s
        while not _taken(lock):
            if time.monotonic() >= limit:
                raise HostError(f"the TPM state in {state} is in use by another swtpm: stop it, or take another folder")
            time.sleep(_LOCK_PAUSE_S)
        yield lock
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _manufacture(state: Path, ca: Path, localca: str) -> None:
    """Run swtpm_setup in the state's folder; all that it reads and writes is named relative to it."""
    where = os.path.relpath(ca, state)
    (state / "setup.conf").write_text(_SETUP_CONF.format(localca=localca), encoding="utf-8")
    (state / "localca.conf").write_text(_LOCALCA_CONF.format(ca=where), encoding="utf-8")
    (state / "localca.options").write_text(_LOCALCA_OPTIONS, encoding="utf-8")
    line = [
        _program("swtpm_setup"), "--tpm2", "--tpmstate", "tpm", "--createek", "--ecc", "--create-ek-cert",
        "--lock-nvram", "--overwrite", "--pcr-banks", "sha256", "--config", "setup.conf", "--logfile", "setup.log",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            line, cwd=state, env={**os.environ, "TMPDIR": "."}, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_SETUP_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise HostError(f"swtpm_setup did not end within {_SETUP_TIMEOUT_S:g} s") from error
    if done.returncode:
        words = (done.stderr + done.stdout)[-_LOG_BYTES:].decode(errors="replace").strip()
        raise HostError(f"swtpm_setup failed; {state / 'setup.log'} says why. {words}")
    (state / _DONE).write_text(where, encoding="utf-8")  # last: without this file it is made anew
