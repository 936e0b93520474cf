"""Servers for tests, whole in memory and with real cryptography: an EK that a CA certified, a registrar, a TPM, a µTPM.

A µTPM stands for the server's TPM (it is one, in software): its PCRs 17 and 19 are extended as a dynamic launch would,
and its key is the AK. An attestation takes well under a millisecond, and is checked as that of any other server.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from quoreduce.trust.evidence import ENVIRONMENT_PCR, KEYS_PCR, enrolment_record
from quoreduce.trust.measure import canonical
from quoreduce.trust.policy import Policy
from quoreduce.trust.utpm import MicroTpm
from quoreduce.vm.attestor import SoftwareAttestor, TpmAttestor

AT = datetime(2026, 1, 2, tzinfo=UTC)  # the time in these tests
OPERATIONS = ("launch", "restore", "migrate_out", "migrate_in", "backup", "terminate", "status")


@dataclass(frozen=True)
class Environment:
    """A TVE document and its TCOM documents; ``name`` is all that tells two of them apart."""

    document: bytes
    codes: dict[str, bytes]

    @classmethod
    def named(cls, name: str = "good", operations: tuple[str, ...] = OPERATIONS) -> Environment:
        codes = {
            operation: canonical({"format": "quoreduce tcom 1", "operation": operation}) for operation in operations
        }
        tcoms = {operation: sha256(code).hexdigest() for operation, code in codes.items()}
        return cls(canonical({"format": "quoreduce tve 1", "name": name, "tcoms": tcoms}), codes)

    @property
    def digest(self) -> str:
        return sha256(self.document).hexdigest()


class Maker:
    """Who certifies EKs, and the registrar who binds AKs to them."""

    def __init__(self, name: str = "maker") -> None:
        self._key, self._registrar = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
        self._name = _named(name)
        self.root = self._certificate(self._name, self._key.public_key(), ca=True)

    def chain(self, name: str = "server", ca: bool = False, days: int = 365) -> tuple[bytes, ...]:
        """The certificate of a new EK, DER."""
        made = self._certificate(_named(name), ec.generate_private_key(ec.SECP256R1()).public_key(), ca, days)
        return (made.public_bytes(Encoding.DER),)

    def enrol(self, chain: tuple[bytes, ...], tpm: MicroTpm) -> bytes:
        return self._registrar.sign(enrolment_record(chain[0], tpm.public))

    def policy(self, *environments: str) -> Policy:
        """A policy that trusts this maker and registrar, and TPMs only."""
        root = self.root.public_bytes(Encoding.PEM).decode()
        registrar = self._registrar.public_key().public_bytes_raw().hex()
        return Policy(environments=environments, backends=("swtpm",), roots=(root,), registrar=registrar).checked()

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, ca: bool, days: int = 365
    ) -> x509.Certificate:
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, False, False, False)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(AT - timedelta(days=1))
        made = made.not_valid_after(AT + timedelta(days=days)).add_extension(x509.BasicConstraints(ca, None), True)
        return made.add_extension(usage, True).sign(self._key, SHA256())


class Tower(TpmAttestor):
    """A server: its TPM launched this environment. ``tower(...)`` makes one of the maker that all tests share."""

    def __init__(self, maker: Maker, environment: Environment) -> None:
        self.tpm, micro = MicroTpm(), MicroTpm()
        self.tpm.extend(ENVIRONMENT_PCR, sha256(environment.document).digest())
        self.tpm.extend(KEYS_PCR, sha256(micro.public.encode()).digest())
        self.environment, self.chain = environment, maker.chain()
        self.enrolled = maker.enrol(self.chain, self.tpm)
        super().__init__("swtpm", self.tpm, micro, environment.document, environment.codes, self.chain, self.enrolled)


@cache
def maker() -> Maker:
    """The maker of all towers, made once."""
    return Maker()


def tower(environment: str = "good") -> Tower:
    """A new server that runs the environment of this name."""
    return Tower(maker(), Environment.named(environment))


@cache
def policy(*environments: str) -> Policy:
    """The policy that accepts towers with the environments of these names; "good" if none is given."""
    return maker().policy(*(Environment.named(name).digest for name in environments or ("good",)))


def software_tower(environment: str = "good") -> SoftwareAttestor:
    """A server without a TPM."""
    made = Environment.named(environment)
    return SoftwareAttestor(made.document, made.codes)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
