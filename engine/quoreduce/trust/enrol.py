"""Enrolment: proof that an attestation key (AK) lives in the TPM that a maker's certificate names, and its record.

1. The node shows the certificate of its endorsement key (EK), the EK's and the AK's public areas.
2. The registrar checks the certificate up to a CA, that it is for this EK, that the AK is one; it encrypts a secret to
   the EK and the AK's name (:func:`make_credential`). Only the TPM that holds both gives the secret back
   (ActivateCredential).
3. For the right secret it binds the EK to the AK, once and for all, and signs the pair
   (:func:`quoreduce.trust.evidence.enrolment_record`) with its Ed25519 key.

:func:`make_credential` has no effects besides randomness; :class:`Registrar` keeps a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quoreduce.errors import AttestationError, EvidenceError, HostError
from quoreduce.files import write_whole
from quoreduce.trust import wire
from quoreduce.trust.chain import check_ek_chain
from quoreduce.trust.evidence import enrolment_record
from quoreduce.trust.port import EndorsedTpm
from quoreduce.trust.tpm2 import certifies
from quoreduce.trust.wire import Public, sized

_SECRET_BYTES: Final = 32
_BLOCK_BYTES: Final = 16  # AES
_CURVE_BYTES: Final = {wire.CURVE_P256: 32, wire.CURVE_P384: 48}
_HASHES: Final[dict[int, tuple[str, hashes.HashAlgorithm]]] = {
    wire.ALG_SHA256: ("sha256", hashes.SHA256()),
    wire.ALG_SHA384: ("sha384", hashes.SHA384()),
}
_EK_ATTRIBUTES: Final = wire.FIXED_TPM | wire.FIXED_PARENT | wire.SENSITIVE_DATA_ORIGIN | wire.RESTRICTED | wire.DECRYPT

_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64,136}$")]


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret that only one TPM opens, for one AK: the contents of a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET."""

    credential: bytes
    encrypted_secret: bytes


def make_credential(ek: Public, ak_name: bytes, secret: bytes) -> Credential:
    """Encrypt ``secret`` so that only the TPM with this EK and the object named ``ak_name`` gives it back.

    TPM 2.0 Library, Part 1, 24 (credential protection), B.10.4 (RSA: OAEP) and C.6.1 (ECC: one-pass ECDH).

    Args:
        ek: public area of an endorsement key: RSA-2048, ECC P-256 or P-384.
        ak_name: the AK's name.
        secret: at most as long as the digest of the EK's name algorithm.

    Raises:
        EvidenceError: not an endorsement key: it could leave its TPM, or decrypt for anyone.
    """
    if ek.attributes & _EK_ATTRIBUTES != _EK_ATTRIBUTES or ek.symmetric is None or ek.name_alg not in _HASHES:
        raise EvidenceError(
            "the EK is not a storage key of its TPM: it is restricted to decryption, with AES and SHA-256 or 384"
        )
    if len(secret) > wire.DIGEST_BYTES[ek.name_alg]:
        raise EvidenceError(
            f"a credential for this EK holds at most {wire.DIGEST_BYTES[ek.name_alg]} bytes, not {len(secret)}"
        )
    bits = wire.DIGEST_BYTES[ek.name_alg] * 8
    seed, encrypted_secret = _make_seed(ek, bits)
    hash_name = _HASHES[ek.name_alg][0]
    key = kdf_a(hash_name, seed, b"STORAGE", ak_name, b"", ek.symmetric[1])
    identity = _aes_cfb(key, sized(secret))
    integrity_key = kdf_a(hash_name, seed, b"INTEGRITY", b"", b"", bits)
    integrity = hmac.digest(integrity_key, identity + ak_name, hash_name)
    return Credential(sized(integrity) + identity, encrypted_secret)


