"""Messages of VM operations: what is encoded decodes to the same, all else is refused with a typed error, whatever it
is.
"""

from __future__ import annotations

import contextlib
import typing
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from quoreduce.errors import VmError
from quoreduce.vm import wire

PRIVATE, BOX = bytes(range(32)), bytes(range(32, 64))
ORDER = wire.encode(wire.sign(PRIVATE, BOX, wire.Package(bytes(32), bytes(32), b"sealed")))
STRUCTS = sorted(
    (kind for kind in vars(wire).values() if isinstance(kind, type) and issubclass(kind, wire._Message)), key=str
)
STRUCTS = [kind for kind in STRUCTS if kind is not wire._Message]
SENT = typing.get_args(wire.Message)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have, within its bounds."""
    bounds = {}
    if typing.get_origin(kind) is typing.Annotated:
        kind, meta = typing.get_args(kind)
        names = ("ge", "le", "min_length", "max_length", "pattern")
        bounds = {name: getattr(meta, name) for name in names if getattr(meta, name) is not None}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return structs(kind)
    if "pattern" in bounds:
        return st.from_regex(bounds["pattern"])
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(bounds.get("ge"), bounds.get("le"))
    made = st.binary if kind is bytes else st.text
    return made(min_size=bounds.get("min_length", 0), max_size=min(bounds.get("max_length", 80), 80))


def structs(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
    )


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_struct_decodes_to_what_was_encoded_and_as_no_other(kind: Any, data: st.DataObject) -> None:
    message = data.draw(structs(kind))
    raw = wire.encode(message)
    assert wire.decode(raw, kind) == message
    other = data.draw(st.sampled_from([one for one in STRUCTS if one is not kind]))
    with pytest.raises(VmError, match=f"no {wire.name_of(other)}"):
        wire.decode(raw, other)
    if kind in SENT:
        assert wire.decode_message(raw) == message
    else:
        with pytest.raises(VmError):
            wire.decode_message(raw)


@given(raw=st.binary(max_size=300))
@example(b"")
@example(b"\x91" * 100_000)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\x92\xa5Chunk\xa1\xff")
def test_junk_is_refused_with_a_typed_error(raw: bytes) -> None:
    for decode in (wire.decode_message, lambda raw: wire.decode(raw, wire.Order), wire.frame_size):
        with contextlib.suppress(VmError):
            decode(raw)


@given(data=st.data())
def test_a_damaged_message_is_refused_or_another_message_but_never_anything_else(data: st.DataObject) -> None:
    raw = bytearray(wire.encode(data.draw(st.one_of(*map(structs, SENT)))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = wire.decode_message(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except VmError:
        return
    assert isinstance(message, SENT)


@given(body=st.binary(max_size=100))
def test_a_frame_says_how_long_its_body_is(body: bytes) -> None:
    framed = wire.frame(body)
    assert wire.frame_size(framed[: wire.HEADER.size]) == len(body)
    assert framed[wire.HEADER.size :] == body
    assert framed[0] == wire.VERSION


@pytest.mark.parametrize(("header", "reason"), [
    (b"", "cut"), (b"\1\0\0\0", "cut"), (b"\1\0\0\0\0\0", "cut"), (b"\0\0\0\0\1", "version 0"),
    (b"\2\0\0\0\1", "version 2"),
    (b"\1\xff\xff\xff\xff", "over the bound"),
    (b"\1" + (wire.FRAME_BYTES_MAX + 1).to_bytes(4, "big"), "over the bound"),
])  # fmt: skip
def test_a_header_that_is_none_is_refused(header: bytes, reason: str) -> None:
    with pytest.raises(VmError, match=reason):
        wire.frame_size(header)


def test_what_is_too_long_is_neither_framed_nor_decoded() -> None:
    assert wire.frame_size(wire.frame(bytes(wire.FRAME_BYTES_MAX))[:5]) == wire.FRAME_BYTES_MAX
    with pytest.raises(VmError, match="over the bound"):
        wire.frame(bytes(wire.FRAME_BYTES_MAX + 1))
    with pytest.raises(VmError, match="over the bound"):
        wire.decode_message(bytes(wire.FRAME_BYTES_MAX + 1))
    with pytest.raises(VmError, match="over the bound"):
        wire.decode(wire.encode(wire.Package(bytes(32), bytes(32), bytes(wire.BODY_BYTES_MAX))), wire.Package)
    with pytest.raises(VmError, match="length <= 65536"):
        wire.decode(wire.encode(wire.Package(bytes(32), bytes(32), bytes((1 << 16) + 1))), wire.Package)


def test_all_that_may_be_sent_fits_a_frame() -> None:
    """Also with the largest of each: a chunk of a stream, and content with its evidence."""
    chunk = wire.StreamChunk(bytes(32), bytes(wire.CHUNK_BYTES + 17))
    attested = wire.AttestedMessage(bytes(wire.BODY_BYTES_MAX), bytes(wire.EVIDENCE_BYTES_MAX))
    for message in (chunk, attested):
        assert wire.decode_message(wire.encode(message)) == message


def test_a_signature_is_of_the_bytes_and_the_keys_that_go_with_it() -> None:
    signed = wire.decode(ORDER, wire.Signed)
    wire.verify(signed)
    wire.verify(signed, signed.keys)
    other = wire.Keys(signed.keys.sign, bytes(32))
    changes: list[dict[str, Any]] = [
        {"body": signed.body + b"\0"}, {"keys": other}, {"keys": wire.Keys(bytes(32), BOX)}, {"signature": bytes(64)},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(VmError, match="signature of user"):
            wire.verify(msgspec.structs.replace(signed, **change))
    with pytest.raises(VmError, match=f"not by {other.user}"):
        wire.verify(signed, other)


def test_a_signature_for_another_purpose_is_none() -> None:
    key = Ed25519PrivateKey.from_private_bytes(PRIVATE)
    signed = wire.decode(ORDER, wire.Signed)
    plain = key.sign(signed.keys.sign + signed.keys.box + signed.body)
    with pytest.raises(VmError, match="signature of user"):
        wire.verify(msgspec.structs.replace(signed, signature=plain))


def test_a_users_id_is_of_both_keys() -> None:
    users = {wire.Keys(bytes([a] * 32), bytes([b] * 32)).user for a in range(2) for b in range(2)}
    assert len(users) == 4
    assert {len(user) for user in users} == {32}


def test_the_tags_on_the_wire_are_those_of_servers_in_use() -> None:
    assert {wire.name_of(kind) for kind in STRUCTS} == {
        "Accept", "Attested", "BackupKey", "Chunk", "Commit", "Entry", "Hello", "Keys", "Manifest", "Offer", "Order",
        "Package", "Prepared", "Receipt", "Refusal", "Sealed", "Secrets", "Signed", "Spec", "Status", "StatusQuery",
        "Transfer",
    }  # fmt: skip
