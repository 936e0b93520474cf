"""The parser of ``quoreduce doctor``, and its call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quoreduce.arguments import Parser


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    doctor = Parser(prog="quoreduce doctor")
    doctor.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (default: RAY_ADDRESS)")
    doctor.add_argument(
        "--deep", action="store_true",
        help="compare installed files and compiled kernels with their digests; exit 4 if one differs",
    )  # fmt: skip
    doctor.add_argument("--store", metavar="DIR", help="look there, too, for what dead sessions left")
    doctor.add_argument(
        "--clean", action="store_true",
        help="delete what sessions that were killed left: stores of blocks and temporary files that bear our marker "
        "(what is left beside an output goes when a job writes there again)",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return doctor


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    from quoreduce.commands.doctor.doctor import doctor

    return doctor(a.address, a.json, clean=a.clean, store=a.store, deep=a.deep)
