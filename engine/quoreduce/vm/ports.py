"""What passes between the pure machines of VM operations and the edge that does things: events in, commands out.

A machine is ``step(event) -> list[Command]``. The edge carries the commands out *in their order*, and reports with
events. It must

* make a :class:`Persist` durable (written, fsynced, renamed) before it begins the command after it: all of recovery
  stands on this;
* serialise the events of a machine (one lock), and carry out the commands of one step before those of the next for the
  same session;
* on a command that fails, give :class:`CommandFailed` (or :class:`ScrubFailed` for :class:`Destroy`) and continue.

A *session* is one order at one server, named by the order's digest, 32 bytes. Its keys and its TCOM are in memory only
and end with the server agent's process; guests (QEMU) survive it, and are given as :class:`RecordFound` before anything
else when it starts again.

Bulk data. What leaves a VM comes as :class:`Data`, ``Data``, ..., :class:`DataEnd`, each of at most CHUNK_BYTES, and is
sealed by the machine; what arrives is verified and decrypted by the machine and goes out as :class:`Feed`, ...,
:class:`FeedEnd`. The edge decides what is in the plaintext, with one rule: what leaves by :class:`Outgoing` must be
all that :class:`Open` with ``incoming`` needs elsewhere (so the image bundle goes in front of the migration stream).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from quoreduce.errors import AttestationError, VmError
from quoreduce.trust.policy import decode_policy
from quoreduce.vm import evidence, wire
from quoreduce.vm.wire import Message, Phase
from quoreduce.vm.wire import TcomOperation as Operation

MEMORY_MB: Final = (16, 1 << 20)
DISK_MB: Final = (1, 1 << 20)
CPUS: Final = (1, 256)
IMAGE_BYTES_MAX: Final = 256 << 20
OVERHEAD_BYTES: Final = 64 << 20  # of a stream over image, memory and disk: devices, vTPM, framing

NO_ORDER: Final = bytes(32)
C = TypeVar("C", bound=wire._Message)


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What a VM gets: memory and disk in MiB, processors. Raises VmError if one is out of bounds."""

    memory_mb: int = 128
    disk_mb: int = 16
    cpus: int = 1

    def __post_init__(self) -> None:
        for name, value, (least, most) in (
            ("MiB of memory", self.memory_mb, MEMORY_MB),
            ("MiB of disk", self.disk_mb, DISK_MB),
            ("processors", self.cpus, CPUS),
        ):
            if not least <= value <= most:
                raise VmError(f"a VM has {least} to {most} {name}, not {value}")

    def stream_bytes_max(self) -> int:
        """Return the most bytes of a VM's state in plaintext: image, memory, disk, devices, vTPM, framing."""
        return ((self.memory_mb + self.disk_mb) << 20) + IMAGE_BYTES_MAX + OVERHEAD_BYTES

    @classmethod
    def of(cls, spec: wire.Spec) -> VmSpec:
        """The spec of a message."""
        return cls(spec.memory_mb, spec.disk_mb, spec.cpus)

    def wire(self) -> wire.Spec:
        """The spec for a message."""
        return wire.Spec(self.memory_mb, self.disk_mb, self.cpus)


class VmRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a server knows of a VM, durably; no secret.

    Attributes:
        vmid, owner, policy: the VM, its owner, and what the owner trusts.
        phase: see :mod:`quoreduce.vm.server`.
        sequence: of the VM's place here.
        number: of the newest order seen: none up to it is taken any more.
        order, nonce: digest and n_U of the order that the phase is of.
        peer: the other server of a migration.
        spec, image: size, and digest of the image; zeros while they are not known.
        report: of the scrub that ended it here.
        dirty: what it left here could not be overwritten.
        server: which made the record; a server whose TPM was replaced is another one, and cannot attest what it finds.
    """

    vmid: wire.Id
    owner: wire.Keys
    policy: wire.Body
    phase: Phase
    sequence: wire.Count
    number: wire.Count
    order: wire.Hash = NO_ORDER
    nonce: wire.Hash = NO_ORDER
    peer: wire.Server = ""
    spec: wire.Spec = wire.Spec()
    image: wire.Hash = NO_ORDER
    report: bytes = b""
    dirty: bool = False
    server: wire.Server = ""

    def persist(self) -> Persist:
        """The command that makes it durable."""
        return Persist(self.vmid, _RECORDS.encode(self))

    def with_(self, **changes: Any) -> VmRecord:
        """A copy in which these attributes are different."""
        return msgspec.structs.replace(self, **changes)


def decode_record(raw: bytes) -> VmRecord:
    """Decode what :class:`Persist` has made durable. Raises VmError if malformed."""
    try:
        return _RECORD.decode(raw)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise VmError(f"no record of a VM: {error}") from error


_RECORDS: Final = msgspec.json.Encoder()
_RECORD: Final = msgspec.json.Decoder(VmRecord)


@dataclass(frozen=True, slots=True)
class TcomJob:
    """A verified order that a TCOM has to carry out at the server ``me``."""

    order: wire.Order
    session: bytes  # digest of the order
    signed: wire.Signed
    me: str
    random: Callable[[int], bytes]

    @property
    def user(self) -> str:
        """The address of the owner's agent."""
        return self.signed.keys.user


def bound(order: bytes, nonce: bytes) -> bytes:
    """Return the nonce of an attestation that answers this order and the other server's own nonce."""
    return sha256(b"quoreduce vm peer 1" + order + nonce).digest()


def opened(
    message: wire.AttestedMessage,
    kind: type[C],
    nonce: bytes,
    operation: Operation,
    vmid: bytes,
    policy: bytes,
    at: datetime,
) -> tuple[C, evidence.AttestedFacts]:
    """Check what a TCOM of this operation says, against this policy; return it, and what its evidence says.

    Raises:
        VmError, AttestationError: why it is refused.
    """
    found = evidence.check(
        evidence.decode(message.evidence), nonce, operation, vmid, message.content, _policy(policy), at
    )
    return wire.decode(message.content, kind), found


_policy = lru_cache(maxsize=64)(decode_policy)

REFUSED: Final = (VmError, AttestationError)


# Events of a server agent


@dataclass(frozen=True, slots=True)
class RecordFound:
    """A record of an earlier process is here; ``alive``: its guest is still there (running, paused or half loaded).

    Given once for each record, before other events; the edge has adopted the guest (or found none).
    """

    vmid: bytes
    alive: bool
    at: datetime


@dataclass(frozen=True, slots=True)
class Received:
    """A message has come, from anybody; ``at``: the time (UTC), for the validity of certificates."""

    message: Message
    at: datetime


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes: give it about once a second. The machine decides what is late."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Data:
    """Plaintext for this session: of a VM that leaves or is backed up (server), or of the image (user agent)."""

    session: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class DataEnd:
    """The end of the data. The guest is paused now (server)."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """The next part of a blob that :class:`GetBlob` asked for, as :class:`PutBlob` gave it; stores are not trusted."""

    session: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Booted:
    """The guest of :class:`Boot` runs."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that was fed is loaded; the guest is there, and paused."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Resumed:
    """The guest of :class:`Resume` runs."""

    session: bytes


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """A command of this session failed (any but Destroy), for this reason, one line. It will not succeed later.

    If the guest turns out to be gone, give :class:`GuestGone` afterwards.
    """

    session: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """The guest of :class:`Destroy` is gone, and its memory, disk and vTPM state are overwritten, read back and
    unlinked.

    ``report``: canonical bytes of the scrub report (files, bytes, digest), at most 4096.
    """

    session: bytes
    report: bytes


@dataclass(frozen=True, slots=True)
class ScrubFailed:
    """The guest is gone, but something was not overwritten, or not read back; ``reason`` names it, in one line."""

    session: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The server's core to a TCOM: its session has made no progress for too long."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The server's core to a TCOM: the user wants this session ended, as far as that is safe."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """The server's core to a TCOM: by the order ``job`` the user declares that the destination is gone for good."""

    job: TcomJob


