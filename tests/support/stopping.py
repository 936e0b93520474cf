"""A job that stops a worker, as a debugger would: what deadlines and stragglers are tested with."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from quoreduce import Job


def stopping_job(folder: str, role: str) -> Job:
    """The first execution of ``role`` stops its own process for good, all threads of it."""

    def stop_once(where: str) -> None:
        if where == role:
            try:
                os.close(os.open(f"{folder}/stopped", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            Path(f"{folder}/pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()  # another thread may get the signal first, and this one could still answer

    def map_line(line: bytes) -> Iterator[tuple[bytes, int]]:
        stop_once("map")
        yield line, 1

    def add(key: bytes, values: list[int]) -> Iterator[tuple[bytes, int]]:
        stop_once("reduce")
        yield key, sum(values)

    return Job("stopping", map_line, add)
