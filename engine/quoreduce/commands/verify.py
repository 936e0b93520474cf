"""``quoreduce verify``: recompute every digest of an output against its manifest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from quoreduce.arguments import Parser
from quoreduce.printable import printable, printable_name


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    verify = Parser(prog="quoreduce verify")
    verify.add_argument("output", metavar="OUTPUT")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    return verify


def main(words: Sequence[str]) -> int:
    """Run the command; return 0 if the output is what its manifest says, else 2."""
    a = parser().parse_args(words)
    from quoreduce.runtime.session import verify

    report = verify(a.output)
    if a.json:
        parts, problems = len(report.manifest.parts), list(report.problems)
        print(json.dumps({"output": a.output, "ok": report.ok, "parts": parts, "problems": problems}))
    else:
        for problem in report.problems:
            print(printable(f"{a.output}/{problem}"))
        state_text = "ok" if report.ok else f"{len(report.problems)} problems"
        manifest = report.manifest
        print(f"{printable_name(a.output)}: {len(manifest.parts)} parts, {manifest.digest_algorithm}: {state_text}")
    return 0 if report.ok else 2
