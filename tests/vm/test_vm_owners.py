"""Who may have VMs at a server, and how much; what it forgets, and what it never takes again; orders that end what is
stuck.
"""

from __future__ import annotations

import msgspec
import pytest
from world import World

from quoreduce.errors import VmError
from quoreduce.vm.owners import Owners, Quota
from quoreduce.vm.ports import (
    Destroy,
    Feed,
    Floor,
    Forget,
    GuestGone,
    RecordFound,
    Scrubbed,
    ScrubFailed,
    VmSpec,
    decode_record,
)
from quoreduce.vm.server import Server
from quoreduce.vm.user_ports import NewVm

ALICE = "a" * 32


def test_a_list_of_owners_is_read() -> None:
    owners = Owners.parse(f"# the site's\n\n{ALICE} vms=2 mb=512  # alice\n{'b' * 32}\n")
    assert owners.quota(ALICE) == Quota(2, 512)
    assert owners.quota("b" * 32) == Quota()
    with pytest.raises(VmError, match="--owners"):
        owners.quota("c" * 32)


@pytest.mark.parametrize(
    "line",
    ["alice", "A" * 32, "a" * 31, f"{ALICE} vms", f"{ALICE} vms=0", f"{ALICE} vms=257", f"{ALICE} mb=-1",
    f"{ALICE} disks=1",
     f"{ALICE} mb={'9' * 13}", f"{ALICE} vms=²"],
)  # fmt: skip
def test_a_line_that_is_none_is_named(line: str) -> None:
    with pytest.raises(VmError, match=r"^line 2: "):
        Owners.parse(f"# one\n{line}\n")


def quiet(world: World) -> World:
    world.settle_down()
    world.judge()
    return world


def with_quota(**limits: int) -> World:
    world = World(5, recorded=True, vms=3)
    world.owners._quota = Quota(**limits)
    return world


def phases(world: World) -> list[str]:
    return [world.user.vms[vmid].phase if vmid in world.user.vms else "-" for vmid in world.vmids]


def test_who_is_not_on_the_list_gets_nothing_and_leaves_nothing() -> None:
    world = World(5, recorded=True, vms=2)
    for host in world.hosts.values():
        host.core.sessions.owners = Owners({})
    world.request("launch", 0, "A")
    quiet(world)
    assert phases(world) == ["idle", "-"]
    assert not world.hosts["A"].disk
    assert any("not on this server's list of owners" in text for _, text, _ in world.told)


def test_who_is_not_on_the_destinations_list_cannot_move_there() -> None:
    world = World(5, recorded=True)
    world.hosts["B"].core.sessions.owners = Owners({})
    world.request("launch", 0, "A")
    quiet(world)
    world.request("migrate", 0, "B")
    quiet(world)
    assert world.running(world.vmids[0]) == ["A"]
    assert not world.hosts["B"].disk


def test_an_owner_has_so_many_vms_and_so_many_mib() -> None:
    world = with_quota(vms=2)
    for number in range(3):
        world.request("launch", number, "A")
        quiet(world)
    assert phases(world) == ["running", "running", "idle"]
    world = with_quota(mb=400)  # two of 144
    for number in range(3):
        world.request("launch", number, "A")
        quiet(world)
    assert phases(world) == ["running", "running", "idle"]
    assert any("432 MiB, and 400 are your quota" in text for _, text, _ in world.told)
    world.request("terminate", 0)
    quiet(world)
    world.request("migrate", 1, "B")
    quiet(world)
    assert world.running(world.vmids[1]) == ["B"]


def test_what_was_only_announced_costs_nothing_and_what_was_sent_does() -> None:
    """Three images that never end, of VMs of 160 MiB each, under a quota of 200."""
    world = with_quota(mb=200)
    host, size = world.hosts["A"], 128 << 20
    for number, vmid in enumerate(world.vmids):
        world.give_user(
            NewVm(vmid, f"vm{number}", host.identity, world.policy, VmSpec(150, 10), bytes(32), size, world.now)
        )  # fmt: skip
    while world.letters:
        world.deliver(world.letters.pop(0))
    first, second, third = host.core.sessions.open
    part = bytes(1 << 20)
    assert not any(
        host.core.sessions._charge(Feed(session, part)) for _ in range(66) for session in (first, second, third)
    )
    assert not any(host.core.sessions._charge(Feed(first, part)) for _ in range(2))
    assert "would hold 201 MiB, and 200 are your quota" in host.core.sessions._charge(Feed(second, part))


def test_sessions_of_one_owner_leave_room_for_others() -> None:
    world = with_quota(sessions=1)
    for number in range(2):
        world.request("launch", number, "A")
    for letter in world.letters[:2]:
        world.deliver(letter)
    assert any("1 operations under way" in reason for reason in world.notes)


