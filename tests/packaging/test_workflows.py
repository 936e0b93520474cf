"""The workflows: that of this project runs `.ci/run`, and that for users runs as printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # Ray brings it

ROOT = Path(__file__).parents[2]
OURS = ROOT / ".github" / "workflows" / "ci.yml"
FOR_USERS = ROOT / "docs" / "benchmarks-workflow.yml"


def steps(workflow: Path) -> list[dict[str, Any]]:
    (job,) = yaml.safe_load(workflow.read_text())["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest"
    found: list[dict[str, Any]] = job["steps"]
    return found


def test_continuous_integration_runs_what_a_contributor_runs() -> None:
    (python,) = (step["with"] for step in steps(OURS) if step.get("uses", "").startswith("actions/setup-python@"))
    assert python["python-version"] == "3.11"
    commands = [step["run"].removeprefix("sudo ") for step in steps(OURS) if "run" in step]
    assert commands[-1] == ".ci/run"
    assert [command for command in commands if not (ROOT / command.split()[0]).is_file()] == []


def test_the_workflow_for_users_is_complete() -> None:
    used = [step["uses"].partition("@")[0] for step in steps(FOR_USERS) if "uses" in step]
    wanted = ["actions/checkout", "actions/setup-python", "actions/cache", "benchmark-action/github-action-benchmark"]
    assert list(dict.fromkeys(used)) == wanted
    cached = [step["with"]["path"] for step in steps(FOR_USERS) if step.get("uses", "").startswith("actions/cache@")]
    settings = steps(FOR_USERS)[-1]["with"]
    assert settings["external-data-json-path"].partition("/")[0] in cached, "the history is kept between runs"
    measure = next(step["run"] for step in steps(FOR_USERS) if "pytest benchmarks" in step.get("run", ""))
    assert f"--benchmark-json={settings['output-file-path']}" in measure.split()


@pytest.mark.slow
def test_its_benchmark_runs_as_printed(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "docs" / "examples" / "benchmark_job.py", tmp_path / "benchmarks" / "test_jobs.py")
    command = next(step["run"] for step in steps(FOR_USERS) if "pytest benchmarks" in step.get("run", "")).split()
    assert command[0] == "python"
    quick = ["-p", "no:cacheprovider", "-p", "no:xdist", "--benchmark-max-time=0.1", "--benchmark-min-rounds=1"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([sys.executable, *command[1:], *quick], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]
    executions = {one["params"]["mode"]: one["extra_info"]["executions"] for one in found}
    assert executions["bft"] == 2 * executions["original"] > 0


def test_templates_are_well_formed() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.name for form in forms] == ["bug.yml", "config.yml", "feature.yml"]
    for form in forms:
        said = yaml.safe_load(form.read_text())
        assert form.name == "config.yml" or {"name", "description", "body"} <= set(said)
