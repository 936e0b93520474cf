"""What a guest's programs may do on this machine: users, files, namespaces, limits. jail.py carries it out.

As root: QEMU and swtpm of a guest have a user each, of the range :data:`USERS`, chosen by the inode of the guest's
folder. They own the files that they write, and nothing else; the folder, its sockets and records stay root's.
Without root they are the server's own user, in a user namespace. Where a machine allows neither, no guest is started.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from quoreduce.errors import VmError, one_line
from quoreduce.machine import readable
from quoreduce.vm import boot, cgroups
from quoreduce.vm.boot import ENVIRONMENT, OPTIONS
from quoreduce.vm.ports import VmSpec
from quoreduce.vm.processes import Process, started
from quoreduce.vm.programs import Program

USERS: Final = range(2_000_000_000, 2_000_065_536)  # above what systemd and shadow give to users and containers
START_S: Final = 20.0  # for the program to be in its place
REPORT_BYTES_MAX: Final = 4096
QEMU_EXTRA_BYTES: Final = (
    4 << 30
)  # of addresses, beside the guest's memory: libraries, threads, a GiB of translated code
QEMU_THREADS: Final = 256
SWTPM_BYTES: Final = 1 << 30
SWTPM_FILE_BYTES: Final = 16 << 20
FILES_OPEN: Final = 256
DEVICES: Final = ("/dev/null", "/dev/urandom")
KVM: Final = "/dev/kvm"
_LINKER_CACHE: Final = "/etc/ld.so.cache"
_CORE: Final = 1  # byte: with 0 the kernel still writes core files into a pipe (core(5)), with 1 into nothing
_JAIL: Final = Path(__file__).with_name("jail.py")
_ADVICE: Final = (
    "run the server as root, with CAP_SYS_ADMIN where it is a container, or let users make namespaces"
    " (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
)


@dataclass(frozen=True)
class Confinement:
    """The plan that jail.py carries out.

    Attributes:
        line: the program's command line; line[0] is its path.
        folder: its working folder: there it has only the files named below.
        read, write, devices: paths of this machine that it sees, each at the same place.
        user: its user and group; None: ours, in a user namespace.
        groups: others.
        limits: of resource(3).
        cgroup: the folder of its cgroup, or "".
        wait: whether jail.py waits, and ends as the program did.
    """

    line: Sequence[str]
    folder: str
    read: Sequence[str]
    write: Sequence[str] = ()
    devices: Sequence[str] = DEVICES
    user: int | None = None
    groups: Sequence[int] = ()
    limits: dict[str, int] = field(default_factory=dict)
    cgroup: str = ""
    wait: bool = False


def users(folder: Path) -> tuple[int, int] | None:
    """The users of a guest's QEMU and swtpm, by its folder; None if we are not root. Raises VmError without users."""
    if os.geteuid() != 0:
        return None
    found = _mapped_users()
    pair = folder.stat().st_ino % (len(found) // 2)
    return found[2 * pair], found[2 * pair + 1]


def of_qemu(
    line: Sequence[str], program: Program, folder: Path, spec: VmSpec, accel: str, written: Sequence[str]
) -> Confinement:
    """The plan of a guest's QEMU; ``written``: the files in its folder that it writes, its memory and disk."""
    kvm = [KVM] if accel == "kvm" else []
    who, where = users(folder), os.path.realpath(folder)
    limits = {
        "RLIMIT_AS": (spec.memory_mb << 20) + QEMU_EXTRA_BYTES,
        "RLIMIT_FSIZE": max(spec.memory_mb, spec.disk_mb) << 20,
    }
    if who is not None:
        limits["RLIMIT_NPROC"] = QEMU_THREADS  # without root it would count all that the user runs
    return Confinement(
        line, where, _seen(program), [os.path.join(where, one) for one in written], [*DEVICES, *kvm], who and who[0],
        [os.stat(one).st_gid for one in kvm], _limits(limits), cgroups.of_guest(folder.name, spec),
    )  # fmt: skip


def of_swtpm(line: Sequence[str], program: Program, folder: Path, state: str) -> Confinement:
    """The plan of a guest's swtpm; ``state``: the name of the folder, in the guest's, of the TPM's state."""
    who, where = users(folder), os.path.realpath(folder)
    limits = {"RLIMIT_AS": SWTPM_BYTES, "RLIMIT_FSIZE": SWTPM_FILE_BYTES} | ({"RLIMIT_NPROC": 16} if who else {})
    return Confinement(
        line, where, _seen(program), [os.path.join(where, state)], user=who and who[1], limits=_limits(limits)
    )


def of_probe(line: Sequence[str], program: Program, accel: str) -> Confinement:
    """The plan of a program that is only tried: no files of its own; the caller waits for its end."""
    kvm = [KVM] if accel == "kvm" else []
    user = _mapped_users()[-1] if os.geteuid() == 0 else None
    groups = [os.stat(one).st_gid for one in kvm]
    return Confinement(line, "/", _seen(program), (), [*DEVICES, *kvm], user, groups, _limits({}), wait=True)


def start(plan: Confinement, folder: Path, log: str, fds: Sequence[int]) -> Process:
    """Start a program of a guest; return when it is in its place. What it says goes to ``log`` in the folder.

    Raises:
        VmError: this machine does not allow it, with what to do about that.
    """
    try:
        with (
            os.fdopen(os.open(folder / log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as said,
            _jailer(plan) as (line, passed, heard, told),
        ):
            launcher = subprocess.Popen(
                line,
                cwd="/",
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                pass_fds=(*fds, *passed),
                umask=0o077,
            )
            told.close()
            try:
                report = _read(heard.fileno())
            finally:
                launcher.kill()
                launcher.wait()
    except OSError as error:
        raise VmError(f"cannot start {plan.line[0]}: {error.strerror or error}") from error
    pid = next((int(one[4:]) for one in report.splitlines() if one.startswith("pid ")), 0)
    refused = next((one[6:] for one in report.splitlines() if one.startswith("error ")), "")
    if refused or not pid:
        if pid:
            os.waitpid(pid, 0)
        raise VmError(
            f"{plan.line[0]} cannot be confined on this machine ({one_line(refused) or 'no answer'}): {_ADVICE}"
        )
    return started(pid)


def run(plan: Confinement, timeout_s: float, fds: Sequence[int] = ()) -> int | None:
    """Run a program to its end, return its status; None if it took too long, and was killed. Raises as `start`."""
    with _jailer(plan) as (line, passed, heard, told):
        try:
            nowhere = subprocess.DEVNULL
            done = subprocess.run(
                line, cwd="/", env=ENVIRONMENT, stdin=nowhere, stdout=nowhere, stderr=nowhere, pass_fds=(*fds, *passed),
                timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
        told.close()
        report = _read(heard.fileno())
    refused = next((one[6:] for one in report.splitlines() if one.startswith("error ")), "")
    if refused:
        raise VmError(f"{plan.line[0]} cannot be confined on this machine ({one_line(refused)}): {_ADVICE}")
    return done.returncode


def check(program: Program) -> None:
    """Raises VmError if guests cannot be confined on this machine: tried with a program that prints its version."""
    run(of_probe([program.path, "--version"], program, "tcg"), START_S)


@contextmanager
def _jailer(plan: Confinement) -> Iterator[tuple[list[str], tuple[int, int], BinaryIO, BinaryIO]]:
    """The command line of jail.py, its descriptors, and both ends of its report: the caller closes the second."""
    if boot.installed is not None:
        try:
            boot.installed.check_again()  # jail.py, and what it runs on
        except boot.Unmeasured as error:
            raise VmError(f"{error}: start this server again") from error
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    text = marshal.dumps({**asdict(plan), "capabilities": last, "environment": ENVIRONMENT})
    with open(os.memfd_create("plan", os.MFD_CLOEXEC), "w+b", buffering=0) as described:
        described.write(text)
        described.seek(0)
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as heard, open(writing, "wb", buffering=0) as told:
            passed = (described.fileno(), told.fileno())
            yield [os.path.realpath(sys.executable), *OPTIONS, str(_JAIL), *map(str, passed)], passed, heard, told


def _read(fd: int) -> str:
    """What jail.py reports, until the program is in its place, or within START_S."""
    limit, report = time.monotonic() + START_S, b""
    while len(report) < REPORT_BYTES_MAX:
        ready = readable(fd, limit - time.monotonic())
        piece = os.read(fd, REPORT_BYTES_MAX) if ready else b""
        if not piece:
            break
        report += piece
    return report.decode(errors="replace")


def _seen(program: Program) -> list[str]:
    """What a program sees: its own files, as they were measured, and how the dynamic linker finds them."""
    return [*program.files, *([_LINKER_CACHE] if os.path.exists(_LINKER_CACHE) else [])]


def _limits(more: dict[str, int]) -> dict[str, int]:
    return {"RLIMIT_CORE": _CORE, "RLIMIT_NOFILE": FILES_OPEN, **more}


def _mapped_users() -> range:
    """USERS; in a container to which only some are mapped the last of those, at most as many, and half of them."""
    try:
        lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    except OSError:
        return USERS
    extents = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    if any(first <= USERS.start and USERS.stop <= first + count for first, count in extents):
        return USERS
    first, count = max(extents, key=lambda extent: extent[1], default=(0, 1))
    if count < 4:
        raise VmError("this container has no users to run guests as: map more than one (newuidmap, subuid)")
    return range(first + count - min(len(USERS), count // 2), first + count)
