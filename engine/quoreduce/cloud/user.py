"""The core of a user agent: orders, what it believes of the answers, and what it tells its user. Pure.

It trusts its own records (:mod:`quoreduce.cloud.user_record`, with the phases of a VM) and what is attested under its VM's
policy; all else (a Refusal, silence, who a message comes from) is a hint. Records are durable before an order leaves.

Whatever was interrupted is resolved in one way: an order to *settle* goes to each server where the VM may be. It ends what can be
ended safely, uses the interrupted order up, and is answered by an attested status, which says where the VM is
(:mod:`quoreduce.cloud.user_judge`). An *update* is the same, and gives the server the policy that the VM goes by from now on.

Servers that have not attested that they overwrote their copy are remembered. A terminate goes to each of them too; it is over
when all have attested it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias

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
    opened,
)
from quoreduce.cloud.sealing import StreamSealer, hpke_open, hpke_seal
from quoreduce.cloud.tcom.backup import KEY
from quoreduce.cloud.tcom.launch import IMAGE_STREAM, PACKAGE
from quoreduce.cloud.user_judge import GOING_ON, Verdict, clean, judge, runs_at
from quoreduce.cloud.user_ports import NewVm, ReadBack, Tell, UserCommand, UserEvent, WantImage, Wish
from quoreduce.cloud.user_record import (
    NOWHERE,
    UNFINISHED,
    Kept,
    Left,
    UserPhase,
    Vm,
    about,
    copies,
    decode_vm,
    encode_vm,
    hint,
    how_to_resume,
    left_text,
    places,
)
from quoreduce.errors import VmError, one_line
from quoreduce.trust.policy import decode_policy

PATIENCE: Final = timedelta(seconds=25)  # without news of an order; then it is settled
RESOLVING: Final = timedelta(seconds=25)  # for servers to answer where the VM is
ASK_AGAIN: Final = timedelta(seconds=3)
LOOK: Final = timedelta(seconds=5)  # between looks at whether an order goes on
LONG: Final = timedelta(hours=1)  # for an order that goes on all the time
VMS_MAX: Final = 4096
RESTORED: Final = 3  # what a restore adds to the sequence: above what a migration and its abandon could have made of it


Sweeps: TypeAlias = Literal["", "resolve", "terminate"]


class _Settle(NamedTuple):
    """An order whose answer is a status."""

    signed: wire.Signed
    digest: bytes
    number: int


@dataclass(slots=True)
class _Active:
    """What the user waits for: since when, whether it is being resolved, and the questions that are open."""

    since: datetime
    asked: datetime
    resolving: bool = False
    sweeps: Sweeps = ""  # when it is known where the VM is, what was left elsewhere is ended too, for this wish
    sweeping: Sweeps = ""  # that is what is being done now
    nonce: bytes = b""  # n_T, when an offer was accepted
    stream: StreamSealer | None = None
    settles: dict[str, _Settle] = field(default_factory=dict)  # by server
    queries: dict[bytes, str] = field(default_factory=dict)  # nonce -> server
    heard: dict[str, str] = field(default_factory=dict)  # server -> phase
    clean: set[str] = field(default_factory=set)  # servers that attest that they have nothing of it
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
        self._number = max((vm.number for vm in self.vms.values()), default=0)

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
                return self._resolve(vm, wish.at, sweeps="resolve")
            case "update":
                return self._update(vm, wish)
            case "declare lost":
                return self._declare_lost(vm)
            case "restore":
                return self._restore(vm, wish)
            case "abandon":
                return self._abandon(vm, wish.at)
            case "terminate":
                return self._terminate(vm, wish.at)
        if vm.phase != "running":
            raise VmError(f"{vm.name} is {vm.phase}: {hint(vm)}")
        if wish.operation == "backup":
            vm = vm.with_(counter=vm.counter + 1)
            return self._order(vm, "backing up", "backup", wish.at, server=vm.server, counter=vm.counter)
        if wish.server in ("", vm.server):
            raise VmError(f"{vm.name} is there already: name another server")
        policy = wish.policy or vm.policy
        decode_policy(policy)
        vm = vm.with_(peer=wish.server, policy=policy)
        return self._order(vm, "migrating", "migrate", wish.at, server=vm.server, destination=wish.server, policy=policy)

    def _terminate(self, vm: Vm, at: datetime) -> list[UserCommand]:
        """End it where it runs, and what was left elsewhere."""
        if vm.phase in NOWHERE and vm.left:
            return self._sweep(vm, at, "terminate")
        if vm.phase not in ("running", "terminating"):
            raise VmError(f"{vm.name} is {vm.phase}: {hint(vm)}")
        commands = self._order(vm, "terminating", "terminate", at, server=vm.server)
        self._active[vm.vmid].sweeps = "terminate"
        return commands

    def _restore(self, vm: Vm, wish: Wish) -> list[UserCommand]:
        if vm.phase not in NOWHERE:
            raise VmError(
                f"{vm.name} may run: it is {vm.phase}; terminate it first, or, if its servers are gone for good, declare it lost"
            )
        if vm.stale:
            raise VmError(
                f"this folder may be out of date: another one with your keys may have started {vm.name} since; if it runs"
                " nowhere, declare it lost"
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

    def _update(self, vm: Vm, wish: Wish) -> list[UserCommand]:
        """Have the VM go by this policy: here at once, at its servers by an order."""
        decode_policy(wish.policy)
        vm = vm.with_(policy=wish.policy)
        if not places(vm):
            return [self._keep(vm), Tell(vm.vmid, f"{vm.name} goes by the new policy", "done")]
        return self._resolve(vm, wish.at, "update")

    def _abandon(self, vm: Vm, at: datetime) -> list[UserCommand]:
        source = vm.source()
        if vm.phase in ("running", "lost") and source is not None:  # the destination died after it took over
            vm = vm.cleared(source.server)
            vm = vm.with_(server=source.server, peer=vm.server, sequence=source.sequence)
            return self._order(vm, "abandoning", "abandon", at, server=vm.server, about=source.about)
        if vm.phase not in ("migrating", "abandoning"):
            raise VmError(f"{vm.name} is {vm.phase}, and no migration waits for its destination: there is nothing to abandon")
        return self._order(vm, "abandoning", "abandon", at, server=vm.server, about=about(vm))

    def _declare_lost(self, vm: Vm) -> list[UserCommand]:
        self._active.pop(vm.vmid, None)
        text = f"{vm.name} is declared lost: if a server that had it comes back, it may run there again; then resume it"
        vm = vm.leaving(*copies(vm)).with_(phase="lost", stale=False)
        return [self._keep(vm), Tell(vm.vmid, text, "done")]

    def _order(
        self, vm: Vm, phase: UserPhase, operation: wire.Operation, at: datetime, server: str, destination: str = "",
        policy: bytes = b"", counter: int = 0, about: bytes = NO_ORDER,
    ) -> list[UserCommand]:  # fmt: skip
        """Write down what is wanted, then order it."""
        nonce, number = self._random(32), self._next(at)
        order = wire.Order(operation, vm.vmid, vm.sequence, number, nonce, server, destination, policy, counter, about)
        signed = wire.sign(self._sign, self._public, order)
        vm = vm.with_(phase=phase, number=number, order=wire.digest(signed.body), nonce=nonce, about=about, given=False)
        self._active[vm.vmid] = _Active(at, at, begun=at)
        return [self._keep(vm), Send(server, signed)]

    def _next(self, at: datetime) -> int:
        """The number of the next order: above all of this user, and, by the clock, above those of a folder that was lost."""
        self._number = max(self._number + 1, int(at.timestamp() * 1_000_000))
        return self._number

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
            if not isinstance(said, wire.Receipt):
                return []
            copy = next((one for one in vm.left if one.order == said.order), None)
            if copy is not None and said.operation in ("migrate_out", "terminate"):
                return self._left_receipt(vm, copy, message, said.operation, event.at)
            return self._receipt(vm, message, said.operation, event.at)
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
        if vm.phase not in UNFINISHED:
            return []
        if not receipt.done:
            how = "" if vm.phase == "abandoning" else "failed: "
            return [Tell(vm.vmid, how + receipt.reason), *self._resolve(vm, at)]
        return self._concluded(self._done(vm, receipt, found), at)

    def _left_receipt(
        self, vm: Vm, copy: Left, message: wire.Attested, operation: wire.TcomOperation, at: datetime
    ) -> list[UserCommand]:
        """A server says what became of the copy that it still had."""
        receipt, found = opened(message, wire.Receipt, copy.order, operation, vm.vmid, vm.policy, at)
        if (receipt.vmid, receipt.order, receipt.user_nonce) != (vm.vmid, copy.order, copy.nonce):
            raise VmError("the receipt is for another order")
        if found.server != copy.server:
            return []  # of the migration's destination, where it runs
        if not receipt.done:
            text = f"what {vm.name} left on server {copy.server[:12]} is not overwritten: {receipt.reason}; resume it"
            active = self._active.get(vm.vmid)
            if active is not None and active.sweeping:
                self._active.pop(vm.vmid)
                return [Tell(vm.vmid, text, "failed")]
            return [Tell(vm.vmid, text, "" if active else "done")]
        if found.report != receipt.report:
            raise VmError("the receipt has another report than its evidence")
        return self._overwritten(vm, copy.server, f"what {vm.name} left on server {copy.server[:12]} is overwritten")

    def _done(self, vm: Vm, receipt: wire.Receipt, found: Attested) -> Verdict:
        active = self._active.get(vm.vmid)
        where, moved = found.server[:12], vm.sequence + 1
        match vm.phase, receipt.operation:
            case ("launching", "launch") | ("restoring", "restore") if (found.server, receipt.sequence) == (vm.peer, vm.sequence):
                if (receipt.digest, found.image) != (vm.image, vm.image):
                    raise VmError("the receipt is for another image")
                if active is not None and active.nonce and receipt.nonce != active.nonce:
                    raise VmError("the receipt is for another offer")
                return runs_at(vm, vm.peer, vm.sequence, f"runs on server {where}; it was measured as ordered", "done")
            case "migrating", "migrate_in" if (found.server, receipt.sequence) == (vm.peer, moved):
                if found.image != vm.image:
                    raise VmError("the receipt is for another image")
                left = Left(vm.server, vm.sequence, vm.order, vm.nonce, vm.order)
                return runs_at(vm, vm.peer, moved, f"runs on server {where} now", "done", left)
            case "migrating", "migrate_out" if (found.server, receipt.sequence) == (vm.server, moved):
                if found.report != receipt.report:
                    raise VmError("the receipt has another report than its evidence")
                return runs_at(vm, vm.peer, moved, f"runs on server {vm.peer[:12]} now", "done")
            case "backing up", "backup" if (found.server, receipt.sequence) == (vm.server, vm.sequence):
                return self._backed_up(vm, receipt)
            case "terminating", "terminate" if (found.server, receipt.sequence) == (vm.server, vm.sequence):
                if found.report != receipt.report:
                    raise VmError("the receipt has another report than its evidence")
                text = f"{vm.name} is terminated; server {where} attests that it overwrote all that it had"
                return Verdict(vm.with_(phase="terminated"), text, "done")
        raise VmError(f"a receipt for {receipt.operation} by server {where} is nothing that was ordered")

    def _backed_up(self, vm: Vm, receipt: wire.Receipt) -> Verdict:
        key = wire.decode(hpke_open(self._box, KEY + vm.order, receipt.sealed), wire.BackupKey)
        manifest = wire.decode(receipt.manifest, wire.Manifest)
        if key.manifest != wire.digest(receipt.manifest) or not key.counter == manifest.counter == vm.counter:
            raise VmError("the receipt's manifest is not that of its key")
        if (manifest.vmid, manifest.image, manifest.order, manifest.sequence) != (vm.vmid, vm.image, vm.order, vm.sequence):
            raise VmError("the receipt's manifest is of another VM")
        kept = vm.with_(backup=Kept(key.counter, key.key, receipt.manifest))
        return runs_at(kept, vm.server, vm.sequence, f"is backed up (number {key.counter}, {manifest.size} bytes)", "done")

    def _refusal(self, refusal: wire.Refusal, at: datetime) -> list[UserCommand]:
        """Nobody vouches for it: so find out what is the case."""
        vm = self._of(refusal.order)
        active = self._active.get(vm.vmid) if vm else None
        if vm is None or active is None or active.resolving:
            return []
        return [Tell(vm.vmid, f"not done: {refusal.reason}"), *self._resolve(vm, at)]

    # Where is it?

    def _ask(self, vm: Vm, at: datetime) -> list[UserCommand]:
        servers = places(vm)
        if not servers:
            return [Tell(vm.vmid, f"{vm.name} is {vm.phase}: {hint(vm)}", "done")]
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

    def _resolve(
        self, vm: Vm, at: datetime, operation: Literal["settle", "update"] = "settle", sweeps: Sweeps = ""
    ) -> list[UserCommand]:
        """Settle what is under way wherever the VM may be; if it is nowhere, wherever a copy was left."""
        if vm.phase in ("launching", "restoring") and not vm.given:
            return self._nowhere(vm, "idle", f"{vm.name} was not started, and will not be: no server was given its key")
        if vm.phase == "terminated" and vm.left:
            return self._sweep(vm, at, "resolve")
        servers = places(vm) or tuple(one.server for one in vm.left)
        if not servers:
            return [Tell(vm.vmid, f"{vm.name} is {vm.phase}: {hint(vm)}", "done")]
        old = self._active.get(vm.vmid)
        active = self._active[vm.vmid] = _Active(at, at, resolving=True, sweeps=sweeps or (old.sweeps if old else ""))
        vm = vm.with_(number=self._next(at))
        for server in servers:
            copy = vm.copy_at(server) if vm.phase in NOWHERE else None
            order = wire.Order(
                operation, vm.vmid, copy.sequence if copy else vm.sequence, vm.number, self._random(32), server,
                policy=vm.policy if operation == "update" else b"", about=copy.about if copy else about(vm),
            )  # fmt: skip
            active.settles[server] = self._signed(order)
        return [self._keep(vm), *(Send(server, one.signed) for server, one in active.settles.items())]

    def _signed(self, order: wire.Order) -> _Settle:
        signed = wire.sign(self._sign, self._public, order)
        return _Settle(signed, wire.digest(signed.body), order.number)

    def _status(self, vm: Vm, message: wire.Attested, at: datetime) -> list[UserCommand]:
        active = self._active.get(vm.vmid)
        said = wire.decode(message.content, wire.Status)
        if active is None:
            return []
        expected = active.queries | {one.digest: server for server, one in active.settles.items()}
        server = expected.get(said.nonce)
        if server is None:
            return []
        status, found = opened(message, wire.Status, said.nonce, "status", vm.vmid, vm.policy, at)
        if found.server != server:
            raise VmError(f"server {found.server[:12]} answers for {server[:12]}: an impostor")
        active.heard[server] = status.phase
        if not active.resolving:
            active.queries.pop(said.nonce, None)
            goes_on = status.busy and status.order == vm.order and status.phase in GOING_ON.get(vm.phase, ())
            if goes_on and active.begun is not None and at - active.begun < LONG:
                active.going[server] = at
                active.since = max(active.since, min(active.going.get(one, active.begun) for one in places(vm)))
            if active.quiet and status.order == vm.order and not status.busy and vm.phase in UNFINISHED:
                return self._resolve(vm, at)  # the server was begun anew, or what it said was lost
            return [] if active.quiet else self._asked(vm, active, server, status, found)
        settle = active.settles.get(server)
        if settle is None or status.number < settle.number:
            return []  # the order to settle is still on its way
        commands: list[UserCommand] = []
        self._number = max(self._number, status.number)
        if status.number > vm.number and status.phase != "unknown":  # else it is of this user's other VMs
            vm = vm.with_(number=status.number, stale=True)
            text = f"another folder with your keys gave an order for {vm.name} (number {status.number}): use one of them only"
            commands = [self._keep(vm), Tell(vm.vmid, text)]
        return [*commands, *self._settled(vm, active, server, status, at)]

    def _settled(self, vm: Vm, active: _Active, server: str, status: wire.Status, at: datetime) -> list[UserCommand]:
        """An order to settle was taken there: what follows from the answer?"""
        if not active.sweeping:
            verdict = judge(vm, server, status)
            if verdict is not None:
                return self._concluded(verdict, at)
            if clean(status):
                active.clean.add(server)  # what was ordered is used up there: it stays so
        copy = vm.copy_at(server)
        if copy is None or not (active.sweeping or vm.phase in NOWHERE):
            return []
        if clean(status):
            return self._overwritten(vm, server, f"server {server[:12]} attests that it has nothing of {vm.name}")
        told = copy.order == active.settles[server].digest  # it was told to end it
        if (active.sweeping and status.sequence != copy.sequence) or (status.phase == "lost" and not told):
            return self._end_there(vm, active, [Left(server, status.sequence)], at)
        return []

    def _concluded(self, verdict: Verdict, at: datetime) -> list[UserCommand]:
        """It is known where the VM is. What is left of it elsewhere is ended too, if that was wanted."""
        vm, text = verdict.vm, verdict.text
        active = self._active.pop(vm.vmid, None)
        for server in active.clean if active else ():
            vm = vm.cleared(server)
        keep = self._keep(vm)
        if vm.left and verdict.end == "done" and vm.phase in ("running", "terminated"):
            if active is not None and active.sweeps:
                return [keep, Tell(vm.vmid, text), *self._sweep(vm, at, active.sweeps)]
            if vm.phase == "terminated":
                return [keep, Tell(vm.vmid, f"{text}; {left_text(vm)}: terminate it again", "failed")]
        return [keep, Tell(vm.vmid, text, verdict.end)]

    def _sweep(self, vm: Vm, at: datetime, sweeps: Sweeps) -> list[UserCommand]:
        """Have each server that may still have a copy end it."""
        active = self._active[vm.vmid] = _Active(at, at, resolving=True, sweeping=sweeps)
        return self._end_there(vm, active, vm.left, at)

    def _end_there(self, vm: Vm, active: _Active, left: Iterable[Left], at: datetime) -> list[UserCommand]:
        sends: list[UserCommand] = []
        for one in left:
            vm, nonce = vm.with_(number=self._next(at)), self._random(32)
            order = wire.Order("terminate", vm.vmid, one.sequence, vm.number, nonce, one.server)
            settle = active.settles[one.server] = self._signed(order)
            vm = vm.leaving(Left(one.server, one.sequence, settle.digest, nonce))
            sends.append(Send(one.server, settle.signed))
        return [self._keep(vm), *sends]

    def _overwritten(self, vm: Vm, server: str, text: str) -> list[UserCommand]:
        """Nothing is left there any more."""
        vm, active = vm.cleared(server), self._active.get(vm.vmid)
        if active is None:
            return [self._keep(vm), Tell(vm.vmid, text, "done")]
        active.settles.pop(server, None)
        if vm.left or not (active.resolving and (active.sweeping or vm.phase in NOWHERE)):
            return [self._keep(vm), Tell(vm.vmid, text)]
        self._active.pop(vm.vmid)
        if active.sweeping == "terminate" and vm.phase == "lost":
            vm = vm.with_(phase="terminated")
        return [self._keep(vm), Tell(vm.vmid, text, "done")]

    # Questions

    def _asked(self, vm: Vm, active: _Active, server: str, status: wire.Status, found: Attested) -> list[UserCommand]:
        text = f"server {server[:12]}, environment {found.environment[:12]}, attests: {vm.name} is {status.phase} there"
        end: Literal["", "done"] = ""
        if vm.phase not in UNFINISHED and not active.queries:
            self._active.pop(vm.vmid, None)
            end = "done"
        return [Tell(vm.vmid, f"{text} (sequence {status.sequence})", end)]

    def _nowhere(self, vm: Vm, phase: UserPhase, text: str) -> list[UserCommand]:
        self._active.pop(vm.vmid, None)
        vm = vm.with_(phase=phase)
        return [self._keep(vm), Tell(vm.vmid, f"{text}: {hint(vm)}", "failed")]

    def _tick(self, now: datetime) -> list[UserCommand]:
        commands: list[UserCommand] = []
        for vmid, active in list(self._active.items()):
            vm = self.vms[vmid]
            if active.sent:
                active.since, active.sent = now, False
            if active.resolving or vm.phase not in UNFINISHED:
                if now - active.since >= RESOLVING:
                    self._active.pop(vmid)
                    commands.append(_given_up(vm, active))
                elif now - active.asked >= ASK_AGAIN:
                    active.asked = now
                    commands += [Send(server, one.signed) for server, one in active.settles.items()]
                    commands += self._query(vm, active, tuple(active.settles) or places(vm))
            elif now - active.since >= PATIENCE:
                commands += [Tell(vmid, "no answer: finding out where it is"), *self._resolve(vm, now)]
            elif now - active.asked >= LOOK:
                active.asked, active.quiet = now, True
                commands += self._query(vm, active, places(vm))
        return commands

    def _of(self, order: bytes) -> Vm | None:
        """The VM of which this is an order under way, or the last one, or one to a server that still has a copy."""
        if order == NO_ORDER:
            return None
        return next((vm for vm in self.vms.values() if vm.order == order or any(one.order == order for one in vm.left)), None)

    def _keep(self, vm: Vm) -> Persist:
        self.vms[vm.vmid] = vm
        return Persist(vm.vmid, encode_vm(vm))


def _given_up(vm: Vm, active: _Active) -> Tell:
    """Servers were silent for too long, or said nothing that decides."""
    if not active.sweeping:
        return Tell(vm.vmid, how_to_resume(vm, active.heard), "failed")
    text = f"{vm.name} is {vm.phase}; {left_text(vm)}: {active.sweeping} it again when that server answers"
    return Tell(vm.vmid, text, "failed" if active.sweeping == "terminate" else "done")
