"""Signatures over evidence: ECDSA on P-256 with SHA-256, and RSASSA-PKCS1-v1_5 with RSA-2048 and SHA-256. Nothing else.

All that TPM 2.0 leaves open is fixed here, so that a signature has no second meaning: the curve, the size of the
modulus, its exponent (65537), the hash, the length of each value. (ECDSA stays malleable: (r, n - s) verifies too.)
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from quoreduce.errors import EvidenceError
from quoreduce.trust.wire import ALG_ECDSA, ALG_RSASSA, ALG_SHA256, Public, PublicKey, Signature

P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # SEC 2, 2.4.2
P256_BYTES: Final = 32
RSA_BITS: Final = 2048
RSA_EXPONENT: Final = 65537
PEM_BYTES_MAX: Final = 8192
_ECDSA: Final = ec.ECDSA(SHA256())
_RSASSA: Final = padding.PKCS1v15()
_SHA256: Final = SHA256()


def load_pem(data: bytes) -> PublicKey:
    """Read a public key of P-256 or RSA-2048 from PEM (SubjectPublicKeyInfo), as ``ak.pem`` holds it.

    Raises:
        EvidenceError: no PEM; a key of another kind, curve, size or exponent; curve parameters instead of a name.
    """
    if len(data) > PEM_BYTES_MAX:
        raise EvidenceError(f"key: {len(data)} bytes of PEM, where at most {PEM_BYTES_MAX} can be")
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"key: not a public key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise EvidenceError(f"key: {type(key).__name__} is neither P-256 nor RSA-2048")
    _scheme_of(key)
    return key


def verify(public: Public | PublicKey, message: bytes, signature: Signature) -> None:
    """Check that ``signature`` is one of ``message`` by ``public``.

    Args:
        public: a public area, which must name the signature's scheme and hash as its own; or a key (:func:`load_pem`).
        message: the signed bytes, of any length; they are hashed here.
        signature: as decoded from its TPMT_SIGNATURE.

    Raises:
        EvidenceError: it is not, or the kind of the key or of the signature is not accepted; with the reason.
    """
    key = public.key() if isinstance(public, Public) else public
    scheme = _scheme_of(key)
    if (signature.scheme, signature.hash_alg) != (scheme, ALG_SHA256):
        used = f"scheme {signature.scheme:#06x} with hash {signature.hash_alg:#06x}"
        raise EvidenceError(f"signature: {used} is not the key's, {scheme:#06x} with SHA-256")
    if isinstance(public, Public) and (public.scheme, public.scheme_hash) != (scheme, ALG_SHA256):
        named = f"scheme {public.scheme:#06x} with hash {public.scheme_hash:#06x}"
        raise EvidenceError(f"signature: the public area allows {named}, not {scheme:#06x} with SHA-256")
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(_rsa_value(key, signature), message, _RSASSA, _SHA256)
        else:
            key.verify(_ecdsa_der(signature), message, _ECDSA)
    except InvalidSignature:
        raise EvidenceError("signature: it is not one of this message by this key") from None


def _scheme_of(key: PublicKey) -> int:
    """Return the one scheme that goes with a key. Raises EvidenceError for a key that is not accepted."""
    if isinstance(key, rsa.RSAPublicKey):
        exponent = key.public_numbers().e
        if (key.key_size, exponent) != (RSA_BITS, RSA_EXPONENT):
            raise EvidenceError(
                f"key: RSA with {key.key_size} bits and exponent {exponent}, not {RSA_BITS} and {RSA_EXPONENT}"
            )
        return ALG_RSASSA
    if not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceError(f"key: curve {key.curve.name}, not P-256")
    return ALG_ECDSA


def _ecdsa_der(signature: Signature) -> bytes:
    r, s = (_scalar(name, value) for name, value in zip("rs", signature.values, strict=True))
    return encode_dss_signature(r, s)


def _scalar(name: str, value: bytes) -> int:
    number = int.from_bytes(value, "big")
    if len(value) > P256_BYTES or not 0 < number < P256_ORDER:
        raise EvidenceError(f"signature: {name} of {len(value)} bytes is not in 1..n-1")
    return number


def _rsa_value(key: rsa.RSAPublicKey, signature: Signature) -> bytes:
    (value,) = signature.values
    if len(value) != RSA_BITS // 8:
        raise EvidenceError(f"signature: {len(value)} bytes, where RSA-{RSA_BITS} has {RSA_BITS // 8}")
    if int.from_bytes(value, "big") >= key.public_numbers().n:
        raise EvidenceError("signature: it is not smaller than the modulus")
    return value