@dataclass(frozen=True, slots=True)
class GuestGone:
    """A guest ended without a command of ours: by itself, or somebody killed it."""

    vmid: bytes


Event: TypeAlias = (
    RecordFound
    | Received
    | Tick
    | Data
    | DataEnd
    | Fetched
    | Booted
    | Loaded
    | Resumed
    | CommandFailed
    | Scrubbed
    | ScrubFailed
    | GuestGone
)
TcomEvent: TypeAlias = (
    Received
    | TimedOut
    | Settle
    | Abandon
    | Data
    | DataEnd
    | Fetched
    | Booted
    | Loaded
    | Resumed
    | CommandFailed
    | Scrubbed
    | ScrubFailed
)


# Commands of a server agent


@dataclass(frozen=True, slots=True)
class Persist:
    """Make this record (:class:`VmRecord`, encoded) of its ``vmid`` durable before going on."""

    vmid: bytes
    record: bytes


@dataclass(frozen=True, slots=True)
class Floor:
    """Make this durable before going on: no order of this owner (a user's id) up to ``number`` is taken for a VM
    without a record.
    """

    owner: str
    number: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the record of this VM."""

    vmid: bytes


@dataclass(frozen=True, slots=True)
class StartTcom:
    """Begin a TCOM in a µTPM instance of its own: ``attestor.session(operation)`` (µPCR 0)."""

    session: bytes
    operation: Operation


@dataclass(frozen=True, slots=True)
class Extend:
    """Extend into a µPCR of the session's instance: 1 the session key, 2 the image's digest, 3 a report."""

    session: bytes
    pcr: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SendAttested:
    """Attest ``content`` (``.attest(nonce, vmid, content)``) and send ``wire.AttestedMessage`` to each address."""

    session: bytes
    to: tuple[str, ...]
    nonce: bytes
    vmid: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class EndTcom:
    """The session is over: forget its µTPM instance and what was fed and not used; stop its Outgoing and GetBlob."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to an address: a user's id or a server's id. Nothing is assumed of the relay."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class PutBlob:
    """Append sealed data to a blob of the storage, which is not trusted; ``final`` ends the blob."""

    session: bytes
    blob: str
    data: bytes
    final: bool


@dataclass(frozen=True, slots=True)
class GetBlob:
    """Read a blob: it comes as :class:`Fetched`, in the parts that :class:`PutBlob` gave, or :class:`CommandFailed`."""

    session: bytes
    blob: str


@dataclass(frozen=True, slots=True)
class Open:
    """Take what will be fed: an image for :class:`Boot`, kept in memory, or (``incoming``) a VM's state, loaded as it
    comes.
    """

    session: bytes
    vmid: bytes
    spec: VmSpec
    incoming: bool


@dataclass(frozen=True, slots=True)
class Feed:
    """Bytes for :class:`Open`, each verified; that they are complete is known when FeedEnd has come."""

    session: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class FeedEnd:
    """The end of what is fed. With ``incoming``: answer :class:`Loaded` when the guest is complete and paused."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Boot:
    """Start a guest from the image that was fed; answer :class:`Booted`."""

    session: bytes
    vmid: bytes
    spec: VmSpec


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Give the VM's state as :class:`Data`, :class:`DataEnd`; its guest is paused at the end, not gone."""

    session: bytes
    vmid: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    """Let a guest run, paused or not; answer :class:`Resumed`. Stop an Outgoing of this VM first."""

    session: bytes
    vmid: bytes


@dataclass(frozen=True, slots=True)
class Destroy:
    """End the guest and scrub what it left, if there is anything; answer Scrubbed or ScrubFailed."""

    session: bytes
    vmid: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log, without secrets: what was refused and why, or what happened to a VM."""

    vmid: bytes
    text: str


Command: TypeAlias = (
    Persist | Floor | Forget | StartTcom | Extend | SendAttested | EndTcom | Send | PutBlob | GetBlob | Open | Feed
    | FeedEnd | Boot | Outgoing | Resume | Destroy | Note
)  # fmt: skip
