"""Real processes that boot.py begins: nothing but what is measured is loaded, whatever else lies in Python's way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from quoreduce.vm import boot

pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("qemu-system-x86_64", "swtpm")),
    reason="needs qemu-system-x86, seabios, swtpm",
)
MEASURE_S = 120.0
BIOS = "/usr/share/seabios/bios-256k.bin"


@dataclass(frozen=True)
class Installed:
    """A copy of our package, a folder before those of its dependencies; ``mark``: where planted code leaves a trace."""

    folder: Path

    @property
    def ours(self) -> Path:
        return self.folder / "quoreduce"

    @property
    def mark(self) -> Path:
        return self.folder.parent / "mark"

    @property
    def evil(self) -> str:
        return f"open({str(self.mark)!r}, 'a').write('was run ')\n"

    def measure(
        self, against: Path | None = None, env: dict[str, str] | None = None, before: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run ``vm measure`` as the command does; ``before``: a shell command, run in a mount namespace of its own."""
        arguments = {"against": str(against) if against else None, "as_json": True}
        line = boot.command("measure", arguments, str(self.ours), [str(self.folder / "site"), *boot.places()[1]])
        if before:
            line = ["unshare", "--mount", "sh", "-ec", f'{before}\nexec "$@"', "sh", *line]
        return subprocess.run(
            line,
            env={**boot.ENVIRONMENT, **(env or {})},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=MEASURE_S,
            check=False,
        )


