"""SequenceFiles in and out: write one, count its keys by a voted job that writes another, read that. Run it with a new
FOLDER.
"""

import sys
from pathlib import Path

from quoreduce import Job, SequenceWriter, read_sequence, run


def key_of(record: tuple):
    """A record of a SequenceFile is (key, value), both bytes."""
    key, _ = record
    yield key, 1


def total(key: bytes, counts: list):
    """How often the key was there."""
    yield key, sum(counts)


job = Job("keys", map=key_of, reduce=total, input="sequence", output="sequence")

if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} FOLDER (a new one)", file=sys.stderr)
        sys.exit(2)
    folder = Path(sys.argv[1])
    folder.mkdir()
    with open(folder / "pairs.seq", "wb") as file, SequenceWriter(file.write, seed=1) as writer:
        for i in range(1000):
            writer.write(b"key %d" % (i * i % 7), b"value %d" % i)
    run(job, str(folder / "pairs.seq"), str(folder / "counts"), f=1)
    block = read_sequence(folder / "counts" / "part-r-00000")
    (key_ends, keys), (count_ends, counts) = (
        block.binary(0),
        block.binary(1),
    )  # offsets, and the bytes one after the other
    for i in range(block.records):
        key, count = keys[key_ends[i] : key_ends[i + 1]], counts[count_ends[i] : count_ends[i + 1]]
        print(key.tobytes().decode(), int(count.tobytes()))
