"""What a trusted launch costs over a plain start of QEMU with the same vTPM: ``python -m bench.vm_launch [PAIRS]``.

Pairs in turn, the first of which changes each time. Plain: QEMU and swtpm started on a kernel and an initrd in files,
QMP open to all (:class:`quoreduce.vm.attack.OpenGuest`), to the guest's first word. Ours: from the user's order to the
receipt that was checked: two attestations, the image sealed, sent through the manager, opened and verified, the guest
started behind its broker, and that it booted. Server and manager are processes of their own; the user agent is this
one. Ending the guests is not measured. Without QEMU or swtpm the figures are missing (NaN).
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import measure

if TYPE_CHECKING:
    from quoreduce.vm.agents.user import UserAgent
    from quoreduce.vm.bundle import Bundle

PAIRS = 9
TIMEOUT_S = 120.0
NAMES = ("plain_s", "launch_s", "overhead", "sent_s")


def plain_start(bundle: Bundle, accel: str) -> float:
    """Seconds to the first word of a guest as any cloud runs it."""
    from quoreduce.vm.attack import BOOT_S, READY, OpenGuest
    from quoreduce.vm.ports import VmSpec

    with tempfile.TemporaryDirectory(prefix="vm-bench-", dir="/dev/shm") as folder:
        began = time.perf_counter()
        with OpenGuest(Path(folder, "guest"), VmSpec(), bundle, accel) as guest:
            guest.serial.wait(READY, BOOT_S)
            return time.perf_counter() - began


def our_launch(agent: UserAgent, image: Path, server: str) -> float:
    """Seconds from the order to its receipt; the VM is ended and forgotten afterwards."""
    from datetime import UTC, datetime

    from quoreduce.vm.ports import VmSpec
    from quoreduce.vm.user_ports import UserRequest

    began = time.perf_counter()
    answer = agent.launch(str(image), "bench", server, VmSpec(), TIMEOUT_S)
    took = time.perf_counter() - began
    if answer.failure:
        raise RuntimeError(answer.failure)
    agent.request(UserRequest("terminate", agent.vm("bench").vmid, datetime.now(UTC)), timeout_s=TIMEOUT_S)
    return took


def measure_launches(pairs: int) -> measure.Cell:
    """Medians in seconds, and of the pairs' ratios less one; ``sent_s``: of the launch, without the guest's own
    boot.
    """
    from quoreduce.commands.vm.demo import Site
    from quoreduce.errors import VmError
    from quoreduce.vm import kvm
    from quoreduce.vm.agents.folder import StateFolder
    from quoreduce.vm.agents.site import check_programs
    from quoreduce.vm.agents.user import UserAgent
    from quoreduce.vm.bundle import Bundle
    from quoreduce.vm.image import build

    try:
        check_programs()
    except VmError:
        return dict.fromkeys(NAMES, float("nan"))
    measure.two_cores()
    measure.wait_for_quiet()
    accel = kvm.choose()
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-bench-"))
        site = stack.enter_context(Site(Path(name), accel))
        state = stack.enter_context(StateFolder(Path(name, "u")))
        image = build(Path(name, "image")).path
        bundle = Bundle.decode(image.read_bytes())
        agent = UserAgent(state, lambda text: None)
        Path(name, "owners").write_text(agent.core.address + "\n")
        site.manager()
        site.server("s1", "--owners", str(Path(name, "owners")))
        Path(name, "policy").write_text(site.run("policy", "--state", str(Path(name, "s1"))).out)
        agent.trust([str(Path(name, "policy"))])
        agent.connect(site.address)
        plain, ours = [], []
        for index in range(pairs + 1):
            for mine in (False, True) if index % 2 else (True, False):
                took = our_launch(agent, image, "s1") if mine else plain_start(bundle, accel)
                (ours if mine else plain).append(took)
        agent.close()
        booted = [float(line.split()[-2]) for line in site.log("s1") if " booted in " in line]
    del plain[0], ours[0], booted[0]  # the first warms the page cache
    ratios = [b / a for a, b in zip(plain, ours, strict=True)]
    sent = [whole - boot for whole, boot in zip(ours, booted, strict=True)]
    medians = (
        statistics.median(plain),
        statistics.median(ours),
        statistics.median(ratios) - 1,
        statistics.median(sent),
    )
    return dict(zip(NAMES, map(measure.rounded, medians), strict=True))


class Launch:
    """A trusted launch beside a plain start."""

    timeout = 600

    def setup_cache(self) -> measure.Cell:
        return measure_launches(PAIRS)

    setup_cache.timeout = 900  # type: ignore[attr-defined]


measure.add_tracks(Launch, lambda figures: figures, [
    ("plain_s", "seconds", "QEMU with a vTPM, to the guest's first word."),
    ("launch_s", "seconds", "A trusted launch, to its receipt."),
    ("overhead", "trusted/plain - 1", "What the latter takes more; goal: 0.15."),
    ("sent_s", "seconds", "Of the launch, all but the guest's start and boot."),
])  # fmt: skip


def main() -> None:
    """Print the figures."""
    figures: dict[str, Any] = measure_launches(int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS)
    print(" ".join(f"{name}={value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
