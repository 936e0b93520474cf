"""The run folder of a server: its VMs, in memory; bound to the folder of its records (its state).

Each of the two names the other by a random id: ``run`` in the state, ``server`` in the run folder. With another run
folder than before, a server would say that running VMs are gone; with another server's, it would end them. Both are
refused. The run folder is locked while a server uses it, and has our marker, as has each folder of a VM in it. If
anything else is in it, the server names it and does not start.

``guests/VMID`` in the state lists the processes of a VM. It is made before them, and removed when they are scrubbed. So
a process that still runs is found even if the run folder is gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import msgspec

from quoreduce.errors import VmError
from quoreduce.files import MARKER, boot_id, mark, state_of
from quoreduce.ownership import why_foreign
from quoreduce.printable import printable
from quoreduce.vm.agents.folder import LOCK, Records, StateFolder
from quoreduce.vm.processes import Process

RUN_ROOT: Final = Path("/dev/shm")
RUN_PREFIX: Final = "vms-quoreduce-"
RUN, SERVER, GUESTS = "run", "server", "guests"  # records in the state, in the run folder, in the state
OTHERWISE: Final = "choose another folder in memory with --run"
_VM: Final = re.compile(r"[0-9a-f]{32}")


class _Bond(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each folder says about the other: the id of both, the path of the other one, the boot."""

    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    folder: Annotated[str, msgspec.Meta(max_length=4096)]
    boot: Annotated[str, msgspec.Meta(max_length=64)]


class RunFolder:
    """The run folder of a server, which this process holds until :meth:`close`.

    Args:
        state: the server's.
        named: by the user; None: as before, or else one in /dev/shm that goes with the state.

    Raises:
        VmError: it cannot be made, is in use, belongs to another server or user, has files that are not ours, or VMs of
            this server live in another one. Nothing was changed then.
    """

    def __init__(self, state: StateFolder, named: str | None) -> None:
        self._state = state
        bond = _read(state, RUN)
        self.path = _path(state, named, bond)
        _make(self.path)
        self._folder = StateFolder(self.path)
        try:
            self._bind(bond)
        except BaseException:
            self._folder.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release it; may be called again."""
        self._folder.close()

    # VMs

    def vm(self, vmid: bytes) -> Path:
        """The folder of a VM, which may be missing."""
        return self.path / vmid.hex()

    def vms(self) -> set[bytes]:
        """The VMs of which something may be here."""
        noted = {Path(name).name for name in self._state.names(GUESTS)}
        here = {path.name for path in _content(self.path)}
        return {bytes.fromhex(name) for name in noted | here if _VM.fullmatch(name)}

    def note(self, vmid: bytes, processes: Iterable[Process] = ()) -> None:
        """List the processes of a VM; an empty list before it has any. Raises OutputError."""
        self._state.write(f"{GUESTS}/{vmid.hex()}", msgspec.json.encode([asdict(process) for process in processes]))

    def noted(self, vmid: bytes) -> list[Process]:
        """The listed processes of a VM. Raises VmError if the list is malformed."""
        raw = self._state.read(f"{GUESTS}/{vmid.hex()}")
        try:
            return msgspec.json.decode(raw or b"[]", type=list[Process])
        except (msgspec.MsgspecError, UnicodeError) as error:
            where = self._state.path / GUESTS / vmid.hex()
            raise VmError(
                f"{where} does not say which processes a VM has: restore it, or end them and remove it"
            ) from error

    def forget(self, vmid: bytes) -> None:
        """Nothing of a VM is here any more."""
        self._state.remove(f"{GUESTS}/{vmid.hex()}")

    # The bond

    def _bind(self, bond: _Bond | None) -> None:
        here = _read(self._folder, SERVER)
        content = _content(self.path)
        if here is not None and (bond is None or here.id != bond.id) and content:
            whose = f"the run folder of another server, of {printable(here.folder)}"
            raise VmError(f"{self.path} is {whose}, and has VMs: {OTHERWISE}")
        if here is None and content:
            raise VmError(f"{content[0]} is a VM of a server that is not known: move it away, or {OTHERWISE}")
        if here is not None and bond is not None and here.id == bond.id and _is_copied(here, bond, self._state.path):
            whose = f"a copy of {printable(here.folder)}"
            raise VmError(f"{self._state.path} is {whose}: only one of them can be a server; remove the copy")
        if bond is not None and bond.folder != str(self.path):
            self._leave(bond)
        folders = str(self._state.path), str(self.path)
        if here is None or bond is None or here.id != bond.id or (here.folder, bond.folder) != folders:
            number = os.urandom(16).hex()
            self._state.write(RUN, msgspec.json.encode(_Bond(number, str(self.path), boot_id())))
            self._folder.write(SERVER, msgspec.json.encode(_Bond(number, str(self._state.path), boot_id())))
        if not any(path.name.startswith(f"{MARKER}.") for path in self.path.iterdir()):
            mark(self.path)

    def _leave(self, bond: _Bond) -> None:
        """Refuse another run folder than before while a VM may be in that one."""
        before = Path(bond.folder)
        if bond.boot != boot_id():
            return  # it was in memory
        if self._state.names(GUESTS) or (before.is_dir() and state_of(before) != "foreign" and _content(before)):
            raise VmError(
                f"VMs of this server live in {printable(bond.folder)}, not in {self.path}: start it without --run"
            )


def _is_copied(here: _Bond, bond: _Bond, state: Path) -> bool:
    """Whether the state that the run folder names has the same id and is another folder: this one is a copy."""
    if here.folder == str(state):
        return False
    there = _read(Records(Path(here.folder)), RUN)
    return there is not None and there.id == bond.id


def _path(state: StateFolder, named: str | None, bond: _Bond | None) -> Path:
    if named:
        return Path(os.path.abspath(os.path.expanduser(named)))
    if bond is not None:
        return Path(bond.folder)
    tag = sha256(os.fsencode(state.path.resolve())).hexdigest()[:12]
    return RUN_ROOT / f"{RUN_PREFIX}{os.getuid()}-{tag}"


def _make(path: Path) -> None:
    """Make the run folder (mode 0700), or check that an existing one is this user's, and has only files of ours."""
    try:
        if not os.path.lexists(path):
            path.mkdir(mode=0o700)
        reason = why_foreign(path) or ("" if path.is_dir() else "is no folder")
        if not reason:
            _content(path)
    except OSError as error:
        raise VmError(f"cannot use {path} for VMs: {error.strerror}; {OTHERWISE}") from error
    if reason:
        raise VmError(f"cannot use {path} for VMs: it {reason}; {OTHERWISE}")


def _content(folder: Path) -> list[Path]:
    """The folders of VMs in a run folder. Raises VmError, which names the first file that is not ours."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name in (LOCK, SERVER) or path.name.startswith((f"{MARKER}.", f"{SERVER}.")):
            continue
        if not _VM.fullmatch(path.name) or state_of(path) == "foreign":
            raise VmError(f"{printable(str(path))} is not ours: move it away, or {OTHERWISE}")
        found.append(path)
    return found


def _read(folder: Records, name: str) -> _Bond | None:
    raw = folder.read(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=_Bond)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise VmError(
            f"{folder.path / name} does not say which folders go together: restore it, or use new ones"
        ) from error
