"""Plain Ray, without quoreduce: put objects until some are spilled to disk, flip one bit in each file, read them back.

Run by test_stored_bits_flip.py in a process of its own. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import numpy as np
import ray

OBJECTS = 6
OBJECT_BYTES = 30 << 20
LOOKS_MAX = 600
LOOK_S = 0.1
LOOKS_QUIET = 5


def spilled_files(folder: Path) -> list[Path]:
    """Wait until something was spilled and no more is being written; a bounded number of looks."""
    pause, before, quiet = threading.Event(), {}, 0
    for _ in range(LOOKS_MAX):
        now = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        quiet = quiet + 1 if now == before and any(size > OBJECT_BYTES for size in now.values()) else 0
        if quiet == LOOKS_QUIET:
            break
        before = now
        pause.wait(LOOK_S)
    return list(before)


def flip_one_bit(path: Path) -> None:
    with path.open("r+b") as file:
        position = path.stat().st_size // 4
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x40]))


def main(folder: Path) -> None:
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=100 << 20, object_spilling_directory=str(folder),
    )  # fmt: skip
    references = [ray.put(np.full(OBJECT_BYTES, i, np.uint8)) for i in range(OBJECTS)]
    files = spilled_files(folder)
    for path in files:
        flip_one_bit(path)
    wrong = errors = 0
    for i, reference in enumerate(references):
        try:
            data = ray.get(reference, timeout=60)
            wrong += bool((data != i).any())
            del data
        except ray.exceptions.RayError:
            errors += 1
    ray.shutdown()
    print(json.dumps({"files": len(files), "wrong": wrong, "errors": errors}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
