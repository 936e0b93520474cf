"""R6: a bit that flips in a stored block after all replicas of a reduce have checked it, while they read it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from quoreduce import Job, Options, Place, Session

VALUE = 0x0123456789ABCDEF
PATIENCE_S = 60.0


def rotting_job(folder: str, store: str, error: bool) -> Job:
    """Replicas of the reduce meet when both have checked what they read; then a bit of it flips, and both go on."""

    def value(data, ctx):
        (block,) = ctx.new_blocks(["u64"], [(1, [8])])
        block.numbers(0)[:] = VALUE
        return [block]

    def wait_for(count: int, pattern: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while len(list(Path(folder).glob(pattern))) < count and time.monotonic() < until:
            time.sleep(0.001)

    def flip() -> None:
        for path in Path(store).glob("quoreduce-*/*/*/segment-*"):
            raw = path.read_bytes()
            at = raw.find(VALUE.to_bytes(8, "little"))
            if at >= 0:
                with path.open("r+b") as file:
                    file.seek(at)
                    file.write(bytes([raw[at] ^ 1]))

    def write(blocks, ctx):
        Path(folder, f"reads-{os.getpid()}").touch()
        wait_for(2, "reads-*")
        try:
            os.close(os.open(f"{folder}/flips", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            wait_for(1, "flipped")
        else:
            flip()
            Path(folder, "flipped").touch()
        found = int(blocks[0].numbers(0)[0])
        if error and found != VALUE:
            raise ValueError(f"{found:x} makes no sense")
        ctx.write(b"%x\n" % found, 1)

    return Job.of_blocks("rotting", map=value, reduce=write)


@pytest.mark.parametrize("error", [False, True])
def test_replicas_that_read_the_same_rotten_memory_do_not_agree_on_what_they_make_of_it(
    tmp_path: Path, error: bool
) -> None:
    """Neither on a wrong output, nor on an error that it leads to."""
    (tmp_path / "text").write_bytes(b"one line\n")
    folder, store = tmp_path / "marks", tmp_path / "store"
    folder.mkdir()
    with Session(Place("local", 2, "worker", store=str(store))) as session:
        job = rotting_job(str(folder), str(store), error)
        result = session.run(job, [str(tmp_path / "text")], str(tmp_path / "out"), Options(reducers=1))
    assert (tmp_path / "out" / "part-r-00000").read_bytes() == b"123456789abcdef\n"
    assert (folder / "flipped").exists()
    assert result.executions["map"] > 2  # what had rotted was made again
