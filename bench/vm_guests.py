"""What guests cost: a start of QEMU with a vTPM, plainly and as ours; how fast a state leaves: ``python -m bench.vm_guests``.

Starts are in turn; each is from nothing to the guest's first word, with the same machine, image and accelerator. It needs QEMU,
swtpm and what ``quoreduce vm image`` needs.
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

from quoreduce.cloud import kvm
from quoreduce.cloud.attack import BOOT_S, READY, OpenGuest
from quoreduce.cloud.bundle import Bundle
from quoreduce.cloud.hypervisor import DEFAULT_ROOT, Guest
from quoreduce.cloud.image import build
from quoreduce.cloud.ports import VmSpec
from quoreduce.cloud.scrub import scrub
from quoreduce.cloud.sealing import KEY_BYTES, StreamSealer

STARTS = {"quick": 3, "full": 7}
MOVES = 7


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", nargs="?", choices=STARTS, default="quick")
    parser.add_argument("--accel", choices=kvm.ACCELS)
    a = parser.parse_args()
    accel = kvm.choose(a.accel)
    spec = VmSpec()
    with tempfile.TemporaryDirectory(dir=DEFAULT_ROOT, prefix="vm-bench-") as root:
        folder = Path(root) / "guest"
        bundle = Bundle.decode(build(Path(root) / "image").path.read_bytes())
        starts: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(STARTS[a.scale] + 1):
            starts["plain"].append(plain_start(folder, spec, bundle, accel))
            starts["ours"].append(our_start(folder, spec, bundle, accel))
        with Guest.start(folder, spec, bundle, accel=accel) as guest:
            guest.serial.wait(READY, BOOT_S)
            rates = moves(guest)
        scrub(folder)
    found = {name: round(statistics.median(times[1:]), 3) for name, times in starts.items()}  # the first warms the page cache
    print(json.dumps({
        "accel": accel, "start_s": found, "start_ratio": round(found["ours"] / found["plain"], 3),
        "state_mb_s": {name: round(statistics.median(each) / 1e6) for name, each in rates.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
