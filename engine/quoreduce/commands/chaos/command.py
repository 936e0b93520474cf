"""``quoreduce chaos``: a campaign of jobs and faults, and the table of its results, as text, JSON, Markdown and
HTML.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from quoreduce.arguments import Parser
from quoreduce.chaos.plan import KINDS, STAGES, chosen_by, parse_job, parse_kinds, plan_job
from quoreduce.chaos.tally import Campaign
from quoreduce.commands.chaos.text import COLUMNS, cells, summary
from quoreduce.errors import HostError, OutputError
from quoreduce.limits import NUMBERS
from quoreduce.terminal import print_table

_EPILOG = (
    "kinds of faults, and where they strike:\n"
    + "\n".join(f"  {kind.name:9} {kind.text} ({', '.join(kind.stages)})" for kind in KINDS.values())
    + "\n\nstages:\n"
    + "\n".join(f"  {stage.name:9} {stage.text}" for stage in STAGES.values())
    + "\n\nexit code: 0 if no output was wrong or partial, no job hung, and nothing was left behind; 1 if not;"
    "\n4 if that is so, but a stage could not be set up"
)


def parser() -> argparse.ArgumentParser:
    """Build the parser."""
    top = Parser(
        prog="quoreduce chaos", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run jobs while everything around them fails, and compare every output with the right one\n"
        "(docs/guide/chaos.md). The seed decides which faults strike which job, and when.",
    )  # fmt: skip
    top.add_argument("--seed", type=NUMBERS["seed"], default=0, metavar="S", help="default 0")
    top.add_argument(
        "--minutes", type=NUMBERS["minutes"], default=10.0, metavar="M",
        help="in all (default 10); longer if Ray starts slowly",
    )  # fmt: skip
    top.add_argument("--faults", default="all", metavar="KINDS", help="with commas between, or all (default)")
    top.add_argument("--on", choices=["local", "ray", "all"], default="all", help="local: processes; ray: the others")
    top.add_argument(
        "--jobs", type=NUMBERS["jobs"], metavar="N", help="end after N jobs, if the time is not over before"
    )
    top.add_argument("--job", metavar="STAGE:N", help="run this job again, with the same seed, and no other")
    top.add_argument(
        "--plan", action="store_true", help="print the first --jobs N (default 100) of each stage; run nothing"
    )
    top.add_argument("--json", metavar="FILE", help="write everything that was seen, job by job")
    top.add_argument("--html", metavar="FILE", help="write a page with the table")
    top.add_argument(
        "--markdown", metavar="FILE", help="write the table; in a file that has one already, between its marks"
    )
    return top


def main(arguments: Sequence[str]) -> int:
    """Run a campaign, and return the exit code."""
    a = parser().parse_args(arguments)
    kinds = parse_kinds(a.faults)
    if a.job is not None:
        parse_job(a.job)
    if a.plan:
        print(plan(a.seed, kinds, a.on, a.jobs or 100))
        return 0
    for file in filter(None, (a.json, a.html, a.markdown)):
        _writable(file)
    from quoreduce.chaos.campaign import run_campaign

    campaign = run_campaign(
        a.seed, a.minutes, kinds, a.on, a.jobs, a.job, lambda text: print(text, file=sys.stderr, flush=True)
    )
    show(campaign)
    if a.json:
        _write(a.json, json.dumps(campaign.as_dict(), indent=1) + "\n")
    if a.html:
        from quoreduce.commands.chaos.page import page

        _write(a.html, page(campaign))
    if a.markdown:
        _write(a.markdown, marked(Path(a.markdown).read_text() if Path(a.markdown).exists() else "", campaign))
    return 1 if not campaign.ok else HostError.exit_code if campaign.not_set_up else 0


def plan(seed: int, kinds: Sequence[str], on: str, jobs: int) -> str:
    """Say what the first jobs of each stage are, one a line."""
    lines = []
    for stage in STAGES:
        if chosen_by(on, stage):
            for number in range(jobs):
                p = plan_job(seed, stage, number, kinds)
                strikes = " ".join(f"{s.kind}@{s.at:.2f}" for s in p.strikes)
                lines.append(f"{p.name} {p.job} f={p.f}: {' '.join(p.faults)} {strikes}".rstrip(" :"))
    return "\n".join(lines)


def show(campaign: Campaign) -> None:
    """Print the table and the summary."""
    from rich.table import Table

    table = Table(title="faults, and the ends of the jobs that they hit")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("fault", "not masked") else "right")
    for row in campaign.rows():
        table.add_row(*cells(row))
    collusion = campaign.collusion()
    if collusion is not None:
        table.add_section()
        table.add_row(*cells(collusion)[:-1], "outside the model")
    print_table(table, 140)
    print("\n".join(summary(campaign)))


BEGIN, END = "<!-- quoreduce chaos: begin -->", "<!-- quoreduce chaos: end -->"


def marked(text: str, campaign: Campaign) -> str:
    """Put the table between the marks of ``text``, or at its end."""
    collusion = campaign.collusion()
    rows = [cells(row) for row in campaign.rows()]
    rows += [("collusion (outside the model)", *cells(collusion)[1:-1], "")] if collusion else []
    lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 2), "---"), *rows)]
    body = "\n".join([BEGIN, *lines, "", *(f"- {line}" for line in summary(campaign)), END])
    before, begin, rest = text.partition(BEGIN)
    if not begin or END not in rest:
        return f"{text.rstrip()}\n\n{body}\n".lstrip("\n")
    return before + body + rest.partition(END)[2]


def _writable(file: str) -> None:
    if not Path(file).resolve().parent.is_dir():
        raise OutputError(f"{file} cannot be written: there is no such folder")


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error}") from error
