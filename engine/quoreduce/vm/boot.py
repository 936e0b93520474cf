"""Starts a server's process so that it loads what is measured, and nothing else. Python runs this file as a program::

    python -I -S -B -X pycache_prefix=/dev/null/none boot.py OPERATION ARGUMENTS OURS ROOT...

``-I -S``: no variable of the environment, no ``.pth`` file, neither sitecustomize nor usercustomize decides what is
loaded. The prefix is a path that cannot exist: compiled files (``.pyc``) are neither read nor written. Then,
with nothing loaded but what Python itself begins with, the files that may be loaded are listed with their SHA-256
(:func:`scan`): the standard library, our package as far as a server needs it, its dependencies. From then on an
importer knows these files only; it compiles the very bytes whose digest it has compared, and a file that has changed
since is refused. At the end :meth:`LoadManifest.check` looks at all that is in memory: modules that were loaded before,
and each file that is mapped to be executed.

It imports nothing of ours, because its imports are loaded before anything is listed.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

DEPENDENCIES = ("_cffi_backend", "blake3", "cryptography", "msgspec", "qemu")
OPTIONS = ("-I", "-S", "-B", "-X", "pycache_prefix=/dev/null/none")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
OURS, STANDARD = "quoreduce", "standard library"
_OUTSIDE = ("cli.py",)  # of the folder of our package: what no server loads
_INSIDE = ("vm", "trust")
_LEFT_OUT = (  # of the standard library: tests, windows, installers, and what others put there
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests",
    "tkinter", "turtledemo", "sitecustomize.py", "usercustomize.py",
)  # fmt: skip


class Unmeasured(ImportError):
    """Something would be loaded, or is in memory, that was not measured."""


class LoadManifest:
    """The files that may be loaded.

    Attributes:
        groups: group (:data:`OURS`, :data:`STANDARD`, a dependency) → name of a file → SHA-256, hex. Names are
            relative, so that two installations of the same files have the same ones.
        modules: module → the path of its file; of a package without one, its folder.
        digests: path → SHA-256, hex.
        libraries: the same of the interpreter and shared libraries, that :meth:`check` was given.
    """

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, str]] = {}
        self.modules: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.libraries: dict[str, str] = {}
        self._stats: dict[str, tuple[int, ...]] = {}

    def add(self, group: str, root: str, path: str) -> None:
        """Digest a file, and list it and its module; ``root``: the folder that its module's name begins in."""
        name = os.path.relpath(path, root)
        suffix = next((one for one in (*EXTENSION_SUFFIXES, ".py") if name.endswith(one)), None)
        if suffix is None:
            return
        self._stats[path] = stat_of(path)
        digest = hashlib.sha256(_read(path)).hexdigest()
        self.groups.setdefault(group, {})[name] = self.digests[path] = digest
        parts = name.removesuffix(suffix).split(os.sep)
        if parts[-1] == "__init__":
            parts.pop()
        module = ".".join(parts)
        if os.path.basename(name).startswith("__init__.") or _rank(path) < _rank(self.modules.get(module, "")):
            self.modules[module] = path
        for count in range(1, len(parts)):  # folders without an __init__.py
            self.modules.setdefault(".".join(parts[:count]), os.path.join(root, *parts[:count]))

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As an importer in ``sys.meta_path``: only what is listed exists."""
        where = self.modules.get(name)
        if where is None:
            return None
        if where not in self.digests:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [where]
            return spec
        package = os.path.basename(where).startswith("__init__.")
        loader = _Source(self, name, where) if where.endswith(".py") else _Extension(self, name, where)
        inner = [os.path.dirname(where)] if package else None
        return spec_from_file_location(name, where, loader=loader, submodule_search_locations=inner)

    def install(self) -> None:
        """From now on this process finds modules here, in the interpreter, and nowhere else."""
        global installed
        installed = self
        from importlib.machinery import BuiltinImporter, FrozenImporter

        sys.meta_path[:] = [BuiltinImporter, FrozenImporter, self]
        sys.path_hooks.clear()
        sys.path_importer_cache.clear()

    def checked(self, path: str) -> bytes:
        """The bytes of a listed file. Raises Unmeasured if they have changed."""
        data = _read(path)
        if hashlib.sha256(data).hexdigest() != self.digests[path]:
            raise Unmeasured(f"{path} is not what was measured: it has changed since", path=path)
        return data

    def check(self, libraries: Iterable[str]) -> None:
        """Raises Unmeasured, with the name of a file, if anything in this process was not measured.

        Args:
            libraries: the paths of shared libraries, and of the interpreter, that may be loaded: they are digested now.
        """
        for library in libraries:
            self._stats[library] = stat_of(library)
            self.libraries[library] = hashlib.sha256(_read(library)).hexdigest()
        for name, module in [*sys.modules.items()]:
            spec = getattr(module, "__spec__", None)
            path = getattr(module, "__file__", None)
            if not path or getattr(spec, "origin", "") == "frozen":
                continue  # it is in the interpreter, or was made by what is listed
            program = module is sys.modules["__main__"]  # this file, which Python ran
            where = self.modules.get("quoreduce.vm.boot" if program else name)
            ours = program or spec is None or type(spec.loader) in _LOADERS  # without: measured code put it there
            if where != path or not ours:
                raise Unmeasured(f"the module {name} of {path} is in memory, and was not measured", path=path)
        known = {os.path.realpath(path) for path in (*self.digests, *self.libraries)}
        for file in mapped():
            if file not in known:
                raise Unmeasured(f"{file} is mapped into memory to be executed, and was not measured", path=file)

    def check_again(self) -> None:
        """Raises Unmeasured, with its name, if a file has changed: another program would be run from it."""
        for path, digest in (*self.digests.items(), *self.libraries.items()):
            try:
                now = stat_of(path)
                if now != self._stats[path] and hashlib.sha256(_read(path)).hexdigest() != digest:
                    raise Unmeasured(f"{path} is not what it was when it was measured", path=path)
            except OSError as error:
                raise Unmeasured(f"{path} cannot be read any more ({error.strerror})", path=path) from error
            self._stats[path] = now


installed: LoadManifest | None = None  # in a process that this file began


class _Source(SourceFileLoader):
    def __init__(self, manifest: LoadManifest, name: str, path: str) -> None:
        super().__init__(name, path)
        self._manifest = manifest

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._manifest.checked(self.path), self.path, "exec", dont_inherit=True)
        return code


class _Extension(ExtensionFileLoader):
    def __init__(self, manifest: LoadManifest, name: str, path: str) -> None:
        super().__init__(name, path)
        self._manifest = manifest

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._manifest.checked(self.path)
        return super().create_module(spec)


_LOADERS = (_Source, _Extension, SourceFileLoader, ExtensionFileLoader)  # the last two: of what Python begins with


def scan(ours: str, roots: Sequence[str], standard: str) -> LoadManifest:
    """List what may be loaded. A folder that cannot be read is an OSError.

    Args:
        ours: the folder of our package.
        roots: where dependencies are; the first of two counts.
        standard: the standard library.
    """
    made = LoadManifest()
    dynamic = os.path.join(standard, "lib-dynload")
    for path in _files(standard):
        made.add(STANDARD, dynamic if path.startswith(dynamic + os.sep) else standard, path)
    parent = os.path.dirname(ours)
    for path in _files(ours):
        first, _, rest = os.path.relpath(path, ours).partition(os.sep)
        if first in _INSIDE if rest else first not in _OUTSIDE:
            made.add(OURS, parent, path)
    for name in DEPENDENCIES:
        root = next((root for root in roots if any(_tops(root, name))), None)
        for top in _tops(root, name) if root else ():
            for path in _files(top) if os.path.isdir(top) else [top]:
                made.add(name, root or "", path)
    return made


def mapped() -> set[str]:
    """The real paths of the files that are mapped into this process to be executed; proc(5), ``maps``."""
    found = set()
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(None, 5)
            if "x" in fields[1] and len(fields) == 6 and fields[5].startswith("/"):
                found.add(fields[5])
    return found


def stat_of(path: str) -> tuple[int, ...]:
    """What changes when a file does: a writer cannot keep its ctime without setting the machine's clock."""
    found = os.stat(path)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def command(operation: str, arguments: Mapping[str, Any], ours: str, roots: Sequence[str]) -> list[str]:
    """The command line that runs an operation of ``agents/start.py``; its environment is :data:`ENVIRONMENT`."""
    import json

    python, program = os.path.realpath(sys.executable), os.path.join(ours, "vm", "boot.py")
    return [python, *OPTIONS, program, operation, json.dumps(arguments), ours, *roots]


