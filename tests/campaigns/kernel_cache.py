"""Damage to compiled kernels on disk, and then real jobs: ``python tests/campaigns/kernel_cache.py --count 2000 --seed
1``.

All replicas of a machine load the same compiled kernels, so no vote sees what is wrong with them. A *trial* damages
AT_ONCE files (one, if it compiles) of a copy of the folder of kernels, each mostly by one flipped bit, and runs a word
count and a sort with two replicas of each task, in a process that has not loaded those kernels yet. Then, without
exception:

- both outputs are the reference, byte for byte, and the process ends by itself, in time and without a traceback;
- each file that was damaged was refused when it was loaded, and one line on stderr said so.

Most damage is done after the folder was checked, when only who loads a kernel can see it. In one trial of CHECKED_EVERY
it is done before, and the folder must be whole again afterwards. To compile takes longer than all the rest, so kernels
that were refused are compiled for real in one trial of COMPILED_EVERY only; in the others they come from memory. Trials
are forked from this process, which has loaded everything; they forget the modules of the damaged kernels, and those
that import them, and load them anew.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import itertools
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa

import quoreduce
import quoreduce_kernels
from quoreduce import Options, Place, Session
from quoreduce.jobs.find import find_job
from quoreduce.machine import readable
from quoreduce.protocol.compile import ensure_kernels
from quoreduce.protocol.port import kernel_cache
from quoreduce_kernels import cache

TEXT = Path(__file__).parents[1] / "data" / "kjv.txt"
TEXT_BYTES, RECORDS = 60_000, 900
JOBS = ("wordcount", "sort")
TRIAL_MAX_S = 600.0
AT_ONCE, CHECKED_EVERY, COMPILED_EVERY = 8, 60, 40
KINDS = {"flip": 80, "flips": 5, "truncated": 5, "deleted": 4, "longer": 3, "zeros": 3}
FOUND = "is not what was compiled there"
SAY_EVERY_S = 10.0
_LOADED = (np, pa, quoreduce, find_job(JOBS[0]), find_job(JOBS[1]))


class Wrong(Exception):
    """The campaign has found something."""


@dataclass(slots=True)
class Tally:
    """What there was: files by kind of damage, trials, and in how many of them files were compiled anew or checked
    before.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    compiled: int = 0
    checked: int = 0
    slowest_s: float = 0.0

    def text(self) -> str:
        """One paragraph."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return (
            f"{self.kinds.total()} damaged files ({kinds}), none of them loaded, in {self.trials} trials: "
            f"in {self.compiled} compiled anew by who met them, in {self.checked} before; "
            f"the slowest took {self.slowest_s:.1f} s"
        )


def damage(raw: bytes, kind: str, rng: random.Random) -> bytes | None:
    """The contents of a file after an accident of a kind; None if it is gone. Never what they were."""
    if kind == "deleted":
        return None
    if kind == "truncated":
        return raw[: rng.randrange(len(raw))]
    if kind == "longer":
        return raw + rng.randbytes(rng.randrange(1, 5000))
    made = bytearray(raw)
    if kind == "zeros":
        start = rng.randrange(len(raw))
        made[start : start + 512] = bytes(len(made[start : start + 512]))
    for _ in range({"flip": 1, "flips": rng.randrange(2, 30)}.get(kind, 0)):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made) if made != raw else damage(raw, "flip", rng)


def importers(modules: set[str]) -> set[str]:
    """Modules of kernels and all that import them, or what imports them."""
    package, imported = Path(cache.__file__).parent, dict[str, set[str]]()
    for name in (one.rpartition(".")[2] for one in cache.modules()):
        nodes = ast.walk(ast.parse((package / f"{name}.py").read_text()))
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        imported[name] = {str(node.module).rpartition(".")[2] for node in froms}
        imported[name] |= {alias.name for node in froms for alias in node.names}
    found, more = set[str](), modules
    while more:
        found |= more
        more = {name for name in imported if imported[name] & found} - found
    return {f"quoreduce_kernels.{name}" for name in found} - {cache.__name__}


class Campaign:
    """Trials in a folder of their own, from a seed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inputs = {"wordcount": folder / "text", "sort": folder / "records"}
        self._reference: dict[str, bytes] = {}
        self._pristine: dict[str, bytes] = {}
        self._copy = Path()
        self.tally = Tally()

    def prepare(self) -> None:
        """Copy the compiled kernels, make inputs, and run both jobs once with kernels that are whole."""
        origin = ensure_kernels(lambda text: print(text, file=sys.stderr))
        self._copy = self._folder / "cache" / origin.name
        shutil.copytree(origin, self._copy)
        self._pristine = {path.name: path.read_bytes() for path in self._copy.iterdir()}
        numba.njit("i8(i8)")(lambda x: x + 1)  # what numba makes when it compiles first
        self._inputs["wordcount"].write_bytes(TEXT.read_bytes()[:TEXT_BYTES])
        rng = random.Random(1)
        self._inputs["sort"].write_bytes(rng.randbytes(RECORDS * 100))
        os.environ[cache.VARIABLE] = str(self._copy)
        for module in cache.modules():
            importlib.import_module(module)
        if said := self._run({cache.VARIABLE: str(self._copy)}, importers({"word_tables"})):
            raise Wrong(f"whole kernels, and it said {said!r}")
        self._reference = self._outputs()

    def trial(self, seed: int, at_once: int = AT_ONCE) -> None:
        """Some accidents, and both jobs."""
        rng, checked = random.Random(seed), seed % CHECKED_EVERY == 0
        damaged = self._damage(rng, 1 if checked or seed % COMPILED_EVERY == 0 else at_once)
        start = time.monotonic()
        env = {"QUOREDUCE_CACHE": str(self._copy.parent)} if checked else {cache.VARIABLE: str(self._copy)}
        in_memory = seed % COMPILED_EVERY != 0 or cache.MANIFEST in damaged
        modules = {"options"} if checked or cache.MANIFEST in damaged else {name.partition(".")[0] for name in damaged}
        try:
            said = self._run(env, importers(modules), in_memory=in_memory)
            self._judge(said, set(damaged), checked, in_memory and not checked)
        except Wrong as error:
            raise Wrong(f"{damaged}: {error}") from error
        finally:
            self._restore()
        self.tally.trials += 1
        self.tally.kinds.update(damaged.values())
        self.tally.compiled += not checked and not in_memory
        self.tally.checked += checked
        self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - start)

    def _damage(self, rng: random.Random, count: int) -> dict[str, str]:
        """Damage so many files, by their sizes or any: name -> kind."""
        done: dict[str, str] = {}
        names = sorted(self._pristine)
        sizes = [len(self._pristine[name]) for name in names]
        while len(done) < count:
            name = rng.choices(names, sizes)[0] if rng.random() < 0.8 else rng.choice(names)
            if name in done:
                continue
            done[name] = rng.choices(list(KINDS), list(KINDS.values()))[0]
            spoiled = damage(self._pristine[name], done[name], rng)
            (self._copy / name).unlink()
            if spoiled is not None:
                (self._copy / name).write_bytes(spoiled)
        return done

    def _judge(self, said: str, damaged: set[str], checked: bool, noted: bool) -> None:
        if self._outputs() != self._reference:
            raise Wrong("the output is another")
        lines = said.splitlines()
        if "Traceback" in said or len(lines) > 1:
            raise Wrong(f"it said {said!r}")
        kernels = damaged - {cache.MANIFEST}
        if not checked and kernels and FOUND not in said:
            raise Wrong(f"one was loaded; it said {said!r}")
        if noted and (loaded := kernels - set((self._folder / "refused").read_text().split())):
            raise Wrong(f"loaded: {loaded}")
        whole = not cache.CacheReader(self._copy).damaged() and set(os.listdir(self._copy)) == set(self._pristine)
        if checked and not (len(lines) == 1 and whole):
            raise Wrong(f"the folder is not whole again; it said {said!r}")

    def _restore(self) -> None:
        for path in self._copy.iterdir():
            if path.name not in self._pristine:
                path.unlink()
        for name, raw in self._pristine.items():
            path = self._copy / name
            if not path.exists() or path.read_bytes() != raw:
                path.write_bytes(raw)

    def _outputs(self) -> dict[str, bytes]:
        paths = sorted(self._folder.glob("out-*/part-*"))
        return {str(path.relative_to(self._folder)): path.read_bytes() for path in paths}

    def _run(self, env: dict[str, str], anew: set[str], in_memory: bool = False) -> str:
        """Fork a process that loads some modules anew and runs both jobs; return what it said on stderr.

        ``in_memory``: nothing is compiled there.
        """
        (self._folder / "refused").write_text("")
        for job in JOBS:
            shutil.rmtree(self._folder / f"out-{job}", ignore_errors=True)
        with open(self._folder / "stderr", "w+b") as stderr:
            child = os.fork()
            if child == 0:
                _jobs(self._folder, self._inputs, env, stderr.fileno(), anew, self._pristine if in_memory else None)
            status = _ended(child)
            stderr.seek(0)
            said = stderr.read().decode(errors="replace")
        if status is None:
            raise Wrong(f"it hangs; it said {said!r}")
        if status:
            raise Wrong(f"exit {os.waitstatus_to_exitcode(status)}; it said {said!r}")
        return said


