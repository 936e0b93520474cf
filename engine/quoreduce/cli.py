"""The command line. Results go to stdout, everything else to stderr; an error is one line, never a traceback.

The module of a command is imported when it is asked for, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from quoreduce import files, interrupts, terminal
from quoreduce.arguments import Parser
from quoreduce.commands.exits import EXIT_CODES, PUBLISHED
from quoreduce.errors import HostError, QuoreduceError
from quoreduce.printable import printable, printable_name
from quoreduce.version import __version__

COMMANDS = {  # name -> module, and its line of help
    "run": ("quoreduce.commands.run", "run a job"),
    "stream": ("quoreduce.commands.stream", "run a job of two commands that read and write lines"),
    "resume": ("quoreduce.commands.resume", "resume a job that ran with --durable and was cut short"),
    "check": (
        "quoreduce.commands.check.command",
        "look for what makes a job's output differ from run to run, or from machine to machine",
    ),
    "verify": ("quoreduce.commands.verify", "recompute every digest of an output against its manifest"),
    "validate": (
        "quoreduce.commands.validate.command",
        "check that an output is what the job promises (sort: order, count, checksum)",
    ),
    "generate": (
        "quoreduce.commands.generate.command",
        "make data: a text with Zipf-like words, or 100-byte sort records",
    ),
    "demo": (
        "quoreduce.commands.demo.command",
        "count a text and a generated one on Ray, plain and voted, with faults, and compare",
    ),
    "gridmix": ("quoreduce_gridmix.cli", "GridMix: generate its data, run its applications, report"),
    "attest": ("quoreduce.commands.attest.command", "attestation: prepare this machine, quote, verify, measure"),
    "simulate": (
        "quoreduce.commands.simulate.command",
        "the tracker on simulated nodes: one job, the slides' figures, calibration, validation",
    ),
    "suspects": ("quoreduce.commands.suspects.command", "cores and nodes that lost votes: list, test, clear"),
    "chaos": (
        "quoreduce.commands.chaos.command",
        "jobs under load while machines, disks and networks fail: a table of the results",
    ),
    "vm": (
        "quoreduce.commands.vm.command",
        "trusted VM operations: launch, migrate, back up, terminate; the attack; a demo",
    ),
    "doctor": (
        "quoreduce.commands.doctor.command",
        "show versions, cores, memory, shared memory, and whether Ray can be reached",
    ),
}


class _PrintCompletion(argparse.Action):
    """Print the script that completes our commands in a shell, and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, shell: Any, _option: str | None = None
    ) -> None:
        from quoreduce.commands.completion import script

        print(script(parser, parser_of, shell))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Build the parser of a command's name; the words after it are that command's to parse."""
    top = Parser(
        prog="quoreduce", description="Map/reduce whose every task runs f+1 times and is voted on by digest.",
        epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"quoreduce {__version__}")
    top.add_argument(
        "--print-completion", action=_PrintCompletion, choices=["bash", "zsh", "tcsh"], metavar="SHELL",
        help='print a completion script: eval "$(quoreduce --print-completion bash)"',
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, line) in COMMANDS.items():
        command = commands.add_parser(name, add_help=False, prefix_chars="\0", help=line)
        command.add_argument("words", nargs=argparse.REMAINDER)
    return top


def module_of(command: str) -> Any:
    """Import what a command is: a module with ``parser()`` and ``main(words)``."""
    return import_module(COMMANDS[command][0])


def parser_of(command: str) -> argparse.ArgumentParser:
    """A command's own parser."""
    parser: argparse.ArgumentParser = module_of(command).parser()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    interrupts.take()
    try:
        with interrupts.scope():
            return _checked(argv)
    finally:
        interrupts.give_back()


def _checked(argv: Sequence[str] | None) -> int:
    """Run a command; output that cannot be written is an error too, and a signal ends it through its clean-up."""
    try:
        with terminal.streams():
            return _main(argv)
    except terminal.OutputLost as lost:
        if lost.closed:
            return terminal.PIPE_CLOSED
        _complain(str(lost), lost)
        return HostError.exit_code
    except (KeyboardInterrupt, interrupts.Terminated) as error:
        return _ended_by_signal(error, argv is None)


def _main(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return int(module_of(arguments.command).main(arguments.words))
    except QuoreduceError as error:
        _complain(str(error), error)
        return error.exit_code
    except OSError as error:
        reason = f"{printable_name(error.filename)}: {error.strerror}" if error.filename else str(error)
        _complain(f"the machine failed: {reason}", error)
        return HostError.exit_code
    except Exception as error:
        if os.environ.get("QUOREDUCE_DEBUG") or isinstance(error, terminal.OutputLost):
            raise
        reason = f"{type(error).__name__}: {error}"
        _complain(f"internal error: {reason}; please report it (QUOREDUCE_DEBUG=1 shows where it is)", error)
        return QuoreduceError.exit_code


def _ended_by_signal(error: KeyboardInterrupt | interrupts.Terminated, for_good: bool) -> int:
    """Everything was left through its clean-up: say so. ``for_good``: the process is about to end."""
    if for_good:
        interrupts.ignore()
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else "terminated"
    with contextlib.suppress(OSError):  # the terminal may be gone
        _complain(text if PUBLISHED in getattr(error, "__notes__", ()) else f"{text}, nothing was published", error)
    code = int(error.code) if isinstance(error, interrupts.Terminated) and isinstance(error.code, int) else 130
    if (
        for_good and "ray" in sys.modules
    ):  # one that was interrupted while it started may crash when the interpreter ends
        files.remove_held()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _complain(text: str, error: BaseException) -> None:
    """Say what was wrong in one line, and what was noted about it."""
    with contextlib.suppress(OSError):
        print("quoreduce:", printable("; ".join((text, *getattr(error, "__notes__", ())))), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
