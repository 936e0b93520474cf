"""Kernels: pure numba functions over numpy arrays. Each has a slow plain twin that the tests compare it with."""
