"""Whole VM operations as plain text: who sends what to whom, what is written down, what the user is told.

A change of behaviour shows as a diff of these files: `pytest --update-golden`, then review it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from vm_parts import Faults, keys_watched
from world import World

SCENARIOS: dict[str, Callable[[World], None]] = {}


def scenario(story: Callable[[World], None]) -> Callable[[World], None]:
    SCENARIOS[story.__name__] = story
    return story


def launched(world: World) -> None:
    """A VM that runs on A, without the story of its launch."""
    world.request("launch", to="A")
    world.settle_down()
    assert world.lines is not None
    world.lines[:] = ["(a VM was launched on A)"]


def until(world: World, line: str) -> None:
    """Go on until this has happened."""
    assert world.lines is not None
    for _ in range(400):
        if any(line in one for one in world.lines):
            return
        if world.letters:
            world.deliver(world.letters.pop(0))
        else:
            world.work()[0]()
    raise AssertionError(f"{line!r} never happened")


@scenario
def launch(world: World) -> None:
    """Order, offer, package, image, receipt."""
    world.request("launch", to="A")
    world.settle_down()


@scenario
def launch_on_a_server_that_may_dump_memory(world: World) -> None:
    """Its environment is another one (PCR 17): it gets nothing."""
    world.request("launch", to="D")
    world.settle_down()


@scenario
def launch_fails_to_boot(world: World) -> None:
    """The failure is attested, and settled."""
    world.faults = Faults(hypervisor=1.0)
    world.request("launch", to="A")
    world.settle_down()


@scenario
def migrate(world: World) -> None:
    """Source and destination attest each other; prepared, released, commit, receipt, scrub."""
    launched(world)
    world.request("migrate", to="B")
    world.settle_down()


@scenario
def migrate_to_a_server_that_may_dump_memory(world: World) -> None:
    """The source refuses the destination; the VM runs on, and the order is used up."""
    launched(world)
    world.request("migrate", to="D")
    world.settle_down()


@scenario
def migrate_to_an_impostor(world: World) -> None:
    """The relay takes Hello to a server that claims to be B."""
    launched(world)
    world.request("migrate", to="B")
    until(world, "Hello A>B")
    letter = world.letters.pop(0)
    world.tell("relay: Hello goes to X")
    world.deliver(letter, "X")
    world.settle_down()


@scenario
def migrate_and_the_stream_is_cut(world: World) -> None:
    """A chunk is lost: the next is refused at its place; both ends end it, and the VM runs on at the source."""
    launched(world)
    world.request("migrate", to="B")
    until(world, "Chunk A>B")
    world.letters = [letter for letter in world.letters if not letter.what.startswith("Chunk")]
    world.tell("relay: the first chunk is dropped")
    world.settle_down()


@scenario
def migrate_and_commit_is_lost(world: World) -> None:
    """The source has let go, the destination never hears of it, and gives up: the source asks, and resumes on its
    word.
    """
    launched(world)
    world.request("migrate", to="B")
    until(world, "A: record released")
    world.letters.clear()
    world.tell("relay: Commit is dropped")
    world.tick(60)
    world.settle_down()
    world.tick(10)
    world.settle_down()


@scenario
def migrate_and_the_receipt_is_lost(world: World) -> None:
    """The destination runs it, and nobody hears of it: the source asks, destroys, and tells the user."""
    launched(world)
    world.request("migrate", to="B")
    until(world, "B: record running")
    world.letters.clear()
    world.tell("relay: both receipts are dropped")
    world.tick(10)
    world.settle_down()


@scenario
def migrate_and_the_destination_burns_down(world: World) -> None:
    """The source waits for a destination that is gone for good: the user is told, and abandons the migration."""
    launched(world)
    world.request("migrate", to="B")
    until(world, "A: record released")
    world.tell("B burns down")
    world.hosts["B"].dead = True
    world.hosts["B"].crash()
    world.hosts["B"].guests.clear()
    world.settle_down()
    world.tick(120)
    world.settle_down()
    world.tick(60)
    world.settle_down()
    world.request("abandon")
    world.settle_down()


@scenario
def backup_and_restore(world: World) -> None:
    """K_B goes to the owner only; the VM is terminated, and restored elsewhere from storage that nobody trusts."""
    launched(world)
    world.request("backup")
    world.settle_down()
    world.request("terminate")
    world.settle_down()
    world.request("restore", to="C")
    world.settle_down()


@scenario
def restore_from_another_backup(world: World) -> None:
    """The storage gives an older backup: its chunks do not open under the newer key."""
    launched(world)
    for operation in ("backup", "backup", "terminate"):
        world.request(operation)
        world.settle_down()
    older, newer = world.storage
    world.storage[newer] = world.storage[older]
    world.tell("storage: the newer backup is replaced by the older one")
    world.request("restore", to="C")
    world.settle_down()


@scenario
def restore_the_backup_before_one_that_was_lost(world: World) -> None:
    """The newest was never read back: the one before it is still known, by its number; one before that is not."""
    launched(world)
    for number in (1, 2, 3):
        world.request("backup")
        world.settle_down()
        if number < 3:
            world.read_back()
    del world.storage[list(world.storage)[-1]]
    world.tell("storage: the newest backup is gone")
    world.request("terminate")
    world.settle_down()
    for counter in (0, 1, 2):
        world.request("restore", to="C", counter=counter)
        world.settle_down()


@scenario
def restore_of_what_may_run(world: World) -> None:
    """Not while the user's record says that it may run anywhere."""
    launched(world)
    world.request("backup")
    world.settle_down()
    world.request("restore", to="C")


