"""What evidence of VMs costs in things that can be counted: quotes of the server's TPM, and bytes. They gate; times do
not.

Times are recorded (``pytest tests/bench --benchmark-only``; ``python -m bench.vm`` with a real TPM in software) and
never decide.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # whence `python -m bench.vm` imports it

from bench import vm

from quoreduce.trust.node import setup_node
from quoreduce.trust.policy import Policy
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import QuoteResponse
from quoreduce.vm.attestor import SoftwareAttestor, SwtpmAttestor, TpmAttestor
from quoreduce.vm.evidence import encode

CODES = {"status": b"{}"}
DOCUMENT = json.dumps({"tcoms": {name: sha256(code).hexdigest() for name, code in CODES.items()}}).encode()
DIGEST = sha256(DOCUMENT).hexdigest()
PROGRAMS = ("swtpm", "swtpm_setup", "swtpm_localca")


class CountingTpm(MicroTpm):
    """A TPM that counts its quotes."""

    __slots__ = ("quotes",)

    def __init__(self) -> None:
        super().__init__()
        self.quotes = 0

    def quote(self, pcrs: Any, nonce: bytes) -> QuoteResponse:
        self.quotes += 1
        return super().quote(pcrs, nonce)


@pytest.mark.parametrize("count", [1, 64, 1024])
def test_the_servers_tpm_quotes_once_however_many_vms_are_asked_for(count: int) -> None:
    tpm = CountingTpm()
    fleet = vm.Fleet(
        TpmAttestor("swtpm", tpm, MicroTpm(), DOCUMENT, CODES), Policy(environments=(DIGEST,), backends=("utpm",))
    )
    made = fleet.make(fleet.challenges(count))
    assert tpm.quotes == 1
    assert {len(one.path) for one in made} == {int(math.log2(count))}


def test_each_level_of_the_tree_adds_34_bytes_to_evidence() -> None:
    policy = Policy(environments=(DIGEST,), backends=("utpm",))
    fleet = vm.Fleet(TpmAttestor("swtpm", MicroTpm(), MicroTpm(), DOCUMENT, CODES), policy)
    small, large = (len(encode(fleet.make(fleet.challenges(count))[0])) for count in (2, 16))
    assert large - small == 3 * 34


@pytest.fixture(params=["utpm", "swtpm"])
def fleet(request: Any, tmp_path: Path) -> Iterator[vm.Fleet]:
    """A server without a TPM, and one with swtpm."""
    if request.param == "utpm":
        yield vm.Fleet(SoftwareAttestor(DOCUMENT, CODES), Policy(environments=(DIGEST,), backends=("utpm",)))
        return
    if not all(map(shutil.which, PROGRAMS)):
        pytest.skip(f"{PROGRAMS[0]} is not installed (apt-get install swtpm swtpm-tools)")
    policy = setup_node(tmp_path / "state", "swtpm", [DIGEST])
    server = SwtpmAttestor(tmp_path / "state", DOCUMENT, CODES)
    yield vm.Fleet(server, policy)
    server.close()


@pytest.mark.benchmark(group="VMs: make evidence")
@pytest.mark.parametrize("count", [1, 64])
def test_attest_vms(benchmark: Any, fleet: vm.Fleet, count: int) -> None:
    benchmark.extra_info["vms"] = count
    assert len(benchmark(fleet.make, fleet.challenges(count))) == count


@pytest.mark.benchmark(group="VMs: check evidence")
@pytest.mark.parametrize("count", [1, 64])
def test_check_vms(benchmark: Any, fleet: vm.Fleet, count: int) -> None:
    benchmark.extra_info["vms"] = count
    asked = fleet.challenges(count)
    assert benchmark(fleet.check, asked, fleet.make(asked)) == fleet.server.identity


def test_without_swtpm_the_figures_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    found = vm.measure_attestations()
    assert set(found) == {f"{what}_{count}" for what in ("made", "checked") for count in vm.COUNTS}
    assert all(math.isnan(one) for one in found.values())
