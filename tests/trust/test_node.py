"""A node: its state folder, what setup leaves there, and the launch of an environment on its TPM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from quoreduce.errors import AttestationError, HostError
from quoreduce.trust import evidence, node
from quoreduce.trust.eventlog import encode_binary
from quoreduce.trust.evidence import LateLaunch
from quoreduce.trust.node import open_node, read_enrolment, read_policy, setup_node, state_folder
from quoreduce.trust.policy import Policy
from quoreduce.trust.swtpm import SwtpmSetup
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.verifier import check_launch

NOW = datetime.now(UTC) + timedelta(
    days=1
)  # certificates that are made in these tests, hours after this line, are valid by then
DOCUMENT = b'{"format":"quoreduce environment 1"}'
ENVIRONMENT = sha256(DOCUMENT).hexdigest()
JOB, CHALLENGE = sha256(b"job").digest(), sha256(b"challenge").digest()


@pytest.fixture(scope="module")
def enrolled(made: SwtpmSetup, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Policy]:
    """A node with swtpm (``made`` skips where there is none), and its policy."""
    state = tmp_path_factory.mktemp("node") / "state"
    return state, setup_node(state, "swtpm", [ENVIRONMENT])


def launched(state: Path, keys: list[bytes], name: str = "here", document: bytes = DOCUMENT) -> LateLaunch:
    tpm = open_node("swtpm", state)
    try:
        hardware = tpm.launch(document, keys, evidence.launch_nonce(CHALLENGE, JOB, name))
    finally:
        tpm.close()
    return LateLaunch(name, "swtpm", encode_binary(evidence.launch_log(document, keys)), hardware)


def check(launch: LateLaunch, policy: Policy) -> evidence.LaunchLog:
    return check_launch(launch, JOB, CHALLENGE, policy, NOW)


def test_the_folder_is_the_one_named_else_that_of_the_environment_else_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUOREDUCE_ATTEST", "/some/where")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "one"))
    assert state_folder("/named") == Path("/named")
    assert state_folder("~/named") == tmp_path / "one" / "named"
    assert state_folder() == Path("/some/where")
    monkeypatch.setenv("QUOREDUCE_ATTEST", "")
    assert state_folder() == tmp_path / "state" / "quoreduce" / "attest"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folder() == tmp_path / "one" / ".local/state/quoreduce/attest"


def test_a_folder_is_absolute_for_workers_that_run_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert state_folder("state") == tmp_path.resolve() / "state"


def test_setup_of_a_software_root_writes_a_policy_that_is_its_own(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    policy = setup_node(state, "utpm", [ENVIRONMENT, "00" * 32])
    assert policy == read_policy(str(state / "policy.json"))
    assert (policy.environments, policy.backends) == ((ENVIRONMENT, "00" * 32), ("utpm",))
    assert (policy.roots, policy.registrar) == ((), None)
    assert os.listdir(state) == ["policy.json"]
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_setup_again_writes_the_policy_anew(tmp_path: Path) -> None:
    setup_node(tmp_path, "utpm", ["00" * 32])
    assert setup_node(tmp_path, "utpm", [ENVIRONMENT]).environments == (ENVIRONMENT,)
    assert read_policy(str(tmp_path / "policy.json")).environments == (ENVIRONMENT,)


@pytest.mark.parametrize("environments", [[], ["short"], [ENVIRONMENT.upper()], [""]])
def test_setup_refuses_environments_that_are_none(environments: list[str], tmp_path: Path) -> None:
    with pytest.raises(AttestationError):
        setup_node(tmp_path, "utpm", environments)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="choose another folder"):
        setup_node(tmp_path / "file" / "state", "utpm", [ENVIRONMENT])


def test_without_swtpm_setup_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apt-get install swtpm"):
        setup_node(tmp_path / "state", "swtpm", [ENVIRONMENT])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{}", b'{"environments": []}'])
def test_a_policy_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    with pytest.raises(AttestationError, match=str(path)):
        read_policy(str(path))


def test_a_policy_that_is_missing_or_unreadable_is_named(tmp_path: Path) -> None:
    with pytest.raises(AttestationError, match="quoreduce attest setup"):
        read_policy(str(tmp_path / "none"))
    with pytest.raises(AttestationError, match=f"cannot read the policy {tmp_path}"):
        read_policy(str(tmp_path))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"backend": 1}'])
def test_an_enrolment_that_is_none_says_how_to_make_one(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "enrolment.json").write_bytes(content)
    with pytest.raises(HostError, match="quoreduce attest setup --backend swtpm"):
        read_enrolment(tmp_path, "swtpm")


def test_an_enrolment_is_of_one_backend(tmp_path: Path) -> None:
    known = {"backend": "swtpm", "signature": "", "chain": []}
    (tmp_path / "enrolment.json").write_text(json.dumps(known))
    assert read_enrolment(tmp_path, "swtpm").backend == "swtpm"
    with pytest.raises(HostError, match="is enrolled with swtpm"):
        read_enrolment(tmp_path, "tpm2")


@pytest.mark.parametrize("backend", ["tpm2", "modelled", "utpm", "other"])
def test_only_swtpm_can_launch_here(backend: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=backend):
        open_node(backend, tmp_path)


def test_a_launch_vouches_for_the_environment_and_the_utpms(enrolled: tuple[Path, Policy]) -> None:
    state, policy = enrolled
    keys = [MicroTpm().public.encode() for _ in range(3)]
    log = check(launched(state, keys), policy)
    assert (log.document, log.keys) == (DOCUMENT, tuple(keys))


def test_each_launch_starts_from_nothing(enrolled: tuple[Path, Policy]) -> None:
    """Of one TPM that stays on: what was launched before is not in the PCRs any more."""
    state, policy = enrolled
    tpm = open_node("swtpm", state)
    try:
        for keys in ([b"one"], [b"one", b"two"], []):
            hardware = tpm.launch(DOCUMENT, keys, evidence.launch_nonce(CHALLENGE, JOB, "here"))
            check(LateLaunch("here", "swtpm", encode_binary(evidence.launch_log(DOCUMENT, keys)), hardware), policy)
    finally:
        tpm.close()


def test_setup_again_keeps_tpm_registrar_and_enrolment(enrolled: tuple[Path, Policy]) -> None:
    state, policy = enrolled
    before = read_enrolment(state, "swtpm")
    assert setup_node(state, "swtpm", [ENVIRONMENT]) == policy
    assert read_enrolment(state, "swtpm") == before
    check(launched(state, []), policy)


def test_a_launch_of_something_else_is_refused(enrolled: tuple[Path, Policy]) -> None:
    state, policy = enrolled
    with pytest.raises(AttestationError, match=sha256(b"{}").hexdigest()):
        check(launched(state, [], document=b"{}"), policy)
    keys = [MicroTpm().public.encode()]
    honest = launched(state, keys)
    other = encode_binary(evidence.launch_log(DOCUMENT, [MicroTpm().public.encode()]))
    with pytest.raises(AttestationError, match="other PCR values"):
        check(LateLaunch("here", "swtpm", other, honest.hardware), policy)


def test_a_tpm_that_often_ended_without_notice_still_vouches(enrolled: tuple[Path, Policy], tmp_path: Path) -> None:
    """As when workers are killed while they launch: a TPM may take that for attempts to guess a secret, and lock
    itself.
    """
    state, policy = enrolled
    copy = Path(shutil.copytree(state, tmp_path / "copy"))
    for _ in range(6):
        tpm = open_node("swtpm", copy)
        assert isinstance(tpm, node.SwtpmNode)
        tpm.launch(DOCUMENT, [], bytes(32))
        os.kill(tpm._tpm.pid, signal.SIGKILL)
        tpm.close()
    check(launched(copy, []), policy)


def test_another_nodes_registrar_does_not_vouch(enrolled: tuple[Path, Policy], tmp_path: Path) -> None:
    state, policy = enrolled
    theirs = setup_node(tmp_path / "theirs", "swtpm", [ENVIRONMENT])
    with pytest.raises(AttestationError, match="no CA of the policy"):
        check(launched(state, []), theirs)
    mixed = Policy(environments=(ENVIRONMENT,), backends=("swtpm",), roots=policy.roots, registrar=theirs.registrar)
    with pytest.raises(AttestationError, match="registrar has not bound"):
        check(launched(state, []), mixed)


def test_secrets_of_a_node_are_its_owners(enrolled: tuple[Path, Policy]) -> None:
    state, _ = enrolled
    for folder in (state, state / "registrar", state / "swtpm"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "registrar" / "registrar.key").stat().st_mode) == 0o600
    assert set(os.listdir(state)) == {node.POLICY, node.ENROLMENT, "registrar", "swtpm"}
