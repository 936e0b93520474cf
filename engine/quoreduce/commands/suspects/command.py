"""The parser of ``quoreduce suspects``, and its call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quoreduce.arguments import Parser
from quoreduce.errors import UsageError


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    top = Parser(
        prog="quoreduce suspects",
        description="Cores, nodes and racks that lost votes or failed tests in earlier jobs.",
        epilog="exit codes: 0 ok; 2 usage, or the record cannot be read; 4 a core failed its test",
    )  # fmt: skip
    top.add_argument(
        "--test", action="store_true", help="test this machine's cores with known answers, and note the outcome"
    )
    top.add_argument("--clear", metavar="PLACE", help="forget a place, or all")
    fault = "with --test: bad:CORE:PERCENT or stuck:CORE; nothing is noted then"
    top.add_argument("--fault", action="append", default=[], metavar="SPEC", help=fault)
    top.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    if a.test and a.clear:
        raise UsageError("--test and --clear are two commands")
    if a.fault and not a.test:
        raise UsageError("--fault goes with --test")
    from quoreduce.commands.suspects.suspects import suspects

    return suspects(test=a.test, clear=a.clear, faults=a.fault, as_json=a.json)
