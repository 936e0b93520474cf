"""The manager as a process: it passes letters on and stores blobs. NOT trusted: nothing depends on its honesty.

An insider at the manager may read all messages (``record``), alter them, and send QMP commands to the VMs' brokers
(:class:`~quoreduce.vm.agents.post.Console`). All that it can cause is delay.

Each connection has a thread. A sender waits for a receiver that does not read, and others wait for that sender: this is
the backpressure.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from threading import Lock, Thread
from typing import BinaryIO, Final

from quoreduce.errors import OutputError, VmError, one_line
from quoreduce.files import MARKER, mark, state_of
from quoreduce.vm.agents import names
from quoreduce.vm.agents.channel import Address, Channel, ChannelClosed, Listener
from quoreduce.vm.agents.folder import LOCK, StateFolder
from quoreduce.vm.agents.post import (
    BODY_BYTES_MAX,
    NAMES_MAX,
    BlobPart,
    BlobStored,
    Console,
    ConsoleReply,
    Enter,
    Entered,
    Get,
    Letter,
    Lost,
    Names,
    Post,
    Proof,
    Prove,
    Put,
    Who,
    decode,
    encode,
)

BLOB_BYTES_MAX: Final = 64 << 30
UNPROVED_MAX: Final = NAMES_MAX // 2  # agents that are neither users nor servers, for which there is always room
_SIZE: Final = struct.Struct(">I")


class Store:
    """Blobs as files of a folder, each part behind its length (u32, big-endian); a blob is visible when it is whole.

    The folder has our marker. One manager at a time uses it, and deletes blobs that an earlier one did not finish.

    Raises OutputError for a folder that is not ours or cannot be used. Raises VmError for a folder in use, and for a
    blob that cannot be stored or is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder = folder.resolve()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if state_of(folder) == "foreign":
                raise OutputError(f"{folder} is no store of ours, and not empty: choose another folder with --store")
            self._held = StateFolder(folder)
            if not any(folder.glob(f"{MARKER}.*")):
                mark(folder)
            for left in folder.glob(".*.new"):
                left.unlink()
        except OSError as error:
            raise OutputError(
                f"cannot use {folder} as a store: {error.strerror}; choose another folder with --store"
            ) from error
        self.folder = folder

    def close(self) -> None:
        """Let another manager use it; may be called again."""
        self._held.close()

    def writer(self, blob: str, owner: str) -> BlobWriter:
        """Begin a blob. When it is whole it replaces the blob of that name."""
        return BlobWriter(self.folder / f".{blob}.{owner}.new", self._path(blob))

    def parts(self, blob: str) -> Iterator[tuple[bytes, bool]]:
        """Give the parts of a blob, and whether it is the last one."""
        try:
            with self._path(blob).open("rb") as file:
                left = os.fstat(file.fileno()).st_size
                while left:
                    (size,) = _SIZE.unpack(file.read(_SIZE.size))
                    left -= _SIZE.size + size
                    if size > BODY_BYTES_MAX or left < 0:
                        raise VmError(f"the stored blob {blob} is broken")
                    yield file.read(size), not left
        except FileNotFoundError as error:
            raise VmError(f"there is no stored blob {blob}") from error
        except (OSError, struct.error) as error:
            raise VmError(f"the stored blob {blob} cannot be read: {error}") from error

    def _path(self, blob: str) -> Path:
        if blob == LOCK:
            raise VmError(f"no blob can be called {LOCK}")
        return self.folder / blob


