"""The schedules are worth what they catch: plant bugs in the VM protocols, one by one, and each must be caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mutated import forget, load
from vm_parts import Letter, Wrong
from vm_schedule import Schedule
from world import World

SCHEDULES_MAX = 8000
MOODS = ("", "focus", "returns", "focus")

_NONCE = ("evidence", "if quote.extra != wanted:", "if False:")
_LEAF = (
    "evidence",
    "if not merkle.verify(mine, evidence.index, evidence.count, evidence.path, server.answers):",
    "if False:",
)
_CHAIN = ("evidence", "    check_ek_chain(hardware.ek, policy.authorities(), at)\n", "")
_REGISTRAR = ("evidence", '    check_enrolment(hardware, bytes.fromhex(policy.registrar or ""))\n', "")
_LET_GO = "return [self._record.persist(), Send(self._record.peer, self._commit)]"

# Some rules stand in for each other: there it takes two bugs to do harm.
MUTANTS: dict[str, list[tuple[str, str, str]]] = {
    "evidence answers no challenge": [_NONCE, _LEAF],
    "any environment will do": [("evidence", "if environment not in policy.environments:", "if False:")],
    "any TPM will do, and any destination": [
        _CHAIN,
        _REGISTRAR,
        ("tcom/migrate_out", "if found.server != record.peer:", "if False:"),
    ],
    "any TPM will do, and the user seals to whoever offers": [
        _CHAIN,
        _REGISTRAR,
        (
            "user_answers",
            'if found.server != vm.peer:\n            raise VmError(f"the offer',
            'if False:\n            raise VmError(f"the offer',
        ),
    ],
    "two destinations may take one order": [
        (
            "server",
            'if order.operation != "migrate" or order.destination != self.identity or order.server == self.identity:',
            "if 0:",
        ),
        ("tcom/migrate_out", "if found.server != record.peer:", "if False:"),
    ],
    "the source resumes after it has released": [
        (
            "tcom/migrate_out",
            'case TimedOut() | Settle(), "released":\n                return self._ask()',
            'case TimedOut() | Settle(), "released":\n                return self._resume("too long")',
        )
    ],
    "released is not persisted": [("tcom/migrate_out", _LET_GO, "return [Send(self._record.peer, self._commit)]")],
    "Commit leaves before released is persisted": [
        ("tcom/migrate_out", _LET_GO, "return [Send(self._record.peer, self._commit), self._record.persist()]")
    ],
    "the destination says aborted before its guest is gone": [
        (
            "tcom/migrate_in",
            "            Destroy(self._job.session, self._record.vmid),\n        ]\n\n    def _over",
            "            *self._over(False),\n        ]\n\n    def _over",
        )
    ],
    "the destination runs what is prepared without Commit": [
        (
            "tcom/migrate_in",
            "return [self._record.persist(), Send(self._job.order.server, sealed)]",
            "return [self._record.persist(), Send(self._job.order.server, sealed),"
            " Resume(self._job.session, self._record.vmid)]",
        )
    ],
    "the source destroys when the destination is prepared": [
        ("tcom/migrate_out", 'RAN: Final = frozenset({"running",', 'RAN: Final = frozenset({"prepared", "running",')
    ],
    "the source destroys without a receipt": [
        (
            "tcom/migrate_out",
            _LET_GO,
            "return [self._record.persist(), Send(self._record.peer, self._commit), *self._destroy()]",
        )
    ],
    "the source resumes while the destination is prepared": [
        ("tcom/migrate_out", 'and status.phase == "aborted":', 'and status.phase in ("aborted", "prepared"):')
    ],
    "an order is accepted twice": [("server_admission", "if job.order.number <= record.number:", "if False:")],
    "a settled order is accepted": [
        (
            "server",
            "self.sessions.carry([record.with_(number=order.number).persist()])\n        if about",
            "self.sessions.carry([record.persist()])\n        if about",
        )
    ],
    "a prepared guest is resumed after a crash": [
        ("server_recovery", 'case "resuming" if alive:', 'case "resuming" | "prepared" if alive:')
    ],
    "a released guest is resumed after a crash": [
        (
            "server_recovery",
            'case "released":\n                return self.again(record)\n'
            '            case "running" | "leaving" if alive:',
            'case "running" | "leaving" | "released" if alive:',
        )
    ],
    "a guest that nobody was told of stays after a crash": [
        ("server_recovery", 'case "launching" | "arriving" |', 'case "arriving" |')
    ],
    "orders need no owner": [("server_admission", "wire.verify(job.signed, record.owner)", "pass")],
    "the package may be anybody's": [("tcom/launch", "wire.verify(signed, self._record.owner)", "pass")],
    "a stream may end anywhere": [
        ("sealing", "bytes([final])\n\n    def check", 'b""\n\n    def check'),
        (
            "tcom/migrate_out",
            "if (prepared.order, prepared.digest) != (self._session, self._sealer.digest):",
            "if False:",
        ),
    ],
    "the image goes in the clear": [
        ("sealing", "stream.aead.encrypt(stream.nonce(), data, stream.aad(final))", "data + bytes(16)")
    ],
    "the user restores what may run": [("user", "if vm.phase not in NOWHERE:", "if False:")],
    "the user believes a server that was not told to settle": [
        ("user_answers", "if settle is None or status.number < settle.number:", "if settle is None:")
    ],
    "the user believes a receipt of failure": [
        (
            "user_answers",
            "return [Tell(vm.vmid, how + receipt.reason), *self._orders.resolve(vm, at)]",
            'return self._orders.nowhere(vm, "lost", "failed")',
        )
    ],
    "a failed scrub is no failure": [
        ("tcom/terminate", "            case ScrubFailed():\n", "            case ScrubFailed() if False:\n")
    ],
    "the source leaves its guest paused when it gives up": [
        (
            "tcom/migrate_out",
            "            self._record.persist(),\n            Resume(self._session, self._record.vmid),\n",
            "            self._record.persist(),\n",
        )
    ],
    "an old record at the destination says where the VM is": [
        (
            "user_judge",
            "if server != vm.peer or (status.order, status.sequence) != (order, vm.sequence + 1):",
            "if server != vm.peer:",
        )
    ],
    "whoever says lost is believed": [
        (
            "user_judge",
            '    match vm.phase:\n        case "launching"',
            '    if status.phase == "lost":\n        return lost(vm, server, vm.sequence, vm.order)\n'
            '    match vm.phase:\n        case "launching"',
        )
    ],
    "what a migration leaves at its source is forgotten": [
        (
            "user_answers",
            "left = LeftCopy(vm.server, vm.sequence, vm.order, vm.nonce, vm.order)\n",
            "left = LeftCopy(vm.peer, 0)\n",
        ),
        (
            "user_judge",
            "left = LeftCopy(vm.server, vm.sequence, order, nonce, order)\n",
            "left = LeftCopy(vm.peer, 0)\n",
        ),
    ],
    "terminate forgets what was left elsewhere": [
        ("user_answers", 'if vm.left and vm.phase in ("running", "terminated"):', "if False:")
    ],
    "a server that says anything has nothing": [
        ("user_judge", "return status.phase in PAST and not status.dirty", "return True")
    ],
    "a copy that is not overwritten counts as overwritten": [
        ("user_answers", "        if not receipt.done:\n            text", "        if False:\n            text"),
        (
            "user_answers",
            'raise VmError("the receipt has another report than its evidence")\n        return self._overwritten',
            "pass\n        return self._overwritten",
        ),
    ],
    "a source that waits cannot be told to end its copy": [
        ("server", 'frozenset({"running", "released", "ending", "lost"})', 'frozenset({"running", "ending", "lost"})')
    ],
    "a backup leaves the guest paused": [
        ("tcom/backup", 'return [last, *self._resume("")]', 'self._state = "resuming"; return [last, *self._receipt()]')
    ],
}


def _sent(world: World, what: str) -> Letter:
    """Go on until this letter is on its way, and hold it back."""
    for _ in range(400):
        found = next((letter for letter in world.letters if letter.what.startswith(what)), None)
        if found is not None:
            world.letters.remove(found)
            return found
        if world.letters:
            world.deliver(world.letters.pop(0))
        else:
            world.work()[0]()
    raise LookupError(what)


def _without(world: World, what: str) -> None:
    """All goes on in its order, but these letters never arrive."""
    for _ in range(400):
        world.letters = [letter for letter in world.letters if what not in letter.what]
        if world.letters:
            world.deliver(world.letters.pop(0))
        elif can := world.work():
            can[0]()
        else:
            return


def _story_of_a_commit_that_is_late(world: World) -> None:
    """The source asks while the destination is prepared, and hears just that; then Commit arrives."""
    world.request("migrate", to="B")
    world.deliver(_sent(world, "Sealed B>A"))  # Prepared
    commit = _sent(world, "Sealed A>B")
    world.tick(10)
    world.letters = [letter for letter in world.letters if letter.what != "Sealed A>B"]
    _without(world, "user")
    world.deliver(commit)
    _without(world, "user")
    world.judge()
    world.end()


def _story_of_an_order_that_is_late(world: World) -> None:
    """The user resolves a migration that its source has not heard of; nobody has heard of the settling either."""
    world.request("migrate", to="B")
    late = _sent(world, "Order migrate")
    world.request("resolve")
    world.tick(4)
    _without(world, "Order settle")
    world.deliver(late)
    _without(world, "Order settle")
    world.end()


def _story_of_a_server_that_lost_it(world: World) -> None:
    """Lost at A, restored at B, refused by A: what A still has of it says nothing of where it is."""
    world.request("backup")
    world.settle_down()
    world.hosts["A"].dies(world.vmids[0])
    world.request("resolve")
    world.settle_down()
    world.request("restore", to="B")
    world.settle_down()
    world.request("migrate", to="A")
    _without(world, "Status running")  # A answers first
    world.tick(4)
    world.settle_down()
    world.request("restore", to="C")
    world.settle_down()
    world.judge()
    world.end()


def _story_of_an_order_that_is_replayed(world: World) -> None:
    """A migration fails, and the VM runs on at A, says everybody; then its order comes again."""
    world.request("migrate", to="B")
    order = _sent(world, "Order migrate")
    world.deliver(order)
    _without(world, "Sealed")
    world.request("resolve")
    for _ in range(12):
        _without(world, "Sealed")
        world.tick(10)
    world.deliver(order)
    world.settle_down()
    world.judge()
    world.end()


# What random schedules catch in thousands only is told on purpose too. The machines themselves pass these stories.
STORIES: dict[str, Callable[[World], None]] = {
    "the source resumes while the destination is prepared": _story_of_a_commit_that_is_late,
    "the user believes a server that was not told to settle": _story_of_an_order_that_is_late,
    "an order is accepted twice": _story_of_an_order_that_is_replayed,
    "an old record at the destination says where the VM is": _story_of_a_server_that_lost_it,
}


# Schedules that caught rare ones before: first. When schedules change they say nothing any more, and the search begins
# at 0.
CAUGHT: dict[str, int] = {
    "a guest that nobody was told of stays after a crash": 29,
    "the destination runs what is prepared without Commit": 41,
    "a failed scrub is no failure": 42,
    "a copy that is not overwritten counts as overwritten": 42,
    "what a migration leaves at its source is forgotten": 46,
    "the source destroys without a receipt": 85,
    "released is not persisted": 94,
    "a backup leaves the guest paused": 116,
    "the package may be anybody's": 127,
    "evidence answers no challenge": 167,
    "Commit leaves before released is persisted": 171,
    "a released guest is resumed after a crash": 171,
    "whoever says lost is believed": 182,
    "a server that says anything has nothing": 190,
    "orders need no owner": 211,
    "a source that waits cannot be told to end its copy": 230,
    "any TPM will do, and any destination": 237,
    "any TPM will do, and the user seals to whoever offers": 327,
    "a prepared guest is resumed after a crash": 375,
    "the source destroys when the destination is prepared": 487,
    "two destinations may take one order": 656,
    "a stream may end anywhere": 1164,
}


@pytest.fixture
def kit() -> Iterator[Any]:
    yield load
    forget()


def caught_after(made: Any, schedules: int, first: int = 0) -> int | None:
    """The first schedule in which something happens that must not, or that ends in an error; ``first`` is tried before
    all.
    """
    for seed in (first, *range(schedules)):
        try:
            Schedule(seed, made, mood=MOODS[seed % len(MOODS)]).run()
        except Exception:  # noqa: BLE001 (whatever a machine does)
            return seed
    return None


def told_wrong(made: Any, story: Callable[[World], None]) -> bool:
    """Whether something happens in this story that must not."""
    world = World(7, made, recorded=True)
    world.request("launch", to="A")
    world.settle_down()
    try:
        story(world)
    except Wrong:
        return True
    return False


def test_the_machines_themselves_pass(kit: Any) -> None:
    assert caught_after(kit([]), 100) is None


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_caught(bug: str, kit: Any) -> None:
    if bug in STORIES:
        assert not told_wrong(kit([]), STORIES[bug])
        assert told_wrong(kit(MUTANTS[bug]), STORIES[bug])
        return
    assert caught_after(kit(MUTANTS[bug]), SCHEDULES_MAX, CAUGHT.get(bug, 0)) is not None
