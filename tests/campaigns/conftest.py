"""What campaigns report stands at the end of pytest's output: how much there was of what, and the seeds to do it again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def says(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``says(text)`` prints the text after the last test."""
    return request.config.stash.setdefault(_LINES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash.get(_LINES, []):
        terminalreporter.write_line(line)
