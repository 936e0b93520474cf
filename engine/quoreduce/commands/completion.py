"""Completion scripts for shells, made from the parsers of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from quoreduce.errors import HostError


def script(top: argparse.ArgumentParser, parser_of: Callable[[str], argparse.ArgumentParser], shell: str) -> str:
    """Return the completion script of ``top`` and of the commands in it, for ``bash``, ``zsh`` or ``tcsh``.

    ``parser_of``: a command's own parser, by its name; ``top``, which only names commands, is given all of them, and
    cannot parse afterwards. Raises HostError without shtab.
    """
    try:
        import shtab
    except ImportError as error:
        raise HostError("completion scripts are made by shtab: pip install shtab") from error
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in action.choices:
                action.choices[name] = parser_of(name)
    return str(shtab.complete(top, shell))
