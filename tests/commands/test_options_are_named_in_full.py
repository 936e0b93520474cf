"""What is mistyped is refused in one line that says what was meant; and usage lines say each thing once."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from test_numbers import OPTIONS, PARSERS, Option, named

from quoreduce.arguments import Parser
from quoreduce.cli import main

JOBS = Path(__file__).parent / "user_jobs.py"


@pytest.mark.parametrize(
    ("words", "says"),
    [("run wordcount a b --reducer 3", "quoreduce run: error: there is no option --reducer: did you mean --reducers?"),
     ("run --quite wordcount a b", "there is no option --quite: did you mean --quiet?"),
     ("run wordcount a b --reducer=3", "there is no option --reducer: did you mean --reducers?"),
     ("run wordcount a b --mode bff",
      "argument --mode: there is no 'bff': did you mean bft? use original, basic or bft"),
     ("run wordcount a b --zzzz", "there is no option --zzzz (see quoreduce run --help)"),
     ("rum wordcount a b", "argument COMMAND: there is no 'rum': did you mean run? use run, stream"),
     ("gridmix rum a b", "argument COMMAND: there is no 'rum': did you mean run?"),
     ("gridmix run a b --sweeps 3", "there is no option --sweeps: did you mean --sweep?"),
     ("attest verify a --nonc 00", "there is no option --nonc: did you mean --nonce?"),
     ("simulate run --node 3", "there is no option --node: did you mean --nodes?"),
     ("chaos --minute 1", "there is no option --minute: did you mean --minutes?"),
     ("vm launch i n --server s --cpu 2", "there is no option --cpu: did you mean --cpus?"),
     ("suspects --tests", "there is no option --tests: did you mean --test?"),
     ("verify a b", "quoreduce verify: error: too many arguments: b")],
)  # fmt: skip
def test_the_parser_says_what_was_meant(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(words.split())
    said = capsys.readouterr()
    assert (leave.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert says in said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [("run wrdcount a b", "unknown job 'wrdcount': did you mean wordcount?"),
     (f"run {JOBS} a b", f"name a job of that file, {JOBS}:NAME; its jobs are good, map_raises"),
     (f"run {JOBS}:map_rises a b", "has no 'map_rises'; its jobs are good, "),
     (f"run {JOBS}:map_rises a b", ": did you mean map_raises?"),
     (f"run {JOBS}:not_a_job a b", "is not a quoreduce.Job, it is of type "),
     ("chaos --faults kil --plan", "--faults: there is no 'kil': did you mean kill?"),
     ("check wordcount a --settings hsh", "--settings: there is no 'hsh': did you mean hash?"),
     ("gridmix run a b --app streamSrt", "--app: there is no 'streamSrt': did you mean streamSort?"),
     ("gridmix run a b --size smal", "there is no 'smal': did you mean small?"),
     ("suspects --clear nobody", "there is no 'nobody'")],
)  # fmt: skip
def test_a_name_that_is_none_brings_the_nearest(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert says in said.err


@pytest.mark.parametrize(
    "option", [one for one in OPTIONS if one[2].option_strings and len(one[2].dest) > 4], ids=named
)
def test_no_option_can_be_abbreviated(option: Option, capsys: pytest.CaptureFixture[str]) -> None:
    parser, _, action = option
    with pytest.raises(SystemExit):
        parser.parse_args([f"{action.option_strings[-1][:-1]}=1"])
    said = capsys.readouterr().err
    assert "there is no option" in said or "are required" in said


def test_each_usage_line_names_what_it_repeats_once(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "stream"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        usage = " ".join(capsys.readouterr().out.partition("\n\n")[0].split())
        assert usage.count("INPUT... OUTPUT") == 1
    assert usage == "usage: quoreduce stream --mapper CMD --reducer CMD INPUT... OUTPUT [OPTION...]"


def test_every_parser_of_every_command_is_ours() -> None:
    def parsers(one: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
        below = [action for action in one._actions if isinstance(action, argparse._SubParsersAction)]
        return [one, *(deep for action in below for command in action.choices.values() for deep in parsers(command))]

    assert all(isinstance(one, Parser) for make in PARSERS for one in parsers(make()))
