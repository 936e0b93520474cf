"""Event logs: both formats there and back, replay, and what other people's tools make of ours."""

import json
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quoreduce.errors import EvidenceError
from quoreduce.trust import eventlog
from quoreduce.trust.eventlog import (
    Event,
    decode_binary,
    decode_cel_json,
    encode_binary,
    encode_cel_json,
    replay,
)
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import PcrSelection, encode_pcrs_file, sized

EVENTS = st.lists(st.builds(Event.of, st.integers(0, 23), st.binary(max_size=50)), max_size=8)
LOG = (Event.of(17, b'{"a":1}'), Event.of(19, b"key"), Event.of(16, b""), Event.of(16, b"batch"))
HEADER_BYTES = 65
CODECS = pytest.mark.parametrize(
    ("encode", "decode"), [(encode_binary, decode_binary), (encode_cel_json, decode_cel_json)]
)


@CODECS
@given(events=EVENTS)
def test_what_is_encoded_decodes_to_the_same(encode: Any, decode: Any, events: list[Event]) -> None:
    assert decode(encode(events)) == tuple(events)


@given(EVENTS)
def test_replay_is_what_a_tpm_does(events: list[Event]) -> None:
    tpm = MicroTpm()
    for event in events:
        tpm.extend(event.pcr, event.digest)
    values = replay(events)
    assert values == tpm.read(sorted(values))


def test_replay_begins_with_the_values_given() -> None:
    begun = replay([Event.of(3, b"x")], {3: b"\xff" * 32, 4: b"\x04" * 32})
    assert begun == {3: sha256(b"\xff" * 32 + sha256(b"x").digest()).digest(), 4: b"\x04" * 32}


def test_a_record_is_that_of_the_specification() -> None:
    """TCG Canonical Event Log Format 1.0, 5.3: the members and their types."""
    assert json.loads(encode_cel_json(LOG[:1])) == [
        {
            "recnum": 0,
            "pcr": 17,
            "digests": [{"hashAlg": "sha256", "digest": sha256(b'{"a":1}').hexdigest()}],
            "content_type": "pcclient_std",
            "content": {"event_type": "EV_EVENT_TAG", "event_data": "01005251" + "07000000" + b'{"a":1}'.hex()},
        }
    ]


@CODECS
def test_data_that_is_not_what_was_extended_is_refused(encode: Any, decode: Any) -> None:
    forged = Event(16, sha256(b"what was extended").digest(), b"what the log says")
    with pytest.raises(EvidenceError, match="event 1 is not that of its data"):
        decode(encode([LOG[0], forged]))


@given(st.binary(max_size=300))
@example(encode_binary(LOG))
def test_bytes_that_are_no_log_are_refused_and_nothing_else_happens(raw: bytes) -> None:
    for data in (raw, encode_binary([])[:HEADER_BYTES] + raw, b"[" * 100_000 + raw):
        for encode, decode in ((encode_binary, decode_binary), (encode_cel_json, decode_cel_json)):
            try:
                events = decode(data)
            except EvidenceError:
                continue
            assert encode(events) == data


@CODECS
@given(data=st.data())
def test_a_log_with_one_byte_changed_or_missing_is_another_or_none(
    encode: Any, decode: Any, data: st.DataObject
) -> None:
    raw = bytearray(encode(LOG))
    at = data.draw(st.integers(0, len(raw) - 1))
    change = data.draw(st.integers(0, 255))
    raw[at : at + 1] = b"" if change == raw[at] else bytes([change])
    try:
        events = decode(bytes(raw))
    except EvidenceError:
        return
    assert events != LOG


@pytest.mark.parametrize("name", ["LOG_BYTES_MAX", "EVENTS_MAX"])
@CODECS
def test_logs_are_bounded(encode: Any, decode: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encode(LOG)
    monkeypatch.setattr(eventlog, name, 3)
    if (name, decode) != ("EVENTS_MAX", decode_cel_json):  # there the bound is part of the type
        with pytest.raises(EvidenceError):
            decode(raw)
    with pytest.raises(EvidenceError):
        encode(LOG)


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        (b'"recnum":1', b'"recnum":2', "event 1 has the number 2"),
        (b'"recnum":0', b'"recnum":NaN', "no CEL-JSON"),
        (b'"pcr":17', b'"pcr":24', "no CEL-JSON"),
        (b'"sha256"', b'"sha1"', "no CEL-JSON"),
        (b'"pcr":17,', b'"pcr":16,"pcr":17,', "canonical"),
        (b'"pcr":17,', b'"pcr":17,"more":1,', "no CEL-JSON"),
        (b'"pcr":17,', b'"pcr": 17,', "canonical"),
    ],
)
def test_json_has_one_form(was: bytes, now: bytes, says: str) -> None:
    raw = encode_cel_json(LOG)
    assert was in raw
    with pytest.raises(EvidenceError, match=says):
        decode_cel_json(raw.replace(was, now, 1))


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (HEADER_BYTES, 24, "PCR 24"),
        (HEADER_BYTES + 4, 3, "no tagged event"),
        (HEADER_BYTES + 8, 2, "no tagged event"),
        (HEADER_BYTES + 12, 4, "no tagged event"),
        (HEADER_BYTES + 46, 200, "cut off"),
        (HEADER_BYTES + 46, 3, "has the tag 0x520001"),
        (HEADER_BYTES + 50, 0, "has the tag 0x51520000"),
        (HEADER_BYTES + 54, 3, "says that it has 3 bytes"),
    ],
)
def test_every_field_of_a_binary_event_is_checked(offset: int, value: int, says: str) -> None:
    raw = bytearray(encode_binary(LOG[:1]))
    raw[offset] = value
    with pytest.raises(EvidenceError, match=says):
        decode_binary(bytes(raw))


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install tpm2-tools")
    return found


def test_tpm2_eventlog_reads_and_replays_our_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(encode_binary(LOG))
    done = subprocess.run(
        [tool("tpm2_eventlog"), str(tmp_path / "log")], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("EV_EVENT_TAG") == len(LOG)
    shown = re.findall(r"^ +(\d+) *: 0x([0-9a-f]{64})$", done.stdout, re.MULTILINE)
    assert {int(pcr): bytes.fromhex(value) for pcr, value in shown} == replay(LOG)


@pytest.mark.parametrize("forged", [False, True])
def test_tpm2_checkquote_replays_our_log(tmp_path: Path, forged: bool) -> None:
    program, tpm = tool("tpm2_checkquote"), MicroTpm()
    for event in LOG:
        tpm.extend(event.pcr, event.digest)
    quoted = tpm.quote((16, 17, 19), b"nonce")
    files = {
        "ak.tss": sized(tpm.public.encode()),
        "quote.msg": quoted.message,
        "quote.sig": quoted.signature,
        "quote.pcrs": encode_pcrs_file(PcrSelection.sha256(*quoted.values), quoted.values),
        "eventlog.bin": encode_binary((*LOG[:-1], Event.of(16, b"forged")) if forged else LOG),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    options = "-u ak.tss -m quote.msg -s quote.sig -f quote.pcrs -e eventlog.bin -g sha256 -q"
    command = [program, *options.split(), b"nonce".hex()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert (done.returncode == 0) == (not forged), done.stderr.decode()
