"""A policy, what a verifier trusts: a JSON file of its owner.

{"format": "quoreduce policy 1",
 "environments": ["<SHA-256 of an environment document, hex>", ...],   never empty
 "backends": ["swtpm", "tpm2", "utpm", "modelled"],                    kinds of TPM that are accepted
 "roots": ["-----BEGIN CERTIFICATE-----...", ...],                     CAs of EK certificates; needed for swtpm and tpm2
 "registrar": "<Ed25519 public key, hex>" or null,                     who binds AKs to EKs; needed for swtpm and tpm2
 "max_age_s": 86400,                                                   since the end of the job; default a day
 "clock_skew_s": 300,                                                  between the driver's clock and this one
 "f_min": 0}                                                           least number of faults that the job masked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from quoreduce.errors import AttestationError
from quoreduce.trust.evidence import HARDWARE

if TYPE_CHECKING:
    from cryptography import x509

FORMAT: Final = "quoreduce policy 1"
POLICY_BYTES_MAX: Final = 4 << 20
Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a verifier accepts; the fields are those of the file. Make one with :func:`decode_policy` or
    :meth:`checked`.
    """

    format: Literal["quoreduce policy 1"] = FORMAT
    environments: tuple[Hex32, ...]
    backends: tuple[Literal["utpm", "modelled", "swtpm", "tpm2"], ...]
    roots: tuple[str, ...] = ()
    registrar: Hex32 | None = None
    max_age_s: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] = 86_400
    clock_skew_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 300
    f_min: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 0

    def checked(self) -> Policy:
        """Return this policy. Raises AttestationError if nothing could ever be accepted under it."""
        if not self.environments:
            raise AttestationError("the policy allows no environment: list the digests of those that may vote")
        if not self.backends:
            raise AttestationError("the policy allows no backend: list swtpm, tpm2 or utpm")
        if set(self.backends) & set(HARDWARE):
            if not self.roots:
                raise AttestationError("the policy names no CA (roots) for the EK certificates of swtpm and tpm2")
            if self.registrar is None:
                raise AttestationError("the policy names no registrar for swtpm and tpm2")
        try:
            if self.roots:
                self.authorities()
        except ValueError as error:
            raise AttestationError("the policy has a root that is not one certificate in PEM") from error
        return self

    def authorities(self) -> list[x509.Certificate]:
        """Return the CA certificates. Raises ValueError if one is malformed."""
        from cryptography import x509  # here: it takes long to import, and a root in software has none

        return [x509.load_pem_x509_certificate(root.encode()) for root in self.roots]

    def encode(self) -> bytes:
        """Return the file's bytes, indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


_DECODER: Final = msgspec.json.Decoder(Policy)


def decode_policy(raw: bytes) -> Policy:
    """Decode a policy file. Raises AttestationError, which says in one line what is wrong with it, or that it allows
    nothing.
    """
    if len(raw) > POLICY_BYTES_MAX:
        raise AttestationError(f"the policy has {len(raw)} bytes, over the bound of {POLICY_BYTES_MAX}")
    try:
        policy = _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise AttestationError(f"no quoreduce policy: {' '.join(str(error).split())}") from error
    return policy.checked()
