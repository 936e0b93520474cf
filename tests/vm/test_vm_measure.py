"""Measurements of a server and of its operations: which file changes which document, and nothing else does."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from quoreduce.errors import VmError
from quoreduce.vm import boot, measure, programs
from quoreduce.vm.evidence import listed_codes
from quoreduce.vm.measure import MODULES, PACKAGE, SHARED, differences, environment, measured_files, tcom_document

RULES = {"manager": ["query-status", "query-version"]}
SUFFIX = boot.EXTENSION_SUFFIXES[0]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installation with the files that operations run, and others: our package, dependencies, a standard library."""
    ours = (
        *(f"vm/{one}" for one in {*SHARED, *MODULES.values()}),
        *PACKAGE,
        "cli.py",
        "vm/hypervisor.py",
        "files.py",
    )
    others = (
        "site/msgspec/__init__.py", f"site/msgspec/_core{SUFFIX}", "site/qemu/qmp/__init__.py",
        "site/other/__init__.py",
        "std/json/__init__.py", f"std/lib-dynload/_ssl{SUFFIX}", "std/site-packages/pip.py",
    )  # fmt: skip
    for name in (
        *(f"quoreduce/{one}" for one in (*ours, "trust/utpm.py", "trust/a.txt", "commands/vm/command.py")),
        *others,
    ):
        path = tmp_path / "installed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "installed"


def scanned(package: Path) -> boot.LoadManifest:
    return boot.scan(str(package / "quoreduce"), [str(package / "site")], str(package / "std"))


def made(package: Path, rules: object = RULES) -> measure.Environment:
    return environment(rules, measured_files(scanned(package), ()))


def test_an_operations_document_names_exactly_the_files_that_it_runs(package: Path) -> None:
    document = json.loads(tcom_document("terminate", scanned(package).groups["quoreduce"]))
    wanted = [*(f"vm/{one}" for one in ("tcom/terminate.py", *SHARED)), *PACKAGE, "trust/utpm.py"]
    assert sorted(document["files"]) == sorted(f"quoreduce/{one}" for one in wanted)
    assert document["files"]["quoreduce/vm/wire.py"] == sha256(b"quoreduce/vm/wire.py").hexdigest()
    assert (document["format"], document["operation"]) == ("quoreduce tcom 2", "terminate")


@pytest.mark.parametrize(("file", "operations"), [
    ("quoreduce/vm/tcom/terminate.py", {"terminate"}),
    ("quoreduce/vm/tcom/launch.py", {"launch", "restore"}),
    ("quoreduce/vm/tcom/migrate_in.py", {"migrate_in"}),
    ("quoreduce/vm/wire.py", set(MODULES)),
    ("quoreduce/vm/evidence.py", set(MODULES)),
    ("quoreduce/trust/utpm.py", set(MODULES)),
    ("quoreduce/errors.py", set(MODULES)),
    ("quoreduce/vm/hypervisor.py", set()),
    ("quoreduce/files.py", set(MODULES)),
    ("site/msgspec/__init__.py", set()),
    (f"site/msgspec/_core{SUFFIX}", set()),
    ("site/qemu/qmp/__init__.py", set()),
    ("std/json/__init__.py", set()),
    (f"std/lib-dynload/_ssl{SUFFIX}", set()),
])  # fmt: skip
def test_a_changed_file_changes_the_documents_of_what_runs_it(package: Path, file: str, operations: set[str]) -> None:
    before = made(package)
    (package / file).write_text("changed")
    after = made(package)
    assert {name for name in MODULES if before.codes[name] != after.codes[name]} == operations
    assert before.digest != after.digest
    (changed,) = differences(before.files, after.files)
    assert changed.endswith(f"{file.partition('/')[2].removeprefix('lib-dynload/')} (changed)")


@pytest.mark.parametrize(
    "file",
    [
        "quoreduce/cli.py",
        "quoreduce/commands/vm/command.py",
        "quoreduce/trust/a.txt",
        "site/other/__init__.py",
        "std/site-packages/pip.py",
    ],
)
def test_what_cannot_be_loaded_changes_nothing(package: Path, file: str) -> None:
    before = made(package)
    (package / file).write_text("changed")
    assert made(package) == before
    assert not {"quoreduce.cli", "quoreduce.commands.vm.command", "other", "pip"} & {*scanned(package).modules}


@pytest.mark.parametrize("file", ["quoreduce/vm/planted.py", f"quoreduce/vm/wire{SUFFIX}", "site/msgspec/planted.py"])
def test_a_file_that_is_put_beside_the_others_is_another_environment(package: Path, file: str) -> None:
    before = made(package)
    (package / file).write_text("planted")
    after = made(package)
    assert after.digest != before.digest
    assert differences(before.files, after.files)[0].endswith("(new)")
    (package / file).unlink()
    assert made(package) == before


@pytest.mark.parametrize(
    "file", ["std/sitecustomize.py", "std/usercustomize.py", "site/sitecustomize.py", "site/evil.pth", "site/evil.py"]
)
def test_what_python_would_load_by_itself_is_not_loaded(package: Path, file: str) -> None:
    before = made(package)
    (package / file).write_text("planted")
    assert made(package) == before
    assert Path(file).stem not in scanned(package).modules


def test_two_installations_of_the_same_files_are_one_environment(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path / "another" / "place")
    assert made(tmp_path / "another" / "place") == made(package)
    assert made(package) == made(package)


