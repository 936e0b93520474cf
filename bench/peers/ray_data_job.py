"""Ray Data on a Ray of two CPUs of its own; script.py says how it is called."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.peers.ranges import count_words, ranges, read_records, write_strings, write_words
from bench.peers.script import run_all

if TYPE_CHECKING:
    import pyarrow as pa


def read(batch: pa.Table, path: str, job: str) -> pa.Table:
    """Records of a range, or words and their counts."""
    import pyarrow as pa

    tables = [
        count_words(path, start) if job == "wordcount" else pa.table({"l": read_records(path, start)})
        for start in batch["id"].to_pylist()
    ]
    return pa.concat_tables(tables)


def keep(batch: pa.Table) -> pa.Table:
    """The records that start with a tilde."""
    import pyarrow.compute as pc

    return batch.filter(pc.starts_with(batch["l"], "~"))


def sink(output: str) -> Any:
    """What writes each block to a file of its own, named so that files are in the order of blocks."""
    from ray.data.block import BlockAccessor
    from ray.data.datasource import Datasink

    class Lines(Datasink[None]):
        def write(self, blocks: Any, ctx: Any) -> None:
            for number, block in enumerate(blocks):
                table = BlockAccessor.for_block(block).to_arrow()
                path = os.path.join(output, f"part-{ctx.task_idx:05d}-{number:05d}")
                if "l" in table.column_names:
                    write_strings(table["l"], path)
                elif table.num_rows:
                    write_words(table["w"].combine_chunks(), table["sum(c)"].combine_chunks(), path)

    return Lines()


def do(job: str, source: str, output: str) -> None:
    """One job, on the Ray of this process."""
    import ray.data

    starts = ranges(source)
    blocks = ray.data.from_items([{"id": at} for at in starts], override_num_blocks=len(starts))
    found = blocks.map_batches(partial(read, path=source, job=job), batch_format="pyarrow", batch_size=None)
    if job == "wordcount":
        found = found.groupby("w", num_partitions=2).sum("c")
    elif job == "sort":
        found = found.sort("l")
    else:
        found = found.map_batches(keep, batch_format="pyarrow", batch_size=None)
    os.makedirs(output)
    found.write_datasink(sink(output))


def main() -> None:
    import ray
    import ray.data

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    run_all(do)
    ray.shutdown()


if __name__ == "__main__":
    main()
