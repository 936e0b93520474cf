"""The µTPM: a TPM in software that lives in one execution environment and attests, fast, what happens there.

Its quotes are TPM 2.0 quotes: ``tpm2_checkquote`` accepts them. Its root is the environment's measurement: a hardware
TPM that measured the environment (PCR 17) and then the hash of this µTPM's public area (PCR 19) vouches for its key.
Without one, nothing outside the process vouches for it, and evidence says so.

Its key is made with it and ends with it. It can be neither copied nor pickled, and does not work in a forked child: two
environments with one µTPM could contradict each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Final, Literal, NoReturn, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quoreduce.errors import AttestationError
from quoreduce.trust.pcr import MICRO, PcrBank
from quoreduce.trust.port import SECRET_BYTES_MAX
from quoreduce.trust.wire import (
    ALG_ECDSA,
    ALG_RSASSA,
    ALG_SHA256,
    NONCE_BYTES_MAX,
    Clock,
    PcrSelection,
    Public,
    Quote,
    QuoteResponse,
    Signature,
    TpmReader,
    pcr_digest,
)

Scheme: TypeAlias = Literal["ecdsa", "rsassa"]
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

FIRMWARE: Final = 1 << 48  # version 1.0, reported in quotes
SEALED: Final = b"quoreduce sealed 1"
_SECRET_BYTES: Final = 32
_IV_BYTES: Final = 12
_ECDSA: Final = ec.ECDSA(SHA256())
_RSASSA: Final = padding.PKCS1v15()
_SHA256: Final = SHA256()


def _uptime() -> Callable[[], int]:
    start = time.monotonic_ns()
    return lambda: (time.monotonic_ns() - start) // 1_000_000


class MicroTpm:
    """A TPM in software; µPCRs of SHA-256, all zeros at first. Threads may share it.

    Args:
        scheme: of its attestation key: ``ecdsa`` (P-256) or ``rsassa`` (RSA-2048), with SHA-256.
        clock_ms: its clock, in milliseconds, monotonic; by default since it was made.
        random: returns this many random bytes, for secrets.
    """

    name: Final = "utpm"
    modelled: Final = False
    __slots__ = ("_bank", "_clock_ms", "_key", "_lock", "_pid", "_public", "_random", "_secret", "_signer")

    def __init__(
        self,
        scheme: Scheme = "ecdsa",
        clock_ms: Callable[[], int] | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._key: PrivateKey | None = _new_key(scheme)
        self._public = Public.of_key(self._key.public_key())
        self._signer = self._public.qualified_name()
        self._bank = PcrBank(MICRO)
        self._lock = Lock()
        self._clock_ms = clock_ms or _uptime()
        self._random = random
        self._secret = random(_SECRET_BYTES)
        self._pid = os.getpid()

    def instance(self) -> MicroTpm:
        """Return another µTPM with the same key and secrets, and µPCRs of its own, all zeros: for one piece of code.

        As in TrustVisor (McCune et al., IEEE S&P 2010): one root vouches for one key, and its quote about one
        piece of code does not depend on what ran before it or beside it. Closing an instance does not close the
        others.
        """
        self._own_key()
        other = MicroTpm.__new__(MicroTpm)
        for name in ("_clock_ms", "_key", "_pid", "_public", "_random", "_secret", "_signer"):
            setattr(other, name, getattr(self, name))
        other._bank, other._lock = PcrBank(MICRO), Lock()
        return other

    @property
    def public(self) -> Public:
        """The public area of its attestation key: restricted, for signing; a primary key of the endorsement
        hierarchy.
        """
        return self._public

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend ``digest``, 32 bytes, into a µPCR. Raises AttestationError if there is none of that number."""
        with self._lock:
            self._bank.extend(pcr, digest)

    def read(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """Return the values of these µPCRs, of one instant."""
        with self._lock:
            return self._bank.read_all(pcrs)

    def reset(self, pcr: int) -> None:
        """Set µPCR 16 or 23 to zeros. Raises AttestationError for another."""
        with self._lock:
            self._bank.reset(pcr)

    def quote(self, pcrs: Iterable[int], nonce: bytes) -> QuoteResponse:
        """Sign the values of these µPCRs together with the challenger's nonce.

        Args:
            pcrs: any of 0..23, in any order.
            nonce: at most 64 bytes.

        Raises:
            AttestationError: there is no such µPCR, the nonce is too long, or the µTPM is closed or another process's.
        """
        if len(nonce) > NONCE_BYTES_MAX:
            raise AttestationError(f"a nonce has at most {NONCE_BYTES_MAX} bytes, not {len(nonce)}")
        key = self._own_key()
        values = self.read(pcrs)
        clock = Clock(self._clock_ms(), 1, 0, True)
        quoted = pcr_digest(tuple(values.values()))
        message = Quote(self._signer, nonce, clock, FIRMWARE, PcrSelection.sha256(*values), quoted).encode()
        return QuoteResponse(message, _sign(key, message).encode(), values)

    def random(self, size: int) -> bytes:
        """Return ``size`` random bytes."""
        return self._random(size)

    def seal(self, secret: bytes, pcrs: Iterable[int]) -> bytes:
        """Encrypt ``secret`` so that only this µTPM opens it, and only while these µPCRs hold their present values.

        Returns:
            ``quoreduce sealed 1`` || TPML_PCR_SELECTION || SHA-256 of the values || 12 bytes of IV || AES-256-GCM
            ciphertext and tag, with all before it as associated data; 88 bytes more than the secret.

        Raises:
            AttestationError: the secret is not of 1 to 128 bytes, there is no such µPCR, or the µTPM is closed or
                another process's.
        """
        self._own_key()
        if not 0 < len(secret) <= SECRET_BYTES_MAX:
            raise AttestationError(f"a secret of 1 to {SECRET_BYTES_MAX} bytes can be sealed, not one of {len(secret)}")
        values = self.read(pcrs)
        head = (
            SEALED
            + PcrSelection.sha256(*values).encode()
            + pcr_digest(tuple(values.values()))
            + self._random(_IV_BYTES)
        )
        return head + self._cipher(head).encrypt(head[-_IV_BYTES:], secret, head)

    def unseal(self, blob: bytes) -> bytes:
        """Return the secret of :meth:`seal`.

        Raises:
            AttestationError: the µPCRs hold other values now; another µTPM sealed it; it was altered; or the µTPM is
                closed or another process's.
        """
        self._own_key()
        reader = TpmReader(blob, "sealed secret")
        if reader.take(len(SEALED)) != SEALED:
            raise reader.error("not sealed by a µTPM")
        selection, wanted, iv = PcrSelection.decode(reader), reader.take(32), reader.take(_IV_BYTES)
        encrypted = reader.rest()
        pcrs = [pcr for _, bank in selection.banks for pcr in bank]
        if pcr_digest(tuple(self.read(pcrs).values())) != wanted:
            raise reader.error(f"the µPCRs {pcrs} do not hold the values that it was sealed to")
        head = blob[: len(blob) - len(encrypted)]
        try:
            return self._cipher(head).decrypt(iv, encrypted, head)
        except InvalidTag:
            raise reader.error("it was altered, or sealed by another µTPM") from None

    def close(self) -> None:
        """Forget the private key and all secrets; µPCRs can still be read."""
        self._key, self._secret = None, b""

    def __reduce__(self) -> NoReturn:
        raise TypeError("a µTPM can be neither copied nor pickled: its key belongs to one execution environment")

    def _own_key(self) -> PrivateKey:
        if self._key is None:
            raise AttestationError("the µTPM is closed")
        if os.getpid() != self._pid:
            raise AttestationError("the µTPM belongs to another process: make one for this process")
        return self._key

    def _cipher(self, head: bytes) -> AESGCM:
        return AESGCM(HKDF(_SHA256, 32, None, head).derive(self._secret))


def _new_key(scheme: Scheme) -> PrivateKey:
    if scheme == "ecdsa":
        return ec.generate_private_key(ec.SECP256R1())
    if scheme == "rsassa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    raise AttestationError(f"scheme {scheme!r} is neither ecdsa nor rsassa")


def _sign(key: PrivateKey, message: bytes) -> Signature:
    if isinstance(key, rsa.RSAPrivateKey):
        return Signature(ALG_RSASSA, ALG_SHA256, (key.sign(message, _RSASSA, _SHA256),))
    r, s = decode_dss_signature(key.sign(message, _ECDSA))
    return Signature(ALG_ECDSA, ALG_SHA256, (r.to_bytes(32, "big"), s.to_bytes(32, "big")))
