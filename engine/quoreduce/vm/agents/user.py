"""The user agent that each ``quoreduce vm`` command of a user runs: it drives :mod:`quoreduce.vm.user`.

Its folder (mode 0700) holds all that gives access to the user's VMs::

    keys          the user's private keys
    policy.json   what is trusted: :mod:`quoreduce.trust.policy`
    vms/VMID      records of VMs, with the keys of their newest backups
    servers.json  the server of each name, as it was when the name was first asked for
    manager       the address of the manager last time
    place         identifies this folder: a copy notices it, and takes none of its records for the newest
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from quoreduce.errors import InputError, UsageError, VmError, one_line
from quoreduce.files import write_whole
from quoreduce.reading import read_file
from quoreduce.trust.policy import POLICY_BYTES_MAX, Policy, decode_policy
from quoreduce.vm import wire
from quoreduce.vm.agents import post
from quoreduce.vm.agents.channel import Address, Channel, ChannelClosed
from quoreduce.vm.agents.folder import Records, StateFolder
from quoreduce.vm.agents.link import enter
from quoreduce.vm.agents.names import user_prover
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.ports import Data, DataEnd, Persist, Received, Send, Tick, VmSpec
from quoreduce.vm.user import User
from quoreduce.vm.user_ports import NewVm, ReadBack, Tell, UserEvent, UserRequest, WantImage
from quoreduce.vm.user_record import UNFINISHED, Vm, decode_vm, encode_vm

TICK_S: Final = 0.5
WHO_S: Final = 10.0
SCRUB_S: Final = 30.0  # for a migration's source to attest that it overwrote its copy
IMAGE_FILE_MAX: Final = 300 << 20
EXPORT_BYTES_MAX: Final = 64 << 20
KEYS_BYTES_MAX: Final = 4096
EXPORT: Final = "quoreduce vm key 1"
LATER: Final = "it may still be done: find out with `quoreduce vm resume NAME`"
KEYS, POLICY, SERVERS, MANAGER, PLACE = "keys", "policy.json", "servers.json", "manager", "place"
Say = Callable[[str], None]


class _Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sign: wire.Key
    box: wire.Key


class _Export(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user's whole folder, for another place: it gives access to all of the user's VMs."""

    format: str
    keys: _Keys
    policy: bytes
    servers: bytes
    vms: list[bytes]


@dataclass
class RequestOutcome:
    """What came of requests: the lines for the user, how many have ended, and why one failed."""

    lines: list[str] = field(default_factory=list)
    ends: int = 0
    failure: str = ""


