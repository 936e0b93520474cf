"""An agent's link to the manager: one thread writes what waits to be sent, one reads. A broken link
is made again.

Sending never blocks the agent. Bulk data take one of :data:`BULK_MAX` *tickets* first (:meth:`Link.ticket`), and give
it back when they are on the wire: only those who send bulk data wait. Messages sent without a connection are lost, as a
relay may lose any message.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from quoreduce.errors import VmError
from quoreduce.vm.agents.channel import Address, Channel, ChannelClosed, connect
from quoreduce.vm.agents.names import Prover
from quoreduce.vm.agents.post import Enter, Entered, Post, Prove, decode, encode

BULK_MAX: Final = 16  # parts of 1 MiB on their way out
WAITING_MAX: Final = 4096  # messages; more are lost
RETRY_S: Final = 0.5
ENTER_S: Final = 10.0
NAME_S: Final = 3.0
_NAME_PAUSE_S: Final = 0.02
_Frame = tuple[bytes, Callable[[], None] | None]


def enter(address: Address, name: str, server: str = "", prove: Prover | None = None) -> Channel:
    """Connect to the manager under a name. Raises VmError if nobody answers, or the name is in use.

    A user and a server ``prove`` that the name is theirs. The manager may still know another agent of that name that
    has just ended: so the name is asked for again, for :data:`NAME_S` at most.
    """
    limit = time.monotonic() + NAME_S
    while True:
        channel = connect(address)
        try:
            reason = _asked(channel, address, Enter(name, server), prove)
        except ChannelClosed as error:
            channel.close()
            raise VmError(f"the manager is gone ({error}): start it again, `quoreduce vm manager {address}`") from error
        except BaseException:
            channel.close()
            raise
        if not reason:
            return channel
        channel.close()
        if time.monotonic() >= limit:
            raise VmError(f"the manager at {address} does not let us in: {reason}")
        time.sleep(_NAME_PAUSE_S)


def _asked(channel: Channel, address: Address, who: Enter, prove: Prover | None) -> str:
    """Ask to be let in; return why not, or an empty text."""
    channel.send(encode(who))
    answer = _heard(channel)
    if isinstance(answer, Prove) and prove is not None:
        channel.send(encode(prove(answer.nonce)))
        answer = _heard(channel)
    if not isinstance(answer, Entered):
        raise VmError(f"what listens at {address} is no manager")
    return answer.reason


def _heard(channel: Channel) -> Post | None:
    frame = channel.receive(ENTER_S)
    return decode(frame) if frame is not None else None


class Link:
    """A link that lasts until :meth:`close`.

    Args:
        address: of the manager.
        name, server: see :class:`~quoreduce.vm.agents.post.Enter`.
        prove: proves that they are ours.
        heard: called in the reading thread with each message; while it blocks, nothing is read.
        say: called with one line when the connection is lost, cannot be made, or is there again.

    Raises:
        VmError: the first connection cannot be made.
    """

    def __init__(
        self, address: Address, name: str, server: str, heard: Callable[[Post], None], say: Callable[[str], None],
        prove: Prover | None = None,
    ) -> None:  # fmt: skip
        self._address, self._name, self._server, self._heard, self._say = address, name, server, heard, say
        self._prove = prove
        self._bulk = threading.BoundedSemaphore(BULK_MAX)
        self._waiting: queue.Queue[_Frame] = queue.Queue(WAITING_MAX)
        self._closing = threading.Event()
        self._channel: Channel | None = enter(address, name, server, prove)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]

    def start(self) -> None:
        """Begin to read and write."""
        for thread in self._threads:
            thread.start()

    def ticket(self, wait_s: float) -> Callable[[], None] | None:
        """Return a ticket for bulk, to be given to :meth:`send` or called; None if none was free within ``wait_s``."""
        return self._bulk.release if self._bulk.acquire(timeout=wait_s) else None

    def send(self, message: Post, ticket: Callable[[], None] | None = None) -> None:
        """Send in the order of the calls; the ticket is given back when it is done."""
        try:
            self._waiting.put_nowait((encode(message), ticket))
        except queue.Full:
            if ticket is not None:
                ticket()

    def close(self, wait_s: float = 2.0) -> None:
        """Send what waits, for ``wait_s`` at most, and close; may be called again."""
        if not self._closing.is_set():
            self._closing.set()
            if self._threads[1].is_alive():
                self._threads[1].join(wait_s)
        channel = self._channel
        if channel is not None:
            channel.close()

    def _write(self) -> None:
        while True:
            try:
                frame, ticket = self._waiting.get(timeout=0.2)
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            channel = self._channel
            try:
                if channel is not None:
                    channel.send(frame)
            except VmError:
                pass  # the reading thread notices, and connects anew
            finally:
                if ticket is not None:
                    ticket()

    def _read(self) -> None:
        while not self._closing.is_set():
            channel = self._channel
            if channel is None:
                self._reconnect()
                continue
            try:
                while (frame := channel.receive()) is not None:
                    self._heard(decode(frame))
            except VmError as error:
                channel.close()
                self._channel = None
                if not self._closing.is_set():
                    self._say(f"the manager is lost ({error}); VMs go on, and it is tried again")

    def _reconnect(self) -> None:
        try:
            self._channel = enter(self._address, self._name, self._server, self._prove)
            self._say("the manager is there again")
        except VmError:
            self._closing.wait(RETRY_S)
