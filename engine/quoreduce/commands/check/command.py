"""The parser of ``quoreduce check``, and its call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quoreduce.arguments import Parser
from quoreduce.commands.jobs import named_job, scan_options, stream_options, streamed_job
from quoreduce.errors import UsageError
from quoreduce.limits import NUMBERS

if TYPE_CHECKING:
    from quoreduce.job import Job

SETTINGS = """settings:
  repeat   the same once more, in a new process         state    a second time in the same process
  order    tasks from the last to the first             digests  a replica that only digests, and stores nothing
  hash     another PYTHONHASHSEED                       threads  four threads for BLAS, OpenMP, MKL, numba, Polars
  place    another TZ, LC_ALL, current directory        cpu      an older CPU type for numpy, the C library, BLAS
  numba    kernels compiled for an older CPU type"""


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    check = Parser(
        prog="quoreduce check", epilog=SETTINGS, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run a job over a sample of its input under several settings, each in a process of its own, and "
        "compare every digest:\n"
        "exit 0 if all agree (which is no proof), 5 with the first differing record and the likely cause if not. "
        "Nothing is written.",
    )  # fmt: skip
    check.add_argument(
        "job", metavar="JOB",
        help="wordcount, sort, scan, stream (with --mapper and --reducer), FILE.py:NAME or MODULE:NAME",
    )  # fmt: skip
    check.add_argument("paths", metavar="INPUT", nargs="+", help="files, directories, globs (quoted), .gz/.zst, URIs")
    check.add_argument(
        "--settings", metavar="NAMES",
        help="with commas between, or all (default: all; numba only for jobs with kernels of their own)",
    )  # fmt: skip
    check.add_argument(
        "--sample-mb", type=NUMBERS["sample_mb"], default=16.0, metavar="MB",
        help="input to read, from all over it (default 16)",
    )  # fmt: skip
    check.add_argument(
        "--time-limit", type=NUMBERS["time_limit_s"], default=60.0, metavar="S",
        help="bound on the whole, in seconds (default 60)",
    )  # fmt: skip
    check.add_argument(
        "--reducers", type=NUMBERS["reducers"], metavar="N", help="number of parts (default: from the sample's size)"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    scan_options(check)
    stream_options(check, required=False)
    return check


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    from quoreduce.commands.check.check import check, print_report

    settings = () if a.settings is None else tuple(filter(None, a.settings.replace(" ", "").split(",")))
    report = check(
        _job(a), a.paths, sample_mb=a.sample_mb, limit_s=a.time_limit, settings=settings, reducers=a.reducers,
        say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    return print_report(report, a.json)


def _job(a: argparse.Namespace) -> Job:
    if a.job != "stream":
        if a.mapper is not None or a.reducer is not None:
            raise UsageError(f"--mapper and --reducer go with the job stream, not with {a.job}")
        return named_job(a)
    if a.mapper is None or a.reducer is None:
        raise UsageError("the job stream needs --mapper and --reducer")
    return streamed_job(a)