class BlobWriter:
    """A blob that is not whole yet."""

    def __init__(self, new: Path, final: Path) -> None:
        self._new, self._final = new, final
        self._next = self._bytes = 0
        try:
            self._file: BinaryIO = new.open("wb")
        except OSError as error:
            raise VmError(f"cannot store {final.name}: {error.strerror}") from error

    def write(self, number: int, body: bytes, final: bool) -> None:
        """Add the next part; after the final one the blob is on disk and visible. Raises VmError if the part is out of
        order, the blob too big, or the disk full.
        """
        self._bytes += len(body)
        if number != self._next or self._bytes > BLOB_BYTES_MAX:
            why = f"part {number} in the place of {self._next}, or over {BLOB_BYTES_MAX} bytes"
            raise VmError(f"cannot store {self._final.name}: {why}")
        self._next += 1
        try:
            self._file.write(_SIZE.pack(len(body)) + body)
            if final:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._new.replace(self._final)
        except OSError as error:
            raise VmError(
                f"cannot store {self._final.name}: {error.strerror}; make space in the manager's --store"
            ) from error

    def drop(self) -> None:
        """Give the blob up, unless it is visible already."""
        with contextlib.suppress(OSError):  # what could not be written before cannot be flushed now
            self._file.close()
        self._new.unlink(missing_ok=True)