def install(folder: Path) -> Installed:
    source = Path(boot.places()[0])
    made = Installed(folder)
    for name in ("vm", "trust"):
        shutil.copytree(source / name, made.ours / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in source.glob("*.py"):
        shutil.copy(path, made.ours / path.name)
    (folder / "site").mkdir()
    return made


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The measurement of an installation as it should be, in another folder than those of the tests."""
    folder = tmp_path_factory.mktemp("clean")
    done = install(folder / "installed").measure()
    assert done.returncode == 0, done.stderr
    path = folder / "measured.json"
    path.write_text(done.stdout)
    return path


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return install(tmp_path / "installed")


def test_planted_code_that_python_would_run_has_no_effect(installed: Installed, measured: Path, tmp_path: Path) -> None:
    """Stale compiled files, sitecustomize, .pth, variables, a module in the working folder: all at once."""
    program = """
import py_compile, sys
py_compile.compile(*sys.argv[1:], doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""
    evil = tmp_path / "evil.py"
    for name in ("vm/measure", "vm/agents/start", "vm/agents/server", "errors"):
        source = installed.ours / f"{name}.py"
        evil.write_text(installed.evil + source.read_text().replace("from __future__ import annotations\n", ""))
        cached = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        subprocess.run([sys.executable, "-c", program, evil, cached], check=True)
    (installed.ours / "__init__.pyc").write_bytes(
        (installed.ours / "__pycache__" / f"errors.{sys.implementation.cache_tag}.pyc").read_bytes()
    )
    for name in ("sitecustomize.py", "usercustomize.py", "msgspec.py", "json.py"):
        (installed.folder / name).write_text(installed.evil)
    (installed.folder / "site" / "a.pth").write_text(f"import os; {installed.evil}")
    (installed.folder / "startup.py").write_text(installed.evil)
    env = {
        "PYTHONPATH": str(installed.folder),
        "PYTHONSTARTUP": str(installed.folder / "startup.py"),
        "PYTHONHOME": "/nowhere",
    }
    plain = {**boot.ENVIRONMENT, "PYTHONPATH": str(installed.folder)}
    subprocess.run([sys.executable, "-c", "import quoreduce.errors"], env=plain, capture_output=True, check=False)
    assert "was run was run" in installed.mark.read_text()  # Python does run it
    installed.mark.unlink()
    done = installed.measure(measured, env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(measured.read_text())
    assert not installed.mark.exists()
    assert not list(installed.folder.rglob(f"boot.{sys.implementation.cache_tag}.pyc"))  # nor is anything written


@pytest.mark.parametrize("file", ["quoreduce/vm/hypervisor.py", "quoreduce/limits.py", "site/qemu/qmp/error.py"])
def test_a_changed_module_is_another_environment_and_named(installed: Installed, measured: Path, file: str) -> None:
    if file.startswith("site/"):
        root = next(root for root in boot.places()[1] if Path(root, "qemu").is_dir())
        shutil.copytree(
            Path(root, "qemu"), installed.folder / "site/qemu", ignore=shutil.ignore_patterns("__pycache__")
        )
    with (installed.folder / file).open("a") as module:
        module.write("\n# changed\n")
    done = installed.measure(measured)
    assert done.returncode == 6
    assert done.stderr.strip().endswith(f"{file.removeprefix('site/')} (changed)")
    assert json.loads(done.stdout)["environment"] != json.loads(measured.read_text())["environment"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize(("path", "said"), [
    ("/usr/bin/swtpm", "is no program for this machine"),
    ("/usr/bin/qemu-system-x86_64", "is no program for this machine"),
    (BIOS, f"qemu-system-x86_64: {BIOS} (changed)"),
])  # fmt: skip
def test_a_wrapper_or_another_firmware_is_refused_or_another_environment(
    installed: Installed, measured: Path, tmp_path: Path, path: str, said: str
) -> None:
    """Mounted over the real one, in a mount namespace that nobody else sees."""
    if not Path(path).exists():
        pytest.skip(f"{path} is elsewhere on this machine")
    other = tmp_path / "other"
    other.write_text(f'#!/bin/sh\ntouch {installed.mark}\nexec /usr/bin/real "$@"\n')
    other.chmod(0o755)
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    done = installed.measure(measured, before=f"mount --bind {other} {path}")
    assert done.returncode == 6
    assert said in done.stderr
    assert not installed.mark.exists()


def test_a_wrapper_elsewhere_on_the_path_is_not_run(installed: Installed, measured: Path, tmp_path: Path) -> None:
    for name in ("swtpm", "qemu-system-x86_64"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {installed.mark}\n")
        (tmp_path / name).chmod(0o755)
    program = f"""
import os, sys
sys.path.insert(0, {str(installed.folder)!r})
from quoreduce.vm.agents.start import become
become("measure", {{"against": None, "as_json": True}})
"""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LD_PRELOAD": ""}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=env, capture_output=True, text=True, timeout=MEASURE_S, check=False
    )
    assert json.loads(done.stdout) == json.loads(measured.read_text()), done.stderr
    assert not installed.mark.exists()


WITHIN = """
import mmap, os, sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
boot_path, ours, root = sys.argv[1:]
loader = SourceFileLoader("boot", boot_path)
boot = module_from_spec(spec_from_loader("boot", loader))
sys.modules["boot"] = boot  # it is this process's program
loader.exec_module(boot)
del sys.modules["boot"]
manifest = boot.scan(ours, [root], boot.standard_library())
manifest.install()
libraries = {path for path in boot.mapped()}

def refused(step):
    try:
        step()
    except ImportError as error:
        return f"{type(error).__name__}: {error}"

import calendar  # it was measured
print(refused(lambda: manifest.check(libraries)))
os.utime(root + "/qemu/late.py")  # another time, the same bytes
print(refused(manifest.check_again))
print(refused(lambda: __import__("planted")))
with open(root + "/qemu/late.py", "a") as late:
    late.write("# changed since")
print(refused(lambda: __import__("qemu.late")))
print(refused(manifest.check_again))
sys.modules["planted"] = type(sys)("planted")
sys.modules["planted"].__file__ = root + "/planted.py"
print(refused(lambda: manifest.check(libraries)))
del sys.modules["planted"]
with open(root + "/planted.py", "rb") as file:
    area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
    print(refused(lambda: manifest.check(libraries)))
"""


def test_what_was_not_measured_is_not_loaded_later_and_found_if_it_is_there(tmp_path: Path) -> None:
    root = tmp_path / "site"
    (root / "qemu").mkdir(parents=True)
    (root / "planted.py").write_text("raise SystemExit('planted was run')")
    (root / "qemu" / "late.py").write_text("")
    line = [os.path.realpath(sys.executable), *boot.OPTIONS, "-c", WITHIN, boot.__file__, boot.places()[0], str(root)]
    done = subprocess.run(line, env=boot.ENVIRONMENT, capture_output=True, text=True, timeout=MEASURE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "None",
        "None",
        "ModuleNotFoundError: No module named 'planted'",
        f"Unmeasured: {root}/qemu/late.py is not what was measured: it has changed since",
        f"Unmeasured: {root}/qemu/late.py is not what it was when it was measured",
        f"Unmeasured: the module planted of {root}/planted.py is in memory, and was not measured",
        f"Unmeasured: {root}/planted.py is mapped into memory to be executed, and was not measured",
    ]
