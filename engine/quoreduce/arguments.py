"""The parser of every command: options in full only, and an error is one line that says what was meant."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from quoreduce.printable import printable, printable_name


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are one line (exit 2) and name what is nearest."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and exit 2."""
        self.exit(2, f"{self.prog}: error: {printable(message)} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and refuse what is unknown here, where the options of this command are known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [word for word in unknown if word.startswith("-") and word != "-"]
            self.error(self._unknown(options[0]) if options else f"too many arguments: {printable_name(unknown[0])}")
        return found, unknown

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        return f"there is no option {printable_name(name)}{did_you_mean(name, self._option_string_actions)}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, unknown_name(value, action.choices))


class OldName(argparse.Action):
    """An option without a value that has a new name: it works, and says on stderr what it is called now."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str) -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        """Do what the option of the new name, ``const``, does."""
        print(f"{parser.prog}: {self.option_strings[0]} is called {self.const} now", file=sys.stderr)
        setattr(namespace, self.dest, True)


def unknown_name(given: object, known: Iterable[object]) -> str:
    """Say that a name is unknown, which known name is nearest, and which names exist."""
    names = [str(one) for one in known]
    return f"there is no {printable_name(repr(given))}{did_you_mean(str(given), names) or ':'} use {_listed(names)}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``: did you mean X?`` if a known name is near what was given, else nothing."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "another"
