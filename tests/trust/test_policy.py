"""Policies: what a verifier trusts, and policies under which nothing could be accepted."""

import json
from typing import Any

import pytest
from attested import Authority
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.errors import AttestationError
from quoreduce.trust import policy as policy_module
from quoreduce.trust.policy import Policy, decode_policy

AUTHORITY = Authority()
SOFTWARE = {"format": "quoreduce policy 1", "environments": ["ab" * 32], "backends": ["utpm"]}


def refused(document: Any) -> str:
    with pytest.raises(AttestationError) as caught:
        decode_policy(document if isinstance(document, bytes) else json.dumps(document).encode())
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 6
    return str(caught.value)


def test_what_is_encoded_decodes_to_the_same() -> None:
    made = AUTHORITY.policy(max_age_s=5, clock_skew_s=6, f_min=1)
    assert decode_policy(made.encode()) == made


def test_what_is_not_said_has_a_default() -> None:
    made = decode_policy(json.dumps(SOFTWARE).encode())
    assert (made.max_age_s, made.clock_skew_s, made.f_min, made.roots, made.registrar) == (86_400, 300, 0, (), None)


def test_an_empty_list_of_environments_is_refused_and_says_what_to_do() -> None:
    assert "allows no environment: list the digests" in refused(SOFTWARE | {"environments": []})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backends": []}, "no backend"),
        ({"backends": ["swtpm"]}, "no CA"),
        ({"backends": ["swtpm"], "roots": AUTHORITY.policy().roots}, "no registrar"),
        ({"roots": ["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]}, "not one certificate in PEM"),
        ({"roots": ["nothing"]}, "not one certificate in PEM"),
        ({"environments": ["AB" * 32]}, "environments"),
        ({"environments": "ab" * 32}, "environments"),
        ({"backends": ["tpm1"]}, "backends"),
        ({"registrar": "00"}, "registrar"),
        ({"max_age_s": 0}, "max_age_s"),
        ({"max_age_s": 10**30}, "no quoreduce policy"),
        ({"clock_skew_s": -1}, "clock_skew_s"),
        ({"f_min": True}, "f_min"),
        ({"format": "quoreduce policy 2"}, "format"),
        ({"enviroments": []}, "enviroments"),
    ],
)
def test_a_policy_that_is_none_is_refused_with_its_reason(changes: dict[str, Any], says: str) -> None:
    assert says in refused(SOFTWARE | changes)


def test_a_policy_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "POLICY_BYTES_MAX", 10)
    assert "over the bound of 10" in refused(SOFTWARE)


@given(st.binary(max_size=80) | st.builds(lambda n: b'{"environments":' + b"[" * n, st.integers(0, 100_000)))
def test_bytes_that_are_no_policy_are_refused_and_nothing_else_happens(raw: bytes) -> None:
    refused(raw)


def test_a_policy_made_in_code_is_checked_too() -> None:
    with pytest.raises(AttestationError):
        Policy(environments=(), backends=("utpm",)).checked()
