"""Random schedules of a world of VMs: who does what when, and what goes wrong, is drawn from a number."""

from __future__ import annotations

import random
from typing import Any

from relay import ATTACKS
from vm_parts import Faults, Letter, keys_watched
from world import KIT, World

LETTERS = (
    "Hello", "Offer", "Accept", "Chunk", "Sealed", "Receipt", "Status", "StatusQuery", "Package", "Order settle",
    "Order migrate", "Order terminate", "Order backup", "Order abandon", "Order launch", "Order restore",
)  # fmt: skip
AIMED = (
    ("Offer", "substitute"), ("Accept", "substitute"), ("Status", "substitute"), ("Status", "substitute"),
    ("Receipt", "substitute"), ("Package", "substitute"), ("Order migrate", "substitute"),
    ("Order backup", "substitute"), ("Chunk", "final"), ("Chunk", "drop"), ("Chunk", "twice"), ("Chunk", "splice"),
    ("Offer", "stale"), ("Accept", "stale"),
    ("Status", "stale"), ("Receipt", "stale"), ("Sealed", "hold"), ("Sealed", "drop"), ("Order settle", "hold"),
    ("Order migrate", "hold"), ("Receipt", "drop"), ("Order migrate", "replay"), ("Order terminate", "replay"),
    ("Receipt", "hold"),
)  # fmt: skip
MOMENTS = (
    "Persist leaving", "Persist released", "Persist arriving", "Persist prepared", "Persist resuming",
    "Persist running", "Persist aborted", "Persist ending", "Persist launching", "Send Hello", "Send Sealed", "Resume",
    "Destroy", "Boot", "SendAttested", "FeedEnd", "Outgoing",
)  # fmt: skip


