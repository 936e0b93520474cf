"""A site: the authority that certifies its servers' TPMs, and the registrar that enrols their attestation keys.

In a data centre these are the makers of the TPMs and a machine of its own; here both are a folder, which servers
share::

    ca/          certificate authority of swtpm
    registrar/   :class:`quoreduce.trust.enrol.Registrar`

A user trusts a server because a policy names both and the measurement of the TVE. The name of its AK says which server
of the site it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from quoreduce.errors import HostError, VmError

INSTALL: Final = "on Debian and Ubuntu: sudo apt-get install {}"
QEMU_PACKAGES: Final = ("qemu-system-x86", "seabios")
WAIT_S: Final = 180.0  # for another server that is being set up
SITE: Final = "site"


def site_folder(state: Path, site: str | None) -> Path:
    """The site's folder: the one named, or ``site`` beside the server's."""
    return Path(site).expanduser().resolve() if site else state.resolve().parent / SITE


def check_programs(path: str | None = None) -> None:
    """VmError says what to install if QEMU or swtpm is missing on a path, by default this process's (PATH)."""
    import shutil

    from quoreduce.trust.swtpm import PACKAGES

    missing = [name for name in ("qemu-system-x86_64", "swtpm", "swtpm_setup") if shutil.which(name, path=path) is None]
    if missing:
        packages = QEMU_PACKAGES * missing[0].startswith("qemu") + PACKAGES * missing[-1].startswith("swtpm")
        raise VmError(f"{', '.join(missing)}: not installed; {INSTALL.format(' '.join(packages))}")


def setup_server(state: Path, site: Path) -> None:
    """Make a server's TPM, certified by the site's authority and enrolled with its registrar. An existing TPM stays.

    Raises:
        VmError: another process is setting up a server of this site for too long.
        HostError: swtpm fails, a folder cannot be written.
    """
    from cryptography import x509

    from quoreduce.trust.enrol import Registrar, enrol
    from quoreduce.trust.node import ENROLMENT, SCHEME, Enrolment, read_enrolment
    from quoreduce.trust.swtpm import Swtpm, setup
    from quoreduce.vm.agents.folder import StateFolder

    with StateFolder(site, WAIT_S):
        made = setup(state / "swtpm", site / "ca")
        try:
            read_enrolment(state, "swtpm")
            return
        except HostError:
            pass  # it is enrolled now
        registrar = Registrar(
            site / "registrar", [x509.load_pem_x509_certificate(root.encode()) for root in made.roots]
        )
        with Swtpm(state / "swtpm", SCHEME) as tpm:
            signature = enrol(registrar, tpm, made.intermediates, datetime.now(UTC))
    import msgspec

    with StateFolder(state / "enrolling") as folder:
        folder.write(f"../{ENROLMENT}", msgspec.json.encode(Enrolment("swtpm", signature, made.intermediates)))


def put_tpm_away(state: Path) -> str:
    """Put a server's dead TPM aside, so that another one is made; return what was done. Raises HostError."""
    from quoreduce.trust.node import ENROLMENT

    away = next(path for number in range(1, 1000) if not (path := state / f"swtpm.old-{number}").exists())
    try:
        if not (state / "swtpm").is_dir():
            return "there is no TPM yet: one is made"
        (state / ENROLMENT).unlink(missing_ok=True)
        (state / "swtpm").rename(away)
    except OSError as error:
        raise HostError(f"cannot put the TPM in {state} aside: {error.strerror}") from error
    return f"the TPM is put aside, as {away}: this is another server from now on, and ends the VMs that it finds"


def site_policy(state: Path, site: Path, environments: Sequence[str]) -> bytes:
    """The bytes of a policy (:mod:`quoreduce.trust.policy`) that trusts servers of this site in these environments."""
    from cryptography import x509

    from quoreduce.trust.enrol import Registrar
    from quoreduce.trust.policy import Policy, decode_policy
    from quoreduce.trust.swtpm import read_setup

    roots = read_setup(state / "swtpm").roots
    registrar = Registrar(
        site / "registrar", [x509.load_pem_x509_certificate(root.encode()) for root in roots]
    ).public.hex()
    policy = Policy(environments=tuple(environments), backends=("swtpm",), roots=roots, registrar=registrar)
    return decode_policy(policy.encode()).encode()
