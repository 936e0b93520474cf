"""``quoreduce vm``: the commands of an operator of servers, or of a manager."""

from __future__ import annotations

import argparse
import re
import signal
from pathlib import Path
from typing import Final

from quoreduce.commands.vm.printing import show
from quoreduce.errors import UsageError

KEY_BYTES_MAX: Final = 1 << 16


def image(a: argparse.Namespace) -> int:
    """Build an image."""
    from quoreduce.vm.image import build

    out = Path(a.out)
    if out.exists():
        raise UsageError(f"{out} exists: choose another name")
    built = build(out, kernel=Path(a.kernel) if a.kernel else None, plant=_planted(a.plant) if a.plant else None)
    known = {
        "image": str(built.path),
        "sha256": built.digest.hex(),
        "bytes": built.bytes,
        "kernel": built.kernel_version,
    }
    show(
        a.json,
        known,
        f"{built.path}: {built.bytes:,} bytes, SHA-256 {built.digest.hex()}, Linux {built.kernel_version}",
    )
    return 0


def _planted(name: str) -> bytes:
    from quoreduce.reading import read_file

    return read_file(Path(name), KEY_BYTES_MAX)


def server(a: argparse.Namespace) -> int:
    """Become a server."""
    from quoreduce.vm import boot
    from quoreduce.vm.agents.channel import Address
    from quoreduce.vm.agents.site import check_programs, site_folder
    from quoreduce.vm.agents.start import become

    check_programs(boot.PATH)
    state = Path(a.state).expanduser().resolve()
    Address.parse(a.manager)
    owners, user = owners_of(a.owners)
    become("server", {
        "state": str(state), "manager": a.manager, "name": _agent_name(a.name or state.name),
        "site": str(site_folder(state, a.site)), "owners": owners, "user": user, "run": a.run,
        "allow_dump": a.allow_dump, "accel": a.accel, "new_tpm": a.new_tpm,
    })  # fmt: skip


def owners_of(name: str | None) -> tuple[str | None, str]:
    """The file that lists a server's owners, checked; or, without one, the id of the user who starts the server."""
    from quoreduce.vm.agents.folder import user_folder
    from quoreduce.vm.agents.start import listed_owners, log
    from quoreduce.vm.agents.user import own_id

    if name is not None:
        path = str(Path(name).expanduser().resolve())
        listed_owners(path, "")
        return path, ""
    user = own_id(user_folder())
    log(f"serves user {user} alone, whose keys are in {user_folder()}; others: --owners FILE")
    return None, user


def _agent_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name):
        raise UsageError(f"--name {name!r}: use up to 80 letters, digits and _ . - (a letter or digit first)")
    return name


def manager(a: argparse.Namespace) -> int:
    """Be the manager until SIGTERM or SIGINT."""
    from quoreduce.vm.agents.channel import Address
    from quoreduce.vm.agents.folder import user_folder
    from quoreduce.vm.agents.manager import Manager
    from quoreduce.vm.agents.start import log

    address = Address.parse(a.address)
    store = Path(a.store).expanduser() if a.store else user_folder().parent / "vm-store"
    ours = Manager(address, store, Path(a.record) if a.record else None)
    try:
        log(f"manager at {address}: it is not trusted by anybody; blobs in {store}")
        signal.signal(signal.SIGTERM, lambda *_: ours.close())
        signal.signal(signal.SIGINT, lambda *_: ours.close())
        ours.serve()
    finally:
        ours.close()
    return 0


def policy(a: argparse.Namespace) -> int:
    """Become the process that prints a site's policy."""
    from quoreduce.vm import boot
    from quoreduce.vm.agents.site import check_programs, site_folder
    from quoreduce.vm.agents.start import become

    check_programs(boot.PATH)
    state = Path(a.state).expanduser().resolve()
    if not (state / "swtpm").is_dir():
        raise UsageError(
            f"{state} is no server's folder: start the server once, `quoreduce vm server --state {state} ...`"
        )
    become("policy", {"state": str(state), "site": str(site_folder(state, a.site))})


def measure(a: argparse.Namespace) -> int:
    """Become the process that measures this installation."""
    from quoreduce.vm import boot
    from quoreduce.vm.agents.site import check_programs
    from quoreduce.vm.agents.start import become

    check_programs(boot.PATH)
    become(
        "measure", {"against": str(Path(a.against).expanduser().resolve()) if a.against else None, "as_json": a.json}
    )
