"""``quoreduce vm``: trusted VM operations: images, servers, the manager, and the user's commands. See docs/vm.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from quoreduce.arguments import Parser
from quoreduce.errors import HostError, UsageError, VmError
from quoreduce.limits import NUMBERS

if TYPE_CHECKING:
    from quoreduce.cloud.agents.user import Answer, UserAgent
    from quoreduce.cloud.user_record import Vm

KEY_BYTES_MAX: Final = 1 << 16
STATE_HELP: Final = "the user's folder: keys, what is trusted, records of VMs (default: QUOREDUCE_VM, or in ~/.local/state)"
MANAGER_HELP: Final = "where the manager listens: unix:PATH or tcp:127.0.0.1:PORT (default: QUOREDUCE_VM_MANAGER, or as last time)"
TIMEOUT_S: Final = 240.0  # the user's core asks again, and then finds out where a VM is, before


def parser() -> argparse.ArgumentParser:
    """Build the parser of all of its commands."""
    top = Parser(
        prog="quoreduce vm", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trusted VM operations: launch, migrate, back up and terminate VMs on servers that attest what they run, through a\n"
        "manager that nobody trusts. See docs/vm.md.",
        epilog="a first session, in one command: quoreduce vm demo",
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _cloud_parsers(commands)
    _user_parsers(commands)
    _key_parsers(commands)
    _show_parsers(commands)
    return top


def _cloud_parsers(commands: Any) -> None:
    image = commands.add_parser("image", help="build a guest image: Debian's cloud kernel and a small system in memory; reproducible")
    image.add_argument("out", metavar="OUT", help="the image, a file that does not exist yet")
    image.add_argument("--plant", metavar="KEY", help="an RSA key (PEM or DER) that the guest keeps in memory: what the attack looks for")
    image.add_argument("--kernel", metavar="FILE", help="a kernel to use (default: Debian's cloud kernel, downloaded with apt)")
    image.add_argument("--json", action="store_true", help="print one JSON object")
    server = commands.add_parser(
        "server", help="run a server: its TPM, its trusted operations, its VMs",
        description="Runs until SIGTERM. Killed and started again, it takes its VMs up again. Needs swtpm and QEMU.",
    )  # fmt: skip
    server.add_argument("--state", required=True, metavar="DIR", help="its folder: TPM, records of VMs; made if it is missing")
    server.add_argument("--manager", required=True, metavar="ADDR", help="unix:PATH or tcp:127.0.0.1:PORT")
    server.add_argument("--name", metavar="NAME", help="under which it is reached (default: the name of DIR)")
    server.add_argument("--site", metavar="DIR", help="certificate authority and registrar of the site (default: site, beside --state)")
    server.add_argument("--run", metavar="DIR", help="where VMs live: a folder in memory (default: one in /dev/shm)")
    server.add_argument(
        "--owners", metavar="FILE",
        help="who may have VMs here: a user's id a line, then vms=N mb=N if wanted (default: you alone, by the keys in your folder)",
    )  # fmt: skip
    server.add_argument(
        "--new-tpm", action="store_true",
        help="its TPM is dead for good: make another, which is another server; the VMs that are here are ended, for nobody can attest them",
    )  # fmt: skip
    server.add_argument("--accel", choices=["kvm", "tcg"], help="how guests run (default: KVM if it is seen to run one, else TCG)")
    server.add_argument("--allow-dump", action="store_true", help="for demonstrations: lets VMs be dumped; another TVE, that no user should trust")
    manager = commands.add_parser("manager", help="run the manager, which nobody trusts: it passes letters on and stores blobs")
    manager.add_argument("address", metavar="ADDR", help="where it listens: unix:PATH or tcp:127.0.0.1:PORT")
    manager.add_argument("--store", metavar="DIR", help="where images and backups lie, encrypted (default: in ~/.local/state)")
    manager.add_argument("--record", metavar="FILE", help="append all that goes through it to this file")
    policy = commands.add_parser(
        "policy", help="print what a user needs to know to trust the servers of a site",
        description="Prints the CA of the servers' TPMs, the registrar, and the measurement of this installation's TVE, as JSON. The user\n"
        "has to get it in a way that he trusts: whoever gives him another one gives him other servers.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    policy.add_argument("--state", required=True, metavar="DIR", help="of a server of that site")
    policy.add_argument("--site", metavar="DIR", help="as for vm server")
    measure = commands.add_parser("measure", help="print what a server of this installation attests, and which files make it differ from another")
    measure.add_argument("--against", metavar="FILE", help="what `vm measure --json` printed elsewhere, or measured.json in a server's folder")
    measure.add_argument("--json", action="store_true", help="print one JSON object")


def _user_parsers(commands: Any) -> None:
    trust = _user(commands, "trust", "trust the servers that policies describe, and no others any more", manager=False)
    trust.add_argument("policies", nargs="+", metavar="POLICY", help="files that `quoreduce vm policy` printed")
    launch = _user(commands, "launch", "launch a VM on a server that attests what it is")
    launch.add_argument("image", metavar="IMAGE", help="that `quoreduce vm image` built")
    launch.add_argument("name", metavar="NAME", help="of the VM, among the user's")
    launch.add_argument("--server", required=True, metavar="NAME", help="where it is to run")
    launch.add_argument("--memory-mb", type=NUMBERS["memory_mb"], default=128, metavar="MB", help="default 128")
    launch.add_argument("--disk-mb", type=NUMBERS["disk_mb"], default=16, metavar="MB", help="default 16")
    launch.add_argument("--cpus", type=NUMBERS["cpus"], default=1, metavar="N", help="default 1")
    attest = _user(commands, "attest", "ask the servers to attest that VMs run, and where")
    attest.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    migrate = _user(commands, "migrate", "move a running VM to another server, with its memory, disk and TPM")
    migrate.add_argument("name", metavar="NAME")
    migrate.add_argument("--to", required=True, metavar="SERVER", help="both servers attest each other first")
    _user(commands, "backup", "store a VM, encrypted for its owner; it goes on running").add_argument("name", metavar="NAME")
    restore = _user(commands, "restore", "launch a VM from its newest backup, or the last one that was read back")
    restore.add_argument("name", metavar="NAME")
    restore.add_argument("--server", metavar="NAME", help="default: where it was last")
    restore.add_argument("--number", type=NUMBERS["backup"], default=0, metavar="N", help="which backup, as `vm backup` said; default: the newest")
    restore.add_argument(
        "--declare-lost", action="store_true",
        help="the VM may still run somewhere, and I say that it never will again: if that is wrong, two will run",
    )  # fmt: skip
    terminate = _user(commands, "terminate", "end a VM: overwrite its memory, disk and TPM, with a receipt")
    terminate.add_argument("name", metavar="NAME")
    update = _user(commands, "update", "have VMs go by what is trusted now, after `vm trust`: when servers were upgraded")
    update.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    resume = _user(commands, "resume", "go on with what was cut short, end copies that were left behind, or give a destination up")
    resume.add_argument("name", metavar="NAME")
    resume.add_argument(
        "--abandon", action="store_true",
        help="the destination of a migration is gone for good, and I say so: the source goes on with what it had; if that is wrong, two will run",
    )  # fmt: skip
    _user(commands, "list", "list the VMs as the user's records have them", manager=False)


def _key_parsers(commands: Any) -> None:
    key = commands.add_parser(
        "key", help="show the user's id, or take keys and records to another folder",
        description="A user's id is what a server's list of owners names. Who has an exported file has the user's VMs: keep it as you keep the\n"
        "folder. Of the two folders use one only: what was ordered from the other one since is found by `quoreduce vm resume`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = key.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("show", "print the user's id"),
        ("export", "write keys, policy and records to a file, for its owner only"),
        ("import", "take them from such a file, into a folder without keys"),
    ):
        action = _user(actions, name, text, manager=False)
        if name != "show":
            action.add_argument("file", metavar="FILE")


def _user(commands: Any, name: str, text: str, manager: bool = True) -> Any:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument("--state", metavar="DIR", help=STATE_HELP)
    if manager:
        command.add_argument("--manager", metavar="ADDR", help=MANAGER_HELP)
        command.add_argument("--timeout", type=NUMBERS["silence_s"], default=TIMEOUT_S, metavar="S", help="seconds of silence to bear (default 240)")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


def _show_parsers(commands: Any) -> None:
    insider = commands.add_parser("insider", help="what somebody at the manager can do: send a QMP command to a VM's broker")
    insider.add_argument("server", metavar="SERVER")
    insider.add_argument("vm", metavar="VM", help="32 hexadecimal digits, as `quoreduce vm list` shows")
    insider.add_argument("qmp", metavar="QMP-COMMAND", help="such as dump-guest-memory")
    insider.add_argument("arguments", metavar="JSON", nargs="?", default="{}", help="its arguments, a JSON object")
    insider.add_argument("--manager", metavar="ADDR", help="default: QUOREDUCE_VM_MANAGER")
    attack = commands.add_parser("attack", help="dump a guest's memory and look for the key in it, without the broker and with it")
    attack.add_argument("--bare", action="store_true", help="without the broker only")
    attack.add_argument("--json", action="store_true", help="print one JSON object")
    demo = commands.add_parser("demo", help="a manager, two servers, a VM's whole life, checked: a transcript with times")
    demo.add_argument("--image", metavar="FILE", help="default: one is built")
    demo.add_argument("--keep", metavar="DIR", help="do all in this folder, which does not exist yet, and leave it")
    demo.add_argument("--json", action="store_true", help="print one JSON object")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. What this machine cannot do is an operation that cannot be done: VmError."""
    a = parser().parse_args(argv)
    try:
        return _COMMANDS[a.command](a)
    except HostError as error:
        raise VmError(str(error)) from error


