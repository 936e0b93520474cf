"""Messages of trusted VM operations: framed, versioned, length-capped. Pure.

A frame is ``version u8 (1) || length u32, big-endian || body``; a body is one struct of this module in MessagePack:
an array that begins with the struct's tag. What does not decode raises :class:`~quoreduce.errors.VmError`.

Digests and signatures are over *encoded bytes as they were received*, never over what they decode to: two encodings of
one message are two messages. So what is signed or attested travels as bytes (``Signed.body``, ``Attested.content``) and
is decoded once.

Three kinds of message are protected; a relay may forge all others, so they are hints:

:class:`Signed` by the user; its body is an :class:`Order` or a :class:`Package`.
:class:`AttestedMessage` by a TCOM; its content is an :class:`Offer`, an :class:`Accept`, a :class:`VmReceipt` or a
:class:`Status`.
:class:`SealedMessage` under the key of a session (:class:`quoreduce.vm.sealing.SealedChannel`); inside is a
:class:`Prepared` or a :class:`Commit`.

No message holds secrets in the clear: :class:`Secrets`, :class:`Transfer` and :class:`BackupKey` are plaintexts
of HPKE.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from quoreduce.errors import VmError, one_line

VERSION: Final = 1
CHUNK_BYTES: Final = 1 << 20  # of plaintext in one chunk of a stream
FRAME_BYTES_MAX: Final = CHUNK_BYTES + (1 << 16)  # of a frame's body
BODY_BYTES_MAX: Final = 1 << 18  # of what is signed or attested
EVIDENCE_BYTES_MAX: Final = 1 << 19
HEADER: Final = struct.Struct(">BI")
OPERATIONS: Final = (
    "launch",
    "restore",
    "migrate",
    "backup",
    "terminate",
    "settle",
    "update",
    "abandon",
)  # that a user orders
_DOMAIN: Final = b"quoreduce vm order 1"

Operation = Literal["launch", "restore", "migrate", "backup", "terminate", "settle", "update", "abandon"]
TcomOperation = Literal["launch", "restore", "migrate_out", "migrate_in", "backup", "terminate", "status"]
Phase = Literal[
    "launching", "running", "leaving", "released", "arriving", "prepared", "resuming", "aborted", "moved", "ending",
    "terminated", "lost", "unknown",
]  # fmt: skip
Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Nonce = Hash
Key = Hash
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Server = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{68})?\Z")]  # name of an AK, hex; empty: none
Address = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{32}|[0-9a-f]{68})\Z")]  # a user's id, or a server's
Box = Annotated[bytes, msgspec.Meta(max_length=1 << 16)]  # of HPKE
Body = Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True, gc=False):
    """All messages: immutable; an array that begins with the tag, which is the class's name unless given; no other
    members.
    """


class Spec(_Message, frozen=True):
    """The size of a VM: memory and disk in MiB, virtual CPUs."""

    memory_mb: Annotated[int, msgspec.Meta(ge=32, le=1 << 20)] = 128
    disk_mb: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 16
    cpus: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1


class Keys(_Message, frozen=True):
    """A user's public keys: Ed25519, which signs orders, and X25519, to which secrets are sealed (HPKE). 32 bytes
    each.
    """

    sign: Key
    box: Key

    @property
    def user(self) -> str:
        """The user's id: the first 16 bytes, in hex, of SHA-256( sign || box )."""
        return sha256(self.sign + self.box).hexdigest()[:32]


# What a user signs.


