"""Executor in the same process: for tests and debugging. Its domains are only names; it survives no real fault."""

from __future__ import annotations

import os
from collections import deque

from quoreduce.protocol.port import Arrival, WorkerInfo
from quoreduce.worker.store import create_session_folder
from quoreduce.worker.worker import Crash, Hang, Worker


class InlineExecutor:
    """Runs each request when it is waited for, one after the other."""

    def __init__(self, workers: int, store: str | None = None) -> None:
        self._count = workers
        self._hold = create_session_folder(store)
        self._workers: dict[str, Worker] = {}
        self._queue: deque[tuple[str, bytes]] = deque()
        self._gone: list[str] = []
        self._generation = 0

    def start(self) -> list[WorkerInfo]:
        return [self._join(f"worker{i}") for i in range(self._count)]

    def _join(self, domain: str) -> WorkerInfo:
        name = f"{domain}.{self._generation}"
        self._generation += 1
        self._workers[name] = Worker(name, "local", self._hold.path / name)
        return WorkerInfo(name, domain, "local", None, os.getpid())

    def submit(self, worker: str, raw: bytes) -> None:
        self._queue.append((worker, raw))

    def wait(self, timeout_s: float) -> list[Arrival]:
        arrivals = [Arrival(name, None) for name in self._gone]
        self._gone.clear()
        while self._queue and not arrivals:
            name, raw = self._queue.popleft()
            worker = self._workers.get(name)
            if worker is None:
                continue
            try:
                reply = worker.handle(raw)
            except (Crash, Hang) as end:
                del self._workers[name]
                arrivals.append(Arrival(name, None, hung=isinstance(end, Hang)))
                continue
            if reply is not None:
                arrivals.append(Arrival(name, reply))
        return arrivals

    def kill(self, worker: str) -> None:
        if self._workers.pop(worker, None) is not None:
            self._gone.append(worker)

    def waited_s(self, worker: str) -> float:
        return 0.0

    def replace(self, worker: str) -> WorkerInfo | None:
        return self._join(worker.rpartition(".")[0])

    def close(self) -> None:
        self._workers.clear()
        self._hold.remove()
