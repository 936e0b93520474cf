"""``quoreduce vm``: the commands of an owner of VMs."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quoreduce.commands.vm.printing import show
from quoreduce.errors import VmError

if TYPE_CHECKING:
    from quoreduce.vm.agents.user import RequestOutcome, UserAgent
    from quoreduce.vm.user_record import Vm


@contextlib.contextmanager
def _agent(a: argparse.Namespace, connect: bool = True) -> Iterator[UserAgent]:
    from quoreduce.vm.agents.folder import StateFolder, user_folder
    from quoreduce.vm.agents.user import UserAgent

    with StateFolder(user_folder(a.state), wait_s=1.0) as folder:
        agent = UserAgent(folder, lambda text: None if a.json else print(text, flush=True))
        try:
            if connect:
                agent.connect(a.manager)
            yield agent
        finally:
            agent.close()


def trust(a: argparse.Namespace) -> int:
    """Trust the servers of policies."""
    with _agent(a, connect=False) as agent:
        policy = agent.trust(a.policies)
    environments = list(policy.environments)
    known = {"environments": environments, "registrar": policy.registrar, "roots": len(policy.roots)}
    text = f"trusted: servers of registrar {str(policy.registrar)[:16]}, in {len(environments)} environment" + "s" * (
        len(environments) > 1
    )
    show(a.json, known, "\n".join([text, *(f"  {one}" for one in environments)]))
    return 0


def launch(a: argparse.Namespace) -> int:
    """Launch a VM."""
    from quoreduce.vm.ports import VmSpec

    spec = VmSpec(a.memory_mb, a.disk_mb, a.cpus)
    with _agent(a) as agent:
        return _ended(a, agent, a.name, lambda: agent.launch(a.image, a.name, a.server, spec, a.timeout))


def attest(a: argparse.Namespace) -> int:
    """Have servers attest that VMs run there."""
    from quoreduce.vm.user_ports import UserRequest
    from quoreduce.vm.user_record import NOWHERE

    with _agent(a) as agent:
        vms = [agent.vm(name) for name in a.names] or [vm for vm in agent.vms if vm.phase not in NOWHERE]
        answer = agent.request(*(UserRequest("ask", vm.vmid, _now()) for vm in vms), timeout_s=a.timeout)
        if a.json:
            print(
                json.dumps(
                    {
                        "vms": [_described(agent.names(), agent.core.vms[vm.vmid]) for vm in vms],
                        "attested": answer.lines,
                    }
                )
            )
        elif not vms:
            print("no VM runs")
        if not a.json:
            _say_left(agent)
    if answer.failure:
        raise VmError(answer.failure)
    return 0


def migrate(a: argparse.Namespace) -> int:
    """Move a VM to another server."""
    from quoreduce.vm.user_ports import UserRequest

    with _agent(a) as agent:
        vm = agent.vm(a.name)
        request = UserRequest("migrate", vm.vmid, _now(), agent.server(a.to), agent.policy())
        return _ended(a, agent, a.name, lambda: agent.migrated(request, a.timeout))


def backup(a: argparse.Namespace) -> int:
    """Back a VM up, and read the backup from the store."""
    with _agent(a) as agent:
        _ended(a, agent, a.name, lambda: _request(a, agent, "backup"))
        size = agent.check_stored(agent.vm(a.name))
        if not a.json:
            print(f"read back from the manager's store: {size:,} bytes, which are those of the receipt")
    return 0


def restore(a: argparse.Namespace) -> int:
    """Restore a VM from a backup."""
    from quoreduce.vm.user_ports import UserRequest

    with _agent(a) as agent:
        vm = agent.vm(a.name)
        if a.declare_lost:
            _request(a, agent, "declare lost")
        server = agent.server(a.server) if a.server else vm.server
        request = UserRequest("restore", vm.vmid, _now(), server, agent.policy(), a.number)
        return _ended(a, agent, a.name, lambda: agent.request(request, timeout_s=a.timeout))


def terminate(a: argparse.Namespace) -> int:
    """End a VM."""
    with _agent(a) as agent:
        return _ended(a, agent, a.name, lambda: _request(a, agent, "terminate"))


def update(a: argparse.Namespace) -> int:
    """Give servers the policy that is trusted now."""
    from quoreduce.vm.user_ports import UserRequest

    with _agent(a) as agent:
        policy = agent.policy()
        vms = [agent.vm(name) for name in a.names] or agent.vms
        answer = agent.request(
            *(UserRequest("update", vm.vmid, _now(), policy=policy) for vm in vms), timeout_s=a.timeout
        )
        if a.json:
            print(json.dumps({"vms": [_described(agent.names(), vm) for vm in vms], "said": answer.lines}))
    if answer.failure:
        raise VmError(answer.failure)
    return 0


def key(a: argparse.Namespace) -> int:
    """Show, export or import the user's keys."""
    from quoreduce.vm.agents.folder import StateFolder, user_folder
    from quoreduce.vm.agents.user import import_keys, own_id

    if a.action == "import":
        with StateFolder(user_folder(a.state), wait_s=1.0) as folder:
            vms = import_keys(folder, Path(a.file))
            known = {"user": own_id(folder.path), "vms": vms, "folder": str(folder.path)}
        text = (
            f"user {known['user']}, {vms} VMs, are in {known['folder']} now; resume each VM: it may be elsewhere by now"
        )
    else:
        with _agent(a, connect=False) as agent:
            known = {"user": agent.core.address, "vms": len(agent.vms)}
            text = agent.core.address
            if a.action == "export":
                agent.export(Path(a.file))
                known["file"] = a.file
                held = f"the keys of user {agent.core.address}, {len(agent.vms)} VMs"
                text = f"{a.file}: {held}; whoever has this file has them"
    show(a.json, known, text)
    return 0


