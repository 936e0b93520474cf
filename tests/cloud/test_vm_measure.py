"""Measurements of a server and of its operations: which file changes which document, and nothing else does."""

from __future__ import annotations

import ast
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from blake3 import blake3

from quoreduce.cloud import measure
from quoreduce.cloud.evidence import listed_codes
from quoreduce.cloud.measure import MODULES, PACKAGE, SHARED, environment, qemu_document, tcom_document
from quoreduce.errors import HostError, VmError

RULES = {"manager": ["query-status", "query-version"]}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with the files that operations run, and others."""
    files = (*(f"cloud/{one}" for one in {*SHARED, *MODULES.values()}), *PACKAGE, "cli.py", "cloud/hypervisor.py")
    for name in (*files, "trust/utpm.py", "trust/a.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def program(path: Path, version: str) -> str:
    """A QEMU that says its version."""
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    qemu_document.cache_clear()
    return str(path)


def test_an_operations_document_names_exactly_the_files_that_it_runs(package: Path) -> None:
    document = json.loads(tcom_document("terminate", package))
    assert sorted(document["cloud"]) == sorted(["tcom/terminate.py", *SHARED])
    assert document["cloud"]["wire.py"] == blake3(b"cloud/wire.py").hexdigest()
    assert (document["format"], document["operation"]) == ("quoreduce tcom 1", "terminate")


@pytest.mark.parametrize(("file", "operations"), [
    ("cloud/tcom/terminate.py", {"terminate"}),
    ("cloud/tcom/launch.py", {"launch", "restore"}),
    ("cloud/tcom/migrate_in.py", {"migrate_in"}),
    ("cloud/wire.py", set(MODULES)),
    ("cloud/evidence.py", set(MODULES)),
    ("trust/utpm.py", set(MODULES)),
    ("errors.py", set(MODULES)),
    ("cloud/hypervisor.py", set()),
    ("cli.py", set()),
    ("trust/a.txt", set()),
])  # fmt: skip
def test_a_changed_file_changes_the_documents_of_what_runs_it(package: Path, file: str, operations: set[str]) -> None:
    before = environment(RULES, None, package)
    (package / file).write_text("changed")
    after = environment(RULES, None, package)
    assert {name for name in MODULES if before.codes[name] != after.codes[name]} == operations
    assert (before.digest != after.digest) == (file not in ("cli.py", "trust/a.txt"))


def test_each_operation_has_a_document_of_its_own_and_the_environment_lists_them(package: Path) -> None:
    made = environment(RULES, None, package)
    assert len(set(made.codes.values())) == len(MODULES)
    assert listed_codes(made.document) == {name: sha256(code).hexdigest() for name, code in made.codes.items()}
    assert made.digest == sha256(made.document).hexdigest()
    assert environment(RULES, None, package) == made


def test_the_brokers_rules_are_part_of_the_environment(package: Path) -> None:
    evil = {"manager": [*RULES["manager"], "dump-guest-memory"]}
    made = environment(evil, None, package)
    assert made.digest != environment(RULES, None, package).digest
    assert json.loads(made.document)["rules"] == evil


def test_qemu_is_part_of_the_environment(package: Path, tmp_path: Path) -> None:
    qemu = program(tmp_path / "qemu", "QEMU emulator version 7.2.1 (Debian)")
    made = environment(RULES, qemu, package)
    found = json.loads(made.document)["qemu"]
    assert found == {"version": "7.2.1", "hash": blake3(Path(qemu).read_bytes()).hexdigest()}
    other = program(tmp_path / "qemu", "QEMU emulator version 7.2.2 (Debian)")
    assert environment(RULES, other, package).digest != made.digest


def test_a_missing_or_broken_qemu_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="not installed; on Debian and Ubuntu: sudo apt-get install qemu-system-x86"):
        qemu_document("no-such-qemu")
    with pytest.raises(HostError, match="says no version"):
        qemu_document(program(tmp_path / "mute", ""))
    (tmp_path / "broken").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(HostError, match="does not run"):
        qemu_document(str(tmp_path / "broken"))


def test_the_real_qemu_says_its_version() -> None:
    if shutil.which(measure.QEMU) is None:
        pytest.skip(f"{measure.QEMU} is not installed (apt-get install qemu-system-x86)")
    qemu_document.cache_clear()
    assert qemu_document()["version"][0].isdigit()


def test_a_package_without_its_files_cannot_be_measured(package: Path) -> None:
    (package / "cloud/tcom/backup.py").unlink()
    with pytest.raises(VmError, match="cannot measure backup"):
        environment(RULES, None, package)


def test_the_files_that_this_package_names_exist() -> None:
    for name in (*SHARED, *MODULES.values()):
        assert (Path(measure.__file__).parent / name).is_file()


@pytest.mark.parametrize("name", sorted({*SHARED, *MODULES.values()}))
def test_what_is_measured_imports_nothing_of_ours_that_is_not(name: str) -> None:
    """An operation's document stands for all that it runs: so no module of it may import one that is not in it."""
    folder = Path(measure.__file__).parents[1]
    allowed = {"quoreduce.errors", "quoreduce.cloud", *(f"quoreduce.cloud.{one.removesuffix('.py')}" for one in SHARED)}
    for module in imported(folder / "cloud" / name):
        assert module in allowed or module == "quoreduce.trust" or module.startswith("quoreduce.trust."), module


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it; ``from package import module`` counts as the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "quoreduce.cloud":
            found |= {f"quoreduce.cloud.{one.name}" for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {one for one in found if one.split(".")[0] == "quoreduce"}
