"""A user agent's durable record of a VM, and what the agent tells its user about it. Pure.

A VM is in one of these phases here:

============ ======================================================== ==============================================
phase        where it may run                                         what the user can do
============ ======================================================== ==============================================
idle         nowhere: it was never started, or a start failed         launch anew; restore, if there is a backup
launching    at ``peer``, once                                        resolve
restoring    at ``peer``, once                                        resolve
running      at ``server``                                            migrate, backup, terminate, ask
migrating    at ``server`` or at ``peer``, never both                 resolve; abandon, if ``peer`` is gone for good
abandoning   at ``server``; ``peer`` was declared gone for good       resolve
backing up   at ``server``                                            resolve
terminating  at ``server``, or nowhere by the user's order            resolve, terminate again
terminated   nowhere, by the user's order                             restore
lost         nowhere, as a server attested or the user declared       restore; resolve
============ ======================================================== ==============================================

Servers may also hold a copy that they have not attested to be overwritten: ``left``. Such a copy is no place of the VM:
terminate and resolve end it there.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from quoreduce.errors import VmError, one_line
from quoreduce.vm import wire
from quoreduce.vm.ports import NO_ORDER

UserPhase = Literal[
    "idle",
    "launching",
    "restoring",
    "running",
    "migrating",
    "abandoning",
    "backing up",
    "terminating",
    "terminated",
    "lost",
]
UNFINISHED: Final = frozenset({"launching", "restoring", "migrating", "abandoning", "backing up", "terminating"})
NOWHERE: Final = frozenset({"idle", "terminated", "lost"})
LEFT_MAX: Final = 64


class KeptBackup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backup: its counter, its key K_B, its manifest as encoded."""

    counter: wire.Count
    key: wire.Key
    manifest: Annotated[bytes, msgspec.Meta(max_length=4096)]


class LeftCopy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A copy at a server that has not attested that it overwrote it.

    Attributes:
        server, sequence: where, and at which sequence.
        order, nonce: of the order whose receipt would say that it is overwritten, and its n_U.
        about: the migration that left it, as long as the server was not told to end it; else zeros.
    """

    server: wire.Server
    sequence: wire.Count
    order: wire.Hash = NO_ORDER
    nonce: wire.Hash = NO_ORDER
    about: wire.Hash = NO_ORDER


class Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the user agent knows of a VM, durably. It holds the key of its backup: the file is for its owner only.

    Attributes:
        vmid, name, policy, spec, image, size: of the VM; ``size`` in bytes, of the image.
        phase, server, peer: see above.
        sequence: of its place, as far as is known.
        number: of the newest order.
        counter: of the newest backup that was ordered.
        order, nonce: digest and n_U of the order under way, or of the last one.
        about: while abandoning, that of the migration.
        given: while launching or restoring: whether a TCOM was given the VM's key; before that it cannot run.
        backup: the newest.
        whole: the newest that was read back from storage; the one before it, if the newest was not.
        chosen: while restoring: which of them.
        left: copies that are not attested to be overwritten.
        stale: another folder with the same keys has given orders, or may have: what is written here may be out of date.
    """

    vmid: wire.Id
    name: Annotated[str, msgspec.Meta(max_length=128)]
    policy: wire.Body
    spec: wire.Spec
    image: wire.Hash
    size: wire.Count
    phase: UserPhase
    server: wire.Server = ""
    peer: wire.Server = ""
    sequence: wire.Count = 0
    number: wire.Count = 0
    counter: wire.Count = 0
    order: wire.Hash = NO_ORDER
    nonce: wire.Hash = NO_ORDER
    about: wire.Hash = NO_ORDER
    given: bool = False
    backup: KeptBackup | None = None
    whole: KeptBackup | None = None
    chosen: KeptBackup | None = None
    left: Annotated[tuple[LeftCopy, ...], msgspec.Meta(max_length=LEFT_MAX)] = ()
    stale: bool = False

    def with_(self, **changes: Any) -> Vm:
        """A copy in which these attributes are different."""
        return msgspec.structs.replace(self, **changes)

    def leaving(self, *copies: LeftCopy) -> Vm:
        """With these copies left behind; of those at one server the newest counts."""
        servers = {copy.server for copy in copies}
        kept = (*(one for one in self.left if one.server not in servers), *copies)
        return self.with_(left=kept[-LEFT_MAX:])

    def cleared(self, server: str) -> Vm:
        """With nothing left at this server."""
        return self.with_(left=tuple(one for one in self.left if one.server != server))

    def copy_at(self, server: str) -> LeftCopy | None:
        """What was left at this server."""
        return next((one for one in self.left if one.server == server), None)

    def source(self) -> LeftCopy | None:
        """The copy at the source of the last migration, if it was not told to end it: it can go on there (abandon)."""
        return next((one for one in self.left if one.about != NO_ORDER and one.sequence + 1 == self.sequence), None)


