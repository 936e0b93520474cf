"""How guests run: KVM where it was seen to run one, else TCG, QEMU's emulation.

That /dev/kvm opens says little: under some hypervisors guests then stand still. So a guest of 64 KiB is run: firmware of three
instructions that ends QEMU with an exit status that only a guest can cause.
"""

from __future__ import annotations

import functools
import os
import subprocess
from typing import Final

from quoreduce.cloud.processes import program
from quoreduce.errors import UsageError, VmError

ACCELS: Final = ("kvm", "tcg")
PROBE_S: Final = 5.0
_FIRMWARE_BYTES: Final = 64 << 10
_CODE: Final = bytes((0xB0, 0x10, 0xE6, 0xF4, 0xF4))  # mov al, 16; out 0xf4, al; hlt: isa-debug-exit ends with 2 * 16 + 1
_STATUS: Final = 33


@functools.cache
def runs(accel: str) -> bool:
    """Whether guests run under this accelerator; tried once in a process, within PROBE_S seconds.

    Raises:
        VmError: QEMU is not installed.
    """
    qemu = program("qemu-system-x86_64")
    if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    firmware = os.memfd_create("firmware")
    try:
        os.write(firmware, bytes(_FIRMWARE_BYTES - 16) + _CODE.ljust(16, b"\0"))  # a processor begins 16 bytes before the end
        line = [
            qemu, "-accel", accel, "-M", "q35", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none",
            "-bios", f"/proc/self/fd/{firmware}", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        ]  # fmt: skip
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(firmware,),
            timeout=PROBE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    finally:
        os.close(firmware)
    return done.returncode == _STATUS


def choose(accel: str | None = None) -> str:
    """Return the accelerator to use: the one that is asked for, else KVM if it runs guests, else TCG.

    Raises:
        UsageError: there is no such accelerator.
        VmError: the one asked for does not run guests here.
    """
    if accel is None:
        return "kvm" if runs("kvm") else "tcg"
    if accel not in ACCELS:
        raise UsageError(f"accelerator {accel!r}: use {' or '.join(ACCELS)}")
    if not runs(accel):
        raise VmError(f"{accel} does not run guests on this machine (tried for {PROBE_S:g} s): use {'tcg' if accel == 'kvm' else 'kvm'}")
    return accel
