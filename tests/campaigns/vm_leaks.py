"""Launch, move and terminate VMs; see that servers and the manager are afterwards as they were before.

    python tests/campaigns/vm_leaks.py --launches 20 --moves 6

Two servers, a manager and real guests. After a first round that warms everything up: launches and terminations on one
server, then migrations of two VMs in opposite directions at once. Before and after, when nothing is under way:
processes (also those that have ended and nobody asked how), open files, threads, memory, and files in memory. After
each receipt the memory of the server's agent is searched for pieces of the image.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quoreduce.commands.vm.demo import Site
from quoreduce.vm.image import build

SERVERS = ("s1", "s2")
PIECE_BYTES, PIECES = 48, 12
GROWN_MAX_MB = 24.0  # of an agent's memory; an image has 16
QUIET_MAX_S = 30.0
POLL_S = 0.05


class Wrong(Exception):
    """What must not happen."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What an agent has: processes below it, those of them that have ended, open files, threads, memory (RSS) in MB."""

    children: int
    ended: int
    files: int
    threads: int
    memory_mb: float


def counts(one: Figures) -> tuple[int, int, int]:
    """What has to be the same again."""
    return one.children, one.files, one.threads


def figures(pid: int) -> Figures:
    """Look at a process."""
    stats = [(entry, _stat(entry)) for entry in os.listdir("/proc") if entry.isdecimal()]
    below = [fields for _, fields in stats if fields and int(fields[1]) == pid]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Figures(
        len(below), sum(fields[0] == "Z" for fields in below), len(os.listdir(f"/proc/{pid}/fd")),
        int(status["Threads"]), int(status["VmRSS"].split()[0]) / 1024,
    )  # fmt: skip


