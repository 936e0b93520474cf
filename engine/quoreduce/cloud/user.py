"""The core of a user agent: orders, what it believes of the answers, and what it tells its user. Pure.

It trusts its own records and what is attested under its VM's policy; all else (a Refusal, silence, who a message comes from) is a
hint. Records are durable before an order leaves. A VM is in one of these phases here:

============ ================================================================ ==============================================
phase        where it may run                                                 what the user can do
============ ================================================================ ==============================================
idle         nowhere: it was never started, or a start failed                 launch anew; restore, if there is a backup
launching    at ``peer``, once                                                resolve
restoring    at ``peer``, once                                                resolve
running      at ``server``                                                    migrate, backup, terminate, ask
migrating    at ``server`` or at ``peer``, never both                         resolve; abandon, if ``peer`` is gone for good
abandoning   at ``server``; ``peer`` was declared gone for good               resolve
backing up   at ``server``                                                    resolve
terminating  at ``server``, or nowhere by the user's order                    resolve, terminate again
terminated   nowhere, by the user's order                                     restore
lost         nowhere, as a server attested or the user declared               restore
============ ================================================================ ==============================================

Whatever was interrupted is resolved in one way: an order to *settle* goes to each server where the VM may be. It ends what can be
ended safely, uses the interrupted order up, and is answered by an attested status, which says where the VM is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quoreduce.cloud import wire
from quoreduce.cloud.evidence import Attested
from quoreduce.cloud.ports import (
    IMAGE_BYTES_MAX,
    NO_ORDER,
    REFUSED,
    Data,
    DataEnd,
    Persist,
    Received,
    Send,
    Tick,
    VmSpec,
    opened,
)
from quoreduce.cloud.sealing import StreamSealer, hpke_open, hpke_seal
from quoreduce.cloud.tcom.backup import KEY
from quoreduce.cloud.tcom.launch import IMAGE_STREAM, PACKAGE
from quoreduce.errors import VmError, one_line
from quoreduce.trust.policy import decode_policy

PATIENCE: Final = timedelta(seconds=25)  # without news of an order; then it is settled
RESOLVING: Final = timedelta(seconds=25)  # for servers to answer where the VM is
ASK_AGAIN: Final = timedelta(seconds=3)
LOOK: Final = timedelta(seconds=5)  # between looks at whether an order goes on
LONG: Final = timedelta(hours=1)  # for an order that goes on all the time
VMS_MAX: Final = 4096
RESTORED: Final = 3  # what a restore adds to the sequence: above what a migration and its abandon could have made of it

UserPhase = Literal[
    "idle", "launching", "restoring", "running", "migrating", "abandoning", "backing up", "terminating", "terminated", "lost"
]
UNFINISHED: Final = frozenset({"launching", "restoring", "migrating", "abandoning", "backing up", "terminating"})
GOING_ON: Final[dict[UserPhase, frozenset[str]]] = {  # what a server's phase is while an order goes on
    "idle": frozenset(),
    "launching": frozenset({"launching"}),
    "restoring": frozenset({"launching"}),
    "running": frozenset(),
    "migrating": frozenset({"leaving", "arriving", "prepared", "resuming"}),
    "abandoning": frozenset(),
    "backing up": frozenset({"running"}),
    "terminating": frozenset({"ending"}),
    "terminated": frozenset(),
    "lost": frozenset(),
}
NOWHERE: Final = frozenset({"idle", "terminated", "lost"})


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backup: its counter, its key K_B, its manifest as encoded."""

    counter: wire.Count
    key: wire.Key
    manifest: Annotated[bytes, msgspec.Meta(max_length=4096)]


class Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the user agent knows of a VM, durably. It holds the key of its backup: the file is for its owner only.

    Attributes:
        vmid, name, policy, spec, image, size: of the VM; ``size`` in bytes, of the image.
        phase, server, peer: see above.
        sequence: of its place, as far as is known. number: of the newest order. counter: of the newest backup that was ordered.
        order, nonce: digest and n_U of the order under way, or of the last one. about: while abandoning, that of the migration.
        given: while launching or restoring: whether a TCOM was given the VM's key; before that it cannot run.
        backup: the newest. whole: the newest that was read back from storage; the one before it, if the newest was not.
        chosen: while restoring: which of them.
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
    backup: Kept | None = None
    whole: Kept | None = None
    chosen: Kept | None = None

    def with_(self, **changes: Any) -> Vm:
        """A copy in which these attributes are different."""
        return msgspec.structs.replace(self, **changes)


def decode_vm(raw: bytes) -> Vm:
    """Decode what :class:`Persist` of a user agent has made durable; VmError if it is none."""
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise VmError(f"no record of a VM: {one_line(error)}") from error


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Vm)


@dataclass(frozen=True, slots=True)
class NewVm:
    """The user wants a VM launched. ``vmid``: 16 fresh random bytes; ``image``: SHA-256 of the bundle of ``size`` bytes."""

    vmid: bytes
    name: str
    server: str
    policy: bytes
    spec: VmSpec
    image: bytes
    size: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Wish:
    """The user wants something done with a VM.

    ``ask`` and ``resolve`` find out where it is, the latter ending what is under way. ``abandon`` declares that a migration's
    destination is gone for good, ``declare lost`` that every place where it may run is. ``server``: the destination of a migrate,
    the place of a restore. ``policy``: given anew for a migrate or restore, else empty. ``counter``: which backup to restore, 0
    for the newest.
    """

    operation: Literal["migrate", "backup", "restore", "terminate", "ask", "resolve", "abandon", "declare lost"]
    vmid: bytes
    at: datetime
    server: str = ""
    policy: bytes = b""
    counter: int = 0


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Storage gave this backup back as it was; until then the one before it is not forgotten."""

    vmid: bytes
    counter: int


UserEvent: TypeAlias = NewVm | Wish | ReadBack | Received | Data | DataEnd | Tick


@dataclass(frozen=True, slots=True)
class WantImage:
    """Give the image of this VM as Data, ..., DataEnd of this session."""

    session: bytes
    vmid: bytes


@dataclass(frozen=True, slots=True)
class Tell:
    """One line for the user. ``end``: the wish is ``done``, or has ``failed`` and this says what to do; empty: it goes on."""

    vmid: bytes
    text: str
    end: Literal["", "done", "failed"] = ""


UserCommand: TypeAlias = Persist | Send | WantImage | Tell


@dataclass(slots=True)
class _Active:
    """What the user waits for: since when, whether it is being resolved, and the questions that are open."""

    since: datetime
    asked: datetime
    resolving: bool = False
    nonce: bytes = b""  # n_T, when an offer was accepted
    stream: StreamSealer | None = None
    settles: dict[str, tuple[wire.Signed, bytes]] = field(default_factory=dict)  # server -> order to settle, and its digest
    queries: dict[bytes, str] = field(default_factory=dict)  # nonce -> server
    heard: dict[str, str] = field(default_factory=dict)  # server -> phase
    quiet: bool = False  # the questions are not the user's: is it still going on?
    begun: datetime | None = None
    going: dict[str, datetime] = field(default_factory=dict)  # server -> when it last said that the order goes on
    sent: bool = False  # a part of the image, since the last tick


class User:
    """The core of the user agent.

    Args:
        sign, box: the user's private keys, Ed25519 and X25519, 32 bytes each.
        random: gives so many random bytes.
        records: of an earlier life, as they were persisted.
    """

    def __init__(self, sign: bytes, box: bytes, random: Callable[[int], bytes], records: Iterable[bytes] = ()) -> None:
        self._sign, self._box, self._random = sign, box, random
        self._public = X25519PrivateKey.from_private_bytes(box).public_key().public_bytes_raw()
        self.keys = wire.sign(sign, self._public, wire.Package(NO_ORDER, NO_ORDER, b"")).keys
        self.vms: dict[bytes, Vm] = {one.vmid: one for one in map(decode_vm, records)}
        self._active: dict[bytes, _Active] = {}

    @property
    def address(self) -> str:
        """The user's id."""
        return self.keys.user

    def step(self, event: UserEvent) -> list[UserCommand]:
        """Go on. Nothing is raised: a wish that cannot be, and an answer that is refused, are told with the reason."""
        match event:
            case NewVm():
                return self._wish(event.vmid, lambda: self._launch(event))
            case Wish():
                return self._wish(event.vmid, lambda: self._ordered(event))
            case ReadBack():
                return self._read_back(event)
            case Received():
                return self._received(event)
            case Data():
                return self._image(event.session, event.data, False)
            case DataEnd():
                return self._image(event.session, b"", True)
        return self._tick(event.at)

    # Wishes

    def _wish(self, vmid: bytes, act: Callable[[], list[UserCommand]]) -> list[UserCommand]:
        try:
            return act()
        except REFUSED as error:
            return [Tell(vmid, one_line(error), "failed")]

    def _launch(self, new: NewVm) -> list[UserCommand]:
        if new.vmid in self.vms or len(self.vms) >= VMS_MAX:
            raise VmError("there is a VM of that id already, or too many: take a fresh id, or forget old ones")
        if not 0 < new.size <= IMAGE_BYTES_MAX:
            raise VmError(f"an image has 1 to {IMAGE_BYTES_MAX} bytes, not {new.size}")
        decode_policy(new.policy)
        vm = Vm(new.vmid, new.name, new.policy, new.spec.wire(), new.image, new.size, "idle", peer=new.server, sequence=1)
        return self._order(vm, "launching", "launch", new.at, server=new.server, policy=new.policy)

    def _ordered(self, wish: Wish) -> list[UserCommand]:
        vm = self.vms.get(wish.vmid)
        if vm is None:
            raise VmError("there is no such VM: see `quoreduce vm list`")
        match wish.operation:
            case "ask":
                return self._ask(vm, wish.at)
            case "resolve":
                return self._resolve(vm, wish.at)
            case "declare lost":
                return self._declare_lost(vm)
            case "restore":
                return self._restore(vm, wish)
            case "abandon":
                return self._abandon(vm, wish.at)
        if wish.operation == "terminate" and vm.phase in ("lost", "terminating") and vm.server:
            return self._order(vm, "terminating", "terminate", wish.at, server=vm.server)
        if vm.phase != "running":
            raise VmError(f"{vm.name} is {vm.phase}: " + _hint(vm))
        if wish.operation == "terminate":
            return self._order(vm, "terminating", "terminate", wish.at, server=vm.server)
        if wish.operation == "backup":
            vm = vm.with_(counter=vm.counter + 1)
            return self._order(vm, "backing up", "backup", wish.at, server=vm.server, counter=vm.counter)
        if wish.server in ("", vm.server):
            raise VmError(f"{vm.name} is there already: name another server")
        policy = wish.policy or vm.policy
        decode_policy(policy)
        vm = vm.with_(peer=wish.server, policy=policy)
        return self._order(vm, "migrating", "migrate", wish.at, server=vm.server, destination=wish.server, policy=policy)

    def _restore(self, vm: Vm, wish: Wish) -> list[UserCommand]:
        if vm.phase not in NOWHERE:
            raise VmError(
                f"{vm.name} may run: it is {vm.phase}; terminate it first, or, if its servers are gone for good, declare it lost"
            )
        if vm.backup is None or not wish.server:
            raise VmError(f"{vm.name} has no backup to restore" if wish.server else "name a server to restore it on")
        known = [one for one in (vm.backup, vm.whole) if one is not None]
        chosen = next((one for one in known if wish.counter in (0, one.counter)), None)
        if chosen is None:
            numbers = ", ".join(str(number) for number in sorted({one.counter for one in known}))
            raise VmError(f"of {vm.name} there is no backup {wish.counter} that could be restored; there are: {numbers}")
        vm = vm.with_(peer=wish.server, policy=wish.policy or vm.policy, sequence=vm.sequence + RESTORED, chosen=chosen)
        decode_policy(vm.policy)
        return self._order(vm, "restoring", "restore", wish.at, server=vm.peer, policy=vm.policy, counter=chosen.counter)

    def _read_back(self, event: ReadBack) -> list[UserCommand]:
        vm = self.vms.get(event.vmid)
        if vm is None or vm.backup is None or vm.backup.counter != event.counter:
            return []
        return [self._keep(vm.with_(whole=vm.backup))]

    def _abandon(self, vm: Vm, at: datetime) -> list[UserCommand]:
        if vm.phase not in ("migrating", "abandoning"):
            raise VmError(f"{vm.name} is {vm.phase}: only a migration can be abandoned")
        return self._order(vm, "abandoning", "abandon", at, server=vm.server, about=_about(vm))

    def _declare_lost(self, vm: Vm) -> list[UserCommand]:
        self._active.pop(vm.vmid, None)
        text = f"{vm.name} is declared lost: if a server that had it comes back, it may run there again; then terminate it there"
        return [self._keep(vm.with_(phase="lost")), Tell(vm.vmid, text, "done")]

    def _order(
        self, vm: Vm, phase: UserPhase, operation: wire.Operation, at: datetime, server: str, destination: str = "",
        policy: bytes = b"", counter: int = 0, about: bytes = NO_ORDER,
    ) -> list[UserCommand]:  # fmt: skip
        """Write down what is wanted, then order it."""
        nonce = self._random(32)
        number = vm.number + 1
        order = wire.Order(operation, vm.vmid, vm.sequence, number, nonce, server, destination, policy, counter, about)
        signed = wire.sign(self._sign, self._public, order)
        vm = vm.with_(phase=phase, number=number, order=wire.digest(signed.body), nonce=nonce, about=about, given=False)
        self._active[vm.vmid] = _Active(at, at, begun=at)
        return [self._keep(vm), Send(server, signed)]

    # Answers

    def _received(self, event: Received) -> list[UserCommand]:
        message = event.message
        vm: Vm | None = None
        try:
            if isinstance(message, wire.Refusal):
                return self._refusal(message, event.at)
            if not isinstance(message, wire.Attested):
                return []
            said = wire.decode_said(message.content)
            if isinstance(said, wire.Status):
                vm = self.vms.get(said.vmid)
                return self._status(vm, message, event.at) if vm else []
            vm = self._of(said.order)
            if vm is None:
                return []
            if isinstance(said, wire.Offer):
                return self._offer(vm, message, event.at)
            return self._receipt(vm, message, said.operation, event.at) if isinstance(said, wire.Receipt) else []
        except REFUSED as error:
            return [Tell(vm.vmid if vm else bytes(16), f"refused: {one_line(error)}")]

    def _offer(self, vm: Vm, message: wire.Attested, at: datetime) -> list[UserCommand]:
        """A TCOM is ready: if all of its evidence holds, seal the VM's key to it, once; if not, this order has come to nothing.
        """
        active = self._active.get(vm.vmid)
        if vm.phase not in ("launching", "restoring") or vm.given or active is None:
            return []
        try:
            return self._give(vm, active, message, at)
        except REFUSED as error:
            return self._nowhere(vm, "idle", f"{vm.name}: server {vm.peer[:12]} is refused: {one_line(error)}")

    def _give(self, vm: Vm, active: _Active, message: wire.Attested, at: datetime) -> list[UserCommand]:
        operation: Literal["launch", "restore"] = "launch" if vm.phase == "launching" else "restore"
        offer, found = opened(message, wire.Offer, vm.order, operation, vm.vmid, vm.policy, at)
        if found.server != vm.peer:
            raise VmError(f"the offer is of server {found.server[:12]}, the order names {vm.peer[:12]}: an impostor")
        if offer.key != found.session_key or offer.order != vm.order:
            raise VmError("the offer has another key or order than its evidence")
        active.nonce, active.since = offer.nonce, at
        if operation == "launch":
            key = self._random(32)
            active.stream = StreamSealer(key, IMAGE_STREAM + vm.order, IMAGE_BYTES_MAX)
            secrets = wire.Secrets(key, offer.nonce, vm.image, vm.size, vm.spec)
        else:
            chosen = vm.chosen
            assert chosen is not None
            kept = wire.decode(chosen.manifest, wire.Manifest)
            secrets = wire.Secrets(
                chosen.key, offer.nonce, kept.image, kept.size, kept.spec, chosen.manifest, chosen.counter
            )  # fmt: skip
        sealed = hpke_seal(offer.key, PACKAGE + vm.order, wire.encode(secrets))
        package = wire.sign(self._sign, self._public, wire.Package(vm.order, offer.nonce, sealed))
        told = Tell(vm.vmid, f"server {found.server[:12]} attested itself: environment {found.environment[:12]}")
        wanted: list[UserCommand] = [WantImage(vm.order, vm.vmid)] if operation == "launch" else []
        return [told, self._keep(vm.with_(given=True)), Send(vm.peer, package), *wanted]

    def _image(self, session: bytes, data: bytes, final: bool) -> list[UserCommand]:
        vm = self._of(session)
        active = self._active.get(vm.vmid) if vm else None
        if vm is None or active is None or active.stream is None:
            return []
        active.sent = True
        return [Send(vm.peer, wire.Chunk(session, active.stream.chunk(data, final)))]

    def _receipt(self, vm: Vm, message: wire.Attested, operation: wire.TcomOperation, at: datetime) -> list[UserCommand]:
        receipt, found = opened(message, wire.Receipt, vm.order, operation, vm.vmid, vm.policy, at)
        if (receipt.vmid, receipt.order, receipt.user_nonce) != (vm.vmid, vm.order, vm.nonce):
            raise VmError("the receipt is for another order")
        if found.server not in (vm.server, vm.peer):
            raise VmError(f"the receipt is of server {found.server[:12]}, which has no part in this")
        if operation == "migrate_out" and vm.phase == "running" and found.server != vm.server:
            how = "is overwritten" if receipt.done else f"is not overwritten: {receipt.reason}"
            return [Tell(vm.vmid, f"what {vm.name} left on server {found.server[:12]} {how}", "done")]
        if vm.phase not in UNFINISHED:
            return []
        if not receipt.done:
            how = "" if vm.phase == "abandoning" else "failed: "
            return [Tell(vm.vmid, how + receipt.reason), *self._resolve(vm, at)]
        return self._done(vm, receipt, found)

    def _done(self, vm: Vm, receipt: wire.Receipt, found: Attested) -> list[UserCommand]:
        active = self._active.get(vm.vmid)
        where = found.server[:12]
        match vm.phase, receipt.operation:
            case ("launching", "launch") | ("restoring", "restore") if found.server == vm.peer:
                if (receipt.digest, found.image) != (vm.image, vm.image):
                    raise VmError("the receipt is for another image")
                if active is not None and active.nonce and receipt.nonce != active.nonce:
                    raise VmError("the receipt is for another offer")
                return self._at(vm, vm.peer, vm.sequence, f"runs on server {where}; it was measured as ordered", "done")
            case "migrating", "migrate_in" if found.server == vm.peer and receipt.sequence == vm.sequence + 1:
                if found.image != vm.image:
                    raise VmError("the receipt is for another image")
                return self._at(vm, vm.peer, receipt.sequence, f"runs on server {where} now", "done")
            case "migrating", "migrate_out" if found.server == vm.server and receipt.sequence == vm.sequence + 1:
                return self._at(vm, vm.peer, receipt.sequence, f"runs on server {vm.peer[:12]} now", "done")
            case "backing up", "backup" if found.server == vm.server:
                return self._backed_up(vm, receipt)
            case "terminating", "terminate" if found.server == vm.server:
                if found.report != receipt.report:
                    raise VmError("the receipt has another report than its evidence")
                self._active.pop(vm.vmid, None)
                text = f"{vm.name} is terminated; server {where} attests that all of it was overwritten"
                return [self._keep(vm.with_(phase="terminated")), Tell(vm.vmid, text, "done")]
        raise VmError(f"a receipt for {receipt.operation} by server {where} is nothing that was ordered")

    def _backed_up(self, vm: Vm, receipt: wire.Receipt) -> list[UserCommand]:
        key = wire.decode(hpke_open(self._box, KEY + vm.order, receipt.sealed), wire.BackupKey)
        manifest = wire.decode(receipt.manifest, wire.Manifest)
        if key.manifest != wire.digest(receipt.manifest) or not key.counter == manifest.counter == vm.counter:
            raise VmError("the receipt's manifest is not that of its key")
        if (manifest.vmid, manifest.image, manifest.order) != (vm.vmid, vm.image, vm.order):
            raise VmError("the receipt's manifest is of another VM")
        kept = vm.with_(backup=Kept(key.counter, key.key, receipt.manifest))
        return self._at(kept, vm.server, vm.sequence, f"is backed up (number {key.counter}, {manifest.size} bytes)", "done")

    def _refusal(self, refusal: wire.Refusal, at: datetime) -> list[UserCommand]:
        """Nobody vouches for it: so find out what is the case."""
        vm = self._of(refusal.order)
        active = self._active.get(vm.vmid) if vm else None
        if vm is None or active is None or active.resolving:
            return []
        return [Tell(vm.vmid, f"not done: {refusal.reason}"), *self._resolve(vm, at)]

    # Where is it?

    def _ask(self, vm: Vm, at: datetime) -> list[UserCommand]:
        servers = _places(vm)
        if not servers:
            return [Tell(vm.vmid, f"{vm.name} is {vm.phase}: {_hint(vm)}", "done")]
        active = self._active.setdefault(vm.vmid, _Active(at, at))
        active.quiet = False
        return self._query(vm, active, servers)

    def _query(self, vm: Vm, active: _Active, servers: Iterable[str]) -> list[UserCommand]:
        commands: list[UserCommand] = []
        for server in servers:
            nonce = self._random(32)
            active.queries = {one: who for one, who in active.queries.items() if who != server} | {nonce: server}
            commands.append(Send(server, wire.StatusQuery(vm.vmid, nonce, self.address)))
        return commands

    def _resolve(self, vm: Vm, at: datetime) -> list[UserCommand]:
        """Settle what is under way wherever the VM may be."""
        if vm.phase in ("launching", "restoring") and not vm.given:
            return self._nowhere(vm, "idle", f"{vm.name} was not started, and will not be: no server was given its key")
        servers = _places(vm)
        if not servers:
            return [Tell(vm.vmid, f"{vm.name} is {vm.phase}: {_hint(vm)}", "done")]
        vm = vm.with_(number=vm.number + 1)
        active = self._active[vm.vmid] = _Active(at, at, resolving=True)
        for server in servers:
            order = wire.Order(
                "settle", vm.vmid, vm.sequence, vm.number, self._random(32), server, about=_about(vm)
            )  # fmt: skip
            signed = wire.sign(self._sign, self._public, order)
            active.settles[server] = signed, wire.digest(signed.body)
        return [self._keep(vm), *(Send(server, signed) for server, (signed, _) in active.settles.items())]

    def _status(self, vm: Vm, message: wire.Attested, at: datetime) -> list[UserCommand]:
        active = self._active.get(vm.vmid)
        said = wire.decode(message.content, wire.Status)
        if active is None:
            return []
        expected = active.queries | {digest: server for server, (_, digest) in active.settles.items()}
        server = expected.get(said.nonce)
        if server is None:
            return []
        status, found = opened(message, wire.Status, said.nonce, "status", vm.vmid, vm.policy, at)
        if found.server != server:
            raise VmError(f"server {found.server[:12]} answers for {server[:12]}: an impostor")
        active.heard[server] = status.phase
        if not active.resolving:
            active.queries.pop(said.nonce, None)
            goes_on = status.busy and status.order == vm.order and status.phase in GOING_ON[vm.phase]
            if goes_on and active.begun is not None and at - active.begun < LONG:
                active.going[server] = at
                active.since = max(active.since, min(active.going.get(one, active.begun) for one in _places(vm)))
            if active.quiet and status.order == vm.order and not status.busy and vm.phase in UNFINISHED:
                return self._resolve(vm, at)  # the server was begun anew, or what it said was lost
            return [] if active.quiet else self._asked(vm, active, server, status, found)
        if status.number < vm.number:
            return []  # the order to settle is still on its way
        return self._judge(vm, server, status)

    def _asked(self, vm: Vm, active: _Active, server: str, status: wire.Status, found: Attested) -> list[UserCommand]:
        text = f"server {server[:12]}, environment {found.environment[:12]}, attests: {vm.name} is {status.phase} there"
        end: Literal["", "done"] = ""
        if vm.phase not in UNFINISHED and not active.queries:
            self._active.pop(vm.vmid, None)
            end = "done"
        return [Tell(vm.vmid, f"{text} (sequence {status.sequence})", end)]

    def _judge(self, vm: Vm, server: str, status: wire.Status) -> list[UserCommand]:
        """What a server says after it was told to settle; nothing, if that decides nothing yet."""
        failed = "failed" if vm.phase in UNFINISHED else "done"
        match vm.phase, status.phase:
            case (("launching" | "restoring"), "running") if status.order == vm.order:
                return self._at(vm, server, status.sequence, f"runs on server {server[:12]}", "done")
            case (("launching" | "restoring"), ("aborted" | "moved" | "terminated" | "running" | "leaving" | "released")):
                return self._nowhere(vm, "idle", f"{vm.name} was not started on server {server[:12]}, and will not be")
            case _, "lost":
                return self._nowhere(
                    vm.with_(server=server), "lost", f"server {server[:12]} attests that {vm.name} is gone there"
                )
            case (("migrating" | "abandoning"), "running") if server == vm.peer and status.sequence > vm.sequence:
                return self._at(vm, server, status.sequence, f"runs on server {server[:12]} now", "done")
            case (("migrating" | "abandoning"), "running") if server == vm.server:
                moved = vm.phase == "migrating"
                text = f"runs on server {server[:12]}" + (
                    " as before; this order is used up, migrate it anew" if moved else " again"
                )
                return self._at(vm, server, status.sequence, text, "failed" if moved else "done")
            case (("migrating" | "abandoning"), "moved") if server == vm.server:
                return self._at(vm, vm.peer, vm.sequence + 1, f"runs on server {vm.peer[:12]} now", "done")
            case (("running" | "backing up" | "terminating"), "running"):
                text = "" if failed == "done" else f"; the {_NOUNS[vm.phase]} was not done, order it anew"
                return self._at(vm, server, status.sequence, f"runs on server {server[:12]}{text}", failed)
            case "terminating", "terminated":
                return self._nowhere(vm, "terminated", f"{vm.name} is terminated; server {server[:12]} attests it", "done")
            case "terminating", "ending":
                self._active.pop(vm.vmid, None)
                return [Tell(vm.vmid, f"{vm.name} is ended, but not all of it is overwritten: terminate it again", "failed")]
            case "running", ("aborted" | "moved" | "terminated" | "unknown"):
                return self._nowhere(vm, "lost", f"server {server[:12]} attests that {vm.name} is {status.phase} there")
        return []

    def _at(self, vm: Vm, server: str, sequence: int, text: str, end: Literal["done", "failed"] | str) -> list[UserCommand]:
        self._active.pop(vm.vmid, None)
        peer = vm.server if vm.server != server else vm.peer
        kept = self._keep(vm.with_(phase="running", server=server, peer=peer, sequence=sequence))
        return [kept, Tell(vm.vmid, f"{vm.name} {text}", "done" if end == "done" else "failed")]

    def _nowhere(self, vm: Vm, phase: UserPhase, text: str, end: Literal["done", "failed"] = "failed") -> list[UserCommand]:
        self._active.pop(vm.vmid, None)
        vm = vm.with_(phase=phase)
        return [self._keep(vm), Tell(vm.vmid, text if end == "done" else f"{text}: {_hint(vm)}", end)]

    def _tick(self, now: datetime) -> list[UserCommand]:
        commands: list[UserCommand] = []
        for vmid, active in list(self._active.items()):
            vm = self.vms[vmid]
            if active.sent:
                active.since, active.sent = now, False
            if active.resolving or vm.phase not in UNFINISHED:
                if now - active.since >= RESOLVING:
                    self._active.pop(vmid)
                    commands.append(Tell(vmid, _how_to_resume(vm, active.heard), "failed"))
                elif now - active.asked >= ASK_AGAIN:
                    active.asked = now
                    commands += [Send(server, signed) for server, (signed, _) in active.settles.items()]
                    commands += self._query(vm, active, _places(vm))
            elif now - active.since >= PATIENCE:
                commands += [Tell(vmid, "no answer: finding out where it is"), *self._resolve(vm, now)]
            elif now - active.asked >= LOOK:
                active.asked, active.quiet = now, True
                commands += self._query(vm, active, _places(vm))
        return commands

    def _of(self, order: bytes) -> Vm | None:
        return next((vm for vm in self.vms.values() if vm.order == order and order != NO_ORDER), None)

    def _keep(self, vm: Vm) -> Persist:
        self.vms[vm.vmid] = vm
        return Persist(vm.vmid, _ENCODER.encode(vm))