class Order(_Message, frozen=True):
    """A user's order for a VM.

    Attributes:
        operation: what. ``settle``: what ``about`` began and has not finished is ended, and it never begins if it has
            not yet; ``update``: the same, and the VM is under ``policy`` from now on; ``terminate``: it is ended; where
            it is not at this sequence, the same as settle; ``abandon``: the migration of ``about`` ends at its source,
            because the user says that its destination is gone for good.
        vmid: of the VM.
        sequence: of the VM's present place; an order holds for no other. A launch or restore makes it; a migration adds
            1.
        number: of the order among all of this user: a server takes none that is not above all that it has seen of this
            VM.
        nonce: n_U, fresh for each order.
        server: the server that has to do it: the VM's place now or afterwards; of a migration the source.
        destination: of a migration, else empty.
        policy: what the owner trusts (a file of trust.policy), with a launch, a restore, a migration, an update; else
            empty.
        counter: of a backup: greater than that of the one before. Of a restore: of the backup to be restored.
        about: of settle and abandon: the digest of an earlier order; else zeros.
    """

    operation: Operation
    vmid: Id
    sequence: Count
    number: Count
    nonce: Nonce
    server: Server
    destination: Server = ""
    policy: Body = b""
    counter: Count = 0
    about: Hash = bytes(32)


class Package(_Message, frozen=True):
    """A user's answer to an Offer: ``sealed`` is HPKE of :class:`Secrets` to the key offered; for the order with this
    digest.
    """

    order: Hash
    nonce: Nonce
    sealed: Box


class NonceProof(_Message, frozen=True, tag="Entry"):
    """Signed, it proves to a manager that a user has the keys of the id. ``nonce`` is the manager's."""

    nonce: Nonce


# What a TCOM attests.


class Offer(_Message, frozen=True):
    """A TCOM is ready: for the order with this digest, with its nonce (n_T, n_D) and its session's X25519 key (K_e,
    K_D).
    """

    order: Hash
    nonce: Nonce
    key: Key


class Accept(_Message, frozen=True):
    """A migration's source accepts an Offer: ``nonce`` is its n_D; ``sealed`` is HPKE of :class:`Transfer` to its
    K_D.
    """

    order: Hash
    nonce: Nonce
    sealed: Box


class VmReceipt(_Message, frozen=True, tag="Receipt"):
    """What was done.

    Attributes:
        operation, vmid, order: of which TCOM, for which VM and order (its digest).
        done: False: it failed, for the ``reason``; a failure is attested too, and is no receipt of anything.
        sequence: of the VM afterwards.
        user_nonce, nonce: n_U of the order, and the TCOM's own, n_T.
        digest: of the image launched, of the stream that was moved or backed up, of the scrub's report.
        counter: of a backup.
        sealed: of a backup: HPKE of :class:`BackupKey` to the user.
        manifest: of a backup: :class:`BackupManifest`, encoded.
        report: in JSON, of a scrub.
        reason: one line.
    """

    operation: TcomOperation
    vmid: Id
    order: Hash
    done: bool
    sequence: Count
    user_nonce: Nonce
    nonce: Nonce
    digest: Hash
    counter: Count = 0
    sealed: Box = b""
    manifest: Annotated[bytes, msgspec.Meta(max_length=4096)] = b""
    report: Annotated[bytes, msgspec.Meta(max_length=1 << 16)] = b""
    reason: Annotated[str, msgspec.Meta(max_length=600)] = ""


class Status(_Message, frozen=True):
    """Where a server stands with a VM.

    Attributes:
        phase, sequence: see :mod:`quoreduce.vm.server`.
        order: digest of the order that the phase is of, or zeros.
        number: of the newest order that the server has seen: those up to it will not be taken any more.
        nonce: of the query, or of the order to settle.
        peer: the other server of a migration; empty, if the destination was given nothing.
        report: of a scrub.
        dirty: something that it left there could not be overwritten.
        busy: whether something is being done with the VM there now.
    """

    vmid: Id
    phase: Phase
    sequence: Count
    order: Hash
    number: Count
    nonce: Nonce
    peer: Server = ""
    report: Annotated[bytes, msgspec.Meta(max_length=1 << 16)] = b""
    dirty: bool = False
    busy: bool = False


# What goes through a session's channel.


class Prepared(_Message, frozen=True):
    """The destination holds the whole VM, paused, and will keep it; ``digest`` is of the stream."""

    order: Hash
    digest: Hash