def test_of_a_modules_files_the_one_is_listed_that_python_takes(package: Path) -> None:
    (package / f"site/msgspec/_core{SUFFIX}").with_name("_core.py").write_text("the source")
    (package / "site/msgspec.py").write_text("a module beside the package")
    found = scanned(package)
    assert found.modules["msgspec"].endswith("msgspec/__init__.py")
    assert found.modules["msgspec._core"].endswith(SUFFIX)
    assert found.modules["qemu"] == str(package / "site/qemu")  # a namespace package


def test_each_operation_has_a_document_of_its_own_and_the_environment_lists_them(package: Path) -> None:
    found = made(package)
    assert len(set(found.codes.values())) == len(MODULES)
    assert listed_codes(found.document) == {name: sha256(code).hexdigest() for name, code in found.codes.items()}
    assert found.digest == sha256(found.document).hexdigest()


def test_the_brokers_rules_are_part_of_the_environment(package: Path) -> None:
    evil = {"manager": [*RULES["manager"], "dump-guest-memory"]}
    found = made(package, evil)
    assert found.digest != made(package).digest
    assert json.loads(found.document)["rules"] == evil


def test_a_package_without_its_files_cannot_be_measured(package: Path) -> None:
    (package / "quoreduce/vm/tcom/backup.py").unlink()
    with pytest.raises(VmError, match=r"cannot measure backup: quoreduce/vm/tcom/backup.py is missing"):
        made(package)


def test_the_files_that_this_package_names_exist() -> None:
    for name in (*SHARED, *MODULES.values()):
        assert (Path(measure.__file__).parent / name).is_file()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Installs a copy of a small program of this machine under a name; PATH has nothing else."""
    programs._loaded.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def install(name: str, of: str = "sleep") -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = tmp_path / "bin" / name
        path.unlink(missing_ok=True)
        return Path(shutil.copy(os.path.realpath(f"/bin/{of}"), path))

    yield install
    programs._loaded.cache_clear()


def test_a_program_is_all_its_files(installed: Callable[[str], Path]) -> None:
    path = installed("swtpm")
    found = programs.load("swtpm")
    assert found.path == str(path)
    assert found.files[str(path)] == sha256(path.read_bytes()).hexdigest()
    assert any("/libc.so" in one for one in found.files)
    assert any("/ld-linux" in one for one in found.files)
    assert all(programs.digest_of(one) == digest for one, digest in found.files.items())


def test_the_programs_are_part_of_the_environment(package: Path, installed: Callable[..., Path]) -> None:
    def environment_now() -> measure.Environment:
        programs._loaded.cache_clear()
        return environment(RULES, measured_files(scanned(package), ("swtpm",)))

    installed("swtpm")
    before = environment_now()
    assert environment_now() == before
    path = installed("swtpm", of="cat")
    assert environment_now().digest != before.digest
    assert f"swtpm: {path} (changed)" in differences(before.files, environment_now().files)


@pytest.mark.parametrize("name", ["swtpm", "qemu-system-x86_64"])
def test_a_wrapper_is_refused(installed: Callable[[str], Path], name: str) -> None:
    installed(name).write_text(f'#!/bin/sh\nexec /usr/bin/{name} "$@"\n')
    with pytest.raises(VmError, match=r"is no program for this machine .* but perhaps a script"):
        programs.load(name)


def test_a_program_that_is_replaced_while_a_server_runs_is_refused(installed: Callable[..., Path]) -> None:
    path = installed("swtpm")
    found = programs.load("swtpm")
    os.utime(path)  # another time, the same bytes
    found.check()
    installed("swtpm")
    found.check()
    installed("swtpm", of="cat")
    with pytest.raises(VmError, match=rf"{path} is not what it was when it was measured"):
        found.check()
    path.unlink()
    with pytest.raises(VmError, match=rf"{path} cannot be read any more"):
        found.check()


def test_firmware_is_found_where_qemu_looks_and_missed_if_it_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "share/seabios").mkdir(parents=True)
    with pytest.raises(VmError, match=r"bios-256k.bin is in none of .*apt-get install seabios"):
        programs.firmware(str(tmp_path / "bin/qemu"))
    (tmp_path / "share/seabios/bios-256k.bin").write_bytes(b"bios")
    assert programs.firmware(str(tmp_path / "bin/qemu")) == [str(tmp_path / "share/seabios/bios-256k.bin")]


def test_the_real_programs_are_measured_with_libraries_and_firmware() -> None:
    for name in measure.PROGRAMS:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (apt-get install qemu-system-x86 seabios swtpm)")
    qemu, swtpm = (programs.load(name) for name in measure.PROGRAMS)
    assert any(one.endswith("/bios-256k.bin") for one in qemu.files)
    assert any("libtpms.so" in one for one in swtpm.files)
    qemu.check()


def test_a_missing_program_is_said_so(installed: Callable[[str], Path]) -> None:
    with pytest.raises(VmError, match="not installed; on Debian and Ubuntu: sudo apt-get install qemu-system-x86"):
        programs.load(programs.QEMU)


@pytest.mark.parametrize("name", sorted({*SHARED, *MODULES.values()}))
def test_what_is_measured_imports_nothing_of_ours_that_is_not(name: str) -> None:
    """An operation's document stands for all that it runs: so no module of it may import one that is not in it."""
    folder = Path(measure.__file__).parents[1]
    allowed = {"quoreduce.errors", "quoreduce.vm", *(f"quoreduce.vm.{one.removesuffix('.py')}" for one in SHARED)}
    for module in imported(folder / "vm" / name):
        assert module in allowed or module == "quoreduce.trust" or module.startswith("quoreduce.trust."), module


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it; ``from package import module`` counts as the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "quoreduce.vm":
            found |= {f"quoreduce.vm.{one.name}" for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {one for one in found if one.split(".")[0] == "quoreduce"}
