"""The parser of ``quoreduce validate``, and its call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quoreduce.arguments import Parser


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    validate = Parser(prog="quoreduce validate")
    validate.add_argument("job", metavar="JOB", choices=["sort"])
    validate.add_argument("output", metavar="OUTPUT", help="output of the job, or a file of records")
    validate.add_argument(
        "--input", nargs="*", metavar="INPUT", help="compare with these (default: those of the manifest, if they exist)"
    )
    validate.add_argument("--json", action="store_true", help="print one JSON object")
    return validate


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    from quoreduce.commands.validate.sort import validate_sort

    return validate_sort(a.output, a.input, a.json)
