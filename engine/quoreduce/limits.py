"""Every number that a user may give, on the command line or in Python: whether it is whole, and its range.

A :class:`Number` is the ``type`` of an argparse option, and what a dataclass checks its field with. In both cases an
error names the option, the range, and what was given.
"""

from __future__ import annotations

import argparse
import math
import numbers
import re
from dataclasses import dataclass
from typing import Any

from quoreduce.errors import UsageError
from quoreduce.printable import printable

TEXT_CHARS_MAX = 60
SEED_MAX = (1 << 63) - 1
DAY_S = 24 * 3600
SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class Number:
    """A number from ``low`` to ``high``, both included; ``above``: more than ``low``. ``unit``: in the plural."""

    low: float
    high: float
    unit: str = ""
    whole: bool = True
    above: bool = False

    def __str__(self) -> str:
        """For people."""
        kind = f"a {'whole ' * self.whole}number{f' of {self.unit}' if self.unit else ''}"
        if self.above:
            return f"{kind}, more than {_shown(self.low)} and at most {_shown(self.high)}"
        return f"{kind} from {_shown(self.low)} to {_shown(self.high)}"

    def holds(self, value: float) -> bool:
        """Whether a number is finite and in range."""
        return math.isfinite(value) and (self.low < value if self.above else self.low <= value) and value <= self.high

    def __call__(self, text: str) -> Any:
        """Parse what was given on a command line; argparse puts the option's name before the error."""
        value = self._parsed(text.strip())
        if value is None or not self.holds(value):
            raise argparse.ArgumentTypeError(f"use {self}, not {_given(text)}")
        return value

    def _parsed(self, text: str) -> float | None:
        if self.whole:
            return int(text) if re.fullmatch("[+-]?[0-9]{1,40}", text) else None
        try:
            return float(text) if text.isascii() and "_" not in text else None
        except ValueError:
            return None

    def checked(self, name: str, value: object) -> Any:
        """Return the value of a field as a plain int or float; UsageError if it is something else, or out of range."""
        wanted = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, wanted) or not _finite(value) or not self.holds(value):  # type: ignore[arg-type]
            raise UsageError(f"{name}: use {self}, not {_given(value)}")
        plain: Any = value
        return plain if isinstance(plain, int | float) else int(plain) if self.whole else float(plain)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Several numbers on a command line, with commas between; the ``type`` of an option whose value is a tuple."""

    one: Number

    def __call__(self, text: str) -> tuple[Any, ...]:
        """Parse them."""
        try:
            return tuple(self.one(part) for part in text.split(","))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(
                f"use {self.one}, or several with commas between, not {_given(text)}"
            ) from error


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of bytes or records on a command line, up to ``high``: ``1000``, ``256M``, ``1G``, in powers of 1000."""

    high: int

    def __call__(self, text: str) -> int:
        """Parse it."""
        match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", text)
        amount = int(match[1]) * SUFFIXES[match[2]] if match else self.high + 1
        if amount > self.high:
            raise argparse.ArgumentTypeError(
                f"use a whole number up to {_shown(self.high)}, with K, M, G or T for powers of 1000, "
                f"not {_given(text)}"
            )
        return amount


NUMBERS = {
    # options of a job
    "f": Number(0, 16, "faults"),
    "reducers": Number(1, 4096, "parts"),
    "split_mb": Number(1e-6, 1e6, "MB", whole=False),
    "deadline_s": Number(0, 30 * DAY_S, "seconds", whole=False, above=True),
    "attempts_max": Number(1, 10_000, "executions"),
    "seed": Number(0, SEED_MAX),
    "fault_seed": Number(0, SEED_MAX),
    "workers": Number(1, 4096, "workers"),
    "batch_size": Number(1, 1 << 20, "executions"),
    "batch_ms": Number(0, 60_000, "milliseconds"),
    "timeout_s": Number(0, 7 * DAY_S, "seconds", whole=False, above=True),
    "output_bytes_max": Number(1, 1 << 40, "bytes"),
    # commands
    "sample_mb": Number(1e-6, 1e6, "MB", whole=False),
    "time_limit_s": Number(0, DAY_S, "seconds", whole=False, above=True),
    "generated_mb": Number(1, 100_000, "MB"),
    "first": Number(0, 10**18),
    "minutes": Number(0, 24 * 60, "minutes", whole=False, above=True),
    "jobs": Number(1, 1_000_000, "jobs"),
    "tasks": Number(1, 1 << 20, "tasks"),
    "batch": Number(1, 1 << 16, "executions"),
    "pcr": Number(0, 23),
    # simulate
    "nodes": Number(1, 100_000, "nodes"),
    "slots": Number(1, 1024, "slots"),
    "simulated_tasks": Number(1, 10_000_000, "tasks"),
    "speed": Number(0, 1e6, whole=False, above=True),
    "calibration_mb": Number(1, 4096, "MB"),
    # vm
    "memory_mb": Number(16, 1 << 20, "MiB"),
    "disk_mb": Number(1, 1 << 20, "MiB"),
    "cpus": Number(1, 256, "processors"),
    "backup": Number(0, SEED_MAX),
    "silence_s": Number(0, DAY_S, "seconds", whole=False, above=True),
    # gridmix
    "part_files": Number(1, 100_000, "part files"),
    "repeat": Number(1, 1000, "runs"),
    "warm_up": Number(0, 1000, "runs"),
}
RECORDS = Amount(10**15)
BYTES = Amount(1 << 50)


def check_fields(options: object, names: tuple[str, ...]) -> None:
    """Check fields of a frozen dataclass, each by the number of its name; None stays None where it is the default."""
    for name in names:
        value = getattr(options, name)
        if value is not None or type(options).__dataclass_fields__[name].default is not None:  # type: ignore[attr-defined]
            object.__setattr__(options, name, NUMBERS[name].checked(name, value))


def check_switches(options: object, names: tuple[str, ...]) -> None:
    """Check that fields are True or False."""
    for name in names:
        if not isinstance(getattr(options, name), bool):
            raise UsageError(f"{name}: use True or False, not {_given(getattr(options, name))}")


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float is as large as
        return False


def _shown(bound: float) -> str:
    return f"{bound:,.0f}" if bound == round(bound) else f"{bound:f}".rstrip("0")


def _given(value: object) -> str:
    return printable(repr(value), TEXT_CHARS_MAX)
