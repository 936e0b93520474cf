"""The parser of ``quoreduce generate``, and its call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quoreduce.arguments import Parser
from quoreduce.limits import NUMBERS, RECORDS


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    generate = Parser(prog="quoreduce generate")
    generate.add_argument(
        "kind", choices=["text", "binary", "ascii", "teragen"],
        help="text; or records as gensort, gensort -a or TeraGen make",
    )  # fmt: skip
    generate.add_argument(
        "amount", metavar="AMOUNT", type=RECORDS,
        help="bytes of text (1 GB = 1000M, suffixes K M G), or number of records",
    )  # fmt: skip
    generate.add_argument("file", metavar="FILE")
    generate.add_argument("--seed", type=NUMBERS["seed"], default=0, help="of the text (default 0)")
    generate.add_argument("--first", type=NUMBERS["first"], default=0, help="number of the first record (default 0)")
    generate.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return generate


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    from quoreduce.commands.generate.generate import generate

    return generate(a.kind, a.amount, a.file, a.seed, a.first, a.overwrite)