def _jobs(
    folder: Path, inputs: dict[str, Path], env: dict[str, str], stderr: int, anew: set[str],
    whole: dict[str, bytes] | None
) -> None:  # fmt: skip
    """In the child: load modules anew, run both jobs inline, and end."""
    code = 1
    with contextlib.suppress(BaseException):
        os.setpgid(0, 0)
        os.dup2(stderr, 2)
        os.environ.pop(cache.VARIABLE, None)
        os.environ.update(env)
        if cache.VARIABLE in env:
            _unchecked(whole, folder / "refused")
        options = Options(f=1, split_mb=0.02, reducers=3)
        cache.current = None
        for module in anew:
            del sys.modules[module]
            delattr(quoreduce_kernels, module.rpartition(".")[2])
        try:
            for module in sorted(anew) if cache.VARIABLE in env else ():
                importlib.import_module(module)
            with Session(Place("inline", workers=2, store=str(folder / "store"))) as session:
                for job in JOBS:
                    session.run(find_job(job), [str(inputs[job])], str(folder / f"out-{job}"), options)
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, it is shown
            import traceback

            traceback.print_exc()
    os._exit(code)


def _unchecked(whole: dict[str, bytes] | None, refused: Path) -> None:
    """Begin a session without the check of the folder, as if the damage came after it. With ``whole``: compile nothing,
    but write down what was refused, and take it from there.
    """
    from quoreduce.runtime import session

    session.use_kernels = lambda say: None
    if whole is None:
        return
    load = cache.CacheReader.load

    def loaded(self: cache.CacheReader, name: str) -> bytes | None:
        raw = load(self, name)
        if raw is None:
            cache.say(f"{name} {FOUND}")
            with open(refused, "a") as file:
                file.write(f"{name}\n")
        return raw if raw is not None else whole[name]

    cache.CacheReader.load = loaded  # type: ignore[method-assign]


