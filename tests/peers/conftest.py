"""Tests marked ``peers("NAME", ...)`` need these engines. Where one is missing they are left out, which is said in the end; with
QUOREDUCE_REQUIRE_ALL=1 they fail instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # where bench is

from bench.peers.engines import why_missing

LEFT_OUT = pytest.StashKey[dict[str, str]]()


def why(item: pytest.Item) -> str:
    """What is to be installed before a test can run; empty if nothing is."""
    names = [name for mark in item.iter_markers("peers") for name in mark.args]
    return "; ".join(dict.fromkeys(filter(None, map(why_missing, names))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("QUOREDUCE_REQUIRE_ALL") == "1":
        return
    left_out = {item: reason for item in items if (reason := why(item))}
    config.stash[LEFT_OUT] = {item.nodeid: reason for item, reason in left_out.items()}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := why(item):
        pytest.fail(f"QUOREDUCE_REQUIRE_ALL=1 leaves no test out. {reason}", pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, {})
    if left_out:
        terminalreporter.section(f"{len(left_out)} TESTS LEFT OUT: make venv-all, and a JDK", yellow=True)
        for name, reason in left_out.items():
            terminalreporter.write_line(f"{name}: {reason}")
