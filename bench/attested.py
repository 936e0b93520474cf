"""What attesting a job costs: word count voted (f=1) without and with ``--attest``, in turn: ``python -m
bench.attested``.

Two ways: on a warm session of two local workers, and as a command from its start to its end. The TPM is swtpm if it is
installed (the root is said in the output), batches are Merkle trees. Outputs are compared; every receipt is verified,
untimed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce import Session

PAIRS = {"quick": 3, "full": 5}
NAMES = ("warm session", "command")


class Bench:
    """Runs the pairs; ``state`` is a folder that it sets up."""

    def __init__(self, source: Path, folder: Path) -> None:
        from quoreduce.commands.attest.command import worker_environment
        from quoreduce.trust.node import setup_node

        self._source, self._folder = source, folder
        self._state = folder / "state"
        self.backend: Any = "swtpm" if shutil.which("swtpm") and shutil.which("swtpm_setup") else "utpm"
        environment = hashlib.sha256(worker_environment()).hexdigest()
        self._policy = setup_node(self._state, self.backend, [environment])
        self._digests: set[str] = set()
        self.receipt_bytes = 0

    def measure(self, wanted: int) -> dict[str, measure.Pairs]:
        """Pairs of a voted and an attested run, for each way."""
        from quoreduce import Place, Session

        with Session(Place("local", 2)) as session:
            self._warm(session, False)
            self._warm(session, True)
            warm = measure.interleave(lambda: self._warm(session, False), lambda: self._warm(session, True), wanted)
        self._command(True)
        cold = measure.interleave(lambda: self._command(False), lambda: self._command(True), wanted)
        return dict(zip(NAMES, (warm, cold), strict=True))

    def _warm(self, session: Session, attested: bool) -> measure.Run:
        from quoreduce import Attest, Options
        from quoreduce.jobs.find import find_job

        output = self._folder / "out"
        options = Options(f=1, attest=Attest(state=str(self._state)) if attested else None)
        window = measure.Window()
        result = session.run(find_job("wordcount"), [str(self._source)], str(output), options)
        noise = window.close(result.cpu_s)
        self._check(output, result.digest, attested)
        return measure.Run(noise.wall_s, result.cpu_s, noise, result.wall_s)

    def _command(self, attested: bool) -> measure.Run:
        output = self._folder / "out"
        line = [
            sys.executable,
            "-m",
            "quoreduce.cli",
            "run",
            "wordcount",
            str(self._source),
            str(output),
            "--json",
            "--quiet",
        ]
        line += ["--on", "local", "--workers", "2"] + (["--attest", "--state", str(self._state)] if attested else [])
        window, start = measure.Window(), time.perf_counter()
        process = subprocess.Popen(line, stdout=subprocess.PIPE, env=os.environ)
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        noise = window.close(cpu)
        if process.returncode:
            raise RuntimeError(f"{' '.join(line)} ended with {process.returncode}")
        self._check(output, json.loads(said)["digest"], attested)
        return measure.Run(wall, cpu, noise, wall)

    def _check(self, output: Path, digest: str, attested: bool) -> None:
        """Outputs are the same, and a receipt is accepted."""
        from quoreduce.trust.verifier import verify_receipt

        self._digests.add(digest)
        if len(self._digests) > 1:
            raise RuntimeError("outputs differ")
        if attested:
            raw = (output / "_RECEIPT.json").read_bytes()
            verdict = verify_receipt(raw, (output / "_SUCCESS").read_bytes(), self._policy, datetime.now(UTC))
            if not verdict.accepted:
                raise RuntimeError(f"the receipt is refused: {verdict.reason}")
            self.receipt_bytes = len(raw)
        shutil.rmtree(output)


def measure_all() -> dict[str, Any]:
    """Figures of both ways, kept to two cores: ratios attested / voted, seconds, and the receipt's size."""
    data.prepare()
    if len(measure.two_cores()) < 2:
        raise RuntimeError("voting with f=1 needs two cores")
    with ExitStack() as stack:
        bench = Bench(data.text(), stack.enter_context(measure.outputs(data.folder())))
        found = bench.measure(PAIRS[data.size()])
    figures: dict[str, Any] = {"backend": bench.backend, "receipt_bytes": bench.receipt_bytes}
    for name, pairs in found.items():
        ratios = pairs.ratios(lambda run: run.wall_s)
        figures[name] = {
            "time_ratio": statistics.median(ratios), "spread": measure.spread(ratios),
            "cpu_ratio": statistics.median(pairs.ratios(lambda run: run.cpu_s)),
            "voted_s": statistics.median(a.wall_s for a, _ in pairs.kept),
            "attested_s": statistics.median(b.wall_s for _, b in pairs.kept), "clean": pairs.clean,
            "tried": pairs.tried,
        }  # fmt: skip
    return figures


class Attested:
    """Word count, attested against voted."""

    params = NAMES
    param_names = ("way",)
    timeout = 600

    def setup_cache(self) -> dict[str, Any]:
        return measure_all()

    setup_cache.timeout = 1800  # type: ignore[attr-defined]

    def track_time_ratio(self, figures: dict[str, Any], way: str) -> float:
        """Median of the ratios of pairs."""
        return measure.rounded(figures[way]["time_ratio"])

    track_time_ratio.unit = "attested/voted"  # type: ignore[attr-defined]

    def track_cpu_ratio(self, figures: dict[str, Any], way: str) -> float:
        """Of driver and workers, without swtpm's own."""
        return measure.rounded(figures[way]["cpu_ratio"])

    track_cpu_ratio.unit = "attested/voted"  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.attested", description="Measure what --attest costs a voted job."
    )
    parser.add_argument("--size", choices=list(data.SIZES), default=data.size(), help="quick: 256 MB; full: 1 GiB")
    a = parser.parse_args()
    os.environ["QUOREDUCE_BENCH_SIZE"] = a.size
    figures = measure_all()
    print(
        measure.headline(measure.about())
        + f"\n\nbackend {figures['backend']}, receipt {figures['receipt_bytes']:,} bytes\n"
    )
    print("| word count, f=1 | voted s | attested s | time ratio (quartiles) | CPU ratio | clean pairs |")
    print("|---|---|---|---|---|---|")
    for name in NAMES:
        f = figures[name]
        seconds = f"{f['voted_s']:.3f} | {f['attested_s']:.3f}"
        ratios = f"{f['time_ratio']:.3f} ({f['spread']:.3f}) | {f['cpu_ratio']:.3f}"
        print(f"| {name} | {seconds} | {ratios} | {f['clean']} of {f['tried']} |")


if __name__ == "__main__":
    main()