@scenario
def terminate(world: World) -> None:
    """The scrub's report is in the receipt."""
    launched(world)
    world.request("terminate")
    world.settle_down()


@scenario
def terminate_and_the_scrub_fails(world: World) -> None:
    """A failure, attested, and no receipt; then again."""
    launched(world)
    world.faults = Faults(scrub=1.0)
    world.request("terminate")
    world.settle_down()
    world.faults = Faults()
    world.request("terminate")
    world.settle_down()


@scenario
def an_order_is_replayed(world: World) -> None:
    """The relay kept the order to terminate a VM that was restored on the same server since."""
    launched(world)
    for operation, to in (("backup", ""), ("terminate", "")):
        world.request(operation, to=to)
        world.settle_down()
    order = next(letter for letter in world.history if letter.what.startswith("Order terminate"))
    world.request("restore", to="A")
    world.settle_down()
    world.tell("relay: the order to terminate, again")
    world.deliver(order)
    world.settle_down()


@scenario
def return_to_a_server_that_lost_it(world: World) -> None:
    """Lost at A, restored at B, and A refuses to have it again: A's old record says nothing of where it is now."""
    launched(world)
    world.request("backup")
    world.settle_down()
    world.hosts["A"].dies(world.vmids[0])
    world.request("resolve")
    world.settle_down()
    world.request("restore", to="B")
    world.settle_down()
    world.request("migrate", to="A")
    world.settle_down()
    world.request("restore", to="C")
    world.request("resolve")
    world.settle_down()
    world.request("migrate", to="A")
    world.settle_down()


@scenario
def terminate_with_a_copy_at_the_source(world: World) -> None:
    """The relay drops the destination's receipt to the source: the user knows, and terminate ends that copy too."""
    launched(world)
    world.request("migrate", to="B")
    until(world, "B: record running")
    world.letters = [letter for letter in world.letters if letter.what != "Receipt B>A"]
    world.tell("relay: the receipt for A is dropped")
    world.settle_down()
    world.request("terminate")
    world.settle_down()


@scenario
def terminate_and_the_source_is_silent(world: World) -> None:
    """It is not said that all is overwritten, until A has attested it."""
    launched(world)
    world.request("migrate", to="B")
    until(world, "B: record running")
    world.letters.clear()
    world.hosts["A"].crash()
    world.tell("A is killed; both receipts are dropped")
    world.tick(120)
    world.settle_down()
    world.request("terminate")
    world.settle_down()
    world.tick(60)
    world.hosts["A"].start()
    world.tell("A is started again")
    world.request("terminate")
    world.settle_down()


@scenario
def migrate_again_after_it_failed(world: World) -> None:
    """What failed does not stand in the way of another try at the same destination."""
    launched(world)
    world.faults = Faults(hypervisor=1.0)
    world.request("migrate", to="B")
    world.settle_down()
    world.faults = Faults()
    world.request("resolve")
    world.settle_down()
    world.request("migrate", to="B")
    world.settle_down()


@scenario
def resume_of_a_migration_that_failed_ends_what_it_left(world: World) -> None:
    """The source gives up, and the destination does not hear of it: one `resume` ends what came there too."""
    launched(world)
    world.request("migrate", to="B")
    until(world, "Chunk A>B")
    world.letters.clear()
    world.tell("relay: it is restarted, and all that was under way is lost")
    world.request("resolve")
    until(world, "Order settle user>A")
    world.letters = [letter for letter in world.letters if letter.what != "Order settle user>B"]
    world.settle_down()
    world.tick(3)
    world.settle_down()


@scenario
def the_destination_burns_down_after_it_took_over(world: World) -> None:
    """The source has not heard of it: it goes on there, as it was when it left."""
    launched(world)
    world.request("migrate", to="B")
    until(world, "B: record running")
    world.letters = [letter for letter in world.letters if letter.what != "Receipt B>A"]
    world.settle_down()
    world.burn(world.hosts["B"])
    world.request("resolve")
    world.settle_down()
    world.tick(60)
    world.request("abandon")
    world.settle_down()


@scenario
def update_the_policy(world: World) -> None:
    """An order like others: the user goes by the new policy at once, the server from when it has it."""
    launched(world)
    world.request("update")
    world.settle_down()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_as_written(name: str, golden: Callable[[str, str], None]) -> None:
    world = World(7, recorded=True)
    with keys_watched(world.kit, world.secrets.add):
        SCENARIOS[name](world)
        world.judge()
    assert world.lines is not None
    golden(f"vm/{name}.txt", f"# {' '.join((SCENARIOS[name].__doc__ or '').split())}\n" + "\n".join(world.lines) + "\n")


def test_the_stories_end_where_they_should() -> None:
    """Of those that could end otherwise: what runs where, whatever was told."""
    ends = {"migrate": ["B"], "migrate_and_commit_is_lost": ["A"], "migrate_and_the_receipt_is_lost": ["B"],
            "migrate_and_the_destination_burns_down": ["A"], "migrate_to_an_impostor": ["A"],
            "backup_and_restore": ["C"],
            "restore_from_another_backup": [], "restore_the_backup_before_one_that_was_lost": ["C"],
            "an_order_is_replayed": ["A"], "launch_fails_to_boot": [], "return_to_a_server_that_lost_it": ["A"],
            "terminate_with_a_copy_at_the_source": [], "terminate_and_the_source_is_silent": [],
            "migrate_again_after_it_failed": ["B"],
            "resume_of_a_migration_that_failed_ends_what_it_left": ["A"],
            "the_destination_burns_down_after_it_took_over": ["A"]}  # fmt: skip
    for name, where in ends.items():
        world = World(7, recorded=True)
        SCENARIOS[name](world)
        assert world.running(world.vmids[0]) == where, name
