"""Wrong outputs of word counts against the checks: each is refused, and the right one is not.

A mutant is what a faulty executor might have stored *and* digested itself: so digests are not looked at, only form,
order, partitions and sums under a key that was drawn afterwards. Everything follows from a seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import numpy as np

from quoreduce.data.block import Block
from quoreduce.errors import BlockError
from quoreduce_kernels.check_hash import Refused, Sum
from quoreduce_kernels.word_sums import sum_counts, sum_lines, sum_text
from quoreduce_kernels.words import WordCounter, format_counts, merge_counts

U8 = np.ndarray
Entry = tuple[bytes, int]
Verdict = tuple[bool, bool | None]  # accepted; whether 8 bits of the sum would have accepted, if it came to the sum
LETTERS = b"abcdefghijklmnopqrstuvwxyz\x00\xff'"
SPACES = bytes.maketrans(b"\t\n\r\f", b"    ")
REFUSED: Verdict = (False, None)


@dataclass
class Findings:
    """What came of some cases: mutants by kind, those accepted, honest outputs, those refused, and the weak sums."""

    mutants: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    honest: Counter[str] = field(default_factory=Counter)
    alarms: Counter[str] = field(default_factory=Counter)
    summed: int = 0  # mutants that nothing but the sum gave away
    weakly: int = 0  # of these, those that 8 bits of it would not have given away

    def judge(self, kind: str, verdict: Verdict) -> None:
        """Note what became of a mutant."""
        accepted, weak = verdict
        self.mutants[kind] += 1
        self.missed[kind] += accepted
        self.summed += weak is not None
        self.weakly += bool(weak)

    def trust(self, kind: str, verdict: Verdict) -> None:
        """Note what became of an honest output."""
        self.honest[kind] += 1
        self.alarms[kind] += not verdict[0]


def array(raw: bytes) -> U8:
    return np.frombuffer(raw, np.uint8)


def compared(found: Sum, given: Sum) -> Verdict:
    """Whether sums agree; weakly, if the number of items does, and so only the sum decides."""
    weak = found.low >> 56 == given.low >> 56 if found.items == given.items else None
    return found == given, weak


def flipped(rng: Random, raw: U8) -> U8:
    """A copy with one bit changed."""
    copy = np.array(raw)
    bit = rng.randrange(8 * copy.size)
    copy[bit // 8] ^= 1 << (bit % 8)
    return copy


def two(rng: Random, n: int) -> tuple[int, int]:
    """Two different numbers below n."""
    i = rng.randrange(n)
    j = rng.randrange(n - 1)
    return i, j + (j >= i)


def a_text(rng: Random, picks: int) -> bytes:
    """Words of 1 to 70 bytes, some much more often than others, between runs of separators."""
    words = [bytes(rng.choices(LETTERS, k=rng.randrange(1, 12))) for _ in range(max(3, picks // 8))]
    words += [bytes(rng.choices(LETTERS[:26], k=rng.randrange(13, 71))) for _ in range(6)]
    rng.shuffle(words)
    chosen = [words[min(int(rng.paretovariate(0.5)) - 1, len(words) - 1)] for _ in range(picks)] + words
    gaps = rng.choices([b" ", b"\n", b"  ", b"\t", b" \r\n"], [16, 2, 1, 1, 1], k=len(chosen))
    return b"".join(word + gap for word, gap in zip(chosen, gaps, strict=True))


def blocks_of_text(text: U8, partitions: int) -> list[Block]:
    """The output of the map of the word count."""
    counter, blocks = WordCounter(), []
    counter.count(text)
    for r, (n, size) in enumerate(zip(*counter.partition_sizes(partitions), strict=True)):
        block = Block.create(("binary", "u64"), int(n), [int(size), 8 * int(n)])
        counter.fill(r, *block.binary(0), block.numbers(1))
        blocks.append(block)
    return blocks


def block_of(entries: list[Entry]) -> Block:
    """A block of entries in the order given, right or wrong; counts modulo 2^64."""
    raw = b"".join(word for word, _ in entries)
    block = Block.create(("binary", "u64"), len(entries), [len(raw), 8 * len(entries)])
    offsets, data = block.binary(0)
    offsets[:] = np.cumsum([0, *(len(word) for word, _ in entries)])
    data[:] = array(raw)
    block.numbers(1)[:] = np.array([count % 2**64 for _, count in entries], np.uint64)
    return block


def entries_of(block: Block) -> list[Entry]:
    offsets, data = block.binary(0)
    raw, places = data.tobytes(), offsets.tolist()
    return [(raw[a:b], n) for a, b, n in zip(places, places[1:], block.numbers(1).tolist(), strict=False)]


def summed_block(raw: U8, r: int, partitions: int, key: bytes) -> Sum | None:
    """The sum of a block's bytes; None if it is refused."""
    try:
        block = Block.open(raw)
        if block.schema != ("binary", "u64"):
            return None
        return sum_counts(*block.binary(0), block.numbers(1), r, partitions, key)
    except (BlockError, Refused):
        return None