_NOUNS: Final = {"backing up": "backup", "terminating": "termination"}


def _places(vm: Vm) -> tuple[str, ...]:
    """Where a VM may run."""
    if vm.phase in NOWHERE:
        return ()
    if vm.phase in ("launching", "restoring"):
        return (vm.peer,)
    return (vm.server, vm.peer) if vm.phase in ("migrating", "abandoning") else (vm.server,)


def _about(vm: Vm) -> bytes:
    """The order that has to come to an end."""
    return vm.about if vm.phase == "abandoning" else vm.order


def _hint(vm: Vm) -> str:
    """What the user can do."""
    if vm.phase in UNFINISHED:
        return "something was begun with it and not finished: resolve it first"
    if vm.phase == "running":
        return "it can be migrated, backed up and terminated"
    return "restore it from its backup" if vm.backup else "it has no backup: launch a new one"


def _how_to_resume(vm: Vm, heard: dict[str, str]) -> str:
    said = "; ".join(f"server {server[:12]} says {phase}" for server, phase in heard.items()) or "no server answers"
    if vm.phase in ("migrating", "abandoning"):
        return (
            f"{vm.name}: {said}. It runs on server {vm.server[:12]} or {vm.peer[:12]}, or waits at the former for the latter:"
            f" resolve it when both answer; if {vm.peer[:12]} is gone for good, abandon the migration; if {vm.server[:12]} is,"
            " declare it lost and restore it"
        )
    where = " or ".join(server[:12] for server in _places(vm))
    return f"{vm.name}: {said}. Resolve it when server {where} answers; if that is gone for good, declare it lost and restore it"
