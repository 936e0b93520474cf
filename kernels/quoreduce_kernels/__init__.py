"""Kernels: pure numba functions over numpy arrays. Each has a slow plain twin that the tests compare it with."""

from __future__ import annotations

from collections.abc import Callable

prepare: Callable[[], None] | None = None
"""Called when the first kernel is imported and it is not known where compiled kernels are: it sets ``cache.VARIABLE``.

None: kernels are compiled for this process only.
"""