def forgetful() -> World:
    """The first VM was launched and terminated at A, and forgotten for the third."""
    world = with_quota(records=2)
    for number in range(3):
        world.request("launch", number, "A")
        quiet(world)
        world.request("terminate", number)
        quiet(world)
    return world


def test_the_oldest_record_goes_of_which_nothing_is_here() -> None:
    world = forgetful()
    assert set(world.hosts["A"].disk) == set(world.vmids[1:])
    assert list(world.hosts["A"].floors) == [world.user.address]


def test_no_order_of_a_forgotten_vm_is_ever_taken_again() -> None:
    """All that the user ever said is said again, to the life that forgot it and to the next one."""
    world = forgetful()
    for restarted in (False, True):
        if restarted:
            world.hosts["A"].crash()
            world.hosts["A"].start()
        for letter in [one for one in world.history if one.what.startswith("Order") and one.what.endswith(">A")]:
            world.deliver(letter)
        world.letters.clear()
        assert world.vmids[0] not in world.hosts["A"].disk
        assert not world.hosts["A"].guests
        assert not world.hosts["A"].core.sessions.open


def test_orders_for_other_vms_are_not_taken_for_those_of_another_folder() -> None:
    """What a server says of a VM that it does not know has the number of all that it took of this user."""
    world = World(5, recorded=True, vms=2)
    for number in range(2):
        world.request("launch", number, "A")
        quiet(world)
        world.request("backup", number)
        quiet(world)
        world.request("migrate", number, "B")
        world.letters.clear()  # nobody hears of it
    for number in (1, 0):
        world.request("resolve", number)
    first = [letter for letter in world.letters if letter.what.endswith(">B")]
    world.letters = [*reversed(first), *(letter for letter in world.letters if letter not in first)]
    quiet(world)
    for _ in range(3):
        world.tick(4)
        quiet(world)
    assert phases(world) == ["running", "running"]
    assert not any(world.user.vms[vmid].stale for vmid in world.vmids)
    assert not any("another folder" in text for _, text, _ in world.told)


def test_a_vm_that_is_here_is_never_forgotten() -> None:
    world = with_quota(records=2)
    for number in range(3):
        world.request("launch", number, "A")
        quiet(world)
    assert phases(world) == ["running", "running", "idle"]
    assert any("which all are here" in text for _, text, _ in world.told)


def test_a_migration_that_failed_does_not_block_its_destination() -> None:
    world = World(5, recorded=True)
    world.request("launch", 0, "A")
    quiet(world)
    world.request("migrate", 0, "D")  # refused
    quiet(world)
    world.request("migrate", 0, "B")
    while not any("B: record arriving" in line for line in world.lines or ()):
        world.deliver(world.letters.pop(0))
    world.hosts["B"].crash()
    world.hosts["B"].start()
    world.letters.clear()
    world.tick(61)
    quiet(world)
    world.request("resolve", 0)
    quiet(world)
    assert decode_record(world.hosts["B"].disk[world.vmids[0]]).phase == "aborted"
    world.request("migrate", 0, "B")
    quiet(world)
    assert world.running(world.vmids[0]) == ["B"]


def test_a_server_with_another_tpm_ends_what_it_finds_and_forgets_it() -> None:
    world = World(5, recorded=True)
    world.request("launch", 0, "A")
    quiet(world)
    record = decode_record(world.hosts["A"].disk[world.vmids[0]])
    assert record.server == world.hosts["A"].identity
    other = Server("ab" * 34, lambda n: bytes(n), world.owners, [world.hosts["A"].disk[record.vmid]])
    found = other.step(RecordFound(record.vmid, True, world.now))
    assert Destroy(record.order, record.vmid) in found
    failed = other.step(ScrubFailed(record.order, "ram.bin does not read back"))
    assert not any(isinstance(one, Forget) for one in failed)
    other = Server("ab" * 34, lambda n: bytes(n), world.owners, [world.hosts["A"].disk[record.vmid]])
    other.step(RecordFound(record.vmid, True, world.now))
    ended = other.step(Scrubbed(record.order, b"{}"))
    assert ended == [Floor(record.owner.user, record.number), Forget(record.vmid)]
    assert not other.records


def test_a_policy_is_updated_by_an_order() -> None:
    world = World(5, recorded=True)
    world.request("launch", 0, "A")
    quiet(world)
    world.policy = world.policy + b"\n"  # another file that says the same
    world.request("update", 0)
    quiet(world)
    assert decode_record(world.hosts["A"].disk[world.vmids[0]]).policy == world.policy
    assert world.user.vms[world.vmids[0]].policy == world.policy
    assert world.user.vms[world.vmids[0]].phase == "running"


