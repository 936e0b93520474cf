"""An agent's link to the manager: it comes back, bulk waits for tickets, what is sent while nobody is there is lost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from towers import tower

from quoreduce.errors import HostError, VmError
from quoreduce.vm.agents import link as links
from quoreduce.vm.agents.channel import Address, Listener
from quoreduce.vm.agents.link import BULK_MAX, Link, enter
from quoreduce.vm.agents.manager import Manager
from quoreduce.vm.agents.names import server_prover
from quoreduce.vm.agents.post import Letter, Post


class Ends:
    """A manager, and links to it; what they hear and say."""

    def __init__(self, folder: Path) -> None:
        self.address, self.store = Address(f"{folder}/m"), folder / "store"
        self.heard: queue.Queue[Post] = queue.Queue()
        self.said: queue.Queue[str] = queue.Queue()
        self.links: list[Link] = []
        self.start()

    def start(self) -> None:
        self.manager = Manager(self.address, self.store)
        self.thread = threading.Thread(target=self.manager.serve, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.manager.close()
        self.thread.join(5)

    def link(self, name: str) -> Link:
        made = Link(self.address, name, "", self.heard.put, self.said.put)
        made.start()
        self.links.append(made)
        return made


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    monkeypatch.setattr(links, "RETRY_S", 0.01)
    made = Ends(tmp_path)
    yield made
    for link in made.links:
        link.close(0)
    made.stop()


def test_a_link_comes_back_after_its_manager(ends: Ends) -> None:
    one = ends.link("one")
    ends.link("two")
    ends.stop()
    assert {ends.said.get(timeout=10).partition(" (")[0] for _ in range(2)} == {"the manager is lost"}
    ends.start()
    assert {ends.said.get(timeout=10) for _ in range(2)} == {"the manager is there again"}
    one.send(Letter("one", "two", b"hello again"))
    assert ends.heard.get(timeout=10) == Letter("one", "two", b"hello again")


def test_letters_arrive_in_their_order_and_tickets_come_back(ends: Ends) -> None:
    one = ends.link("one")
    ends.link("two")
    for number in range(3 * BULK_MAX):
        ticket = one.ticket(10)
        assert ticket is not None
        one.send(Letter("one", "two", bytes([number])), ticket)
    bodies = [message.body for _ in range(3 * BULK_MAX) if isinstance(message := ends.heard.get(timeout=10), Letter)]
    assert bodies == [bytes([number]) for number in range(3 * BULK_MAX)]


def test_there_are_so_many_tickets_and_no_more(ends: Ends) -> None:
    one = ends.link("one")
    tickets = [one.ticket(0) for _ in range(BULK_MAX)]
    assert None not in tickets
    assert one.ticket(0) is None
    assert tickets[0] is not None
    tickets[0]()
    assert one.ticket(0) is not None


def test_a_ticket_comes_back_though_what_it_was_for_is_lost(ends: Ends) -> None:
    one = ends.link("one")
    ends.stop()
    ends.said.get(timeout=10)
    for _ in range(2 * BULK_MAX):
        ticket = one.ticket(10)
        assert ticket is not None
        one.send(Letter("one", "two", b"lost"), ticket)


def test_what_waits_is_sent_before_a_link_closes(ends: Ends) -> None:
    one = ends.link("one")
    ends.link("two")
    one.send(Letter("one", "two", b"last words"))
    one.close(10)
    assert ends.heard.get(timeout=10) == Letter("one", "two", b"last words")


def test_what_listens_but_is_no_manager_is_said(tmp_path: Path) -> None:
    listener = Listener(Address(f"{tmp_path}/other"))

    def answer() -> None:
        for channel in listener.accept():
            channel.send(b"220 ready")

    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(VmError):
        enter(listener.address, "one")
    listener.close()


def test_a_name_that_is_taken_is_said(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "NAME_S", 0.0)
    ends.link("one")
    with pytest.raises(VmError, match="in use"):
        enter(ends.address, "one")


def test_a_name_that_becomes_free_meanwhile_is_had(ends: Ends) -> None:
    one = enter(ends.address, "one")
    threading.Timer(0.05, one.close).start()
    enter(ends.address, "one").close()


def test_a_tpm_that_does_not_answer_is_said_and_the_link_goes_on_trying(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tower()

    def dead(*_: object) -> None:
        raise HostError("the TPM does not answer")

    monkeypatch.setattr(one, "attest_many", dead)
    with pytest.raises(VmError, match="does not show who it is: the TPM does not answer"):
        enter(ends.address, "s1", one.identity, server_prover(one))
    monkeypatch.undo()
    enter(ends.address, "s1", one.identity, server_prover(one)).close()
