"""What guests cost: a start of QEMU with a vTPM, plainly and as ours; how fast a state leaves: ``python -m
bench.vm_guests``.

Starts are in turn; each is from nothing to the guest's first word, with the same machine, image and accelerator. It
needs QEMU, swtpm and what ``quoreduce vm image`` needs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import measure
from quoreduce.errors import VmError
from quoreduce.vm import kvm
from quoreduce.vm.agents.site import check_programs
from quoreduce.vm.attack import BOOT_S, READY, OpenGuest
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.hypervisor import DEFAULT_ROOT, Guest
from quoreduce.vm.image import build
from quoreduce.vm.ports import VmSpec
from quoreduce.vm.scrub import scrub
from quoreduce.vm.sealing import KEY_BYTES, StreamSealer

STARTS = {"quick": 3, "full": 7}
MOVES = 7
NAMES = ("start_plain_s", "start_ours_s", "state_plain", "state_sealed")


def plain_start(folder: Path, spec: VmSpec, bundle: Bundle, accel: str) -> float:
    """Seconds of a plain start: QEMU and swtpm, to the guest's first word. What a trusted launch is compared with."""
    return _started(lambda: OpenGuest(folder, spec, bundle, accel), folder)


def our_start(folder: Path, spec: VmSpec, bundle: Bundle, accel: str) -> float:
    """Seconds of a start behind the broker: without attestation and without the image's way to the server."""
    return _started(lambda: Guest.start(folder, spec, bundle, accel=accel), folder)


def _started(start: Callable[[], OpenGuest | Guest], folder: Path) -> float:
    began = time.perf_counter()
    with start() as guest:
        guest.serial.wait(READY, BOOT_S)
        took = time.perf_counter() - began
    scrub(folder)
    return took


def moves(guest: Guest) -> dict[str, list[float]]:
    """Bytes per second of states that leave, plain and sealed in turn, into nothing."""
    rates: dict[str, list[float]] = {"plain": [], "sealed": []}
    for _ in range(MOVES):
        sealer = StreamSealer(os.urandom(KEY_BYTES), b"bench")
        sinks: dict[str, Callable[[bytes], Any]] = {
            "plain": len,
            "sealed": lambda piece, sealer=sealer: sealer.chunk(piece, False),
        }  # type: ignore[misc]
        for name, sink in sinks.items():
            began = time.perf_counter()
            stats = guest.outgoing(sink)
            rates[name].append(stats.bytes / (time.perf_counter() - began))
            guest.resume()
    return rates


def measure_guests(pairs: int, accel: str) -> measure.Cell:
    """Medians: seconds of starts, and milliseconds for 1 GB of state that leaves, plain and sealed."""
    spec = VmSpec()
    with tempfile.TemporaryDirectory(dir=DEFAULT_ROOT, prefix="vm-bench-") as root:
        folder = Path(root) / "guest"
        bundle = Bundle.decode(build(Path(root) / "image").path.read_bytes())
        starts: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(pairs + 1):
            starts["plain"].append(plain_start(folder, spec, bundle, accel))
            starts["ours"].append(our_start(folder, spec, bundle, accel))
        with Guest.start(folder, spec, bundle, accel=accel) as guest:
            guest.serial.wait(READY, BOOT_S)
            rates = moves(guest)
        scrub(folder)
    found = {
        f"start_{name}_s": statistics.median(times[1:]) for name, times in starts.items()
    }  # the first warms the page cache
    found |= {f"state_{name}": 1e12 / statistics.median(each) for name, each in rates.items()}
    return {name: measure.rounded(value) for name, value in found.items()}


class Guests:
    """Guests: how they start, and how fast their state leaves. Without QEMU or swtpm the figures are missing (NaN)."""

    timeout = 600

    def setup_cache(self) -> measure.Cell:
        try:
            check_programs()
        except VmError:
            return dict.fromkeys(NAMES, float("nan"))
        measure.two_cores()
        measure.wait_for_quiet()
        return measure_guests(STARTS["full"], kvm.choose())

    setup_cache.timeout = 900  # type: ignore[attr-defined]


measure.add_tracks(Guests, lambda figures: figures, [
    ("start_plain_s", "seconds", "QEMU with a vTPM, to the guest's first word."),
    ("start_ours_s", "seconds", "The same behind the broker, its files in memory."),
    ("state_plain", "ms/GB", "A state that leaves by a live migration, as QEMU gives it."),
    ("state_sealed", "ms/GB", "The same, sealed chunk by chunk."),
])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", nargs="?", choices=STARTS, default="quick")
    parser.add_argument("--accel", choices=kvm.ACCELS)
    a = parser.parse_args()
    accel = kvm.choose(a.accel)
    print(json.dumps({"accel": accel, **measure_guests(STARTS[a.scale], accel)}))


if __name__ == "__main__":
    main()
