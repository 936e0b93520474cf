"""The house rules that ruff and import-linter do not know: sizes, cycles between modules, doubles, and dividers.

Usage: python .ci/rules.py [FOLDER], the root of a checkout (default: this one); run by `make lint`. Prints what breaks
a rule; exit code 1 if anything does. Sizes have no exceptions. [tool.house-rules.late-imports] in pyproject.toml names
imports in functions that close a cycle, each with its reason; one that is not needed breaks the rule, too. The width of
lines is ruff's (E501), layers are import-linter's.
"""

from __future__ import annotations

import ast
import gc
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
CLASS_LINES_MAX = 300
TRACKER_CLASS_LINES_MAX = 450
TRACKER = "engine/quoreduce/tracker/"
SAME_LINES_MAX = 9
DIVIDER = re.compile(r"\s*# ?[-=]{3}")
SOURCES = ("engine", "kernels", "gridmix")
CHECKED = (*SOURCES, "bench", "docs", "tests", ".ci")


def files(root: Path, folders: tuple[str, ...]) -> list[Path]:
    """The modules in these folders."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> tuple[list[str], list[ast.AST]]:
    """The lines of a file, and all nodes of its syntax tree."""
    text = path.read_text()
    return text.splitlines(), list(ast.walk(ast.parse(text)))


def late_imports(root: Path) -> set[str]:
    """The imports in functions that may close a cycle: ``here -> there``, as pyproject.toml names them."""
    path = root / "pyproject.toml"
    settings = tomllib.loads(path.read_text()) if path.exists() else {}
    return set(settings.get("tool", {}).get("house-rules", {}).get("late-imports", {}))


def too_long(root: Path) -> Iterator[str]:
    """Files, classes and functions that are too long."""
    for path in files(root, CHECKED):
        name = str(path.relative_to(root))
        lines, nodes = parsed(path)
        if len(lines) > FILE_LINES_MAX:
            yield f"{name}: {len(lines)} lines of at most {FILE_LINES_MAX}: divide it"
        for node in nodes:
            if (most := _lines_max(node, name)) is None:
                continue
            if (size := node.end_lineno - node.lineno + 1) > most:
                yield f"{name}:{node.lineno}: {node.name} has {size} lines of at most {most}: divide it"


def _lines_max(node: ast.AST, name: str) -> int | None:
    """How many lines a class or function may have in the file of this name; None for what is neither."""
    if isinstance(node, ast.ClassDef):
        return TRACKER_CLASS_LINES_MAX if name.startswith(TRACKER) else CLASS_LINES_MAX
    return FUNCTION_LINES_MAX if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, also in functions, but not for a type checker only."""
    paths = {
        _module(path.relative_to(root / source)): path for source in SOURCES for path in (root / source).rglob("*.py")
    }
    return {name: set(_imported(name, path, paths)) for name, path in paths.items()}


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    nodes = parsed(path)[1]
    for_types = {id(below) for node in nodes if _for_types(node) for below in ast.walk(node)}
    for node in nodes:
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            wanted = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            below = [f"{node.module}.{one.name}" for one in node.names]
            wanted = [one if one in known else node.module for one in below]
        else:
            wanted = []
        yield from (one for one in wanted if one in known and one != name)


def _for_types(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    return "TYPE_CHECKING" in (getattr(node.test, "id", ""), getattr(node.test, "attr", ""))


def cycles(root: Path) -> Iterator[str]:
    """A line for each cycle of imports that a search in depth meets."""
    graph, allowed = imports(root), late_imports(root)
    named = {one: one.split(" -> ") for one in allowed}
    needed = {
        text for text, (here, there) in named.items() if there in graph.get(here, ()) and here in reached(graph, there)
    }
    for here, there in (named[text] for text in needed):
        graph[here].discard(there)
    done: set[str] = set()

    def search(name: str, way: tuple[str, ...]) -> Iterator[str]:
        if name in way:
            yield "a cycle of imports: " + " -> ".join((*way[way.index(name) :], name))
        elif name not in done:
            for one in sorted(graph[name]):
                yield from search(one, (*way, name))
            done.add(name)

    for name in sorted(graph):
        yield from search(name, ())
    yield from (f"{name}: has no need of its exception in pyproject.toml" for name in sorted(allowed - needed))


def reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """All modules that a module imports, directly or through others."""
    found, todo = set(), [start]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def doubles(root: Path) -> Iterator[str]:
    """Places with the same lines, imports and blank lines aside."""
    size = SAME_LINES_MAX + 1
    first: dict[tuple[str, ...], tuple[str, int, int]] = {}
    told: set[tuple[str, str]] = set()
    for path in files(root, (*SOURCES, "bench")):
        name, lines = str(path.relative_to(root)), _own_lines(path)
        for at in range(len(lines) - size + 1):
            number = lines[at][0]
            window = tuple(text for _, text in lines[at : at + size])
            other, start, line = first.setdefault(window, (name, at, number))
            if (other != name or at >= start + size) and (other, name) not in told:
                told.add((other, name))
                yield f"{name}:{number}: {size} lines or more are those of {other}:{line}: let them stand once"


def _own_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are neither blank nor an import, with their numbers, without indentation."""
    lines, nodes = parsed(path)
    imported = {
        number
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return [(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip() and n not in imported]


def dividers(root: Path) -> Iterator[str]:
    """Comments that divide a file or a class: it wants to be two."""
    for path in files(root, CHECKED):
        for number, line in enumerate(parsed(path)[0], 1):
            if DIVIDER.match(line):
                yield f"{path.relative_to(root)}:{number}: a comment that divides: divide the code, or leave it out"


def main(arguments: list[str]) -> int:
    """Print what breaks a rule."""
    gc.disable()  # it would look through all syntax trees again and again
    root = Path(arguments[0] if arguments else Path(__file__).parents[1]).resolve()
    found = [*too_long(root), *cycles(root), *doubles(root), *dividers(root)]
    print("\n".join(found) or "sizes, cycles, doubles and dividers: all well")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
