"""The parser of ``quoreduce demo``, and its call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quoreduce.arguments import Parser
from quoreduce.limits import NUMBERS


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    demo = Parser(prog="quoreduce demo")
    demo.add_argument(
        "--text", metavar="FILE", default=None, help="a text of your own (default: tests/data/kjv.txt if it is here)"
    )
    demo.add_argument(
        "--generated-mb", type=NUMBERS["generated_mb"], default=256, metavar="MB",
        help="size of the generated text (default 256)",
    )  # fmt: skip
    demo.add_argument("--on", choices=["local", "ray"], default="ray", help="executor (default ray)")
    return demo


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    from quoreduce.commands.demo.demo import demo

    return demo(a.text, a.generated_mb, a.on)
