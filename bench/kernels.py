"""Kernels, one core each: what a GB or a key takes, in memory, on the data and in the sizes that the engine uses.

asv takes less for better everywhere; so these are times, not rates: 1000 / (ms/GB) = GB/s, 1000 / (ns/key) = Mkeys/s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import data, measure

SPLIT_BYTES = 64_000_000
PARTITIONS = 16
CHUNK_RECORDS = 10_000
KEY = bytes(range(16))
UPDATES = {"64 KiB": 1 << 16, "1 MiB": 1 << 20, "16 MiB": 1 << 24}


class Text:
    """Kernels of the word count, over one split of 64 MB."""

    timeout = 600

    def setup_cache(self) -> str:
        data.prepare()
        return str(data.text())

    setup_cache.timeout = 1800  # type: ignore[attr-defined]

    def setup(self, path: str) -> None:
        data.prepare()
        import numpy as np

        from quoreduce_kernels.words import WordCounter

        self.split = np.fromfile(path, np.uint8, SPLIT_BYTES)
        self.counter = WordCounter()

    def track_word_count(self, path: str) -> float:
        return measure.ms_per_gb(lambda: self.counter.count(self.split), self.split.size)

    track_word_count.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_scan_lines(self, path: str) -> float:
        """Find the lines that begin with ``the``, and how many lines there are."""
        from quoreduce_kernels.prefix import select_lines

        return measure.ms_per_gb(lambda: select_lines(self.split, b"the"), self.split.size)

    track_scan_lines.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_merge_of_counts(self, path: str) -> float:
        """For each distinct word of each run."""
        from quoreduce_kernels.words import merge_counts

        runs = [self._run(piece) for piece in range(PARTITIONS)]
        return measure.ns_per_key(lambda: merge_counts(runs), sum(len(run[2]) for run in runs))

    track_merge_of_counts.unit = "ns/key"  # type: ignore[attr-defined]

    def _run(self, piece: int) -> Any:
        """What was counted in the piece of the split of this number, as columns."""
        import numpy as np

        step = self.split.size // PARTITIONS
        self.counter.count(self.split[piece * step : (piece + 1) * step])
        entries, nbytes = self.counter.partition_sizes(1)
        columns = (np.empty(entries[0] + 1, np.int64), np.empty(nbytes[0], np.uint8), np.empty(entries[0], np.uint64))
        self.counter.fill(0, *columns)
        return columns


class Digests:
    """Digests of a stream, over 64 MB in updates of one size. 1 MiB is what the engine mostly does.

    ``blake3`` is ours, for the vote, and ``blake3 package`` that of the package of this name, for comparison; ``fast``
    is the fingerprint over bytes that are no records; ``checksum`` is that of blocks in the plain mode.
    """

    params = (["blake3", "blake3 package", "fast", "checksum"], ["64 KiB", "1 MiB", "16 MiB"])
    param_names = ("digest", "update")
    timeout = 600

    def setup_cache(self) -> str:
        data.prepare()
        return str(data.text())

    setup_cache.timeout = 1800  # type: ignore[attr-defined]

    def setup(self, path: str, digest: str, update: str) -> None:
        data.prepare()
        import numpy as np

        self.split = np.fromfile(path, np.uint8, SPLIT_BYTES)

    def track_stream(self, path: str, digest: str, update: str) -> float:
        start, nbytes = self._start(digest), UPDATES[update]

        def stream() -> bytes:
            stream = start()
            for first in range(0, self.split.size, nbytes):
                stream.update(self.split[first : first + nbytes])
            return bytes(stream.digest())

        return measure.ms_per_gb(stream, self.split.size)

    track_stream.unit = "ms/GB"  # type: ignore[attr-defined]

    def _start(self, digest: Any) -> Callable[[], Any]:
        """What makes a stream."""
        from blake3 import blake3

        from quoreduce.data.digest import Digester

        if digest == "blake3 package":
            return blake3
        return Digester(digest, KEY if digest == "fast" else b"").stream


class Pairs:
    """Kernels of key/value pairs, over one part of GridMix's text."""

    timeout = 600

    def setup_cache(self) -> str:
        data.prepare()
        return str(next(iter(sorted((data.gridmix() / "varinfltext").glob("part-*")))))

    setup_cache.timeout = 1800  # type: ignore[attr-defined]

    def setup(self, path: str) -> None:
        data.prepare()
        import numpy as np

        from quoreduce_kernels import pairs

        self.text = np.fromfile(path, np.uint8)
        self.rows = pairs.lines(self.text)

    def track_lines(self, path: str) -> float:
        """Lines of a text as pairs."""
        from quoreduce_kernels import pairs

        return measure.ms_per_gb(lambda: pairs.lines(self.text), self.text.size)

    track_lines.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_partition(self, path: str) -> float:
        from quoreduce_kernels import pairs

        return measure.ns_per_key(lambda: pairs.partition(self.rows, PARTITIONS), len(self.rows))

    track_partition.unit = "ns/key"  # type: ignore[attr-defined]

    def track_columns(self, path: str) -> float:
        """Values of all partitions into columns, 1 MB at a time, as a map does."""
        import numpy as np

        from quoreduce_kernels import pairs

        order = pairs.by_partition(*pairs.partition(self.rows, PARTITIONS))
        chunk = np.zeros(CHUNK_RECORDS * data.RECORD_BYTES, np.uint8)

        def gather() -> None:
            for _ in pairs.column_chunks(self.rows, order, "values", chunk):
                pass

        return measure.ms_per_gb(gather, self.rows.value_bytes)

    track_columns.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_sort(self, path: str) -> float:
        from quoreduce_kernels import pairs

        return measure.ns_per_key(lambda: pairs.sort(self.rows), len(self.rows))

    track_sort.unit = "ns/key"  # type: ignore[attr-defined]

    def track_sorted_text(self, path: str) -> float:
        """Pairs in sorted order as lines, 1 MB at a time."""
        import numpy as np

        from quoreduce_kernels import pairs

        order, _ = pairs.sort(self.rows)
        chunk = np.zeros(CHUNK_RECORDS * data.RECORD_BYTES, np.uint8)

        def write() -> None:
            for _ in pairs.text_chunks(self.rows, order, chunk):
                pass

        return measure.ms_per_gb(write, self.text.size)

    track_sorted_text.unit = "ms/GB"  # type: ignore[attr-defined]


