"""The chain of an endorsement key's certificate, up to a CA that a policy names. Pure: the time is an argument.

It is apart from :mod:`quoreduce.trust.evidence` because reading certificates takes long to import, and workers do not
need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from quoreduce.errors import EvidenceError

_BROKEN: Final = (  # raised for malformed certificates; not all are ValueErrors
    ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip


def check_ek_chain(chain: Sequence[bytes], roots: Sequence[x509.Certificate], at: datetime) -> None:
    """Check an EK certificate up to a CA: issuers' names and signatures, validity, and who may sign certificates.

    Args:
        chain: DER; the EK's, then intermediate CAs, each issued by the next one.
        roots: CAs that are trusted; one of them issued the last of the chain.
        at: the time at which all have to be valid.

    Raises:
        EvidenceError: the first check that fails.
    """
    try:
        certificates = [x509.load_der_x509_certificate(raw) for raw in chain]
        for certificate, issuer in pairwise(certificates):
            certificate.verify_directly_issued_by(issuer)
        root = _issuer_among(roots, certificates[-1])
        for certificate in (*certificates, root):
            _check_validity(certificate, at)
        for number, certificate in enumerate((*certificates, root)):
            if _may_sign(certificate) != (number > 0):
                raise EvidenceError(f"the certificate of {_subject(certificate)} is {'not ' * (number > 0)}one of a CA")
    except _BROKEN as error:
        raise EvidenceError(f"the EK certificate's chain is broken: {error or 'a signature is wrong'}") from error


def _check_validity(certificate: x509.Certificate, at: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if at < first:
        raise EvidenceError(
            f"the certificate of {_subject(certificate)} is not valid before {first:%Y-%m-%d}: is a clock wrong?"
        )
    if at > last:
        raise EvidenceError(f"the certificate of {_subject(certificate)} expired on {last:%Y-%m-%d}")


def _issuer_among(roots: Sequence[x509.Certificate], last: x509.Certificate) -> x509.Certificate:
    for root in roots:
        try:
            last.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return root
    if last.issuer == last.subject:
        raise EvidenceError(f"the certificate of {_subject(last)} is signed by itself, and no CA of the policy")
    raise EvidenceError("no CA of the policy issued the EK certificate's chain")


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"serial number {certificate.serial_number}"


def _may_sign(certificate: x509.Certificate) -> bool:
    """Whether a certificate is one of a CA that signs certificates (RFC 5280, 4.2.1.3 and 4.2.1.9)."""
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        return missing.oid == x509.KeyUsage.oid
