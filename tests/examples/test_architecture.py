"""ARCHITECTURE.md follows a record by names of files and functions: they are there, and no folder is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "engine" / "quoreduce"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
NAMED = re.findall(r"`([a-z_/]+\.py): ([A-Za-z_.]+)`", TEXT)


def names_in(file: Path) -> set[str]:
    """All functions and classes of a module, methods as ``Class.method``."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return found


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_way_of_a_record_names_is_there(file: str, name: str) -> None:
    assert name in names_in(ENGINE / file)


def test_each_folder_and_module_of_the_package_has_its_place_in_the_house() -> None:
    house = TEXT.partition("## The house")[2].partition("## One record")[0]
    folders = {f"`{path.name}/`" for path in ENGINE.iterdir() if (path / "__init__.py").exists()}
    modules = {f"`{path.name}`" for path in ENGINE.glob("*.py")}
    assert {one for one in folders | modules if one not in house} == set()
    assert len(NAMED) > 20