class Manager:
    """The relay. :meth:`serve` runs until :meth:`close`.

    Args:
        address: where agents connect.
        store: folder of the stored blobs.
        record: a file to which each frame that comes in is appended; None: no file.
    """

    def __init__(self, address: Address, store: Path, record: Path | None = None) -> None:
        self._store = Store(store)
        self._record = _open_record(record)
        self._agents: dict[str, _Agent] = {}
        self._lock = Lock()
        self._listener = Listener(address)

    def serve(self) -> None:
        """Accept agents until it is closed."""
        for channel in self._listener.accept():
            if len(self._agents) >= NAMES_MAX:
                channel.close()
                continue
            Thread(target=_Agent(self, channel).run, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and close all channels; may be called again."""
        self._listener.close()
        with self._lock:
            agents = list(self._agents.values())
        for agent in agents:
            agent.channel.close()
        self._store.close()
        if self._record is not None:
            with self._lock:
                self._record.close()
                self._record = None

    def noted(self, frame: bytes) -> None:
        """Record a frame."""
        with self._lock:
            if self._record is not None:
                self._record.write(frame)

    def enter(self, enter: Enter, agent: _Agent) -> str:
        """Give an agent its name; return why not, or an empty text.

        A user or a server that has proved its identity replaces its older connection. If another server has the name of
        a server, that one is listed with the beginning of its identity, and can be reached.
        """
        with self._lock:
            mine = [name for name, one in self._agents.items() if agent.server and one.server == agent.server]
            if not agent.server and names.claims(enter):
                mine = [enter.name] if enter.name in self._agents else []
            for name in mine:
                self._agents.pop(name).channel.close()
            if enter.name in self._agents and not agent.server:
                return f"the name {enter.name} is in use"
            if not names.claims(enter) and sum(not one.shown for one in self._agents.values()) >= UNPROVED_MAX:
                return f"{UNPROVED_MAX} others are here who need not show who they are"
            if enter.name in self._agents:
                agent.name = f"{enter.name[:60]}-{agent.server[4:16]}"
            self._agents[agent.name] = agent
            return ""

    def leave(self, agent: _Agent) -> None:
        """Forget an agent."""
        with self._lock:
            for name in [name for name, one in self._agents.items() if one is agent]:
                del self._agents[name]

    def servers(self) -> dict[str, str]:
        """The identities that servers claim, by name."""
        with self._lock:
            return {name: agent.server for name, agent in sorted(self._agents.items()) if agent.server}

    def agent(self, name: str) -> _Agent | None:
        """The agent of this name, or of this server's identity."""
        with self._lock:
            found = self._agents.get(name)
            return found or next((one for one in self._agents.values() if one.server and one.server == name), None)

    def passes(self, message: Letter | Console) -> bool:
        """Whether a message is passed on; an insider may decide otherwise."""
        return True

    @property
    def store(self) -> Store:
        """The stored blobs."""
        return self._store


class _Agent:
    """A connected agent, and the thread that serves it."""

    def __init__(self, manager: Manager, channel: Channel) -> None:
        self._manager, self.channel = manager, channel
        self.name = self.server = ""
        self.shown = False  # it proved that the name is its own
        self._blobs: dict[str, BlobWriter] = {}

    def run(self) -> None:
        try:
            if self._enter():
                while (frame := self.channel.receive()) is not None:
                    self._manager.noted(frame)
                    self._handle(decode(frame))
        except VmError:
            pass  # it is gone, or spoke nonsense: its connection is all that it loses
        finally:
            self._manager.leave(self)
            self.channel.close()
            for blob in self._blobs.values():
                blob.drop()

    def _enter(self) -> bool:
        frame = self.channel.receive(timeout_s=10)
        message = decode(frame) if frame is not None else None
        if not isinstance(message, Enter):
            return False
        self.name, self.server = message.name, message.server
        self.shown = names.claims(message)
        reason = self._unproved(message) if self.shown else ""
        reason = reason or self._manager.enter(message, self)
        self._say(Entered(reason))
        return not reason

    def _unproved(self, message: Enter) -> str:
        """Have a user or a server prove its identity; return why it did not, or an empty text."""
        nonce = os.urandom(32)
        self._say(Prove(nonce))
        frame = self.channel.receive(timeout_s=10)
        proof = decode(frame) if frame is not None else None
        if not isinstance(proof, Proof):
            return "it does not show who it is"
        return names.why_not(message, nonce, proof)[:500]

    def _say(self, message: Post) -> None:
        self.channel.send(encode(message))

    def _handle(self, message: Post) -> None:
        if isinstance(message, Letter | Console):
            self._pass_on(message)
        elif isinstance(message, ConsoleReply):
            if (agent := self._manager.agent(message.to)) is not None:
                _try(agent, message)
        elif isinstance(message, Who):
            self._say(Names(self._manager.servers()))
        elif isinstance(message, Put):
            self._put(message)
        elif isinstance(message, Get):
            self._get(message)
        else:
            raise VmError(f"a manager is not sent {type(message).__name__}")

    def _pass_on(self, message: Letter | Console) -> None:
        agent = self._manager.agent(message.to)
        if isinstance(message, Letter):
            message = Letter(self.name, message.to, message.body)
        else:
            message = Console(self.name, message.to, message.vm, message.line)
        if not self._manager.passes(message):
            return
        if agent is None or not _try(agent, message):
            self._say(Lost(message.to, f"nobody called {message.to} is connected to the manager"))

    def _put(self, put: Put) -> None:
        """Store a part. After a failure the rest of the blob is ignored, and its sender is told once."""
        if put.number == 0:
            if (old := self._blobs.pop(put.blob, None)) is not None:
                old.drop()
            with self._told(put.blob):
                self._blobs[put.blob] = self._manager.store.writer(put.blob, self.name)
        writer = self._blobs.get(put.blob)
        if writer is None:
            return
        with self._told(put.blob):
            writer.write(put.number, put.body, put.final)
            if put.final:
                del self._blobs[put.blob]
                self._say(BlobStored(put.blob))

    @contextlib.contextmanager
    def _told(self, blob: str) -> Iterator[None]:
        try:
            yield
        except ChannelClosed:
            raise
        except VmError as error:
            if (writer := self._blobs.pop(blob, None)) is not None:
                writer.drop()
            self._say(BlobStored(blob, one_line(error)[:500]))

    def _get(self, get: Get) -> None:
        number = 0
        try:
            for body, final in self._manager.store.parts(get.blob):
                self._say(BlobPart(get.ticket, number, body, final))
                number += 1
        except ChannelClosed:
            raise
        except VmError as error:
            self._say(BlobPart(get.ticket, number, b"", True, one_line(error)[:500]))


def _try(agent: _Agent, message: Post) -> bool:
    """Send; False if the agent is gone."""
    try:
        agent.channel.send(encode(message))
    except ChannelClosed:
        return False
    return True


def _open_record(path: Path | None) -> BinaryIO | None:
    if path is None:
        return None
    try:
        return path.open("ab")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
