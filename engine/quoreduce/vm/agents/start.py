"""The operations of a process that boot.py starts: a server agent, and its measurement.

``quoreduce vm server``, ``policy`` and ``measure`` become such a process (:func:`become`): so the latter two measure
this installation exactly as a server does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from quoreduce.errors import HostError, QuoreduceError, UsageError, VmError, one_line
from quoreduce.printable import printable
from quoreduce.vm import boot
from quoreduce.vm.agents.laststart import MEASURED, last_files, listed
from quoreduce.vm.measure import Environment, differences, environment, interpreter, measured_files
from quoreduce.vm.owners import OWNERS_BYTES_MAX, Owners, Quota


def become(operation: str, arguments: Mapping[str, Any]) -> NoReturn:
    """Replace this process by one that runs an operation of :data:`_OPERATIONS`. Raises VmError if it cannot start."""
    ours, roots = boot.places()
    line = boot.command(operation, arguments, ours, roots)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(line[0], line, boot.ENVIRONMENT)
    except OSError as error:
        raise VmError(f"cannot start {line[0]}: {error.strerror}") from error


def main(manifest: boot.LoadManifest, operation: str, arguments: str) -> int:
    """Run an operation, and return the exit code. An error is one line on stderr."""
    sys.excepthook = lambda kind, error, _: print(
        "quoreduce:", printable(f"internal error: {kind.__name__}: {error}; please report it"), file=sys.stderr
    )
    try:
        _OPERATIONS[operation](manifest, **json.loads(arguments))
    except QuoreduceError as error:
        return _said(one_line(error), VmError.exit_code if isinstance(error, HostError) else error.exit_code)
    except boot.Unmeasured as error:
        return _said(f"{one_line(error)}: start this server again, if that is as it should be", VmError.exit_code)
    except OSError as error:
        return _said(f"the machine failed: {one_line(error)}", VmError.exit_code)
    return 0


def _said(text: str, code: int) -> int:
    print("quoreduce:", printable(text), file=sys.stderr)
    return code


def _server(
    manifest: boot.LoadManifest,
    state: str,
    manager: str,
    name: str,
    site: str,
    owners: str | None,
    user: str,
    run: str | None,
    allow_dump: bool,
    accel: str | None,
    new_tpm: bool,
) -> None:
    from quoreduce.vm.agents.channel import Address
    from quoreduce.vm.agents.server import serve

    serve(
        Path(state), Address.parse(manager), name, Path(site), owners=listed_owners(owners, user), run=run,
        allow_dump=allow_dump, accel=accel, new_tpm=new_tpm, log=log, measure=lambda rules: measured(manifest, rules),
    )  # fmt: skip


def listed_owners(path: str | None, user: str) -> Owners:
    """The owners in a file; without one, this user alone. Raises UsageError, which names the line, or InputError."""
    from quoreduce.reading import read_file

    if path is None:
        return Owners({user: Quota()})
    try:
        return Owners.parse(read_file(Path(path), OWNERS_BYTES_MAX).decode())
    except (VmError, UnicodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _policy(manifest: boot.LoadManifest, state: str, site: str) -> None:
    """Print the policy; name the files in which the server's last start differed."""
    from quoreduce.vm.agents.site import site_policy
    from quoreduce.vm.broker import RULES

    folder = Path(state)
    found = measured(manifest, json.loads(RULES.document()))
    print(site_policy(folder, Path(site), [found.digest]).decode(), end="")
    before = last_files(folder / MEASURED)
    if changed := differences(before, found.files) if before else []:
        print(f"quoreduce: since server {folder.name} was started: {listed(changed)}; start it again", file=sys.stderr)


def _measure(manifest: boot.LoadManifest, against: str | None, as_json: bool) -> None:
    """Print what a server of this installation attests; compare it with what another printed, or a measured.json."""
    from quoreduce.vm.broker import RULES

    found = measured(manifest, json.loads(RULES.document()))
    if as_json:
        print(json.dumps({"environment": found.digest, "files": found.files}))
    else:
        print(found.digest)
        for group, digest in json.loads(found.document)["files"].items():
            print(f"  {digest[:16]}  {group}, {len(found.files[group])} files")
    if against is None:
        return
    other = last_files(Path(against))
    if not other:
        raise UsageError(
            f"{against} holds no measurement: use what `quoreduce vm measure --json` printed, or a server's {MEASURED}"
        )
    if changed := differences(other, found.files):
        raise VmError(f"not as in {against}: {listed(changed)}")


def measured(manifest: boot.LoadManifest, rules: Any) -> Environment:
    """This process as a server's environment. Raises Unmeasured if it contains what was not measured."""
    import qemu.qmp  # noqa: F401  (what is loaded later is measured too, but what is there now is looked at)

    manifest.check(interpreter(manifest))
    return environment(rules, measured_files(manifest))


def log(text: str) -> None:
    """Print one line on stderr, with the time to the millisecond."""
    now = datetime.now(UTC)
    print(f"{now:%H:%M:%S}.{now.microsecond // 1000:03d} {text}", file=sys.stderr, flush=True)


_OPERATIONS: Final[dict[str, Callable[..., None]]] = {"server": _server, "policy": _policy, "measure": _measure}
