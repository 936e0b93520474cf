"""How often each byte occurs, by numba kernels. Run it, or: quoreduce run kernel_job.py:job FILE OUT"""

import sys

import numba
import numpy as np

from quoreduce import Job, run


@numba.njit(nogil=True)  # no fastmath, no parallel: honest replicas must agree to the bit
def count_bytes(data, counts):
    """Add to ``counts`` how often each byte is in ``data``."""
    for byte in data:
        counts[byte] += 1


def count(data, ctx):
    """Map: one split in, one block (byte, count) for each partition out."""
    counts = np.zeros(256, np.uint64)
    count_bytes(data, counts)
    ranges = np.array_split(np.arange(256, dtype=np.uint64), ctx.reducers)  # partition r: the r-th range of bytes
    blocks = ctx.new_blocks(["u64", "u64"], [(part.size, [8 * part.size] * 2) for part in ranges])
    for block, part in zip(blocks, ranges, strict=True):
        block.numbers(0)[:], block.numbers(1)[:] = part, counts[part]
    return blocks


def add(blocks, ctx):
    """Reduce: the blocks of one partition in, lines out."""
    total = sum(block.numbers(1) for block in blocks)
    for byte, n in zip(blocks[0].numbers(0), total, strict=True) if blocks else ():
        if n:
            ctx.write(b"%d\t%d\n" % (byte, n), 1)


job = Job.of_blocks("byte-histogram", map=count, reduce=add)

if __name__ == "__main__":
    result = run(job, sys.argv[1], sys.argv[2], f=1)
    print(f"{result.records_out} different bytes in {result.output}, executions: {result.executions}")
