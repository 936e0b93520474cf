"""The live progress bar on stderr: tasks agreed on, executions, votes, faults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quoreduce.printable import printable
from quoreduce.terminal import console

if TYPE_CHECKING:
    from quoreduce.driver.figures import Progress


WIDE = 110  # columns that all figures and a short bar take
BAR_LEAST, BAR_USUAL = 6, 40


class ProgressBar:
    """Shows progress on ``progress``, a rich Progress; or nothing if that is None."""

    def __init__(self, progress: Any = None) -> None:
        self._progress = progress
        self._task: Any = None

    def say(self, text: str) -> None:
        """Print a line of status."""
        shown = printable(text)
        print(shown, file=sys.stderr) if self._progress is None else self._progress.console.print(shown)

    def update(self, state: Progress) -> None:
        """Show ``state``."""
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=state.tasks, executions=0, votes=0, faults=0)
        self._progress.update(
            self._task, completed=state.agreed, executions=state.executions, votes=state.votes, faults=state.faults
        )


@contextmanager
def progress_bar(visible: bool) -> Iterator[ProgressBar]:
    """Show a bar while the context lasts, if ``visible``."""
    if not visible:
        yield ProgressBar()
        return
    from rich.progress import Progress

    out = console(errors=True)
    with Progress(*_columns(out.width), console=out, refresh_per_second=8) as progress:
        yield ProgressBar(progress)


def _columns(width: int) -> tuple[Any, ...]:
    """The lines for a terminal of ``width`` columns: always all figures, over as many lines as they need."""
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    figures = "executions {task.fields[executions]}  votes {task.fields[votes]}  faults {task.fields[faults]}"
    if width >= WIDE:
        return (
            TextColumn("tasks agreed"), BarColumn(width - WIDE + BAR_LEAST if width < WIDE + BAR_USUAL else BAR_USUAL),
            MofNCompleteColumn(), TaskProgressColumn(), TextColumn(figures), TimeElapsedColumn(),
        )  # fmt: skip
    narrow = (
        "tasks agreed {task.completed:.0f}/{task.total:.0f} {task.percentage:.0f}%  {task.elapsed:.0f} s\n" + figures
    )
    return (TextColumn(narrow, table_column=Column(no_wrap=False, overflow="fold")),)
