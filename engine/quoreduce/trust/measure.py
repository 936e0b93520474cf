"""The measurement of a worker's environment: one document, whose SHA-256 is its *configuration*.

The document is a JSON object in canonical form (keys sorted, no spaces). It holds hashes (BLAKE3) of files on this
machine: the interpreter, our sources, the machine code that numba made of the kernels; and versions of the
packages that results depend on. Compiled code holds paths and times, so that two machines have two configurations even
with the same sources; a policy names both.

It does not say that memory holds what the files held. It does not cover writes to the worker's memory.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blake3 import blake3

from quoreduce import machine

FORMAT = "quoreduce environment 1"
OURS = ("quoreduce", "quoreduce_kernels", "quoreduce_gridmix")
PACKAGES = (
    "blake3", "cloudpickle", "cryptography", "isal", "llvmlite", "msgspec", "numba", "numpy", "pyarrow", "ray",
    "zstandard",
)  # fmt: skip
VARIABLES = ("LC_ALL", "NUMBA_CPU_FEATURES", "NUMBA_CPU_NAME", "NUMBA_DISABLE_JIT", "PYTHONHASHSEED", "TZ")


@lru_cache(maxsize=1)
def environment() -> bytes:
    """Measure the environment of this process; the document's canonical bytes. Measured once per process."""
    cache = os.environ.get("QUOREDUCE_KERNELS", "")
    document = {
        "format": FORMAT,
        "machine": platform.machine(),
        "cpu": _cpu(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "interpreter": interpreter(),
        "packages": versions(PACKAGES),
        "sources": {name: hash_files(folder.rglob("*.py"), folder) for name in OURS if (folder := _folder(name))},
        "compiled": hash_contents(Path(cache).glob("*.nbc")) if cache else "",
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    return canonical(document)


def canonical(document: Any) -> bytes:
    """The canonical bytes of a JSON document."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def hash_files(files: Iterable[Path], folder: Path) -> str:
    """BLAKE3, in hex, over the names (relative to ``folder``) and contents of files, in the order of the names."""
    whole = blake3()
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        content = path.read_bytes()
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()


def hash_contents(files: Iterable[Path]) -> str:
    """BLAKE3, in hex, over the hashes of files in their own order: names, which numba derives from paths, do not
    matter.
    """
    return blake3("".join(sorted(map(hash_file, files))).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """BLAKE3, in hex, of a file's contents."""
    return blake3().update_mmap(path).hexdigest()


def interpreter() -> dict[str, str]:
    """Hashes of the interpreter's program and, if it has one, its shared library, by their names."""
    found = [Path(sys.executable).resolve()]
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if folder and name and (library := Path(folder, name)).is_file() and library.suffix != ".a":
        found.append(library.resolve())
    return {path.name: hash_file(path) for path in found}


def _folder(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those of these packages (names in lower case) that are installed; of several, the first on the path.

    By the names of their folders, ``NAME-VERSION.dist-info``: ``importlib.metadata`` says the same, and takes longer
    than all the rest of a measurement.
    """
    found: dict[str, str] = {}
    for entry in sys.path:
        try:
            names = os.listdir(entry)
        except OSError:
            continue
        for name, _, version in (
            one.removesuffix(".dist-info").partition("-") for one in names if one.endswith(".dist-info")
        ):
            if name.lower() in packages:
                found.setdefault(name.lower(), version)
    return found


def _cpu() -> str:
    """The model of the CPU: honest machines of two types may differ in the last bits of sums that were vectorised."""
    return machine.cpu_model() or platform.processor()