# ---- the cloud's side


def _image(a: argparse.Namespace) -> int:
    from quoreduce.cloud.image import build

    out = Path(a.out)
    if out.exists():
        raise UsageError(f"{out} exists: choose another name")
    built = build(out, kernel=Path(a.kernel) if a.kernel else None, plant=_planted(a.plant) if a.plant else None)
    known = {"image": str(built.path), "sha256": built.digest.hex(), "bytes": built.bytes, "kernel": built.kernel_version}
    _print(a.json, known, f"{built.path}: {built.bytes:,} bytes, SHA-256 {built.digest.hex()}, Linux {built.kernel_version}")
    return 0


def _planted(name: str) -> bytes:
    from quoreduce.reading import read_file

    return read_file(Path(name), KEY_BYTES_MAX)


def _server(a: argparse.Namespace) -> int:
    from quoreduce.cloud import boot
    from quoreduce.cloud.agents.channel import Address
    from quoreduce.cloud.agents.site import check_programs, site_folder
    from quoreduce.cloud.agents.start import become

    check_programs(boot.PATH)
    state = Path(a.state).expanduser().resolve()
    Address.parse(a.manager)
    owners, user = _owners(a.owners)
    become("server", {
        "state": str(state), "manager": a.manager, "name": _agent_name(a.name or state.name),
        "site": str(site_folder(state, a.site)), "owners": owners, "user": user, "run": a.run, "allow_dump": a.allow_dump,
        "accel": a.accel, "new_tpm": a.new_tpm,
    })  # fmt: skip