def _say_left(agent: UserAgent) -> None:
    names = agent.names()
    for vm in agent.vms:
        if vm.left:
            servers = ", ".join(names.get(one.server, one.server[:12]) for one in vm.left)
            print(f"{vm.name}: not attested to be overwritten on {servers}: quoreduce vm resume {vm.name}")


def resume(a: argparse.Namespace) -> int:
    """Finish what was cut short."""
    with _agent(a) as agent:
        return _ended(a, agent, a.name, lambda: _request(a, agent, "abandon" if a.abandon else "resolve"))


def _request(
    a: argparse.Namespace,
    agent: UserAgent,
    operation: Literal["backup", "terminate", "resolve", "abandon", "declare lost"],
) -> RequestOutcome:
    from quoreduce.vm.user_ports import UserRequest

    return agent.request(UserRequest(operation, agent.vm(a.name).vmid, _now()), timeout_s=a.timeout)


def _ended(a: argparse.Namespace, agent: UserAgent, name: str, act: Callable[[], RequestOutcome]) -> int:
    """Run an operation; print how it ended, and how long it took."""
    began = time.monotonic()
    answer = act()
    if answer.failure:
        raise VmError(answer.failure)
    took = time.monotonic() - began
    if a.json:
        print(
            json.dumps({**_described(agent.names(), agent.vm(name)), "said": answer.lines, "seconds": round(took, 3)})
        )
    else:
        print(f"{a.command}: {took:.2f} s")
    return 0


def list_vms(a: argparse.Namespace) -> int:
    """List the VMs as the records have them now; a command that is under way is not waited for."""
    from quoreduce.vm.agents.folder import Records, user_folder
    from quoreduce.vm.agents.user import recorded, server_names

    folder = Records(user_folder(a.state))
    names = server_names(folder)
    rows = [_described(names, vm) for vm in recorded(folder)]
    if a.json:
        print(json.dumps({"vms": rows}))
        return 0
    if not rows:
        print("no VMs yet: quoreduce vm launch IMAGE NAME --server SERVER")
    for row in rows:
        left = f"; not attested to be overwritten on {', '.join(row['left'])}: resume it" if row["left"] else ""
        left += "; may be out of date: resume it" if row["stale"] else ""
        backup = f", backup {row['backup']}" if row["backup"] else ""
        if row["read_back"] < row["backup"]:
            backup += f" (not read back; {row['read_back']} was)" if row["read_back"] else " (not read back)"
        print(f"{row['name']:16} {row['vm']}  {row['phase']:12} {row['server'] or '-'}{backup}{left}")
    return 0


def _described(names: dict[str, str], vm: Vm) -> dict[str, Any]:
    """A VM as its record has it; ``names``: of servers, by identity."""
    return {
        "name": vm.name, "vm": vm.vmid.hex(), "phase": vm.phase, "server": names.get(vm.server, vm.server[:12]),
        "sequence": vm.sequence, "backup": vm.backup.counter if vm.backup else 0,
        "read_back": vm.whole.counter if vm.whole else 0,
        "left": [names.get(one.server, one.server[:12]) for one in vm.left], "stale": vm.stale,
    }  # fmt: skip


def _now() -> datetime:
    return datetime.now(UTC)
