"""Loads the machines of VM operations with bugs planted in them, beside the real ones."""

from __future__ import annotations

import sys
from importlib.resources import files
from types import ModuleType, SimpleNamespace
from typing import Any

ORDER = (
    "sealing",
    "evidence",
    "owners",
    "ports",
    "tcom/status",
    "tcom/launch",
    "tcom/backup",
    "tcom/terminate",
    "tcom/migrate_out",
    "tcom/migrate_in",
    "server_sessions",
    "server_admission",
    "server_recovery",
    "server",
    "user_record",
    "user_judge",
    "user_ports",
    "user_orders",
    "user_answers",
    "user",
)  # fmt: skip  who imports whom; the messages stay, since they are the language that all speak


def load(edits: list[tuple[str, str, str]]) -> Any:
    """The machines, changed by ``edits``: module, passage, replacement. They are forgotten by :func:`forget`."""
    for name in ORDER:
        source = files("quoreduce.vm").joinpath(f"{name}.py").read_text()
        for passage, replacement in [(old, new) for where, old, new in edits if where == name]:
            assert source.count(passage) == 1, f"{passage!r} is there {source.count(passage)} times in {name}.py"
            source = source.replace(passage, replacement)
        for other in ORDER:
            source = source.replace(
                f"from quoreduce.vm.{other.replace('/', '.')} import", f"from {_mutant(other)} import"
            )
        source = source.replace(
            "from quoreduce.vm import evidence, wire",
            f"import {_mutant('evidence')} as evidence\nfrom quoreduce.vm import wire",
        )
        source = source.replace("from quoreduce.vm.tcom import status", f"import {_mutant('tcom/status')} as status")
        module = sys.modules[_mutant(name)] = ModuleType(_mutant(name))
        exec(compile(source, f"{_mutant(name)}.py", "exec"), module.__dict__)
    one = {name: sys.modules[_mutant(name)] for name in ORDER}
    server = one["server"].Server  # type: ignore[attr-defined]
    return SimpleNamespace(
        ports=one["ports"],
        sealing=one["sealing"],
        owners=one["owners"],
        Server=server,
        user=one["user"],
        user_ports=one["user_ports"],
        user_record=one["user_record"],
    )


def forget() -> None:
    for name in ORDER:
        sys.modules.pop(_mutant(name), None)


def _mutant(name: str) -> str:
    return "mutant_vm_" + name.replace("/", "_")
