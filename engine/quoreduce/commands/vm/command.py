"""``quoreduce vm``: trusted VM operations: images, servers, the manager, and the user's commands. See
docs/guide/vm.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from quoreduce.commands.vm import operators, users
from quoreduce.commands.vm.options import parser
from quoreduce.errors import HostError, UsageError, VmError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. If this machine cannot do it, that is a VmError."""
    a = parser().parse_args(argv)
    try:
        return _COMMANDS[a.command](a)
    except HostError as error:
        raise VmError(str(error)) from error


def _insider(a: argparse.Namespace) -> int:
    from quoreduce.vm.agents.channel import Address
    from quoreduce.vm.agents.insider import ask

    try:
        arguments = json.loads(a.arguments)
    except ValueError as error:
        raise UsageError(f"the arguments {a.arguments!r} are not a JSON object") from error
    print(ask(Address.parse(a.manager or os.environ.get("QUOREDUCE_VM_MANAGER", "")), a.server, a.vm, a.qmp, arguments))
    return 0


def _attack(a: argparse.Namespace) -> int:
    from quoreduce.commands.vm.attack import attack

    return attack(a.bare, a.json)


def _demo(a: argparse.Namespace) -> int:
    from quoreduce.commands.vm.demo import demo

    return demo(Path(a.image) if a.image else None, Path(a.keep) if a.keep else None, a.json)


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "image": operators.image,
    "server": operators.server,
    "manager": operators.manager,
    "policy": operators.policy,
    "measure": operators.measure,
    "trust": users.trust,
    "launch": users.launch,
    "attest": users.attest,
    "migrate": users.migrate,
    "backup": users.backup,
    "restore": users.restore,
    "terminate": users.terminate,
    "resume": users.resume,
    "list": users.list_vms,
    "update": users.update,
    "key": users.key,
    "insider": _insider,
    "attack": _attack,
    "demo": _demo,
}
