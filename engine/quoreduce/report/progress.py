"""The live progress bar on stderr: tasks agreed on, executions, votes, faults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quoreduce.runtime.figures import Progress


class Bar:
    """Shows progress on ``progress``, a rich Progress; or nothing if that is None."""

    def __init__(self, progress: Any = None) -> None:
        self._progress = progress
        self._task: Any = None

    def say(self, text: str) -> None:
        """Print a line of status."""
        print(text, file=sys.stderr) if self._progress is None else self._progress.console.print(text)

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
def progress_bar(visible: bool) -> Iterator[Bar]:
    """Show a bar while the context lasts, if ``visible``."""
    if not visible:
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("tasks agreed"), BarColumn(), MofNCompleteColumn(),
        TextColumn("executions {task.fields[executions]}  votes {task.fields[votes]}  faults {task.fields[faults]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=8) as progress:
        yield Bar(progress)
