"""What is timed has a group, so that pytest-benchmark's tables compare like with like."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _has_a_group(request: pytest.FixtureRequest) -> Iterator[None]:
    timed = request.getfixturevalue("benchmark") if "benchmark" in request.fixturenames else None
    yield
    assert timed is None or timed.group, "say which group it belongs to: pytest.mark.benchmark(group=...)"
