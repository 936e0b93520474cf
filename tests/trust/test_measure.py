"""The measurement of an environment: canonical, the same for the same files, another for other ones; and it names no
machine.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from quoreduce.trust import measure
from quoreduce.trust.measure import canonical, hash_contents, hash_files

MEMBERS = {"compiled", "cpu", "format", "interpreter", "machine", "packages", "python", "sources", "variables"}


def measured() -> bytes:
    """The document of this process, measured anew."""
    return measure.environment.__wrapped__()


@pytest.fixture(scope="module")
def document() -> bytes:
    return measured()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    (folder / "sub" / "b.py").write_text("b = 2\n")
    return folder


def of(folder: Path) -> str:
    return hash_files(folder.rglob("*.py"), folder)


def test_it_is_canonical_json(document: bytes) -> None:
    assert canonical(json.loads(document)) == document
    assert b"\n" not in document
    assert document.isascii()


def test_it_has_the_members_that_are_documented(document: bytes) -> None:
    found = json.loads(document)
    assert set(found) == MEMBERS
    assert found["format"] == measure.FORMAT
    assert set(found["sources"]) == set(measure.OURS)
    assert {"numpy", "numba", "ray", "blake3"} <= set(found["packages"])
    program = Path(sys.executable).resolve()
    assert found["interpreter"][program.name] == blake3(program.read_bytes()).hexdigest()


def test_it_is_the_same_each_time(document: bytes) -> None:
    assert measured() == document
    assert measure.environment() is measure.environment(), "measured once per process"


def test_it_names_no_path_host_or_user(document: bytes) -> None:
    text = document.decode()
    hidden = {str(Path(measure.__file__).parents[2]), sys.prefix, os.path.expanduser("~"), os.getcwd(),
              os.environ.get("QUOREDUCE_KERNELS", "")}  # fmt: skip
    assert not [path for path in hidden if len(path) > 1 and path in text]
    strings: list[str] = []
    walk(json.loads(document), strings.append)
    assert socket.gethostname() not in strings
    assert platform.node() not in strings
    assert str(os.getpid()) not in strings


def walk(value: Any, see: Callable[[str], None]) -> None:
    if isinstance(value, dict):
        for name, one in value.items():
            see(name)
            walk(one, see)
    elif isinstance(value, str):
        see(value)


@pytest.mark.parametrize("name", measure.VARIABLES)
def test_it_changes_with_a_variable_that_results_depend_on(
    name: str, document: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "something else")
    assert json.loads(measured())["variables"][name] == "something else"
    monkeypatch.delenv(name)
    assert name not in json.loads(measured())["variables"]


def test_it_does_not_change_with_other_variables(document: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUOREDUCE_TEST_VARIABLE", "1")
    assert measured() == document


def test_it_changes_with_a_source_file(
    document: bytes, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure._folder
    monkeypatch.setattr(measure, "_folder", lambda name: sources if name == "quoreduce_kernels" else real(name))
    first = json.loads(measured())["sources"]
    (sources / "a.py").write_text("a = 2\n")
    second = json.loads(measured())["sources"]
    assert {name for name in first if first[name] != second[name]} == {"quoreduce_kernels"}


def test_it_changes_with_compiled_code(document: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUOREDUCE_KERNELS", str(tmp_path))
    empty = json.loads(measured())["compiled"]
    code = tmp_path / "words.count-0123.nbc"
    code.write_bytes(b"machine code")
    full = json.loads(measured())["compiled"]
    code.write_bytes(b"other code")
    assert len({empty, full, json.loads(measured())["compiled"]}) == 3


def test_without_a_cache_it_says_that_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUOREDUCE_KERNELS", raising=False)
    assert json.loads(measured())["compiled"] == ""


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PACKAGES", ("numpy", "no-such-package-here"))
    assert set(json.loads(measured())["packages"]) == {"numpy"}


def test_the_hash_of_sources_is_over_names_and_contents(sources: Path) -> None:
    expected = blake3(b"a.py 6\na = 1\n" + b"sub/b.py 6\nb = 2\n").hexdigest()
    assert of(sources) == expected


def test_the_hash_of_sources_does_not_depend_on_where_they_lie_or_on_times(sources: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sources, tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    os.utime(copy / "a.py", (1, 1))
    assert of(copy) == of(sources)
    assert hash_files(sorted(copy.rglob("*.py"), reverse=True), copy) == of(sources), (
        "nor on the order in which they are found"
    )


@pytest.mark.parametrize(
    "change",
    [lambda f: (f / "a.py").write_text("a = 3\n"), lambda f: (f / "a.py").rename(f / "c.py"),
     lambda f: (f / "a.py").unlink(),
     lambda f: (f / "new.py").touch(), lambda f: (f / "a.py").rename(f / "sub" / "a.py"),
     lambda f: (f / "a.py").write_text("")],
)  # fmt: skip
def test_the_hash_of_sources_changes_with_any_file(change: Callable[[Path], object], sources: Path) -> None:
    before = of(sources)
    change(sources)
    assert of(sources) != before


def test_no_two_lists_of_sources_look_alike(tmp_path: Path) -> None:
    """A file whose content looks like the next file's head."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a.py").write_text("x\nb.py 1\ny")
    (two / "a.py").write_text("x\n")
    (two / "b.py").write_text("y")
    assert of(one) != of(two)


def test_the_hash_of_compiled_code_depends_on_contents_only(tmp_path: Path) -> None:
    for name, content in {"a": b"1", "b": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    before = hash_contents([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "a").rename(tmp_path / "z")
    assert hash_contents([tmp_path / "b", tmp_path / "z"]) == before == hash_contents([tmp_path / "z", tmp_path / "b"])
    (tmp_path / "z").write_bytes(b"3")
    assert hash_contents([tmp_path / "b", tmp_path / "z"]) != before
    assert hash_contents([tmp_path / "b"]) != before


def test_a_document_that_is_no_json_has_no_canonical_form() -> None:
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})
    assert canonical({"b": 1, "a": "µ"}) == b'{"a":"\\u00b5","b":1}'