def test_a_policy_is_updated_at_a_source_that_waits_for_an_upgraded_destination() -> None:
    """The source goes by the policy of the migration, and refuses all that its destination says; then it goes by the
    new one.
    """
    world = World(5, recorded=True)
    world.request("launch", 0, "A")
    quiet(world)
    world.request("migrate", 0, "B")
    while not any("A: record released" in line for line in world.lines or ()):
        if world.letters:
            world.deliver(world.letters.pop(0))
        else:
            world.work()[0]()
    core, vmid = world.hosts["A"].core, world.vmids[0]
    old = core.records[vmid]
    core.records[vmid] = core.sessions.open[old.order].tcom._record = old.with_(policy=_trusting_nobody(old.policy))
    while not any("B: record running" in line for line in world.lines or ()):
        world.deliver(world.letters.pop(0)) if world.letters else world.work()[0]()
    world.letters.clear()  # the receipts
    world.tick(10)
    world.letters = [
        letter for letter in world.letters if letter.what != "StatusQuery user>B"
    ]  # else the user knows already
    quiet(world)
    assert vmid in world.hosts["A"].guests  # it asks B, and waits
    assert any("is not in the policy" in text for text in world.notes)
    world.request("update", 0)
    for _ in range(6):
        quiet(world)
        world.tick(4)
    assert (world.running(vmid), world.user.vms[vmid].phase) == (["B"], "running")
    assert vmid not in world.hosts["A"].guests


def _trusting_nobody(policy: bytes) -> bytes:
    from quoreduce.trust.policy import decode_policy

    return msgspec.structs.replace(decode_policy(policy), environments=("00" * 32,)).encode()


def test_a_server_that_was_declared_lost_and_comes_back_with_the_vm_has_it_again() -> None:
    world = World(5, recorded=True)
    world.request("launch", 0, "A")
    quiet(world)
    world.request("declare lost", 0)
    world.request("resolve", 0)
    quiet(world)
    vm = world.user.vms[world.vmids[0]]
    assert (vm.phase, world.names[vm.server], vm.left) == ("running", "A", ())


def test_a_guest_that_was_lost_is_scrubbed_by_terminate_and_the_user_is_told() -> None:
    world = World(5, recorded=True)
    world.request("launch", 0, "A")
    quiet(world)
    host, vmid = world.hosts["A"], world.vmids[0]
    host.guests.pop(vmid)
    host.give(GuestGone(vmid))
    world.request("resolve", 0)
    quiet(world)
    assert world.user.vms[vmid].phase == "lost"
    assert [one.server for one in world.user.vms[vmid].left] == [host.identity]
    world.request("terminate", 0)
    quiet(world)
    assert world.user.vms[vmid].phase == "terminated"
    assert not world.user.vms[vmid].left


def test_a_second_folder_with_the_same_keys_is_noticed_and_starts_nothing_anew() -> None:
    """The copy believes that the VM is at A; the other one moved it to B, and on to C, and terminated it there."""
    world = World(5, recorded=True)
    world.referee.check_told = lambda told: None  # type: ignore[method-assign]  # here there are two
    world.request("launch", 0, "A")
    quiet(world)
    world.request("backup", 0)
    quiet(world)
    vmid = world.vmids[0]
    copy = dict(world.disk)
    for to in ("B", "C"):
        world.request("migrate", 0, to)
        quiet(world)
    newer, world.disk = world.disk, dict(copy)
    world.start_user()
    for server in ("B", "C"):
        world.request("restore", 0, "A")
        quiet(world)
        world.tick(1)
        world.request("resolve", 0)
        quiet(world)
        vm = world.user.vms[vmid]
        assert (vm.phase, world.names[vm.server], vm.stale) == ("running", server, True)
    world.request("resolve", 0)
    quiet(world)
    assert (world.user.vms[vmid].stale, world.running(vmid)) == (False, ["C"])
    world.disk = newer
    world.start_user()
    world.tick(1)
    world.request("terminate", 0)
    quiet(world)
    assert world.user.vms[vmid].phase == "terminated"
    world.disk = dict(copy)
    world.start_user()
    for _ in range(4):
        world.tick(1)
        world.request("resolve", 0)
        quiet(world)
    assert (world.user.vms[vmid].phase, world.user.vms[vmid].stale) == ("terminated", True)
    world.request("restore", 0, "A")
    quiet(world)
    assert world.running(vmid) == []
    assert "may be out of date" in world.told[-1][1]
    world.request("declare lost", 0)
    world.request("restore", 0, "A")
    quiet(world)
    assert world.running(vmid) == ["A"]