class Records:
    """Kernels of the sort, over all records: partition and scatter as a map does, sort and gather as a reduce does."""

    timeout = 600

    def setup_cache(self) -> str:
        data.prepare()
        return str(data.records())

    setup_cache.timeout = 1800  # type: ignore[attr-defined]

    def setup(self, path: str) -> None:
        data.prepare()
        import numpy as np

        self.records = np.fromfile(path, np.uint8)
        self.count = self.records.size // data.RECORD_BYTES

    def track_radix_sort(self, path: str) -> float:
        """The sort alone: words of 40 bits of key and 24 bits of number."""
        import numpy as np

        from quoreduce_kernels.radix import sort_u64
        from quoreduce_kernels.records import PIECE_RECORDS_MAX

        count = min(self.count, PIECE_RECORDS_MAX)
        index = np.arange(count, dtype=np.uint64)
        keys = np.random.default_rng(1).integers(0, 1 << 40, count, np.uint64)
        source = keys << np.uint64(24) | index
        words, other = source.copy(), np.zeros_like(source)
        largest = (1 << 64) - 1
        return measure.ns_per_key(
            lambda: sort_u64(words, other, 0, count, 0, largest), count, lambda: np.copyto(words, source)
        )

    track_radix_sort.unit = "ns/key"  # type: ignore[attr-defined]

    def track_sort_keys(self, path: str) -> float:
        """Read the keys out of the records, sort, repair ties."""
        sorter = self._sorter()
        return measure.ns_per_key(lambda: sorter.sort([self.records]), self.count)

    track_sort_keys.unit = "ns/key"  # type: ignore[attr-defined]

    def track_gather(self, path: str) -> float:
        """Records in sorted order, 1 MB at a time."""
        import numpy as np

        sorter = self._sorter()
        sorter.sort([self.records])
        chunk = np.zeros(CHUNK_RECORDS * data.RECORD_BYTES, np.uint8)

        def gather() -> None:
            for low in range(0, self.count, CHUNK_RECORDS):
                high = min(low + CHUNK_RECORDS, self.count)
                sorter.gather(low, high, chunk[: (high - low) * data.RECORD_BYTES])

        return measure.ms_per_gb(gather, self.records.size)

    track_gather.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_partition(self, path: str) -> float:
        from quoreduce_kernels.records import plan_partition

        splits = self._splits()
        return measure.ns_per_key(lambda: plan_partition(self.records, splits), self.count)

    track_partition.unit = "ns/key"  # type: ignore[attr-defined]

    def track_scatter(self, path: str) -> float:
        import numpy as np

        from quoreduce_kernels.records import plan_partition, scatter

        ids, counts = plan_partition(self.records, self._splits())
        targets = [np.zeros(n * data.RECORD_BYTES, np.uint8) for n in counts.tolist()]
        return measure.ms_per_gb(lambda: scatter(self.records, ids, targets), self.records.size)

    track_scatter.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_scan(self, path: str) -> float:
        """Find the records that begin with ``~``, one in 95, and copy them."""
        import numpy as np

        from quoreduce_kernels.prefix import copy_records, select_records

        target = np.zeros(self.records.size, np.uint8)

        def scan() -> None:
            picks = select_records(self.records, b"~")
            copy_records(self.records, picks, target[: picks.size * data.RECORD_BYTES])

        return measure.ms_per_gb(scan, self.records.size)

    track_scan.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_fingerprint(self, path: str) -> float:
        import numpy as np

        from quoreduce_kernels.fingerprint import fingerprints

        out = np.zeros((self.count, 2), np.uint64)
        return measure.ms_per_gb(lambda: fingerprints(self.records, data.RECORD_BYTES, KEY, out), self.records.size)

    track_fingerprint.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_multiset_and_order(self, path: str) -> float:
        from quoreduce_kernels.fingerprint import multiset128

        return measure.ms_per_gb(lambda: multiset128(self.records, KEY), self.records.size)

    track_multiset_and_order.unit = "ms/GB"  # type: ignore[attr-defined]

    def track_merge_of_runs(self, path: str) -> float:
        """Merge of 16 sorted runs, 1 MB at a time."""
        import numpy as np

        from quoreduce_kernels.records import RunMerger

        runs = self._sorted_runs()
        chunk = np.zeros(CHUNK_RECORDS * data.RECORD_BYTES, np.uint8)

        def merge() -> None:
            merger = RunMerger(runs)
            while merger.next(chunk):
                pass

        return measure.ms_per_gb(merge, sum(run.size for run in runs))

    track_merge_of_runs.unit = "ms/GB"  # type: ignore[attr-defined]

    def _sorter(self) -> Any:
        from quoreduce_kernels.records import RunSorter

        return RunSorter()

    def _splits(self) -> Any:
        from quoreduce_kernels.records import choose_splits, sample_keys

        return choose_splits(sample_keys(self.records, 10_000), PARTITIONS)

    def _sorted_runs(self) -> list[Any]:
        step = self.count // PARTITIONS * data.RECORD_BYTES
        runs = []
        for number in range(PARTITIONS):
            sorter = self._sorter()
            n = sorter.sort([self.records[number * step : (number + 1) * step]])
            runs.append(sorter.gather(0, n).reshape(-1))
        return runs
