"""Executor of Ray actors: a cluster, or this machine if no address is given.

Ray starts actors where it is told (``NodeAffinity(soft=False)``), moves requests, replies and blocks between nodes, and
reports deaths. It retries and restarts nothing: the tracker decides. Replies are bytes, which Ray hands over as they
are.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from quoreduce import interrupts
from quoreduce.errors import HostError, UsageError
from quoreduce.files import Hold
from quoreduce.machine import our_path
from quoreduce.protocol import wire
from quoreduce.protocol.options import Place
from quoreduce.protocol.port import Arrival, Domain, WorkerInfo, cores, cpu_type, worker_env
from quoreduce.runtime import reach
from quoreduce.runtime.connecting import LOCAL, connect
from quoreduce.scratch import NAME_CHARS, make_folder, sweep

START_TIMEOUT_S = 180.0
ANSWER_S = 1.0  # for an actor that may have started in time
STARTS_MAX = 3
FETCH_TIMEOUT_S = 60.0
NODE_CHECK_S = 1.0
TIDY_S = 5.0
RAY_FOLDER_CHARS_MAX = 40  # a socket's name has 107 characters at most, of which Ray uses 66
SHORT_ROOT = Path("/tmp")  # where TMPDIR is too long
RACK_LABELS = ("quoreduce.io/rack", "rack")
CRASH_STATUS = 13


class RayWorker:
    """The actor: one :class:`quoreduce.worker.worker.Worker`, which other nodes may ask for blocks meanwhile."""

    def __init__(
        self, name: str, node: str, store: str | None, number: int | None, namespace: str, swept: bool
    ) -> None:
        import ray

        from quoreduce.protocol.compile import use_kernels
        from quoreduce.worker.store import join_session_folder
        from quoreduce.worker.worker import Worker, own_numba_cache

        self._ray = ray
        self._namespace = namespace
        self._swept = swept
        usable = cores()
        self._core = None if number is None else usable[number % len(usable)]
        self._pinned: set[int] = set()
        self._pin()
        # One folder for all workers of a node: what one has stored can still be read when that one is dead.
        self._hold = join_session_folder(store, f"{namespace.removeprefix('quoreduce-')}-{node[:12]}", swept)
        self._peers: dict[str, Any] = {}
        own_numba_cache(self._hold.path / f"{name}.numba")
        use_kernels()  # this node's
        self._worker = Worker(name, node, self._hold.path / name, self._fetch)

    def info(self) -> bytes:
        """Return pid, core and type of CPU as text."""
        return f"{os.getpid()} {-1 if self._core is None else self._core} {cpu_type()}".encode()

    def handle(self, raw: bytes) -> bytes | None:
        """Execute a request."""
        from quoreduce.worker.worker import Crash, Hang

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
        self._hold.remove()
        if self._swept:
            sweep(self._hold.path.parent.parent)
        return True

    def _pin(self) -> None:
        """Pin the calling thread: Ray runs methods in threads of its own."""
        thread = threading.get_native_id()
        if self._core is not None and thread not in self._pinned:
            os.sched_setaffinity(thread, {self._core})
            self._pinned.add(thread)

    def _fetch(self, stored: wire.StoredCopy) -> bytes:
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


@dataclass(slots=True)
class _Connection:
    """How this process is connected to Ray. ``users``: executors that share the connection; 0: it is not ours."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    address: str = ""
    forked: bool = False  # from a process that was connected: Ray does not work here
    folder: Hold | None = None  # where a Ray of our own keeps what it keeps


_CONNECTION = _Connection()


def _forked() -> None:
    """In a forked process: the connection, and the duty to end it, are the parent's."""
    global _CONNECTION
    ray = sys.modules.get("ray")
    connected = _CONNECTION.users > 0 or (ray is not None and ray.is_initialized())
    _CONNECTION = _Connection(forked=_CONNECTION.forked or connected)


os.register_at_fork(after_in_child=_forked)


