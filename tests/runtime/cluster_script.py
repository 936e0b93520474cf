"""Four Ray nodes on this machine, jobs on them, and faults that only a cluster has. Run by test_cluster_of_nodes.py.

A process of its own, because a process connects to one Ray at a time. Prints one JSON object: what was seen.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from blocking import Gate
from runs import WORDCOUNT, left_in, parts_of
from test_killed_in_the_middle import Running

import quoreduce.runtime.ray  # noqa: F401 - sets Ray's environment, which counts only before Ray is imported
from quoreduce import Options, Result, Session
from quoreduce.driver import detective
from quoreduce.machine import readable
from quoreduce.protocol.options import Place

NODES = 4
REDUCES = 3
SPLIT_MB = 0.004
END_MAX_S = 10.0


def figures(result: Result, output: Path) -> dict[str, Any]:
    return {
        "parts": [part.decode("latin-1") for part in parts_of(output)],
        "executions": result.executions,
        "injected": result.faults.injected,
        "detected": result.faults.detected,
        "masked": result.faults.masked,
        "shipped": result.bytes_shipped,
        "splits": result.splits,
        "domains": result.domains,
        "beside": left_in(output.parent),
        "diagnoses": [[one.kind, one.difference is not None] for one in result.diagnoses],
    }


def count(session: Session, text: str, folder: Path, name: str, **options: Any) -> dict[str, Any]:
    output = folder / name / "out"
    result = session.run(WORDCOUNT, [text], str(output), Options(reducers=REDUCES, split_mb=SPLIT_MB, **options))
    return figures(result, output)


def kill_a_node(session: Session, cluster: Any, folder: Path) -> dict[str, Any]:
    """Wait for both replicas of the reduce, take one's node away, with everything on it, and let the others go.

    Not the head node: Ray does not survive that, nor would this process.
    """
    gate = Gate(folder / "gate")
    output = folder / "killed" / "out"
    job = Running(session, gate, output)
    pids = {gate.reached(), gate.reached()}
    lost = next(info for info in session.workers if info.pid in pids and info.node != cluster.head_node.node_id)
    node = next(node for node in cluster.list_all_nodes() if node.node_id == lost.node)
    os.kill(lost.pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    gate.open()
    result = job.result()
    seen = figures(result, output)
    return {**seen, "right": seen["parts"] == [gate.right.decode()], "lost": lost.domain}


def lives_on(pid: int) -> bool:
    """Whether a process has not ended a while after its cluster did: Ray kills workers, and does not wait for them."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not readable(fd, END_MAX_S)
    finally:
        os.close(fd)


def main(text: str, folder: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    detective.LIMIT_S = 120.0  # a machine under load must not change what is found out
    cluster = Cluster()
    for _ in range(NODES):
        cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    store = folder / "store"
    seen: dict[str, Any] = {}
    with Session(Place("ray", store=str(store))) as session:
        seen["domains"] = session.domains
        seen["nodes"] = len({info.node for info in session.workers})
        seen["plain"] = count(session, text, folder, "plain")
        faults = {
            "wire": "wire:reduce:2", "swap": "swap:map:2", "lose": "lose:map:2", "wrong": "wrong:map:1@first",
            "crash": "crash:map:1",
        }  # fmt: skip
        for name, fault in faults.items():
            seen[name] = count(session, text, folder, name, faults=(fault,))
        seen["f2"] = count(session, text, folder, "f2", f=2, faults=("flip:map:2", "lie:reduce:1"))
        seen["killed"] = kill_a_node(session, cluster, folder)
        seen["afterwards"] = count(session, text, folder, "afterwards", faults=("flip:all:2",))
        pids = [info.pid for info in session.workers]
    seen["left"] = sorted(str(path.relative_to(store)) for path in store.rglob("*"))
    ray.shutdown()
    cluster.shutdown()
    seen["alive"] = [pid for pid in pids if lives_on(pid)]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
