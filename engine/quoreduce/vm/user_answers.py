"""What a user agent believes of the answers to its orders. Pure.

It trusts its own records and what is attested under its VM's policy. All else (a Refusal, silence, the sender of a
message) is a hint: it makes the agent ask where the VM is, and decides nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal

from quoreduce.errors import VmError, one_line
from quoreduce.vm import wire
from quoreduce.vm.evidence import AttestedFacts
from quoreduce.vm.ports import IMAGE_BYTES_MAX, REFUSED, Received, Send, opened
from quoreduce.vm.sealing import BACKUP_KEY, IMAGE_STREAM, PACKAGE, StreamSealer, hpke_open, hpke_seal
from quoreduce.vm.user_judge import GOING_ON, Conclusion, clean, judge, runs_at
from quoreduce.vm.user_orders import Active, UserOrders
from quoreduce.vm.user_ports import Tell, UserCommand, WantImage
from quoreduce.vm.user_record import NOWHERE, UNFINISHED, KeptBackup, LeftCopy, Vm, left_text, places

LONG: Final = timedelta(hours=1)  # a server may be busy with an order for so long


class UserAnswers:
    """Takes messages, and says what follows from them.

    Args:
        box: the user's private X25519 key, which opens the keys of backups.
    """

    def __init__(self, orders: UserOrders, box: bytes) -> None:
        self._orders, self._box = orders, box

    def received(self, event: Received) -> list[UserCommand]:
        """Take a message. What is refused is told to the user, with the reason."""
        message = event.message
        vm: Vm | None = None
        try:
            if isinstance(message, wire.Refusal):
                return self._refusal(message, event.at)
            if not isinstance(message, wire.AttestedMessage):
                return []
            said = wire.decode_said(message.content)
            if isinstance(said, wire.Status):
                vm = self._orders.vms.get(said.vmid)
                return self._status(vm, message, event.at) if vm else []
            vm = self._orders.of(said.order)
            if vm is None:
                return []
            if isinstance(said, wire.Offer):
                return self._offer(vm, message, event.at)
            if not isinstance(said, wire.VmReceipt):
                return []
            copy = next((one for one in vm.left if one.order == said.order), None)
            if copy is not None and said.operation in ("migrate_out", "terminate"):
                return self._left_receipt(vm, copy, message, said.operation, event.at)
            return self._receipt(vm, message, said.operation, event.at)
        except REFUSED as error:
            return [Tell(vm.vmid if vm else bytes(16), f"refused: {one_line(error)}")]

    def _offer(self, vm: Vm, message: wire.AttestedMessage, at: datetime) -> list[UserCommand]:
        """A TCOM is ready: if all of its evidence holds, seal the VM's key to it, once; if not, this order has come to
        nothing.
        """
        active = self._orders.active.get(vm.vmid)
        if vm.phase not in ("launching", "restoring") or vm.given or active is None:
            return []
        try:
            return self._give(vm, active, message, at)
        except REFUSED as error:
            return self._orders.nowhere(vm, "idle", f"{vm.name}: server {vm.peer[:12]} is refused: {one_line(error)}")

    def _give(self, vm: Vm, active: Active, message: wire.AttestedMessage, at: datetime) -> list[UserCommand]:
        operation: Literal["launch", "restore"] = "launch" if vm.phase == "launching" else "restore"
        offer, found = opened(message, wire.Offer, vm.order, operation, vm.vmid, vm.policy, at)
        if found.server != vm.peer:
            raise VmError(f"the offer is of server {found.server[:12]}, the order names {vm.peer[:12]}: an impostor")
        if offer.key != found.session_key or offer.order != vm.order:
            raise VmError("the offer has another key or order than its evidence")
        active.nonce, active.since = offer.nonce, at
        if operation == "launch":
            key = self._orders.random(32)
            active.stream = StreamSealer(key, IMAGE_STREAM + vm.order, IMAGE_BYTES_MAX)
            secrets = wire.Secrets(key, offer.nonce, vm.image, vm.size, vm.spec)
        else:
            chosen = vm.chosen
            assert chosen is not None
            kept = wire.decode(chosen.manifest, wire.BackupManifest)
            secrets = wire.Secrets(
                chosen.key, offer.nonce, kept.image, kept.size, kept.spec, chosen.manifest, chosen.counter
            )  # fmt: skip
        sealed = hpke_seal(offer.key, PACKAGE + vm.order, wire.encode(secrets))
        package = self._orders.signed(wire.Package(vm.order, offer.nonce, sealed))
        told = Tell(vm.vmid, f"server {found.server[:12]} attested itself: environment {found.environment[:12]}")
        wanted: list[UserCommand] = [WantImage(vm.order, vm.vmid)] if operation == "launch" else []
        return [told, self._orders.keep(vm.with_(given=True)), Send(vm.peer, package), *wanted]

    def _receipt(
        self, vm: Vm, message: wire.AttestedMessage, operation: wire.TcomOperation, at: datetime
    ) -> list[UserCommand]:
        receipt, found = opened(message, wire.VmReceipt, vm.order, operation, vm.vmid, vm.policy, at)
        if (receipt.vmid, receipt.order, receipt.user_nonce) != (vm.vmid, vm.order, vm.nonce):
            raise VmError("the receipt is for another order")
        if found.server not in (vm.server, vm.peer):
            raise VmError(f"the receipt is of server {found.server[:12]}, which has no part in this")
        if vm.phase not in UNFINISHED:
            return []
        if not receipt.done:
            how = "" if vm.phase == "abandoning" else "failed: "
            return [Tell(vm.vmid, how + receipt.reason), *self._orders.resolve(vm, at)]
        active = self._orders.active.get(vm.vmid)
        verdict = _done(vm, receipt, found, active.nonce if active else b"", self._box)
        return self._concluded(verdict, at)

    def _left_receipt(
        self, vm: Vm, copy: LeftCopy, message: wire.AttestedMessage, operation: wire.TcomOperation, at: datetime
    ) -> list[UserCommand]:
        """A server says what became of the copy that it still had."""
        receipt, found = opened(message, wire.VmReceipt, copy.order, operation, vm.vmid, vm.policy, at)
        if (receipt.vmid, receipt.order, receipt.user_nonce) != (vm.vmid, copy.order, copy.nonce):
            raise VmError("the receipt is for another order")
        if found.server != copy.server:
            return []  # of the migration's destination, where it runs
        if not receipt.done:
            text = f"what {vm.name} left on server {copy.server[:12]} is not overwritten: {receipt.reason}; resume it"
            active = self._orders.active.get(vm.vmid)
            if active is not None and active.sweeping:
                self._orders.active.pop(vm.vmid)
                return [Tell(vm.vmid, text, "failed")]
            return [Tell(vm.vmid, text, "" if active else "done")]
        if found.report != receipt.report:
            raise VmError("the receipt has another report than its evidence")
        return self._overwritten(vm, copy.server, f"what {vm.name} left on server {copy.server[:12]} is overwritten")

    def _refusal(self, refusal: wire.Refusal, at: datetime) -> list[UserCommand]:
        """Nobody vouches for it: so find out what is the case."""
        vm = self._orders.of(refusal.order)
        active = self._orders.active.get(vm.vmid) if vm else None
        if vm is None or active is None or active.resolving:
            return []
        return [Tell(vm.vmid, f"not done: {refusal.reason}"), *self._orders.resolve(vm, at)]

    def _status(self, vm: Vm, message: wire.AttestedMessage, at: datetime) -> list[UserCommand]:
        active = self._orders.active.get(vm.vmid)
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
                return self._orders.resolve(vm, at)  # the server was begun anew, or what it said was lost
            return [] if active.quiet else self._asked(vm, active, server, status, found)
        settle = active.settles.get(server)
        if settle is None or status.number < settle.number:
            return []  # the order to settle is still on its way
        commands: list[UserCommand] = []
        self._orders.number = max(self._orders.number, status.number)
        if status.number > vm.number and status.phase != "unknown":  # else it is of this user's other VMs
            vm = vm.with_(number=status.number, stale=True)
            other = f"another folder with your keys gave an order for {vm.name} (number {status.number})"
            text = f"{other}: use one of them only"
            commands = [self._orders.keep(vm), Tell(vm.vmid, text)]
        return [*commands, *self._settled(vm, active, server, status, at)]

    def _settled(self, vm: Vm, active: Active, server: str, status: wire.Status, at: datetime) -> list[UserCommand]:
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
            return self._orders.end_there(vm, active, [LeftCopy(server, status.sequence)], at)
        return []

    def _concluded(self, verdict: Conclusion, at: datetime) -> list[UserCommand]:
        """It is known where the VM is. What is left of it elsewhere is ended too, if that was wanted."""
        vm, text = verdict.vm, verdict.text
        active = self._orders.active.pop(vm.vmid, None)
        for server in active.clean if active else ():
            vm = vm.cleared(server)
        keep = self._orders.keep(vm)
        if vm.left and vm.phase in ("running", "terminated"):
            wanted = active.sweeps if active else ""
            if wanted and verdict.end == "done":
                return [keep, Tell(vm.vmid, text), *self._orders.sweep(vm, at, wanted)]
            if wanted == "resolve":
                return [keep, *self._orders.sweep(vm, at, wanted, failed=text)]
            if vm.phase == "terminated" and verdict.end == "done":
                return [keep, Tell(vm.vmid, f"{text}; {left_text(vm)}: terminate it again", "failed")]
        return [keep, Tell(vm.vmid, text, verdict.end)]

    def _overwritten(self, vm: Vm, server: str, text: str) -> list[UserCommand]:
        """Nothing is left there any more."""
        vm, active = vm.cleared(server), self._orders.active.get(vm.vmid)
        if active is None:
            return [self._orders.keep(vm), Tell(vm.vmid, text, "done")]
        active.settles.pop(server, None)
        if vm.left or not (active.resolving and (active.sweeping or vm.phase in NOWHERE)):
            return [self._orders.keep(vm), Tell(vm.vmid, text)]
        self._orders.active.pop(vm.vmid)
        if active.sweeping == "terminate" and vm.phase == "lost":
            vm = vm.with_(phase="terminated")
        last = [Tell(vm.vmid, active.failed, "failed")] if active.failed else []
        return [self._orders.keep(vm), Tell(vm.vmid, text, "" if last else "done"), *last]

    def _asked(
        self, vm: Vm, active: Active, server: str, status: wire.Status, found: AttestedFacts
    ) -> list[UserCommand]:
        text = f"server {server[:12]}, environment {found.environment[:12]}, attests: {vm.name} is {status.phase} there"
        end: Literal["", "done"] = ""
        if vm.phase not in UNFINISHED and not active.queries:
            self._orders.active.pop(vm.vmid, None)
            end = "done"
        return [Tell(vm.vmid, f"{text} (sequence {status.sequence})", end)]


def _done(vm: Vm, receipt: wire.VmReceipt, found: AttestedFacts, nonce: bytes, box: bytes) -> Conclusion:
    """What follows from a receipt. ``nonce``: n_T of the accepted offer, or empty; ``box``: see UserAnswers."""
    where, moved = found.server[:12], vm.sequence + 1
    match vm.phase, receipt.operation:
        case ("launching", "launch") | ("restoring", "restore") if (found.server, receipt.sequence) == (
            vm.peer,
            vm.sequence,
        ):
            if (receipt.digest, found.image) != (vm.image, vm.image):
                raise VmError("the receipt is for another image")
            if nonce and receipt.nonce != nonce:
                raise VmError("the receipt is for another offer")
            return runs_at(vm, vm.peer, vm.sequence, f"runs on server {where}; it was measured as ordered", "done")
        case "migrating", "migrate_in" if (found.server, receipt.sequence) == (vm.peer, moved):
            if found.image != vm.image:
                raise VmError("the receipt is for another image")
            left = LeftCopy(vm.server, vm.sequence, vm.order, vm.nonce, vm.order)
            return runs_at(vm, vm.peer, moved, f"runs on server {where} now", "done", left)
        case "migrating", "migrate_out" if (found.server, receipt.sequence) == (vm.server, moved):
            if found.report != receipt.report:
                raise VmError("the receipt has another report than its evidence")
            return runs_at(vm, vm.peer, moved, f"runs on server {vm.peer[:12]} now", "done")
        case "backing up", "backup" if (found.server, receipt.sequence) == (vm.server, vm.sequence):
            return _backed_up(vm, receipt, box)
        case "terminating", "terminate" if (found.server, receipt.sequence) == (vm.server, vm.sequence):
            if found.report != receipt.report:
                raise VmError("the receipt has another report than its evidence")
            text = f"{vm.name} is terminated; server {where} attests that it overwrote all that it had"
            return Conclusion(vm.with_(phase="terminated"), text, "done")
    raise VmError(f"a receipt for {receipt.operation} by server {where} is nothing that was ordered")


def _backed_up(vm: Vm, receipt: wire.VmReceipt, box: bytes) -> Conclusion:
    key = wire.decode(hpke_open(box, BACKUP_KEY + vm.order, receipt.sealed), wire.BackupKey)
    manifest = wire.decode(receipt.manifest, wire.BackupManifest)
    if key.manifest != wire.digest(receipt.manifest) or not key.counter == manifest.counter == vm.counter:
        raise VmError("the receipt's manifest is not that of its key")
    if (manifest.vmid, manifest.image, manifest.order, manifest.sequence) != (
        vm.vmid,
        vm.image,
        vm.order,
        vm.sequence,
    ):
        raise VmError("the receipt's manifest is of another VM")
    kept = vm.with_(backup=KeptBackup(key.counter, key.key, receipt.manifest))
    return runs_at(kept, vm.server, vm.sequence, f"is backed up (number {key.counter}, {manifest.size} bytes)", "done")