class Schedule:
    """Schedule number ``seed``: who does what when, and what goes wrong, is drawn from it."""

    STEPS = (25, 110)
    VMS_MAX = 4

    def __init__(self, seed: int, kit: Any = KIT, recorded: bool = False, mood: str = "") -> None:
        self.rng = rng = random.Random(f"schedule {seed}")
        drawn = rng.choice(("calm", "relay", "crashes", "hypervisor", "all", *["focus"] * 5, "returns", "returns"))
        self.mood = mood = mood or drawn
        self.faults = Faults(
            rng.choice((0.04, 0.12, 0.3)) if mood in ("relay", "all") else 0.0,
            rng.choice((0.004, 0.02)) if mood in ("crashes", "all") else 0.0,
            rng.choice((0.03, 0.15)) if mood in ("hypervisor", "all") else 0.0,
            0.2 if mood in ("hypervisor", "all") else 0.0,
            0.004 if mood in ("crashes", "all") else 0.0,
        )
        if mood == "focus":
            self._focus(rng)
        if mood == "returns":
            self.faults.ends = rng.choice((0.0, 0.01))
            self.faults.attack, self.faults.how = rng.choice(((0.0, ""), (0.0, ""), (0.04, ""), (0.3, "replay")))
            self.faults.scrub = rng.choice((0.0, 0.0, 0.2))
            self.faults.crash = rng.choice((0.0, 0.0, 0.004))
            self.faults.deaf = rng.random() < 0.4
            self.faults.burns_over = rng.random() < 0.3
        self.orderly = self.rng.random() < 0.6  # letters mostly come in their order
        self.launched = self.rng.random() < 0.75  # what goes wrong begins when the first VMs run
        self.world = World(seed, kit, self.faults, recorded, vms=self.rng.choice((1, 1, 2)))

    def _focus(self, rng: random.Random) -> None:
        """One way of attack on one kind of letter, or crashes at one kind of moment, or both; the rest is as it should
        be.
        """
        what = rng.randrange(3)
        if what != 1:
            self.faults.attack = rng.choice((0.3, 0.9))
            roll = rng.random()
            if roll < 0.5:
                self.faults.only, self.faults.how = rng.choice(AIMED)
                if self.faults.how == "hold":
                    self.faults.lost = rng.choice(("", "Order settle"))
            elif roll < 0.8:
                self.faults.only, self.faults.how = rng.choice(LETTERS), rng.choice(ATTACKS)
            else:
                self.faults.attack, self.faults.detour = 0.0, rng.choice("XXC")
        self.faults.burns = rng.random() < 0.05
        if what != 0:
            self.faults.crash_after = rng.choice(MOMENTS)

    def run(self) -> World:
        """Play it; AssertionError if something happened that must not."""
        world = self.world
        with keys_watched(world.kit, world.secrets.add):
            if self.launched:
                world.faults = Faults()
            for number in range(len(world.vmids)):
                world.request("launch", number, self.rng.choice("AAABBC" if self.launched else "AAABBCD"))
                if self.launched:
                    world.settle_down()
            if self.mood == "returns":
                world.settle_down()
                for _ in range(rng_episodes := self.rng.randint(3, 9)):
                    self._episode(self.rng.randrange(len(world.vmids)))
                    world.judge()
                world.counts["episodes before"] += rng_episodes
            world.faults = self.faults
            for _ in range(self.rng.randint(*self.STEPS)):
                self._step()
                world.judge()
            world.end()
            world.judge()
        return world

    def _episode(self, number: int) -> None:
        """Something whole, that leaves records: of a launch, a migration, one that failed, a backup, a loss, a
        termination.
        """
        world, rng = self.world, self.rng
        vmid = world.vmids[number]
        vm = world.user.vms.get(vmid)
        phase, to = vm.phase if vm else "idle", rng.choice("ABC")
        if phase in world.kit.user_record.UNFINISHED:
            world.request("resolve", number)
        elif phase == "running" and vm.backup is None:
            world.request("backup", number)
        elif phase == "running":
            roll = rng.random()
            if roll < 0.25:
                self._die(number)
                world.request("resolve", number)
            elif roll < 0.4:
                world.request("terminate", number)
            else:
                world.faults = Faults(hypervisor=float(roll > 0.9), deaf=roll < 0.6)
                world.request("migrate", number, "D" if 0.8 < roll < 0.85 else to)
        elif vm is not None and vm.backup is not None:
            world.faults = Faults(hypervisor=float(rng.random() < 0.2))
            world.request("restore", number, to)
        self._orderly(vmid)
        world.faults = Faults()
        self._orderly(vmid)

    def _orderly(self, vmid: bytes) -> None:
        """All goes on in its order, but for what servers may not hear of each other, until the user waits for
        nothing.
        """
        world = self.world
        for _ in range(400):
            world.letters = [one for one in world.letters if not self._unheard(one)]
            if world.letters:
                world.deliver(world.letters.pop(0))
                continue
            if can := world.work():
                can[0]()
            elif vmid not in world.user.active:
                return
            else:
                world.tick(5)

    def _unheard(self, letter: Letter) -> bool:
        """What servers attest to each other, if it never arrives."""
        return (
            self.world.faults.deaf and letter.to in self.world.names and letter.what.split()[0] in ("Receipt", "Status")
        )

    def _die(self, number: int) -> None:
        world = self.world
        for host in world.hosts.values():
            guest = host.guests.get(world.vmids[number])
            if guest is not None and guest.state == "running" and host.core is not None:
                host.dies(world.vmids[number])

    def _step(self) -> None:
        world, rng = self.world, self.rng
        roll = rng.random()
        if self.faults.ends and rng.random() < self.faults.ends:
            self._die(rng.randrange(len(world.vmids)))
        if (roll < 0.03 and not world.letters) or roll < 0.008:
            self._request()
        elif roll < 0.09:
            world.tick(rng.choice((1, 5, 15, 61)))
        elif roll < 0.09 + self.faults.death:
            self._death()
        elif roll < 0.13:
            for host in world.hosts.values():
                if host.core is None and not host.dead:
                    host.start()
                    world.tell(f"{host.name} is started again")
        else:
            self._go_on()

    def _go_on(self) -> None:
        world, rng = self.world, self.rng
        can = world.work()
        if world.letters and (not can or rng.random() < 0.6):
            letter = world.letters.pop(0 if self.orderly and rng.random() < 0.95 else rng.randrange(len(world.letters)))
            aimed = letter.what.startswith(self.faults.only + " ") if self.faults.only else True
            if aimed and self.faults.attack and rng.random() < self.faults.attack:
                try:
                    made = world.relay.attacked(letter)
                except world.kit.ports.VmError:  # it cannot be made sense of after an earlier attack
                    return
                for one, to in made:
                    world.deliver(one, to)
            elif self.faults.detour and letter.to == world.hosts["B"].identity and rng.random() < 0.95:
                world.counts["relay: detour"] += 1
                world.tell(f"relay: {letter.what} goes to {self.faults.detour}")
                world.deliver(letter, self.faults.detour)
            elif self._unheard(letter):
                world.counts["relay: a server hears nothing of another"] += 1
                world.tell(f"relay: {letter.what} never arrives")
            elif self.faults.lost and letter.what.startswith(self.faults.lost):
                world.counts["relay: lost"] += 1
                world.tell(f"relay: {letter.what} never arrives")
            else:
                world.tell(f"{letter.what} arrives")
                world.deliver(letter)
        elif world.held and rng.random() < 0.05:
            world.letters.append(world.held.pop(0))
        elif can:
            rng.choice(can)()
        elif rng.random() < 0.6:
            self._request()
        else:
            world.tick(rng.choice((5, 15, 61)))

    def _request(self) -> None:
        world, rng = self.world, self.rng
        number = rng.randrange(len(world.vmids))
        vm = world.user.vms.get(world.vmids[number])
        phase = vm.phase if vm else "idle"
        if vm is not None and vm.backup is not None and vm.backup != vm.whole and rng.random() < 0.2:
            world.read_back(number)
            return
        if vm is not None and vm.backup is not None and rng.random() < 0.15:
            operation = "restore"
        elif phase == "running":
            operation = rng.choice(
                (
                    "migrate",
                    "migrate",
                    "migrate",
                    "migrate",
                    "backup",
                    "backup",
                    "terminate",
                    "ask",
                    "resolve",
                    "update",
                )
            )
        elif vm is not None and phase in world.kit.user_record.NOWHERE and vm.left and rng.random() < 0.3:
            operation = rng.choice(("terminate", "resolve"))
        elif phase in world.kit.user_record.NOWHERE:
            if vm is None or vm.backup is None:
                self._another()
                return
            operation = "restore"
        else:
            operation = rng.choice(("ask", "resolve", "migrate"))
        world.request(
            operation,
            number,
            rng.choice("BBBA" if self.faults.detour else "ABCABCABCD") if operation in ("migrate", "restore") else "",
            rng.choice((0, vm.whole.counter)) if operation == "restore" and vm and vm.whole else 0,
        )

    def _another(self) -> None:
        world = self.world
        if len(world.vmids) < self.VMS_MAX:
            world.request("launch", world.new_vm(), self.rng.choice("AAABBBCD"))
        else:
            world.tick(5)

    def _death(self) -> None:
        """A server burns down, with all that is on it. One at most: more and there is nothing to be said."""
        world = self.world
        if any(host.dead for host in world.hosts.values()):
            return
        world.burn(world.hosts[self.rng.choice("ABC")])
