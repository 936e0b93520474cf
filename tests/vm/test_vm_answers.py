"""Whatever a server attests, it counts for the place and the sequence that the VM has: each arm, each old record."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mutated import forget, load

from quoreduce.vm import user_judge, wire
from quoreduce.vm.user_record import LeftCopy, Vm

A, B, C = ("000b" + name * 64 for name in "abc")
NOW, OLD, LATER = b"n" * 32, b"o" * 32, b"l" * 32
PHASES = ("launching", "running", "leaving", "released", "arriving", "prepared", "resuming", "aborted", "moved",
          "ending",
          "terminated", "lost", "unknown")  # fmt: skip


def vm(phase: Any, **changes: Any) -> Vm:
    """A VM at A, sequence 4; ``peer`` is B, the order under way is NOW."""
    made = Vm(b"v" * 16, "web", b"", wire.Spec(), bytes(32), 1, phase, A, B, 4, 9, order=NOW, given=True)
    return made.with_(**changes)


def said(phase: Any, sequence: int, order: bytes = OLD, peer: str = "") -> wire.Status:
    return wire.Status(b"v" * 16, phase, sequence, order, 9, bytes(32), peer)


def found(judge: Any, one: Vm, server: str, status: wire.Status) -> str:
    """What is concluded, as text: where the VM is, and where copies are left."""
    verdict = judge(one, server, status)
    if verdict is None:
        return "nothing"
    names = {A: "A", B: "B", C: "C"}
    left = ",".join(f"{names[copy.server]}{copy.sequence}" for copy in verdict.vm.left)
    where = f" {names[verdict.vm.server]}{verdict.vm.sequence}" if verdict.vm.phase in ("running", "lost") else ""
    return verdict.vm.phase + where + (f" left {left}" if left else "") + (" stale" if verdict.vm.stale else "")


CASES: list[tuple[Vm, str, wire.Status, str]] = [
    # where it was to start: only by this order, at this sequence
    (vm("restoring"), B, said("running", 4, NOW), "running B4"),
    (vm("restoring"), B, said("lost", 4, NOW), "lost B4 left B4"),
    (vm("restoring"), B, said("aborted", 4, NOW), "idle"),
    (vm("restoring"), B, said("launching", 4, NOW), "nothing"),
    (vm("restoring"), B, said("running", 1), "idle left B1"),
    (vm("restoring"), B, said("running", 4), "idle left B4"),
    (vm("restoring"), B, said("running", 1, NOW), "idle left B1"),
    (vm("restoring"), B, said("lost", 1), "idle left B1"),
    (vm("restoring"), B, said("moved", 1), "idle"),
    (vm("restoring"), A, said("running", 4, NOW), "nothing"),
    # at a migration's source: at its sequence; after an abandon, two above
    (vm("migrating"), A, said("running", 4), "running A4"),
    (vm("migrating"), A, said("running", 4, NOW, B), "running A4 left B5"),
    (vm("migrating"), A, said("running", 3), "nothing"),
    (vm("migrating"), A, said("running", 6), "nothing"),
    (vm("migrating"), A, said("lost", 4), "lost A4 left A4"),
    (vm("migrating"), A, said("lost", 3), "nothing"),
    (vm("migrating"), A, said("moved", 4, NOW, B), "running B5"),
    (vm("migrating"), A, said("moved", 4, LATER, C), "running C5 stale"),
    (vm("migrating"), A, said("moved", 4, NOW, C), "running C5 stale"),
    (vm("migrating"), A, said("moved", 4, LATER, B), "running B5 stale"),
    (vm("migrating"), A, said("moved", 3, NOW, B), "nothing"),
    (vm("migrating"), A, said("released", 4, NOW, B), "nothing"),
    (vm("abandoning", about=OLD), A, said("running", 6), "running A6 left B5"),
    (vm("abandoning", about=OLD), A, said("running", 5), "nothing"),
    (vm("abandoning", about=OLD), A, said("moved", 4, OLD, B), "running B5"),
    # at its destination: one above, by the very order
    (vm("migrating"), B, said("running", 5, NOW), "running B5 left A4"),
    (vm("migrating"), B, said("running", 5), "nothing"),
    (vm("migrating"), B, said("running", 4, NOW), "nothing"),
    (vm("migrating"), B, said("lost", 5, NOW), "lost B5 left A4,B5"),
    (vm("migrating"), B, said("lost", 1), "nothing"),
    (vm("migrating"), B, said("terminated", 1), "nothing"),
    (vm("migrating"), C, said("running", 5, NOW), "nothing"),
    (vm("abandoning", about=OLD), B, said("running", 5, OLD), "running B5 left A4"),
    (vm("abandoning", about=OLD), B, said("running", 5, NOW), "nothing"),
    # at its place
    (vm("running"), A, said("running", 4), "running A4"),
    (vm("running"), A, said("lost", 4), "lost A4 left A4"),
    (vm("running"), A, said("lost", 3), "running A4"),
    (vm("running"), A, said("terminated", 3), "running A4"),
    (vm("running"), A, said("unknown", 0), "running A4"),
    (vm("running"), A, said("terminated", 4), "terminated stale"),
    (vm("running"), A, said("moved", 4, LATER, C), "running C5 stale"),
    (vm("running"), B, said("running", 4), "nothing"),
    (vm("terminating"), A, said("terminated", 4, NOW), "terminated"),
    (vm("terminating"), A, said("ending", 4, NOW), "terminating"),
    (vm("terminating"), A, said("unknown", 0), "terminated"),
    (vm("terminating"), B, said("terminated", 4), "nothing"),
    (vm("backing up"), A, said("running", 4, NOW), "running A4"),
    # where it was given up
    (vm("lost", left=(LeftCopy(B, 5), LeftCopy(A, 4))), B, said("running", 5), "running B5 left A4"),
    (vm("lost", left=(LeftCopy(B, 5),)), B, said("running", 4), "nothing"),
    (vm("lost", left=(LeftCopy(B, 5),)), A, said("running", 4), "nothing"),
    (vm("lost", left=(LeftCopy(B, 5),)), B, said("prepared", 5), "nothing"),
    (vm("terminated", left=(LeftCopy(B, 5),)), B, said("running", 5), "nothing"),
    # a folder that may be out of date
    (vm("running", stale=True), A, said("running", 7), "running A7"),
    (vm("running", stale=True), A, said("moved", 7, LATER, C), "running C8 stale"),
    (vm("running"), A, said("running", 7), "running A4"),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_an_answer_counts_for_the_present_place_and_sequence_only(case: int) -> None:
    one, server, status, expected = CASES[case]
    assert found(user_judge.judge, one, server, status) == expected


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mine", ["migrating", "abandoning"])
def test_no_old_record_at_the_destination_decides_anything(phase: str, mine: str) -> None:
    """The VM was there before, whatever became of it then."""
    for sequence in range(4):
        assert user_judge.judge(vm(mine, about=LATER), B, said(phase, sequence)) is None


@pytest.fixture
def mutant() -> Iterator[Any]:
    def judge(edits: list[tuple[str, str, str]]) -> Any:
        load(edits)
        return sys.modules["mutant_vm_user_judge"].judge

    yield judge
    forget()


@pytest.mark.parametrize(
    ("check", "instead"),
    [
        ("(status.order, status.sequence) == (vm.order, vm.sequence)", "True"),
        ("(status.order, status.sequence) == (vm.order, vm.sequence)", "status.order == vm.order"),
        ("(status.order, status.sequence) == (vm.order, vm.sequence)", "status.sequence == vm.sequence"),
        ('case "launching" | "restoring" if server == vm.peer:', 'case "launching" | "restoring":'),
        ("if sequence != vm.sequence and not abandoned:", "if False:"),
        ('vm.phase == "abandoning" and sequence == vm.sequence + 2', "sequence == vm.sequence + 2"),
        ('case "moved" if status.order == order and status.peer == vm.peer:', 'case "moved":'),
        ('case "moved" if status.order == order and status.peer == vm.peer:',
         'case "moved" if status.peer == vm.peer:'),
        ('case "moved" if status.order == order and status.peer == vm.peer:', 'case "moved" if status.order == order:'),
        ("if server != vm.peer or (", "if ("),
        ("(status.order, status.sequence) != (order, vm.sequence + 1):", "status.sequence != vm.sequence + 1:"),
        ("(status.order, status.sequence) != (order, vm.sequence + 1):", "status.order != order:"),
        ('"backing up" | "terminating" if server == vm.server:', '"backing up" | "terminating":'),
        ('if status.sequence != vm.sequence or status.phase in ("aborted", "unknown"):', "if False:"),
        ("if copy is None or ", "if "),
        ('status.phase != "running" or status.sequence != copy.sequence:', 'status.phase != "running":'),
        ('status.phase != "running" or status.sequence != copy.sequence:', "status.sequence != copy.sequence:"),
        ("vm = vm.leaving(LeftCopy(server, status.sequence))", "pass"),
        ("if vm.stale and (", "if ("),
    ],
)  # fmt: skip
def test_without_a_check_of_an_arm_an_answer_counts_that_must_not(check: str, instead: str, mutant: Any) -> None:
    judge = mutant([("user_judge", check, instead)])
    wrong = 0
    for one, server, status, expected in CASES:
        try:
            wrong += found(judge, one, server, status) != expected
        except AttributeError:  # there is no copy
            wrong += 1
    assert wrong