class Commit(_Message, frozen=True):
    """The source has let go of the VM for good: the destination runs it from now on."""

    order: Hash
    digest: Hash


# Plaintexts of HPKE.


class Secrets(_Message, frozen=True):
    """What a launch or a restore needs.

    Attributes:
        key: K_VM or, for a restore, K_B: of the stream that follows.
        nonce: n_T of the Offer.
        image: SHA-256 of the image bundle.
        size: of the stream's plaintext, bytes.
        spec: of the VM.
        manifest: of a restore: the :class:`BackupManifest`, encoded; else empty.
        counter: of a restore: the manifest's, signed by the user.
    """

    key: Key
    nonce: Nonce
    image: Hash
    size: Count
    spec: Spec
    manifest: Annotated[bytes, msgspec.Meta(max_length=4096)] = b""
    counter: Count = 0


class Transfer(_Message, frozen=True):
    """What a migration's destination needs: the stream's key K_S, and the VM's record, with its next sequence."""

    key: Key
    vmid: Id
    sequence: Count
    spec: Spec
    owner: Keys
    policy: Body
    image: Hash


class BackupKey(_Message, frozen=True):
    """What only the owner gets of a backup: K_B, the digest of the encoded :class:`BackupManifest`, its counter."""

    key: Key
    manifest: Hash
    counter: Count


class BackupManifest(_Message, frozen=True, tag="Manifest"):
    """What a backup is of, and the digest of the order for it, which names the blob.

    ``stream`` is the digest of its sealed stream, ``size`` of its plaintext in bytes.
    """

    order: Hash
    vmid: Id
    sequence: Count
    counter: Count
    spec: Spec
    image: Hash
    stream: Hash
    size: Count


# What is sent.


class Signed(_Message, frozen=True):
    """Signed by the user with these keys (:func:`sign`, :func:`verify`)."""

    body: Body
    keys: Keys
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class AttestedMessage(_Message, frozen=True, tag="Attested"):
    """Attested by a TCOM; ``evidence`` is :class:`quoreduce.vm.evidence.Evidence`, encoded, for this content."""

    content: Body
    evidence: Annotated[bytes, msgspec.Meta(max_length=EVIDENCE_BYTES_MAX)]


class SealedMessage(_Message, frozen=True, tag="Sealed"):
    """A message inside a session's channel."""

    order: Hash
    data: Annotated[bytes, msgspec.Meta(max_length=4096)]


class Hello(_Message, frozen=True):
    """A migration's source asks its destination: the user's :class:`Signed` order, encoded, and n_S."""

    order: Body
    nonce: Nonce


class StreamChunk(_Message, frozen=True, tag="Chunk"):
    """The next piece of the stream that goes with an order."""

    order: Hash
    data: Annotated[bytes, msgspec.Meta(max_length=CHUNK_BYTES + 64)]


class StatusQuery(_Message, frozen=True):
    """Asks a server where it stands with a VM; anyone may. The answer goes to ``reply``."""

    vmid: Id
    nonce: Nonce
    reply: Address


class Refusal(_Message, frozen=True):
    """Nothing was done, for this reason, one line. It is not attested, so it decides nothing."""

    order: Hash
    reason: Annotated[str, msgspec.Meta(max_length=600)]


Message = Signed | AttestedMessage | SealedMessage | Hello | StreamChunk | StatusQuery | Refusal
Said = Offer | Accept | VmReceipt | Status  # what is attested
M = TypeVar("M", bound=_Message)

_ENCODER: Final = msgspec.msgpack.Encoder()
_MESSAGES: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
_SAID: Final[msgspec.msgpack.Decoder[Said]] = msgspec.msgpack.Decoder(Said)


def name_of(kind: type[_Message]) -> str:
    """The name of a kind of message on the wire: its tag."""
    return str(kind.__struct_config__.tag)


def encode(message: _Message) -> bytes:
    """Encode any struct of this module; its lengths are checked where it is decoded."""
    return _ENCODER.encode(message)


