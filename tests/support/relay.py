"""A relay that may do as it likes with the letters of a world (world.py)."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
from vm_parts import Letter

from quoreduce.vm import sealing, wire

if TYPE_CHECKING:
    from world import World

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


class Relay:
    """What a relay that attacks makes of letters."""

    def __init__(self, world: World) -> None:
        self.world = world

    def attacked(self, letter: Letter) -> list[tuple[Letter, str]]:
        """What the relay makes of a letter: letters, and where they go to (empty: where they should)."""
        kind = self.world.faults.how or self.world.rng.choice(ATTACKS)
        self.world.counts[f"relay: {kind}"] += 1
        self.world.tell(f"relay: {kind} {letter.what}")
        rng, other = self.world.rng, self.world.rng.choice(self.world.history)
        match kind:
            case "drop":
                return []
            case "hold":
                self.world.held.append(letter)
                return []
            case "final":
                return [(Letter(letter.to, _ended(letter.raw), letter.what), "")]
            case "twice":
                return [(letter, ""), (letter, "")]
            case "flip":
                return [(Letter(letter.to, flipped(letter.raw, rng), letter.what), "")]
            case "cut":
                return [(Letter(letter.to, letter.raw[: rng.randrange(len(letter.raw))], letter.what), "")]
            case "splice":
                return [(Letter(letter.to, _spliced(letter.raw, other.raw), letter.what), "")]
            case "replay":
                return [
                    (letter, ""),
                    (other, rng.choice(("", "A", "B", "C", "D")) if other.to in self.world.names else ""),
                ]
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
        """A key or a signature of the relay's own in place of the real one; what is sealed is sealed to its own key or
        by itself.
        """
        message = wire.decode_message(raw)
        mine = sealing.new_keypair(self.world.rng.randbytes)[1]
        if isinstance(message, wire.AttestedMessage):
            said = wire.decode_said(message.content)
            if isinstance(said, wire.Offer):
                return wire.encode(
                    wire.AttestedMessage(wire.encode(msgspec.structs.replace(said, key=mine)), message.evidence)
                )
            if isinstance(said, wire.Status):
                lie = msgspec.structs.replace(
                    said, phase=self.world.rng.choice(("running", "aborted", "moved")), number=1 << 62
                )
                return wire.encode(wire.AttestedMessage(wire.encode(lie), message.evidence))
            if isinstance(said, wire.VmReceipt):
                lied = msgspec.structs.replace(said, done=not said.done, digest=bytes(32))
                return wire.encode(wire.AttestedMessage(wire.encode(lied), message.evidence))
            return wire.encode(
                wire.AttestedMessage(wire.encode(msgspec.structs.replace(said, sealed=mine * 5)), message.evidence)
            )
        if isinstance(message, wire.Signed):
            return wire.encode(self._forged(message, mine))
        return raw

    def _forged(self, message: wire.Signed, mine: bytes) -> wire.Signed:
        """An order with other contents: under the owner's signature, or signed by the relay in its own name."""
        try:
            order = wire.decode(message.body, wire.Order)
        except self.world.kit.ports.VmError:
            return self._packed(wire.decode(message.body, wire.Package), mine)
        where = self.world.hosts[self.world.rng.choice("ABCD")].identity
        if self.world.rng.random() < 0.3:
            order = msgspec.structs.replace(order, number=order.number + 1, server=where)
        else:
            order = msgspec.structs.replace(
                order, number=order.number + 1, operation=self.world.rng.choice(("terminate", "abandon"))
            )
        if self.world.rng.random() < 0.3:
            return wire.Signed(wire.encode(order), message.keys, message.signature)
        return wire.sign(self.world.rng.randbytes(32), mine, order)

    def _packed(self, package: wire.Package, mine: bytes) -> wire.Signed:
        """A package of the relay's own: its image, sealed to the TCOM's key as anybody can, signed by itself."""
        offer, image, key = self.world.offers[package.order], b"evil", self.world.rng.randbytes(32)
        secrets = wire.Secrets(key, offer.nonce, sha256(image).digest(), len(image), wire.Spec())
        sealed = sealing.hpke_seal(offer.key, b"quoreduce vm package 1" + package.order, wire.encode(secrets))
        chunk = sealing.StreamSealer(key, b"quoreduce vm image 1" + package.order).chunk(image, True)
        to = next(letter.to for letter in reversed(self.world.history) if letter.what.startswith("Package"))
        self.world.letters.insert(
            0, Letter(to, wire.encode(wire.StreamChunk(package.order, chunk)), "Chunk of the relay's")
        )
        return wire.sign(self.world.rng.randbytes(32), mine, wire.Package(package.order, offer.nonce, sealed))


def flipped(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]


def _ended(raw: bytes) -> bytes:
    """A chunk that says that it is the final one, or no more."""
    message = wire.decode_message(raw)
    if not isinstance(message, wire.StreamChunk):
        return raw
    return wire.encode(wire.StreamChunk(message.order, bytes([message.data[0] ^ 1]) + message.data[1:]))


def _spliced(raw: bytes, other: bytes) -> bytes:
    """A message of one session under another's name."""
    message, from_ = wire.decode_message(raw), wire.decode_message(other)
    order = getattr(from_, "order", None)
    if isinstance(message, wire.StreamChunk | wire.SealedMessage) and isinstance(order, bytes) and len(order) == 32:
        return wire.encode(msgspec.structs.replace(message, order=order))
    if isinstance(message, wire.Hello) and isinstance(from_, wire.Hello):
        return wire.encode(wire.Hello(from_.order, message.nonce))
    if isinstance(message, wire.AttestedMessage) and isinstance(from_, wire.AttestedMessage):
        return wire.encode(wire.AttestedMessage(from_.content, message.evidence))
    return other


def _stale(raw: bytes, other: bytes) -> bytes:
    """Evidence of another time."""
    message, from_ = wire.decode_message(raw), wire.decode_message(other)
    if isinstance(message, wire.AttestedMessage) and isinstance(from_, wire.AttestedMessage):
        return wire.encode(wire.AttestedMessage(message.content, from_.evidence))
    return other
