"""Event logs: what was extended into PCRs, in the TCG's formats.

*TCG binary* (TCG PC Client Platform Firmware Profile 1.05, 10): little-endian; a header event of the old format that
names the hash algorithms (``Spec ID Event03``, here SHA-256 alone), then one TCG_PCR_EVENT2 an event. ``tpm2_eventlog``
shows it and ``tpm2_checkquote -e`` replays it. All our events have the type EV_EVENT_TAG, whose data is a
TCG_PCClientTaggedEvent: u32 tag, u32 size, bytes. The digest is over these bytes alone, so the tag, which it does not
cover, is always the same.

*CEL-JSON* (TCG Canonical Event Log Format 1.0, 5.3): an array of records with ``recnum``, ``pcr``, ``digests``,
``content_type`` "pcclient_std" and ``content``, which holds the same type and data, in hex.

A log is a claim of the host; it proves nothing until it replays to the values that a TPM has quoted. Both decoders are
strict: what was decoded encodes to the same bytes, and each event's digest is that of its data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final, Literal

import msgspec

from quoreduce.errors import EvidenceError
from quoreduce.trust.pcr import ZEROS, extended
from quoreduce.trust.wire import ALG_SHA256, PCRS

LOG_BYTES_MAX: Final = 16 << 20
EVENTS_MAX: Final = 1 << 16
EV_NO_ACTION: Final = 0x3
EV_EVENT_TAG: Final = 0x6
TAG: Final = 0x51520001  # of all our events; the PCR says what an event is

_SPEC_ID: Final = struct.pack("<16sIBBBBIHHB", b"Spec ID Event03", 0, 0, 2, 0, 2, 1, ALG_SHA256, 32, 0)
_HEADER: Final = struct.pack("<II20sI", 0, EV_NO_ACTION, bytes(20), len(_SPEC_ID)) + _SPEC_ID
_EVENT: Final = struct.Struct("<IIIH32sI")  # pcr, type, one digest, of SHA-256, size of the event
_TAGGED: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Event:
    """One extend: the PCR, the digest that was extended, and the data of this digest."""

    pcr: int
    digest: bytes
    data: bytes

    @classmethod
    def of(cls, pcr: int, data: bytes) -> Event:
        """Make the event that measures ``data``."""
        return cls(pcr, sha256(data).digest(), data)


def replay(events: Iterable[Event], initial: Mapping[int, bytes] | None = None) -> dict[int, bytes]:
    """Return the values of the PCRs that the events touch, and those of ``initial`` (others begin with zeros)."""
    values = dict(initial or {})
    for event in events:
        values[event.pcr] = extended(values.get(event.pcr, ZEROS), event.digest)
    return values


def encode_binary(events: Sequence[Event]) -> bytes:
    """Encode a TCG binary log. Raises EvidenceError beyond LOG_BYTES_MAX bytes or EVENTS_MAX events."""
    parts = [_HEADER]
    for event in events:
        data = _tagged(event)
        parts += [_EVENT.pack(event.pcr, EV_EVENT_TAG, 1, ALG_SHA256, event.digest, len(data)), data]
    return _bounded(b"".join(parts), len(events))


def decode_binary(raw: bytes) -> tuple[Event, ...]:
    """Decode a TCG binary log.

    Raises:
        EvidenceError: too large, truncated, another header, type or algorithm, or a digest that is not that of its
            data.
    """
    _bounded(raw, 0)
    if not raw.startswith(_HEADER):
        raise EvidenceError("event log: its header is not that of a SHA-256 log (Spec ID Event03)")
    events: list[Event] = []
    at = len(_HEADER)
    while at < len(raw):
        number = len(events)
        if number == EVENTS_MAX:
            raise EvidenceError(f"event log: more than {EVENTS_MAX} events")
        if len(raw) - at < _EVENT.size:
            raise EvidenceError(f"event log: event {number} is cut off")
        pcr, kind, digests, alg, digest, size = _EVENT.unpack_from(raw, at)
        if (kind, digests, alg) != (EV_EVENT_TAG, 1, ALG_SHA256):
            raise EvidenceError(f"event log: event {number} is no tagged event (type 6) with one SHA-256 digest")
        at += _EVENT.size
        if size > len(raw) - at:
            raise EvidenceError(f"event log: event {number} is cut off")
        events.append(_checked(number, pcr, digest, raw[at : at + size]))
        at += size
    return tuple(events)


def _tagged(event: Event) -> bytes:
    return _TAGGED.pack(TAG, len(event.data)) + event.data


def _checked(number: int, pcr: int, digest: bytes, tagged: bytes) -> Event:
    if pcr >= PCRS:
        raise EvidenceError(f"event log: event {number} is of PCR {pcr}; there are {PCRS}")
    tag, size = _TAGGED.unpack_from(tagged.ljust(_TAGGED.size, b"\0"))
    if tag != TAG:
        raise EvidenceError(f"event log: event {number} has the tag {tag:#x}, not ours ({TAG:#x})")
    data = tagged[_TAGGED.size :]
    if size != len(data):
        raise EvidenceError(f"event log: event {number} says that it has {size} bytes of data, and has {len(data)}")
    if sha256(data).digest() != digest:
        raise EvidenceError(f"event log: the digest of event {number} is not that of its data")
    return Event(pcr, digest, data)


def _bounded(raw: bytes, events: int) -> bytes:
    if len(raw) > LOG_BYTES_MAX:
        raise EvidenceError(f"event log: {len(raw)} bytes, over the bound of {LOG_BYTES_MAX}")
    if events > EVENTS_MAX:
        raise EvidenceError(f"event log: {events} events, over the bound of {EVENTS_MAX}")
    return raw


_Hex = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2})*\Z")]


class _Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hash_alg: Literal["sha256"] = msgspec.field(name="hashAlg")
    digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    event_type: Literal["EV_EVENT_TAG"]
    event_data: _Hex


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    recnum: int
    pcr: Annotated[int, msgspec.Meta(ge=0, lt=PCRS)]
    digests: Annotated[tuple[_Digest, ...], msgspec.Meta(min_length=1, max_length=1)]
    content_type: Literal["pcclient_std"]
    content: _Content


_RECORDS: Final = msgspec.json.Decoder(Annotated[tuple[_Record, ...], msgspec.Meta(max_length=EVENTS_MAX)])


def encode_cel_json(events: Sequence[Event]) -> bytes:
    """Encode a CEL-JSON log: one line, UTF-8. Raises EvidenceError beyond LOG_BYTES_MAX bytes or EVENTS_MAX events."""
    records = [
        _Record(
            number, event.pcr, (_Digest("sha256", event.digest.hex()),),
            "pcclient_std", _Content("EV_EVENT_TAG", _tagged(event).hex()),
        )
        for number, event in enumerate(events)
    ]  # fmt: skip
    return _bounded(msgspec.json.encode(records), len(events))


def decode_cel_json(raw: bytes) -> tuple[Event, ...]:
    """Decode a CEL-JSON log of our own events, in our own form. Raises EvidenceError as :func:`decode_binary`."""
    _bounded(raw, 0)
    try:
        records = _RECORDS.decode(raw)
        if msgspec.json.encode(records) != raw:
            raise EvidenceError("event log: not in canonical form")
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise EvidenceError(f"event log: no CEL-JSON log of tagged events: {' '.join(str(error).split())}") from error
    for number, record in enumerate(records):
        if record.recnum != number:
            raise EvidenceError(f"event log: event {number} has the number {record.recnum}")
    return tuple(
        _checked(number, one.pcr, bytes.fromhex(one.digests[0].digest), bytes.fromhex(one.content.event_data))
        for number, one in enumerate(records)
    )