def _ended(child: int) -> int | None:
    """Wait for a child; None if it does not end in time, and is killed with all that it started."""
    fd = os.pidfd_open(child)
    ended = readable(fd, TRIAL_MAX_S)
    os.close(fd)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status if ended else None


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kernel-cache-campaign-") as folder:
        (Path(folder) / "store").mkdir()
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its end is 0 if everything held, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="damaged files (default 2,000)")
    parser.add_argument(
        "--seed", type=int, help="of the first trial; the next has the next (default: drawn, and printed)"
    )
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), metavar="S", help="begin no trial after so many seconds"
    )
    options = parser.parse_args(arguments)
    first = secrets.randbelow(1 << 40) if options.seed is None else options.seed
    print(f"trials from seed {first}, kernels of {kernel_cache()}", flush=True)
    said, begun = 0.0, time.monotonic()
    with _workspace() as folder:
        campaign = Campaign(folder)
        campaign.prepare()
        for seed in itertools.count(first):
            left = options.count - campaign.tally.kinds.total()
            if left <= 0:
                break
            try:
                campaign.trial(seed, min(left, AT_ONCE))
            except Wrong as error:
                print(f"{campaign.tally.text()}\nWRONG: {error}\n  again: --count {AT_ONCE} --seed {seed}")
                return 1
            now = time.monotonic() - begun
            if now > options.limit_s:
                break
            if now - said > SAY_EVERY_S:
                said = now
                print(
                    f"{campaign.tally.kinds.total():,} of {options.count:,} after {now:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    done = campaign.tally.kinds.total()
    print(f"{campaign.tally.text()}\n0 wrong outputs, 0 hangs\nagain: --count {done} --seed {first}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
