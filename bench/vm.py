"""What trusted VM operations cost.

``Attestations``: evidence of many VMs of one server with a TPM in software (swtpm), in µs for each; ``python -m
bench.vm`` prints them per second too. ``made``: by the server, all N at once, under one quote of its TPM; ``checked``:
by one verifier of all. With N = 1 each has a quote of its own: that is the price without batching. Without swtpm the
figures are missing (NaN).
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import measure

if TYPE_CHECKING:
    from quoreduce.trust.policy import Policy
    from quoreduce.vm.attestor import Challenge, TpmAttestor
    from quoreduce.vm.evidence import Evidence

COUNTS = (1, 64, 1024)
SAMPLES, SAMPLE_S = 7, 0.1
CONTENT = b"running"


@dataclass(frozen=True)
class Fleet:
    """A server, and the policy that accepts it."""

    server: TpmAttestor
    policy: Policy

    def challenges(self, count: int) -> list[Challenge]:
        """A challenge for each of ``count`` VMs, which have a TCOM each."""
        from quoreduce.vm.attestor import Challenge

        return [Challenge(self.server.session("status"), os.urandom(32), os.urandom(16), CONTENT) for _ in range(count)]

    def make(self, challenges: list[Challenge]) -> list[Evidence]:
        """Answer them all under one quote."""
        return self.server.attest_many(challenges)

    def check(self, challenges: list[Challenge], made: list[Evidence]) -> str:
        """Check them all, each from its bytes, as one verifier does who holds a cache; return the server's name."""
        from quoreduce.vm import evidence

        cache, now = evidence.Cache(), datetime.now(UTC)
        names = {
            evidence.check(evidence.decode(raw), one.n, "status", one.vmid, CONTENT, self.policy, now, cache).server
            for one, raw in zip(challenges, map(evidence.encode, made), strict=True)
        }
        (name,) = names
        return name


def measure_attestations() -> measure.Cell:
    """µs for each attestation, by the name of the track; NaN without swtpm."""
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        return {f"{what}_{count}": float("nan") for what in ("made", "checked") for count in COUNTS}
    from quoreduce.trust.node import setup_node
    from quoreduce.vm import measure as environments
    from quoreduce.vm.attestor import SwtpmAttestor

    measure.two_cores()
    measure.wait_for_quiet()
    with tempfile.TemporaryDirectory(prefix="quoreduce-vm-") as folder:
        environment = environments.environment({}, None)
        policy = setup_node(Path(folder), "swtpm", [environment.digest])
        server = SwtpmAttestor(Path(folder), environment.document, environment.codes)
        try:
            return _attestations(Fleet(server, policy))
        finally:
            server.close()


def _attestations(fleet: Fleet) -> measure.Cell:
    found: measure.Cell = {}
    for count in COUNTS:
        asked = fleet.challenges(count)
        made = fleet.make(asked)
        for what, function in (("made", partial(fleet.make, asked)), ("checked", partial(fleet.check, asked, made))):
            found[f"{what}_{count}"] = measure.rounded(wall_s(function) * 1e6 / count)
    return found


def wall_s(function: Callable[[], object]) -> float:
    """Seconds of one call by the clock on the wall, since swtpm works in a process of its own: the median of several
    samples.
    """
    function()
    start = time.perf_counter()
    function()
    calls = max(1, int(SAMPLE_S / (time.perf_counter() - start)))
    samples = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        samples.append((time.perf_counter() - start) / calls)
    return statistics.median(samples)


class Attestations:
    """Evidence of a server's VMs, made and checked."""

    timeout = 120

    def setup_cache(self) -> measure.Cell:
        return measure_attestations()

    setup_cache.timeout = 600  # type: ignore[attr-defined]


measure.add_tracks(Attestations, lambda figures: figures, [
    ("made_1", "µs", "One VM, a quote of the server's TPM for it alone."),
    ("made_64", "µs", "One of 64 VMs under one quote."),
    ("made_1024", "µs", "One of 1024 VMs under one quote; goal: 1000 (1,000 a second)."),
    ("checked_1", "µs", "Evidence of one VM, with the server's certificates."),
    ("checked_64", "µs", "Evidence of one of 64 VMs, by one verifier of all."),
    ("checked_1024", "µs", "Evidence of one of 1024 VMs, by one verifier of all."),
])  # fmt: skip


def main() -> None:
    """Print them as a table."""
    figures: dict[str, Any] = measure_attestations()
    print(
        "| VMs under one quote | made, µs each | made a second | checked, "
        "µs each | checked a second |\n|---|---|---|---|---|"
    )
    for count in COUNTS:
        made, checked = figures[f"made_{count}"], figures[f"checked_{count}"]
        print(f"| {count} | {made:.0f} | {1e6 / made:,.0f} | {checked:.0f} | {1e6 / checked:,.0f} |")


if __name__ == "__main__":
    main()
