"""What a user agent concludes of a server's attested status. Pure.

An answer counts for the place, and for the sequence, that the VM has by the user's record; of a migration's
destination, and of a server where the VM was to start, only with the order that would have brought it there. A server
may have old records of a VM, of each phase: they decide nothing about where it is now. All answers here are to an order
that uses up what was ordered before it (settle, update, terminate): what has not begun by then never will.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from quoreduce.vm import wire
from quoreduce.vm.user_record import LeftCopy, Vm, about, hint

PAST: Final = frozenset({"aborted", "moved", "terminated", "unknown"})  # nothing of the VM is there
GOING_ON: Final[dict[str, frozenset[str]]] = {  # what a server's phase is while an order goes on
    "launching": frozenset({"launching"}),
    "restoring": frozenset({"launching"}),
    "migrating": frozenset({"leaving", "arriving", "prepared", "resuming"}),
    "backing up": frozenset({"running"}),
    "terminating": frozenset({"ending"}),
}
_NOUNS: Final = {"backing up": "backup", "terminating": "termination"}


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The record as it is from now on, and what the user is told."""

    vm: Vm
    text: str
    end: Literal["done", "failed"]


def judge(vm: Vm, server: str, status: wire.Status) -> Conclusion | None:
    """What follows from an attested status; None: nothing yet."""
    if vm.stale and (found := _newer(vm, server, status)):
        return found
    match vm.phase:
        case "launching" | "restoring" if server == vm.peer:
            return _started(vm, server, status)
        case "migrating" | "abandoning":
            return _source(vm, server, status) if server == vm.server else _destination(vm, server, status)
        case "running" | "backing up" | "terminating" if server == vm.server:
            return _place(vm, server, status)
        case "idle" | "lost":
            return _back(vm, server, status)
    return None


def clean(status: wire.Status) -> bool:
    """Whether nothing of the VM is at this server, and nothing of it is left that could not be overwritten."""
    return status.phase in PAST and not status.dirty


def runs_at(
    vm: Vm, server: str, sequence: int, text: str, end: Literal["done", "failed"], *left: LeftCopy
) -> Conclusion:
    """It runs there, and what is known to be left elsewhere is kept in mind."""
    peer = vm.server if vm.server != server else vm.peer
    vm = (
        vm.with_(phase="running", server=server, peer=peer, sequence=sequence, stale=False)
        .leaving(*left)
        .cleared(server)
    )
    return Conclusion(vm, f"{vm.name} {text}", end)


def lost(vm: Vm, server: str, sequence: int, order: bytes, *left: LeftCopy) -> Conclusion:
    """It is gone there without an order; that server has not attested that all is overwritten."""
    vm = vm.with_(phase="lost", server=server, sequence=sequence).leaving(*left, LeftCopy(server, sequence, order))
    return Conclusion(vm, f"server {server[:12]} attests that {vm.name} is gone there: {hint(vm)}", "failed")


def _started(vm: Vm, server: str, status: wire.Status) -> Conclusion | None:
    """At the server where it was to start."""
    if (status.order, status.sequence) == (vm.order, vm.sequence):
        if status.phase == "running":
            return runs_at(vm, server, vm.sequence, f"runs on server {server[:12]}", "done")
        if status.phase == "lost":
            return lost(vm, server, vm.sequence, vm.order)
        if status.phase != "aborted":
            return None
    text = f"{vm.name} was not started on server {server[:12]}, and will not be"
    vm = vm.with_(phase="idle")
    if not clean(status):
        text += f", which has an older copy of it (it is {status.phase} there): resume it to end that, or name another"
        text += " server"
        vm = vm.leaving(LeftCopy(server, status.sequence))
    return Conclusion(vm, f"{text}: {hint(vm)}", "failed")


def _source(vm: Vm, server: str, status: wire.Status) -> Conclusion | None:
    """At a migration's source."""
    order, sequence = about(vm), status.sequence
    abandoned = vm.phase == "abandoning" and sequence == vm.sequence + 2
    if sequence != vm.sequence and not abandoned:
        return None
    match status.phase:
        case "running" if abandoned:
            left = LeftCopy(vm.peer, vm.sequence + 1, about=order)
            return runs_at(vm, server, sequence, f"runs on server {server[:12]} again", "done", left)
        case "running":
            gave_up = vm.phase == "abandoning"
            text = "again" if gave_up else "as before; this order is used up, migrate it anew"
            given = status.order == order and status.peer == vm.peer  # the destination was given the stream's key
            copies = [LeftCopy(vm.peer, vm.sequence + 1)] if given else []
            return runs_at(
                vm, server, sequence, f"runs on server {server[:12]} {text}", "done" if gave_up else "failed", *copies
            )
        case "moved" if status.order == order and status.peer == vm.peer:
            return runs_at(vm, vm.peer, sequence + 1, f"runs on server {vm.peer[:12]} now", "done")
        case "moved":
            return _followed(vm, server, status)
        case "lost" if abandoned:
            return lost(vm, server, sequence, status.order, LeftCopy(vm.peer, vm.sequence + 1, about=order))
        case "lost":
            return lost(vm, server, sequence, status.order)
    return None


