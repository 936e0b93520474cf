"""What a world of VMs is made of: guests, letters, and how likely it is that something goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from quoreduce.vm import wire


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


def described(message: Any) -> str:
    """What a message is, in a word or two."""
    if isinstance(message, wire.AttestedMessage):
        said = wire.decode_said(message.content)
        return wire.name_of(type(said)) + (f" {said.phase}" if isinstance(said, wire.Status) else "")
    if isinstance(message, wire.Signed):
        try:
            return f"Order {wire.decode(message.body, wire.Order).operation}"
        except wire.VmError:
            return "Package"
    return wire.name_of(type(message))
