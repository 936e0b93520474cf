"""Evidence of a server with a real TPM in software, from enrolment to a check of what it says; and without a TPM."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from towers import Environment

from quoreduce.errors import AttestationError, EvidenceError, HostError
from quoreduce.trust import node as node_module
from quoreduce.trust.node import setup_node
from quoreduce.trust.policy import Policy
from quoreduce.vm.attestor import Challenge, SoftwareAttestor, SwtpmAttestor
from quoreduce.vm.evidence import Cache, check, decode, encode

VMID = bytes(16)
GOOD = Environment.named()


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Policy]:
    for program in ("swtpm", "swtpm_setup", "swtpm_localca"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install swtpm swtpm-tools)")
    state = tmp_path_factory.mktemp("server") / "state"
    return state, setup_node(state, "swtpm", [GOOD.digest])


@pytest.fixture
def server(enrolled: tuple[Path, Policy]) -> Iterator[SwtpmAttestor]:
    made = SwtpmAttestor(enrolled[0], GOOD.document, GOOD.codes)
    yield made
    made.close()


def test_a_server_with_a_tpm_attests_what_it_runs(server: SwtpmAttestor, enrolled: tuple[Path, Policy]) -> None:
    session, n = server.session("launch"), os.urandom(32)
    session.extend(1, bytes(32))
    made = decode(encode(session.attest(n, VMID, b"offer")))
    said = check(made, n, "launch", VMID, b"offer", enrolled[1], datetime.now(UTC))
    assert (said.server, said.environment, said.session_key) == (server.identity, GOOD.digest, bytes(32))
    with pytest.raises(EvidenceError, match="stale"):
        check(made, bytes(32), "launch", VMID, b"offer", enrolled[1], datetime.now(UTC))


def test_many_vms_of_a_server_share_one_quote_of_its_tpm(server: SwtpmAttestor, enrolled: tuple[Path, Policy]) -> None:
    sessions, now, cache = [server.session("status") for _ in range(20)], datetime.now(UTC), Cache()
    asked = [Challenge(one, os.urandom(32), os.urandom(16), b"running") for one in sessions]
    made = server.attest_many(asked)
    assert len({one.hardware for one in made}) == 1
    for one, made_for in zip(made, asked, strict=True):
        check(one, made_for.n, "status", made_for.vmid, b"running", enrolled[1], now, cache)


def test_a_server_keeps_its_name_and_another_environment_has_another_pcr17(enrolled: tuple[Path, Policy]) -> None:
    state, policy = enrolled
    with_dump = Environment.named("dump-guest-memory is allowed")
    names = []
    for environment in (GOOD, with_dump):
        server = SwtpmAttestor(state, environment.document, environment.codes)
        try:
            names.append(server.identity)
            made = server.session("launch").attest(bytes(32), VMID, b"")
        finally:
            server.close()
    assert names[0] == names[1]
    with pytest.raises(AttestationError, match=f"{with_dump.digest}, is not in the policy"):
        check(made, bytes(32), "launch", VMID, b"", policy, datetime.now(UTC))


def test_a_tpm_serves_one_server_at_a_time_and_is_let_go(
    server: SwtpmAttestor, enrolled: tuple[Path, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quoreduce.vm.attestor.TURN_S", 0.0)
    with pytest.raises(HostError, match="in use by another swtpm"):
        SwtpmAttestor(enrolled[0], GOOD.document, GOOD.codes)
    server.close()
    server.close()
    SwtpmAttestor(enrolled[0], GOOD.document, GOOD.codes).close()
    with pytest.raises(AttestationError, match="closed"):
        server.session("launch")


def test_a_server_that_cannot_be_made_lets_go_of_its_tpm(enrolled: tuple[Path, Policy]) -> None:
    with pytest.raises(EvidenceError, match="lists no TCOMs"):
        SwtpmAttestor(enrolled[0], b"{}", GOOD.codes)
    SwtpmAttestor(enrolled[0], GOOD.document, GOOD.codes).close()


def test_a_folder_without_an_enrolled_tpm_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="holds no enrolment: run"):
        SwtpmAttestor(tmp_path, GOOD.document, GOOD.codes)
    (tmp_path / node_module.ENROLMENT).write_bytes(b"junk")
    with pytest.raises(HostError, match="holds no enrolment: run"):
        SwtpmAttestor(tmp_path, GOOD.document, GOOD.codes)


def test_a_root_in_software_needs_nothing_and_nobody_vouches_for_it() -> None:
    server = SoftwareAttestor(GOOD.document, GOOD.codes)
    made = server.session("launch").attest(bytes(32), VMID, b"offer")
    assert made.hardware is None
    policy = Policy(environments=(GOOD.digest,), backends=("utpm",)).checked()
    said = check(made, bytes(32), "launch", VMID, b"offer", policy, datetime.now(UTC))
    assert said.server == server.identity
    assert SoftwareAttestor(GOOD.document, GOOD.codes).identity != server.identity
