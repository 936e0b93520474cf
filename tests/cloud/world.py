"""A small cloud for tests of the VM protocols: a user, servers with guests, storage, and a relay that may do as it likes.

The machines are the real ones, and so is the cryptography (towers.py); guests are a few bytes. A referee that knows nothing of
the machines' own state looks at the guests, at what the relay saw and at what servers that the owner does not trust were fed.

All that happens is drawn from a number: the same number, the same story.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import msgspec
from towers import AT, Environment, Maker, Tower, maker, policy

from quoreduce.cloud import evidence, owners, ports, sealing, server, user, wire

ATTACKS = (
    "drop",
    "hold",
    "twice",
    "flip",
    "cut",
    "final",
    "splice",
    "replay",
    "substitute",
    "stale",
    "reroute",
    "impostor",
    "both",
)
LETTERS = ("Hello", "Offer", "Accept", "Chunk", "Sealed", "Receipt", "Status", "StatusQuery", "Package", "Order settle",
           "Order migrate", "Order terminate", "Order backup", "Order abandon", "Order launch", "Order restore")  # fmt: skip
AIMED = (("Offer", "substitute"), ("Accept", "substitute"), ("Status", "substitute"), ("Status", "substitute"),
         ("Receipt", "substitute"),
         ("Package", "substitute"), ("Order migrate", "substitute"), ("Order backup", "substitute"), ("Chunk", "final"),
         ("Chunk", "drop"), ("Chunk", "twice"), ("Chunk", "splice"), ("Offer", "stale"), ("Accept", "stale"), ("Status", "stale"),
         ("Receipt", "stale"), ("Sealed", "hold"), ("Sealed", "drop"), ("Order settle", "hold"), ("Order migrate", "hold"),
         ("Receipt", "drop"), ("Order migrate", "replay"), ("Order terminate", "replay"), ("Receipt", "hold"))  # fmt: skip
MOMENTS = ("Persist leaving", "Persist released", "Persist arriving", "Persist prepared", "Persist resuming", "Persist running",
           "Persist aborted", "Persist ending", "Persist launching", "Send Hello", "Send Sealed", "Resume", "Destroy", "Boot",
           "SendAttested", "FeedEnd", "Outgoing")  # fmt: skip
PARTS = 4  # Data events of a guest's state, and of an image
KIT = SimpleNamespace(ports=ports, sealing=sealing, owners=owners, Server=server.Server, user=user)


class Wrong(AssertionError):
    """What no protocol may let happen."""


class Crash(Exception):
    """A party's process is killed."""


@dataclass(slots=True)
class Guest:
    """``marker``: the secret in its memory. ``ticks``: how often it was seen running."""

    state: str
    image: bytes = b""
    marker: bytes = b""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode((self.image, self.marker))


