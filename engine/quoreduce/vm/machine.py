"""QEMU's command line for a guest. Pure: the same for a guest that is attacked without protection and with it.

The kernel's own command line is in a file (:func:`config`): the image's owner may have put a secret there, and every
user of a machine can read the command lines of its processes.
"""

from __future__ import annotations

from typing import Final

from quoreduce.vm.ports import VmSpec

RAM: Final = "ram.bin"
DISK: Final = "disk.raw"
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def line(
    qemu: str, spec: VmSpec, accel: str, *, kernel: str, initrd: str, config: str, qmp: str, serial: str, tpm: str,
    incoming: bool = False,
) -> list[str]:  # fmt: skip
    """Return the command line.

    Args:
        qemu, kernel, initrd, config: paths; the last of a file that :func:`config` made.
        qmp, serial, tpm: what follows ``-chardev socket,``: where the monitor and the console are served and where
            swtpm is.
        incoming: wait for a state, and then stay paused; a guest that moves must find the same machine.
    """
    return [
        qemu, "-accel", accel, "-M", "q35,memory-backend=ram,dump-guest-core=off", "-cpu", "qemu64",
        "-smp", str(spec.cpus), "-m", str(spec.memory_mb), "-nodefaults", "-no-user-config", "-display", "none",
        "-no-reboot", "-sandbox", SANDBOX,
        "-object", f"memory-backend-file,id=ram,size={spec.memory_mb}M,mem-path={RAM},share=on",
        "-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={DISK}",
        "-device", "virtio-blk-pci,drive=disk",
        "-kernel", kernel, "-initrd", initrd, "-readconfig", config,
        "-chardev", f"socket,id=tpm,{tpm}", "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
        "-chardev", f"socket,id=serial,{serial}", "-serial", "chardev:serial",
        "-chardev", f"socket,id=qmp,{qmp}", "-mon", "chardev=qmp,mode=control",
        *(("-incoming", "defer", "-S") if incoming else ()),
    ]  # fmt: skip


def config(cmdline: str) -> bytes:
    """Return the file that tells QEMU the kernel's command line, as :class:`quoreduce.vm.bundle.Bundle` has it."""
    return f'[machine]\n  append = "{cmdline}"\n'.encode("ascii")
