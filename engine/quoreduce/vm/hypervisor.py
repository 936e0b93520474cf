"""One guest: a QEMU and its vTPM (swtpm), in a private folder on a file system in memory.

The folder (mode 0700) holds all that is secret of the guest, and is all that must be scrubbed
(:mod:`quoreduce.vm.scrub`)::

    ram.bin        the guest's memory        disk.raw   its disk           vtpm/   the state of its TPM
    qmp.sock       QMP, for this module      serial.sock  its console      manager.sock  the broker's
    guest.json     which processes these are                               *.log   what the programs said

The kernel, the initrd and the kernel's command line are never in a file: they are handed over in memory (memfd). The
vTPM's connection is a socket pair: nobody else can connect. Both programs are confined (:mod:`quoreduce.vm.confine`):
as users without rights they see their own files, of these ram.bin and disk.raw or vtpm/, and nothing else of the
machine. Processes outlive the agent that started them: if it was killed, :meth:`Guest.adopt` takes the guest up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from quoreduce.errors import VmError
from quoreduce.files import MARKER, mark, state_of, write_whole
from quoreduce.vm import cgroups, confine, kvm, machine, processes, programs, state
from quoreduce.vm.broker import RULES, Broker, Ruled, Rules
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.ports import VmSpec
from quoreduce.vm.processes import Process
from quoreduce.vm.programs import Program
from quoreduce.vm.qmp import Qmp, listen
from quoreduce.vm.scrub import scrub
from quoreduce.vm.serial import Serial

DEFAULT_ROOT: Final = Path("/dev/shm")
IN_MEMORY: Final = ("tmpfs", "ramfs")
RESERVE_BYTES: Final = 256 << 20  # of this machine's memory, which guests leave alone
VTPM: Final = "vtpm"
START_S: Final = 20.0  # for QEMU to greet
QUIT_S: Final = 5.0
_QMP, _SERIAL, _BROKER, _RECORD = "qmp.sock", "serial.sock", "manager.sock", "guest.json"
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True)
class GuestRecord:
    """The durable record of a guest: its processes, size and accelerator."""

    qemu: Process
    swtpm: Process
    spec: VmSpec
    accel: str

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_whole(folder / _RECORD, json.dumps(asdict(self)).encode(), sync=False)

    @classmethod
    def read(cls, folder: Path) -> GuestRecord:
        """Read it. Raises VmError if it is missing or malformed."""
        try:
            found = json.loads((folder / _RECORD).read_bytes())
            return cls(Process(**found["qemu"]), Process(**found["swtpm"]), VmSpec(**found["spec"]), found["accel"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VmError(f"{folder} holds no guest: its record is missing or broken") from error


class Guest:
    """A guest that runs, is paused, or waits for a state. Made by :meth:`start` or :meth:`adopt`.

    Attributes:
        folder: its private folder.
        spec: its size.
        accel: kvm or tcg.
        serial: its console.
        qmp: what a TCOM may ask of QEMU, by the rules.
        broker: what the manager may ask; ``broker_socket``: where.
    """

    def __init__(self, folder: Path, record: GuestRecord, rules: Rules) -> None:
        self.folder, self.spec, self.accel = folder, record.spec, record.accel
        self._record = record
        with contextlib.ExitStack() as undo:
            qmp = Qmp(folder / _QMP, START_S)
            undo.callback(qmp.close)
            self.qmp = Ruled(qmp, rules, "tcom")
            self.serial = Serial(folder / _SERIAL)
            undo.callback(self.serial.close)
            self.broker = Broker(folder / _BROKER, Ruled(qmp, rules, "manager"))
            undo.callback(self.broker.close)
            self._disconnect = undo.pop_all()

    @classmethod
    def start(
        cls,
        folder: Path,
        spec: VmSpec,
        bundle: Bundle,
        *,
        incoming: bool = False,
        accel: str | None = None,
        rules: Rules = RULES,
    ) -> Guest:
        """Start a guest; return when QEMU answers. After a failure no process is left, and the folder is scrubbed and
        gone.

        Args:
            folder: empty or missing; its file system is in memory.
            bundle: what it boots from; for a guest that comes from elsewhere, what it was booted from there.
            incoming: it waits for its state (:meth:`incoming`) and does not boot.
            accel: kvm or tcg; by default what works (:func:`quoreduce.vm.kvm.choose`).
            rules: of the broker, and of this module's own calls.

        Raises:
            VmError: a program is missing, has changed, or cannot be confined; the folder is in use or not in memory;
                there is no space; QEMU does not take the image.
        """
        accel = kvm.choose(accel)
        qemu, swtpm = programs.load(programs.QEMU), programs.load(programs.SWTPM)
        for program in (qemu, swtpm):
            program.check()
        prepare(folder)
        try:
            _make_files(folder, spec)
            record = _launch(folder, spec, bundle, accel, qemu, swtpm, incoming)
            record.write(folder)
            return cls(folder, record, rules)
        except BaseException as error:
            words = processes.last_words(folder / "qemu.log")
            scrub(folder)
            if isinstance(error, VmError) and words != processes.SILENT:
                raise VmError(f"the guest did not start: QEMU said: {words}") from error
            if isinstance(error, OSError):
                raise VmError(f"the guest did not start: {error.strerror or error}") from error
            raise

    @classmethod
    def adopt(cls, folder: Path, rules: Rules = RULES) -> Guest:
        """Take up a guest whose agent was killed: it runs or is paused, as before.

        Raises:
            VmError: it is gone, or its vTPM is, or QEMU does not answer. :func:`quoreduce.vm.scrub.scrub` ends what is
                left.
        """
        record = GuestRecord.read(folder)
        for name, process in (("QEMU", record.qemu), ("vTPM", record.swtpm)):
            if not process.alive():
                raise VmError(f"the guest in {folder.name} is gone: its {name} has ended")
        return cls(folder, record, rules)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.quit()

    @property
    def broker_socket(self) -> Path:
        """The QMP socket of the broker, the only one for others."""
        return self.broker.path

    @property
    def processes(self) -> tuple[Process, Process]:
        """Its QEMU and its swtpm."""
        return self._record.qemu, self._record.swtpm

    @property
    def pids(self) -> tuple[int, int]:
        """The process ids of QEMU and of swtpm."""
        return self._record.qemu.pid, self._record.swtpm.pid

    def alive(self) -> bool:
        """Whether its QEMU and its vTPM run."""
        return self._record.qemu.alive() and self._record.swtpm.alive()

    def status(self) -> str:
        """Its state as QEMU names it: running, paused, inmigrate, postmigrate, shutdown, ..."""
        return str(self.qmp.execute("query-status")["status"])

    def pause(self) -> None:
        """Pause it."""
        self.qmp.execute("stop")

    def resume(self) -> None:
        """Let it run: after :meth:`pause`, after a state has left or was loaded; no effect on a guest that runs."""
        self.qmp.execute("cont")

    def outgoing(self, sink: state.Sink) -> state.Stats:
        """Give ``sink`` its whole state (:func:`quoreduce.vm.state.send`); then it is paused. May be called
        again.
        """
        return state.send(self.qmp, self.folder / machine.DISK, sink)

    def incoming(self) -> state.Feeder:
        """Take in a state; for a guest that was started with ``incoming``, once."""
        log = self.folder / "qemu.log"
        return state.Feeder(self.qmp, self.folder / machine.DISK, self.quit, lambda: processes.last_words(log))

    def quit(self) -> None:
        """End it, with its vTPM: no process is left. May be called again. Its files stay: scrub them."""
        if self._record.qemu.alive():
            with contextlib.suppress(VmError):
                self.qmp.execute("quit", timeout_s=QUIT_S)
        self._record.qemu.end(QUIT_S)
        self._record.swtpm.end(QUIT_S)  # it ends by itself when QEMU has
        cgroups.sweep()
        self._disconnect.close()

    def detach(self) -> None:
        """Release it, and let it run, as an agent does that ends. :meth:`adopt` takes it up."""
        self._disconnect.close()


def prepare(folder: Path) -> None:
    """Make a private folder for a guest, marked as ours, or take an empty one. Raises VmError if it is in use or on a
    disk.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if state_of(folder) != "dead" or any(not path.name.startswith(f"{MARKER}.") for path in folder.iterdir()):
            raise VmError(f"{folder} is not empty, or not ours: a guest needs a folder of its own")
        kind = _file_system(folder)
        if kind not in IN_MEMORY:
            raise VmError(
                f"{folder} is on {kind}: a guest's memory would reach a disk; use one on tmpfs, such as {DEFAULT_ROOT}"
            )
        folder.chmod(0o700)
        mark(folder)
    except OSError as error:
        raise VmError(f"cannot use {folder} for a guest: {error.strerror}") from error


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on: proc(5), ``mountinfo``."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0]
    return "a file system that is not known"


