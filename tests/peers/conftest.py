"""Tests marked ``peers("NAME", ...)`` need these engines. Where one is missing they are left out, which is said in the
end; with QUOREDUCE_REQUIRE_ALL=1 they fail instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # where bench is

from bench.peers.engines import why_missing


def why(item: pytest.Item) -> str:
    """What is to be installed before a test can run; empty if nothing is."""
    names = [name for mark in item.iter_markers("peers") for name in mark.args]
    return "; ".join(dict.fromkeys(filter(None, map(why_missing, names))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("QUOREDUCE_REQUIRE_ALL") == "1":
        return
    left_out = [item for item in items if why(item)]
    for item in left_out:
        item.user_properties.append(("left out", why(item)))
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := why(item):
        pytest.fail(f"QUOREDUCE_REQUIRE_ALL=1 leaves no test out. {reason}", pytrace=False)
