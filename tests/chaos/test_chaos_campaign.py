"""A sample of the campaign, local, and on Ray clusters too with --nightly: nothing is wrong, partial or left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 900  # a bound; MINUTES of jobs, and with --nightly three starts of Ray
NIGHTLY = bool(os.environ.get("QUOREDUCE_NIGHTLY"))
ON, MINUTES = ("all", 1) if NIGHTLY else ("local", 0.3)
KINDS_LEAST, FAULTS_LEAST = (12, 200) if NIGHTLY else (8, 40)
STAGES = {"local", "ray", "rpc", "cluster"} if NIGHTLY else {"local"}

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("clusters")]  # a Ray of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def seen(cli: Callable[..., Any], folder: Path) -> dict[str, Any]:
    files = ("--json", folder / "seen.json", "--html", folder / "page.html", "--markdown", folder / "table.md")
    ended = cli("chaos", "--on", ON, "--seed", 1, "--minutes", MINUTES, *files, timeout_s=TIMEOUT_S)
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    assert ended.code == 0, ended.stdout + ended.stderr
    return found


def test_no_output_is_wrong_and_nothing_hangs(seen: dict[str, Any]) -> None:
    assert [seen[name] for name in ("wrong", "partial", "untyped", "hangs")] == [0, 0, 0, 0]
    assert seen["right"] > 0.8 * seen["jobs"]


def test_nothing_is_left_behind(seen: dict[str, Any]) -> None:
    assert (seen["orphans"], seen["files_left"]) == (0, 0)
    assert not Path(seen["folder"]).exists()


def test_faults_of_many_kinds_have_happened(seen: dict[str, Any]) -> None:
    assert seen["kinds"] >= KINDS_LEAST
    assert seen["faults"] >= FAULTS_LEAST
    assert {row["kind"] for row in seen["rows"]} >= {"kill", "flip", *(("rpc", "starve") if NIGHTLY else ())}
    assert set(seen["not_run"]) <= {"fill", "clock"}, "which need root and libfaketime"


def test_every_stage_had_jobs_with_faults(seen: dict[str, Any]) -> None:
    assert {record["stage"] for record in seen["records"] if record["faults"]} == STAGES


def test_stopped_jobs_say_why(seen: dict[str, Any]) -> None:
    stopped = [record for record in seen["records"] if record["outcome"] == "stopped"]
    assert all(": " in record["error"] for record in stopped)


def test_the_bound_is_broken_by_colluders_alone(seen: dict[str, Any]) -> None:
    outside = seen["outside_the_model"]
    assert outside["failed"] > 0
    assert outside["injected"] > 0


def test_page_and_table_say_the_same(seen: dict[str, Any], folder: Path) -> None:
    page, table = (folder / "page.html").read_text(), (folder / "table.md").read_text()
    for row in seen["rows"]:
        assert f'<td class="text">{row["kind"]}</td><td>{row["injected"]:,}</td>' in page
        assert f"| {row['kind']} | {row['injected']:,} |" in table