def _owners(name: str | None) -> tuple[str | None, str]:
    """What a server is told of its owners: the file that lists them, which can be read; else who starts it, as a user."""
    from quoreduce.cloud.agents.folder import user_folder
    from quoreduce.cloud.agents.start import listed_owners
    from quoreduce.cloud.agents.user import own_id

    if name is not None:
        path = str(Path(name).expanduser().resolve())
        listed_owners(path, "")
        return path, ""
    user = own_id(user_folder())
    _log(f"serves user {user} alone, whose keys are in {user_folder()}; others: --owners FILE")
    return None, user


def _agent_name(name: str) -> str:
    import re

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name):
        raise UsageError(f"--name {name!r}: use up to 80 letters, digits and _ . - (a letter or digit first)")
    return name


def _log(text: str) -> None:
    """One line, with the time to the millisecond."""
    now = datetime.now(UTC)
    print(f"{now:%H:%M:%S}.{now.microsecond // 1000:03d} {text}", file=sys.stderr, flush=True)


def _manager(a: argparse.Namespace) -> int:
    import signal

    from quoreduce.cloud.agents.channel import Address
    from quoreduce.cloud.agents.folder import user_folder
    from quoreduce.cloud.agents.manager import Manager

    address = Address.parse(a.address)
    store = Path(a.store).expanduser() if a.store else user_folder().parent / "vm-store"
    manager = Manager(address, store, Path(a.record) if a.record else None)
    try:
        _log(f"manager at {address}: it is not trusted by anybody; blobs in {store}")
        signal.signal(signal.SIGTERM, lambda *_: manager.close())
        signal.signal(signal.SIGINT, lambda *_: manager.close())
        manager.serve()
    finally:
        manager.close()
    return 0


def _policy(a: argparse.Namespace) -> int:
    from quoreduce.cloud import boot
    from quoreduce.cloud.agents.site import check_programs, site_folder
    from quoreduce.cloud.agents.start import become

    check_programs(boot.PATH)
    state = Path(a.state).expanduser().resolve()
    if not (state / "swtpm").is_dir():
        raise UsageError(f"{state} is no server's folder: start the server once, `quoreduce vm server --state {state} ...`")
    become("policy", {"state": str(state), "site": str(site_folder(state, a.site))})


