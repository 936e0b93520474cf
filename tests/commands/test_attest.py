"""``quoreduce attest`` and ``quoreduce run --attest`` as a user runs them, with the real swtpm and tpm2-tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
NONCE = "5a" * 32
CLAIMS = (
    "format", "nonce", "freshness", "ek_chain", "enrolment", "ak_signature", "pcr_values", "environment", "utpm",
    "batches", "leaves", "votes", "output", "seal",
)  # fmt: skip


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install swtpm swtpm-tools tpm2-tools")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text("to be or not to be\n" * 2000)
    return path


@pytest.fixture(scope="module")
def state(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine that ``attest setup`` has prepared, with swtpm."""
    need("swtpm", "swtpm_setup")
    folder = tmp_path_factory.mktemp("state") / "attest"
    done = cli("attest", "setup", "--state", folder, "--json")
    assert done.code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["backend"] == "swtpm"
    assert said["environments"] == [said["environment"]]
    assert folder.stat().st_mode & 0o077 == 0, "nobody else may read the registrar's key"
    return folder


@pytest.fixture(scope="module")
def attested(cli: Cli, state: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an attested word count that answers NONCE."""
    output = tmp_path_factory.mktemp("attested") / "out"
    proof = ["--attest", "--state", state, "--nonce", NONCE]
    done = cli("run", "wordcount", text, output, *proof, "--split-mb", 0.01, "--reducers", 2)
    assert done.code == 0, done.stderr
    assert "attested by swtpm" in done.stdout
    return output


def verify(cli: Cli, target: Path, *arguments: object) -> tuple[Any, dict[str, Any]]:
    done = cli("attest", "verify", target, "--json", *arguments)
    verdict: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return done, verdict


def test_a_receipt_is_verified_claim_by_claim(cli: Cli, state: Path, attested: Path) -> None:
    done, verdict = verify(cli, attested, "--state", state, "--nonce", NONCE)
    assert done.code == 0
    assert [(claim["name"], claim["status"]) for claim in verdict["claims"]] == [(name, "ok") for name in CLAIMS]
    assert verdict["ear.status"] == "affirming"


def test_a_policy_file_is_all_that_another_machine_needs(cli: Cli, state: Path, attested: Path, tmp_path: Path) -> None:
    shutil.copytree(attested, tmp_path / "out")
    shutil.copy(state / "policy.json", tmp_path / "policy.json")
    elsewhere = {"HOME": str(tmp_path), "QUOREDUCE_ATTEST": str(tmp_path / "none")}
    done = cli("attest", "verify", "out", "--policy", "policy.json", cwd=tmp_path, env=elsewhere)
    assert done.code == 0
    assert done.stdout.endswith("accepted\n")


@pytest.mark.parametrize("part", ["part-r-00001", "_SUCCESS", "_RECEIPT.json"])
def test_a_changed_file_is_refused(cli: Cli, state: Path, attested: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(attested, tmp_path / "out")
    raw = bytearray((tmp_path / "out" / part).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "out" / part).write_bytes(raw)
    done, verdict = verify(cli, tmp_path / "out", "--state", state)
    assert done.code == 6
    assert verdict["ear.status"] == "contraindicated"
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_nonce_is_refused(cli: Cli, state: Path, attested: Path) -> None:
    done, _ = verify(cli, attested, "--state", state, "--nonce", "5b" * 32)
    assert done.code == 6
    assert "another nonce" in done.stderr


def test_an_environment_that_is_not_in_the_policy_has_no_vote(
    cli: Cli, state: Path, text: Path, tmp_path: Path
) -> None:
    policy = json.loads((state / "policy.json").read_text())
    policy["environments"] = ["ab" * 32]
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    done = cli(
        "run", "wordcount", text, tmp_path / "out", "--attest", "--state", state, "--policy", tmp_path / "policy.json"
    )
    assert done.code == 6
    assert "is not in the policy" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_policy_is_refused(cli: Cli, text: Path, tmp_path: Path) -> None:
    policy = {"format": "quoreduce policy 1", "environments": [], "backends": ["utpm"]}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    done = cli("run", "wordcount", text, tmp_path / "out", "--attest", "--policy", tmp_path / "policy.json")
    assert done.code == 6
    assert "allows no environment" in done.stderr


def test_a_machine_that_was_not_set_up_is_told_how(cli: Cli, text: Path, tmp_path: Path) -> None:
    done = cli("run", "wordcount", text, tmp_path / "out", "--attest", "--state", tmp_path / "none")
    assert done.code == 6
    assert "quoreduce attest setup" in done.stderr


def test_without_swtpm_the_root_is_software_and_setup_says_so(cli: Cli, text: Path, tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path)}
    done = cli("attest", "setup", "--state", tmp_path / "state", env=bare)
    assert done.code == 0, done.stderr
    assert "utpm: a root in software only, because swtpm is not installed" in done.stdout
    asked = cli("attest", "setup", "--state", tmp_path / "other", "--backend", "swtpm", env=bare)
    assert asked.code == 4
    assert "apt-get install" in asked.stderr
    run = cli("run", "wordcount", text, tmp_path / "out", "--attest", "--state", tmp_path / "state", env=bare)
    assert run.code == 0, run.stderr
    assert "attested by utpm" in run.stdout
    done, verdict = verify(cli, tmp_path / "out", "--state", tmp_path / "state")
    assert done.code == 0
    assert {claim["name"]: claim["status"] for claim in verdict["claims"]}["ek_chain"] == "not_checked"


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa"])
@pytest.mark.parametrize("backend", ["utpm", "swtpm", "modelled"])
def test_a_quote_is_what_tpm2_tools_read(
    cli: Cli, state: Path, text: Path, tmp_path: Path, backend: str, scheme: str
) -> None:
    need("tpm2_checkquote")
    out, nonce = tmp_path / "q", "aabb01"
    options = ["--pcrs", "0,16", "--backend", backend, "--scheme", scheme, "--measure", text, "--state", state]
    done = cli("attest", "quote", "--nonce", nonce, "--out", out, *options)
    assert done.code == 0, done.stderr
    assert ("modelled" in done.stdout) == (backend == "modelled")
    line = [
        "tpm2_checkquote", "-m", out / "quote.msg", "-s", out / "quote.sig", "-f", out / "quote.pcrs", "-g", "sha256",
        "-e", out / "eventlog.bin", "-u",
    ]  # fmt: skip
    for key in ("ak.pem", "ak.tss"):
        assert subprocess.run([*line, out / key, "-q", nonce], capture_output=True, check=False).returncode == 0
        assert subprocess.run([*line, out / key, "-q", "aabb02"], capture_output=True, check=False).returncode != 0
    assert verify(cli, out, "--nonce", nonce)[0].code == 0
    refused, verdict = verify(cli, out, "--nonce", "aabb02")
    assert refused.code == 6
    assert verdict["ear.status"] == "contraindicated"


def test_a_quote_that_tpm2_tools_made_of_swtpm_is_verified(cli: Cli, state: Path, tmp_path: Path) -> None:
    """A folder that somebody else wrote: without an event log, named as tpm2-tools' users do."""
    out = tmp_path / "q"
    cli("attest", "quote", "--nonce", "11", "--out", out, "--backend", "swtpm", "--pcrs", "0,17", "--state", state)
    (out / "eventlog.bin").unlink()
    (out / "ak.tss").unlink()
    done, verdict = verify(cli, out, "--nonce", "11")
    assert done.code == 0
    assert {claim["name"]: claim["status"] for claim in verdict["claims"]}["log"] == "not_checked"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["attest", "verify", "/nowhere"], 2, "nothing to verify"),
        (["attest", "quote", "--nonce", "zz", "--out", "q"], 2, "in hexadecimal"),
        (["attest", "quote", "--nonce", "11", "--pcrs", "0,24", "--out", "q"], 2, "--pcrs"),
        (["attest", "quote", "--nonce", "11", "--out", "."], 2, "exists"),
        (["attest", "quote", "--nonce", "11", "--measure", "/nowhere", "--out", "q"], 2, "cannot read /nowhere"),
        (
            ["attest", "quote", "--nonce", "11", "--backend", "swtpm", "--state", "/nowhere", "--out", "q"],
            4,
            "attest setup",
        ),
        (["attest", "bench", "--sizes", "0"], 2, "--sizes"),
        (["run", "wordcount", "in", "out", "--nonce", "11"], 2, "--nonce goes with --attest"),
        (["run", "wordcount", "in", "out", "--attest", "--nonce", "11"], 2, "64 hexadecimal digits"),
        (["run", "sort", "in", "out", "--attest", "--digest", "fast"], 2, "needs blake3"),
    ],
)
def test_bad_arguments_are_one_clear_line(
    cli: Cli, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    done = cli(*arguments, cwd=tmp_path)
    assert done.code == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
