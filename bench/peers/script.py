"""What the scripts of Python peers share: ``python -m bench.peers.NAME_job SCRATCH JOB INPUT OUTPUT [JOB INPUT
OUTPUT]...``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def scratch() -> str:
    """The folder for temporary files."""
    return sys.argv[1]


def run_all(do: Callable[[str, str, str], None]) -> None:
    """Do each job, ``do(job, input, output)``, and print its seconds."""
    words = iter(sys.argv[2:])
    for job, source, output in zip(words, words, words, strict=True):
        start = time.perf_counter()
        do(job, source, output)
        print(time.perf_counter() - start, flush=True)