class WordMap:
    """The output of one map of the word count."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.partitions, self.key = rng, rng.randrange(1, 9), rng.randbytes(32)
        self.text = array(a_text(rng, rng.randrange(20, 900)))
        self.blocks = blocks_of_text(self.text, self.partitions)
        self.given = sum_text(self.text, self.key)
        self.entries = [entries_of(block) for block in self.blocks]
        self.flat = [(r, i) for r, part in enumerate(self.entries) for i in range(len(part))]
        self._right = [summed_block(block.buffer, r, self.partitions, self.key) for r, block in enumerate(self.blocks)]

    def verdict(self, changed: dict[int, U8], given: Sum | None = None) -> Verdict:
        """What the check says of the output with some blocks changed."""
        total = Sum()
        for r, right in enumerate(self._right):
            found = summed_block(changed[r], r, self.partitions, self.key) if r in changed else right
            if found is None:
                return REFUSED
            total = total.plus(found)
        return compared(total, given or self.given)

    def edited(self, *edits: tuple[int, int, list[Entry]]) -> Verdict:
        """What it says if entries are replaced by others: (partition, number, by which)."""
        parts = {r: [[entry] for entry in self.entries[r]] for r, _, _ in edits}
        for r, i, entries in edits:
            parts[r][i] = entries
        return self.verdict({r: block_of([e for some in part for e in some]).buffer for r, part in parts.items()})

    def counts(self) -> Iterator[tuple[str, Verdict]]:
        """Faults in two counts."""
        rng = self.rng
        (r, i), (s, j) = (self.flat[k] for k in two(rng, len(self.flat)))
        (w, c), (v, d) = self.entries[r][i], self.entries[s][j]
        if c != d:
            yield "map: counts swapped", self.edited((r, i, [(w, d)]), (s, j, [(v, c)]))
        yield "map: one moved from count to count", self.edited((r, i, [(w, c + 1)]), (s, j, [(v, d - 1)]))
        k = rng.randrange(1, 64)
        yield "map: 2^k moved from count to count", self.edited((r, i, [(w, c + 2**k)]), (s, j, [(v, d - 2**k)]))
        yield "map: entry lost, its count given to another", self.edited((r, i, [(w, c + d)]), (s, j, []))
        yield "map: two entries swapped", self.edited((r, i, [(v, d)]), (s, j, [(w, c)]))
        yield "map: word replaced by another's", self.edited((r, i, [(v, c)]))
        yield "map: count plus 2^32", self.edited((r, i, [(w, c + 2**32)]))
        yield "map: top bit of a count", self.edited((r, i, [(w, c ^ 2**63)]))
        yield "map: entry of count 0", self.edited((r, i, [(w, 0)]))

    def words(self) -> Iterator[tuple[str, Verdict]]:
        """Faults in an entry."""
        rng = self.rng
        r, i = rng.choice(self.flat)
        w, c = self.entries[r][i]
        yield "map: entry lost", self.edited((r, i, []))
        yield "map: entry twice", self.edited((r, i, [(w, c), (w, c)]))
        if c > 1:
            yield "map: entry in two halves", self.edited((r, i, [(w, c // 2), (w, c - c // 2)]))
        other = bytes([w[0] ^ rng.randrange(1, 256)]) + w[1:]
        yield "map: byte of a word", self.edited((r, i, [(other, c)]))
        yield "map: word one shorter", self.edited((r, i, [(w[:-1], c)]))
        yield "map: word one longer", self.edited((r, i, [(w + b"\0", c)]))
        yield "map: word with a space", self.edited((r, i, [(w + b" ", c)]))
        new = b"zz%x" % rng.getrandbits(24)
        yield "map: a word too many", self.edited((r, i, [(w, c), (new, 1)]))
        yield "map: a word too many, of count 0", self.edited((r, i, [(w, c), (new, 0)]))
        turned = w[16:32] + w[:16] + w[32:]
        if len(w) >= 32 and turned != w:
            yield "map: pieces of a long word swapped", self.edited((r, i, [(turned, c)]))

    def partitions_wrong(self) -> Iterator[tuple[str, Verdict]]:
        """Faults that need two partitions, or concern whole blocks."""
        rng, partitions = self.rng, self.partitions
        r, i = rng.choice(self.flat)
        part = self.entries[r]
        if len(part) > 1:
            yield "map: block in reverse", self.verdict({r: block_of(part[::-1]).buffer})
        yield "map: block cut off", self.verdict({r: self.blocks[r].buffer[: rng.randrange(self.blocks[r].nbytes)]})
        yield "map: block empty", self.verdict({r: block_of([]).buffer})
        if partitions > 1:
            s = (r + rng.randrange(1, partitions)) % partitions
            away = list(self.entries[s])
            away.insert(rng.randrange(len(away) + 1), part[i])
            moved = {r: block_of(part[:i] + part[i + 1 :]).buffer, s: block_of(away).buffer}
            yield "map: entry in another partition", self.verdict(moved)
            swapped = {r: self.blocks[s].buffer, s: self.blocks[r].buffer}
            yield "map: two partitions swapped", self.verdict(swapped)
            yield "map: block of another partition", self.verdict({r: self.blocks[s].buffer})

    def inputs(self) -> Iterator[tuple[str, Verdict]]:
        """The check reads another input, or sums under another key, than what the output is of."""
        yield "map: sums of another key", compared(sum_text(self.text, self.rng.randbytes(32)), self.given)
        rotten = flipped(self.rng, self.text)
        if words_in(rotten) != words_in(self.text):
            yield "map: bit of the input", self.verdict({}, sum_text(rotten, self.key))

    def play(self, found: Findings, bits: int, rounds: int) -> None:
        """Judge the honest output, and mutants of all kinds."""
        found.trust("word count: blocks", self.verdict({r: block.buffer for r, block in enumerate(self.blocks)}))
        for _ in range(bits):
            r = self.rng.randrange(self.partitions)
            found.judge("map: bit of a block", self.verdict({r: flipped(self.rng, self.blocks[r].buffer)}))
        for _ in range(rounds):
            for kinds in (self.counts, self.words, self.partitions_wrong, self.inputs):
                for kind, verdict in kinds():
                    found.judge(kind, verdict)


def words_in(text: U8) -> Counter[bytes]:
    return Counter(word for word in text.tobytes().translate(SPACES).split(b" ") if word)


class WordReduce:
    """The part of one reduce of the word count, against the blocks that it read."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.partitions, self.key = rng, rng.randrange(1, 4), rng.randbytes(32)
        texts = [array(a_text(rng, rng.randrange(60, 300))) for _ in range(rng.randrange(1, 4))]
        maps = [blocks_of_text(text, self.partitions) for text in texts]
        sizes = [sum(blocks[r].records for blocks in maps) for r in range(self.partitions)]
        self.r = max(range(self.partitions), key=sizes.__getitem__)
        self.given = Sum()
        for blocks in maps:
            one = summed_block(blocks[self.r].buffer, self.r, self.partitions, self.key)
            assert one is not None
            self.given = self.given.plus(one)
        merged = merge_counts([(*blocks[self.r].binary(0), blocks[self.r].numbers(1)) for blocks in maps])
        self.part = format_counts(*merged)
        self.lines = [line + b"\n" for line in self.part.tobytes().split(b"\n")[:-1]]

    def verdict(self, raw: U8) -> Verdict:
        """What the check says of a part."""
        try:
            return compared(sum_lines(raw, self.r, self.partitions, self.key)[0], self.given)
        except Refused:
            return REFUSED

    def edited(self, *edits: tuple[int, bytes]) -> Verdict:
        """What it says if lines are replaced by other bytes."""
        lines = list(self.lines)
        for i, line in edits:
            lines[i] = line
        return self.verdict(array(b"".join(lines)))

    def mutants(self) -> Iterator[tuple[str, Verdict]]:
        """One of each kind."""
        rng, line = self.rng, b"%s\t%d\n"
        i, j = two(rng, len(self.lines))
        (w, c), (v, d) = (entry_of(self.lines[k]) for k in (i, j))
        if c != d:
            yield "reduce: counts swapped", self.edited((i, line % (w, d)), (j, line % (v, c)))
        yield "reduce: one moved from count to count", self.edited((i, line % (w, c + 1)), (j, line % (v, d - 1)))
        yield "reduce: line lost", self.edited((i, b""))
        yield "reduce: line lost, its count given to another", self.edited((i, b""), (j, line % (v, d + c)))
        yield "reduce: line twice", self.edited((i, self.lines[i] * 2))
        yield "reduce: lines swapped", self.edited((i, self.lines[j]), (j, self.lines[i]))
        yield "reduce: words swapped", self.edited((i, line % (v, c)), (j, line % (w, d)))
        yield "reduce: count with a leading zero", self.edited((i, b"%s\t0%d\n" % (w, c)))
        yield "reduce: count with a sign", self.edited((i, b"%s\t+%d\n" % (w, c)))
        yield "reduce: count plus 2^64", self.edited((i, line % (w, c + 2**64)))
        yield "reduce: count plus 2^32", self.edited((i, line % (w, c + 2**32)))
        yield "reduce: a line of count 0", self.edited((i, self.lines[i] + line % (w + b"\0", 0)))
        yield "reduce: cut off", self.verdict(self.part[: rng.randrange(self.part.size)])
        yield "reduce: line with CR LF", self.edited((i, self.lines[i][:-1] + b"\r\n"))
        yield "reduce: an empty line", self.edited((i, self.lines[i] + b"\n"))
        yield "reduce: space for tab", self.edited((i, b"%s %d\n" % (w, c)))
        yield "reduce: byte of a word", self.edited((i, line % (w[:-1] + bytes([w[-1] ^ rng.randrange(1, 256)]), c)))
        yield "reduce: lines in reverse", self.verdict(array(b"".join(self.lines[::-1])))

    def play(self, found: Findings, bits: int, rounds: int) -> None:
        """Judge the honest part, and mutants of all kinds."""
        found.trust("word count: part", self.verdict(self.part))
        for _ in range(bits):
            found.judge("reduce: bit of a part", self.verdict(flipped(self.rng, self.part)))
        for _ in range(rounds):
            for kind, verdict in self.mutants():
                found.judge(kind, verdict)


def entry_of(line: bytes) -> Entry:
    word, _, count = line[:-1].partition(b"\t")
    return word, int(count)
