"""Four Ray nodes: blocks travel between them, bits flip on the way, and one of them is killed in the middle of a
reduce.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import WORDCOUNT, Runner

TIMEOUT_S = 240
HERE = Path(__file__).parent

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("clusters")]  # a Ray of its own


@pytest.fixture(scope="module")
def seen(verses: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw: one cluster for all tests here, in a process of its own."""
    command = [sys.executable, str(HERE / "cluster_script.py"), str(verses), str(tmp_path_factory.mktemp("cluster"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def right(verses: Path, processes: object, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    _, parts = Runner(processes, tmp_path_factory.mktemp("right"))(  # type: ignore[arg-type]
        "inline", WORDCOUNT, verses, mode="original", reducers=3
    )
    return [part.decode("latin-1") for part in parts]


def test_each_node_is_a_domain(seen: dict[str, Any]) -> None:
    assert seen["nodes"] == 4
    assert len(seen["domains"]) == 4
    assert all(domain.startswith("node-") for domain in seen["domains"])


def test_blocks_travel_between_nodes(seen: dict[str, Any], right: list[str]) -> None:
    plain = seen["plain"]
    assert plain["parts"] == right
    assert plain["shipped"] > 0
    assert plain["executions"] == {"map": 2 * plain["splits"], "reduce": 6}


def test_a_bit_that_flips_between_nodes_is_found_and_fetched_again(seen: dict[str, Any], right: list[str]) -> None:
    """R6: the reader checks what has arrived; nothing is executed again."""
    wire = seen["wire"]
    assert wire["parts"] == right
    assert (wire["injected"], wire["detected"], wire["masked"]) == (2, 2, 2)
    assert wire["executions"] == seen["plain"]["executions"]


@pytest.mark.parametrize("kind", ["swap", "lose"])
def test_a_stored_block_that_is_altered_or_lost_is_made_again(
    kind: str, seen: dict[str, Any], right: list[str]
) -> None:
    run, planned = seen[kind], seen["plain"]["executions"]
    assert run["parts"] == right
    assert run["injected"] == 2
    assert run["detected"] == run["masked"] >= 2
    assert run["executions"] == {"map": planned["map"] + 2, "reduce": planned["reduce"]}


@pytest.mark.parametrize(
    ("name", "diagnoses"),
    [("wire", [["network", True]] * 2), ("swap", [["store", True]] * 2), ("lose", [["store", False]] * 2),
     ("wrong", [["compute", True]])],
)  # fmt: skip
def test_copies_on_other_nodes_are_looked_into(name: str, diagnoses: list[list[object]], seen: dict[str, Any]) -> None:
    """Their digests are recomputed on another node, and the way down their trees leads from node to node."""
    assert seen[name]["diagnoses"] == diagnoses


def test_an_actor_dies_on_a_living_node(seen: dict[str, Any], right: list[str]) -> None:
    """R9. What it has stored is still on its node, for whom its successor reads it out; only a reduce that asked for it
    in between was refused, and then the map is executed again (R6)."""
    run, planned = seen["crash"], seen["plain"]["executions"]
    assert run["parts"] == right
    assert run["injected"] == 1
    assert planned["map"] + 1 <= run["executions"]["map"] <= planned["map"] + run["splits"]
    assert run["executions"]["reduce"] == planned["reduce"]


def test_f_2_on_four_nodes(seen: dict[str, Any], right: list[str]) -> None:
    run = seen["f2"]
    assert run["parts"] == right
    assert run["injected"] == 3
    assert run["executions"] == {"map": 3 * run["splits"] + 2, "reduce": 10}


def test_a_node_is_killed_in_the_middle_of_a_reduce(seen: dict[str, Any]) -> None:
    """R9: its reduce is executed elsewhere, and so is the map whose only copy it had."""
    run = seen["killed"]
    assert run["right"]
    assert len(run["domains"]) == 3
    assert run["lost"] not in run["domains"]
    assert run["detected"] == run["masked"] >= 1
    assert run["executions"]["reduce"] == 3
    assert 2 <= run["executions"]["map"] <= 3
    assert run["beside"] == ["out"]


def test_three_nodes_go_on(seen: dict[str, Any], right: list[str]) -> None:
    assert seen["afterwards"]["parts"] == right
    assert len(seen["afterwards"]["domains"]) == 3


def test_nothing_is_left_behind(seen: dict[str, Any]) -> None:
    """No process, no block: what was stored on the killed node is swept, for here its neighbours share its disk."""
    assert seen["left"] == []
    assert seen["alive"] == []
