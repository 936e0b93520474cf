"""Where the jobs of a stage run: local processes, or a Ray that is started so that it fails.

With runtime/ray.py and connecting.py the only module that imports Ray. Ray writes its files to a folder of the
campaign, so that none stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from quoreduce.chaos.monkey import FAKETIME, Striker, flip_bit, lives, skewed_environment
from quoreduce.chaos.plan import STAGES, Strike
from quoreduce.protocol.options import Place
from quoreduce.protocol.port import WorkerInfo
from quoreduce.runtime.session import Session

CLUSTER_NODES = 4
STORE_BYTES = 80 << 20  # Ray wants 75 MiB at least
STORE_LEFT_BYTES = 600 << 10  # what ballast leaves of it: a block in flight or two
BALLAST_BYTES = 3 << 20
SPILLED_BLOCK_BYTES = (100_000, 2_000_000)
STOP_NODE_S = 6.0
RPC_LINE = re.compile(rb"Inject RPC (?:request|response) failure")
_RPC = {"num_failures": -1, "req_failure_prob": 1, "resp_failure_prob": 1}
RPC_FAILURES = {
    "CoreWorkerService.grpc_client.PushTask": _RPC,
    **{
        name: {**_RPC, "req_failure_prob": 3, "resp_failure_prob": 3, "in_flight_failure_prob": 3}
        for name in (
            "CoreWorkerService.grpc_client.KillActor",
            "NodeManagerService.grpc_client.KillLocalActor",
            "NodeManagerService.grpc_client.RequestWorkerLease",
            "ray::rpc::ActorInfoGcsService.grpc_client.GetNamedActorInfo",
            "ray::rpc::ActorInfoGcsService.grpc_client.RegisterActor",
            "ray::rpc::ActorInfoGcsService.grpc_client.CreateActor",
            "ray::rpc::ActorInfoGcsService.grpc_client.KillActorViaGcs",
            "ray::rpc::ControlPlanePubSubGcsService.grpc_client.GcsSubscriberPoll",
            "ray::rpc::NodeInfoGcsService.grpc_client.GetAllNodeInfo",
            "ray::rpc::TaskInfoGcsService.grpc_client.AddTaskEventData",
        )
    },
}
_ON_ONE_NODE_TOO = {"RAY_testing_rpc_failure_avoid_intra_node_failures": "0"}
_HEALTH = {
    "RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "1000",
}  # fmt: skip
# Spill at once, and one object to a file; a full store is an error at once, for which there is disk.
_SPILL = {
    "object_spilling_threshold": 0.02,
    "min_spilling_size": 1,
    "max_fused_object_count": 1,
    "oom_grace_period_s": 0,
}


class Ground(Protocol):
    """Where jobs run."""

    strikers: dict[str, Striker]

    def open(self) -> Session:
        """Start everything; no fault is in the air yet."""

    def begin(self, kinds: tuple[str, ...]) -> None:
        """A job of these kinds begins; from the first call on faults are in the air."""

    def around(self) -> Counter[str]:
        """The faults in the air that have happened since the last call."""

    def mend(self) -> Session | None:
        """After a job: put nodes in the place of lost ones; returns the session to use next, if it is another one."""

    def close(self) -> None:
        """Stop everything."""


def ground(stage: str, folder: Path, work: Path) -> Ground:
    """Make the ground of a stage: ``folder`` for Ray's files, ``work`` for blocks and outputs."""
    if stage == "local":
        return Plain(Place("local", STAGES[stage].domains, "worker", store=str(work / "store")))
    if stage == "cluster":
        return RayNodes(folder, work)
    return Lossy(folder, work, stage)


