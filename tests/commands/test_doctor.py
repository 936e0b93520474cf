"""`quoreduce doctor --deep`: a file that is not what was installed, or a kernel that is not what was compiled, is
named.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quoreduce.commands.doctor import deep, doctor
from quoreduce.protocol.compile import ensure_kernels
from quoreduce.protocol.port import kernel_folder

FILES = {"rotting/__init__.py": b"x = 1\n", "rotting/code.so": b"\x7fELF" * 400, "rotting/data": b""}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution ``rotting``, as pip installs it, that requires ``pytest``, and an extra that is not asked for."""
    site = tmp_path / "site"
    record = []
    for name, content in FILES.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}")
    info = site / "rotting-1.0.dist-info"
    info.mkdir()
    needs = "Requires-Dist: PyTest>=1\nRequires-Dist: not_here\nRequires-Dist: quoreduce; extra == 'all'\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rotting\nVersion: 1.0\n{needs}")
    (info / "RECORD").write_text(
        "\n".join([*record, "rotting/__pycache__/x.pyc,,", "rotting-1.0.dist-info/RECORD,,"]) + "\n"
    )
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setattr(deep, "ROOT", "rotting")
    return site / "rotting"


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "cache" / kernel_folder().name
    shutil.copytree(ensure_kernels(), copy)
    monkeypatch.setenv("QUOREDUCE_CACHE", str(copy.parent))
    return copy


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ray", lambda address, advice: "not asked")


def test_what_is_required_is_compared_too_but_not_extras(installed: Path) -> None:
    names = [one.name for one in deep.distributions("rotting")]
    assert names[:2] == ["rotting", "pytest"]
    assert "pluggy" in names
    assert "quoreduce" not in names
    assert len(names) == len(set(names))


def test_files_that_changed_or_are_gone_are_named(installed: Path, kernels: Path) -> None:
    assert [one for one in deep.compare().differences if one.package == "rotting"] == []
    raw = bytearray(FILES["rotting/code.so"])
    raw[77] ^= 1
    (installed / "code.so").write_bytes(raw)
    (installed / "__init__.py").unlink()
    found = {one.path: one.why for one in deep.compare().differences}
    assert found == {str(installed / "__init__.py"): "missing", str(installed / "code.so"): "changed"}


def test_a_missing_file_is_named_by_a_python_that_leaves_it_out(installed: Path, kernels: Path) -> None:
    """From Python 3.12 on, and once ``importlib_metadata`` is imported, ``Distribution.files`` has only files that are
    there.
    """
    (installed / "code.so").unlink()
    script = (
        "import importlib_metadata, sys; sys.path.insert(0, sys.argv[1])\n"
        "from quoreduce.commands.doctor import deep; deep.ROOT = 'rotting'\n"
        "print([(one.path, one.why) for one in deep.compare().differences if one.package == 'rotting'])"
    )
    command = [sys.executable, "-c", script, str(installed.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"[({str(installed / 'code.so')!r}, 'missing')]\n", done.stderr


def test_an_installation_without_digests_is_said_to_have_none(installed: Path, kernels: Path) -> None:
    record = installed.parent / "rotting-1.0.dist-info" / "RECORD"
    record.write_text("__editable__.rotting.pth,sha256=x,3\n")
    (installed.parent / "__editable__.rotting.pth").touch()
    assert "rotting" in deep.compare().unrecorded


def test_the_command_ends_with_4_and_one_line_for_each(
    installed: Path, kernels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.doctor(None, False, deep=True) == 0
    assert " compared, 0 differ\n" in capsys.readouterr().out
    (kernel,) = kernels.glob("word_order.fill_columns-*")
    kernel.write_bytes(kernel.read_bytes()[:-1])
    (installed / "code.so").unlink()
    assert doctor.doctor(None, False, deep=True) == 4
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("!")]
    assert f"! differs (changed): {kernel}; remove it" in lines
    assert f"! differs (missing): {installed}/code.so; pip install --force-reinstall --no-deps rotting" in lines
    assert doctor.doctor(None, True, deep=True) == 4
    said = json.loads(capsys.readouterr().out)
    assert {(one["package"], one["why"]) for one in said["differences"]} == {
        ("kernels", "changed"),
        ("rotting", "missing"),
    }


def test_kernels_that_cannot_be_trusted_are_refused(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernels.chmod(0o777)
    assert doctor.doctor(None, False) == 4
    assert "cannot use compiled kernels: kernels in " in capsys.readouterr().out


@pytest.mark.parametrize(("spoil", "said"), [(False, "(compiled)"), (True, "(1 damaged, will be compiled anew)")])
def test_kernels_are_looked_at_without_deep_too(
    kernels: Path, capsys: pytest.CaptureFixture[str], spoil: bool, said: str
) -> None:
    if spoil:
        next(kernels.glob("*.nbc")).unlink()
    assert doctor.doctor(None, False) == 0
    assert said in capsys.readouterr().out


def test_the_option_is_there(cli: object) -> None:
    done = cli("doctor", "--help")  # type: ignore[operator]
    assert "--deep" in done.stdout
