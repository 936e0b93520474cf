"""The options of ``quoreduce vm``."""

from __future__ import annotations

import argparse
from typing import Any, Final

from quoreduce.arguments import Parser
from quoreduce.limits import NUMBERS

STATE_HELP: Final = (
    "the user's folder: keys, what is trusted, records of VMs (default: QUOREDUCE_VM, or in ~/.local/state)"
)
MANAGER_HELP: Final = (
    "where the manager listens: unix:PATH or tcp:127.0.0.1:PORT (default: QUOREDUCE_VM_MANAGER, or as last time)"
)
TIMEOUT_S: Final = 240.0  # the user's core asks again, and then finds out where a VM is, before


def parser() -> argparse.ArgumentParser:
    """Build the parser of all of its commands."""
    top = Parser(
        prog="quoreduce vm", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trusted VM operations: launch, migrate, back up and terminate VMs on servers that attest what\n"
        "they run, through a manager that nobody trusts. See docs/guide/vm.md.",
        epilog="a first session, in one command: quoreduce vm demo",
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _cloud_parsers(commands)
    _user_parsers(commands)
    _key_parsers(commands)
    _show_parsers(commands)
    return top


def _cloud_parsers(commands: Any) -> None:
    image = commands.add_parser(
        "image", help="build a guest image: Debian's cloud kernel and a small system in memory; reproducible"
    )
    image.add_argument("out", metavar="OUT", help="the image, a file that does not exist yet")
    image.add_argument(
        "--plant",
        metavar="KEY",
        help="an RSA key (PEM or DER) that the guest keeps in memory: what the attack looks for",
    )
    image.add_argument(
        "--kernel", metavar="FILE", help="a kernel to use (default: Debian's cloud kernel, downloaded with apt)"
    )
    image.add_argument("--json", action="store_true", help="print one JSON object")
    server = commands.add_parser(
        "server", help="run a server: its TPM, its trusted operations, its VMs",
        description="Runs until SIGTERM. Killed and started again, it takes its VMs up again. Needs swtpm and QEMU.",
    )  # fmt: skip
    server.add_argument(
        "--state", required=True, metavar="DIR", help="its folder: TPM, records of VMs; made if it is missing"
    )
    server.add_argument("--manager", required=True, metavar="ADDR", help="unix:PATH or tcp:127.0.0.1:PORT")
    server.add_argument("--name", metavar="NAME", help="under which it is reached (default: the name of DIR)")
    server.add_argument(
        "--site", metavar="DIR", help="certificate authority and registrar of the site (default: site, beside --state)"
    )
    server.add_argument("--run", metavar="DIR", help="where VMs live: a folder in memory (default: one in /dev/shm)")
    server.add_argument(
        "--owners", metavar="FILE",
        help="who may have VMs here: a user's id a line, then vms=N mb=N if wanted (default: you alone, by the keys in "
        "your folder)",
    )  # fmt: skip
    server.add_argument(
        "--new-tpm", action="store_true",
        help="its TPM is dead for good: make another, which is another server; the VMs that are here are ended, "
        "because nobody can attest them",
    )  # fmt: skip
    server.add_argument(
        "--accel", choices=["kvm", "tcg"], help="how guests run (default: KVM if it is seen to run one, else TCG)"
    )
    server.add_argument(
        "--allow-dump",
        action="store_true",
        help="for demonstrations: lets VMs be dumped; another TVE, that no user should trust",
    )
    manager = commands.add_parser(
        "manager", help="run the manager, which nobody trusts: it passes letters on and stores blobs"
    )
    manager.add_argument("address", metavar="ADDR", help="where it listens: unix:PATH or tcp:127.0.0.1:PORT")
    manager.add_argument(
        "--store", metavar="DIR", help="where images and backups lie, encrypted (default: in ~/.local/state)"
    )
    manager.add_argument("--record", metavar="FILE", help="append all messages that it passes on to this file")
    policy = commands.add_parser(
        "policy", help="print what a user needs to know to trust the servers of a site",
        description="Prints the CA of the servers' TPMs, the registrar, and the measurement of this installation's\n"
        "TVE, as JSON. Users have to get it in a way that they trust: another policy means other servers.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    policy.add_argument("--state", required=True, metavar="DIR", help="of a server of that site")
    policy.add_argument("--site", metavar="DIR", help="as for vm server")
    measure = commands.add_parser(
        "measure", help="print what a server of this installation attests, and which files make it differ from another"
    )
    measure.add_argument(
        "--against",
        metavar="FILE",
        help="what `vm measure --json` printed elsewhere, or measured.json in a server's folder",
    )
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
    _user(commands, "backup", "store a VM, encrypted for its owner; it continues to run").add_argument(
        "name", metavar="NAME"
    )
    restore = _user(commands, "restore", "launch a VM from its newest backup, or the last one that was read back")
    restore.add_argument("name", metavar="NAME")
    restore.add_argument("--server", metavar="NAME", help="default: where it was last")
    restore.add_argument(
        "--number",
        type=NUMBERS["backup"],
        default=0,
        metavar="N",
        help="which backup, as `vm backup` said; default: the newest",
    )
    restore.add_argument(
        "--declare-lost", action="store_true",
        help="the VM may still run somewhere, and I say that it never will again: if that is wrong, two will run",
    )  # fmt: skip
    terminate = _user(commands, "terminate", "end a VM: overwrite its memory, disk and TPM, with a receipt")
    terminate.add_argument("name", metavar="NAME")
    update = _user(
        commands, "update", "have VMs go by what is trusted now, after `vm trust`: when servers were upgraded"
    )
    update.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    resume = _user(
        commands, "resume", "finish what was cut short, end copies that were left behind, or give a destination up"
    )
    resume.add_argument("name", metavar="NAME")
    resume.add_argument(
        "--abandon", action="store_true",
        help="the destination of a migration is gone for good, and I say so: the source continues with what it had; if "
        "that is wrong, two will run",
    )  # fmt: skip
    _user(commands, "list", "list the VMs as the user's records have them", manager=False)


def _key_parsers(commands: Any) -> None:
    key = commands.add_parser(
        "key", help="show the user's id, or take keys and records to another folder",
        description="A user's id is what a server's list of owners names. Anyone with an exported file has the\n"
        "user's VMs: keep it as you keep the folder. Use only one of the two folders: `quoreduce vm resume`\n"
        "finds what was ordered from the other one since.",
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
        command.add_argument(
            "--timeout",
            type=NUMBERS["silence_s"],
            default=TIMEOUT_S,
            metavar="S",
            help="seconds of silence to bear (default 240)",
        )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


def _show_parsers(commands: Any) -> None:
    insider = commands.add_parser(
        "insider", help="what somebody at the manager can do: send a QMP command to a VM's broker"
    )
    insider.add_argument("server", metavar="SERVER")
    insider.add_argument("vm", metavar="VM", help="32 hexadecimal digits, as `quoreduce vm list` shows")
    insider.add_argument("qmp", metavar="QMP-COMMAND", help="such as dump-guest-memory")
    insider.add_argument("arguments", metavar="JSON", nargs="?", default="{}", help="its arguments, a JSON object")
    insider.add_argument("--manager", metavar="ADDR", help="default: QUOREDUCE_VM_MANAGER")
    attack = commands.add_parser(
        "attack", help="dump a guest's memory and look for the key in it, without the broker and with it"
    )
    attack.add_argument("--bare", action="store_true", help="without the broker only")
    attack.add_argument("--json", action="store_true", help="print one JSON object")
    demo = commands.add_parser(
        "demo", help="a manager, two servers, a VM's whole life, checked: a transcript with times"
    )
    demo.add_argument("--image", metavar="FILE", help="default: one is built")
    demo.add_argument("--keep", metavar="DIR", help="do all in this folder, which does not exist yet, and leave it")
    demo.add_argument("--json", action="store_true", help="print one JSON object")
