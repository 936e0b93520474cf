"""The house rules of sizes, lines, cycles and doubles: each breach is seen, and this checkout has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / ".ci" / "rules.py"
WELL = "sizes, cycles, doubles and dividers: all well\n"


def numbered(count: int, indent: str = "") -> str:
    return "".join(f"{indent}x{n} = {n}\n" for n in range(count))


SAME = numbered(10)


def checked(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, RULES, tree], capture_output=True, text=True)


def plant(tree: Path, **modules: str) -> None:
    for name, text in modules.items():
        path = tree / "engine" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_this_checkout_keeps_them() -> None:
    done = checked(ROOT)
    assert (done.returncode, done.stdout) == (0, WELL)


def test_what_just_fits_is_well(tmp_path: Path) -> None:
    plant(tmp_path, long=numbered(600), function="def f():\n" + numbered(69, "    ").replace("x", "y"))
    plant(
        tmp_path,
        **{"a": "class C:\n" + numbered(299, "    z"), "quoreduce/tracker/a": "class C:\n" + numbered(449, "    t")},
    )
    assert (checked(tmp_path).returncode, checked(tmp_path).stdout) == (0, WELL)


@pytest.mark.parametrize(("modules", "said"), [
    ({"long": numbered(601)}, "engine/long.py: 601 lines of at most 600: divide it"),
    ({"a": "def f():\n" + numbered(70, "    ")}, "engine/a.py:1: f has 71 lines of at most 70: divide it"),
    ({"a": "class C:\n    async def f(c):\n" + numbered(70, "        ")},
     "engine/a.py:2: f has 71 lines of at most 70: divide it"),
    ({"a": "class C:\n" + numbered(300, "    ")}, "engine/a.py:1: C has 301 lines of at most 300: divide it"),
    ({"quoreduce/tracker/a": "class C:\n" + numbered(450, "    ")},
     "engine/quoreduce/tracker/a.py:1: C has 451 lines of at most 450: divide it"),
    ({"a": "import b\n", "b": "from c import x\n", "c": "import a\nx = 1\n"}, "a cycle of imports: a -> b -> c -> a"),
    ({"p/__init__": "from p import a\n", "p/a": "import p\n"}, "a cycle of imports: p -> p.a -> p"),
    ({"a": "import b\n", "b": "def f():\n    import a\n"}, "a cycle of imports: a -> b -> a"),
    ({"a": SAME, "b": "import a\n\n" + SAME},
     "engine/b.py:3: 10 lines or more are those of engine/a.py:1: let them stand once"),
    ({"a": "x = 1\n\n    # ---- the rest\n"},
     "engine/a.py:3: a comment that divides: divide the code, or leave it out"),
    ({"a": SAME + "y = 2\n" + SAME},
     "engine/a.py:12: 10 lines or more are those of engine/a.py:1: let them stand once"),
    ({"a": "try:\n    import z\nexcept ImportError:\n    import b\n", "b": "import a\n"},
     "a cycle of imports: a -> b -> a"),
])  # fmt: skip
def test_each_breach_is_named(tmp_path: Path, modules: dict[str, str], said: str) -> None:
    plant(tmp_path, **modules)
    assert (checked(tmp_path).returncode, checked(tmp_path).stdout) == (1, f"{said}\n")


def test_what_is_imported_for_types_only_is_no_cycle(tmp_path: Path) -> None:
    plant(tmp_path, a="import b\n", b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\n")
    assert checked(tmp_path).returncode == 0


def test_a_late_import_may_close_a_cycle_by_name_as_long_as_it_does(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.house-rules.late-imports]\n"b -> a" = "a reason"\n')
    plant(tmp_path, a="import b\n", b="def f():\n    import a\n")
    assert checked(tmp_path).returncode == 0
    plant(tmp_path, a="x = 1\n")
    assert (checked(tmp_path).returncode, checked(tmp_path).stdout) == (
        1, "b -> a: has no need of its exception in pyproject.toml\n",
    )  # fmt: skip


def test_lines_that_are_nearly_the_same_and_imports_may_stand_twice(tmp_path: Path) -> None:
    nine = "".join(SAME.splitlines(keepends=True)[:9])
    names = "from os import (\n" + "".join(f"    {name},\n" for name in dir(os)[:20]) + ")\n"
    plant(tmp_path, a=names + nine, b=names + nine)
    assert (checked(tmp_path).returncode, checked(tmp_path).stdout) == (0, WELL)


@pytest.mark.parametrize(("width", "refused"), [(120, False), (121, True)])
@pytest.mark.parametrize("start", ['TEXT = "', "# "])
def test_a_line_over_120_columns_is_refused_by_ruff(tmp_path: Path, start: str, width: int, refused: bool) -> None:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    line = (start + "x " * width)[: width - 1] + ('"' if '"' in start else "x")
    (tmp_path / "wide.py").write_text(f'"""A module."""\n\n{line}\n')
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "E501" in done.stdout) == (int(refused), refused)


def test_code_that_is_not_formatted_is_refused_by_ruff(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "loose.py").write_text("x = [1,2]\n")
    command = [sys.executable, "-m", "ruff", "format", "--check", "--no-cache", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "loose.py" in done.stdout) == (1, True)


def test_lint_checks_them_and_so_does_continuous_integration() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert all(
        tool in recipe for tool in ("ruff check .", "ruff format --check .", ".ci/rules.py", "/mypy", "/lint-imports")
    )
    assert "\nmake lint\n" in (ROOT / ".ci" / "run").read_text()
