"""The one place that names numba's options.

Honest replicas must agree to the bit, whatever the CPU. Hence, for every kernel:

- ``fastmath=False``: reassociated sums differ between CPU types;
- ``parallel=False``: sums split over threads differ with the number of threads. One call uses one core;
- ``error_model="numpy"``: division never raises, so that loops stay free of exception paths;
- ``nogil=True``: a worker's other threads (reply to the driver, write a block) go on meanwhile;
- ``boundscheck=False``: bounds are checked once by the thin Python layer around a kernel, not at each access.

A *kernel* has an explicit signature, is compiled when its module is imported, and is kept in numba's cache: import the
module once in one process before starting workers, for concurrent creation of the cache is not safe. A *part* is a
piece of kernels: it is compiled into each kernel that calls it and has neither a signature nor a cache entry, so that a
warm import loads the kernels only. numba's cache notices a change of the file that holds a kernel, but not of the files
that its parts and intrinsics come from: after editing those, delete the ``*.nbi`` files or touch the kernels' module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

DETERMINISTIC: dict[str, Any] = {
    "nogil": True,
    "fastmath": False,
    "parallel": False,
    "error_model": "numpy",
    "boundscheck": False,
}


def kernel(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate an entry point: compiled (or loaded from the cache) at import for exactly this signature."""
    decorate: Callable[[Callable[..., Any]], Any] = njit(signature, cache=True, **DETERMINISTIC)
    return decorate


def part(function: Callable[..., Any]) -> Any:
    """Decorate a piece of kernels: inlined by LLVM into every kernel that calls it."""
    return njit(function, forceinline=True, **DETERMINISTIC)


def cold_part(function: Callable[..., Any]) -> Any:
    """Decorate a piece of kernels that is called rarely: LLVM may leave it out of line."""
    return njit(function, **DETERMINISTIC)
