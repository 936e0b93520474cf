"""What campaigns report: how much there was of what, and the seeds to do it again."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def says(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """``says(text)`` prints the text after the last test."""
    return lambda text: record_property("says", text)
