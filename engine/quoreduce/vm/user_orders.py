"""The orders of a user agent, and what it waits for. Pure.

Records are durable before an order leaves. Whatever was interrupted is resolved in one way: an order to *settle* goes
to each server where the VM may be. The server ends what can be ended safely, and takes no older order for this VM any
more; its answer is an attested status, which says where the VM is. An *update* is the same, and gives the server a new
policy for the VM.

Servers that have not attested that they overwrote their copy are remembered (``Vm.left``). A *sweep* orders each of
them to terminate it, and is over when all have attested that they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quoreduce.vm import wire
from quoreduce.vm.ports import NO_ORDER, Persist, Send
from quoreduce.vm.sealing import StreamSealer
from quoreduce.vm.user_ports import Tell, UserCommand
from quoreduce.vm.user_record import NOWHERE, LeftCopy, UserPhase, Vm, about, decode_vm, encode_vm, hint, places

Sweeps: TypeAlias = Literal["", "resolve", "terminate"]


class SettleOrder(NamedTuple):
    """An order that is answered with a status."""

    signed: wire.Signed
    digest: bytes
    number: int


@dataclass(slots=True)
class Active:
    """What a VM's user waits for.

    Attributes:
        since, asked: the last news, and the last questions.
        resolving: orders to settle are out.
        sweeps: once it is known where the VM is, the copies that it left elsewhere are ended too, for this request.
        sweeping: the copies are being ended now.
        failed: what the user is told once they are: that the order under way had come to nothing.
        nonce, stream: of the offer that was accepted: n_T, and what seals the image.
        settles, queries: the open questions: orders by server, and servers by nonce.
        heard: the phase that each server attested.
        clean: servers that attest that they have nothing of the VM.
        quiet: the queries are the agent's own (does the order make progress?), and the user is not told the answers.
        begun, going: when the order was given, and when each server last said that it is busy with it.
        sent: a part of the image was sent since the last tick.
    """

    since: datetime
    asked: datetime
    resolving: bool = False
    sweeps: Sweeps = ""
    sweeping: Sweeps = ""
    failed: str = ""
    nonce: bytes = b""
    stream: StreamSealer | None = None
    settles: dict[str, SettleOrder] = field(default_factory=dict)
    queries: dict[bytes, str] = field(default_factory=dict)
    heard: dict[str, str] = field(default_factory=dict)
    clean: set[str] = field(default_factory=set)
    quiet: bool = False
    begun: datetime | None = None
    going: dict[str, datetime] = field(default_factory=dict)
    sent: bool = False


class UserOrders:
    """The VMs on record, what is under way with them, and the orders for them; for the arguments see ``User``."""

    def __init__(self, sign: bytes, box: bytes, random: Callable[[int], bytes], records: Iterable[bytes]) -> None:
        self._sign, self.random = sign, random
        self._public = X25519PrivateKey.from_private_bytes(box).public_key().public_bytes_raw()
        self.keys = self.signed(wire.Package(NO_ORDER, NO_ORDER, b"")).keys
        self.vms: dict[bytes, Vm] = {one.vmid: one for one in map(decode_vm, records)}
        self.active: dict[bytes, Active] = {}
        self.number = max((vm.number for vm in self.vms.values()), default=0)

    def signed(self, body: wire.Order | wire.Package) -> wire.Signed:
        """Sign with the user's keys."""
        return wire.sign(self._sign, self._public, body)

    def order(
        self, vm: Vm, phase: UserPhase, operation: wire.Operation, at: datetime, server: str, destination: str = "",
        policy: bytes = b"", counter: int = 0, about: bytes = NO_ORDER,
    ) -> list[UserCommand]:  # fmt: skip
        """Make a record of what is wanted durable, then order it."""
        nonce, number = self.random(32), self._next_number(at)
        order = wire.Order(operation, vm.vmid, vm.sequence, number, nonce, server, destination, policy, counter, about)
        signed = self.signed(order)
        vm = vm.with_(phase=phase, number=number, order=wire.digest(signed.body), nonce=nonce, about=about, given=False)
        self.active[vm.vmid] = Active(at, at, begun=at)
        return [self.keep(vm), Send(server, signed)]

    def _next_number(self, at: datetime) -> int:
        """A number above all of this user's orders; by the clock, so that it is also above those of a lost folder."""
        self.number = max(self.number + 1, int(at.timestamp() * 1_000_000))
        return self.number

    def query(self, vm: Vm, active: Active, servers: Iterable[str]) -> list[UserCommand]:
        """Ask these servers where the VM is."""
        commands: list[UserCommand] = []
        for server in servers:
            nonce = self.random(32)
            active.queries = {one: who for one, who in active.queries.items() if who != server} | {nonce: server}
            commands.append(Send(server, wire.StatusQuery(vm.vmid, nonce, self.keys.user)))
        return commands

    def resolve(
        self, vm: Vm, at: datetime, operation: Literal["settle", "update"] = "settle", sweeps: Sweeps = ""
    ) -> list[UserCommand]:
        """Settle what is under way wherever the VM may be; if it is nowhere, wherever a copy was left."""
        if vm.phase in ("launching", "restoring") and not vm.given:
            return self.nowhere(vm, "idle", f"{vm.name} was not started, and will not be: no server was given its key")
        if vm.phase == "terminated" and vm.left:
            return self.sweep(vm, at, "resolve")
        servers = places(vm) or tuple(one.server for one in vm.left)
        if not servers:
            return [Tell(vm.vmid, f"{vm.name} is {vm.phase}: {hint(vm)}", "done")]
        old = self.active.get(vm.vmid)
        active = self.active[vm.vmid] = Active(at, at, resolving=True, sweeps=sweeps or (old.sweeps if old else ""))
        vm = vm.with_(number=self._next_number(at))
        for server in servers:
            copy = vm.copy_at(server) if vm.phase in NOWHERE else None
            order = wire.Order(
                operation, vm.vmid, copy.sequence if copy else vm.sequence, vm.number, self.random(32), server,
                policy=vm.policy if operation == "update" else b"", about=copy.about if copy else about(vm),
            )  # fmt: skip
            active.settles[server] = self._settle(order)
        return [self.keep(vm), *(Send(server, one.signed) for server, one in active.settles.items())]

    def _settle(self, order: wire.Order) -> SettleOrder:
        signed = self.signed(order)
        return SettleOrder(signed, wire.digest(signed.body), order.number)

    def sweep(self, vm: Vm, at: datetime, sweeps: Sweeps, failed: str = "") -> list[UserCommand]:
        """Have each server that may still have a copy end it."""
        active = self.active[vm.vmid] = Active(at, at, resolving=True, sweeping=sweeps, failed=failed)
        return self.end_there(vm, active, vm.left, at)

    def end_there(self, vm: Vm, active: Active, left: Iterable[LeftCopy], at: datetime) -> list[UserCommand]:
        """Order the servers of these copies to terminate them."""
        sends: list[UserCommand] = []
        for one in left:
            vm, nonce = vm.with_(number=self._next_number(at)), self.random(32)
            order = wire.Order("terminate", vm.vmid, one.sequence, vm.number, nonce, one.server)
            settle = active.settles[one.server] = self._settle(order)
            vm = vm.leaving(LeftCopy(one.server, one.sequence, settle.digest, nonce))
            sends.append(Send(one.server, settle.signed))
        return [self.keep(vm), *sends]

    def nowhere(self, vm: Vm, phase: UserPhase, text: str) -> list[UserCommand]:
        """The VM runs nowhere: conclude what was under way, in this phase."""
        self.active.pop(vm.vmid, None)
        vm = vm.with_(phase=phase)
        return [self.keep(vm), Tell(vm.vmid, f"{text}: {hint(vm)}", "failed")]

    def of(self, order: bytes) -> Vm | None:
        """The VM of which this is an order under way, or the last one, or one to a server that still has a copy."""
        if order == NO_ORDER:
            return None
        return next(
            (vm for vm in self.vms.values() if vm.order == order or any(one.order == order for one in vm.left)), None
        )

    def keep(self, vm: Vm) -> Persist:
        """Take this as the record of a VM, and return the command that makes it durable."""
        self.vms[vm.vmid] = vm
        return Persist(vm.vmid, encode_vm(vm))
