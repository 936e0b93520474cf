"""A Ray of one node, and commands that reach it by its address, or do not. Run by test_ray_address.py.

A process of its own, because a process connects to one Ray at a time. Prints one JSON object: what was seen.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import quoreduce.runtime.ray  # noqa: F401 - sets Ray's environment, which counts only before Ray is imported

COMMAND_TIMEOUT_S = 150.0


def command(*arguments: str, **env: str) -> list[object]:
    """Run the command line: its exit code, and what it said last."""
    done = subprocess.run(
        [sys.executable, "-m", "quoreduce.cli", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=COMMAND_TIMEOUT_S, check=False, env={**os.environ, **env},
    )  # fmt: skip
    return [done.returncode, (done.stderr or done.stdout).strip().splitlines()[-1]]


def main(text: str, folder: Path) -> None:
    os.environ["RAY_TMPDIR"] = str(folder)
    (folder / "ray").mkdir()
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        node = cluster.add_node(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, temp_dir=str(folder))
        run = ("run", "wordcount", text, "--reducers", "2", "--domain", "worker", "--workers", "2", "--quiet")
        seen = {"run": command(*run[:3], str(folder / "out"), *run[3:], "--address", cluster.address)}
        gcs = int(node.all_processes["gcs_server"][0].process.pid)
        os.kill(gcs, signal.SIGSTOP)
        try:
            seen["stopped"] = command(*run[:3], str(folder / "none"), *run[3:], RAY_ADDRESS=cluster.address)
        finally:
            os.kill(gcs, signal.SIGCONT)
    finally:
        cluster.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
