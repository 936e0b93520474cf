"""What ``from quoreduce import ...`` gives: every name is there, says what it is, and costs nothing until it is
used.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

import quoreduce


@pytest.mark.parametrize("name", [name for name in quoreduce.__all__ if name != "__version__"])
def test_a_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(quoreduce, name).__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Jobs'"):
        _ = quoreduce.Jobs


def test_the_import_alone_loads_nothing_heavy() -> None:
    code = (
        "import sys, quoreduce; print([name for name in ('numpy', 'numba', 'ray', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
