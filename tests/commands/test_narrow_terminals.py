"""On a terminal of 60 columns, or of 40, all figures are shown: over more lines if need be."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.table import Table

from quoreduce import terminal
from quoreduce.commands.progress import ProgressBar, _columns
from quoreduce.driver.figures import Progress

STATE = Progress(tasks=12345, agreed=4938, executions=98765, votes=87654, faults=1234)


@pytest.mark.parametrize("columns", [40, 60, 80, 109, 110, 120, 149, 150, 200])
def test_progress_is_shown_whole(columns: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=columns, force_terminal=False, markup=False, highlight=False)
    with RichProgress(*_columns(columns), console=console, auto_refresh=False) as progress:
        ProgressBar(progress).update(STATE)
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= columns
    text = " ".join(shown.split())
    for figure in ("tasks agreed", "4938/12345", "40%", "executions 98765", "votes 87654", "faults 1234"):
        assert figure in text, shown
    assert "\u2026" not in text


def test_what_a_job_says_meanwhile_is_no_markup() -> None:
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=False, markup=False, highlight=False)
    with RichProgress(*_columns(60), console=console, auto_refresh=False) as progress:
        ProgressBar(progress).say("[red]name[/red]\x1b[1m")
    assert "[red]name[/red]\\u001b[1m" in out.getvalue()


@pytest.mark.parametrize("columns", ["40", "60"])
def test_a_table_is_wider_than_the_terminal_before_a_figure_is_cut(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table()
    figures = [f"{number}.{number}%" for number in range(100000, 100012)]
    for figure in figures:
        table.add_column(f"ratio {figure[3:6]}", no_wrap=True)
    table.add_row(*figures)
    terminal.print_table(table)
    shown = capsys.readouterr().out
    assert all(figure in shown for figure in figures)
    assert "\u2026" not in shown
