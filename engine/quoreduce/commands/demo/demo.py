"""``quoreduce demo``: a text and a generated one, counted plain and voted, with faults injected and masked; and what it
cost.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from quoreduce.commands.generate.generate import text_chunks, write_file
from quoreduce.driver.result import Result
from quoreduce.errors import InputError, QuoreduceError
from quoreduce.jobs.find import find_job
from quoreduce.printable import printable_name
from quoreduce.protocol.compile import use_kernels
from quoreduce.protocol.options import Options, Place
from quoreduce.runtime.session import Session
from quoreduce.scratch import temporary_folder
from quoreduce.terminal import print_table

TEXT = Path("tests/data/kjv.txt")
FAULTS = ("flip:map:2", "wrong:reduce:1", "lie:map:1", "swap:map:1")
REPEATS = 3
Row = tuple[str, str, Result, float]


def demo(text: str | None, generated_mb: int, on: str) -> int:
    """Run the demonstration on workers of its own and print a table; return 0 if every voted output is the plain
    one.
    """
    own = Path(text) if text else TEXT
    if text and not own.is_file():
        raise InputError(f"no such file: {text}")
    with temporary_folder("demo") as folder:
        use_kernels(_say)
        generated = folder / "generated.txt"
        _say(f"generating {generated_mb} MB of text ...")
        write_file(generated, text_chunks(generated_mb * 1_000_000, seed=1))
        texts = ([own] if own.is_file() else []) + [generated]
        _say("starting a local Ray and two actors (5 to 15 s) ..." if on == "ray" else "starting workers ...")
        with Session(Place(on=on), _say) as session:  # type: ignore[arg-type]
            _say(f"failure domains: {', '.join(session.domains)}")
            rows = [row for path in texts for row in _compare(session, path, folder)]
    _table(rows)
    return _verdict(rows)


def _compare(session: Session, path: Path, folder: Path) -> list[Row]:
    """Count one text plain, voted, and voted with faults; the first two in turn, the medians are kept."""
    _say(f"counting the words of {printable_name(path.name)} ...")
    split_mb = max(0.5, path.stat().st_size / 16e6)
    plain_options = Options(mode="original", digest="blake3", split_mb=split_mb, overwrite=True)
    voted_options = Options(f=1, split_mb=split_mb, overwrite=True)
    pairs = [
        (_run(session, path, folder, plain_options), _run(session, path, folder, voted_options))
        for _ in range(REPEATS + 1)
    ]
    plain, voted = (_median([pair[i] for pair in pairs[1:]]) for i in (0, 1))
    faulty = _run(session, path, folder, Options(f=1, split_mb=split_mb, overwrite=True, faults=FAULTS))
    return [
        (path.name, "plain", plain, 1.0),
        (path.name, "voted f=1", voted, voted.wall_s / plain.wall_s),
        (path.name, "voted, faults", faulty, faulty.wall_s / plain.wall_s),
    ]


def _run(session: Session, path: Path, folder: Path, options: Options) -> Result:
    return session.run(find_job("wordcount"), [str(path)], str(folder / "out"), options)


def _median(results: Sequence[Result]) -> Result:
    return sorted(results, key=lambda result: result.wall_s)[len(results) // 2]


def _table(rows: Sequence[Row]) -> None:
    from rich.table import Table

    table = Table(title=f"word count, median of {REPEATS} (the run with faults: one)")
    for name in ("text", "mode", "time s", "CPU s", "map", "reduce", "time ratio", "faults in", "masked", "output"):
        table.add_column(name, justify="left" if name in ("text", "mode", "output") else "right", no_wrap=True)
    for name, mode, r, ratio in rows:
        table.add_row(
            printable_name(name), mode, f"{r.wall_s:.3f}", f"{r.cpu_s:.2f}", str(r.executions["map"]),
            str(r.executions["reduce"]), f"{ratio:.2f}", str(r.faults.injected), str(r.faults.masked), r.digest[:12],
        )  # fmt: skip
    print_table(table)


def _verdict(rows: Sequence[Row]) -> int:
    digests = {name: {r.digest for n, _, r, _ in rows if n == name} for name, *_ in rows}
    wrong = [name for name, found in digests.items() if len(found) != 1]
    if wrong:
        raise QuoreduceError(
            f"the outputs of {', '.join(wrong)} differ between runs: this must not happen, please report it"
        )
    injected = sum(r.faults.injected for _, _, r, _ in rows)
    print(f"{injected} faults were injected, none reached an output: plain, voted and faulty runs gave the same bytes.")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