class UserAgent:
    """A user agent.

    Args:
        folder: the user's.
        say: takes lines as they come.
    """

    def __init__(self, folder: StateFolder, say: Say) -> None:
        self._folder, self._say = folder, say
        self._keys = keys = _keys(folder)
        self._notice_copy()
        records = [folder.read(name) or b"" for name in folder.names("vms")]
        self.core = User(keys.sign, keys.box, os.urandom, records)
        self._images: dict[bytes, bytes] = {}
        self._channel: Channel | None = None

    # What is known

    @property
    def vms(self) -> list[Vm]:
        """The VMs on record, by name."""
        return _sorted(self.core.vms.values())

    def vm(self, name: str) -> Vm:
        """The VM of this name, or of this id in hex. Raises UsageError if there is none."""
        found = [vm for vm in self.vms if name in (vm.name, vm.vmid.hex())]
        if not found:
            known = ", ".join(vm.name for vm in self.vms) or "none yet"
            raise UsageError(f"there is no VM {name}; there are: {known}")
        return found[0]

    def policy(self) -> bytes:
        """What the user trusts. Raises VmError if that is nothing yet."""
        raw = self._folder.read(POLICY)
        if raw is None:
            raise VmError(
                "no server is trusted yet: get the site's policy (`quoreduce vm policy`), and `quoreduce vm trust` it"
            )
        return decode_policy(raw).encode()

    def trust(self, files: Sequence[str]) -> Policy:
        """Trust what these policies describe, and nothing else. Raises UsageError if they are of different sites."""
        policies = [decode_policy(read_file(Path(name), POLICY_BYTES_MAX)) for name in files]
        if len({policy.registrar for policy in policies}) > 1:
            raise UsageError("these policies are of different sites, and a folder is for one: use another --state too")
        merged = msgspec.structs.replace(
            policies[-1],
            environments=_union(one.environments for one in policies),
            roots=_union(one.roots for one in policies),
        )
        self._folder.write(POLICY, merged.checked().encode())
        return merged

    def _notice_copy(self) -> None:
        """Mark the records of a copied or restored folder: orders of the other folder since are missing in them."""
        here = str(self._folder.path.stat().st_ino).encode()
        known = self._folder.read(PLACE)
        if known is not None and known != here:
            for name in self._folder.names("vms"):
                self._folder.write(name, encode_vm(decode_vm(self._folder.read(name) or b"").with_(stale=True)))
            self._say(
                "this folder is a copy of another: use one of them only; `vm resume` finds VMs that are elsewhere now"
            )
        if known != here:
            self._folder.write(PLACE, here)

    def export(self, path: Path) -> int:
        """Write keys and records to a file (mode 0600) that does not exist yet; return how many VMs are in it."""
        if path.exists():
            raise UsageError(f"{path} exists: choose another name")
        read = self._folder.read
        vms = [read(name) or b"" for name in self._folder.names("vms")]
        export = _Export(EXPORT, self._keys, read(POLICY) or b"", read(SERVERS) or b"", vms)
        write_whole(path, msgspec.json.encode(export), mode=0o600)
        return len(vms)

    # The manager

    def connect(self, named: str | None) -> None:
        """Connect to the manager: the one named, else QUOREDUCE_VM_MANAGER, else the last one."""
        said = named or os.environ.get("QUOREDUCE_VM_MANAGER") or (self._folder.read(MANAGER) or b"").decode()
        if not said:
            raise UsageError("name the manager: --manager unix:PATH or tcp:127.0.0.1:PORT")
        address = Address.parse(said)
        self._channel = enter(address, self.core.address, "", user_prover(self._keys.sign, self.core.keys.box))
        self._folder.write(MANAGER, str(address).encode())

    def close(self) -> None:
        """Disconnect; may be called again."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def server(self, name: str) -> str:
        """The server of this name, remembered since it was first asked for, so the manager cannot replace it later."""
        try:
            return self._asked(name)
        except ChannelClosed as error:
            raise VmError(f"the manager is gone ({error}): start it again, and repeat this") from error

    def _asked(self, name: str) -> str:
        channel = self._connected()
        channel.send(post.encode(post.Who()))
        limit = time.monotonic() + WHO_S
        while (frame := channel.receive(limit - time.monotonic())) is not None:
            answer = post.decode(frame)
            if isinstance(answer, post.Names):
                return self._known(name, answer.servers)
        raise VmError(f"the manager did not say within {WHO_S:g} s which servers there are")

    def _known(self, name: str, servers: dict[str, str]) -> str:
        known = _known_servers(self._folder)
        found = next((identity for other, identity in servers.items() if name in (other, identity)), None)
        if found is None:
            there = ", ".join(servers) or "none"
            raise VmError(
                f"no server {name} is connected to the manager: start it, or name another one; there are: {there}"
            )
        if known.setdefault(name, found) != found:
            was = known[name][:12]
            raise VmError(
                f"{name} is another server than before ({found[:12]}, was {was}): if that is right, name it in full"
            )
        self._folder.write(SERVERS, msgspec.json.encode(known))
        return found

    def names(self) -> dict[str, str]:
        """Names of servers by identity: of those that were asked for."""
        return server_names(self._folder)

    # Requests

    def launch(self, image: str, name: str, server: str, spec: VmSpec, timeout_s: float) -> RequestOutcome:
        """Launch a VM from an image file. Raises UsageError if the name is taken, InputError for a malformed image."""
        if any(vm.name == name and vm.phase not in ("idle", "terminated", "lost") for vm in self.vms):
            raise UsageError(f"there is a VM {name} already: choose another name")
        data = read_file(Path(image), IMAGE_FILE_MAX)
        Bundle.decode(data)
        for old in [vm for vm in self.vms if vm.name == name]:
            self._forget(old)
        vmid = os.urandom(16)
        self._images[vmid] = data
        event = NewVm(vmid, name, self.server(server), self.policy(), spec, sha256(data).digest(), len(data), _now())
        return self._until([event], timeout_s)

    def request(self, *requests: UserRequest, timeout_s: float) -> RequestOutcome:
        """Make these requests, all at once, and wait until each has ended. Raises VmError after ``timeout_s`` of
        silence.
        """
        return self._until(requests, timeout_s)

    def migrated(self, request: UserRequest, timeout_s: float) -> RequestOutcome:
        """Migrate; then wait a little for the receipt of the source, that it overwrote its copy."""
        answer = self._until([request], timeout_s)
        if not answer.failure:
            try:
                answer = self._listen(answer, 2, SCRUB_S)
            except VmError:
                self._say("the source has not said yet that it overwrote what it had")
        return answer

    def check_stored(self, vm: Vm) -> int:
        """Read the newest backup back from the manager's store and compare; return its bytes.

        The last backup that was read back stays known until this one is. Raises VmError if it differs.
        """
        assert vm.backup is not None
        manifest = wire.decode(vm.backup.manifest, wire.BackupManifest)
        again = f"back {vm.name} up again"
        if vm.whole is not None and vm.whole != vm.backup:
            again += f" (until then number {vm.whole.counter} can be restored)"
        try:
            return self._read_back(vm, manifest, again)
        except ChannelClosed as error:
            raise VmError(f"the manager is gone ({error}): {again}") from error

    def _read_back(self, vm: Vm, manifest: wire.BackupManifest, again: str) -> int:
        assert vm.backup is not None
        channel = self._connected()
        channel.send(post.encode(post.Get(manifest.order.hex(), 1)))
        digest, size = sha256(), 0
        while (frame := channel.receive(WHO_S)) is not None:
            part = post.decode(frame)
            if not isinstance(part, post.BlobPart):
                continue
            digest.update(len(part.body).to_bytes(4, "big") + part.body)  # as :mod:`quoreduce.vm.sealing` counts
            size += len(part.body)
            if part.reason:
                raise VmError(f"the manager does not have the backup: {part.reason}; {again}")
            if part.final:
                if digest.digest() != manifest.stream:
                    raise VmError(f"what the manager stored is not the backup: {again}")
                self._step(ReadBack(vm.vmid, vm.backup.counter), RequestOutcome())
                return size
        raise VmError(f"the manager does not give the backup back: {again}")

    def _until(self, events: Sequence[UserEvent], timeout_s: float) -> RequestOutcome:
        answer = RequestOutcome()
        try:
            for event in events:
                self._step(event, answer)
            return self._listen(answer, len(events), timeout_s)
        except ChannelClosed as error:
            raise VmError(f"the manager is gone ({error}); {LATER}") from error

    def _listen(self, answer: RequestOutcome, ends: int, timeout_s: float) -> RequestOutcome:
        """Take messages until this many requests have ended, or one has failed."""
        channel = self._connected()
        heard = time.monotonic()
        while answer.ends < ends and not answer.failure:
            frame = channel.receive(TICK_S)
            if frame is not None:
                heard = time.monotonic()
                self._hear(post.decode(frame), answer)
            elif time.monotonic() - heard > timeout_s:
                raise VmError(f"nothing came for {timeout_s:g} s; {LATER}")
            else:
                self._step(Tick(_now()), answer)
        return answer

    def _hear(self, message: post.Post, answer: RequestOutcome) -> None:
        if isinstance(message, post.Lost):
            self._say(f"the manager says: {message.reason}")
        elif isinstance(message, post.Letter):
            try:
                inner = wire.decode_message(message.body)
            except VmError as error:
                self._say(f"dropped: {one_line(error)}")
                return
            self._step(Received(inner, _now()), answer)

    def _step(self, event: UserEvent, answer: RequestOutcome) -> None:
        for command in self.core.step(event):
            if isinstance(command, Persist):
                self._folder.write(f"vms/{command.vmid.hex()}", command.record)
            elif isinstance(command, Send):
                letter = post.Letter(self.core.address, command.to, wire.encode(command.message))
                self._connected().send(post.encode(letter))
            elif isinstance(command, WantImage):
                for part in self._parts(command):
                    self._step(part, answer)
            else:
                self._tell(command, answer)

    def _tell(self, told: Tell, answer: RequestOutcome) -> None:
        answer.lines.append(told.text)
        if told.end == "failed":
            answer.failure = told.text
            return
        answer.ends += told.end == "done"
        self._say(told.text)

    def _parts(self, wanted: WantImage) -> Iterator[Data | DataEnd]:
        image = self._images[wanted.vmid]
        for at in range(0, len(image), wire.CHUNK_BYTES):
            yield Data(wanted.session, image[at : at + wire.CHUNK_BYTES])
        yield DataEnd(wanted.session)

    def _forget(self, vm: Vm) -> None:
        """Remove the record of a VM that runs nowhere, so that another can have its name."""
        if vm.backup is not None:
            raise UsageError(f"{vm.name} is {vm.phase}, and has a backup: restore it, or choose another name")
        if vm.left:
            raise UsageError(
                f"not all of {vm.name} is attested to be overwritten: terminate it again, or choose another name"
            )
        del self.core.vms[vm.vmid]
        self._folder.remove(f"vms/{vm.vmid.hex()}")

    def _connected(self) -> Channel:
        if self._channel is None:
            raise VmError("not connected to a manager")
        return self._channel


def recorded(folder: Records) -> list[Vm]:
    """The VMs on record in a user's folder, by name. Raises InputError or VmError for an unreadable record."""
    records = [folder.read(name) for name in folder.names("vms")]
    return _sorted(decode_vm(raw) for raw in records if raw is not None)


