"""A guest under QEMU with nothing of ours around it: its serial console, and its memory in a file."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

import pytest

from quoreduce.vm.bundle import Bundle

BOOT_S = 120.0
DISK_BYTES = 1 << 20


class PlainGuest:
    """Boots ``bundle``; files are in ``folder``: ``memory`` (128 MiB), ``disk``, and those of the vTPM."""

    def __init__(self, bundle: Bundle, folder: Path, *, tpm: bool = True) -> None:
        for program in ("qemu-system-x86_64", "swtpm"):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed (apt-get install qemu-system-x86 swtpm)")
        self.memory, self.disk = folder / "memory", folder / "disk"
        self.disk.write_bytes(bytes(DISK_BYTES))
        (folder / "kernel").write_bytes(bundle.kernel)
        (folder / "initrd").write_bytes(bundle.initrd)
        self._processes: list[subprocess.Popen[bytes]] = []
        line = [
            "qemu-system-x86_64", "-accel", "tcg", "-M", "q35,memory-backend=m", "-m", "128",
            "-object", f"memory-backend-file,id=m,size=128M,mem-path={self.memory},share=on",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", f"{folder}/kernel", "-initrd", f"{folder}/initrd", "-append", bundle.cmdline,
            "-drive", f"file={self.disk},format=raw,if=virtio",
        ]  # fmt: skip
        self._console, far = socket.socketpair()
        self._console.settimeout(BOOT_S)
        kept = [far]
        line += ["-chardev", f"socket,id=c,fd={far.fileno()}", "-serial", "chardev:c"]
        if tpm:
            near = self._tpm(folder)
            kept.append(near)
            line += ["-chardev", f"socket,id=t,fd={near.fileno()}"]
            line += ["-tpmdev", "emulator,id=tpm,chardev=t", "-device", "tpm-crb,tpmdev=tpm"]
        self._processes.append(
            subprocess.Popen(line, stdin=subprocess.DEVNULL, pass_fds=[one.fileno() for one in kept])
        )
        for one in kept:
            one.close()
        self._lines = self._console.makefile("rb")

    def _tpm(self, folder: Path) -> socket.socket:
        near, far = socket.socketpair()
        (folder / "tpm").mkdir()
        line = [
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={folder}/tpm",
            "--ctrl",
            f"type=unixio,clientfd={far.fileno()}",
        ]
        self._processes.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, pass_fds=[far.fileno()]))
        far.close()
        return near

    def wait(self, start: str) -> str:
        """Return the next line that begins with ``start``, without its end."""
        seen = []
        for raw in self._lines:
            seen.append(raw.decode(errors="replace").strip())
            if seen[-1].startswith(start):
                return seen[-1]
        raise AssertionError(f"the guest has ended; it said {seen}")

    def ask(self, line: str, start: str) -> str:
        """Send a line and return the answer, which begins with ``start``."""
        self._console.sendall(line.encode() + b"\n")
        return self.wait(start)

    def __enter__(self) -> PlainGuest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._console.close()
        for process in reversed(self._processes):
            process.kill()
            process.wait()
