"""What several parts of the house have to agree on is said in one place, and they do agree."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from quoreduce import Job, Options, cli, machine
from quoreduce.data.block import parse_schema
from quoreduce.data.formats import parse_format
from quoreduce.errors import BlockError, UsageError
from quoreduce.job import record_width
from quoreduce.tracker import MODES, Plan
from quoreduce.vm import sealing, wire
from quoreduce_gridmix import cli as gridmix

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for folder in ("engine", "kernels", "gridmix", "bench") for path in sorted((ROOT / folder).rglob("*.py"))
]
RENAMES = {
    "quoreduce/files": "write_whole",
    "quoreduce_kernels/cache": "kernels import nothing of ours",
    "generate/generate": "a file of data that is too large to be held in memory",
    "data/commit": "attempts, parts and outputs that workers have written",
    "data/staging": "an old output goes back to its place",
    "driver/suspects": "a record that cannot be read is put aside",
    "attest/command": "a folder",
    "vm/kernel": "a folder",
    "agents/site": "a folder",
    "quoreduce_gridmix/data": "a folder",
    "agents/manager": "a blob that came in pieces",
}
"""Modules that rename things, and what. Bytes that have to be there whole or not at all are written by write_whole."""


def strings(path: Path) -> Iterator[str | bytes]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            yield node.value


def renames(path: Path) -> bool:
    """Whether a file calls os.rename, os.replace, or the methods of Path: those have one argument, and str.replace
    two.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("rename", "replace")
        ):
            of = ast.unparse(node.func.value).rpartition(".")[2]
            if of == "os" or (len(node.args) == 1 and not node.keywords and of != "executor"):
                return True
    return False


@pytest.mark.parametrize(("mode", "f", "deferred"), list(product(MODES, (0, 1, 2, 3), (True, False))))
def test_the_driver_asks_for_as_many_replicas_as_the_tracker_plans(mode: str, f: int, deferred: bool) -> None:
    options = Options(f=f, mode=mode, deferred=deferred)  # type: ignore[arg-type]
    plan = Plan(1, 1, f, options.mode, deferred=deferred)
    assert (options.replicas_needed, options.replicas_first) == (plan.need, plan.first)
    with pytest.raises(UsageError):
        replace(options, attempts_max=plan.first - 1)
    with pytest.raises(ValueError, match=r"max_attempts|f >= 0"):
        replace(plan, max_attempts=plan.first - 1)


def test_every_command_offers_the_modes_of_the_tracker() -> None:
    def modes(top: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
        for action in top._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    yield from modes(sub)
            elif "--mode" in action.option_strings and action.choices is not None:
                yield tuple(action.choices)

    found = [mode for name in cli.COMMANDS for mode in modes(cli.parser_of(name))]
    assert len(found) >= 3
    assert set(found) == {MODES}
    assert gridmix.MODES == MODES


WIDTHS = ["1", "100", "65536", "007"]
NO_WIDTHS = ["0", "65537", "100000000", "²", "١", "-1", "+1", " 1", "1_0", "", "x"]


@pytest.mark.parametrize("width", [*WIDTHS, *NO_WIDTHS])
def test_records_of_a_fixed_width_are_the_same_for_inputs_outputs_and_columns(width: str) -> None:
    name = f"fixed:{width}"
    wanted = record_width(name)
    assert wanted == (int(width) if width in WIDTHS else 0)
    if wanted:
        assert parse_format(name).width == parse_schema([name])[0].width == wanted
        Job("j", map=print, reduce=print, output=name)
    else:
        with pytest.raises(UsageError, match="unknown record format"):
            parse_format(name)
        with pytest.raises(UsageError, match="output is 'text', 'fixed:N' or 'sequence'"):
            Job("j", map=print, reduce=print, output=name)
        with pytest.raises(BlockError, match="unknown column type"):
            parse_schema([name])


def test_what_is_written_whole_or_not_at_all_is_written_by_one_function() -> None:
    found = {f"{path.parent.name}/{path.stem}" for path in SOURCES if "bench" not in path.parts and renames(path)}
    assert found == set(RENAMES)


def test_the_kernels_accounts_are_read_in_one_module() -> None:
    for account in ("/proc/stat", "/proc/cpuinfo", "/proc/pressure/cpu", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        readers = [path.name for path in SOURCES if account in set(strings(path))]
        assert readers == ["machine.py"], account


def test_a_run_is_dirty_by_one_rule() -> None:
    assert not machine.is_dirty(10.0, 0.53, 0.0)
    assert machine.is_dirty(10.0, 0.54, 0.0)
    assert machine.is_dirty(10.0, 0.0, 0.54)
    assert [path.name for path in SOURCES if "DIRTY_SHARE" in path.read_text()] == ["machine.py"]


def test_labels_of_what_is_sealed_differ_and_stand_in_one_module() -> None:
    said = [value for value in strings(Path(sealing.__file__)) if isinstance(value, bytes)]
    labels = [value for value in said if value.startswith(b"quoreduce vm ")]
    assert len(labels) == len(set(labels)) >= 6
    elsewhere = [path for path in Path(wire.__file__).parent.rglob("*.py") if path.name != "sealing.py"]
    assert [path.name for path in elsewhere if set(strings(path)) & set(labels)] == []
