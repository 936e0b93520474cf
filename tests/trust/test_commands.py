"""Commands to the byte, responses whatever they hold, response codes by name."""

from __future__ import annotations

import contextlib
import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.errors import AttestationError, EvidenceError, HostError, QuoreduceError
from quoreduce.trust import commands, wire
from quoreduce.trust.tpm2 import Tpm2
from quoreduce.trust.wire import PcrSelection, Public, TpmReader

QUOTE = commands.quote(0x80000000, PcrSelection.sha256(16), b"n")
READERS = [
    commands.read_pcr_read, commands.read_quote, commands.read_create, commands.read_handles, commands.read_nv_size,
]  # fmt: skip
PASSWORD = "00000009 40000009 0000 00 0000"


def response(parameters: bytes = b"", code: int = 0, tag: int = commands.NO_SESSIONS) -> bytes:
    return struct.pack(">HII", tag, 10 + len(parameters), code) + parameters


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (commands.shutdown(), "8001 0000000c 00000145 0000"),
        (commands.get_random(32), "8001 0000000c 0000017b 0020"),
        (commands.flush(0x80000001), "8001 0000000e 00000165 80000001"),
        (commands.pcr_extend(16, bytes(32)), f"8002 00000041 00000182 00000010 {PASSWORD} 00000001 000b" + "00" * 32),
        (commands.pcr_reset(23), f"8002 0000001b 0000013d 00000017 {PASSWORD}"),
        (commands.pcr_read(PcrSelection.sha256(0, 16)), "8001 00000014 0000017e 00000001 000b 03 010001"),
        (QUOTE, f"8002 0000002a 00000158 80000000 {PASSWORD} 0001 6e 0010 00000001 000b 03 000001"),
        (
            commands.start_policy_session(bytes(16), wire.ALG_SHA256),
            "8001 0000002b 00000176 40000007 40000007 0010" + "00" * 16 + "0000 01 0010 000b",
        ),
        (commands.nv_read(0x01C00002, 512, 256), f"8002 00000023 0000014e 01c00002 01c00002 {PASSWORD} 0100 0200"),
    ],
)  # fmt: skip
def test_command_has_the_bytes_of_the_specification(command, wanted):
    assert command == bytes.fromhex(wanted)


@pytest.mark.parametrize(
    "template",
    [
        commands.EK_RSA,
        commands.EK_P256,
        commands.STORAGE,
        *commands.AK_TEMPLATES.values(),
        commands.sealed_template(bytes(32)),
    ],
    ids=["EK RSA", "EK P-256", "storage", "AK ECDSA", "AK RSASSA", "sealed"],
)
def test_template_is_a_public_area(template):
    assert Public.decode(template.encode()) == template


def test_policy_of_the_default_ek_is_policysecret_of_the_endorsement_hierarchy():
    """TPM 2.0 Library, Part 3, 23.2.4: PolicyUpdate with the name of TPM_RH_ENDORSEMENT, which is its handle."""
    inner = sha256(bytes(32) + bytes.fromhex("00000151") + wire.RH_ENDORSEMENT.to_bytes(4, "big")).digest()
    assert commands.EK_RSA.policy == commands.EK_P256.policy == sha256(inner).digest()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x907, "LOCALITY"), (0x921, "LOCKOUT"), (0x922, "RETRY"), (0x128, "PCR_CHANGED"), (0x101, "FAILURE"),
        (0x98E, "AUTH_FAIL"), (0x99D, "POLICY_FAIL"), (0x18B, "HANDLE"), (0x1DF, "INTEGRITY"), (0x2C4, "VALUE"),
        (0x0FF, "0x0ff"), (0x7FFFFFFF, "0x7fffffff"), (0x500, "0x500"),
    ],
)  # fmt: skip
def test_response_code_is_named(code, name):
    assert commands.reason(code) == name


def test_refusal_says_which_command_and_why():
    with pytest.raises(commands.TpmRefusal, match=r"^the TPM refuses TPM2_Quote: TPM_RC_LOCALITY \(0x907\)$") as caught:
        commands.answer(QUOTE, response(code=0x907))
    assert (caught.value.code, caught.value.reason, caught.value.exit_code) == (0x907, "LOCALITY", 6)


def test_lockout_is_the_hosts_fault_and_says_what_to_do():
    with pytest.raises(HostError, match=r"in lockout .* TPM2_Quote: .*tpm2_dictionarylockout"):
        commands.answer(QUOTE, response(code=commands.RC_LOCKOUT))


@pytest.mark.parametrize(
    "raw",
    [
        b"", response()[:9], response() + b"\0", response(bytes(5000), tag=commands.SESSIONS),
        response(),  # answers a command without sessions
        response(struct.pack(">I", 9), tag=commands.SESSIONS),  # parameters longer than the response
    ],
    ids=["nothing", "short", "too long", "oversized", "another tag", "overlong parameters"],
)  # fmt: skip
def test_malformed_response_is_refused(raw):
    with pytest.raises(EvidenceError):
        commands.answer(QUOTE, raw)


@pytest.mark.parametrize("size", [0, 9, 4097, 0xFFFFFFFF])
def test_size_of_a_message_is_bounded(size):
    with pytest.raises(EvidenceError, match="bytes, where 10 to 4096"):
        commands.message_size(struct.pack(">HII", 0x8001, size, 0))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_as_a_response_raise_typed_errors_only(raw, handle):
    with contextlib.suppress(QuoreduceError):
        commands.answer(QUOTE, raw, handle=handle)


@given(st.binary(max_size=200), st.sampled_from(READERS))
def test_any_parameters_raise_typed_errors_only(raw, read):
    with contextlib.suppress(EvidenceError):
        read(TpmReader(raw))


@given(st.data())
def test_tpm_that_answers_nonsense_raises_typed_errors_only(data):
    """Well-formed headers before any parameters, to each command that the port sends."""

    def transmit(command: bytes) -> bytes:
        if command[6:10] == bytes.fromhex("00000131"):  # CreatePrimary: the AK has to be one
            area = wire.sized(Public.encode(commands.AK_TEMPLATES["ecdsa"]))
            return response(b"\x80\0\0\0" + struct.pack(">I", len(area)) + area, tag=commands.SESSIONS)
        body = data.draw(st.binary(max_size=80))
        if command[:2] == b"\x80\x02":
            body = struct.pack(">I", data.draw(st.sampled_from([len(body), len(body) // 2]))) + body
        return response(
            body, data.draw(st.sampled_from([0, 0, 0, 0, 0x922, 0x18B])), int.from_bytes(command[:2], "big")
        )

    tpm = Tpm2(transmit, "nonsense")
    calls = [
        lambda: tpm.read([16]), lambda: tpm.quote([16], b""), lambda: tpm.random(8), lambda: tpm.seal(b"s", [16]),
        lambda: tpm.ek_certificate, lambda: tpm.activate(b"", b""), lambda: tpm.extend(16, bytes(32)), tpm.close,
        lambda: tpm.unseal(PcrSelection.sha256(16).encode() + bytes(4)),
    ]  # fmt: skip
    with contextlib.suppress(QuoreduceError):
        data.draw(st.sampled_from(calls))()


def test_command_that_the_tpm_did_not_start_is_sent_again_a_few_times():
    sent = []

    def transmit(command: bytes) -> bytes:
        sent.append(command)
        return response(code=0x922)

    with pytest.raises(AttestationError, match="TPM_RC_RETRY"):
        Tpm2(transmit, "busy")
    assert len(sent) == 5
