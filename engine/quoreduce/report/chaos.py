"""``quoreduce chaos``: a campaign of jobs and faults, and the table of what came of them, as text, JSON, Markdown and HTML."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from quoreduce.arguments import Parser
from quoreduce.chaos.plan import KINDS, STAGES, chosen_by, parse_job, parse_kinds, plan_job
from quoreduce.chaos.tally import Campaign, Row
from quoreduce.errors import HostError, OutputError
from quoreduce.limits import NUMBERS
from quoreduce.terminal import print_table

COLUMNS = (
    "fault", "injected", "jobs", "masked", "stopped", "found later", "wrong or partial", "more executions", "time ratio",
    "not masked",
)  # fmt: skip
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
        description="Run jobs while everything around them fails, and compare every output with the right one (docs/chaos.md).\n"
        "The seed decides which faults strike which job, and when.",
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

    campaign = run_campaign(a.seed, a.minutes, kinds, a.on, a.jobs, a.job, lambda text: print(text, file=sys.stderr, flush=True))
    show(campaign)
    if a.json:
        _write(a.json, json.dumps(campaign.as_dict(), indent=1) + "\n")
    if a.html:
        from quoreduce.report.chaos_page import page

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


def summary(campaign: Campaign) -> list[str]:
    """What there is to say beside the table."""
    c = campaign
    lines = [
        f"{len(c.inside)} jobs, {sum(not r.faults for r in c.inside)} of them without faults, {c.struck:,} faults of "
        f"{len(c.rows())} kinds, seed {c.seed}, {c.wall_s / 60:.1f} minutes",
        f"{c.count('right')} outputs right, {c.count('stopped')} jobs stopped with an error and nothing published, "
        f"{c.count('rotten')} altered after their last check (found by quoreduce verify)",
        f"{c.count('wrong')} wrong outputs, {c.count('partial')} partial outputs, {c.count('hang')} hangs, "
        f"{c.count('untyped')} errors without a name, {c.orphans} processes and {c.left} files left behind",
    ]
    for m in c.memory():
        lines.append(
            f"driver's memory, {m.stage}, {m.jobs} jobs: {m.first:.0f} MB at first, {m.last:.0f} at last, at most {m.peak:.0f}"
            + ("" if m.flat else f": NOT FLAT, it grew by {m.growth:.0f} MB")
        )
    if c.setups_failed:
        lines.append(f"{c.setups_failed} times workers or Ray did not start, or not again; these are no jobs")
    lines += [f"NOT RUN TO ITS END: {stage}, for it could not be set up: {why}" for stage, why in c.not_set_up.items()]
    lines += list(c.not_run.values())
    collusion = c.collusion()
    if collusion is not None:
        lines.append(
            f"OUTSIDE THE MODEL: {collusion.text} at f=1: {collusion.failed} of {collusion.jobs} outputs wrong, "
            f"{collusion.stopped} jobs stopped. This is the bound: f faulty domains are masked, f+1 that agree are not."
        )
    return lines


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table as text, in the order of COLUMNS."""
    extra = "-" if row.extra is None else f"{row.extra:.2f}"
    ratio = "-" if row.ratio is None else f"{row.ratio:.1f}"
    numbers = (row.injected, row.jobs, row.masked, row.stopped, row.rotten, row.failed)
    return (row.kind, *(f"{n:,}" for n in numbers), extra, ratio, " ".join(row.names))


def show(campaign: Campaign) -> None:
    """Print the table and the summary."""
    from rich.table import Table

    table = Table(title="faults and what came of the jobs that they hit")
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
