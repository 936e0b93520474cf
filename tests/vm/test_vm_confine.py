"""What confines a guest, seen from outside on its real processes: users, rights, namespaces, files, limits, secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import BOOT_S, READY, folder_in_memory, require_programs

from quoreduce.errors import VmError
from quoreduce.vm import boot, cgroups, confine, programs
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.hypervisor import Guest
from quoreduce.vm.ports import VmSpec
from quoreduce.vm.scrub import scrub

SPEC = VmSpec(128, 8)
SECRET = "owner.secret=7d1f0c55aa"
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    require_programs()


@pytest.fixture(scope="module")
def bundle(image: Path) -> Bundle:
    made = Bundle.decode(image.read_bytes())
    return Bundle(made.kernel, made.initrd, f"{made.cmdline} {SECRET}")


@pytest.fixture(scope="module")
def guest(bundle: Bundle) -> Iterator[Guest]:
    with folder_in_memory() as folder, Guest.start(folder, SPEC, bundle) as started:
        started.serial.wait(READY, BOOT_S)
        yield started


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespace(pid: int | str, name: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{name}")


def confined(pid: int) -> None:
    found = status(pid)
    assert {name: int(found[name], 16) for name in CAPABILITIES} == dict.fromkeys(CAPABILITIES, 0)
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    for name in NAMESPACES:
        assert namespace(pid, name) != namespace("self", name)
    assert found["NSpid"].split()[-1] == "1"  # the first process of its PID namespace: it sees no other


def test_qemu_and_swtpm_have_no_rights_and_namespaces_of_their_own(guest: Guest) -> None:
    for pid in guest.pids:
        confined(pid)
    assert all(namespace(guest.pids[0], name) != namespace(guest.pids[1], name) for name in NAMESPACES)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives users away")
def test_as_root_each_has_a_user_of_its_own_that_owns_what_it_writes(guest: Guest) -> None:
    qemu, swtpm = (status(pid) for pid in guest.pids)
    users = [int(found["Uid"].split()[0]) for found in (qemu, swtpm)]
    assert users == list(confine.users(guest.folder) or ())
    for found, user in zip((qemu, swtpm), users, strict=True):
        assert user != 0
        assert set(found["Uid"].split() + found["Gid"].split()) == {str(user)}
        assert found["Groups"].split() in ([], [str(os.stat(confine.KVM).st_gid)] if guest.accel == "kvm" else [])
    owners = {path.name: path.stat().st_uid for path in guest.folder.rglob("*")}
    assert owners["ram.bin"] == owners["disk.raw"] == users[0]
    assert owners["vtpm"] == owners["tpm2-00.permall"] == users[1]
    assert {owners[name] for name in ("guest.json", "qmp.sock", "manager.sock", "qemu.log")} == {0}
    assert guest.folder.stat().st_uid == 0


def seen(pid: int) -> set[str]:
    """The files that a process can reach, as it calls them; its /proc apart."""
    root = Path(f"/proc/{pid}/root")
    found = set()
    for where, inner, names in os.walk(root):
        inner[:] = [one for one in inner if Path(where, one) != root / "proc"]
        found |= {f"/{Path(where, name).relative_to(root)}" for name in names}
    return found


def test_they_see_their_own_files_and_what_was_measured_and_no_process_or_network(guest: Guest) -> None:
    common = {*confine.DEVICES, "/etc/ld.so.cache", *([confine.KVM] if guest.accel == "kvm" else [])}
    qemu, swtpm = (programs.load(name) for name in (programs.QEMU, programs.SWTPM))
    assert seen(guest.pids[0]) - common == {*qemu.files, f"{guest.folder}/ram.bin", f"{guest.folder}/disk.raw"}
    theirs = {f"{guest.folder}/vtpm/{path.name}" for path in (guest.folder / "vtpm").iterdir()}
    assert seen(guest.pids[1]) - common == {*swtpm.files, *theirs}
    for pid in guest.pids:
        assert [one for one in os.listdir(f"/proc/{pid}/root/proc") if one.isdecimal()] == ["1"]
        assert [line.split(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]] == [
            "lo"
        ]


def test_their_limits_are_set(guest: Guest) -> None:
    for pid in guest.pids:
        rows = {
            line[:26].strip(): line[26:].split()[:2] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        }
        assert rows["Max core file size"] == ["1", "1"]
        assert rows["Max open files"] == [str(confine.FILES_OPEN)] * 2
        assert all(rows[name][0].isdecimal() for name in ("Max address space", "Max file size"))
    assert rows["Max file size"] == [str(confine.SWTPM_FILE_BYTES)] * 2


def test_no_command_line_and_no_environment_holds_what_the_image_keeps_secret(guest: Guest) -> None:
    """The kernel's command line may hold a secret of the owner; the guest has got it."""
    assert f" {SECRET}\0".encode() in (guest.folder / "ram.bin").read_bytes()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            for name in ("cmdline", "environ"):
                try:
                    said = (process / name).read_bytes()
                except OSError:
                    continue  # it has ended
                assert SECRET.encode() not in said, process
    for pid in guest.pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().rstrip("\0").split("\0")
        assert environment == [f"{name}={value}" for name, value in boot.ENVIRONMENT.items()]


