"""A small site for tests of the VM protocols: a user, servers with guests, storage, and a relay that may misbehave.

The machines are the real ones, and so is the cryptography (towers.py); guests are a few bytes. A referee that knows
nothing of the machines' own state looks at the guests, at what the relay saw and at what servers that the owner does
not trust were fed.

All that happens is drawn from a number: the same number, the same story.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import msgspec
from referee import Referee
from relay import Relay, flipped
from towers import AT, Environment, Maker, Tower, maker, policy
from vm_parts import Crash, Faults, Guest, Letter, Wrong, described

from quoreduce.vm import evidence, owners, ports, sealing, server, user, user_ports, user_record, wire

PARTS = 4  # Data events of a guest's state, and of an image
KIT = SimpleNamespace(
    ports=ports, sealing=sealing, owners=owners, Server=server.Server, user=user, user_ports=user_ports,
    user_record=user_record,
)  # fmt: skip


class _Anyone:
    """The list of owners of a server that serves everybody."""

    def __init__(self, kit: Any, records: int) -> None:
        self._quota = kit.Quota(records=records)

    def quota(self, user: str) -> Any:
        return self._quota


@cache
def _environments() -> dict[str, str]:
    return {name: Environment.named(name).digest for name in ("good", "dump-guest-memory")}


def _remembered(check: Callable[..., None], key: Callable[..., Any]) -> Callable[..., None]:
    """A check of the same few towers that passed once passes again: nothing in it is of one challenge. Refusals are not
    kept.
    """
    passed: set[Any] = set()

    def checked(*arguments: Any) -> None:
        known = key(*arguments)
        if known not in passed:
            check(*arguments)
            passed.add(known)

    return checked


evidence.check_ek_chain = _remembered(evidence.check_ek_chain, lambda ek, roots, at: (ek, tuple(roots), at.date()))  # type: ignore[attr-defined]
evidence.check_enrolment = _remembered(
    evidence.check_enrolment, lambda hardware, registrar: (hardware.ek, hardware.ak, hardware.enrolment, registrar)
)  # type: ignore[attr-defined]

_TOWERS: dict[str, Any] = {}


def _towers() -> dict[str, Any]:
    """The servers' roots, made once in a process: two good ones, one that may dump memory, one without a TPM that
    anyone vouches for.
    """
    if not _TOWERS:
        good, dumps = Environment.named("good"), Environment.named("dump-guest-memory")
        _TOWERS.update(
            A=Tower(maker(), good),
            B=Tower(maker(), good),
            C=Tower(maker(), good),
            D=Tower(maker(), dumps),
            X=Tower(Maker("nobody"), good),
        )
    return _TOWERS


class Host:
    """A server: its agent's process (which may die), its disk, and its guests (which live on)."""

    def __init__(self, world: World, name: str, claims: str = "") -> None:
        self.world, self.name, self.tower = world, name, _towers()[name]
        self.identity = claims or self.tower.identity
        self.trusted = name in "ABC"
        self.disk: dict[bytes, bytes] = {}
        self.floors: dict[str, int] = {}
        self.guests: dict[bytes, Guest] = {}
        self.rubbish: set[bytes] = set()  # of these VMs something could not be overwritten
        self.dead = False
        self.orders: set[bytes] = set()
        self.core: Any = None
        self.fed_ever = False
        self._clear()

    def _clear(self) -> None:
        self.core = None
        self.tpms: dict[bytes, Any] = {}
        self.fed: dict[bytes, bytearray] = {}
        self.opened: dict[bytes, tuple[bytes, bool]] = {}
        self.events: list[Any] = []

    def crash(self) -> None:
        self._clear()

    def start(self) -> None:
        """Start the agent: adopt guests, put in order what is found."""
        world, kit = self.world, self.world.kit
        self.core = kit.Server(
            self.identity, world.secret.randbytes, world.owners, list(self.disk.values()), self.floors
        )
        for vmid in list(self.disk):
            self.give(kit.ports.RecordFound(vmid, vmid in self.guests, world.now))

    def give(self, event: Any) -> None:
        if self.core is None:
            return
        try:
            for command in self.core.step(event):
                self.world.maybe_crash(self.name)
                self._do(command)
                self.world.judge()
                self.world.crash_focused(self.name, command)
            self.world.maybe_crash(self.name)
        except Crash:
            self.world.tell(f"{self.name} is killed")
            self.crash()

    def _do(self, command: Any) -> None:
        world = self.world
        kind = type(command).__name__
        if kind not in ("Send", "SendAttested", "StartTcom", "EndTcom", "Extend", "Feed"):
            world.tell(f"{self.name}: {self._describe(command)}")
        getattr(self, f"_do_{kind}")(command)

    def _describe(self, command: Any) -> str:
        kind = type(command).__name__
        match kind:
            case "Persist":
                record = self.world.kit.ports.decode_record(command.record)
                return f"record {record.phase} (sequence {record.sequence})"
            case "Note":
                return f"notes: {self.world.named(command.text)}"
        return kind

    def _fails(self, session: bytes, what: str) -> bool:
        if not self.world.hypervisor_fails():
            return False
        self.world.tell(f"{self.name}: {what} fails")
        self.events.append(self.world.kit.ports.CommandFailed(session, f"{what} failed"))
        return True

    def _do_Persist(self, command: Any) -> None:  # noqa: N802
        decode = self.world.kit.ports.decode_record
        order = decode(command.record).order
        if command.vmid not in self.disk or decode(self.disk[command.vmid]).order != order:
            if order in self.orders - {bytes(32)}:
                raise Wrong(f"{self.name} used an order twice")
            self.orders.add(order)
        self.disk[command.vmid] = command.record

    def _do_Forget(self, command: Any) -> None:  # noqa: N802
        self.world.counts["records forgotten"] += 1
        self.disk.pop(command.vmid, None)

    def _do_Floor(self, command: Any) -> None:  # noqa: N802
        self.floors[command.owner] = command.number

    def _do_StartTcom(self, command: Any) -> None:  # noqa: N802
        self.tpms[command.session] = self.tower.session(command.operation)

    def _do_Extend(self, command: Any) -> None:  # noqa: N802
        self.tpms[command.session].extend(command.pcr, command.data)

    def _do_SendAttested(self, command: Any) -> None:  # noqa: N802
        made = self.tpms[command.session].attest(command.nonce, command.vmid, command.content)
        message = wire.AttestedMessage(command.content, evidence.encode(made))
        for to in command.to:
            self.world.post(self.name, to, message)

    def _do_EndTcom(self, command: Any) -> None:  # noqa: N802
        for held in (self.tpms, self.fed, self.opened):
            held.pop(command.session, None)
        self._stop(command.session)

    def _stop(self, session: bytes) -> None:
        kinds = (self.world.kit.ports.Data, self.world.kit.ports.DataEnd, self.world.kit.ports.Fetched)
        self.events = [one for one in self.events if not (isinstance(one, kinds) and one.session == session)]

    def _do_Send(self, command: Any) -> None:  # noqa: N802
        self.world.post(self.name, command.to, command.message)

    def _do_PutBlob(self, command: Any) -> None:  # noqa: N802
        self.world.seen(command.data)
        self.world.storage.setdefault(command.blob, []).append(command.data)

    def _do_GetBlob(self, command: Any) -> None:  # noqa: N802
        for part in self.world.stored(command.blob):
            self.events.append(self.world.kit.ports.Fetched(command.session, part))
        if not self.world.storage.get(command.blob):
            self.events.append(self.world.kit.ports.CommandFailed(command.session, "there is no such blob"))

    def _do_Open(self, command: Any) -> None:  # noqa: N802
        self.fed[command.session] = bytearray()
        self.opened[command.session] = command.vmid, command.incoming
        if command.incoming:
            if command.vmid in self.guests:
                raise Wrong(f"{self.name} opens a second guest of one VM")
            self.guests[command.vmid] = Guest("loading")

    def _do_Feed(self, command: Any) -> None:  # noqa: N802
        self.fed_ever = True
        self.fed[command.session] += command.data

    def _do_FeedEnd(self, command: Any) -> None:  # noqa: N802
        vmid, incoming = self.opened[command.session]
        if not incoming or self._fails(command.session, "loading"):
            return
        try:
            image, marker = msgspec.msgpack.decode(bytes(self.fed[command.session]), type=tuple[bytes, bytes])
        except msgspec.DecodeError:
            image, marker = b"", b"cut"  # QEMU may well take it
        self.guests[vmid] = Guest("paused", image, marker)
        self.events.append(self.world.kit.ports.Loaded(command.session))

    def _do_Boot(self, command: Any) -> None:  # noqa: N802
        if self._fails(command.session, "boot"):
            return
        if command.vmid in self.guests:
            raise Wrong(f"{self.name} boots a second guest of one VM")
        self.guests[command.vmid] = Guest("running", bytes(self.fed[command.session]), self.world.marker(command.vmid))
        self.events.append(self.world.kit.ports.Booted(command.session))

    def _do_Outgoing(self, command: Any) -> None:  # noqa: N802
        guest = self.guests.get(command.vmid)
        if guest is None:
            self.events.append(self.world.kit.ports.CommandFailed(command.session, "there is no guest"))
            return
        ports, raw = self.world.kit.ports, guest.encode()
        size = -(-len(raw) // PARTS)
        for at in range(0, len(raw), size):
            if self._fails(command.session, "migration stream"):
                return
            self.events.append(ports.Data(command.session, raw[at : at + size]))
        guest.state = "paused"
        self.events.append(ports.DataEnd(command.session))

    def _do_Resume(self, command: Any) -> None:  # noqa: N802
        guest = self.guests.get(command.vmid)
        self._stop(command.session)
        if guest is None or guest.state == "loading":
            self.events.append(self.world.kit.ports.CommandFailed(command.session, "there is no guest to resume"))
            self.events.append(self.world.kit.ports.GuestGone(command.vmid))
        elif not self._fails(command.session, "resume"):
            guest.state = "running"
            self.events.append(self.world.kit.ports.Resumed(command.session))

    def _do_Destroy(self, command: Any) -> None:  # noqa: N802
        ports = self.world.kit.ports
        self._stop(command.session)
        if (guest := self.guests.pop(command.vmid, None)) is not None:
            self.world.referee.ended(command.vmid, self, guest)
        self.rubbish.add(command.vmid)
        if self.world.scrub_fails():
            self.events.append(ports.ScrubFailed(command.session, "disk.img does not read back as overwritten"))
        else:
            self.rubbish.discard(command.vmid)
            self.events.append(ports.Scrubbed(command.session, b'{"files":3}'))

    def dies(self, vmid: bytes) -> None:
        """A guest ends by itself."""
        self.guests.pop(vmid)
        self.world.burnt.add(vmid)
        self.world.counts["guests that ended by themselves"] += 1
        self.world.tell(f"{self.name}: the guest ends by itself")
        self.give(self.world.kit.ports.GuestGone(vmid))

    def _do_Note(self, command: Any) -> None:  # noqa: N802
        self.world.notes[self.world.named(command.text)] += 1
        if not command.text.strip():
            raise Wrong("a refusal without a reason")


class World:
    """Everything, and who moves next."""

    def __init__(
        self, seed: int, kit: Any = KIT, faults: Faults | None = None, recorded: bool = False, vms: int = 1
    ) -> None:
        self.kit, self.rng, self.secret = kit, random.Random(seed), random.Random(~seed)
        self.faults = faults or Faults()
        self.now: datetime = AT
        self.lines: list[str] | None = [] if recorded else None
        self.notes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.storage: dict[str, list[bytes]] = {}
        self.letters: list[Letter] = []
        self.held: list[Letter] = []
        self.offers: dict[bytes, wire.Offer] = {}
        self.faulty = False
        self.history: list[Letter] = []
        self.secrets: set[bytes] = set()
        self.told: list[tuple[bytes, str, str]] = []
        self.markers: dict[bytes, bytes] = {}
        self.terminated: set[bytes] = set()
        self.burnt: set[bytes] = set()
        self.policy = policy().encode()
        self.owners = _Anyone(self.kit.owners, records=self.rng.choice((2, 256)))
        self.kill_at: tuple[str, int] | None = None
        self.relay, self.referee = Relay(self), Referee(self)
        self.running, self.judge, self.end = self.referee.running, self.referee.judge, self.referee.end
        self.hosts = {name: Host(self, name) for name in "ABCD"}
        self.hosts["X"] = Host(self, "X", claims=self.hosts["B"].identity)
        self.names = {host.identity: name for name, host in self.hosts.items() if name != "X"}
        for host in self.hosts.values():
            host.start()
        self.disk: dict[bytes, bytes] = {}
        self.image_events: list[Any] = []
        self.keys = self.secret.randbytes(32), self.secret.randbytes(32)
        self.user: Any = None
        self._messages = 0
        self.start_user()
        self.images: list[bytes] = []
        self.vmids: list[bytes] = []
        for _ in range(vms):
            self.new_vm()

    def new_vm(self) -> int:
        """A VM that could be launched: its number."""
        self.vmids.append(self.secret.randbytes(16))
        self.images.append(self.secret.randbytes(24) * 6)
        self.secrets.add(self.images[-1][:24])
        return len(self.vmids) - 1

    # Randomness of the edge

    def maybe_crash(self, name: str) -> None:
        """Called between commands: kill a party by chance, or because it is its turn."""
        if self.kill_at is not None and self.kill_at[0] == name:
            self.kill_at = (name, self.kill_at[1] - 1)
            if self.kill_at[1] < 0:
                self.kill_at = None
                raise Crash
        if self.faults.crash and self.rng.random() < self.faults.crash:
            self.counts["crashes"] += 1
            raise Crash

    def crash_focused(self, name: str, command: Any) -> None:
        """Kill a party after a command of the kind that this schedule is about."""
        faults = self.faults
        if faults.burns and _kind(self.kit, command) == "Persist released":
            peer = self.names[self.kit.ports.decode_record(command.record).peer]
            if peer != name and not any(host.dead for host in self.hosts.values()):
                self.burn(self.hosts[peer])
        if (
            faults.burns_over
            and _kind(self.kit, command) == "EndTcom"
            and self._took_over(self.hosts[name], command.session)
        ):
            self.burn(self.hosts[name])
            raise Crash
        if faults.crash_after and _kind(self.kit, command) == faults.crash_after and self.rng.random() < 0.4:
            self.counts["crashes"] += 1
            raise Crash

    def _took_over(self, host: Host, order: bytes) -> bool:
        """Whether a VM arrived here by this order, and its source waits to hear that."""
        decode = self.kit.ports.decode_record
        phases = {
            other.name: record.phase
            for other in self.hosts.values()
            for record in map(decode, other.disk.values())
            if record.order == order
        }
        return phases.get(host.name) == "running" and "released" in phases.values() and not any(
            one.dead for one in self.hosts.values()
        )  # fmt: skip

    def burn(self, host: Host) -> None:
        """A server is gone, with all that is on it."""
        host.dead = True
        host.crash()
        self.burnt.update(host.guests)
        host.guests.clear()
        self.counts["servers burnt down"] += 1
        self.tell(f"{host.name} burns down")

    def hypervisor_fails(self) -> bool:
        return self._happens(self.faults.hypervisor, "hypervisor failures")

    def scrub_fails(self) -> bool:
        return self._happens(self.faults.scrub, "scrub failures")

    def _happens(self, chance: float, what: str) -> bool:
        if not chance or self.rng.random() >= chance:
            return False
        self.counts[what] += 1
        return True

    def marker(self, vmid: bytes) -> bytes:
        if vmid not in self.markers:
            self.markers[vmid] = self.secret.randbytes(24)
            self.secrets.add(self.markers[vmid])
        return self.markers[vmid]

    # The story

    def tell(self, line: str) -> None:
        if self.lines is not None:
            self.lines.append(line)

    def named(self, text: str) -> str:
        """A text without what is random in it."""
        for identity, name in self.names.items():
            text = text.replace(identity[:12], name)
        for environment, digest in _environments().items():
            text = text.replace(digest, f"<{environment}>").replace(digest[:12], f"<{environment}>")
        return text.replace(_towers()["X"].identity[:12], "X").replace(self.user.address if self.user else "\0", "user")

    # The relay

    def post(self, sender: str, to: str, message: Any) -> None:
        raw = wire.encode(message)
        self.seen(raw)
        what = f"{described(message)} {sender}>{self.names.get(to, 'user')}"
        letter = Letter(to, raw, what)
        self.letters.append(letter)
        self.history.append(letter)
        if isinstance(message, wire.AttestedMessage) and isinstance(
            offer := wire.decode_said(message.content), wire.Offer
        ):
            self.offers[offer.order] = offer
        self.tell(f"  -> {what}")

    def seen(self, raw: bytes) -> None:
        """The relay sees these bytes: no secret may be in them."""
        for secret in self.secrets:
            if secret in raw:
                raise Wrong("a secret went through the relay in the clear")

    def stored(self, blob: str) -> list[bytes]:
        """What the storage gives for a blob: whatever it likes, under attack."""
        parts = list(self.storage.get(blob, ()))
        if parts and self._happens(self.faults.attack, "attacks on storage"):
            kind = self.rng.randrange(4)
            if kind == 0:
                parts = parts[:-1]
            elif kind == 1:
                at = self.rng.randrange(len(parts))
                parts[at] = flipped(parts[at], self.rng)
            elif kind == 2:
                parts = list(self.storage[self.rng.choice(sorted(self.storage))])
            else:
                self.rng.shuffle(parts)
        return parts

    def deliver(self, letter: Letter, to: str = "") -> None:
        """Hand a letter to whom it names (or to another)."""
        self._messages += 1
        try:
            message = wire.decode_message(letter.raw)
        except self.kit.ports.VmError:
            self.counts["undecodable"] += 1
            return
        event = self.kit.ports.Received(message, self.now)
        name = to or self.names.get(letter.to, "")
        if name:
            self.hosts[name].give(event)
        else:
            self.give_user(event)

    # The user

    def start_user(self) -> None:
        self.user = self.kit.user.User(*self.keys, self.secret.randbytes, list(self.disk.values()))
        self.image_events = []

    def give_user(self, event: Any) -> None:
        if self.user is None:
            return
        try:
            for command in self.user.step(event):
                self.maybe_crash("user")
                self._do_user(command)
            self.maybe_crash("user")
        except Crash:
            self.tell("the user agent is killed")
            self.start_user()

    def _do_user(self, command: Any) -> None:
        kind = type(command).__name__
        if kind == "Persist":
            self.disk[command.vmid] = command.record
            self.tell(f"user: record {self.kit.user_record.decode_vm(command.record).phase}")
        elif kind == "Send":
            self.post("user", command.to, command.message)
        elif kind == "WantImage":
            image = self.image(command.vmid)
            size = -(-len(image) // PARTS)
            parts = [image[at : at + size] for at in range(0, len(image), size)]
            ports = self.kit.ports
            self.image_events += [
                *(ports.Data(command.session, part) for part in parts),
                ports.DataEnd(command.session),
            ]
        else:
            self.told.append((command.vmid, command.text, command.end))
            self.referee.check_told(command)
            self.notes[self.named(command.text)] += 1
            self.tell(f"user is told{' (' + command.end + ')' if command.end else ''}: {self.named(command.text)}")
            if not command.text.strip():
                raise Wrong("the user is told nothing")

    def image(self, vmid: bytes) -> bytes:
        return self.images[self.vmids.index(vmid)]

    def request(self, operation: str, number: int = 0, to: str = "", counter: int = 0) -> None:
        vmid = self.vmids[number]
        self.tell(f"user wants: {operation}{f' of backup {counter}' if counter else ''}{' ' + to if to else ''}")
        self.counts[f"request: {operation}"] += 1
        target = self.hosts[to].identity if to else ""
        if to and operation in ("migrate", "restore") and vmid in self.hosts[to].disk:
            record = self.kit.ports.decode_record(self.hosts[to].disk[vmid])
            self.counts[f"return: {record.phase}"] += 1
        if operation == "launch":
            image = self.image(vmid)
            spec = self.kit.ports.VmSpec()
            new = self.kit.user_ports.NewVm(
                vmid, f"vm{number}", target, self.policy, spec, sha256(image).digest(), len(image), self.now
            )  # fmt: skip
            self.give_user(new)
            return
        if operation == "terminate":
            self.terminated.add(vmid)
        policy = self.policy if operation == "update" else b""
        self.give_user(self.kit.user_ports.UserRequest(operation, vmid, self.now, target, policy, counter))

    def read_back(self, number: int = 0) -> None:
        """The user's agent has compared the newest backup with what storage has."""
        vm = self.user.vms[self.vmids[number]]
        self.tell(f"backup {vm.backup.counter} is read back as it was")
        self.counts["backups read back"] += 1
        self.give_user(self.kit.user_ports.ReadBack(vm.vmid, vm.backup.counter))

    # Time and order

    def tick(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        for host in self.hosts.values():
            host.give(self.kit.ports.Tick(self.now))
        self.give_user(self.kit.ports.Tick(self.now))

    def work(self) -> list[Callable[[], None]]:
        """What could happen next, but for time, faults and the user's requests."""
        can: list[Callable[[], None]] = []
        for host in self.hosts.values():
            if host.core is not None and host.events:
                can.append(lambda host=host: host.give(host.events.pop(0)))
        if self.image_events and self.user is not None:
            can.append(lambda: self.give_user(self.image_events.pop(0)))
        return can

    def settle_down(self, limit: int = 3000) -> None:
        """Without an attack: everything that is under way happens, in order."""
        for _ in range(limit):
            if self.letters:
                self.deliver(self.letters.pop(0))
                continue
            can = self.work()
            if not can:
                return
            can[0]()
        raise Wrong("it never settles: messages without end")


def _kind(kit: Any, command: Any) -> str:
    kind = type(command).__name__
    if kind == "Persist":
        return f"Persist {kit.ports.decode_record(command.record).phase}"
    return f"Send {wire.name_of(type(command.message))}" if kind == "Send" else kind
