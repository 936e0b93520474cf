"""Standard output and standard error of a command: what is written there can be shown, and whether it was written is
checked.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from quoreduce.printable import printable_lines

PIPE_CLOSED = 141  # as a shell reports a command that SIGPIPE ended


class OutputLost(Exception):
    """Standard output cannot be written: its reader is gone, or its disk is full.

    It is no OSError, so that no command takes it for an error of its own files.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror or error}")
        self.closed = isinstance(error, BrokenPipeError)


class Stream:
    """A text stream. ``essential``: a write that fails raises OutputLost; else it is dropped. ``show`` makes text
    printable.
    """

    def __init__(self, stream: Any, essential: bool, show: Callable[[str], str] = printable_lines) -> None:
        self.stream = stream
        self._essential = essential
        self._show = show

    def write(self, text: str) -> int:
        """Write text and return how much of it was taken: all."""
        with self._checked():
            self.stream.write(self._show(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what is buffered."""
        with self._checked():
            self.stream.flush()

    def as_it_is(self) -> Stream:
        """The same stream for who writes escape sequences of his own, and makes foreign text printable himself."""
        return Stream(self.stream, self._essential, lambda text: text)

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._essential:
                raise OutputLost(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Put a :class:`Stream` in the place of sys.stdout and of sys.stderr; on leaving, what is buffered was written."""
    _open_missing()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a terminal without UTF-8
    sys.stdout, sys.stderr = Stream(sys.stdout, True), Stream(sys.stderr, False)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputLost:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), before[0].fileno()
        )  # else the interpreter tries once more when it exits
        raise
    finally:
        sys.stdout, sys.stderr = before


def _open_missing() -> None:
    """Open what is closed of the three standard streams, so that no file of ours gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def console(errors: bool = False, width: int | None = None) -> Any:
    """Return a rich Console on stdout (or stderr) that takes no text for markup; its caller makes foreign text
    printable.
    """
    from rich.console import Console

    stream: Any = sys.stderr if errors else sys.stdout
    file: Any = stream.as_it_is() if isinstance(stream, Stream) else stream
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def print_table(table: Any, width: int = 120) -> None:
    """Print a rich table on stdout: on a terminal as wide as that is, but never so narrow that a figure is cut.

    ``width``: where it is no terminal.
    """
    from rich.measure import Measurement

    out = console()
    shown = out.width if out.is_terminal else width
    least = Measurement.get(out, out.options.update(width=10_000), table).minimum
    console(width=max(shown, least)).print(table)
