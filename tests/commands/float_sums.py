"""Jobs that add up floats with libraries: their last bits depend on the number of threads, and on the CPU type."""

import numba
import numpy as np

from quoreduce import Job

NUMBERS = 300_000  # enough for a library to use its threads


@numba.njit(parallel=True)
def added(values):
    total = 0.0
    for i in numba.prange(len(values)):
        total += values[i]
    return total


def drawn(line):
    return np.random.default_rng(len(line)).random(NUMBERS)


def squares(line):
    values = drawn(line)
    yield line[:8], float(np.dot(values, values))


def sums(line):
    yield line[:8], float(added(drawn(line)))


def last(key, values):
    yield key, values[-1]


blas = Job("blas", squares, last)
parallel = Job("parallel", sums, last)