def places() -> tuple[str, list[str]]:
    """The folder of our package, and the folders in which this process finds dependencies."""
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return ours, [
        root for root in map(os.path.abspath, sys.path) if any(any(_tops(root, name)) for name in DEPENDENCIES)
    ]


def standard_library() -> str:
    """The folder of the standard library of this process."""
    return os.path.dirname(os.path.abspath(os.__file__))


def _tops(root: str, name: str) -> Iterator[str]:
    """What is in a folder of this name: a package, a module, an extension."""
    for one in (name, f"{name}.py", *(name + suffix for suffix in EXTENSION_SUFFIXES)):
        path = os.path.join(root, one)
        if os.path.exists(path):
            yield path


def _files(folder: str) -> Iterator[str]:
    for where, inner, names in os.walk(folder):
        inner[:] = sorted(one for one in inner if one not in _LEFT_OUT)
        for name in sorted(names):
            if name not in _LEFT_OUT:
                yield os.path.join(where, name)


def _rank(path: str) -> int:
    """Of a module's files Python takes the package first, then the extension, then the source, then a folder."""
    if os.path.basename(path).startswith("__init__."):
        return 0
    return 2 if path.endswith(".py") else 1 if path.endswith(".so") else 3


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _main(operation: str, arguments: str, ours: str, *roots: str) -> int:
    manifest = scan(ours, roots, standard_library())
    manifest.install()
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a server takes it: no traceback
    sys.modules["quoreduce.vm.boot"] = sys.modules["__main__"]
    from quoreduce.vm.agents.start import main

    return main(manifest, operation, arguments)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
