"""Names bound to keys: a user's id and a server's identity are digests of keys; an agent that enters under one proves
that it has the keys.

The manager is not trusted, and needs no such proof for itself; but others who can connect to it must not silence a
server or a user by taking its name. A user signs the manager's nonce; a server's TPM quotes it (any TPM: users decide
which they trust). Other names, such as a server's, are not protected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from quoreduce.errors import AttestationError, HostError, VmError
from quoreduce.vm import evidence, wire
from quoreduce.vm.agents.post import Enter, Proof

if TYPE_CHECKING:
    from quoreduce.vm.attestor import TpmAttestor

CONTENT: Final = b"quoreduce vm enter 1"
Prover: TypeAlias = Callable[[bytes], Proof]


def user_prover(sign: bytes, public: bytes) -> Prover:
    """Returns a prover for a user: it signs the manager's nonce with ``sign``; ``public`` is the X25519 key."""
    return lambda nonce: Proof(wire.encode(wire.sign(sign, public, wire.NonceProof(nonce))))


def server_prover(attestor: TpmAttestor) -> Prover:
    """Returns a prover for a server: its TPM quotes the manager's nonce. The prover raises VmError if it does not."""
    from quoreduce.vm.attestor import Challenge

    def prove(nonce: bytes) -> Proof:
        try:
            challenge = Challenge(attestor.session("status"), nonce, bytes(evidence.VMID_BYTES), CONTENT)
            return Proof(evidence.encode(attestor.attest_many([challenge])[0]))
        except (AttestationError, HostError) as error:
            raise VmError(f"the server's TPM does not show who it is: {error}") from error

    return prove


def claims(enter: Enter) -> bool:
    """Whether an agent enters as a user or as a server, and so has to prove it."""
    return bool(enter.server) or re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{68}", enter.name) is not None


def why_not(enter: Enter, nonce: bytes, proof: Proof) -> str:
    """Why this proof does not prove what the agent claims, or an empty text."""
    try:
        if enter.server:
            found = evidence.holder(evidence.decode(proof.shown), nonce, CONTENT)
        else:
            signed = wire.decode(proof.shown, wire.Signed)
            wire.verify(signed)
            found = signed.keys.user if wire.decode(signed.body, wire.NonceProof).nonce == nonce else ""
    except (VmError, AttestationError) as error:
        return f"it is not shown who that is: {error}"
    return (
        ""
        if found == (enter.server or enter.name)
        else f"this is {found[:12] or 'an old proof'}, and enters as another one"
    )