def _destination(vm: Vm, server: str, status: wire.Status) -> Conclusion | None:
    """At a migration's destination: it counts only with the very order of this migration."""
    order = about(vm)
    if server != vm.peer or (status.order, status.sequence) != (order, vm.sequence + 1):
        return None
    nonce = vm.nonce if vm.phase == "migrating" else bytes(32)
    left = LeftCopy(vm.server, vm.sequence, order, nonce, order)
    if status.phase == "running":
        return runs_at(vm, server, status.sequence, f"runs on server {server[:12]} now", "done", left)
    return lost(vm, server, status.sequence, order, left) if status.phase == "lost" else None


def _place(vm: Vm, server: str, status: wire.Status) -> Conclusion | None:
    """At the place that it has by the user's record."""
    if status.sequence != vm.sequence or status.phase in ("aborted", "unknown"):
        return _no_record(vm, server)
    match status.phase:
        case "running":
            failed = vm.phase in _NOUNS
            text = f"; the {_NOUNS[vm.phase]} was not done, order it anew" if failed else ""
            return runs_at(
                vm, server, vm.sequence, f"runs on server {server[:12]}{text}", "failed" if failed else "done"
            )
        case "lost":
            return lost(vm, server, vm.sequence, status.order)
        case "terminated" if vm.phase == "terminating":
            text = f"{vm.name} is terminated; server {server[:12]} attests that it overwrote all that it had"
            return Conclusion(vm.with_(phase="terminated"), text, "done")
        case "terminated":
            text = (
                f"{vm.name} is terminated; server {server[:12]} attests it; this folder did not order that, another one"
            )
            text += " did"
            return Conclusion(vm.with_(phase="terminated", stale=True), text, "failed")
        case "ending" if vm.phase == "terminating":
            return Conclusion(vm, f"{vm.name} is ended, but not all of it is overwritten: terminate it again", "failed")
        case "moved":
            return _followed(vm, server, status)
    return None


def _no_record(vm: Vm, server: str) -> Conclusion:
    """The server knows nothing of it at that sequence."""
    if vm.phase == "terminating":
        text = f"{vm.name} is terminated: server {server[:12]} attests that it has nothing of it any more"
        return Conclusion(vm.with_(phase="terminated"), text, "done")
    text = (
        f"server {server[:12]} attests that it has nothing of {vm.name} at sequence {vm.sequence}: if no other folder"
        " has your keys, declare it lost"
    )
    return Conclusion(vm.with_(phase="running"), text, "failed")


def _followed(vm: Vm, server: str, status: wire.Status) -> Conclusion:
    """An order that this folder did not give has moved it on."""
    moved = vm.with_(phase="running", server=status.peer, peer=server, sequence=status.sequence + 1, stale=True)
    text = (
        f"server {server[:12]} attests that {vm.name} moved to server {status.peer[:12]}, which this folder did not"
        " order: another folder with your keys did; resume it"
    )
    return Conclusion(moved, text, "failed")


def _newer(vm: Vm, server: str, status: wire.Status) -> Conclusion | None:
    """This folder may be out of date: what is attested of a later sequence than it knows is newer."""
    if status.sequence <= vm.sequence:
        return None
    match status.phase:
        case "running":
            return runs_at(
                vm, server, status.sequence, f"runs on server {server[:12]}, at sequence {status.sequence}", "done"
            )
        case "moved":
            return _followed(vm, server, status)
        case "lost":
            return lost(vm, server, status.sequence, status.order)
    return None


def _back(vm: Vm, server: str, status: wire.Status) -> Conclusion | None:
    """It runs nowhere, as far as is known; a server that was given up has come back with it."""
    copy = vm.copy_at(server)
    if copy is None or status.phase != "running" or status.sequence != copy.sequence:
        return None
    return runs_at(vm, server, copy.sequence, f"runs on server {server[:12]} again", "done")