class Plain:
    """A session, and nothing around it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.strikers: dict[str, Striker] = {}
        self.session: Session | None = None

    def open(self) -> Session:
        self.session = Session(self.place).__enter__()
        return self.session

    def begin(self, kinds: tuple[str, ...]) -> None:
        pass

    def around(self) -> Counter[str]:
        return Counter()

    def mend(self) -> Session | None:
        return None

    def close(self) -> None:
        if self.session is not None:
            self.session.close()


class Lossy(Plain):
    """A Ray of one machine; in the stage ``rpc`` it loses requests and replies, which its logs tell."""

    def __init__(self, folder: Path, work: Path, stage: str) -> None:
        super().__init__(Place("ray", STAGES[stage].domains, "worker", store=str(work / "store")))
        self._folder = folder
        self._lossy = stage == "rpc"
        self._read: dict[Path, int] = {}

    def open(self) -> Session:
        if self._lossy:
            os.environ.update(RAY_testing_rpc_failure=json.dumps(RPC_FAILURES), **_ON_ONE_NODE_TOO)
        ray = _ray()
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=STORE_BYTES, _temp_dir=str(self._folder),
        )  # fmt: skip
        return super().open()

    def begin(self, kinds: tuple[str, ...]) -> None:
        if not self._read:
            self.around()  # what was lost before is nobody's

    def around(self) -> Counter[str]:
        """Count the lines that Ray wrote to its logs."""
        count = 0
        for path in self._folder.glob("session_2*/logs/*.*") if self._lossy else ():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
                whole = text.rfind(b"\n") + 1
                self._read[path] = self._read.get(path, 0) + whole
                count += len(RPC_LINE.findall(text[:whole]))
        return +Counter({"rpc": count})

    def close(self) -> None:
        super().close()
        _ray().shutdown()


class RayNodes(Plain):
    """A cluster of virtual nodes: raylets of this machine, each with a small object store that ballast fills."""

    def __init__(self, folder: Path, work: Path) -> None:
        super().__init__(Place("ray", store=str(work / "store")))
        self.strikers = {"node": self._kill_node, "nodestop": self._stop_node, "spill": self._arm}
        self._folder = folder
        self._cluster: Any = None
        self._nodes: list[Any] = []
        self._ballast: dict[str, Any] = {}
        self._lost: list[Any] = []
        self._added = 0
        self._spilled = _Spilled(folder / "spill")

    def open(self) -> Session:
        os.environ.update(_HEALTH)
        ray = _ray()
        from ray.cluster_utils import Cluster

        (self._folder / "spill").mkdir(parents=True)
        self._cluster = Cluster()
        for _ in range(CLUSTER_NODES):
            self._add_node()
        self._cluster.wait_for_nodes()
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        return super().open()

    def _add_node(self) -> None:
        """The third node, and every second one after it, has a clock of its own."""
        self._added += 1
        head = self._cluster.head_node is None
        odd = FAKETIME is not None and self._added > 2 and self._added % 2
        more = {"_system_config": _SPILL} if head else {}
        environment = {"env_vars": skewed_environment(self._added)} if odd else {}
        node = self._cluster.add_node(
            num_cpus=1, include_dashboard=False, object_store_memory=STORE_BYTES, temp_dir=str(self._folder),
            object_spilling_directory=str(self._folder / "spill"), **more, **environment,
        )  # fmt: skip
        self._nodes.append(node)

    def begin(self, kinds: tuple[str, ...]) -> None:
        """Fill the object stores that are not full yet; then what is spilled are blocks."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = _ray()
        fresh = [node for node in self._nodes if node.node_id not in self._ballast]
        for node in fresh:
            where = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            actor = ray.remote(num_cpus=0, max_restarts=0)(_Ballast).options(scheduling_strategy=where)
            self._ballast[node.node_id] = actor.remote()
        with contextlib.suppress(ray.exceptions.RayError):  # a node may be lost meanwhile
            ray.get(
                [self._ballast[node.node_id].fill.remote(STORE_BYTES - STORE_LEFT_BYTES) for node in fresh], timeout=60
            )
        self._spilled.begin(fresh != [])

    def around(self) -> Counter[str]:
        return self._spilled.taken()

    def _arm(self, strike: Strike) -> int:
        """Flip a bit in each block that is spilled from now on; ``around`` counts them."""
        self._spilled.flips = random.Random(strike.pick)
        return 0

    def _hosts(self) -> list[Any]:
        """Nodes with workers that Ray survives to lose: not the head. One at a time, so that enough are left."""
        assert self.session is not None
        hosts = {info.node for info in self.session.workers}
        usable = [node for node in self._nodes if node is not self._cluster.head_node and node.node_id in hosts]
        return [] if self._lost else sorted(usable, key=lambda node: str(node.node_id))

    def _kill_node(self, strike: Strike) -> int:
        return self._hit_node(strike, signal.SIGKILL)

    def _stop_node(self, strike: Strike) -> int:
        return self._hit_node(strike, signal.SIGSTOP)

    def _hit_node(self, strike: Strike, number: int) -> int:
        hosts = self._hosts()
        if not hosts:
            return 0
        node = hosts[strike.pick % len(hosts)]
        pid = _raylet(node)
        if not lives(pid):
            return 0
        os.kill(pid, number)
        self._lost.append(node)
        return 1

    def mend(self) -> Session | None:
        if not self._lost:
            return None
        assert self.session is not None
        for node in self._lost:
            _await_death(node, STOP_NODE_S)
            self._nodes.remove(node)
            self._ballast.pop(node.node_id, None)
            with contextlib.suppress(ProcessLookupError):
                os.kill(_raylet(node), signal.SIGCONT)
            self._cluster.remove_node(node, allow_graceful=False)
        self._lost.clear()
        self.session.close()
        self._add_node()
        self._cluster.wait_for_nodes()
        return super().open()

    def close(self) -> None:
        self._spilled.stop()
        super().close()
        _ray().shutdown()
        if self._cluster is not None:
            self._cluster.shutdown()


