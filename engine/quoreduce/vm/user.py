"""The core of a user agent: takes a user's requests, gives orders, and tells the user what came of them. Pure.

:mod:`quoreduce.vm.user_record` has the phases of a VM, :mod:`quoreduce.vm.user_orders` the orders and what is waited
for, :mod:`quoreduce.vm.user_answers` what is believed of the answers, :mod:`quoreduce.vm.user_judge` what an attested
status says of where a VM is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

from quoreduce.errors import VmError, one_line
from quoreduce.trust.policy import decode_policy
from quoreduce.vm import wire
from quoreduce.vm.ports import IMAGE_BYTES_MAX, REFUSED, Data, DataEnd, Received, Send
from quoreduce.vm.user_answers import UserAnswers
from quoreduce.vm.user_orders import Active, UserOrders
from quoreduce.vm.user_ports import NewVm, ReadBack, Tell, UserCommand, UserEvent, UserRequest
from quoreduce.vm.user_record import NOWHERE, UNFINISHED, Vm, about, copies, hint, how_to_resume, left_text, places

PATIENCE: Final = timedelta(seconds=25)  # without news of an order; then it is settled
RESOLVING: Final = timedelta(seconds=25)  # for servers to answer where the VM is
ASK_AGAIN: Final = timedelta(seconds=3)
LOOK: Final = timedelta(seconds=5)  # between questions whether an order makes progress
VMS_MAX: Final = 4096
RESTORED: Final = 3  # what a restore adds to the sequence: above what a migration and its abandon could have made of it


class User:
    """The core of the user agent.

    Args:
        sign, box: the user's private keys, Ed25519 and X25519, 32 bytes each.
        random: gives so many random bytes.
        records: of an earlier process, as they were persisted.
    """

    def __init__(self, sign: bytes, box: bytes, random: Callable[[int], bytes], records: Iterable[bytes] = ()) -> None:
        self._orders = UserOrders(sign, box, random, records)
        self._answers = UserAnswers(self._orders, box)
        self.keys, self.vms, self.active = self._orders.keys, self._orders.vms, self._orders.active

    @property
    def address(self) -> str:
        """The user's id."""
        return self.keys.user

    def step(self, event: UserEvent) -> list[UserCommand]:
        """Take an event. Raises nothing: the user is told the reason if a request or an answer is refused."""
        match event:
            case NewVm():
                return self._request(event.vmid, lambda: self._launch(event))
            case UserRequest():
                return self._request(event.vmid, lambda: self._ordered(event))
            case ReadBack():
                return self._read_back(event)
            case Received():
                return self._answers.received(event)
            case Data():
                return self._image(event.session, event.data, False)
            case DataEnd():
                return self._image(event.session, b"", True)
        return self._tick(event.at)

    def _request(self, vmid: bytes, act: Callable[[], list[UserCommand]]) -> list[UserCommand]:
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
        vm = Vm(
            new.vmid, new.name, new.policy, new.spec.wire(), new.image, new.size, "idle", peer=new.server, sequence=1
        )
        return self._orders.order(vm, "launching", "launch", new.at, server=new.server, policy=new.policy)

    def _ordered(self, request: UserRequest) -> list[UserCommand]:
        vm = self.vms.get(request.vmid)
        if vm is None:
            raise VmError("there is no such VM: see `quoreduce vm list`")
        match request.operation:
            case "ask":
                return self._ask(vm, request.at)
            case "resolve":
                return self._orders.resolve(vm, request.at, sweeps="resolve")
            case "update":
                return self._update(vm, request)
            case "declare lost":
                return self._declare_lost(vm)
            case "restore":
                return self._restore(vm, request)
            case "abandon":
                return self._abandon(vm, request.at)
            case "terminate":
                return self._terminate(vm, request.at)
        if vm.phase != "running":
            raise VmError(f"{vm.name} is {vm.phase}: {hint(vm)}")
        if request.operation == "backup":
            vm = vm.with_(counter=vm.counter + 1)
            return self._orders.order(vm, "backing up", "backup", request.at, server=vm.server, counter=vm.counter)
        if request.server in ("", vm.server):
            raise VmError(f"{vm.name} is there already: name another server")
        policy = request.policy or vm.policy
        decode_policy(policy)
        vm = vm.with_(peer=request.server, policy=policy)
        return self._orders.order(
            vm, "migrating", "migrate", request.at, server=vm.server, destination=request.server, policy=policy
        )

    def _terminate(self, vm: Vm, at: datetime) -> list[UserCommand]:
        """End it where it runs, and what was left elsewhere."""
        if vm.phase in NOWHERE and vm.left:
            return self._orders.sweep(vm, at, "terminate")
        if vm.phase not in ("running", "terminating"):
            raise VmError(f"{vm.name} is {vm.phase}: {hint(vm)}")
        commands = self._orders.order(vm, "terminating", "terminate", at, server=vm.server)
        self.active[vm.vmid].sweeps = "terminate"
        return commands

    def _restore(self, vm: Vm, request: UserRequest) -> list[UserCommand]:
        if vm.phase not in NOWHERE:
            raise VmError(
                f"{vm.name} may run: it is {vm.phase}; terminate it first, or, if its servers are gone for good,"
                " declare it lost"
            )
        if vm.stale:
            raise VmError(
                f"this folder may be out of date: another one with your keys may have started {vm.name} since; if it"
                " runs nowhere, declare it lost"
            )
        if vm.backup is None or not request.server:
            raise VmError(f"{vm.name} has no backup to restore" if request.server else "name a server to restore it on")
        known = [one for one in (vm.backup, vm.whole) if one is not None]
        chosen = next((one for one in known if request.counter in (0, one.counter)), None)
        if chosen is None:
            numbers = ", ".join(str(number) for number in sorted({one.counter for one in known}))
            raise VmError(
                f"of {vm.name} there is no backup {request.counter} that could be restored; there are: {numbers}"
            )
        vm = vm.with_(
            peer=request.server, policy=request.policy or vm.policy, sequence=vm.sequence + RESTORED, chosen=chosen
        )
        decode_policy(vm.policy)
        return self._orders.order(
            vm, "restoring", "restore", request.at, server=vm.peer, policy=vm.policy, counter=chosen.counter
        )

    def _read_back(self, event: ReadBack) -> list[UserCommand]:
        vm = self.vms.get(event.vmid)
        if vm is None or vm.backup is None or vm.backup.counter != event.counter:
            return []
        return [self._orders.keep(vm.with_(whole=vm.backup))]

    def _update(self, vm: Vm, request: UserRequest) -> list[UserCommand]:
        """Have the VM go by this policy: here at once, at its servers by an order."""
        decode_policy(request.policy)
        vm = vm.with_(policy=request.policy)
        if not places(vm):
            return [self._orders.keep(vm), Tell(vm.vmid, f"{vm.name} goes by the new policy", "done")]
        return self._orders.resolve(vm, request.at, "update")

    def _abandon(self, vm: Vm, at: datetime) -> list[UserCommand]:
        source = vm.source()
        if vm.phase in ("running", "lost") and source is not None:  # the destination died after it took over
            vm = vm.cleared(source.server)
            vm = vm.with_(server=source.server, peer=vm.server, sequence=source.sequence)
            return self._orders.order(vm, "abandoning", "abandon", at, server=vm.server, about=source.about)
        if vm.phase not in ("migrating", "abandoning"):
            raise VmError(
                f"{vm.name} is {vm.phase}, and no migration waits for its destination: there is nothing to abandon"
            )
        return self._orders.order(vm, "abandoning", "abandon", at, server=vm.server, about=about(vm))

    def _declare_lost(self, vm: Vm) -> list[UserCommand]:
        self.active.pop(vm.vmid, None)
        text = f"{vm.name} is declared lost: if a server that had it comes back, it may run there again; then resume it"
        vm = vm.leaving(*copies(vm)).with_(phase="lost", stale=False)
        return [self._orders.keep(vm), Tell(vm.vmid, text, "done")]

    def _image(self, session: bytes, data: bytes, final: bool) -> list[UserCommand]:
        vm = self._orders.of(session)
        active = self.active.get(vm.vmid) if vm else None
        if vm is None or active is None or active.stream is None:
            return []
        active.sent = True
        return [Send(vm.peer, wire.StreamChunk(session, active.stream.chunk(data, final)))]

    def _ask(self, vm: Vm, at: datetime) -> list[UserCommand]:
        servers = places(vm)
        if not servers:
            return [Tell(vm.vmid, f"{vm.name} is {vm.phase}: {hint(vm)}", "done")]
        active = self.active.setdefault(vm.vmid, Active(at, at))
        active.quiet = False
        return self._orders.query(vm, active, servers)

    def _tick(self, now: datetime) -> list[UserCommand]:
        commands: list[UserCommand] = []
        for vmid, active in list(self.active.items()):
            vm = self.vms[vmid]
            if active.sent:
                active.since, active.sent = now, False
            if active.resolving or vm.phase not in UNFINISHED:
                if now - active.since >= RESOLVING:
                    self.active.pop(vmid)
                    commands.append(_given_up(vm, active))
                elif now - active.asked >= ASK_AGAIN:
                    active.asked = now
                    commands += [Send(server, one.signed) for server, one in active.settles.items()]
                    commands += self._orders.query(vm, active, tuple(active.settles) or places(vm))
            elif now - active.since >= PATIENCE:
                commands += [Tell(vmid, "no answer: finding out where it is"), *self._orders.resolve(vm, now)]
            elif now - active.asked >= LOOK:
                active.asked, active.quiet = now, True
                commands += self._orders.query(vm, active, places(vm))
        return commands


def _given_up(vm: Vm, active: Active) -> Tell:
    """Servers were silent for too long, or said nothing that decides."""
    if not active.sweeping:
        return Tell(vm.vmid, how_to_resume(vm, active.heard), "failed")
    text = f"{vm.name} is {vm.phase}; {left_text(vm)}: {active.sweeping} it again when that server answers"
    if active.failed:
        return Tell(vm.vmid, f"{active.failed}; {text}", "failed")
    return Tell(vm.vmid, text, "failed" if active.sweeping == "terminate" else "done")
