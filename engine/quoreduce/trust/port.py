"""The interface of every TPM: the µTPM, swtpm, a hardware TPM, and the model of one.

PCRs are those of the SHA-256 bank. All errors are :class:`~quoreduce.errors.AttestationError` (the TPM refuses: a PCR
that this locality may not extend, a secret whose PCRs changed) or :class:`~quoreduce.errors.HostError` (there is no
TPM, it does not answer, it is in lockout).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from quoreduce.trust.wire import Public, QuoteResponse

SCHEMES: Final = ("ecdsa", "rsassa")  # of an attestation key: P-256 or RSA-2048, SHA-256
SECRET_BYTES_MAX: Final = 128  # TPM 2.0 Library, Part 2, Annex A: MAX_SYM_DATA


class Tpm(Protocol):
    """A TPM with one attestation key (AK)."""

    @property
    def name(self) -> str:
        """Its backend: utpm, swtpm, tpm2 or modelled."""

    @property
    def modelled(self) -> bool:
        """Whether its times are computed from published latencies instead of measured."""

    @property
    def public(self) -> Public:
        """The public area of the AK: a restricted signing key."""

    def extend(self, pcr: int, digest: bytes) -> None:
        """Set ``pcr`` to SHA-256(its value, ``digest``); ``digest`` has 32 bytes."""

    def read(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Return the values of these PCRs, 32 bytes each."""

    def reset(self, pcr: int) -> None:
        """Set PCR 16 or 23 to zeros; the others are refused."""

    def quote(self, pcrs: Sequence[int], nonce: bytes) -> QuoteResponse:
        """Sign the values of ``pcrs`` and ``nonce`` (at most 64 bytes) with the AK; the values returned are those
        signed.
        """

    def random(self, size: int) -> bytes:
        """Return ``size`` random bytes."""

    def seal(self, secret: bytes, pcrs: Sequence[int]) -> bytes:
        """Return a blob from which only this TPM gives ``secret`` (1 to 128 bytes), while ``pcrs`` are as now."""

    def unseal(self, blob: bytes) -> bytes:
        """Return the secret of a blob; refused if its PCRs changed, or it is another TPM's or tampered with."""

    def close(self) -> None:
        """Release the TPM; may be called again."""


class EndorsedTpm(Tpm, Protocol):
    """A TPM with an endorsement key (EK) whose maker certified it: swtpm and hardware."""

    @property
    def ek_public(self) -> Public:
        """The public area of the EK: a restricted decryption key, RSA-2048, ECC P-256 or P-384."""

    @property
    def ek_certificate(self) -> bytes:
        """The EK's certificate: X.509, DER."""

    def activate(self, credential: bytes, encrypted_secret: bytes) -> bytes:
        """Open a credential that was made for this EK and this AK; refused if it was made for another pair.

        Args:
            credential: the contents of a TPM2B_ID_OBJECT.
            encrypted_secret: the contents of a TPM2B_ENCRYPTED_SECRET.
        """