class _Ballast:
    """An actor that fills the object store of its node with objects in use: Ray can copy them to disk, but not drop
    them.
    """

    def __init__(self) -> None:
        self._held: list[Any] = []

    def fill(self, nbytes: int) -> int:
        """Put objects until ``nbytes`` are held, and return how many."""
        import numpy as np

        ray = _ray()
        refs = [ray.put(np.full(BALLAST_BYTES, i % 251, np.uint8)) for i in range(nbytes // BALLAST_BYTES)]
        self._held = [(ref, ray.get(ref)) for ref in refs]
        return len(self._held)


class _Spilled(threading.Thread):
    """Watches the folder that Ray spills to. ``flips``: flip a bit in every new file of a block."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._known: set[str] = set()
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.flips: random.Random | None = None

    def begin(self, again: bool) -> None:
        """A job begins: from now on new files count; ``again``: those that were made meanwhile are ballast."""
        with self._lock:
            if again:
                self._known |= {path.name for path in self._folder.glob("*/*")}
            self.flips = None
            self._count.clear()
        if not self.is_alive():
            self.start()

    def taken(self) -> Counter[str]:
        """The events since the job began."""
        with self._lock:
            count, self._count, self.flips = self._count, Counter(), None
        return count

    def run(self) -> None:
        while not self._over.wait(0.002):
            with self._lock, contextlib.suppress(OSError):
                for path in self._folder.glob("*/*"):
                    if path.name not in self._known:
                        self._look(path)

    def _look(self, path: Path) -> None:
        size = path.stat().st_size
        if size == 0:
            return  # it is still to be written
        self._known.add(path.name)
        if SPILLED_BLOCK_BYTES[0] <= size <= SPILLED_BLOCK_BYTES[1]:
            self._count["starve"] += 1
            self._count["spill"] += self.flips is not None and flip_bit(path, self.flips)

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _await_death(node: Any, limit_s: float) -> None:
    """Wait until Ray holds the node for dead."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end and any(n["Alive"] and n["NodeID"] == node.node_id for n in _ray().nodes()):
        time.sleep(0.1)


def skew(workers: list[WorkerInfo], known: set[int]) -> int:
    """Count the workers with a clock of their own that were not ``known`` yet, and note them."""
    from quoreduce.chaos.monkey import skewed

    fresh = {info.pid for info in workers if info.pid not in known}
    known |= fresh
    return sum(map(skewed, fresh))


def _ray() -> Any:
    import quoreduce.runtime.ray  # noqa: F401 - sets Ray's environment, which counts only before Ray is imported

    import ray  # isort: skip

    return ray