def _stat(entry: str) -> list[str]:
    """Of proc(5), ``stat``, what stands behind the name: the state, the parent, ..."""
    try:
        return Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def pieces_of(image: Path) -> list[bytes]:
    """Pieces of an image from all over it, each of which is in it once."""
    data = image.read_bytes()
    step = len(data) // PIECES
    found = [data[at : at + PIECE_BYTES] for at in range(step // 2, len(data) - PIECE_BYTES, step)]
    return [piece for piece in found if len(set(piece)) > PIECE_BYTES // 3 and data.count(piece) == 1]


def copies_in(pid: int, pieces: Sequence[bytes]) -> int:
    """Search a process's memory; return how often the piece that is there most often is there."""
    counts = dict.fromkeys(pieces, 0)
    for data in _memory(pid):
        for piece in pieces:
            counts[piece] += data.count(piece)
    return max(counts.values())


def _memory(pid: int) -> Iterator[bytes]:
    """What a process can read and write."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(text, 16) for text in span.split("-"))
            if rights.startswith("rw"):
                with contextlib.suppress(OSError, ValueError):
                    memory.seek(start)
                    yield memory.read(end - start)


class Campaign:
    """Two servers, a manager and a user in ``folder``. image: None: one is built."""

    def __init__(self, folder: Path, image: Path | None = None) -> None:
        self._image = image or build(folder / "image").path
        self.pieces = pieces_of(self._image)
        self.site = Site(folder)
        self._launched = 0
        self.copies = 0  # the most that were found after a receipt
        try:
            self.site.manager()
            owners = folder / "owners"
            owners.write_text(
                "".join(self._done("key", "show", *self._owned(owner)).strip() + "\n" for owner in SERVERS)
            )
            for name in SERVERS:
                self.site.server(name, "--owners", str(owners))
            (folder / "policy.json").write_text(self._done("policy", "--state", str(folder / "s1")))
            for owner in SERVERS:  # a user's folder serves one command at a time
                self._done("trust", str(folder / "policy.json"), *self._owned(owner))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.site.__exit__(None, None, None)

    def _done(self, *arguments: str) -> str:
        done = self.site.run(*arguments)
        if done.code:
            raise Wrong(f"{arguments[0]} ends with {done.code}: {done.err}")
        return done.out

    def _owned(self, owner: str) -> tuple[str, str]:
        return "--state", str(self.site.folder / f"user-{owner}")

    def pid(self, name: str) -> int:
        return self.site.processes[name].pid

    def look(self, before: dict[str, Figures] | None = None) -> dict[str, Figures]:
        """Look at all agents when they are quiet: all counts are as they were, or for a while they do not get so."""
        limit = time.monotonic() + QUIET_MAX_S
        while True:
            found = {name: figures(self.pid(name)) for name in ("manager", *SERVERS)}
            same = before is None or all(counts(found[name]) == counts(before[name]) for name in found)
            if time.monotonic() > limit or (same and not any(one.ended for one in found.values())):
                return found
            time.sleep(POLL_S)

    def files(self) -> list[str]:
        """What lies in the servers' run folders, but for what a server has there all the time."""
        kept = ("lock", "server", ".quoreduce-owner.")
        return [str(path) for path in self.site.memory.glob("*/*") if not path.name.startswith(kept)]

    def launch(self, server: str) -> str:
        self._launched += 1
        name = f"v{self._launched}"
        self._done("launch", str(self._image), name, "--server", server, *self._owned(server))
        self.search(server)
        return name

    def terminate(self, name: str, owner: str, server: str) -> None:
        self._done("terminate", name, *self._owned(owner))
        self.search(server)

    def search(self, server: str) -> None:
        """After a receipt: pieces of the image in the memory of the server's agent."""
        self.copies = max(self.copies, copies_in(self.pid(server), self.pieces))

    def launches(self, count: int) -> None:
        for _ in range(count):
            self.terminate(self.launch("s1"), "s1", "s1")

    def moves(self, count: int) -> None:
        """Two VMs, of two users, change places at once, ``count`` times."""
        names, places = {owner: self.launch(owner) for owner in SERVERS}, dict(zip(SERVERS, SERVERS, strict=True))
        for _ in range(count):
            places = dict(zip(SERVERS, list(places.values())[::-1], strict=True))
            commands = [
                self.site.begin("migrate", names[one], "--to", places[one], *self._owned(one)) for one in SERVERS
            ]
            said = [command.communicate(timeout=300) for command in commands]
            if any(command.returncode for command in commands):
                raise Wrong(f"migrations in opposite directions: {said}")
            for server in SERVERS:
                self.search(server)
        for owner in SERVERS:
            self.terminate(names[owner], owner, places[owner])


def judge(before: dict[str, Figures], after: dict[str, Figures], files: Sequence[str], copies: int) -> None:
    """Raise Wrong for what is not as it was."""
    if files:
        raise Wrong(f"files are left: {files}")
    if copies:
        raise Wrong(f"an agent's memory holds pieces of the image after a receipt, {copies} times")
    for name, was in before.items():
        now = after[name]
        if now.ended or counts(now) != counts(was):
            raise Wrong(f"{name} has other processes, open files or threads: {was} before, {now} after")
        if now.memory_mb - was.memory_mb > GROWN_MAX_MB:
            raise Wrong(f"{name} has more memory: {was} before, {now} after")


def table(before: dict[str, Figures], after: dict[str, Figures]) -> str:
    """The figures, before and after."""
    lines = [f"{'agent':<10}{'':<8}{'children':>9}{'ended':>7}{'files':>7}{'threads':>9}{'MB':>8}"]
    for name in before:
        for when, one in (("before", before[name]), ("after", after[name])):
            lines.append(
                f"{name:<10}{when:<8}{one.children:>9}{one.ended:>7}{one.files:>7}{one.threads:>9}{one.memory_mb:>8.1f}"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Launch, move and terminate VMs, and look at what stays.")
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--moves", type=int, default=6)
    parser.add_argument("--folder", default="/tmp", help="where to work (default /tmp)")
    a = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its guests would outlive it
    with tempfile.TemporaryDirectory(prefix="leaks-", dir=a.folder) as folder:
        campaign = Campaign(Path(folder))
        try:
            campaign.launches(1)
            campaign.moves(min(1, a.moves))
            before = campaign.look()
            campaign.launches(a.launches)
            campaign.moves(a.moves)
            after, files = campaign.look(before), campaign.files()
        finally:
            campaign.close()
    print(table(before, after))
    print(f"{a.launches} launches and terminations, {a.moves} times two migrations in opposite directions;", end=" ")
    print(
        "pieces of the image in an agent's memory after a receipt: "
        f"{campaign.copies} ({len(campaign.pieces)} looked for)"
    )
    try:
        judge(before, after, files, campaign.copies)
    except (Wrong, subprocess.SubprocessError) as error:
        print(f"WRONG: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