@dataclass(slots=True)
class Letter:
    """Bytes in the relay's hands."""

    to: str
    raw: bytes
    what: str


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
    """A check of the same few towers that passed once passes again: nothing in it is of one challenge. Refusals are not kept."""
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
    """The servers' roots, made once in a process: two good ones, one that may dump memory, one without a TPM that anyone
    vouches for.
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
        self.core = kit.Server(self.identity, world.secret.randbytes, world.owners, list(self.disk.values()), self.floors)
        for vmid in list(self.disk):
            self.give(kit.ports.Recovered(vmid, vmid in self.guests, world.now))

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
        self.events.append(self.world.kit.ports.Failed(session, f"{what} failed"))
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
        message = wire.Attested(command.content, evidence.encode(made))
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

    def _do_Put(self, command: Any) -> None:  # noqa: N802
        self.world.seen(command.data)
        self.world.storage.setdefault(command.blob, []).append(command.data)

    def _do_Get(self, command: Any) -> None:  # noqa: N802
        for part in self.world.stored(command.blob):
            self.events.append(self.world.kit.ports.Fetched(command.session, part))
        if not self.world.storage.get(command.blob):
            self.events.append(self.world.kit.ports.Failed(command.session, "there is no such blob"))

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
            self.events.append(self.world.kit.ports.Failed(command.session, "there is no guest"))
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
            self.events.append(self.world.kit.ports.Failed(command.session, "there is no guest to resume"))
            self.events.append(self.world.kit.ports.Gone(command.vmid))
        elif not self._fails(command.session, "resume"):
            guest.state = "running"
            self.events.append(self.world.kit.ports.Resumed(command.session))

    def _do_Destroy(self, command: Any) -> None:  # noqa: N802
        ports = self.world.kit.ports
        self._stop(command.session)
        if (guest := self.guests.pop(command.vmid, None)) is not None:
            self.world.ended(command.vmid, self, guest)
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
        self.give(self.world.kit.ports.Gone(vmid))

    def _do_Note(self, command: Any) -> None:  # noqa: N802
        self.world.notes[self.world.named(command.text)] += 1
        if not command.text.strip():
            raise Wrong("a refusal without a reason")


@dataclass
class Faults:
    """How likely what is, for each step or command."""

    attack: float = 0.0
    crash: float = 0.0
    hypervisor: float = 0.0
    scrub: float = 0.0
    death: float = 0.0
    only: str = ""  # the relay attacks letters of this kind only
    how: str = ""  # and in this way only
    lost: str = ""  # letters of this kind never arrive
    burns: bool = False  # a migration's destination burns down when its source has released the VM
    burns_over: bool = False  # ... when it has taken the VM over
    detour: str = ""  # what is for B goes to this server
    crash_after: str = ""  # a server is killed after commands of this kind
    deaf: bool = False  # servers never hear what other servers attest
    ends: float = 0.0  # guests end by themselves


class World:
    """Everything, and who moves next."""

    def __init__(self, seed: int, kit: Any = KIT, faults: Faults | None = None, recorded: bool = False, vms: int = 1) -> None:
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
        if faults.burns_over and _kind(self.kit, command) == "EndTcom" and self._took_over(self.hosts[name], command.session):
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
        what = f"{_what(message)} {sender}>{self.names.get(to, 'user')}"
        letter = Letter(to, raw, what)
        self.letters.append(letter)
        self.history.append(letter)
        if isinstance(message, wire.Attested) and isinstance(offer := wire.decode_said(message.content), wire.Offer):
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
                parts[at] = _flipped(parts[at], self.rng)
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

    def attacked(self, letter: Letter) -> list[tuple[Letter, str]]:
        """What the relay makes of a letter: letters, and where they go to (empty: where they should)."""
        kind = self.faults.how or self.rng.choice(ATTACKS)
        self.counts[f"relay: {kind}"] += 1
        self.tell(f"relay: {kind} {letter.what}")
        rng, other = self.rng, self.rng.choice(self.history)
        match kind:
            case "drop":
                return []
            case "hold":
                self.held.append(letter)
                return []
            case "final":
                return [(Letter(letter.to, _ended(letter.raw), letter.what), "")]
            case "twice":
                return [(letter, ""), (letter, "")]
            case "flip":
                return [(Letter(letter.to, _flipped(letter.raw, rng), letter.what), "")]
            case "cut":
                return [(Letter(letter.to, letter.raw[: rng.randrange(len(letter.raw))], letter.what), "")]
            case "splice":
                return [(Letter(letter.to, _spliced(letter.raw, other.raw), letter.what), "")]
            case "replay":
                return [(letter, ""), (other, rng.choice(("", "A", "B", "C", "D")) if other.to in self.names else "")]
            case "substitute":
                return [(Letter(letter.to, self._substituted(letter.raw), letter.what), "")]
            case "stale":
                return [(Letter(letter.to, _stale(letter.raw, other.raw), letter.what), "")]
            case "reroute":
                return [(letter, rng.choice("ABCD"))]
            case "impostor":
                return [(letter, "X")]
            case "both":
                return [(letter, ""), (letter, rng.choice("ABCDX"))]
        return []

    def _substituted(self, raw: bytes) -> bytes:
        """A key or a signature of the relay's own in place of the real one; what is sealed is sealed to its own key or by
        itself.
        """
        message = wire.decode_message(raw)
        mine = sealing.new_keypair(self.rng.randbytes)[1]
        if isinstance(message, wire.Attested):
            said = wire.decode_said(message.content)
            if isinstance(said, wire.Offer):
                return wire.encode(wire.Attested(wire.encode(msgspec.structs.replace(said, key=mine)), message.evidence))
            if isinstance(said, wire.Status):
                lie = msgspec.structs.replace(said, phase=self.rng.choice(("running", "aborted", "moved")), number=1 << 62)
                return wire.encode(wire.Attested(wire.encode(lie), message.evidence))
            if isinstance(said, wire.Receipt):
                lied = msgspec.structs.replace(said, done=not said.done, digest=bytes(32))
                return wire.encode(wire.Attested(wire.encode(lied), message.evidence))
            return wire.encode(wire.Attested(wire.encode(msgspec.structs.replace(said, sealed=mine * 5)), message.evidence))
        if isinstance(message, wire.Signed):
            return wire.encode(self._forged(message, mine))
        return raw

    def _forged(self, message: wire.Signed, mine: bytes) -> wire.Signed:
        """An order with other contents: under the owner's signature, or signed by the relay in its own name."""
        try:
            order = wire.decode(message.body, wire.Order)
        except self.kit.ports.VmError:
            return self._packed(wire.decode(message.body, wire.Package), mine)
        where = self.hosts[self.rng.choice("ABCD")].identity
        if self.rng.random() < 0.3:
            order = msgspec.structs.replace(order, number=order.number + 1, server=where)
        else:
            order = msgspec.structs.replace(order, number=order.number + 1, operation=self.rng.choice(("terminate", "abandon")))
        if self.rng.random() < 0.3:
            return wire.Signed(wire.encode(order), message.keys, message.signature)
        return wire.sign(self.rng.randbytes(32), mine, order)

    def _packed(self, package: wire.Package, mine: bytes) -> wire.Signed:
        """A package of the relay's own: its image, sealed to the TCOM's key as anybody can, signed by itself."""
        offer, image, key = self.offers[package.order], b"evil", self.rng.randbytes(32)
        secrets = wire.Secrets(key, offer.nonce, sha256(image).digest(), len(image), wire.Spec())
        sealed = sealing.hpke_seal(offer.key, b"quoreduce vm package 1" + package.order, wire.encode(secrets))
        chunk = sealing.StreamSealer(key, b"quoreduce vm image 1" + package.order).chunk(image, True)
        to = next(letter.to for letter in reversed(self.history) if letter.what.startswith("Package"))
        self.letters.insert(0, Letter(to, wire.encode(wire.Chunk(package.order, chunk)), "Chunk of the relay's"))
        return wire.sign(self.rng.randbytes(32), mine, wire.Package(package.order, offer.nonce, sealed))

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
            self.tell(f"user: record {self.kit.user.decode_vm(command.record).phase}")
        elif kind == "Send":
            self.post("user", command.to, command.message)
        elif kind == "WantImage":
            image = self.image(command.vmid)
            size = -(-len(image) // PARTS)
            parts = [image[at : at + size] for at in range(0, len(image), size)]
            ports = self.kit.ports
            self.image_events += [*(ports.Data(command.session, part) for part in parts), ports.DataEnd(command.session)]
        else:
            self.told.append((command.vmid, command.text, command.end))
            self._check_told(command)
            self.notes[self.named(command.text)] += 1
            self.tell(f"user is told{' (' + command.end + ')' if command.end else ''}: {self.named(command.text)}")
            if not command.text.strip():
                raise Wrong("the user is told nothing")

    def _check_told(self, told: Any) -> None:
        """What the user is told to be overwritten is; there is one folder, and it is not taken for two."""
        if "another folder" in told.text or "out of date" in told.text:
            raise Wrong(f"the only folder of the user is taken for an old one: {told.text}")
        for host in self.hosts.values():
            claimed = f"server {host.identity[:12]} attests that it overwrote" in told.text or (
                f"left on server {host.identity[:12]} is overwritten" in told.text
            )
            if claimed and host.name != "X" and (told.vmid in host.guests or told.vmid in host.rubbish):
                raise Wrong(f"an untrue receipt: {host.name} still has something of a VM")
        vm = self.kit.user.decode_vm(self.disk[told.vmid]) if told.vmid in self.disk else None
        if vm is not None and vm.phase == "terminated" and told.end == "done":
            known = {one.server for one in vm.left}
            alive = [host for host in self.hosts.values() if not host.dead and host.identity not in known]
            left = [host.name for host in alive if told.vmid in host.guests]
            if left:
                raise Wrong(f"an untrue receipt: a VM is terminated, and {' and '.join(left)} still has a copy")

    def image(self, vmid: bytes) -> bytes:
        return self.images[self.vmids.index(vmid)]

    def wish(self, operation: str, number: int = 0, to: str = "", counter: int = 0) -> None:
        vmid = self.vmids[number]
        self.tell(f"user wants: {operation}{f' of backup {counter}' if counter else ''}{' ' + to if to else ''}")
        self.counts[f"wish: {operation}"] += 1
        target = self.hosts[to].identity if to else ""
        if to and operation in ("migrate", "restore") and vmid in self.hosts[to].disk:
            record = self.kit.ports.decode_record(self.hosts[to].disk[vmid])
            self.counts[f"return: {record.phase}"] += 1
        if operation == "launch":
            image = self.image(vmid)
            spec = self.kit.ports.VmSpec()
            new = self.kit.user.NewVm(
                vmid, f"vm{number}", target, self.policy, spec, sha256(image).digest(), len(image), self.now
            )  # fmt: skip
            self.give_user(new)
            return
        if operation == "terminate":
            self.terminated.add(vmid)
        policy = self.policy if operation == "update" else b""
        self.give_user(self.kit.user.Wish(operation, vmid, self.now, target, policy, counter))

    def read_back(self, number: int = 0) -> None:
        """The user's agent has compared the newest backup with what storage has."""
        vm = self.user.vms[self.vmids[number]]
        self.tell(f"backup {vm.backup.counter} is read back as it was")
        self.counts["backups read back"] += 1
        self.give_user(self.kit.user.ReadBack(vm.vmid, vm.backup.counter))

    # Time and order

    def tick(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        for host in self.hosts.values():
            host.give(self.kit.ports.Tick(self.now))
        self.give_user(self.kit.ports.Tick(self.now))

    def work(self) -> list[Callable[[], None]]:
        """What could happen next, but for time, faults and the user's wishes."""
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

    # The referee

    def running(self, vmid: bytes) -> list[str]:
        return [
            host.name for host in self.hosts.values() if (guest := host.guests.get(vmid)) is not None and guest.state == "running"
        ]

    def ended(self, vmid: bytes, host: Host, guest: Guest) -> None:
        """A guest was destroyed by a machine: was that its only copy, without the user's order?"""
        if guest.state not in ("running", "paused") or not guest.marker or vmid in self.terminated | self.burnt:
            return
        if any(vmid in other.guests and other.guests[vmid].marker for other in self.hosts.values() if not other.dead):
            return
        confirmed = self.kit.user.decode_vm(self.disk[vmid]).phase not in ("idle", "launching", "restoring", "lost")
        if confirmed:
            raise Wrong(f"{host.name} destroyed the only copy of a VM")

    def judge(self) -> None:
        """Look at the guests and at who was fed."""
        for vmid in self.vmids:
            where = self.running(vmid)
            if len(where) > 1:
                raise Wrong(f"a VM runs on {' and '.join(where)}")
        for host in self.hosts.values():
            if not host.trusted and (host.guests or host.fed_ever):
                raise Wrong(f"{host.name}, which the owner does not trust, was given plaintext of a VM")

    def end(self) -> None:
        """The relay is honest again and everyone is up: the user finds out, and exactly one place runs each VM, or none by
        order.
        """
        calm = not (
            self.faults.attack or self.faults.detour or self.faults.crash or self.faults.hypervisor or self.faults.crash_after
            or self.faults.scrub
            or self.faults.ends or any(host.dead for host in self.hosts.values())
        )  # fmt: skip
        self.faults = Faults()
        for host in self.hosts.values():
            if not host.dead and host.core is None:
                host.start()
        self.letters += self.held
        self.settle_down()
        for vmid in self.vmids if calm else ():
            if vmid in self.user.vms and self.user.vms[vmid].phase == "running":
                self._compare(vmid)
        for number, vmid in enumerate(self.vmids):
            self._resolve(number, vmid)
            self._compare(vmid)
            self._no_hidden_copy(vmid)
        for number, vmid in enumerate(self.vmids):
            if self.rng.random() < 0.5:
                self._end_for_good(number, vmid)

    def _no_hidden_copy(self, vmid: bytes) -> None:
        """Where there is a copy, the VM runs, or the user knows that one was left."""
        vm = self.user.vms.get(vmid)
        known = {one.server for one in vm.left} | {vm.server if vm.phase == "running" else ""} if vm else set()
        for host in self.hosts.values():
            if not host.dead and vmid in host.guests and host.identity not in known:
                raise Wrong(f"{host.name} has a copy of a VM that the user does not know of")

    def _end_for_good(self, number: int, vmid: bytes) -> None:
        """The user terminates it, and what is left of it; servers that are gone for good cannot attest that."""
        vm = self.user.vms.get(vmid)
        if vm is None or (vm.phase != "running" and not vm.left):
            return
        self.wish("terminate", number)
        for _ in range(40):
            self.settle_down()
            if vmid not in self.user._active:
                break
            self.tick(4)
        vm = self.user.vms[vmid]
        silent = {host.identity for host in self.hosts.values() if host.dead or not host.trusted}
        if {one.server for one in vm.left} <= silent and vm.phase != "terminating":
            self._compare(vmid)
            if any(vmid in host.guests for host in self.hosts.values()):
                raise Wrong("a VM is ended for good, and a server still has a copy of it")
        else:
            raise Wrong(f"a VM cannot be ended: it is {vm.phase}, {len(vm.left)} copies are left")

    def _resolve(self, number: int, vmid: bytes) -> None:
        for _ in range(8):
            if vmid not in self.user.vms:
                return
            if self.user.vms[vmid].phase == "running" and self._settled(vmid):
                return
            if self.user.vms[vmid].phase in self.kit.user.NOWHERE:
                return
            self.wish("resolve", number)
            for _ in range(50):
                self.settle_down()
                if vmid not in self.user._active:
                    break
                self.tick(4)
            self._obey(number, vmid)
        raise Wrong(f"the user does not get to know where a VM is: it is {self.user.vms[vmid].phase}")

    def _settled(self, vmid: bytes) -> bool:
        return bool(self.running(vmid))

    def _obey(self, number: int, vmid: bytes) -> None:
        """Do what the user was told to do when servers are gone for good."""
        vm = self.user.vms[vmid]
        dead = {host.identity for host in self.hosts.values() if host.dead}
        text = next((text for whom, text, _ in reversed(self.told) if whom == vmid), "")
        if vm.phase == "terminating" and "terminate it again" in text:
            self.wish("terminate", number)
        elif vm.phase in ("migrating", "abandoning") and vm.peer in dead and vm.server not in dead:
            if "abandon" not in text:
                raise Wrong(f"the user is not told how to resume: {text}")
            self.wish("abandon", number)
        elif vm.phase not in self.kit.user.NOWHERE and {vm.server, vm.peer} & dead and vm.phase != "running":
            if "declare it lost" not in text:
                raise Wrong(f"the user is not told how to resume: {text}")
            if not self.running(vmid):
                self.wish("declare lost", number)
        elif vm.phase == "running" and vm.server in dead:
            source = vm.source()
            if source is not None and source.server not in dead and self.rng.random() < 0.7:
                if "abandon" not in text:
                    raise Wrong(f"the user is not told that the source still has it: {text}")
                self.counts["abandoned after the destination took over"] += 1
                self.wish("abandon", number)
            else:
                self.wish("declare lost", number)
        self.settle_down()

    def _compare(self, vmid: bytes) -> None:
        where, vm = self.running(vmid), self.user.vms.get(vmid)
        phase = vm.phase if vm else "idle"
        if phase == "running":
            if [self.names[vm.server]] != where:
                raise Wrong(f"the user believes that a VM runs on {self.names[vm.server]}; it runs on {where or 'none'}")
            guest = self.hosts[where[0]].guests[vmid]
            if (guest.image, guest.marker) != (self.image(vmid), self.marker(vmid)):
                raise Wrong("what runs is not what was launched")
        elif where:
            raise Wrong(f"the user believes that a VM is {phase}; it runs on {where}")
        if phase == "terminated" and vmid not in self.terminated:
            raise Wrong("a VM is terminated without its user's order")
        self.counts[f"end: {phase}"] += 1


def _what(message: Any) -> str:
    if isinstance(message, wire.Attested):
        said = wire.decode_said(message.content)
        return f"{type(said).__name__}" + (f" {said.phase}" if isinstance(said, wire.Status) else "")
    if isinstance(message, wire.Signed):
        try:
            return f"Order {wire.decode(message.body, wire.Order).operation}"
        except wire.VmError:
            return "Package"
    return type(message).__name__


def _flipped(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]


def _kind(kit: Any, command: Any) -> str:
    kind = type(command).__name__
    if kind == "Persist":
        return f"Persist {kit.ports.decode_record(command.record).phase}"
    return f"Send {type(command.message).__name__}" if kind == "Send" else kind


def _ended(raw: bytes) -> bytes:
    """A chunk that says that it is the final one, or no more."""
    message = wire.decode_message(raw)
    if not isinstance(message, wire.Chunk):
        return raw
    return wire.encode(wire.Chunk(message.order, bytes([message.data[0] ^ 1]) + message.data[1:]))


def _spliced(raw: bytes, other: bytes) -> bytes:
    """A message of one session under another's name."""
    message, from_ = wire.decode_message(raw), wire.decode_message(other)
    order = getattr(from_, "order", None)
    if isinstance(message, wire.Chunk | wire.Sealed) and isinstance(order, bytes) and len(order) == 32:
        return wire.encode(msgspec.structs.replace(message, order=order))
    if isinstance(message, wire.Hello) and isinstance(from_, wire.Hello):
        return wire.encode(wire.Hello(from_.order, message.nonce))
    if isinstance(message, wire.Attested) and isinstance(from_, wire.Attested):
        return wire.encode(wire.Attested(from_.content, message.evidence))
    return other


def _stale(raw: bytes, other: bytes) -> bytes:
    """Evidence of another time."""
    message, from_ = wire.decode_message(raw), wire.decode_message(other)
    if isinstance(message, wire.Attested) and isinstance(from_, wire.Attested):
        return wire.encode(wire.Attested(message.content, from_.evidence))
    return other


@contextmanager
def keys_watched(kit: Any, world_secrets: Callable[[bytes], None]) -> Iterator[None]:
    """Every key of a stream or a channel is a secret that the relay must not see."""
    real = kit.sealing._derived

    def derived(key: bytes, info: bytes) -> bytes:
        world_secrets(key)
        return real(key, info)

    kit.sealing._derived = derived
    try:
        yield
    finally:
        kit.sealing._derived = real


class Schedule:
    """Schedule number ``seed``: who does what when, and what goes wrong, is drawn from it."""

    STEPS = (25, 110)
    VMS_MAX = 4

    def __init__(self, seed: int, kit: Any = KIT, recorded: bool = False, mood: str = "") -> None:
        self.rng = rng = random.Random(f"schedule {seed}")
        drawn = rng.choice(("calm", "relay", "crashes", "hypervisor", "all", "focus", "focus", "focus", "focus", "focus",
                            "returns", "returns"))  # fmt: skip
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
        """One way of attack on one kind of letter, or crashes at one kind of moment, or both; the rest is as it should be."""
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
                world.wish("launch", number, self.rng.choice("AAABBC" if self.launched else "AAABBCD"))
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
        """Something whole, that leaves records: of a launch, a migration, one that failed, a backup, a loss, a termination."""
        world, rng = self.world, self.rng
        vmid = world.vmids[number]
        vm = world.user.vms.get(vmid)
        phase, to = vm.phase if vm else "idle", rng.choice("ABC")
        if phase in world.kit.user.UNFINISHED:
            world.wish("resolve", number)
        elif phase == "running" and vm.backup is None:
            world.wish("backup", number)
        elif phase == "running":
            roll = rng.random()
            if roll < 0.25:
                self._die(number)
                world.wish("resolve", number)
            elif roll < 0.4:
                world.wish("terminate", number)
            else:
                world.faults = Faults(hypervisor=float(roll > 0.9), deaf=roll < 0.6)
                world.wish("migrate", number, "D" if 0.8 < roll < 0.85 else to)
        elif vm is not None and vm.backup is not None:
            world.faults = Faults(hypervisor=float(rng.random() < 0.2))
            world.wish("restore", number, to)
        self._orderly(vmid)
        world.faults = Faults()
        self._orderly(vmid)

    def _orderly(self, vmid: bytes) -> None:
        """All goes on in its order, but for what servers may not hear of each other, until the user waits for nothing."""
        world = self.world
        for _ in range(400):
            world.letters = [one for one in world.letters if not self._unheard(one)]
            if world.letters:
                world.deliver(world.letters.pop(0))
                continue
            if can := world.work():
                can[0]()
            elif vmid not in world.user._active:
                return
            else:
                world.tick(5)

    def _unheard(self, letter: Letter) -> bool:
        """What servers attest to each other, if it never arrives."""
        return self.world.faults.deaf and letter.to in self.world.names and letter.what.split()[0] in ("Receipt", "Status")

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
            self._wish()
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
                    made = world.attacked(letter)
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
            self._wish()
        else:
            world.tick(rng.choice((5, 15, 61)))

    def _wish(self) -> None:
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
                ("migrate", "migrate", "migrate", "migrate", "backup", "backup", "terminate", "ask", "resolve", "update")
            )
        elif vm is not None and phase in world.kit.user.NOWHERE and vm.left and rng.random() < 0.3:
            operation = rng.choice(("terminate", "resolve"))
        elif phase in world.kit.user.NOWHERE:
            if vm is None or vm.backup is None:
                self._another()
                return
            operation = "restore"
        else:
            operation = rng.choice(("ask", "resolve", "migrate"))
        world.wish(
            operation,
            number,
            rng.choice("BBBA" if self.faults.detour else "ABCABCABCD") if operation in ("migrate", "restore") else "",
            rng.choice((0, vm.whole.counter)) if operation == "restore" and vm and vm.whole else 0,
        )

    def _another(self) -> None:
        world = self.world
        if len(world.vmids) < self.VMS_MAX:
            world.wish("launch", world.new_vm(), self.rng.choice("AAABBBCD"))
        else:
            world.tick(5)

    def _death(self) -> None:
        """A server burns down, with all that is on it. One at most: more and there is nothing to be said."""
        world = self.world
        if any(host.dead for host in world.hosts.values()):
            return
        world.burn(world.hosts[self.rng.choice("ABC")])
