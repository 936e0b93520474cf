"""``quoreduce stream``: run a job whose map and reduce are commands that read and write lines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quoreduce.arguments import Parser
from quoreduce.commands.exits import EXIT_CODES
from quoreduce.commands.jobs import stream_options, streamed_job
from quoreduce.commands.running import run_job, run_options


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    stream = Parser(
        prog="quoreduce stream", epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --mapper CMD --reducer CMD INPUT... OUTPUT [OPTION...]",
        description="Map with one command and reduce with another, as Hadoop streaming does: the mapper reads the "
        "lines of a split and\n"
        "writes lines KEY<TAB>VALUE; the reducer reads these sorted by key. Every replica runs the commands and is "
        "voted on.",
    )  # fmt: skip
    stream_options(stream, required=True)
    run_options(stream)
    return stream


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    from quoreduce.jobs.streaming import deadline_s

    if a.deadline is None:
        a.deadline = deadline_s(a.timeout)
    return run_job(a, lambda: streamed_job(a))
