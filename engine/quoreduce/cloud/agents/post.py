"""What an agent and the manager say to each other: letters to be passed on, parts of stored blobs, the insider's console.

The manager is not trusted: these messages carry no secret, and whatever matters in a letter is signed, attested or encrypted
between its ends (:mod:`quoreduce.cloud.wire`). A name is an address; who enters under a user's id or as a server shows that it is
his (:mod:`quoreduce.cloud.agents.names`).
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
    """The first message of an agent: under which name others reach it, and which server it says it is (empty: none)."""

    name: Name
    server: Annotated[str, msgspec.Meta(max_length=NAME_MAX)] = ""


class Prove(msgspec.Struct, frozen=True, tag="prove"):
    """The manager asks a user or a server to show that the name is his, for this nonce."""

    nonce: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    """The answer: of a user the nonce signed (:class:`quoreduce.cloud.wire.Entry`), of a server evidence for it."""

    shown: Annotated[bytes, msgspec.Meta(max_length=1 << 19)]


class Entered(msgspec.Struct, frozen=True, tag="entered"):
    """The manager's answer; ``reason`` is empty if the name is the agent's now."""

    reason: Text = ""


class Letter(msgspec.Struct, frozen=True, tag="letter"):
    """A message from one agent to another, which the manager passes on, and does not understand."""

    sender: Name
    to: Name
    body: Body


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """The manager could not pass a letter on: nobody of that name is there."""

    to: Name
    reason: Text


class Who(msgspec.Struct, frozen=True, tag="who"):
    """Asks which servers are there."""


class Names(msgspec.Struct, frozen=True, tag="names"):
    """The servers that are there: what they call themselves by name; not to be trusted."""

    servers: Annotated[dict[Name, str], msgspec.Meta(max_length=NAMES_MAX)]


class Put(msgspec.Struct, frozen=True, tag="put"):
    """The next part of a blob; number 0 begins it anew, the final one makes it visible. Answered with Stored, once."""

    blob: Name
    number: Count
    body: Body
    final: bool


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """A blob is stored whole; or, with a reason, it is not."""

    blob: Name
    reason: Text = ""


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Asks for a blob, which comes in the parts that it was put in; ``ticket``: by it whoever asks knows which are his."""

    blob: Name
    ticket: Count


class Part(msgspec.Struct, frozen=True, tag="part"):
    """A part of a blob that was asked for; with a reason it cannot be had."""

    ticket: Count
    number: Count
    body: Body
    final: bool
    reason: Text = ""


class Console(msgspec.Struct, frozen=True, tag="console"):
    """The insider's: one QMP command, JSON, for a VM (32 hex digits) of a server. All that he can reach is the VM's broker."""

    sender: Name
    to: Name
    vm: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    line: Annotated[bytes, msgspec.Meta(max_length=LINE_BYTES_MAX)]


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """What the broker answered, JSON; or the reason why there is no answer."""

    to: Name
    line: Annotated[bytes, msgspec.Meta(max_length=LINE_BYTES_MAX)]
    reason: Text = ""


Post: TypeAlias = Enter | Prove | Proof | Entered | Letter | Lost | Who | Names | Put | Stored | Get | Part | Console | Reply
_DECODER: Final = msgspec.msgpack.Decoder(Post)
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: Post) -> bytes:
    """Encode a message as a frame."""
    return _ENCODER.encode(message)


def decode(frame: bytes) -> Post:
    """Decode a frame; VmError if it is none of ours."""
    try:
        found: Post = _DECODER.decode(frame)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise VmError(f"no message between agents: {' '.join(str(error).split())[:REASON_MAX]}") from error
    return found
