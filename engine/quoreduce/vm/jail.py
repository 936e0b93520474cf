"""Confines a program of a guest, and becomes it. Python runs this file as a program, as it does boot.py::

    python -I -S -B -X pycache_prefix=/dev/null/none jail.py PLAN REPORT

PLAN is a file descriptor from which it reads the plan (:class:`quoreduce.vm.confine.Confinement`, by marshal), REPORT
one to which it writes ``pid N`` and, if something fails, ``error WHAT``. The program runs in namespaces of its own
(mount, PID, IPC, network, UTS, cgroup; without root also user), of which it is the first process; it sees the files
that the plan names, and no others; it has no capability and can gain none; then this file is gone from memory. If one
step is refused, nothing runs.

The parent of the program is the process that started this one; this one ends at once, and does not wait for the
program.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NEW = (
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000 | 0x4000_0000
)  # NS, CGROUP, UTS, IPC, PID, NET: sched.h
_NEW_USER = 0x1000_0000
_CLONE_PARENT = 0x8000
_SIGKILL, _SIGCHLD = 9, 17
_CLONE = {"x86_64": 56, "aarch64": 220}  # the number of the system call
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18  # sys/mount.h
_KEPT = {1024: 1024, 2048: 2048, 4096: 1 << 21}  # ST_NOATIME, ST_NODIRATIME, ST_RELATIME → MS_*
_DETACH = 2
_SET_PDEATHSIG, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 1, 24, 38, 47, 4  # prctl.h
_CAPABILITIES_3 = 0x2008_0522
_LIBC = ctypes.CDLL(None, use_errno=True)
_ROOT = "/dev"  # a folder that exists everywhere: the new root is mounted over it


class JailFailed(Exception):
    """A step was refused."""


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library. Raises JailFailed, with its name and the reason."""
    encoded = [
        one.encode() if isinstance(one, str) else ctypes.c_ulong(one) if isinstance(one, int) else one
        for one in arguments
    ]
    result = int(getattr(_LIBC, name)(*encoded))
    if result < 0:
        shown = ", ".join(str(one) for one in arguments[:3] if isinstance(one, str))
        raise JailFailed(f"{name}({shown}): {os.strerror(ctypes.get_errno())}")
    return result


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    call("mount", source, target, kind, flags, options)


def separate(plan: dict[str, Any]) -> None:
    """Leave the namespaces of the host; without root by a user namespace, in which the user keeps the same id."""
    user, group = os.geteuid(), os.getegid()
    if plan["cgroup"]:
        write(f"{plan['cgroup']}/cgroup.procs", "0")  # before the namespace, whose root it becomes
    call("unshare", _NEW | (_NEW_USER if plan["user"] is None else 0))
    if plan["user"] is None:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{user} {user} 1")
        write("/proc/self/gid_map", f"{group} {group} 1")


def write(path: str, text: str) -> None:
    """Write to a file of the kernel's."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def fork(wait: bool) -> int:
    """Make the first process of the new PID namespace; 0 in it. Unless we wait, its parent is ours."""
    flags = _SIGCHLD | (0 if wait else _CLONE_PARENT)
    return call("syscall", _CLONE[os.uname().machine], flags, 0, 0, 0, 0)


def furnish(plan: dict[str, Any]) -> None:
    """Make a root that has the files of the plan, each at its own path, and go there."""
    os.umask(0o022)
    mount(None, "/", None, _REC | _PRIVATE)
    wanted = [(path, True) for path in plan["read"]] + [(path, False) for path in (*plan["write"], *plan["devices"])]
    opened = [(os.open(path, os.O_PATH | os.O_CLOEXEC), path, only_read) for path, only_read in wanted]
    mount("tmpfs", _ROOT, "tmpfs", _NOSUID | _NODEV, "mode=0755,size=1m")
    for fd, path, only_read in opened:
        bind(fd, _ROOT + path, only_read, path in plan["devices"])
    os.makedirs(f"{_ROOT}/proc", exist_ok=True)
    mount("proc", f"{_ROOT}/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    os.makedirs(_ROOT + plan["folder"], exist_ok=True)
    os.chdir(_ROOT)
    call("pivot_root", ".", ".")
    call("umount2", ".", _DETACH)
    os.chdir("/")
    mount(None, "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir(plan["folder"])
    os.umask(0o077)


def bind(fd: int, target: str, only_read: bool, device: bool) -> None:
    """Let a file or folder of the host appear at ``target``."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    mount(f"/proc/self/fd/{fd}", target, None, _BIND)
    os.close(fd)
    there = os.statvfs(target).f_flag  # without root, none of these can be taken away
    flags = (there & (_RDONLY | _NOSUID | _NODEV | _NOEXEC)) | sum(new for old, new in _KEPT.items() if there & old)
    mount(
        None,
        target,
        None,
        _REMOUNT | _BIND | _NOSUID | flags | (_RDONLY if only_read else 0) | (0 if device else _NODEV),
    )


def drop(plan: dict[str, Any]) -> None:
    """Give up root and every capability, for good; take the limits."""
    for number in range(int(plan["capabilities"]) + 1):
        call("prctl", _CAPBSET_DROP, number, 0, 0, 0)
    call("prctl", _CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    for name, limit in plan["limits"].items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if plan["user"] is not None:
        os.setgroups(plan["groups"])
        os.setresgid(plan["user"], plan["user"], plan["user"])
        os.setresuid(plan["user"], plan["user"], plan["user"])
    call("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("capset", (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)())
    if plan["wait"]:
        call("prctl", _SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def become(plan: dict[str, Any]) -> None:
    """Be the program; does not return."""
    os.setsid()
    furnish(plan)
    drop(plan)
    os.execve(plan["line"][0], plan["line"], plan["environment"])


def main(plan_fd: int, report_fd: int) -> int:
    """Carry out the plan. Returns 125 if it was refused; with ``wait`` the program's status."""
    for fd in (plan_fd, report_fd):
        os.set_inheritable(fd, False)
    step = "confine"
    try:
        with open(plan_fd, "rb") as file:
            plan = marshal.load(file)
        separate(plan)
        child = fork(plan["wait"])
        if child == 0:
            become(plan)
        os.write(report_fd, f"pid {child}\n".encode())
        if not plan["wait"]:
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF
    except (JailFailed, OSError, KeyError, ValueError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        os.write(report_fd, f"error {step}: {reason}\n".encode())
        return 125


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2])))
