"""``quoreduce --print-completion``: a script that completes each command, and what a shell offers with it."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from quoreduce.cli import COMMANDS, parser, parser_of
from quoreduce.commands.completion import script


def commands_of(one: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    below = [action for action in one._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: sub for action in below for name, sub in action.choices.items()}


def printed(shell: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "quoreduce", "--print-completion", shell], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_every_command_is_named(shell: str) -> None:
    text = printed(shell)
    top = parser()
    script(top, parser_of, shell)  # puts the parsers of the commands where they belong
    names = [name for one in (top, *commands_of(top).values()) for name in commands_of(one)]
    assert {"run", "vm", "launch", "slides", "setup", "generate"} <= set(names)
    assert [name for name in names if name not in text] == []


def test_each_command_is_completed_by_its_own_parser() -> None:
    assert [parser_of(name).prog for name in COMMANDS] == [f"quoreduce {name}" for name in COMMANDS]


@pytest.mark.parametrize(("line", "offered"), [
    ("quoreduce val", ["validate"]), ("quoreduce vm lau", ["launch"]), ("quoreduce run --split", ["--split-mb"]),
    ("quoreduce run --mode b", ["basic", "bft"]), ("quoreduce suspects --cl", ["--clear"]),
])  # fmt: skip
def test_bash_offers_what_fits(line: str, offered: list[str]) -> None:
    words = line.split()
    asked = f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_quoreduce; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"{printed('bash')}\n{asked}"], capture_output=True, text=True)
    assert done.stdout.split() == offered, done.stderr
