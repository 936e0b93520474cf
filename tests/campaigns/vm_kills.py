"""Kill a process of a site in the middle of an operation on a VM; check that there is one copy at most, and that the
operation ends well.

    python tests/campaigns/vm_kills.py --count 200 --seed 0

A case is one `quoreduce vm` command, with real guests, and a SIGKILL at a random moment for one of six: a server's
agent, the manager, the user's agent, QEMU, the guest's TPM, the server's TPM. What was killed is started again, at once
or when the command has ended. The command has to end within a minute of the kill, with an exit status and a line that
says what to do; then `quoreduce vm resume` has to find the VM. It runs in one place, with its secret, or nowhere, and
nothing of it is left; it is lost only if its own processes were killed. Nothing that passed through the manager, and
nothing on disk, holds its secrets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from quoreduce.commands.vm.attack import new_key
from quoreduce.commands.vm.demo import CommandResult, Site, console, found_in, key_parts
from quoreduce.errors import VmError
from quoreduce.vm.agents.server import ask_broker
from quoreduce.vm.image import build
from quoreduce.vm.processes import Process, living_in

VICTIMS = ("server", "manager", "user", "QEMU", "guest's TPM", "server's TPM")
OPERATIONS = ("launch", "migrate", "backup", "restore", "terminate")
SERVERS = ("s1", "s2")
END_MAX_S = 60.0  # from the kill to the end of a command
LEFT_MAX_S = 45.0  # until nothing is left of a VM where it is not
APPEAR_MAX_S = 20.0
POLL_S = 0.01
HINT = re.compile(r"start|resume|restore|launch|anew|again|terminate|backup|trust")
BEGUN = frozenset({"launching", "restoring", "migrating", "abandoning", "backing up", "terminating"})
ENDS = {  # how an operation may end, whoever is killed; and "lost" if it was a process of the guest's
    "launch": {"running", "idle", "not ordered"}, "migrate": {"running"}, "backup": {"running"},
    "restore": {"running", "idle", "terminated"}, "terminate": {"running", "terminated"},
}  # fmt: skip


class Wrong(Exception):
    """What must not happen."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kill: ``moment`` as a share of what the operation takes undisturbed; ``source``: of which server, if two take
    part.
    """

    operation: str
    victim: str
    source: bool
    moment: float
    at_once: bool


def draw(seed: int, number: int) -> Case:
    """The case of this number: each operation meets each victim in turn."""
    rng = random.Random(f"{seed} {number}")
    pair = number % (len(VICTIMS) * len(OPERATIONS))
    operation, victim = OPERATIONS[pair % len(OPERATIONS)], VICTIMS[pair // len(OPERATIONS)]
    return Case(operation, victim, rng.random() < 0.5, rng.uniform(0, 1.1), rng.random() < 0.75)


@dataclass(slots=True)
class Tally:
    """What came of the cases: (operation, victim, phase in the end) -> how many; seconds from kills to the commands'
    ends.
    """

    ends: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    samples: int = 0
    searched: int = 0


def guests(run: Path) -> dict[str, dict[str, Process]]:
    """The processes of the guests in a run folder, ``qemu`` and ``swtpm``, by the names of their folders."""
    found = {}
    for path in run.glob("*/guest.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads(path.read_bytes())
            found[path.parent.name] = {name: Process(**record[name]) for name in ("qemu", "swtpm")}
    return found


class Copies:
    """Looks, as long as a case lasts, at both servers in turn: in how many places does the VM run, and as which
    processes?
    """

    def __init__(self, runs: Callable[[str], bool], look: Callable[[], None] = lambda: None) -> None:
        self._runs, self._more, self._over = runs, look, Event()
        self.samples, self.double = 0, False
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Copies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        first, second = SERVERS
        while not self._over.wait(5 * POLL_S):
            self.samples += 1
            self._more()
            # it may move between two looks: in two places only if it is in the first before and after it is in the
            # second
            if self._runs(first) and self._runs(second) and self._runs(first):
                self.double = True


class Campaign:
    """Runs cases with a manager, two servers and a user of its own, in ``folder``.

    Args:
        image: with a guest that holds the key ``pem``; None: one is built.
    """

    def __init__(self, folder: Path, image: Path | None = None, pem: bytes | None = None) -> None:
        pem = pem or new_key()
        self._image = image or build(folder / "image", plant=pem).path
        self._secret = f"SECRET-{os.urandom(12).hex()}"
        self._secrets = [self._secret.encode(), *key_parts(pem)]
        self.site = Site(folder)
        self._name = self._vm = self._where = ""
        self._launched = 0
        self._lives: dict[str, float] = {}
        self._seen: set[Process] = set()  # of guests
        self.tally = Tally()
        try:
            self.site.manager()
            for name in SERVERS:
                self.site.server(name)
            (folder / "policy.json").write_text(self._done("policy", "--state", str(folder / "s1")).out)
            self._done("trust", str(folder / "policy.json"))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.site.__exit__(None, None, None)

    def _done(self, *arguments: str) -> CommandResult:
        done = self.site.run(*arguments)
        if done.code:
            raise Wrong(f"undisturbed, {arguments[0]} ends with {done.code}: {done.err}")
        return done

    def _words(self, operation: str) -> tuple[str, ...]:
        if operation == "launch":
            return "launch", str(self._image), self._name, "--server", self._where
        if operation == "migrate":
            return "migrate", self._name, "--to", self._other
        return (operation, self._name, *(("--server", self._where) if operation == "restore" else ()))

    @property
    def _other(self) -> str:
        return SERVERS[self._where == SERVERS[0]]

    def _row(self) -> dict[str, str]:
        rows = json.loads(self._done("list", "--json").out)["vms"]
        found: dict[str, str] = next(
            (row for row in rows if row["name"] == self._name), {"phase": "not ordered", "vm": ""}
        )
        return found

    def _prepare(self, operation: str) -> None:
        """Bring it about that the operation can be done."""
        if operation == "launch" or not self._vm:
            if self._vm:
                self._done("terminate", self._name)
            self._vm, self._where = "", self._where or SERVERS[0]
            self._launched += 1
            self._name = f"v{self._launched}"
            for blob in self.site.store.glob("[0-9a-f]*"):
                blob.unlink()
        if operation != "launch" and not self._vm:
            self._done(*self._words("launch"))
            self._vm = self._row()["vm"]
            self._keep_secret()
        if operation == "restore":
            self._done("backup", self._name)
            self._done("terminate", self._name)

    def _keep_secret(self) -> None:
        with console(self.site.guest(self._where, self._vm)) as ask:
            ask(f"SECRET {self._secret}", "STORED")

    def life_s(self, operation: str) -> float:
        """How long an operation takes that is let alone."""
        if operation not in self._lives:
            self._prepare(operation)
            self._lives[operation] = self._done(*self._words(operation)).seconds
            self._went_on(self._row()["phase"])
        return self._lives[operation]

    def _went_on(self, phase: str) -> None:
        row = self._row()
        self._vm = row["vm"] if phase == "running" else ""
        if phase == "running":
            self._where = row["server"]

    def one(self, case: Case) -> float:
        """Run one case; return the seconds from the kill to the end of the command. Raises Wrong."""
        life_s = self.life_s(case.operation)
        self._prepare(case.operation)
        place = self._victims_server(case)
        with Copies(self._runs, self._note_processes) as copies:
            command = self.site.begin(*self._words(case.operation))
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(case.moment * life_s)
            self._kill(case, place, command)
            killed_at = time.monotonic()
            if case.at_once:
                self._start_again(case, place)
            out, err = self._end(command, killed_at)
            seconds = time.monotonic() - killed_at
            if not case.at_once:
                self._start_again(case, place)
            judge_words(case, command.returncode, out, err)
            phase = self._settled()
        self.tally.samples += copies.samples
        if copies.double:
            raise Wrong("two copies ran at once")
        self._judge(case, phase)
        self.tally.ends[case.operation, case.victim, phase] += 1
        self.tally.seconds.append(seconds)
        return seconds

    def _victims_server(self, case: Case) -> str:
        return self._where if case.source or case.operation != "migrate" else self._other

    def _kill(self, case: Case, server: str, command: subprocess.Popen[str]) -> None:
        if case.victim == "user":
            command.kill()
        elif case.victim in ("server", "manager"):
            self.site.kill(server if case.victim == "server" else "manager")
        elif case.victim == "server's TPM":
            for process in living_in(self.site.folder / server / "swtpm"):
                os.kill(process.pid, signal.SIGKILL)
        else:
            name = "qemu" if case.victim == "QEMU" else "swtpm"
            limit = time.monotonic() + APPEAR_MAX_S
            while not (found := [one[name] for one in guests(self.site.memory / server).values() if one[name].alive()]):
                if command.poll() is not None or time.monotonic() > limit:
                    return  # it has none any more, or never had
                time.sleep(POLL_S)
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def _start_again(self, case: Case, server: str) -> None:
        if case.victim == "manager":
            self.site.manager()
        elif case.victim in ("server", "server's TPM"):
            if server in self.site.processes:
                self.site.kill(server)  # it may not have noticed yet that its TPM is gone
            self.site.server(server)

    def _end(self, command: subprocess.Popen[str], killed_at: float) -> tuple[str, str]:
        try:
            return command.communicate(timeout=max(1.0, END_MAX_S - (time.monotonic() - killed_at)))
        except subprocess.TimeoutExpired:
            command.kill()
            out, err = command.communicate()
            raise Wrong(f"the command does not end within {END_MAX_S:g} s of the kill; it said: {out} {err}") from None

    def _settled(self) -> str:
        """The VM's phase when `vm resume` has found it; nothing is under way then."""
        for _ in range(3):
            if self._row()["phase"] == "not ordered":
                return "not ordered"
            began = time.monotonic()
            out, err = self._end(self.site.begin("resume", self._name), began)
            if "Traceback" in out + err:
                raise Wrong(f"a traceback: {err}")
            if (phase := self._row()["phase"]) not in BEGUN:
                return phase
        raise Wrong(f"after three times `vm resume` it is still {phase}: {out} {err}")

    def _judge(self, case: Case, phase: str) -> None:
        ends = set(ENDS[case.operation])
        if case.victim in ("QEMU", "guest's TPM"):
            ends.add("lost")
            if phase == "running" and not self._runs(self._row()["server"]):
                phase = self._settled()  # its server had not noticed yet
        if phase not in ends:
            raise Wrong(f"it is {phase} in the end")
        fresh = case.operation == "launch"
        self._went_on(phase)
        place = self._where if phase == "running" else ""
        self._nothing_but(place)
        if place:
            if not self._runs(place):
                raise Wrong(f"it does not run on {place}")
            if not fresh:
                with console(self.site.guest(place, self._vm)) as ask:
                    if ask("SHOW", "HELD") != f"HELD {self._secret}":
                        raise Wrong("it runs, and has another memory")
            self._keep_secret()
        for name in ("manager", *SERVERS):
            if any("Traceback" in line for line in self.site.log(name)):
                raise Wrong(f"{name} ended with a traceback: {self.site.log(name)[-1]}")
        self._search()

    def _nothing_but(self, place: str) -> None:
        """Wait until nothing of any VM is anywhere but at ``place``: no folder, no process."""
        limit = time.monotonic() + LEFT_MAX_S
        while left := list(self._left(place)):
            if time.monotonic() > limit:
                raise Wrong(f"left behind: {left}")
            time.sleep(10 * POLL_S)

    def _note_processes(self) -> None:
        for name in SERVERS:
            for one in guests(self.site.memory / name).values():
                self._seen.update(one.values())

    def _left(self, place: str) -> Iterator[str]:
        here: set[Process] = set()
        for name in SERVERS:
            for path in (self.site.memory / name).iterdir():
                if path.is_dir() and not (name == place and path.name == self._vm):
                    yield str(path)
            if name == place:
                here = set(guests(self.site.memory / name).get(self._vm, {}).values())
        self._seen = {process for process in self._seen if process.alive()} | here
        yield from (str(process) for process in self._seen - here)

    def _runs(self, server: str) -> bool:
        """Whether a guest of the server's runs now, as QEMU says."""
        for folder in (self.site.memory / server).glob("[0-9a-f]*"):
            try:
                said = json.loads(ask_broker(folder / "manager.sock", b'{"execute": "query-status"}'))
            except (OSError, ValueError, VmError):
                continue
            if said.get("return", {}).get("status") == "running":
                return True
        return False

    def _search(self) -> None:
        """Nothing that the manager saw, and nothing that the servers have on disk, holds a secret."""
        places = [self.site.record, *(self.site.folder / name for name in SERVERS)]
        self.tally.searched += self.site.record.stat().st_size
        if found := found_in(self._secrets, places):
            raise Wrong(f"a secret is in {found}")
        os.truncate(self.site.record, 0)