def kdf_a(hash_name: str, key: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Derive ``bits`` (a multiple of 8) from a secret key: KDFa (Part 1, 11.4.10.2), the counter mode of SP 800-108."""
    tail = label + b"\0" + party_u + party_v + bits.to_bytes(4, "big")
    made, counter = b"", 0
    while len(made) * 8 < bits:
        counter += 1
        made += hmac.digest(key, counter.to_bytes(4, "big") + tail, hash_name)
    return made[: bits // 8]


def kdf_e(hash_name: str, z: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Derive ``bits`` (a multiple of 8) from an ECDH secret: KDFe (Part 1, 11.4.10.3)."""
    tail = z + label + b"\0" + party_u + party_v
    made, counter = b"", 0
    while len(made) * 8 < bits:
        counter += 1
        made += hashlib.new(hash_name, counter.to_bytes(4, "big") + tail).digest()
    return made[: bits // 8]


def _make_seed(ek: Public, bits: int) -> tuple[bytes, bytes]:
    """Make a seed and encrypt it to the EK: (seed, contents of a TPM2B_ENCRYPTED_SECRET)."""
    hash_name, algorithm = _HASHES[ek.name_alg]
    key = ek.key()
    if isinstance(key, rsa.RSAPublicKey):
        seed = os.urandom(bits // 8)
        return seed, key.encrypt(seed, padding.OAEP(padding.MGF1(algorithm), algorithm, b"IDENTITY\0"))
    size = _CURVE_BYTES[ek.curve]
    ephemeral = ec.generate_private_key(key.curve)
    point = ephemeral.public_key().public_numbers()
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    own_x = key.public_numbers().x.to_bytes(size, "big")
    seed = kdf_e(hash_name, ephemeral.exchange(ec.ECDH(), key), b"IDENTITY", x, own_x, bits)
    return seed, sized(x) + sized(y)


def _aes_cfb(key: bytes, data: bytes) -> bytes:
    """Encrypt with AES in CFB mode, IV zero (SP 800-38A, 6.3; full blocks), which ``cryptography`` deprecates."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # one block at a time, as CFB needs it
    made, register = b"", bytes(_BLOCK_BYTES)
    for at in range(0, len(data), _BLOCK_BYTES):
        pad = block.update(register)
        register = bytes(a ^ b for a, b in zip(data[at : at + _BLOCK_BYTES], pad, strict=False))
        made += register
    return made


class _Bindings(msgspec.Struct, forbid_unknown_fields=True):
    """The registrar's file: for each EK (SHA-256 of its SubjectPublicKeyInfo) the name of its AK, in hexadecimal."""

    format: str = "quoreduce registrar 1"
    bindings: dict[_Hex, _Hex] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A challenge that waits for its answer."""

    ak_name: bytes
    secret: bytes


class Registrar:
    """Binds each EK to one AK, for good. Several may share a folder; the one that made a challenge takes its answer.

    Its folder (mode 0700) holds ``registrar.key`` (Ed25519, 32 bytes, mode 0600) and ``bindings.json``.

    Args:
        folder: made, with a new key, if it is missing.
        roots: the CAs that certify EKs.

    Raises:
        HostError: the folder cannot be read or written, or holds something else.
    """

    def __init__(self, folder: Path, roots: Sequence[x509.Certificate]) -> None:
        self._folder = folder
        self._roots = tuple(roots)
        self._pending: dict[str, _Pending] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                self._key = self._load_key()
        except (OSError, ValueError) as error:
            raise HostError(f"cannot use the registrar in {folder}: {error}") from error

    @property
    def public(self) -> bytes:
        """Its Ed25519 public key, 32 bytes: what policies name."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def challenge(self, chain: Sequence[bytes], ek: Public, ak: Public, at: datetime) -> Credential:
        """Check the keys of a node, and make the credential that it has to open; a later one replaces it.

        Args:
            chain: certificate of the EK, then intermediate CAs; DER.
            ek, ak: public areas.
            at: the time at which the certificates have to be valid; with a time zone.

        Raises:
            EvidenceError: a certificate does not hold, is not for this EK, or the keys are not an EK and an AK.
            AttestationError: this EK is bound to another AK.
        """
        check_ek_chain(chain, self._roots, at)
        if not certifies(chain[0], ek):
            raise EvidenceError("the EK certificate is for another key than the EK shown")
        if not ak.is_restricted_signing:
            raise EvidenceError("the AK is not a restricted signing key: it signs anything it is given")
        identity = _identity(chain[0])
        self._check_free(self._read().bindings, identity, ak)
        secret = os.urandom(_SECRET_BYTES)
        credential = make_credential(ek, ak.name(), secret)
        self._pending[identity] = _Pending(ak.name(), secret)
        return credential

    def enrol(self, certificate: bytes, ak: Public, secret: bytes) -> bytes:
        """Bind the EK of a certificate (DER) to an AK, for the secret that the TPM gave; a challenge can be answered
        once.

        Returns:
            The Ed25519 signature, 64 bytes, over :func:`quoreduce.trust.evidence.enrolment_record`.

        Raises:
            AttestationError: no challenge was made for this EK, it was made for another AK, the secret is wrong, or the
                EK has been bound to another AK.
        """
        identity = _identity(certificate)
        pending = self._pending.pop(identity, None)
        if pending is None:
            raise AttestationError("no challenge waits for an answer of this EK")
        if not hmac.compare_digest(pending.ak_name, ak.name()):
            raise AttestationError("the AK is not the one that the challenge was made for: it was swapped")
        if not hmac.compare_digest(pending.secret, secret):
            raise AttestationError("the secret is wrong: the TPM of this EK did not open the credential")
        with self._locked():
            kept = self._read()
            self._check_free(kept.bindings, identity, ak)
            kept.bindings[identity] = ak.name().hex()
            self._write("bindings.json", msgspec.json.format(msgspec.json.encode(kept)))
        return self._key.sign(enrolment_record(certificate, ak))

    @staticmethod
    def _check_free(bindings: dict[str, str], identity: str, ak: Public) -> None:
        if bindings.get(identity, ak.name().hex()) != ak.name().hex():
            raise AttestationError("this EK is bound to another AK already: a TPM has one AK")

    def _read(self) -> _Bindings:
        path = self._folder / "bindings.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Bindings)
        except FileNotFoundError:
            return _Bindings()
        except (OSError, msgspec.MsgspecError, UnicodeError) as error:
            raise HostError(f"cannot read the registrar's {path}: {error}") from error

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self._folder / name, data, mode=0o600)

    def _load_key(self) -> Ed25519PrivateKey:
        path = self._folder / "registrar.key"
        if path.exists():
            return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
        key = Ed25519PrivateKey.generate()
        self._write(path.name, key.private_bytes_raw())
        return key

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self._folder / "lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def enrol(registrar: Registrar, tpm: EndorsedTpm, intermediates: Sequence[bytes], at: datetime) -> bytes:
    """Enrol a TPM of this machine; return the registrar's signature. Errors as of the registrar and of the TPM.

    Args:
        registrar: that binds its EK to its AK.
        tpm: swtpm or hardware.
        intermediates: CA certificates between its EK's and a root, DER, the EK's issuer first.
        at: the time at which the certificates have to be valid.
    """
    chain = (tpm.ek_certificate, *intermediates)
    made = registrar.challenge(chain, tpm.ek_public, tpm.public, at)
    return registrar.enrol(chain[0], tpm.public, tpm.activate(made.credential, made.encrypted_secret))


def _identity(certificate: bytes) -> str:
    """Name an EK by its key, which another certificate for it does not change. Raises EvidenceError if it is no
    certificate.
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise EvidenceError(f"EK certificate: {error}") from error
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