def _make_files(folder: Path, spec: VmSpec) -> None:
    """Make the memory and the disk, with all their space: QEMU would be killed if its guest touched a page too many.

    The program that writes to a file owns it, but cannot reach it by its path: the folder is ours.
    """
    who = confine.users(folder)
    _check_space(folder, (spec.memory_mb + spec.disk_mb) << 20)
    (folder / VTPM).mkdir(mode=0o700)
    if who is not None:
        os.chown(folder / VTPM, who[1], who[1])
    for name, size in ((machine.RAM, spec.memory_mb << 20), (machine.DISK, spec.disk_mb << 20)):
        fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
        try:
            os.posix_fallocate(fd, 0, size)
            if who is not None:
                os.fchown(fd, who[0], who[0])
        except OSError as error:
            raise VmError(f"{_no_space(folder, size)} ({error.strerror})") from error
        finally:
            os.close(fd)


def _check_space(folder: Path, size: int) -> None:
    """Refuse what the file system, or this machine's memory, cannot hold: a tmpfs may be larger than free memory."""
    system = os.statvfs(folder)
    words = Path("/proc/meminfo").read_text(encoding="ascii").split()
    available = int(words[words.index("MemAvailable:") + 1]) << 10
    if size > min(system.f_bavail * system.f_frsize, available - RESERVE_BYTES):
        raise VmError(_no_space(folder, size))