def _measure(a: argparse.Namespace) -> int:
    from quoreduce.cloud import boot
    from quoreduce.cloud.agents.site import check_programs
    from quoreduce.cloud.agents.start import become

    check_programs(boot.PATH)
    become("measure", {"against": str(Path(a.against).expanduser().resolve()) if a.against else None, "as_json": a.json})


# ---- the user's side


@contextlib.contextmanager
def _agent(a: argparse.Namespace, connect: bool = True) -> Iterator[UserAgent]:
    from quoreduce.cloud.agents.folder import StateFolder, user_folder
    from quoreduce.cloud.agents.user import UserAgent

    with StateFolder(user_folder(a.state), wait_s=1.0) as folder:
        agent = UserAgent(folder, lambda text: None if a.json else print(text, flush=True))
        try:
            if connect:
                agent.connect(a.manager)
            yield agent
        finally:
            agent.close()


def _trust(a: argparse.Namespace) -> int:
    with _agent(a, connect=False) as agent:
        policy = agent.trust(a.policies)
    environments = list(policy.environments)
    known = {"environments": environments, "registrar": policy.registrar, "roots": len(policy.roots)}
    text = f"trusted: servers of registrar {str(policy.registrar)[:16]}, in {len(environments)} environment" + "s" * (len(environments) > 1)
    _print(a.json, known, "\n".join([text, *(f"  {one}" for one in environments)]))
    return 0


def _launch(a: argparse.Namespace) -> int:
    from quoreduce.cloud.ports import VmSpec

    spec = VmSpec(a.memory_mb, a.disk_mb, a.cpus)
    with _agent(a) as agent:
        return _ended(a, agent, a.name, lambda: agent.launch(a.image, a.name, a.server, spec, a.timeout))


def _attest(a: argparse.Namespace) -> int:
    from quoreduce.cloud.user_ports import Wish
    from quoreduce.cloud.user_record import NOWHERE

    with _agent(a) as agent:
        vms = [agent.vm(name) for name in a.names] or [vm for vm in agent.vms if vm.phase not in NOWHERE]
        answer = agent.wish(*(Wish("ask", vm.vmid, _now()) for vm in vms), timeout_s=a.timeout)
        if a.json:
            print(json.dumps({"vms": [_described(agent.names(), agent.core.vms[vm.vmid]) for vm in vms], "attested": answer.lines}))
        elif not vms:
            print("no VM runs")
        if not a.json:
            _say_left(agent)
    if answer.failure:
        raise VmError(answer.failure)
    return 0


def _migrate(a: argparse.Namespace) -> int:
    from quoreduce.cloud.user_ports import Wish

    with _agent(a) as agent:
        vm = agent.vm(a.name)
        wish = Wish("migrate", vm.vmid, _now(), agent.server(a.to), agent.policy())
        return _ended(a, agent, a.name, lambda: agent.migrated(wish, a.timeout))


def _backup(a: argparse.Namespace) -> int:
    with _agent(a) as agent:
        _ended(a, agent, a.name, lambda: _wished(a, agent, "backup"))
        size = agent.check_stored(agent.vm(a.name))
        if not a.json:
            print(f"read back from the manager's store: {size:,} bytes, which are those of the receipt")
    return 0


def _restore(a: argparse.Namespace) -> int:
    from quoreduce.cloud.user_ports import Wish

    with _agent(a) as agent:
        vm = agent.vm(a.name)
        if a.declare_lost:
            _wished(a, agent, "declare lost")
        server = agent.server(a.server) if a.server else vm.server
        wish = Wish("restore", vm.vmid, _now(), server, agent.policy(), a.number)
        return _ended(a, agent, a.name, lambda: agent.wish(wish, timeout_s=a.timeout))


def _terminate(a: argparse.Namespace) -> int:
    with _agent(a) as agent:
        return _ended(a, agent, a.name, lambda: _wished(a, agent, "terminate"))


def _update(a: argparse.Namespace) -> int:
    from quoreduce.cloud.user_ports import Wish

    with _agent(a) as agent:
        policy = agent.policy()
        vms = [agent.vm(name) for name in a.names] or agent.vms
        answer = agent.wish(*(Wish("update", vm.vmid, _now(), policy=policy) for vm in vms), timeout_s=a.timeout)
        if a.json:
            print(json.dumps({"vms": [_described(agent.names(), vm) for vm in vms], "said": answer.lines}))
    if answer.failure:
        raise VmError(answer.failure)
    return 0


