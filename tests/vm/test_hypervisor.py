"""Guests under real QEMU with a real vTPM: they start, move, are taken up again, end; what is broken leaves nothing
behind.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import BOOT_S, READY, ask, folder_in_memory, require_programs

from quoreduce.errors import UsageError, VmError
from quoreduce.vm import kvm, processes, state
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.hypervisor import Guest, GuestRecord, prepare
from quoreduce.vm.ports import VmSpec
from quoreduce.vm.processes import Process, living_in
from quoreduce.vm.qmp import Qmp, QmpLost, QmpRefused
from quoreduce.vm.scrub import scrub

SPEC = VmSpec(128, 8)
SECRET = "told to the guest only 4711"
DEADLINE_S = 20.0


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    require_programs()


@pytest.fixture(scope="module")
def bundle(image: Path) -> Bundle:
    return Bundle.decode(image.read_bytes())


@pytest.fixture(scope="module")
def guest(bundle: Bundle) -> Iterator[Guest]:
    """A guest that is up, for all tests of this module; each leaves it running."""
    with folder_in_memory() as folder, Guest.start(folder, SPEC, bundle) as started:
        started.serial.wait(READY, BOOT_S)
        assert ask(started, f"SECRET {SECRET}", "STORED")
        yield started


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as path:
        yield path


def ticks(guest: Guest) -> int:
    return int(ask(guest, "TICK", r"^tick \d+$").split()[1])


def until(done: object) -> None:
    limit = time.monotonic() + DEADLINE_S
    while not done():  # type: ignore[operator]
        assert time.monotonic() < limit
        os.sched_yield()


def goes_on(guest: Guest) -> bool:
    """Whether its clock ticks on: a guest that has just booted answers 0, so a number alone shows nothing."""
    before = ticks(guest)
    until(lambda: ticks(guest) > before)
    return True


def test_its_files_are_its_own_and_the_image_is_in_none(guest: Guest, bundle: Bundle) -> None:
    assert guest.folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in guest.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"ram.bin", "disk.raw", "guest.json", "tpm2-00.permall"}
    assert all(
        path.stat().st_mode & 0o077 == 0 for path in files if path.name in ("ram.bin", "disk.raw", "tpm2-00.permall")
    )
    assert all(bundle.initrd[:4096] not in path.read_bytes() for path in files if path.name != "ram.bin")


def test_it_stands_still_and_goes_on(guest: Guest) -> None:
    guest.pause()
    assert guest.status() == "paused"
    guest.resume()
    guest.resume()
    assert guest.status() == "running"
    assert goes_on(guest)


def test_the_manager_reaches_the_broker_and_cannot_dump(guest: Guest, tmp_path: Path) -> None:
    manager = Qmp(guest.broker_socket)
    try:
        assert manager.execute("query-status")["status"] == "running"
        for command, arguments in (
            ("dump-guest-memory", {"paging": False, "protocol": f"file:{tmp_path}/dump"}),
            ("human-monitor-command", {"command-line": f"pmemsave 0 4096 {tmp_path}/dump"}),
        ):
            with pytest.raises(QmpRefused) as refused:
                manager.execute(command, arguments)
            assert refused.value.kind == "CommandNotAllowed"
    finally:
        manager.close()
    assert not (tmp_path / "dump").exists()


def test_a_state_moves_with_memory_disk_and_vtpm(guest: Guest, bundle: Bundle, folder: Path) -> None:
    pcr, before = ask(guest, "PCR", "PCR10"), ticks(guest)
    moved = bytearray()
    stats = guest.outgoing(moved.extend)
    assert guest.status() == "postmigrate"
    assert stats.bytes == len(moved) > 1 << 20
    assert 0 <= stats.downtime_ms <= stats.total_ms
    with Guest.start(folder, SPEC, bundle, incoming=True) as there:
        assert there.status() == "inmigrate"
        feeder = there.incoming()
        for at in range(0, len(moved), 100_003):
            feeder.write(bytes(moved[at : at + 100_003]))
        feeder.finish()
        feeder.abort()  # nothing any more
        assert there.status() == "paused"
        assert (folder / "disk.raw").read_bytes() == (guest.folder / "disk.raw").read_bytes()
        there.resume()
        assert ticks(there) >= before
        assert ask(there, "SHOW", "HELD") == f"HELD {SECRET}"
        assert ask(there, "DISK", "DISK ") == f"DISK {SECRET}"
        assert ask(there, "PCR", "PCR10") == pcr
        assert ask(there, "SECRET another", "STORED")
        assert b"another\n" in (folder / "disk.raw").read_bytes()[:64]
    guest.resume()  # as after a backup
    assert ask(guest, "SHOW", "HELD") == f"HELD {SECRET}"
    assert ask(guest, "SECRET kept", "STORED")
    assert ask(guest, f"SECRET {SECRET}", "STORED")


@pytest.mark.parametrize("at", [0, 300_000, 5_000_000])
def test_a_move_that_fails_leaves_the_guest_able_to_run_and_to_move(guest: Guest, at: int) -> None:
    passed = 0

    def sink(piece: bytes) -> None:
        nonlocal passed
        passed += len(piece)
        if passed > at:
            raise VmError("the relay is gone")

    with pytest.raises(VmError, match="the relay is gone"):
        guest.outgoing(sink)
    guest.resume()
    assert guest.status() == "running"
    assert ask(guest, "SHOW", "HELD") == f"HELD {SECRET}"
    assert guest.outgoing(lambda piece: None).bytes > 1 << 20
    guest.resume()
    assert goes_on(guest)


def test_a_move_that_fails_at_the_disk_leaves_the_guest_able_to_run(guest: Guest) -> None:
    def sink(piece: bytes) -> None:
        if piece[0] != state.RAM:
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        guest.outgoing(sink)
    guest.resume()
    assert goes_on(guest)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut"),
        (b"\x01\x00\x00\x10\x00short", "cut"),
        (b"\x01\x00\x00\x00\x04junk", "cut"),
        (b"\x07\x00\x00\x00\x00", "a frame of kind 7"),
        (b"\x01\xff\xff\xff\xff", "a frame of kind 1, 4294967295 bytes"),
        (b"\x02\x00\x00\x00\x09" + (8 << 20).to_bytes(8, "big") + b"x", "larger than it should be"),
        (b"\x03\x00\x00\x00\x10" + bytes(16), "not as long as it says"),
        (
            b"\x01\x00\x00\x00\x04junk"
            + b"\x03\x00\x00\x00\x10"
            + (4).to_bytes(8, "big")
            + (8 << 20).to_bytes(8, "big"),
            "QEMU refused",
        ),
    ],
)
def test_what_is_no_state_is_refused_and_the_waiting_guest_ended(
    bundle: Bundle, folder: Path, data: bytes, reason: str
) -> None:
    there = Guest.start(folder, SPEC, bundle, incoming=True)
    feeder = there.incoming()
    with pytest.raises(VmError, match=reason):
        _feed(feeder, data)
    assert not there.alive()
    assert living_in(folder) == []
    with pytest.raises(VmError, match="given up"):
        feeder.write(b"more")


def _feed(feeder: state.Feeder, data: bytes) -> None:
    feeder.write(data)
    feeder.finish()


AGENT = """
import os, sys
from pathlib import Path
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.hypervisor import Guest
from quoreduce.vm.ports import VmSpec
guest = Guest.start(Path(sys.argv[1]), VmSpec(128, 8), Bundle.decode(Path(sys.argv[2]).read_bytes()), accel="tcg")
guest.serial.wait("GUEST-READY", 120)
guest.serial.send("SECRET of an agent that was killed")
guest.serial.wait("STORED")

