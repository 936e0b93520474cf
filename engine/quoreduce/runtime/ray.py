"""Executor of Ray actors: a cluster, or this machine if no address is given. The only module that imports Ray.

Ray starts actors where it is told (``NodeAffinity(soft=False)``), moves requests, replies and blocks between nodes, and
reports deaths. It retries and restarts nothing: the tracker decides. Replies are bytes, which Ray hands over as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from quoreduce.errors import HostError, UsageError
from quoreduce.runtime import wire
from quoreduce.runtime.options import Place
from quoreduce.runtime.port import Arrival, Domain, WorkerInfo, cores, cpu_type, worker_env

START_TIMEOUT_S = 180.0
STARTS_MAX = 3
FETCH_TIMEOUT_S = 60.0
NODE_CHECK_S = 1.0
OBJECT_STORE_BYTES = 512 << 20
RACK_LABELS = ("quoreduce.io/rack", "rack")
CRASH_STATUS = 13

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # Ray's uv hook can hang workers
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


class RayWorker:
    """The actor: one :class:`quoreduce.runtime.worker.Worker`, which other nodes may ask for blocks meanwhile."""

    def __init__(self, name: str, node: str, store: str | None, number: int | None, namespace: str) -> None:
        import ray

        from quoreduce.runtime.store import PREFIX, join_session_folder
        from quoreduce.runtime.worker import Worker

        self._ray = ray
        self._namespace = namespace
        usable = cores()
        self._core = None if number is None else usable[number % len(usable)]
        self._pinned: set[int] = set()
        self._pin()
        # One folder for all workers of a node: what one has stored can still be read when that one is dead.
        self._folder, self._lock = join_session_folder(store, f"{namespace.removeprefix(PREFIX)}-{node[:12]}")
        self._peers: dict[str, Any] = {}
        self._worker = Worker(name, node, self._folder / name, self._fetch)

    def info(self) -> bytes:
        """Return pid, core and type of CPU as text."""
        return f"{os.getpid()} {-1 if self._core is None else self._core} {cpu_type()}".encode()

    def handle(self, raw: bytes) -> bytes | None:
        """Execute a request."""
        from quoreduce.runtime.worker import Crash, Hang

        self._pin()
        try:
            return self._worker.handle(raw)
        except Crash:
            os._exit(CRASH_STATUS)
        except Hang:
            threading.Event().wait()
            os._exit(CRASH_STATUS)

    def read_range(self, path: str, offset: int, nbytes: int) -> bytes:
        """Give a reader on another node a part of a stored file."""
        return self._worker.store.read_range(path, offset, nbytes)

    def tidy(self) -> bool:
        """Delete what this worker stored, and what dead ones left on this node."""
        from quoreduce.runtime.store import sweep

        shutil.rmtree(self._folder, ignore_errors=True)
        sweep(self._folder.parent)
        return True

    def _pin(self) -> None:
        """Pin the calling thread: Ray runs methods in threads of its own."""
        thread = threading.get_native_id()
        if self._core is not None and thread not in self._pinned:
            os.sched_setaffinity(thread, {self._core})
            self._pinned.add(thread)

    def _fetch(self, stored: wire.Stored) -> bytes:
        try:
            peer = self._peers.get(stored.worker)
            if peer is None:
                peer = self._peers[stored.worker] = self._ray.get_actor(stored.worker, namespace=self._namespace)
            call = peer.read_range.remote(stored.path, stored.offset, stored.nbytes)
            raw = self._ray.get(call, timeout=FETCH_TIMEOUT_S)
        except (self._ray.exceptions.RayError, ValueError) as error:
            raise OSError(f"cannot fetch {stored.path} from {stored.worker}") from error
        return bytes(raw)


@dataclass(slots=True)
class _Actor:
    handle: Any
    info: WorkerInfo
    node_id: str
    number: int


class RayExecutor:
    """Actors on the nodes of a Ray cluster, one replica at a time each."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._ray: Any = None
        self._owned = False
        self._namespace = f"quoreduce-{secrets.token_hex(8)}"
        self._actors: dict[str, _Actor] = {}
        self._dead: dict[str, _Actor] = {}
        self._calls: dict[Any, str] = {}
        self._gone: list[Arrival] = []
        self._generation = 0
        self._next_node_check = 0.0
        self._domain: Domain = "core"
        self._racks: dict[str, str] = {}
        self._hosts: dict[str, str] = {}  # node -> the machine's name

    def start(self) -> list[WorkerInfo]:
        import ray

        self._ray = ray
        self._connect()
        nodes = self._alive_nodes()
        if not nodes:
            raise HostError("the Ray cluster has no live node")
        self._hosts = {node["NodeID"]: str(node.get("NodeManagerHostname") or node["NodeManagerAddress"]) for node in nodes}
        self._domain = self._place.domain or ("core" if len(nodes) == 1 else "node")
        if self._domain == "rack":
            self._racks = {node["NodeID"]: _rack(node) for node in nodes}
        count = self._place.workers or sum(max(1, int(node["Resources"].get("CPU", 1))) for node in nodes)
        spread = _round_robin([node["NodeID"] for node in nodes], count)
        actors = [self._create(i, node_id, number) for i, (node_id, number) in enumerate(spread)]
        return [self._settled(actor).info for actor in actors]

    def _connect(self) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        address = self._place.address or os.environ.get("RAY_ADDRESS") or None
        settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": self._namespace}
        if address is None:
            settings |= {
                "address": "local", "num_cpus": len(cores()), "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }  # fmt: skip
        else:
            settings["address"] = address
        try:
            with _quiet():
                ray.init(**settings)
        except (ConnectionError, RuntimeError, OSError, ValueError, TimeoutError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            where = f"Ray at {address}" if address else "a local Ray"
            raise HostError(f"cannot use {where}: {reason}; try --on local, or `quoreduce doctor`") from error
        self._owned = True
        _mute()

    def _alive_nodes(self) -> list[dict[str, Any]]:
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        return sorted(nodes, key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))

    def node_count(self) -> int:
        """Number of live nodes."""
        return len(self._alive_nodes())

    def _create(self, index: int, node_id: str, number: int) -> _Actor:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        name = f"w{index}.{self._generation}"
        self._generation += 1
        environment = {**worker_env(), "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        actor_class = self._ray.remote(
            concurrency_groups={"io": 4}, num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=1
        )(_with_io_group(RayWorker))
        pinned = number if self._domain == "core" else None
        handle = actor_class.options(
            name=name, namespace=self._namespace, runtime_env={"env_vars": environment},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote(name, node_id, self._place.store, pinned, self._namespace)  # fmt: skip
        domain = {
            "core": f"{node_id[:8]}/core{number}", "worker": f"worker{index}", "node": f"node-{node_id[:8]}",
        }.get(self._domain) or self._racks[node_id]  # fmt: skip
        return _Actor(handle, WorkerInfo(name, domain, node_id), node_id, number)

    def _settled(self, actor: _Actor) -> _Actor:
        """Wait until the actor lives, or another in its place: a request that Ray has lost is no reason to lose a domain."""
        for _ in range(STARTS_MAX - 1):
            try:
                return self._settle(actor)
            except HostError as error:
                if isinstance(error.__cause__, self._ray.exceptions.GetTimeoutError):
                    raise
                with contextlib.suppress(Exception):
                    self._ray.kill(actor.handle, no_restart=True)
                actor = self._create(_index(actor.info.name), actor.node_id, actor.number)
        return self._settle(actor)

    def _settle(self, actor: _Actor) -> _Actor:
        """Wait until the actor lives, and note its pid and core."""
        try:
            said = self._ray.get(actor.handle.info.remote(), timeout=START_TIMEOUT_S).decode().split(maxsplit=2)
        except self._ray.exceptions.RayError as error:
            raise HostError(f"a Ray actor did not start: {str(error).strip().splitlines()[0]}") from error
        info, pid, core, cpu = actor.info, int(said[0]), int(said[1]), said[2]
        domain = f"{actor.node_id[:8]}/core{core}" if self._domain == "core" else info.domain
        host = self._hosts.get(actor.node_id, actor.node_id)
        place = {"core": f"{host}/core{core}", "node": host, "rack": domain}.get(self._domain, "")
        actor.info = WorkerInfo(info.name, domain, info.node, None if core < 0 else core, pid, place, cpu)
        self._actors[info.name] = actor
        return actor

    def submit(self, worker: str, raw: bytes) -> None:
        actor = self._actors.get(worker)
        if actor is not None:
            self._calls[actor.handle.handle.remote(raw)] = worker

    def wait(self, timeout_s: float) -> list[Arrival]:
        self._check_nodes()
        arrivals, self._gone = self._gone, []
        if arrivals:
            return arrivals
        if not self._calls:
            time.sleep(min(timeout_s, 0.01))
            return []
        self._ray.wait(list(self._calls), num_returns=1, timeout=timeout_s, fetch_local=False)
        ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0, fetch_local=False)
        for call in ready:
            worker = self._calls.pop(call, None)
            if worker in self._actors:
                arrivals += self._collect(worker, call)
        return arrivals

    def _collect(self, worker: str, call: Any) -> list[Arrival]:
        try:
            raw = self._ray.get(call, timeout=FETCH_TIMEOUT_S)
        except self._ray.exceptions.RayError:
            return self._bury(worker)
        if raw is None:
            return []
        return [Arrival(worker, raw)] if isinstance(raw, bytes) else self._bury(worker)

    def _bury(self, worker: str) -> list[Arrival]:
        """The actor is dead, or is made so; its blocks can be read as long as its node lives."""
        actor = self._actors.pop(worker)
        self._dead[worker] = actor
        self._calls = {call: name for call, name in self._calls.items() if name != worker}
        with contextlib.suppress(Exception):
            self._ray.kill(actor.handle, no_restart=True)
        return [Arrival(worker, None, blocks_lost=actor.node_id not in {node["NodeID"] for node in self._alive_nodes()})]

    def _check_nodes(self) -> None:
        """A call to an actor on a lost node may never fail: look at the nodes themselves now and then."""
        now = time.monotonic()
        if now < self._next_node_check:
            return
        self._next_node_check = now + NODE_CHECK_S
        alive = {node["NodeID"] for node in self._alive_nodes()}
        for name in [name for name, actor in self._actors.items() if actor.node_id not in alive]:
            self._gone += self._bury(name)

    def kill(self, worker: str) -> None:
        if worker in self._actors:
            self._gone += self._bury(worker)

    def waited_s(self, worker: str) -> float:
        return 0.0  # an actor may be on another machine, and its threads are Ray's

    def replace(self, worker: str) -> WorkerInfo | None:
        dead = self._dead.pop(worker)
        if dead.node_id not in {node["NodeID"] for node in self._alive_nodes()}:
            return None
        try:
            return self._settled(self._create(_index(worker), dead.node_id, dead.number)).info
        except HostError:
            return None

    def close(self) -> None:
        if self._ray is None or not self._ray.is_initialized():
            return
        with contextlib.suppress(Exception):
            calls = [actor.handle.tidy.remote() for actor in self._actors.values()]
            self._ray.wait(calls, num_returns=len(calls), timeout=5)
        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                self._ray.kill(actor.handle, no_restart=True)
        self._actors.clear()
        if self._owned:
            self._ray.shutdown()


def _with_io_group(cls: type[RayWorker]) -> type[RayWorker]:
    """Mark the methods that may run beside a task."""
    import ray

    cls.read_range = ray.method(concurrency_group="io")(cls.read_range)  # type: ignore[method-assign]
    cls.tidy = ray.method(concurrency_group="io")(cls.tidy)  # type: ignore[method-assign]
    return cls


def _index(worker: str) -> int:
    """The number of a worker, which its successors have too."""
    return int(worker[1:].partition(".")[0])


def _round_robin(nodes: list[str], count: int) -> list[tuple[str, int]]:
    """Spread ``count`` workers over nodes: (node, number of the worker on it)."""
    return [(nodes[i % len(nodes)], i // len(nodes)) for i in range(count)]


def _rack(node: dict[str, Any]) -> str:
    labels = node.get("Labels") or {}
    for name in RACK_LABELS:
        if labels.get(name):
            return f"rack-{labels[name]}"
    raise UsageError(f"--domain rack: node {node['NodeID'][:8]} has no label {RACK_LABELS[0]}: ray start --labels ...")


def _mute() -> None:
    """Stop Ray from printing every death of an actor: we expect and report them ourselves."""
    with contextlib.suppress(Exception):
        from ray._private import worker

        worker.print_to_stdstream = lambda *args, **kwargs: None


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep Ray's own start-up messages off the terminal."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
