"""The referee of a world of VMs (world.py): it watches guests and what the user is told, not the machines' state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vm_parts import Faults, Guest, Wrong

if TYPE_CHECKING:
    from world import Host, World


class Referee:
    """Sees what must not happen, and raises Wrong."""

    def __init__(self, world: World) -> None:
        self.world = world

    def running(self, vmid: bytes) -> list[str]:
        return [
            host.name
            for host in self.world.hosts.values()
            if (guest := host.guests.get(vmid)) is not None and guest.state == "running"
        ]

    def ended(self, vmid: bytes, host: Host, guest: Guest) -> None:
        """A guest was destroyed by a machine: was that its only copy, without the user's order?"""
        if (
            guest.state not in ("running", "paused")
            or not guest.marker
            or vmid in self.world.terminated | self.world.burnt
        ):
            return
        if any(
            vmid in other.guests and other.guests[vmid].marker for other in self.world.hosts.values() if not other.dead
        ):
            return
        confirmed = self.world.kit.user_record.decode_vm(self.world.disk[vmid]).phase not in (
            "idle",
            "launching",
            "restoring",
            "lost",
        )
        if confirmed:
            raise Wrong(f"{host.name} destroyed the only copy of a VM")

    def judge(self) -> None:
        """Look at the guests and at who was fed."""
        for vmid in self.world.vmids:
            where = self.running(vmid)
            if len(where) > 1:
                raise Wrong(f"a VM runs on {' and '.join(where)}")
        for host in self.world.hosts.values():
            if not host.trusted and (host.guests or host.fed_ever):
                raise Wrong(f"{host.name}, which the owner does not trust, was given plaintext of a VM")

    def check_told(self, told: Any) -> None:
        """What the user is told to be overwritten is; there is one folder, and it is not taken for two."""
        if "another folder" in told.text or "out of date" in told.text:
            raise Wrong(f"the only folder of the user is taken for an old one: {told.text}")
        vm = self.world.kit.user_record.decode_vm(self.world.disk[told.vmid]) if told.vmid in self.world.disk else None
        begun = (
            vm.peer if vm is not None and vm.phase in ("restoring", "migrating") else ""
        )  # where a new copy may be by now
        for host in self.world.hosts.values():
            claimed = f"server {host.identity[:12]} attests that it overwrote" in told.text or (
                f"left on server {host.identity[:12]} is overwritten" in told.text and host.identity != begun
            )
            if claimed and host.name != "X" and (told.vmid in host.guests or told.vmid in host.rubbish):
                raise Wrong(f"an untrue receipt: {host.name} still has something of a VM")
        if vm is not None and vm.phase == "terminated" and told.end == "done":
            known = {one.server for one in vm.left}
            alive = [host for host in self.world.hosts.values() if not host.dead and host.identity not in known]
            left = [host.name for host in alive if told.vmid in host.guests]
            if left:
                raise Wrong(f"an untrue receipt: a VM is terminated, and {' and '.join(left)} still has a copy")

    def end(self) -> None:
        """The relay is honest again and everyone is up: the user finds out, and exactly one place runs each VM, or none
        by order.
        """
        faults = self.world.faults
        calm = not (
            faults.attack or faults.detour or faults.crash or faults.hypervisor or faults.crash_after or faults.scrub
            or faults.ends or any(host.dead for host in self.world.hosts.values())
        )  # fmt: skip
        self.world.faults = Faults()
        for host in self.world.hosts.values():
            if not host.dead and host.core is None:
                host.start()
        self.world.letters += self.world.held
        self.world.settle_down()
        for vmid in self.world.vmids if calm else ():
            if vmid in self.world.user.vms and self.world.user.vms[vmid].phase == "running":
                self._compare(vmid)
        for number, vmid in enumerate(self.world.vmids):
            self._resolve(number, vmid)
            self._compare(vmid)
            self._no_hidden_copy(vmid)
        for number, vmid in enumerate(self.world.vmids):
            if self.world.rng.random() < 0.5:
                self._end_for_good(number, vmid)

    def _no_hidden_copy(self, vmid: bytes) -> None:
        """Where there is a copy, the VM runs, or the user knows that one was left."""
        vm = self.world.user.vms.get(vmid)
        known = {one.server for one in vm.left} | {vm.server if vm.phase == "running" else ""} if vm else set()
        for host in self.world.hosts.values():
            if not host.dead and vmid in host.guests and host.identity not in known:
                raise Wrong(f"{host.name} has a copy of a VM that the user does not know of")

    def _end_for_good(self, number: int, vmid: bytes) -> None:
        """The user terminates it, and what is left of it; servers that are gone for good cannot attest that."""
        vm = self.world.user.vms.get(vmid)
        if vm is None or (vm.phase != "running" and not vm.left):
            return
        self.world.request("terminate", number)
        for _ in range(40):
            self.world.settle_down()
            if vmid not in self.world.user.active:
                break
            self.world.tick(4)
        vm = self.world.user.vms[vmid]
        silent = {host.identity for host in self.world.hosts.values() if host.dead or not host.trusted}
        if {one.server for one in vm.left} <= silent and vm.phase != "terminating":
            self._compare(vmid)
            if any(vmid in host.guests for host in self.world.hosts.values()):
                raise Wrong("a VM is ended for good, and a server still has a copy of it")
        else:
            raise Wrong(f"a VM cannot be ended: it is {vm.phase}, {len(vm.left)} copies are left")

    def _resolve(self, number: int, vmid: bytes) -> None:
        for _ in range(8):
            if vmid not in self.world.user.vms:
                return
            if self.world.user.vms[vmid].phase == "running" and self._settled(vmid):
                return
            if self.world.user.vms[vmid].phase in self.world.kit.user_record.NOWHERE:
                return
            self.world.request("resolve", number)
            for _ in range(50):
                self.world.settle_down()
                if vmid not in self.world.user.active:
                    break
                self.world.tick(4)
            self._obey(number, vmid)
        raise Wrong(f"the user does not get to know where a VM is: it is {self.world.user.vms[vmid].phase}")

    def _settled(self, vmid: bytes) -> bool:
        return bool(self.running(vmid))

    def _obey(self, number: int, vmid: bytes) -> None:
        """Do what the user was told to do when servers are gone for good."""
        vm = self.world.user.vms[vmid]
        dead = {host.identity for host in self.world.hosts.values() if host.dead}
        text = next((text for whom, text, _ in reversed(self.world.told) if whom == vmid), "")
        if vm.phase == "terminating" and "terminate it again" in text:
            self.world.request("terminate", number)
        elif vm.phase in ("migrating", "abandoning") and vm.peer in dead and vm.server not in dead:
            if "abandon" not in text:
                raise Wrong(f"the user is not told how to resume: {text}")
            self.world.request("abandon", number)
        elif (
            vm.phase not in self.world.kit.user_record.NOWHERE and {vm.server, vm.peer} & dead and vm.phase != "running"
        ):
            if "declare it lost" not in text:
                raise Wrong(f"the user is not told how to resume: {text}")
            if not self.running(vmid):
                self.world.request("declare lost", number)
        elif vm.phase == "running" and vm.server in dead:
            source = vm.source()
            if source is not None and source.server not in dead and self.world.rng.random() < 0.7:
                if "abandon" not in text:
                    raise Wrong(f"the user is not told that the source still has it: {text}")
                self.world.counts["abandoned after the destination took over"] += 1
                self.world.request("abandon", number)
            else:
                self.world.request("declare lost", number)
        self.world.settle_down()

    def _compare(self, vmid: bytes) -> None:
        where, vm = self.running(vmid), self.world.user.vms.get(vmid)
        phase = vm.phase if vm else "idle"
        if phase == "running":
            if [self.world.names[vm.server]] != where:
                raise Wrong(
                    f"the user believes that a VM runs on {self.world.names[vm.server]}; it runs on {where or 'none'}"
                )
            guest = self.world.hosts[where[0]].guests[vmid]
            if (guest.image, guest.marker) != (self.world.image(vmid), self.world.marker(vmid)):
                raise Wrong("what runs is not what was launched")
        elif where:
            raise Wrong(f"the user believes that a VM is {phase}; it runs on {where}")
        if phase == "terminated" and vmid not in self.world.terminated:
            raise Wrong("a VM is terminated without its user's order")
        self.world.counts[f"end: {phase}"] += 1
