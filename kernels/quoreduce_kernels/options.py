"""The one place that names numba's options.

Honest replicas must agree to the bit, whatever the CPU. Hence, for every kernel:

- ``fastmath=False``: reassociated sums differ between CPU types;
- ``parallel=False``: sums split over threads differ with the number of threads. One call uses one core;
- ``error_model="numpy"``: division never raises, so that loops stay free of exception paths;
- ``nogil=True``: a worker's other threads (reply to the driver, write a block) go on meanwhile;
- ``boundscheck=False``: bounds are checked once by the thin Python layer around a kernel, not at each access.

A *kernel* has an explicit signature and is compiled, or loaded from the folder of compiled kernels, when its module is
imported (:mod:`quoreduce_kernels.cache`). A *part* is a piece of kernels: it is compiled into each kernel that calls it
and has neither a signature nor a file, so that a warm import loads the kernels only. The folder is one for each version
of this package's sources: who edits any of them compiles all kernels again.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import numba
from numba import njit
from numba.core import config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.core.typeinfer import register_dispatcher

from quoreduce_kernels import cache

DETERMINISTIC: dict[str, Any] = {
    "nogil": True,
    "fastmath": False,
    "parallel": False,
    "error_model": "numpy",
    "boundscheck": False,
}


class CheckedCache(NullCache):  # type: ignore[misc]
    """What numba asks for one kernel before it compiles it, and is handed the result of: the folder of compiled
    kernels.
    """

    def __init__(self, function: Callable[..., Any], variant: str = "") -> None:
        self._function = function
        self._variant = variant

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel, or None: it has to be compiled."""
        target_context.refresh()
        folder = cache.reader()
        if folder is None:
            return None
        name = self._name(sig, target_context.codegen())
        raw = folder.load(name)
        if raw is not None:
            return CompileResult._rebuild(target_context, *pickle.loads(raw))
        if not isinstance(folder, cache.Writer):
            cache.say(f"{folder.folder}/{name} is not what was compiled there")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a kernel that was compiled, if this process is the one that fills the folder."""
        if isinstance(cache.current, cache.Writer):
            if data.lifted or data.library.has_dynamic_globals:
                raise RuntimeError(f"{self._function.__name__} cannot be kept: it holds addresses of this process")
            cache.current.save(self._name(sig, data.codegen), dumps(data._reduce()))

    def _name(self, sig: Any, codegen: Any) -> str:
        """The file of a kernel: it says for which signature, code, CPU and version of numba."""
        code = self._function.__code__
        made_of = (sig, codegen.magic_tuple(), numba.__version__, hashlib.sha256(code.co_code).hexdigest())
        key = repr((*made_of, self._variant) if self._variant else made_of)
        module = self._function.__module__.rpartition(".")[2]
        name = f"{code.co_name}.{self._variant}" if self._variant else code.co_name
        return f"{module}.{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}{cache.SUFFIX}"


def kernel(signature: Any, variant: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Decorate an entry point: compiled (or loaded) at import for exactly this signature.

    ``variant`` tells apart functions of the same code that close over other parts.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher: Any = njit(**DETERMINISTIC)(function)
        if config.DISABLE_JIT:
            return dispatcher
        dispatcher._cache = CheckedCache(function, variant)
        with register_dispatcher(dispatcher):  # it may call itself
            dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return decorate


def part(function: Callable[..., Any]) -> Any:
    """Decorate a piece of kernels: inlined by LLVM into every kernel that calls it."""
    return njit(function, forceinline=True, **DETERMINISTIC)


def cold_part(function: Callable[..., Any]) -> Any:
    """Decorate a piece of kernels that is called rarely: LLVM may leave it out of line."""
    return njit(function, **DETERMINISTIC)
