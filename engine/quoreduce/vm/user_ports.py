"""What passes between the core of a user agent and its edge: events in, commands out, as in
:mod:`quoreduce.vm.ports`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from quoreduce.vm.ports import Data, DataEnd, Persist, Received, Send, Tick, VmSpec


@dataclass(frozen=True, slots=True)
class NewVm:
    """The user wants a VM launched. ``vmid``: 16 fresh random bytes; ``image``: SHA-256 of the bundle of ``size``
    bytes.
    """

    vmid: bytes
    name: str
    server: str
    policy: bytes
    spec: VmSpec
    image: bytes
    size: int
    at: datetime


@dataclass(frozen=True, slots=True)
class UserRequest:
    """What a user wants to be done with a VM.

    ``ask`` and ``resolve`` find out where it is, the latter ending what is under way and what was left elsewhere.
    ``update`` has the VM go by another policy. ``abandon`` declares that a migration's destination is gone for good,
    ``declare lost`` that every place where it may run is. ``server``: the destination of a migrate, the place of a
    restore. ``policy``: given anew for a migrate, restore or update, else empty. ``counter``: which backup to restore,
    0 for the newest.
    """

    operation: Literal[
        "migrate", "backup", "restore", "terminate", "ask", "resolve", "update", "abandon", "declare lost"
    ]
    vmid: bytes
    at: datetime
    server: str = ""
    policy: bytes = b""
    counter: int = 0


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Storage gave this backup back as it was; until then the one before it is not forgotten."""

    vmid: bytes
    counter: int


UserEvent: TypeAlias = NewVm | UserRequest | ReadBack | Received | Data | DataEnd | Tick


@dataclass(frozen=True, slots=True)
class WantImage:
    """Give the image of this VM as Data, ..., DataEnd of this session."""

    session: bytes
    vmid: bytes


@dataclass(frozen=True, slots=True)
class Tell:
    """One line for the user.

    ``end``: the request is ``done``, or has ``failed`` and the line says what to do; empty if it is not over.
    """

    vmid: bytes
    text: str
    end: Literal["", "done", "failed"] = ""


UserCommand: TypeAlias = Persist | Send | WantImage | Tell
