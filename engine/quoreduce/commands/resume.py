"""``quoreduce resume``: resume a durable job that was cut short."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from quoreduce.arguments import Parser
from quoreduce.commands.exits import EXIT_CODES
from quoreduce.commands.running import chosen_place, place_options, published_or_not, report


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    resume = Parser(
        prog="quoreduce resume", epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Take up a durable job whose driver was killed, or that was interrupted: what was agreed on is "
        "taken over from its\n"
        "journal, the rest is executed. Options are those of the first run, except where the job is to run now.",
    )  # fmt: skip
    resume.add_argument("output", metavar="OUTPUT", help="as it was named when the job was begun")
    resume.add_argument(
        "--job", metavar="JOB",
        help="refuse to run anything but this job, as named for run (default: what your journal holds)",
    )  # fmt: skip
    place_options(resume, "as before", "as before")
    resume.add_argument("--json", action="store_true", help="print one JSON object")
    resume.add_argument("--quiet", action="store_true", help="no progress bar")
    return resume


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    a = parser().parse_args(words)
    from quoreduce.commands.progress import progress_bar
    from quoreduce.driver.durable import reopen
    from quoreduce.runtime.session import Session

    now, named = chosen_place(a), None
    if a.job is not None:
        from quoreduce.jobs.find import find_job
        from quoreduce.runtime.session import pickle_job

        named = pickle_job(find_job(a.job))
    with progress_bar(not a.quiet and sys.stderr.isatty()) as bar, reopen(a.output, named) as life:
        where = life.where(on=now.on, workers=now.workers, domain=now.domain, address=now.address, store=now.store)
        session = Session(where, bar.say)
        with published_or_not(session), session:
            result = session.go_on(life, bar.update)
    if not a.json:
        print(f"resumed: {result.recovered} tasks were agreed on before, and taken over")
    return report(result, a.json, life.options.strict)
