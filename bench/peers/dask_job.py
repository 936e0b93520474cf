"""Dask, two worker processes; script.py says how it is called."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench.peers.ranges import count_words, ranges, read_records, write_strings, write_words
from bench.peers.script import run_all, scratch

if TYPE_CHECKING:
    import pandas as pd


def counts(start: int, path: str) -> pd.DataFrame:
    """Words and counts of a range."""
    return _frame(count_words(path, start))


def records(start: int, path: str) -> pd.DataFrame:
    """The records of a range."""
    import pyarrow as pa

    return _frame(pa.table({"l": read_records(path, start)}))


def write(frame: pd.DataFrame, path: str) -> None:
    """Write a partition: words with counts, or records."""
    import pyarrow as pa

    if "c" in frame:
        write_words(pa.array(frame["w"]), pa.array(frame["c"]), path)
    else:
        write_strings(pa.array(frame["l"]), path)


def _frame(table: object) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    assert isinstance(table, pa.Table)
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    strings = {name: "string[pyarrow]" for name in frame.columns if name != "c"}
    return frame.astype(strings)


def do(job: str, source: str, output: str) -> None:
    """One job, on the cluster of this process."""
    import dask
    import dask.dataframe as dd

    frame = dd.from_map(counts if job == "wordcount" else records, ranges(source), path=source)
    if job == "wordcount":
        frame = frame.groupby("w")["c"].sum().reset_index()
    else:
        frame = frame.sort_values("l") if job == "sort" else frame[frame["l"].str.startswith("~")]
    os.makedirs(output)
    parts = enumerate(frame.to_delayed())
    dask.compute(*[dask.delayed(write)(part, os.path.join(output, f"part-{i:05d}")) for i, part in parts])


def main() -> None:
    import dask
    from dask.distributed import Client, LocalCluster

    dask.config.set({"distributed.worker.memory.target": False, "distributed.worker.memory.spill": False})
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=0,
        dashboard_address=None,
        local_directory=scratch(),
        host="127.0.0.1",
    )
    with cluster, Client(cluster):
        run_all(do)


if __name__ == "__main__":
    main()
