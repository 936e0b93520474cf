"""A bit of a stored file flips. Plain Ray returns the altered object and says nothing; ours is found and made again
(R6).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blocking import Gate
from runs import left_in, parts_of
from test_killed_in_the_middle import Running

from quoreduce import Session
from quoreduce.protocol.options import Place

TIMEOUT_S = 240
WORD = b"zebra"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    gate.text.write_bytes(b"wait\n" + b"wait\na\n" * 30 + WORD + b"\n")
    yield gate
    gate.close()


@pytest.mark.ray
@pytest.mark.nightly
def test_plain_ray_returns_spilled_objects_with_a_flipped_bit_in_silence(tmp_path: Path) -> None:
    script = Path(__file__).parent / "plain_ray_script.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["files"] >= 1
    assert seen["wrong"] >= 1
    assert seen["errors"] == 0


@pytest.mark.parametrize("mode", ["original", "bft"])
@pytest.mark.parametrize("on", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_flipped_bit_in_a_stored_block_is_found(
    on: str, mode: str, gate: Gate, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """While the first reduces stand at the gate, a bit flips in what the others have yet to read."""
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    store, output = tmp_path / "store", tmp_path / "outputs" / "out"
    replicas, workers = (1, 1) if mode == "original" else (2, 2)
    with Session(Place(on, workers, "worker", store=str(store))) as session:  # type: ignore[arg-type]
        job = Running(session, gate, output, mode=mode, reducers=2)
        for _ in range(replicas):
            gate.reached()
        segments = [path for path in store.rglob("segment-*") if WORD in path.read_bytes()]
        assert len(segments) == 1, "digest outputs: one copy is stored"
        flip(segments[0], segments[0].read_bytes().index(WORD))
        gate.open()
        result = job.result()
    assert parts_of(output) == [b"wait\t31\n", b"a\t30\nzebra\t1\n"]
    assert result.faults.injected == 0
    assert result.faults.detected == result.faults.masked >= 1
    assert result.executions == {"map": replicas + 1, "reduce": 2 * replicas}
    assert left_in(store) == []


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x08]))