def judge_words(case: Case, code: int, out: str, err: str) -> None:
    """Raise Wrong unless a command says how it ended, and what to do."""
    if "Traceback" in out + err:
        raise Wrong(f"a traceback: {err}")
    if case.victim == "user" and code == -signal.SIGKILL:
        return
    if code not in (0, 6):
        raise Wrong(f"exit {code}: {err}")
    if code and (err.count("\n") != 1 or not HINT.search(err)):
        raise Wrong(f"it does not say in one line what to do: {err!r}")


def table(tally: Tally) -> str:
    """How the cases ended."""
    lines = [f"{'operation':<12}{'killed':<16}{'in the end':<14}{'cases':>6}"]
    lines += [
        f"{operation:<12}{victim:<16}{end:<14}{n:>6}" for (operation, victim, end), n in sorted(tally.ends.items())
    ]
    cases, slowest = sum(tally.ends.values()), max(tally.seconds, default=0.0)
    lines.append(
        f"{cases} kills: 0 double copies in {tally.samples:,} looks, 0 secrets in {tally.searched:,} bytes that the "
        f"manager saw; commands ended at most {slowest:.1f} s after the kill"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill processes of a site in the middle of operations on VMs.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after so long")
    parser.add_argument("--folder", default="/tmp", help="where to work (default /tmp)")
    a = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its guests would outlive it
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-", dir=a.folder) as folder:
        campaign = Campaign(Path(folder))
        try:
            for number in range(a.first, a.first + a.count):
                if time.monotonic() - began > a.seconds:
                    break
                case = draw(a.seed, number)
                try:
                    seconds = campaign.one(case)
                except Wrong as error:
                    print(table(campaign.tally), f"\nWRONG in case {number} of seed {a.seed}, {case}: {error}")
                    return 1
                print(f"{number} {case}: {seconds:.1f} s", flush=True)
        finally:
            campaign.close()
    print(table(campaign.tally))
    return 0


if __name__ == "__main__":
    sys.exit(main())
