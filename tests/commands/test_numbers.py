"""Every number of the command line, of Options, Place and Attest: finite, in range, or one line that says what it may
be.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import pytest

from quoreduce import Attest, Options, Place, stream_job
from quoreduce.cli import COMMANDS, module_of, parser
from quoreduce.errors import UsageError
from quoreduce.limits import BYTES, NUMBERS, RECORDS, Amount, Number, Numbers
from quoreduce.protocol.options import NUMBERS as FIELDS
from quoreduce.protocol.options import SWITCHES
from quoreduce.sim import cluster, simulation
from quoreduce.trust.wire import PCRS
from quoreduce.vm import ports
from quoreduce_gridmix import data, runner

WRONG = ("nan", "inf", "-inf", "1e400", "-1", str(10**30), "9" * 5000, "", "x", "0x10", "1_000", "\u0663")
NUMERIC = (Number, Numbers, Amount)
PARSERS = (parser, *(module_of(name).parser for name in COMMANDS))
Option = tuple[argparse.ArgumentParser, tuple[str, ...], argparse.Action]


def walk(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[Option]:
    """All arguments of a parser and of its commands, each with the parser and the words that lead there."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from walk(command, (*words, name))
        else:
            yield parser, words, action


OPTIONS = [option for make in PARSERS for option in walk(make())]
NUMBERED = [option for option in OPTIONS if isinstance(option[2].type, NUMERIC)]


def named(option: Option) -> str:
    return f"{option[0].prog} {'/'.join(option[2].option_strings) or option[2].dest}"


def test_no_option_takes_a_number_that_is_not_in_the_table() -> None:
    assert [named(option) for option in OPTIONS if option[2].type not in (None, bool) and option not in NUMBERED] == []
    assert len(NUMBERED) > 60


@pytest.mark.parametrize("option", NUMBERED, ids=named)
def test_what_is_no_number_in_range_is_one_line(option: Option, capsys: pytest.CaptureFixture[str]) -> None:
    parser, _, action = option
    for wrong in WRONG:
        given = [f"{action.option_strings[-1]}={wrong}"] if action.option_strings else [*before(parser, action), wrong]
        with pytest.raises(SystemExit) as leave:
            parser.parse_args(given)
        said = capsys.readouterr()
        assert (leave.value.code, said.out, said.err.count("\n")) == (2, "", 1)
        if action.option_strings or wrong[:1] != "-":
            assert (
                f"argument {'/'.join(action.option_strings) or action.metavar}: use a whole number"
                in said.err.replace("use a number", "use a whole number")
            )
            assert "not '" in said.err
            assert len(said.err) < 400


def before(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """Words for the arguments that come before this one."""
    positionals = [one for one in parser._actions if not one.option_strings]
    return [next(iter(one.choices or ["x"])) for one in positionals[: positionals.index(action)]]


@pytest.mark.parametrize("option", NUMBERED, ids=named)
def test_what_is_given_if_nothing_is_said_is_in_range(option: Option) -> None:
    _, _, action = option
    if action.default is not None:
        action.type(str(action.default))  # type: ignore[operator, misc]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("wrong", [True, "1", "", float("nan"), float("inf"), -1, 10**400, 1e308, [], 1j], ids=repr)
def test_a_field_of_options_is_a_number_in_range(name: str, wrong: object) -> None:
    with pytest.raises(UsageError, match=rf"^{name}: use a (whole )?number.*, not ") as caught:
        Options(**{name: wrong})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["f", "split_mb", "seed", "fault_seed"])
def test_a_field_that_has_to_be_there_is_not_none(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}: "):
        Options(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("wrong", [None, 1, "no"])
def test_a_switch_is_true_or_false(name: str, wrong: object) -> None:
    with pytest.raises(UsageError, match=f"^{name}: use True or False, not "):
        Options(**{name: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["flip:map:1", [1], 7, None])
def test_faults_are_a_tuple_of_texts(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"^faults: "):
        Options(faults=wrong)  # type: ignore[arg-type]


def test_other_fields_are_checked_as_well() -> None:
    for make in (
        lambda: Place(workers=0), lambda: Place(workers=True), lambda: Place(workers="2"), lambda: Attest(batch_size=0),
        lambda: Attest(batch_ms=float("nan")), lambda: Attest(batch_size=None),
        lambda: stream_job("cat", "cat", timeout_s=float("nan")),
        lambda: stream_job("cat", "cat", output_bytes_max=0),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=": use a "):
            make()  # type: ignore[no-untyped-call]


def test_a_number_of_numpy_is_as_good_as_one_of_python() -> None:
    options = Options(reducers=np.int64(3), split_mb=np.float32(0.5))  # type: ignore[arg-type]
    assert (type(options.reducers), type(options.split_mb)) == (int, float)
    assert (options.reducers, options.split_mb) == (3, 0.5)


def test_bounds_are_those_of_what_is_bounded() -> None:
    high = {name: number.high for name, number in NUMBERS.items()}
    assert (high["nodes"], high["slots"], high["simulated_tasks"]) == (
        cluster.NODES_MAX, cluster.SLOTS_MAX, simulation.TASKS_MAX,
    )  # fmt: skip
    assert (high["part_files"], high["repeat"], BYTES.high) == (data.PARTS_MAX, runner.REPEAT_MAX, data.NBYTES_MAX)
    assert high["pcr"] == PCRS - 1
    for name, bounds in (("memory_mb", ports.MEMORY_MB), ("disk_mb", ports.DISK_MB), ("cpus", ports.CPUS)):
        assert (NUMBERS[name].low, NUMBERS[name].high) == bounds


def test_an_amount_has_a_suffix_or_none() -> None:
    assert [RECORDS(text) for text in ("0", "1000", "2K", "3M", "4G")] == [0, 1000, 2000, 3_000_000, 4_000_000_000]