def decode_vm(raw: bytes) -> Vm:
    """Decode what :class:`Persist` of a user agent has made durable. Raises VmError if malformed."""
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise VmError(f"no record of a VM: {one_line(error)}") from error


def encode_vm(vm: Vm) -> bytes:
    """Encode a record."""
    return _ENCODER.encode(vm)


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Vm)


def places(vm: Vm) -> tuple[str, ...]:
    """Where a VM may run."""
    if vm.phase in NOWHERE:
        return ()
    if vm.phase in ("launching", "restoring"):
        return (vm.peer,)
    return (vm.server, vm.peer) if vm.phase in ("migrating", "abandoning") else (vm.server,)


def about(vm: Vm) -> bytes:
    """The order that has to come to an end."""
    return vm.about if vm.phase == "abandoning" else vm.order


def copies(vm: Vm) -> tuple[LeftCopy, ...]:
    """Its places as copies that would be left there, if they were given up."""
    if vm.phase in ("launching", "restoring"):
        return (LeftCopy(vm.peer, vm.sequence, about=vm.order),) if vm.given else ()
    if vm.phase in ("migrating", "abandoning"):
        order = about(vm)
        return LeftCopy(vm.server, vm.sequence, about=order), LeftCopy(vm.peer, vm.sequence + 1, about=order)
    return (LeftCopy(vm.server, vm.sequence, about=vm.order),) if vm.phase not in NOWHERE else ()


def hint(vm: Vm) -> str:
    """What the user can do."""
    if vm.phase in UNFINISHED:
        return "something was begun with it and not finished: resolve it first"
    if vm.phase == "running":
        return "it can be migrated, backed up and terminated"
    return "restore it from its backup" if vm.backup else "it has no backup: launch a new one"


def left_text(vm: Vm) -> str:
    """Which servers have not attested that they overwrote what they had of a VM."""
    servers = ", ".join(one.server[:12] for one in vm.left)
    return f"server {servers} has not attested that it overwrote what it had"


def how_to_resume(vm: Vm, heard: dict[str, str]) -> str:
    """What the user can do when servers are silent."""
    said = "; ".join(f"server {server[:12]} says {phase}" for server, phase in heard.items()) or "no server answers"
    if vm.phase in NOWHERE:
        source = vm.source()
        back = f"; or abandon the migration: server {source.server[:12]} has it as it was then" if source else ""
        return f"{vm.name} is {vm.phase}, and {left_text(vm)} ({said}): resume it when that server answers{back}"
    if vm.phase in ("migrating", "abandoning"):
        return (
            f"{vm.name}: {said}. It runs on server {vm.server[:12]} or {vm.peer[:12]}, or waits at the former for the"
            f" latter: resolve it when both answer; if {vm.peer[:12]} is gone for good, abandon the migration;"
            f" if {vm.server[:12]} is, declare it lost and restore it"
        )
    where = " or ".join(server[:12] for server in places(vm))
    source = vm.source()
    back = f"abandon the migration (server {source.server[:12]} still has it as it was then), or " if source else ""
    return (
        f"{vm.name}: {said}. Resolve it when server {where} answers; if that is gone for good,"
        f" {back}declare it lost and restore it"
    )
