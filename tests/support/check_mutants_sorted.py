"""Wrong outputs of sorts against the checks: of 100-byte records, and of pairs of any length (see check_mutants)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
from check_mutants import REFUSED, U8, Findings, Verdict, array, compared, flipped, two

from quoreduce_kernels import pairs
from quoreduce_kernels.check_hash import Refused, Sum
from quoreduce_kernels.pair_sums import sum_pair_lines, sum_pairs, sum_pairs_text
from quoreduce_kernels.record_sums import sum_records, sum_sorted, sum_split, sum_tied, sum_witnessed, tied_keys
from quoreduce_kernels.records import RunSorter, choose_splits, plan_partition, sample_keys, scatter

Pair = tuple[bytes, bytes]
Witness = list[tuple[int, int]]


def added(sums: list[Sum]) -> Sum:
    total = Sum()
    for one in sums:
        total = total.plus(one)
    return total


def columns_of(witness: Witness) -> tuple[U8, U8]:
    both = np.array(witness, np.uint32).reshape(-1, 2)
    return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])


class Sort:
    """A sort of some maps: the blocks of one of them, and one part with the witness of its ties."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.key = rng, rng.randbytes(32)
        draw = np.random.default_rng(rng.getrandbits(64))
        self.maps = [
            draw.integers(32, 127, (rng.randrange(12, 120), 100), np.uint8) for _ in range(rng.randrange(1, 4))
        ]
        letters = rng.choice((2, 3, 26))
        for records in self.maps:
            records[:, :10] = draw.integers(65, 65 + letters, (len(records), 10))
        self.partitions = rng.randrange(1, 6)
        splits = choose_splits(sample_keys(self.maps[0], 50), self.partitions)
        self.blocks = [blocks_of(records, splits) for records in self.maps]
        self.loose = [sum_split(records, splits, self.key) for records in self.maps]
        self.placed = sum_split(self.maps[0], splits, self.key, placed=True)
        self.r = max(range(self.partitions), key=lambda r: sum(len(blocks[r]) for blocks in self.blocks))
        self.part, self.witness = self.sorted_part()
        self.given = added([sums[self.r] for sums in self.loose])

    def sorted_part(self) -> tuple[U8, Witness]:
        """The part, and (map, place in its split) of the tied records, in their order."""
        sorter, runs = RunSorter(), [blocks[self.r] for blocks in self.blocks]
        part = sorter.gather(0, sorter.sort(runs))
        place = [{record.tobytes(): i for i, record in enumerate(records)} for records in self.maps]
        of = [(m, place[m][record.tobytes()]) for m, run in enumerate(runs) for record in run]
        tied = {key.tobytes() for key in tied_keys(part)}
        order = sorter.order().tolist()
        return part, [of[i] for i, record in zip(order, part, strict=True) if record[:10].tobytes() in tied]

    def block(self, r: int, rows: U8) -> Verdict:
        """What the check says of block r of the first map."""
        return compared(sum_records(rows, self.key, first=0), self.placed[r])

    def blocks_changed(self, changed: dict[int, U8]) -> Verdict:
        """What it says of some blocks: all have to be accepted."""
        verdicts = [self.block(r, rows) for r, rows in changed.items()]
        return all(accepted for accepted, _ in verdicts), None

    def loosely(self, rows: U8) -> Verdict:
        """What the check says of a part, ties aside."""
        found = sum_sorted(rows, self.key)
        return REFUSED if found.defects else compared(found.sum, self.given)

    def verdict(self, rows: U8, witness: Witness) -> Verdict:
        """What it says of a part with a witness of its ties."""
        if not self.loosely(rows)[0]:
            return REFUSED
        tied = tied_keys(rows)
        expected = [sum_tied(records, tied, self.key) for records in self.maps]
        sums, defects = sum_witnessed(rows, *columns_of(witness), len(self.maps), self.key)
        weak = all(a.low >> 56 == b.low >> 56 for a, b in zip(sums, expected, strict=True))
        alike = [one.items for one in sums] == [one.items for one in expected]
        return (sums == expected, weak if alike else None) if not defects else REFUSED

    def map_mutants(self) -> Iterator[tuple[str, Verdict]]:
        """Faults in the blocks of the first map."""
        rng = self.rng
        r = max(range(self.partitions), key=lambda r: len(self.blocks[0][r]))
        rows = self.blocks[0][r]
        i, j = two(rng, len(rows)) if len(rows) > 1 else (0, 0)
        yield "sort map: bit of a block", self.block(r, flipped(rng, rows.reshape(-1)))
        yield "sort map: record lost", self.block(r, np.delete(rows, i, 0))
        yield "sort map: record twice", self.block(r, np.insert(rows, i, rows[i], 0))
        words = rows.copy()
        words[i, 16:32], words[i, 32:48] = rows[i, 32:48], rows[i, 16:32]
        yield "sort map: words of a record swapped", self.block(r, words)
        if i != j:
            yield "sort map: records swapped", self.block(r, replaced(rows, {i: rows[j], j: rows[i]}))
            yield "sort map: record overwritten by another", self.block(r, replaced(rows, {i: rows[j]}))
            cut = 16 * rng.randrange(1, 6)
            tails = {i: np.append(rows[i, :cut], rows[j, cut:]), j: np.append(rows[j, :cut], rows[i, cut:])}
            yield "sort map: tails of records swapped", self.block(r, replaced(rows, tails))
        for s, other in enumerate(self.blocks[0]):
            if s != r and len(other):
                k = rng.randrange(len(other))
                moved = {r: np.delete(rows, i, 0), s: np.insert(other, k, rows[i], 0)}
                yield "sort map: record in another partition", self.blocks_changed(moved)
                exchanged = {r: replaced(rows, {i: other[k]}), s: replaced(other, {k: rows[i]})}
                yield "sort map: exchanged between partitions", self.blocks_changed(exchanged)

    def part_mutants(self) -> Iterator[tuple[str, Verdict]]:
        """Faults in the part, its witness being right."""
        rng, part, right = self.rng, self.part, self.witness
        i, j = two(rng, len(part))
        yield "sort part: bit", self.loosely(flipped(rng, part.reshape(-1)))
        yield "sort part: record lost", self.loosely(np.delete(part, i, 0))
        yield "sort part: record twice", self.loosely(np.insert(part, i, part[i], 0))
        yield "sort part: record overwritten by another", self.loosely(replaced(part, {i: part[j]}))
        swapped = replaced(part, {i: part[j], j: part[i]})
        yield "sort part: bit, with a witness", self.verdict(flipped(rng, part.reshape(-1)).reshape(-1, 100), right)
        yield "sort part: records swapped, with a witness", self.verdict(swapped, right)
        if (part[i, :10] != part[j, :10]).any():
            yield "sort part: records swapped", self.loosely(swapped)
        k = int(rng.randrange(1, len(part)))
        if (part[k, :10] != part[k - 1, :10]).any():
            tails = {k: np.append(part[k, :10], part[k - 1, 10:]), k - 1: np.append(part[k - 1, :10], part[k, 10:])}
            yield "sort part: values of neighbours swapped", self.loosely(replaced(part, tails))

    def witness_mutants(self) -> Iterator[tuple[str, Verdict]]:
        """Faults in the order of ties, and in the witness."""
        rng, part, right = self.rng, self.part, self.witness
        if len(right) < 2:
            return
        tied = {key.tobytes() for key in tied_keys(part)}
        rows = [i for i, record in enumerate(part) if record[:10].tobytes() in tied]
        k = rng.randrange(1, len(right))
        i, j = rows[k - 1], rows[k]
        lie = [*right[: k - 1], right[k], right[k - 1], *right[k + 1 :]]
        yield "sort part: entries of the witness swapped", self.verdict(part, lie)
        if (part[i, :10] == part[j, :10]).all():
            swapped = replaced(part, {i: part[j], j: part[i]})
            yield "sort part: ties swapped", self.verdict(swapped, right)
            yield "sort part: ties and witness swapped", self.verdict(swapped, lie)
        m, place = right[k]
        bit = 1 << rng.randrange(32)
        yield "sort part: bit of a place", self.verdict(part, [*right[:k], (m, place ^ bit), *right[k + 1 :]])
        yield "sort part: bit of a map", self.verdict(part, [*right[:k], (m ^ bit, place), *right[k + 1 :]])
        yield "sort part: witness too short", self.verdict(part, right[:-1])
        yield "sort part: witness too long", self.verdict(part, [*right, (m, place + 1000)])

    def play(self, found: Findings, bits: int, rounds: int) -> None:
        """Judge the honest blocks and part, and mutants of all kinds."""
        found.trust("sort: blocks", self.blocks_changed(dict(enumerate(self.blocks[0]))))
        found.trust("sort: part", self.verdict(self.part, self.witness))
        found.trust("sort: part, any order", self.loosely(self.part))
        for turn in range(bits // 2 + rounds):
            for kinds in (self.map_mutants, self.part_mutants, self.witness_mutants):
                if turn < rounds:
                    for kind, verdict in kinds():
                        found.judge(kind, verdict)
            if turn >= rounds:
                found.judge("sort part: bit", self.loosely(flipped(self.rng, self.part.reshape(-1))))


def blocks_of(records: U8, splits: U8) -> list[U8]:
    """The output of a map of the sort."""
    ids, counts = plan_partition(records, splits)
    blocks = [np.empty((int(n), 100), np.uint8) for n in counts]
    scatter(records, ids, [block.reshape(-1) for block in blocks])
    return blocks


def replaced(rows: U8, edits: dict[int, U8]) -> U8:
    copy = rows.copy()
    for i, row in edits.items():
        copy[i] = row
    return copy


class PairSort:
    """A sort of lines ``key TAB value``: a block of its first map, and one part with its witness."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.key, self.partitions = rng, rng.randbytes(32), rng.randrange(1, 4)
        self.maps = [self.some_pairs(rng.randrange(4, 60)) for _ in range(rng.randrange(1, 4))]
        rows = [(pair, (m, i)) for m, some in enumerate(self.maps) for i, pair in enumerate(some)]
        parts = [[row for row in rows if partition_of(row[0][0], self.partitions) == r] for r in range(self.partitions)]
        self.r = max(range(self.partitions), key=lambda r: len(parts[r]))
        part = sorted(parts[self.r], key=lambda row: (row[0][0], row[1]))
        self.part, self.witness = [pair for pair, _ in part], [place for _, place in part]
        self.mine = [pair for pair, (m, _) in parts[self.r] if m == 0]
        others = [pair for r, some in enumerate(parts) if r != self.r for pair, _ in some]
        self.stranger = others[0] if others else None
        self.given = [self.of_text([pair for pair, (m, _) in part if m == k]) for k in range(len(self.maps))]

    def some_pairs(self, n: int) -> list[Pair]:
        """Pairs with keys that repeat, and values of 0 to 200 bytes."""
        rng = self.rng
        values = [rng.randbytes(rng.choice((0, 5, 16, 40, 200))).replace(b"\n", b"") for _ in range(n)]
        return [(b"key%d" % rng.randrange(12) * rng.randrange(1, 5), value.replace(b"\r", b"")) for value in values]

    def of_text(self, rows: list[Pair]) -> Sum:
        """What the lines of an input add up to."""
        return sum_pairs_text(array(b"".join(b"%s\t%s\n" % pair for pair in rows)), self.key)

    def block(self, rows: list[Pair], places: list[int] | None = None) -> Verdict:
        """What the check says of the first map's block, each pair in its place."""
        made = []
        for values in zip(*rows, strict=True) if rows else ((), ()):
            made += [np.cumsum([0, *map(len, values)], dtype=np.int64), array(b"".join(values))]
        for column, shift in enumerate(places or []):
            made[2 * column][1:-1] += shift
        try:
            found = sum_pairs(*made, self.r, self.partitions, self.key, first=0)
        except Refused:
            return REFUSED
        text = array(b"".join(b"%s\t%s\n" % pair for pair in self.mine))
        return compared(found, sum_pairs_text(text, self.key, placed=True))

    def lines(self, raw: bytes) -> Verdict:
        """What the check says of a part, ties aside."""
        try:
            found = sum_pair_lines(array(raw), self.r, self.partitions, self.key)
        except Refused:
            return REFUSED
        return compared(found.sums[0], added(self.given))

    def verdict(self, rows: list[Pair], witness: Witness) -> Verdict:
        """What it says of a part with a witness of all lines; against all lines of the maps, in their places."""
        text = array(b"".join(b"%s\t%s\n" % pair for pair in rows))
        whole = *columns_of(witness), len(self.maps)
        places = dict(zip(self.witness, self.part, strict=True))
        expected = [
            added([self.in_place(pair, i) for (k, i), pair in places.items() if k == m]) for m in range(len(self.maps))
        ]
        try:
            sums = sum_pair_lines(text, self.r, self.partitions, self.key, witness=whole).sums
        except Refused:
            return REFUSED
        alike = [one.items for one in sums] == [one.items for one in expected]
        weak = all(a.low >> 56 == b.low >> 56 for a, b in zip(sums, expected, strict=True))
        return sums == expected, weak if alike else None

    def in_place(self, pair: Pair, place: int) -> Sum:
        columns = [part for data in pair for part in (np.array([0, len(data)]), array(data))]
        return sum_pairs(*columns, self.r, self.partitions, self.key, first=place)

    def block_mutants(self) -> Iterator[tuple[str, Verdict]]:
        """Faults in the block."""
        rng, rows = self.rng, self.mine
        if len(rows) < 2:
            return
        i, j = two(rng, len(rows))
        (a, x), (b, y) = rows[i], rows[j]
        yield "pairs map: pair lost", self.block(rows[:i] + rows[i + 1 :])
        yield "pairs map: pair twice", self.block([*rows[:i], rows[i], *rows[i:]])
        yield "pairs map: byte of a key", self.block(with_pairs(rows, {i: (a[:-1] + bytes([a[-1] ^ 1]), x)}))
        yield "pairs map: value one longer", self.block(with_pairs(rows, {i: (a, x + b"\0")}))
        if (a, x) != (b, y):
            yield "pairs map: pairs swapped", self.block(with_pairs(rows, {i: (b, y), j: (a, x)}))
        if a != b and x != y:
            yield "pairs map: values swapped", self.block(with_pairs(rows, {i: (a, y), j: (b, x)}))
        if self.stranger:
            yield "pairs map: pair of another partition", self.block(with_pairs(rows, {i: self.stranger}))
        if any(value for _, value in rows[:-1]):
            yield "pairs map: values begin elsewhere", self.block(rows, [0, 1])
        yield "pairs map: keys begin elsewhere", self.block(rows, [1, 0])

    def part_mutants(self) -> Iterator[tuple[str, Verdict]]:
        """Faults in the part."""
        rng, rows, right = self.rng, self.part, self.witness
        lines = [b"%s\t%s\n" % pair for pair in rows]
        i, j = two(rng, len(rows))
        (a, x), (b, y) = rows[i], rows[j]
        yield "pairs part: bit", self.lines(flipped(rng, array(b"".join(lines))).tobytes())
        yield "pairs part: line lost", self.lines(b"".join(lines[:i] + lines[i + 1 :]))
        yield "pairs part: line twice", self.lines(b"".join([*lines[:i], lines[i], *lines[i:]]))
        yield "pairs part: cut off", self.lines(b"".join(lines)[: rng.randrange(sum(map(len, lines)))])
        yield "pairs part: CR LF", self.lines(b"".join([*lines[:i], lines[i][:-1] + b"\r\n", *lines[i + 1 :]]))
        yield "pairs part: tab lost", self.lines(b"".join([*lines[:i], a + x + b"\n", *lines[i + 1 :]]))
        if x and x[:1] != b"\t":  # else nothing changes
            moved = b"%s%c\t%s\n" % (a, x[0], x[1:])
            yield "pairs part: tab moved", self.lines(b"".join([*lines[:i], moved, *lines[i + 1 :]]))
        if a != b and x != y:
            swapped = with_pairs(rows, {i: (a, y), j: (b, x)})
            yield "pairs part: values swapped", self.lines(b"".join(b"%s\t%s\n" % pair for pair in swapped))
        if a != b:
            swapped = with_pairs(rows, {i: (b, y), j: (a, x)})
            yield "pairs part: lines swapped", self.lines(b"".join(b"%s\t%s\n" % pair for pair in swapped))
        if (a, x) != (b, y):
            yield "pairs part: lines swapped, with a witness", self.verdict(
                with_pairs(rows, {i: (b, y), j: (a, x)}), right
            )  # fmt: skip
        lie = list(right)
        lie[i], lie[j] = right[j], right[i]
        yield "pairs part: entries of the witness swapped", self.verdict(rows, lie)
        lie[i] = right[i][0], right[i][1] ^ 1 << rng.randrange(32)
        lie[j] = right[j]
        yield "pairs part: bit of a place", self.verdict(rows, lie)

    def play(self, found: Findings, bits: int, rounds: int) -> None:
        """Judge the honest block and part, and mutants of all kinds."""
        found.trust("pairs: block", self.block(self.mine))
        found.trust("pairs: part", self.verdict(self.part, self.witness))
        found.trust("pairs: part, any order", self.lines(b"".join(b"%s\t%s\n" % pair for pair in self.part)))
        for turn in range(bits // 2 + rounds):
            if turn >= rounds:
                raw = flipped(self.rng, array(b"".join(b"%s\t%s\n" % pair for pair in self.part)))
                found.judge("pairs part: bit", self.lines(raw.tobytes()))
                continue
            for kinds in (self.block_mutants, self.part_mutants):
                for kind, verdict in kinds():
                    found.judge(kind, verdict)


def with_pairs(rows: list[Pair], edits: dict[int, Pair]) -> list[Pair]:
    copy = list(rows)
    for i, pair in edits.items():
        copy[i] = pair
    return copy


def partition_of(key: bytes, partitions: int) -> int:
    """As the executor's kernel has it."""
    ids, _ = pairs.partition(pairs.lines(array(key + b"\t\n")), partitions)
    return int(ids[0])
