"""Messages between agents and the manager: letters to be passed on, parts of stored blobs, the insider's console.

The manager is not trusted: these messages carry no secret, and all that matters in a letter is signed, attested or
encrypted between its ends (:mod:`quoreduce.vm.wire`). A name is an address; an agent that enters under a user's id or
as a server proves that the name is its own (:mod:`quoreduce.vm.agents.names`).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from quoreduce.errors import VmError

NAME_MAX: Final = 80
REASON_MAX: Final = 500
BODY_BYTES_MAX: Final = 3 << 20
LINE_BYTES_MAX: Final = 64 << 10  # of the insider's console
NAMES_MAX: Final = 1024
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,79}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=REASON_MAX)]
Body = Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]


class Enter(msgspec.Struct, frozen=True, tag="enter"):
    """The first message of an agent: its name for others, and the server that it claims to be, or empty."""

    name: Name
    server: Annotated[str, msgspec.Meta(max_length=NAME_MAX)] = ""


class Prove(msgspec.Struct, frozen=True, tag="prove"):
    """The manager asks a user or a server to prove that the name is its own, for this nonce."""

    nonce: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    """The answer: a user signs the nonce (:class:`quoreduce.vm.wire.NonceProof`), a server sends evidence for it."""

    shown: Annotated[bytes, msgspec.Meta(max_length=1 << 19)]


class Entered(msgspec.Struct, frozen=True, tag="entered"):
    """The manager's answer; ``reason`` is empty if the name is the agent's now."""

    reason: Text = ""


class Letter(msgspec.Struct, frozen=True, tag="letter"):
    """A message from one agent to another, which the manager passes on without reading it."""

    sender: Name
    to: Name
    body: Body


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """The manager could not pass a letter on: no agent of that name is connected."""

    to: Name
    reason: Text


class Who(msgspec.Struct, frozen=True, tag="who"):
    """Asks which servers are there."""


class Names(msgspec.Struct, frozen=True, tag="names"):
    """The connected servers: the identities that they claim, by name; not to be trusted."""

    servers: Annotated[dict[Name, str], msgspec.Meta(max_length=NAMES_MAX)]


class Put(msgspec.Struct, frozen=True, tag="put"):
    """The next part of a blob; number 0 begins it anew, the final one makes it visible. Answered by one BlobStored."""

    blob: Name
    number: Count
    body: Body
    final: bool


class BlobStored(msgspec.Struct, frozen=True, tag="stored"):
    """A blob is stored whole; with a reason, it is not stored."""

    blob: Name
    reason: Text = ""


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Asks for a blob, which comes in the parts that were put; they bear this ``ticket``."""

    blob: Name
    ticket: Count


class BlobPart(msgspec.Struct, frozen=True, tag="part"):
    """A part of a blob that was asked for; with a reason, there is none."""

    ticket: Count
    number: Count
    body: Body
    final: bool
    reason: Text = ""


class Console(msgspec.Struct, frozen=True, tag="console"):
    """One QMP command (JSON) of an insider for a VM (32 hex digits) of a server. It reaches only the VM's broker."""

    sender: Name
    to: Name
    vm: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    line: Annotated[bytes, msgspec.Meta(max_length=LINE_BYTES_MAX)]


class ConsoleReply(msgspec.Struct, frozen=True, tag="reply"):
    """What the broker answered, JSON; or the reason why there is no answer."""

    to: Name
    line: Annotated[bytes, msgspec.Meta(max_length=LINE_BYTES_MAX)]
    reason: Text = ""


Post: TypeAlias = (
    Enter
    | Prove
    | Proof
    | Entered
    | Letter
    | Lost
    | Who
    | Names
    | Put
    | BlobStored
    | Get
    | BlobPart
    | Console
    | ConsoleReply
)
_DECODER: Final = msgspec.msgpack.Decoder(Post)
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: Post) -> bytes:
    """Encode a message as a frame."""
    return _ENCODER.encode(message)


def decode(frame: bytes) -> Post:
    """Decode a frame. Raises VmError if malformed."""
    try:
        found: Post = _DECODER.decode(frame)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise VmError(f"no message between agents: {' '.join(str(error).split())[:REASON_MAX]}") from error
    return found
