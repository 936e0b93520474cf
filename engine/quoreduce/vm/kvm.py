"""The accelerator of guests: KVM if a test guest ran under it, else TCG, QEMU's emulation.

That /dev/kvm opens is not enough: some hypervisors emulate a guest's kernel mode, so slowly that it seems to hang. So a
guest is run, 64 KiB of firmware: it enters 64-bit mode, counts to 2^24 there, and ends QEMU with a status that only it
can cause.
"""

from __future__ import annotations

import functools
import os
from typing import Final

from quoreduce.errors import UsageError, VmError
from quoreduce.vm import confine, programs

ACCELS: Final = ("kvm", "tcg")
PROBE_S: Final = 2.5  # of it, TCG takes 0.3 s, and KVM much less
_STATUS: Final = 33  # isa-debug-exit's, for 16
_CODE_AT: Final = 0xFF00  # in the firmware; in memory, 0xffffff00
_START: Final = bytes.fromhex("e90dff")  # at 0xfffffff0, where a processor begins: jmp to the code
# 16 bits: cli; lgdt; cr0.PE = 1; far jump. 32 bits: page tables at 0x1000 (of the last 2 MiB below 4 GiB); cr4.PAE = 1;
# cr3; EFER.LME = 1; cr0.PG = 1; far jump. 64 bits: mov ecx, 0x1000000; 1: dec ecx; jnz 1b; mov al, 16; out 0xf4, al;
# hlt. The GDT.
_CODE: Final = bytes.fromhex(
    "fa2e660f0116a0ff0f20c00c010f22c066ea18ffffff0800b8100000008ed8c7050010000003200000c7051820000003300000c705f83f00"
    "008300e0ffb8200000000f22e0b8001000000f22d8b9800000c00f3280cc010f300f20c00d000000800f22c0ea6bffffff1800b900000001"
    "ffc975fcb010e6f4f48db400008d74000000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf001f0080ffffff"
)


@functools.cache
def runs(accel: str) -> bool:
    """Whether guests run under this accelerator; tried once in a process, within PROBE_S seconds.

    Raises:
        VmError: QEMU is not installed, or may not be confined here.
    """
    qemu = programs.load(programs.QEMU)
    if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    firmware = os.memfd_create("firmware")
    try:
        os.write(firmware, bytes(_CODE_AT) + _CODE.ljust(0xF0, b"\0") + _START.ljust(16, b"\0"))
        line = [
            qemu.path, "-accel", accel, "-M", "q35", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none",
            "-bios", f"/proc/self/fd/{firmware}", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        ]  # fmt: skip
        return confine.run(confine.of_probe(line, qemu, accel), PROBE_S, (firmware,)) == _STATUS
    finally:
        os.close(firmware)


def choose(accel: str | None = None) -> str:
    """Return the accelerator to use: the one asked for, else KVM if it runs guests, else TCG.

    Raises:
        UsageError: there is no such accelerator.
        VmError: the one asked for does not run guests here.
    """
    if accel is None:
        return "kvm" if runs("kvm") else "tcg"
    if accel not in ACCELS:
        raise UsageError(f"accelerator {accel!r}: use {' or '.join(ACCELS)}")
    if not runs(accel):
        raise VmError(f"{accel} does not run guests on this machine (tried for {PROBE_S:g} s): name none, or another")
    return accel
