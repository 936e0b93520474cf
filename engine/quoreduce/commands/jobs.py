"""Which job a command line names, for ``run``, ``stream`` and ``check``: their options, and the job."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from quoreduce.errors import UsageError
from quoreduce.limits import NUMBERS

if TYPE_CHECKING:
    from quoreduce.job import Job


def scan_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the job ``scan``."""
    scan = command.add_argument_group("scan")
    scan.add_argument(
        "--starts-with", metavar="TEXT", help="keep the records that begin with TEXT, 1 to 64 bytes of UTF-8; required"
    )
    scan.add_argument(
        "--lines", action="store_true",
        help="the records are lines, of any length (default: 100 bytes each, as for sort)",
    )  # fmt: skip


def stream_options(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add the options of a job of two commands."""
    command = parser.add_argument_group("commands" if required else "stream")
    command.add_argument(
        "--mapper", required=required, metavar="CMD", help="split into words as a shell would, and run without a shell"
    )
    command.add_argument(
        "--reducer", required=required, metavar="CMD", help="the same; cat passes lines on as they are"
    )
    command.add_argument(
        "--shell", action="store_true", help="run both with sh -c: for pipes, variables and redirections"
    )
    command.add_argument(
        "--timeout", type=NUMBERS["timeout_s"], default=300.0, metavar="S",
        help="seconds that a command may take over one task (default 300)",
    )  # fmt: skip
    command.add_argument(
        "--input-format", choices=["lines", "sequence"], default="lines",
        help="sequence: SequenceFiles as lines KEY<TAB>VALUE",
    )  # fmt: skip


def named_job(a: argparse.Namespace) -> Job:
    """Find the job that is named ``a.job``; UsageError, JobError."""
    from quoreduce.jobs.find import find_job

    if a.job != "scan" and (a.starts_with is not None or a.lines):
        raise UsageError(f"--starts-with and --lines go with the job scan, not with {a.job}")
    return find_job(a.job) if a.starts_with is None else _scan(a)


def streamed_job(a: argparse.Namespace) -> Job:
    """Make the job of two commands."""
    from quoreduce.jobs.streaming import stream_job

    return stream_job(a.mapper, a.reducer, shell=a.shell, timeout_s=a.timeout, input=a.input_format)


def _scan(a: argparse.Namespace) -> Job:
    from quoreduce.jobs.scan import scan_job

    return scan_job(os.fsencode(a.starts_with), input="lines" if a.lines else "records")