class RayExecutor:
    """Actors on the nodes of a Ray cluster, one replica at a time each."""

    def __init__(self, place: Place, swept: bool = True) -> None:
        """``swept``: its workers delete what dead sessions left on their nodes."""
        self._place = place
        self._swept = swept
        self._ray: Any = None
        self._owned = False
        self._namespace = f"quoreduce-{secrets.token_hex(8)}"
        self._starting: list[Any] = []  # handles of actors that have not answered yet
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
        self._owned = _join(self._place.address or os.environ.get("RAY_ADDRESS") or LOCAL, self._namespace, self._swept)
        import ray

        self._ray = ray
        nodes = self._alive_nodes()
        if not nodes:
            raise HostError("the Ray cluster has no live node")
        self._hosts = {
            node["NodeID"]: str(node.get("NodeManagerHostname") or node["NodeManagerAddress"]) for node in nodes
        }
        self._domain = self._place.domain or ("core" if len(nodes) == 1 else "node")
        if self._domain == "rack":
            self._racks = {node["NodeID"]: _rack(node) for node in nodes}
        count = self._place.workers or sum(max(1, int(node["Resources"].get("CPU", 1))) for node in nodes)
        spread = _round_robin([node["NodeID"] for node in nodes], count)
        actors = [self._create(i, node_id, number) for i, (node_id, number) in enumerate(spread)]
        end = time.monotonic() + START_TIMEOUT_S  # of all of them: they start at the same time
        return [self._settled(actor, end).info for actor in actors]

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
        ).remote(name, node_id, self._place.store, pinned, self._namespace, self._swept)  # fmt: skip
        self._starting.append(handle)
        domain = {
            "core": f"{node_id[:8]}/core{number}", "worker": f"worker{index}", "node": f"node-{node_id[:8]}",
        }.get(self._domain) or self._racks[node_id]  # fmt: skip
        return _Actor(handle, WorkerInfo(name, domain, node_id), node_id, number)

    def _settled(self, actor: _Actor, end: float) -> _Actor:
        """Wait until the actor is alive, or another in its place: Ray may lose a request to start it."""
        for _ in range(STARTS_MAX - 1):
            try:
                return self._settle(actor, end)
            except HostError as error:
                if isinstance(error.__cause__, self._ray.exceptions.GetTimeoutError):
                    raise
                with contextlib.suppress(Exception):
                    self._ray.kill(actor.handle, no_restart=True)
                actor = self._create(_index(actor.info.name), actor.node_id, actor.number)
        return self._settle(actor, end)

    def _settle(self, actor: _Actor, end: float) -> _Actor:
        """Wait until the actor lives, to the time ``end`` at most, and note its pid and core."""
        left_s = max(ANSWER_S, end - time.monotonic())
        try:
            said = self._ray.get(actor.handle.info.remote(), timeout=left_s).decode().split(maxsplit=2)
        except self._ray.exceptions.RayError as error:
            raise HostError(f"a Ray actor did not start: {str(error).strip().splitlines()[0]}") from error
        self._starting = [handle for handle in self._starting if handle is not actor.handle]
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
        """Make sure that an actor is dead. Its blocks can be read as long as its node is alive."""
        actor = self._actors.pop(worker)
        self._dead[worker] = actor
        self._calls = {call: name for call, name in self._calls.items() if name != worker}
        with contextlib.suppress(Exception):
            self._ray.kill(actor.handle, no_restart=True)
        return [
            Arrival(worker, None, blocks_lost=actor.node_id not in {node["NodeID"] for node in self._alive_nodes()})
        ]

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
            successor = self._create(_index(worker), dead.node_id, dead.number)
            return self._settled(successor, time.monotonic() + START_TIMEOUT_S).info
        except HostError:
            return None

    def close(self) -> None:
        try:
            if self._ray is not None and self._ray.is_initialized():
                self._end_actors()
        finally:
            if self._owned:
                self._owned = False
                _leave()

    def _end_actors(self) -> None:
        """End all actors, also those that are still starting: they may have made their folder already."""
        handles = [*self._starting, *(actor.handle for actor in self._actors.values())]
        with contextlib.suppress(Exception):
            calls = [handle.tidy.remote() for handle in handles]
            self._ray.wait(calls, num_returns=len(calls), timeout=TIDY_S)
        for handle in handles:
            with contextlib.suppress(Exception):
                self._ray.kill(handle, no_restart=True)
        self._starting.clear()
        self._actors.clear()


def _join(address: str, namespace: str, swept: bool) -> bool:
    """Connect this process to Ray if it is not connected; return whether we must end the connection (with
    :func:`_leave`).
    """
    with _CONNECTION.lock:
        if _CONNECTION.forked:
            raise UsageError("this process was forked from one that uses Ray, and cannot: spawn it, or use on='local'")
        if _CONNECTION.users == 0:
            ray = sys.modules.get("ray")
            if ray is not None and ray.is_initialized():
                return False  # the caller's own
            if address == LOCAL:
                _start_one(namespace, swept)
            else:
                with reach.rehearsed(address):
                    import_module("ray")  # meanwhile: it takes a second
                connect(address, namespace)
            _CONNECTION.address = address
        elif address != _CONNECTION.address:
            other = f"Ray at {_CONNECTION.address}" if _CONNECTION.address != LOCAL else "a Ray of its own"
            raise UsageError(f"this process uses {other}, and Ray allows one at a time: close the other Session first")
        _CONNECTION.users += 1
        return True


def _leave() -> None:
    """If no other session of this process uses Ray, disconnect, or stop the Ray that was started here."""
    with _CONNECTION.lock:
        _CONNECTION.users -= 1
        if _CONNECTION.users == 0:
            import ray

            with contextlib.suppress(Exception):
                ray.shutdown()
            _remove_folder()


def _start_one(namespace: str, swept: bool) -> None:
    """Start a Ray here, in a folder of ours that goes with it; ``swept``: delete first what dead sessions left."""
    if swept:
        sweep()
    with interrupts.held():
        _CONNECTION.folder = _folder_for_ray()
    try:
        connect(LOCAL, namespace, _CONNECTION.folder)
    except BaseException:
        _remove_folder()
        raise


def _remove_folder() -> None:
    """Delete the folder of a Ray of our own that has ended; what of it still runs is ended."""
    if _CONNECTION.folder is not None:
        _CONNECTION.folder.remove()
        _CONNECTION.folder = None


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


def _folder_for_ray() -> Hold | None:
    """A folder for sockets and logs of a Ray of our own; None, so that Ray chooses, if every path is too long for
    sockets.
    """
    for root in (Path(tempfile.gettempdir()), SHORT_ROOT):
        if len(str(our_path(root) / "ray-")) + NAME_CHARS <= RAY_FOLDER_CHARS_MAX and os.access(
            root, os.W_OK | os.X_OK
        ):
            hold = make_folder(root, "ray")
            hold.shared = True
            return hold
    return None
