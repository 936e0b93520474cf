"""A node's part in attestation: its state folder, its policy, and its TPM, which vouches for the µTPMs of its workers.

The state folder (mode 0700) is made by ``quoreduce attest setup``::

    policy.json      the policy for verifying this node's own jobs
    enrolment.json   for hardware backends: the registrar's signature that binds the AK of each scheme to the EK
    registrar/       the registrar of this node, see :mod:`quoreduce.trust.enrol`; a cluster has one on another machine
    swtpm/           the state of swtpm, see :mod:`quoreduce.trust.swtpm`
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from quoreduce import machine
from quoreduce.errors import AttestationError, HostError
from quoreduce.files import write_whole
from quoreduce.ownership import why_foreign
from quoreduce.reading import read_regular
from quoreduce.trust.evidence import KEYS_PCR, LEVEL1_PCRS, Hardware, launch_log
from quoreduce.trust.policy import Policy, decode_policy
from quoreduce.trust.wire import sized

Backend = Literal["utpm", "swtpm"]
POLICY: Final = "policy.json"
ENROLMENT: Final = "enrolment.json"
POLICY_BYTES_MAX: Final = 16 << 20
SCHEME: Final = "ecdsa"  # of a node's AK
TURN_S: Final = 20.0  # for other workers of the node to finish their launches; one takes some ten milliseconds


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The registrar's signature over the EK certificate and the AK, and the certificates above the EK's, DER."""

    backend: str
    signature: bytes
    chain: tuple[bytes, ...]


def setup_node(state: Path, backend: Backend, environments: Sequence[str]) -> Policy:
    """Prepare this node: its TPM, enrolled with a registrar of its own, and a policy that allows ``environments``.

    May be repeated: TPM, registrar and enrolment stay, the policy is written anew.

    Args:
        state: the folder, made if it is missing.
        backend: ``swtpm``, or ``utpm`` for a root in software only.
        environments: digests (hex) of environment documents.

    Raises:
        HostError: swtpm is missing, or the folder cannot be written.
        AttestationError: an environment is no digest, or there is none.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if foreign := why_foreign(state):
            raise HostError(f"the folder {state} {foreign}: keys are not kept there; choose another with --state")
        roots, registrar = _enrol_swtpm(state) if backend == "swtpm" else ((), None)
        policy = Policy(environments=tuple(environments), backends=(backend,), roots=roots, registrar=registrar)
        checked = decode_policy(policy.encode())
        write_whole(state / POLICY, checked.encode())
    except OSError as error:
        raise HostError(f"cannot write {state}: {error.strerror}; choose another folder with --state") from error
    return checked


def _enrol_swtpm(state: Path) -> tuple[tuple[str, ...], str]:
    """Set swtpm up, enrol its AK, and return the CA's roots (PEM) and the registrar's public key (hex)."""
    from cryptography import x509

    from quoreduce.trust.enrol import Registrar, enrol
    from quoreduce.trust.swtpm import Swtpm, setup

    made = setup(state / "swtpm")
    registrar = Registrar(state / "registrar", [x509.load_pem_x509_certificate(root.encode()) for root in made.roots])
    with Swtpm(state / "swtpm", SCHEME) as tpm:
        signature = enrol(
            registrar, tpm, made.intermediates, datetime.now(UTC)
        )  # the certificate may be only a second old
    write_whole(state / ENROLMENT, msgspec.json.encode(Enrolment("swtpm", signature, made.intermediates)))
    return made.roots, registrar.public.hex()


class NodeTpm(Protocol):
    """The TPM of a node as a launch uses it."""

    def launch(self, document: bytes, keys: Sequence[bytes], nonce: bytes) -> Hardware:
        """Launch an environment, extend the public areas of its µTPMs (TPMT_PUBLIC), and quote PCRs 17 and 19."""

    def close(self) -> None:
        """Release the TPM."""


def state_folder(name: str | None = None) -> Path:
    """The state folder: ``name``, else QUOREDUCE_ATTEST, else ``~/.local/state/quoreduce/attest``."""
    given = name or os.environ.get("QUOREDUCE_ATTEST")
    return machine.expanded(given) if given else machine.state_folder() / "attest"


def read_policy(path: str) -> Policy:
    """Read a policy file. Raises AttestationError, which says what is wrong with it, or how to make one."""
    try:
        raw = read_regular(path, POLICY_BYTES_MAX)
        foreign = why_foreign(Path(path).resolve(), ours_only=False)
    except FileNotFoundError as error:
        raise AttestationError(f"no policy {path}: make one with `quoreduce attest setup`") from error
    except (OSError, ValueError) as error:
        raise AttestationError(f"cannot read the policy {path}: {getattr(error, 'strerror', None) or error}") from error
    if foreign:
        raise AttestationError(
            f"the policy {path} {foreign}, so it says what others want to be trusted: use one of your own"
        )
    try:
        return decode_policy(raw)
    except AttestationError as error:
        raise AttestationError(f"{path}: {error}") from error


def open_node(backend: str, state: Path) -> NodeTpm:
    """Open the TPM of this node. Raises HostError, which says what is missing."""
    if backend != "swtpm":
        raise HostError(
            f"backend {backend} cannot launch environments: software on it speaks from locality 0; use swtpm or utpm"
        )
    return SwtpmNode(state)


class SwtpmNode:
    """swtpm as the TPM of a node: its control channel plays the CPU's late launch."""

    def __init__(self, state: Path) -> None:
        from quoreduce.trust.swtpm import Swtpm

        self._enrolment = read_enrolment(state, "swtpm")
        self._tpm = Swtpm(state / "swtpm", SCHEME, wait_s=TURN_S)

    def launch(self, document: bytes, keys: Sequence[bytes], nonce: bytes) -> Hardware:
        """Launch, extend, quote."""
        self._tpm.launch(document)
        for event in launch_log(document, keys)[1:]:
            self._tpm.extend_launched(KEYS_PCR, event.digest)
        quoted = self._tpm.quote(LEVEL1_PCRS, nonce)
        chain = (self._tpm.ek_certificate, *self._enrolment.chain)
        ak = sized(self._tpm.public.encode())
        return Hardware(chain, ak, self._enrolment.signature, quoted.message, quoted.signature)

    def close(self) -> None:
        """Stop swtpm."""
        self._tpm.close()


def read_enrolment(state: Path, backend: str) -> Enrolment:
    """Read the enrolment of this node. Raises HostError if it is not enrolled."""
    try:
        found = msgspec.json.decode(read_regular(state / ENROLMENT, POLICY_BYTES_MAX), type=Enrolment)
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        raise HostError(f"{state} holds no enrolment: run `quoreduce attest setup --backend {backend}`") from error
    if found.backend != backend:
        raise HostError(f"{state} is enrolled with {found.backend}: run `quoreduce attest setup --backend {backend}`")
    return found
