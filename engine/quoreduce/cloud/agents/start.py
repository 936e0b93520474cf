"""What runs in a process that boot.py began: a server agent, and the measuring of one.

``quoreduce vm server``, ``policy`` and ``measure`` become such a process (:func:`become`): who asks what this
installation is has it measured just as a server is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from quoreduce.cloud import boot
from quoreduce.cloud.measure import Environment, Files, differences, environment, interpreter, measured_files
from quoreduce.cloud.owners import OWNERS_BYTES_MAX, Owners, Quota
from quoreduce.errors import HostError, QuoreduceError, UsageError, VmError, one_line
from quoreduce.printable import printable
from quoreduce.trust.measure import canonical

if TYPE_CHECKING:
    from quoreduce.cloud.agents.folder import StateFolder

MEASURED: Final = "measured.json"  # in a server's folder: the files of its last start
MEASURED_BYTES_MAX: Final = 16 << 20
NAMED_MAX: Final = 10  # files, where two measurements differ


def become(operation: str, arguments: Mapping[str, Any]) -> NoReturn:
    """Replace this process by one that runs an operation of :data:`_OPERATIONS`; VmError if that cannot be begun."""
    ours, roots = boot.places()
    line = boot.command(operation, arguments, ours, roots)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(line[0], line, boot.ENVIRONMENT)
    except OSError as error:
        raise VmError(f"cannot start {line[0]}: {error.strerror}") from error


def main(manifest: boot.Manifest, operation: str, arguments: str) -> int:
    """Run an operation, and return the exit code; what is wrong is said in one line."""
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
    manifest: boot.Manifest,
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
    from quoreduce.cloud.agents.channel import Address
    from quoreduce.cloud.agents.server import serve

    serve(
        Path(state), Address.parse(manager), name, Path(site), owners=listed_owners(owners, user), run=run,
        allow_dump=allow_dump, accel=accel, new_tpm=new_tpm, log=_log, measure=lambda rules: measured(manifest, rules),
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


def _policy(manifest: boot.Manifest, state: str, site: str) -> None:
    """Print the policy; if the server was measured otherwise at its last start, say in which files."""
    from quoreduce.cloud.agents.site import site_policy
    from quoreduce.cloud.broker import RULES

    folder = Path(state)
    found = measured(manifest, json.loads(RULES.document()))
    print(site_policy(folder, Path(site), [found.digest]).decode(), end="")
    before = last_files(folder / MEASURED)
    if changed := differences(before, found.files) if before else []:
        print(f"quoreduce: since server {folder.name} was started: {listed(changed)}; start it again", file=sys.stderr)


def _measure(manifest: boot.Manifest, against: str | None, as_json: bool) -> None:
    """Print what a server of this installation attests; compare it with what another printed, or a measured.json."""
    from quoreduce.cloud.broker import RULES

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


def measured(manifest: boot.Manifest, rules: Any) -> Environment:
    """This process as a server's environment; Unmeasured if something is in it that was not measured."""
    import qemu.qmp  # noqa: F401  (what is loaded later is measured too, but what is there now is looked at)

    manifest.check(interpreter(manifest))
    return environment(rules, measured_files(manifest))


def last_files(path: Path) -> Files:
    """The files of a measurement that was written down; none if that cannot be read."""
    from quoreduce.reading import read_regular

    try:
        found = json.loads(read_regular(path, MEASURED_BYTES_MAX))
        found = found.get("files", found)
        return {
            str(group): {str(name): str(digest) for name, digest in names.items()} for group, names in found.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}


def note_measured(folder: StateFolder, files: Files, log: Callable[[str], None]) -> None:
    """Write the files of this start down; log in which it differs from the last one."""
    before = last_files(folder.path / MEASURED)
    changed = differences(before, files) if before else []
    if changed:
        log(f"the environment is another one than at the last start: {listed(changed)}")
    folder.write(MEASURED, canonical({group: dict(names) for group, names in files.items()}))


def listed(changed: list[str]) -> str:
    """Names of files, not too many."""
    more = f" and {len(changed) - NAMED_MAX} more" if len(changed) > NAMED_MAX else ""
    return ", ".join(changed[:NAMED_MAX]) + more


def _log(text: str) -> None:
    """One line, with the time to the millisecond."""
    now = datetime.now(UTC)
    print(f"{now:%H:%M:%S}.{now.microsecond // 1000:03d} {text}", file=sys.stderr, flush=True)


_OPERATIONS: Final[dict[str, Callable[..., None]]] = {"server": _server, "policy": _policy, "measure": _measure}