def test_a_guest_of_its_servers_user_runs_in_a_user_namespace(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without root: here it is root who has no other users to give."""
    if os.geteuid() == 0:
        monkeypatch.setattr(confine, "users", lambda folder: None)
    with folder_in_memory() as folder, Guest.start(folder, SPEC, bundle, accel="tcg") as guest:
        for pid in guest.pids:
            confined(pid)
            assert namespace(pid, "user") != namespace("self", "user")
            assert Path(f"/proc/{pid}/uid_map").read_text().split() == [str(os.geteuid())] * 2 + ["1"]
        assert guest.status() == "running"
        scrub(folder)
        assert not guest.alive()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root gives up capabilities")
def test_where_namespaces_cannot_be_made_nothing_runs_and_it_is_said_what_to_do() -> None:
    program = """
from quoreduce.vm import confine, programs
from quoreduce.errors import VmError
try:
    confine.check(programs.load("swtpm"))
except VmError as error:
    print(error)
"""
    line = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    assert "cannot be confined on this machine (confine: unshare(): Operation not permitted)" in done.stdout
    assert "run the server as root, with CAP_SYS_ADMIN" in done.stdout


def children() -> set[str]:
    """The processes that we have to wait for, those that have ended too."""
    return set(Path("/proc/thread-self/children").read_text().split())


def test_a_program_that_is_not_there_leaves_no_process(tmp_path: Path) -> None:
    before = children()
    swtpm = programs.load(programs.SWTPM)
    plan = confine.Confinement(
        ["/nowhere/swtpm"], str(tmp_path), [*swtpm.files], user=confine.USERS[0] if os.geteuid() == 0 else None
    )
    with pytest.raises(VmError, match=r"/nowhere/swtpm: No such file or directory"):
        confine.start(plan, tmp_path, "log", ())
    assert children() == before


def test_a_container_with_few_users_gives_of_those_that_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mapped(text: str) -> range:
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        return confine._mapped_users()

    assert mapped("0 0 4294967295") == confine.USERS
    assert mapped("0 100000 65536") == range(32768, 65536)
    assert mapped("0 1000 1\n1 100000 1000") == range(501, 1001)
    with pytest.raises(VmError, match="no users to run guests as"):
        mapped("0 1000 1")


def test_limits_of_a_cgroup_are_set_where_one_is_delegated(tmp_path: Path) -> None:
    """In a folder that stands for one: what is written, and where. The real one is asked too."""
    try:
        (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
        (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
        assert cgroups.prepare(tmp_path) == ""
        assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
        assert (tmp_path / cgroups.AGENT / "cgroup.procs").read_text() == "0"
        made = Path(cgroups.of_guest("ab" * 16, SPEC))
        limits = {path.name: path.read_text() for path in made.iterdir()}
        assert limits == {"memory.max": str((128 << 20) + cgroups.MEMORY_EXTRA_BYTES), "pids.max": str(cgroups.THREADS)}
        (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
        assert "other processes are in it too" in cgroups.prepare(tmp_path)
        (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
        assert cgroups.prepare(tmp_path) == f"the cgroup {tmp_path} has no controller memory or pids"
        assert "cgroup.controllers: No such file" in cgroups.prepare(tmp_path / "none")
        assert cgroups.of_guest("ab" * 16, SPEC) == ""
    finally:
        cgroups._place.clear()