def decode(raw: bytes, kind: type[M]) -> M:
    """Decode one struct of this kind (of :data:`Message`, :func:`decode_message`). Raises VmError if malformed."""
    if len(raw) > BODY_BYTES_MAX:
        raise VmError(f"message: {len(raw)} bytes of a {name_of(kind)}, over the bound of {BODY_BYTES_MAX}")
    try:
        decoded: M = _decoder(kind).decode(raw)
    except _MALFORMED as error:
        raise VmError(f"message: no {name_of(kind)}: {one_line(error)}") from error
    return decoded


def decode_said(raw: bytes) -> Said:
    """Decode what is attested, of any kind. Raises VmError if malformed. Checks no evidence."""
    if len(raw) > BODY_BYTES_MAX:
        raise VmError(f"message: {len(raw)} bytes are attested, over the bound of {BODY_BYTES_MAX}")
    try:
        return _SAID.decode(raw)
    except _MALFORMED as error:
        raise VmError(f"message: nothing that is attested: {one_line(error)}") from error


def decode_message(raw: bytes) -> Message:
    """Decode the body of a frame. Raises VmError unless it is one of :data:`Message`."""
    if len(raw) > FRAME_BYTES_MAX:
        raise VmError(f"message: {len(raw)} bytes, over the bound of {FRAME_BYTES_MAX}")
    try:
        return _MESSAGES.decode(raw)
    except _MALFORMED as error:
        raise VmError(f"message: {one_line(error)}") from error


def frame(body: bytes) -> bytes:
    """Return the frame of a message's bytes. Raises VmError if it is too long."""
    return HEADER.pack(VERSION, _bounded(len(body))) + body


def frame_size(header: bytes) -> int:
    """Return the length of the body after these HEADER.size bytes. Raises VmError for another version or length."""
    if len(header) != HEADER.size:
        raise VmError(f"frame: {len(header)} bytes of header, where {HEADER.size} have to be: the connection was cut")
    version, size = HEADER.unpack(header)
    if version != VERSION:
        raise VmError(f"frame: version {version}, not {VERSION}: both sides have to run the same quoreduce")
    return _bounded(size)


def digest(raw: bytes) -> bytes:
    """Return SHA-256 of bytes as received: what stands for an order, a manifest."""
    return sha256(raw).digest()


def sign(private: bytes, box: bytes, body: Order | Package | NonceProof) -> Signed:
    """Sign with a user's Ed25519 key (32 bytes), which goes with the X25519 public key ``box``."""
    key = Ed25519PrivateKey.from_private_bytes(private)
    keys = Keys(key.public_key().public_bytes_raw(), box)
    raw = encode(body)
    return Signed(raw, keys, key.sign(_signed_bytes(raw, keys)))


def verify(signed: Signed, owner: Keys | None = None) -> None:
    """Check a user's signature, and that it is this owner's. Raises VmError. Without an owner any user passes."""
    if owner is not None and signed.keys != owner:
        raise VmError(f"signed by user {signed.keys.user}, not by {owner.user}, who owns this VM")
    try:
        key = Ed25519PublicKey.from_public_bytes(signed.keys.sign)
        key.verify(signed.signature, _signed_bytes(signed.body, signed.keys))
    except (InvalidSignature, ValueError) as error:
        raise VmError(
            f"the signature of user {signed.keys.user} is wrong: it was altered, or signed by another key"
        ) from error


_MALFORMED: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)


@lru_cache(maxsize=64)
def _decoder(kind: type[M]) -> msgspec.msgpack.Decoder[M]:
    return msgspec.msgpack.Decoder(kind)


def _bounded(size: int) -> int:
    if size > FRAME_BYTES_MAX:
        raise VmError(f"frame: {size} bytes, over the bound of {FRAME_BYTES_MAX}")
    return size


def _signed_bytes(body: bytes, keys: Keys) -> bytes:
    return _DOMAIN + keys.sign + keys.box + body
