"""The engines of ``make bench-peers`` do the same jobs as quoreduce: their outputs have the same fingerprint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bench.peers import fingerprint
from bench.peers.engines import JOBS, MODULES, Setup, engines, run_peer
from runs import running

from quoreduce import Place, Session
from quoreduce.commands.generate.generate import record_chunks, text_chunks, write_file

TEXT_BYTES = 300_000
RECORDS = 3000
TIMEOUT_S = 120.0
PEERS = (*MODULES, "hadoop")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with Session(Place("local", 2)) as session:
        yield Setup(session, tmp_path_factory.mktemp("scratch"), TIMEOUT_S, chosen=["coreutils"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    records = np.concatenate(list(record_chunks("ascii", 0, RECORDS)))
    records[:, 98] = ord(" ")
    write_file(folder / "text", text_chunks(TEXT_BYTES, 1))
    write_file(folder / "records", [records])
    return {"wordcount": folder / "text", "sort": folder / "records", "scan": folder / "records"}


@pytest.fixture(scope="module")
def expected(setup: Setup, sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Fingerprints of what quoreduce makes, voted."""
    found = {}
    for job, source in sources.items():
        output = tmp_path_factory.mktemp(job) / "out"
        engine = next(engine for engine in engines(job, setup) if engine.name == "quoreduce voted f=1, warm session")
        assert engine.run is not None
        engine.run(source, output, job)
        found[job] = fingerprint(output, job)
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.peers(name)) for name in PEERS])
def test_a_peer_does_the_same_jobs(
    name: str, setup: Setup, sources: dict[str, Path], expected: dict[str, str], tmp_path: Path
) -> None:
    tasks = [(job, sources[job], tmp_path / job) for job in JOBS]
    run, said = run_peer(name, tasks, setup)
    assert {job: fingerprint(tmp_path / job, job) for job in JOBS} == expected
    assert len([float(word) for word in said.split()[-len(JOBS) :]]) == len(JOBS)
    assert run.wall_s > 0
    assert run.cpu_s > 0


@pytest.mark.peers("coreutils")
@pytest.mark.parametrize("job", JOBS)
def test_coreutils_do_the_same_jobs(
    job: str, setup: Setup, sources: dict[str, Path], expected: dict[str, str], tmp_path: Path
) -> None:
    engine = engines(job, setup)[-1]
    assert engine.name == "coreutils"
    assert engine.run is not None
    engine.run(sources[job], tmp_path / "out", job)
    assert fingerprint(tmp_path / "out", job) == expected[job]


@pytest.mark.skipif(shutil.which("sleep") is None, reason="no `sleep` on PATH")
def test_a_command_that_takes_too_long_is_killed_with_all_below_it(tmp_path: Path) -> None:
    from bench.peers.apart import PeerFailed, run_apart
    from bench.peers.engines import environment

    named = tmp_path / "pid"
    with pytest.raises(PeerFailed, match=r"stopped after 2 s"):
        run_apart(["sh", "-c", f"(setsid sh -c 'echo $$ > {named}; exec sleep 60' &); sleep 60"], 2.0, environment())
    assert not running(int(named.read_text()))