def _no_space(folder: Path, size: int) -> str:
    return f"no space in {folder.parent} for the {size >> 20:,} MiB of a guest: end others, or ask for less memory"


def _launch(
    folder: Path, spec: VmSpec, bundle: Bundle, accel: str, qemu: Program, swtpm: Program, incoming: bool
) -> GuestRecord:
    """Start both programs. Sockets are made here and handed over, so that nobody waits until they exist."""
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair()
        qmp, serial = listen(folder / _QMP), listen(folder / _SERIAL)
        for each in (ours, theirs, qmp, serial):
            stack.enter_context(each)
        files = (bundle.kernel, bundle.initrd, machine.config(bundle.cmdline))
        kernel, initrd, config = (stack.enter_context(_in_memory(one)) for one in files)
        plan = confine.of_swtpm(tpm_line(swtpm.path, theirs.fileno()), swtpm, folder, VTPM)
        tpm = confine.start(plan, folder, "swtpm.log", (theirs.fileno(),))
        line = machine.line(
            qemu.path, spec, accel, kernel=f"/proc/self/fd/{kernel}", initrd=f"/proc/self/fd/{initrd}",
            config=f"/proc/self/fd/{config}", qmp=f"fd={qmp.fileno()},server=on,wait=off",
            serial=f"fd={serial.fileno()},server=on,wait=off", tpm=f"fd={ours.fileno()}", incoming=incoming,
        )  # fmt: skip
        plan = confine.of_qemu(line, qemu, folder, spec, accel, (machine.RAM, machine.DISK))
        fds = (qmp.fileno(), serial.fileno(), ours.fileno(), kernel, initrd, config)
        return GuestRecord(confine.start(plan, folder, "qemu.log", fds), tpm, spec, accel)


def tpm_line(swtpm: str, control_fd: int) -> list[str]:
    """The vTPM's command line: it is driven by what is at the other end of this connection, and ends with it."""
    control = f"type=unixio,clientfd={control_fd}"
    state = f"dir={VTPM},mode=0600"
    return [
        swtpm,
        "socket",
        "--tpm2",
        "--tpmstate",
        state,
        "--ctrl",
        control,
        "--terminate",
        "--seccomp",
        "action=kill",
    ]


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """A file that is in memory only and cannot be changed any more; its descriptor."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        yield fd
    finally:
        os.close(fd)
