"""``quoreduce run``: run a job over inputs and publish its output."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quoreduce.arguments import Parser
from quoreduce.commands.exits import EXIT_CODES
from quoreduce.commands.jobs import named_job, scan_options
from quoreduce.commands.running import run_job, run_options


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    run = Parser(
        prog="quoreduce run", epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s JOB INPUT... OUTPUT [OPTION...]",
        description="Run a job over inputs and write part-r-00000... and a manifest, _SUCCESS, to a new directory.",
    )  # fmt: skip
    run.add_argument("job", metavar="JOB", help="wordcount, sort, scan, FILE.py:NAME or MODULE:NAME")
    scan_options(run)
    run_options(run)
    return run


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    return run_job(a, lambda: named_job(a))
