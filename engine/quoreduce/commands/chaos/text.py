"""The results of a campaign as text: the columns and cells of its table, and the lines beside it."""

from __future__ import annotations

from quoreduce.chaos.tally import Campaign, Row

COLUMNS = (
    "fault", "injected", "jobs", "masked", "stopped", "found later", "wrong or partial", "more executions",
    "time ratio", "not masked",
)  # fmt: skip


def summary(campaign: Campaign) -> list[str]:
    """The lines that stand beside the table."""
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
            f"driver's memory, {m.stage}, {m.jobs} jobs: {m.first:.0f} MB at first, {m.last:.0f} at last, "
            f"at most {m.peak:.0f}" + ("" if m.flat else f": NOT FLAT, it grew by {m.growth:.0f} MB")
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