def _key(a: argparse.Namespace) -> int:
    from quoreduce.cloud.agents.folder import StateFolder, user_folder
    from quoreduce.cloud.agents.user import import_keys, own_id

    if a.action == "import":
        with StateFolder(user_folder(a.state), wait_s=1.0) as folder:
            vms = import_keys(folder, Path(a.file))
            known = {"user": own_id(folder.path), "vms": vms, "folder": str(folder.path)}
        text = f"user {known['user']}, {vms} VMs, are in {known['folder']} now; resume each VM: it may be elsewhere by now"
    else:
        with _agent(a, connect=False) as agent:
            known = {"user": agent.core.address, "vms": len(agent.vms)}
            text = agent.core.address
            if a.action == "export":
                agent.export(Path(a.file))
                known["file"] = a.file
                text = f"{a.file}: the keys of user {agent.core.address}, {len(agent.vms)} VMs; whoever has this file has them"
    _print(a.json, known, text)
    return 0


def _say_left(agent: UserAgent) -> None:
    names = agent.names()
    for vm in agent.vms:
        if vm.left:
            servers = ", ".join(names.get(one.server, one.server[:12]) for one in vm.left)
            print(f"{vm.name}: not attested to be overwritten on {servers}: quoreduce vm resume {vm.name}")


def _resume(a: argparse.Namespace) -> int:
    with _agent(a) as agent:
        return _ended(a, agent, a.name, lambda: _wished(a, agent, "abandon" if a.abandon else "resolve"))


def _wished(
    a: argparse.Namespace, agent: UserAgent, operation: Literal["backup", "terminate", "resolve", "abandon", "declare lost"]
) -> Answer:
    from quoreduce.cloud.user_ports import Wish

    return agent.wish(Wish(operation, agent.vm(a.name).vmid, _now()), timeout_s=a.timeout)


def _ended(a: argparse.Namespace, agent: UserAgent, name: str, act: Callable[[], Answer]) -> int:
    """Do it; say how it ended, and how long it took."""
    began = time.monotonic()
    answer = act()
    if answer.failure:
        raise VmError(answer.failure)
    took = time.monotonic() - began
    if a.json:
        print(json.dumps({**_described(agent.names(), agent.vm(name)), "said": answer.lines, "seconds": round(took, 3)}))
    else:
        print(f"{a.command}: {took:.2f} s")
    return 0


def _list(a: argparse.Namespace) -> int:
    """What the records say now: a command that is under way is not waited for."""
    from quoreduce.cloud.agents.folder import Records, user_folder
    from quoreduce.cloud.agents.user import recorded, server_names

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
    """A VM as its record has it; ``names``: of servers, by their identities."""
    return {
        "name": vm.name, "vm": vm.vmid.hex(), "phase": vm.phase, "server": names.get(vm.server, vm.server[:12]),
        "sequence": vm.sequence, "backup": vm.backup.counter if vm.backup else 0,
        "read_back": vm.whole.counter if vm.whole else 0,
        "left": [names.get(one.server, one.server[:12]) for one in vm.left], "stale": vm.stale,
    }  # fmt: skip


# ---- to be seen


def _insider(a: argparse.Namespace) -> int:
    from quoreduce.cloud.agents.channel import Address
    from quoreduce.cloud.agents.insider import ask

    try:
        arguments = json.loads(a.arguments)
    except ValueError as error:
        raise UsageError(f"the arguments {a.arguments!r} are not a JSON object") from error
    print(ask(Address.parse(a.manager or os.environ.get("QUOREDUCE_VM_MANAGER", "")), a.server, a.vm, a.qmp, arguments))
    return 0


def _attack(a: argparse.Namespace) -> int:
    from quoreduce.report.vm_attack import attack

    return attack(a.bare, a.json)


def _demo(a: argparse.Namespace) -> int:
    from quoreduce.report.vm_demo import demo

    return demo(Path(a.image) if a.image else None, Path(a.keep) if a.keep else None, a.json)


def _print(as_json: bool, known: dict[str, Any], text: str) -> None:
    print(json.dumps(known) if as_json else text)


def _now() -> datetime:
    return datetime.now(UTC)


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "image": _image, "server": _server, "manager": _manager, "policy": _policy, "measure": _measure, "trust": _trust, "launch": _launch, "attest": _attest,
    "migrate": _migrate, "backup": _backup, "restore": _restore, "terminate": _terminate, "resume": _resume, "list": _list,
    "update": _update, "key": _key,
    "insider": _insider, "attack": _attack, "demo": _demo,
}  # fmt: skip