def hang(piece):
    print("moves", flush=True)
    sys.stdin.read()

guest.outgoing(hang)
"""


def test_a_guest_outlives_its_agent_and_is_taken_up(image: Path, folder: Path) -> None:
    line = [sys.executable, "-c", AGENT, str(folder), str(image)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"moves\n"
        agent.kill()
    assert len(living_in(folder)) == 2
    with Guest.adopt(folder) as guest:
        assert guest.spec == SPEC
        guest.resume()
        assert ask(guest, "SHOW", "HELD") == "HELD of an agent that was killed"
        until(lambda: guest.qmp.execute("query-migrate").get("status") in ("failed", "cancelled"))
        assert guest.outgoing(lambda piece: None).bytes > 1 << 20
        os.kill(guest.pids[1], signal.SIGKILL)  # its vTPM
        until(lambda: not guest.alive())
        with pytest.raises(VmError, match="is gone: its vTPM has ended"):
            Guest.adopt(folder)
    assert living_in(folder) == []
    with pytest.raises(VmError, match="is gone: its QEMU has ended"):
        Guest.adopt(folder)


def test_a_number_that_another_process_has_now_is_not_the_guest(folder: Path) -> None:
    prepare(folder)
    mine = Process.of(os.getpid())
    GuestRecord(Process(mine.pid, mine.start - 1), mine, SPEC, "tcg").write(folder)
    with pytest.raises(VmError, match="is gone: its QEMU has ended"):
        Guest.adopt(folder)
    (folder / "guest.json").write_text("{}")
    with pytest.raises(VmError, match="holds no guest"):
        Guest.adopt(folder)


def test_a_scrub_ends_what_still_runs_and_nothing_else(bundle: Bundle, folder: Path) -> None:
    guest = Guest.start(folder, SPEC, bundle)
    with subprocess.Popen(["sleep", "60"], cwd=folder) as bystander:
        scrub(folder)
        assert not guest.alive()
        assert bystander.poll() is None
        bystander.kill()
    assert not folder.exists()
    with pytest.raises(VmError):
        guest.status()
    guest.quit()


def test_a_guest_that_dies_is_noticed(bundle: Bundle, folder: Path) -> None:
    with Guest.start(folder, SPEC, bundle) as guest:
        os.kill(guest.pids[0], signal.SIGKILL)
        with pytest.raises(VmError, match="the guest ended before it said"):
            guest.serial.wait(READY)
        with pytest.raises(QmpLost):
            guest.status()
        with pytest.raises(VmError):
            guest.outgoing(lambda piece: None)
        until(lambda: not guest.alive())


def test_a_kernel_that_never_boots_is_given_up(bundle: Bundle, folder: Path) -> None:
    header = bundle.kernel[:0x4000]  # QEMU takes it; there is nothing behind it
    broken = Bundle(header + bytes(1 << 16), b"x", "")
    never = pytest.raises(VmError, match=r"did not within 0.5 s say 'GUEST-READY'|ended before it said")
    with Guest.start(folder, SPEC, broken) as guest, never:
        guest.serial.wait(READY, 0.5)
    assert living_in(folder) == []


def gone(folder: Path) -> bool:
    return not folder.exists() and living_in(folder) == []


def test_a_truncated_kernel_is_refused(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(VmError, match=r"did not start: QEMU said: .*kernel"):
        Guest.start(folder, SPEC, Bundle(bundle.kernel[:1000], b"x", ""))
    assert gone(folder)


def test_an_image_of_no_bytes_is_refused() -> None:
    from quoreduce.errors import InputError

    with pytest.raises(InputError):
        Bundle.decode(b"")


def test_a_missing_program_is_named(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        VmError, match=r"qemu-system-x86_64 is not installed; .* apt-get install qemu-system-x86 seabios"
    ):
        Guest.start(folder, SPEC, bundle, accel="tcg")
    with pytest.raises(VmError, match=r"apt-get install swtpm$"):
        processes.program("swtpm")
    assert gone(folder)


def test_a_vtpm_that_fails_is_reported(
    bundle: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swtpm").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(VmError, match="did not start"):
        Guest.start(folder, SPEC, bundle)
    assert gone(folder)


def test_a_qemu_that_does_not_answer_is_ended(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quoreduce.vm.hypervisor.START_S", 0.3)
    mute = ["-M", "none", "-nodefaults", "-display", "none", "-S"]
    monkeypatch.setattr("quoreduce.vm.machine.line", lambda qemu, *_, **__: [qemu, *mute])
    with pytest.raises(VmError, match=r"does not answer on qmp.sock within 0.3 s"):
        Guest.start(folder, SPEC, bundle, accel="tcg")
    assert gone(folder)


def test_a_program_that_changes_under_a_server_starts_no_guest(
    bundle: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an upgrade does: the guest would run under what nobody measured."""
    swtpm = Path(shutil.copy(os.path.realpath(processes.program("swtpm")), tmp_path / "swtpm"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Guest.start(folder, SPEC, bundle):
        pass
    scrub(folder)
    with swtpm.open("ab") as program:
        program.write(b"changed")
    with pytest.raises(VmError, match=f"{swtpm} is not what it was when it was measured: start this server again"):
        Guest.start(folder, SPEC, bundle)
    assert gone(folder)


def test_a_folder_that_would_reach_a_disk_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    if _kind(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip("the temporary folder is in memory")
    with pytest.raises(VmError, match="a guest's memory would reach a disk; use one on tmpfs, such as /dev/shm"):
        Guest.start(tmp_path / "guest", SPEC, bundle)


def _kind(path: Path) -> str:
    return subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout.strip()


def test_a_folder_in_use_is_refused_and_left_alone(guest: Guest, bundle: Bundle) -> None:
    with pytest.raises(VmError, match="is not empty, or not ours: a guest needs a folder of its own"):
        Guest.start(guest.folder, SPEC, bundle)
    assert guest.status() == "running"


def test_a_guest_for_which_there_is_no_space_is_refused_before_anything_runs(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(
        VmError, match=r"no space in /dev/shm for the 1,048,584 MiB of a guest: end others, or ask for less"
    ):
        Guest.start(folder, VmSpec(1 << 20, 8), bundle)
    assert gone(folder)


def test_a_file_system_that_fills_up_is_said_before_anything_runs(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(VmError, match=r"no space in /dev/shm for the 128 MiB of a guest.*No space left on device"):
        Guest.start(folder, SPEC, bundle)
    assert gone(folder)


def test_accelerators_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kvm.runs("tcg")  # so the firmware does run
    assert kvm.choose() == ("kvm" if kvm.runs("kvm") else "tcg")
    with pytest.raises(UsageError, match="use kvm or tcg"):
        kvm.choose("xen")
    monkeypatch.setattr(kvm, "runs", lambda accel: False)
    with pytest.raises(VmError, match="kvm does not run guests on this machine"):
        kvm.choose("kvm")
    assert kvm.choose() == "tcg"


def test_a_guest_that_stands_still_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "_CODE", bytes.fromhex("f4ebfd"))  # hlt, for ever
    monkeypatch.setattr(kvm, "PROBE_S", 0.3)
    assert not kvm.runs.__wrapped__("tcg")
    monkeypatch.setattr(kvm, "PROBE_S", 5.0)
    monkeypatch.setattr(kvm, "_CODE", bytes.fromhex("b020e6f4f4"))  # another status
    assert not kvm.runs.__wrapped__("tcg")