def server_names(folder: Records) -> dict[str, str]:
    """Names of servers by identity, as far as they were asked for."""
    return {identity: name for name, identity in _known_servers(folder).items()}


def _known_servers(folder: Records) -> dict[str, str]:
    try:
        return msgspec.json.decode(folder.read(SERVERS) or b"{}", type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InputError(f"{folder.path / SERVERS} holds no names of servers: restore it, or remove it") from error


def _sorted(vms: Iterable[Vm]) -> list[Vm]:
    return sorted(vms, key=lambda vm: (vm.name, vm.vmid))


def unfinished(vm: Vm) -> bool:
    """Whether an operation on this VM was begun and not finished."""
    return vm.phase in UNFINISHED


def own_id(path: Path) -> str:
    """The id of the user whose folder this is; makes keys if there are none. Works while a command uses the folder."""
    if (path / KEYS).exists():
        keys = _decoded(path, read_file(path / KEYS, KEYS_BYTES_MAX))
    else:
        with StateFolder(path, wait_s=10.0) as folder:
            keys = _keys(folder)
    return User(keys.sign, keys.box, os.urandom).address


def import_keys(folder: StateFolder, path: Path) -> int:
    """Take keys and records from an exported file into a folder without keys; return how many VMs there are.

    Orders of the other folder since the export are unknown: the VMs are marked as out of date until servers have
    answered.

    Raises:
        UsageError: the folder has keys.
        InputError: the file is malformed.
    """
    if folder.read(KEYS) is not None:
        raise UsageError(f"{folder.path} has keys already: name a new folder with --state")
    try:
        export = msgspec.json.decode(read_file(path, EXPORT_BYTES_MAX), type=_Export)
        vms = [decode_vm(raw).with_(stale=True) for raw in export.vms]
    except (msgspec.MsgspecError, UnicodeError, VmError) as error:
        raise InputError(f"{path} is no file of `quoreduce vm key export`: {one_line(error)}") from error
    if export.format != EXPORT:
        raise InputError(f"{path} is of another version: {export.format[:40]!r}, where {EXPORT!r} has to be")
    for vm in vms:
        folder.write(f"vms/{vm.vmid.hex()}", encode_vm(vm))
    for name, data in ((POLICY, export.policy), (SERVERS, export.servers)):
        if data:
            folder.write(name, data)
    folder.write(KEYS, msgspec.json.encode(export.keys))
    return len(vms)


def _keys(folder: StateFolder) -> _Keys:
    raw = folder.read(KEYS)
    if raw is None:
        keys = _Keys(os.urandom(32), os.urandom(32))
        folder.write(KEYS, msgspec.json.encode(keys))
        return keys
    return _decoded(folder.path, raw)


def _decoded(path: Path, raw: bytes) -> _Keys:
    try:
        return msgspec.json.decode(raw, type=_Keys)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InputError(f"{path / KEYS} holds no keys of a user: {one_line(error)}") from error


def _union(lists: Iterator[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for each in lists for one in each))


def _now() -> datetime:
    return datetime.now(UTC)
