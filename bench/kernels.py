"""Kernels, one core each: rates over data in memory, on the data and in the sizes that the engine uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import data, measure

SPLIT_BYTES = 64_000_000
PARTITIONS = 16
CHUNK_RECORDS = 10_000
KEY = bytes(range(16))
HASH_BYTES = 1 << 20


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

    def track_word_count_gb_s(self, path: str) -> float:
        return measure.rate(lambda: self.counter.count(self.split), self.split.size)

    track_word_count_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_scan_lines_gb_s(self, path: str) -> float:
        """Find the lines that begin with ``the``, and how many lines there are."""
        from quoreduce_kernels.prefix import select_lines

        return measure.rate(lambda: select_lines(self.split, b"the"), self.split.size)

    track_scan_lines_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_merge_of_counts_mkeys_s(self, path: str) -> float:
        """Distinct words of all runs a second."""
        from quoreduce_kernels.words import merge_counts

        runs = [self._run(piece) for piece in range(PARTITIONS)]
        return measure.millions(lambda: merge_counts(runs), sum(len(run[2]) for run in runs))

    track_merge_of_counts_mkeys_s.unit = "Mkeys/s"  # type: ignore[attr-defined]

    def _run(self, piece: int) -> Any:
        """What was counted in the piece of the split of this number, as columns."""
        import numpy as np

        step = self.split.size // PARTITIONS
        self.counter.count(self.split[piece * step : (piece + 1) * step])
        entries, nbytes = self.counter.partition_sizes(1)
        columns = (np.empty(entries[0] + 1, np.int64), np.empty(nbytes[0], np.uint8), np.empty(entries[0], np.uint64))
        self.counter.fill(0, *columns)
        return columns

    def track_blake3_gb_s(self, path: str) -> float:
        """The digest of the vote."""
        return self._digest("blake3")

    track_blake3_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_blake3_package_gb_s(self, path: str) -> float:
        """For comparison, the same by the package blake3."""
        from blake3 import blake3

        return self._stream(blake3)

    track_blake3_package_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_checksum_gb_s(self, path: str) -> float:
        """The block checksum of the plain mode."""
        return self._digest("checksum")

    track_checksum_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_fast_digest_gb_s(self, path: str) -> float:
        """The digest ``fast`` over bytes that are no records."""
        return self._digest("fast")

    track_fast_digest_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def _digest(self, algorithm: Any) -> float:
        from quoreduce.data.digest import Digester

        return self._stream(Digester(algorithm, KEY if algorithm == "fast" else b"").stream)

    def _stream(self, start: Callable[[], Any]) -> float:
        """Bytes a second into a stream, in updates of 1 MiB."""

        def digest() -> bytes:
            stream = start()
            for first in range(0, self.split.size, HASH_BYTES):
                stream.update(self.split[first : first + HASH_BYTES])
            return bytes(stream.digest())

        return measure.rate(digest, self.split.size)


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

    def track_radix_sort_mkeys_s(self, path: str) -> float:
        """The sort alone: words of 40 bits of key and 24 bits of number."""
        import numpy as np

        from quoreduce_kernels import records as kernels

        count = min(self.count, kernels.PIECE_RECORDS_MAX)
        index = np.arange(count, dtype=np.uint64)
        keys = np.random.default_rng(1).integers(0, 1 << 40, count, np.uint64)
        source = keys << np.uint64(24) | index
        words, other = source.copy(), np.zeros_like(source)
        largest = (1 << 64) - 1
        return measure.millions(
            lambda: kernels._radix_sort(words, other, 0, count, 0, largest), count, lambda: np.copyto(words, source)
        )

    track_radix_sort_mkeys_s.unit = "Mkeys/s"  # type: ignore[attr-defined]

    def track_sort_keys_mkeys_s(self, path: str) -> float:
        """Read the keys out of the records, sort, repair ties."""
        sorter = self._sorter()
        return measure.millions(lambda: sorter.sort([self.records]), self.count)

    track_sort_keys_mkeys_s.unit = "Mkeys/s"  # type: ignore[attr-defined]

    def track_gather_gb_s(self, path: str) -> float:
        """Records in sorted order, 1 MB at a time."""
        import numpy as np

        sorter = self._sorter()
        sorter.sort([self.records])
        chunk = np.zeros(CHUNK_RECORDS * data.RECORD_BYTES, np.uint8)

        def gather() -> None:
            for low in range(0, self.count, CHUNK_RECORDS):
                high = min(low + CHUNK_RECORDS, self.count)
                sorter.gather(low, high, chunk[: (high - low) * data.RECORD_BYTES])

        return measure.rate(gather, self.records.size)

    track_gather_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_partition_mkeys_s(self, path: str) -> float:
        from quoreduce_kernels.records import plan_partition

        splits = self._splits()
        return measure.millions(lambda: plan_partition(self.records, splits), self.count)

    track_partition_mkeys_s.unit = "Mkeys/s"  # type: ignore[attr-defined]

    def track_scatter_gb_s(self, path: str) -> float:
        import numpy as np

        from quoreduce_kernels.records import plan_partition, scatter

        ids, counts = plan_partition(self.records, self._splits())
        targets = [np.zeros(n * data.RECORD_BYTES, np.uint8) for n in counts.tolist()]
        return measure.rate(lambda: scatter(self.records, ids, targets), self.records.size)

    track_scatter_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_scan_gb_s(self, path: str) -> float:
        """Find the records that begin with ``~``, one in 95, and copy them."""
        import numpy as np

        from quoreduce_kernels.prefix import copy_records, select_records

        target = np.zeros(self.records.size, np.uint8)

        def scan() -> None:
            picks = select_records(self.records, b"~")
            copy_records(self.records, picks, target[: picks.size * data.RECORD_BYTES])

        return measure.rate(scan, self.records.size)

    track_scan_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_fingerprint_gb_s(self, path: str) -> float:
        import numpy as np

        from quoreduce_kernels.fingerprint import fingerprints

        out = np.zeros((self.count, 2), np.uint64)
        return measure.rate(lambda: fingerprints(self.records, data.RECORD_BYTES, KEY, out), self.records.size)

    track_fingerprint_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_multiset_and_order_gb_s(self, path: str) -> float:
        from quoreduce_kernels.fingerprint import multiset128

        return measure.rate(lambda: multiset128(self.records, KEY), self.records.size)

    track_multiset_and_order_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

    def track_merge_of_runs_gb_s(self, path: str) -> float:
        """Merge of 16 sorted runs, 1 MB at a time."""
        import numpy as np

        from quoreduce_kernels.records import RunMerger

        runs = self._sorted_runs()
        chunk = np.zeros(CHUNK_RECORDS * data.RECORD_BYTES, np.uint8)

        def merge() -> None:
            merger = RunMerger(runs)
            while merger.next(chunk):
                pass

        return measure.rate(merge, sum(run.size for run in runs))

    track_merge_of_runs_gb_s.unit = "GB/s"  # type: ignore[attr-defined]

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
