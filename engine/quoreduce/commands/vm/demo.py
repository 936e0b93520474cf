"""``quoreduce vm demo``: a VM's whole life on two servers, with a manager that nobody trusts; every claim is checked.

All agents are processes of their own, driven by the commands that a user would type. Beyond these commands the script
reads the guest's console (as the guest's user would over the network), and searches all files for the secrets
afterwards, byte by byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final

from quoreduce.errors import OutputError, VmError

READY_S: Final = 120.0  # for an agent to be there, a TPM being made
COMMAND_S: Final = 300.0
CONSOLE_S: Final = 60.0
PIECE_BYTES: Final = 16 << 20
STAMP: Final = "%H:%M:%S.%f"


@dataclass(frozen=True)
class CommandResult:
    """The result of a command: its exit code, its output, and how long it took, in seconds."""

    code: int
    out: str
    err: str
    seconds: float


class Site:
    """A manager and servers as processes, and a user; leaving it ends them and their VMs, and removes their files in
    memory.

    Args:
        folder: for all that is on disk.
        accel: kvm or tcg; None: what works.
    """

    def __init__(self, folder: Path, accel: str | None = None) -> None:
        self.folder, self._accel = folder, accel
        self.memory = Path(tempfile.mkdtemp(prefix="vms-site-", dir="/dev/shm"))
        self.record, self.store = folder / "relay.record", folder / "store"
        self._sockets = Path(tempfile.mkdtemp(prefix="vm-"))  # a socket's path must be short
        self.address = f"unix:{self._sockets}/manager"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from quoreduce.vm.scrub import scrub

        for name in [*self.processes][::-1]:
            self.end(name)
        for guest in [*self.memory.glob("*/*")]:
            with contextlib.suppress(VmError):
                scrub(guest)
        for folder in (self.memory, self._sockets):
            shutil.rmtree(folder, ignore_errors=True)

    def manager(self) -> None:
        """Start the manager; it records all messages."""
        self._start("manager", "manager", self.address, "--store", str(self.store), "--record", str(self.record))

    def server(self, name: str, *options: str) -> None:
        """Start a server, or start it again."""
        (self.memory / name).mkdir(exist_ok=True, mode=0o700)
        accel = ("--accel", self._accel) if self._accel else ()
        state, run = str(self.folder / name), str(self.memory / name)
        self._start(name, "server", "--state", state, "--manager", self.address, "--run", run, *accel, *options)

    def log(self, name: str) -> list[str]:
        """The lines that an agent logged since it was last started."""
        return (self.folder / f"{name}.log").read_text(errors="replace").splitlines()

    def wait(self, name: str, pattern: str, timeout_s: float = READY_S) -> str:
        """Wait for an agent to say something, return the line. Raises VmError if it does not, or ends first."""
        limit = time.monotonic() + timeout_s
        while True:
            ended = self.processes[name].poll() is not None
            for line in self.log(name):
                if re.search(pattern, line):
                    return line
            if ended or time.monotonic() > limit:
                raise VmError(f"{name} did not say {pattern!r}; it said: {' | '.join(self.log(name)[-3:])}")
            time.sleep(0.02)

    def end(self, name: str) -> None:
        """End an agent in order."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self, name: str) -> None:
        """End an agent with SIGKILL."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def run(self, *arguments: str) -> CommandResult:
        """Run a ``quoreduce vm`` command to its end, as the user."""
        began = time.monotonic()
        done = subprocess.run(
            _line(arguments), env=self._env(), capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        return CommandResult(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a ``quoreduce vm`` command, as the user."""
        return subprocess.Popen(
            _line(arguments), env=self._env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def guest(self, server: str, vm: str) -> Path:
        """The private folder of a guest, which nobody but root and its server can read."""
        return self.memory / server / vm

    def _env(self) -> dict[str, str]:
        return {**os.environ, "QUOREDUCE_VM": str(self.folder / "user"), "QUOREDUCE_VM_MANAGER": self.address}

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                _line(arguments), env=self._env(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )  # fmt: skip
        self.wait(name, "manager at" if name == "manager" else ": ready at")


def _line(arguments: Iterable[str]) -> list[str]:
    return [sys.executable, "-P", "-m", "quoreduce.cli", "vm", *arguments]


@contextlib.contextmanager
def console(folder: Path) -> Iterator[Callable[[str, str], str]]:
    """A guest's console: a function that sends a line and returns the first line that matches."""
    from quoreduce.vm.serial import Serial

    serial = Serial(folder / "serial.sock")

    def ask(line: str, pattern: str) -> str:
        if line:
            serial.send(line)
        return serial.wait(pattern, CONSOLE_S)

    try:
        yield ask
    finally:
        serial.close()


def found_in(secrets: Iterable[bytes], places: Iterable[Path]) -> list[str]:
    """Search files, and all in folders, byte by byte; return where a secret was found."""
    found = []
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and _holds(path, list(secrets)):
                found.append(str(path))
    return found


def _holds(path: Path, secrets: list[bytes]) -> bool:
    longest = max(map(len, secrets))
    kept = b""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            data = kept + piece
            if any(secret in data for secret in secrets):
                return True
            kept = data[-longest:]
    return False


def key_parts(pem: bytes) -> list[bytes]:
    """The secret numbers of an RSA key: its private exponent and both primes, as a DER file has them."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem, None)
    assert isinstance(key, RSAPrivateKey)
    numbers = key.private_numbers()
    return [value.to_bytes((value.bit_length() + 7) // 8, "big") for value in (numbers.d, numbers.p, numbers.q)]


class Script:
    """The session, step by step. Its methods raise VmError if a claim does not hold."""

    def __init__(self, site: Site, quiet: bool) -> None:
        self._site, self._quiet, self._began = site, quiet, time.monotonic()
        self.steps: list[dict[str, object]] = []

    def say(self, text: str) -> None:
        """A line of the transcript."""
        self.steps.append({"at_s": round(time.monotonic() - self._began, 2), "text": text})
        if not self._quiet:
            print(f"{time.monotonic() - self._began:7.2f} s  {text}", flush=True)

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run a command, and record it and its output. Raises VmError for another exit code."""
        shown = self._short(shlex.join(arguments))
        self.say(f"$ quoreduce vm {shown}")
        done = self._site.run(*arguments)
        for line in (done.out + done.err).splitlines()[:8]:
            self.say(f"    {self._short(line)}")
        if done.code != code:
            raise VmError(f"`quoreduce vm {shown}` ended with {done.code}, not with {code}: {done.err.strip()}")
        return done.out

    def _short(self, text: str) -> str:
        """Shorten paths: without the site's folder."""
        return text.replace(str(self._site.folder) + "/", "")

    def check(self, holds: bool, text: str) -> None:
        """A claim."""
        if not holds:
            raise VmError(f"not as it should be: {text}")
        self.say(f"    checked: {text}")

    def vm(self) -> str:
        """The id of the one VM."""
        found = json.loads(self._site.run("list", "--json").out)["vms"][0]["vm"]
        return str(found)


def demo(image: Path | None, keep: Path | None, as_json: bool) -> int:
    """Run the session; print its transcript. Raises VmError if a claim fails, or a program is not installed."""
    from quoreduce.vm import boot
    from quoreduce.vm.agents.site import check_programs

    check_programs(boot.PATH)
    if keep is not None and keep.exists():
        raise OutputError(f"{keep} exists: choose a folder that does not")
    folder = keep or Path(tempfile.mkdtemp(prefix="vm-demo-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with Site(folder) as site:
            script = Script(site, as_json)
            downtime = play(script, site, image)
            total = time.monotonic() - script._began
            script.say(f"all of it as it should be, in {total:.1f} s")
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print(json.dumps({"seconds": round(total, 2), "downtime_ms": downtime, "steps": script.steps}))
    return 0


def play(script: Script, site: Site, image: Path | None) -> int:
    """The session; returns the migration's downtime in milliseconds."""
    secrets, image = _prepare(script, site, image)
    script.command("launch", str(image), "web", "--server", "s1")
    vm = script.vm()
    with console(site.guest("s1", vm)) as ask:
        ask(f"SECRET {secrets[0].decode()}", "STORED")
        pcr, before = ask("PCR", "PCR10 "), _tick(ask)
    script.say(f"    the guest keeps a secret in memory and on its disk; it counts, and is at {before}; {pcr[:22]}...")
    script.say("an insider at the manager asks for the guest's memory:")
    script.command("insider", "s1", vm, "dump-guest-memory", '{"paging": false, "protocol": "file:dump"}', code=6)
    script.command("attest")
    downtime = _migrate(script, site, vm, secrets, pcr, before)
    _back_up_and_end(script, site, vm, secrets)
    _restore(script, site, vm, secrets, pcr)
    _search(script, site, image, secrets)
    return downtime


def _prepare(script: Script, site: Site, image: Path | None) -> tuple[list[bytes], Path]:
    from quoreduce.commands.vm.attack import new_key

    secrets = [f"demo-{os.urandom(16).hex()}".encode(), f"later-{os.urandom(16).hex()}".encode()]
    if image is None:
        key, image = site.folder / "key.pem", site.folder / "guest.image"
        pem = new_key()
        key.write_bytes(pem)
        secrets += key_parts(pem)
        script.command("image", str(image), "--plant", str(key))
        key.unlink()
    site.manager()
    script.say("the manager runs; it records all that it sees")
    for name in ("s1", "s2"):
        site.server(name)
        script.say(f"server {name} runs: {site.log(name)[-1].partition(': ')[0].partition(' ')[2]}")
    policy = site.folder / "policy.json"
    policy.write_text(_printed(site, "policy", "--state", str(site.folder / "s1")))
    script.command("trust", str(policy))
    return secrets, image


def _printed(site: Site, *arguments: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = site.run(*arguments)
    if done.code:
        raise VmError(done.err.strip())
    return done.out


def _tick(ask: Callable[[str, str], str]) -> int:
    return int(ask("TICK", r"tick \d+").split()[-1])


def _migrate(script: Script, site: Site, vm: str, secrets: list[bytes], pcr: str, before: int) -> int:
    script.command("migrate", "web", "--to", "s2")
    left = site.wait("s1", "stands still since").rpartition(" ")[2]
    runs = site.wait("s2", f"{vm[:8]} runs").partition(" ")[0]
    downtime = round((datetime.strptime(runs, STAMP) - datetime.strptime(left, STAMP)).total_seconds() * 1000)
    with console(site.guest("s2", vm)) as ask:
        after = _tick(ask)
        script.check(after > before, f"its counter went on, from {before} to {after}")
        script.check(ask("SHOW", "HELD") == f"HELD {secrets[0].decode()}", "its memory holds the secret")
        script.check(ask("DISK", "DISK ") == f"DISK {secrets[0].decode()}", "so does its disk")
        script.check(ask("PCR", "PCR10 ") == pcr, "PCR 10 of its TPM arrived as it was")
    script.check(not site.guest("s1", vm).exists(), "nothing of it is left in s1's memory")
    script.say(f"    downtime: {downtime} ms, from QEMU's STOP on s1 (at {left}) to running on s2 (at {runs})")
    return downtime


def _back_up_and_end(script: Script, site: Site, vm: str, secrets: list[bytes]) -> None:
    script.command("backup", "web")
    with console(site.guest("s2", vm)) as ask:
        ask(f"SECRET {secrets[1].decode()}", "STORED")
    script.say("    the guest, which went on, is given another secret")
    script.command("restore", "web", "--server", "s1", code=6)
    script.command("terminate", "web")
    script.check(not site.guest("s2", vm).exists(), "nothing of it is left in s2's memory")


def _restore(script: Script, site: Site, vm: str, secrets: list[bytes], pcr: str) -> None:
    script.command("restore", "web", "--server", "s1")
    with console(site.guest("s1", vm)) as ask:
        script.check(
            ask("SHOW", "HELD") == f"HELD {secrets[0].decode()}", "its memory is as it was when it was backed up"
        )
        script.check(ask("PCR", "PCR10 ") == pcr, "so is PCR 10 of its TPM")
    script.command("terminate", "web")


def _search(script: Script, site: Site, image: Path, secrets: list[bytes]) -> None:
    for name in [*site.processes][::-1]:
        site.end(name)
    places = [site.record, site.store, site.folder / "s1", site.folder / "s2", site.memory]
    files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    found = found_in(secrets, places)
    script.check(
        not found,
        f"none of the secrets{' nor the key' * (len(secrets) > 2)} is in the relay's traffic, the store, the servers'"
        f" folders and what is left in memory ({size:,} bytes searched){': ' * bool(found)}{', '.join(found)}",
    )
    if len(secrets) > 2:
        script.check(bool(_holds_unpacked(image, secrets[2:])), "the same search finds the key in the user's own image")


def _holds_unpacked(image: Path, secrets: list[bytes]) -> bool:
    """Whether an image's initrd, unpacked, holds one of the secrets: that the search can find them at all."""
    import gzip

    from quoreduce.vm.bundle import Bundle

    initrd = Bundle.decode(image.read_bytes()).initrd
    data = gzip.decompress(initrd) if initrd.startswith(b"\x1f\x8b") else initrd
    return any(secret in data for secret in secrets)
