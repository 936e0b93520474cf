"""An attested job without a job: nodes, µTPMs, votes and batches as a driver would see them, and the receipt that comes
of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import msgspec
from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from quoreduce.trust import evidence
from quoreduce.trust.batcher import Batcher
from quoreduce.trust.eventlog import encode_binary
from quoreduce.trust.evidence import Follower, Hardware, LateLaunch, QuotedBatch, begin, check_batch, commit
from quoreduce.trust.policy import Policy
from quoreduce.trust.receipt import JobRecord, Receipt, Seal, TaskLog, Utpm, job_id
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.verifier import Verification, verify_receipt
from quoreduce.trust.wire import Public, sized

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
STARTED, ENDED = NOW - timedelta(minutes=5), NOW - timedelta(minutes=2)
CHALLENGE = sha256(b"challenge").digest()
DOCUMENT = json.dumps(
    {"format": "quoreduce environment 1", "python": "3.11"}, sort_keys=True, separators=(",", ":")
).encode()
OTHER_DOCUMENT = DOCUMENT.replace(b"3.11", b"2.7")
DAY = timedelta(days=1)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


class Authority:
    """A CA of TPM makers with an intermediate CA, and a registrar."""

    def __init__(self) -> None:
        self.root_key, self.middle_key = (
            ec.generate_private_key(ec.SECP384R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        self.root = self.certify("root", self.root_key.public_key(), "root", self.root_key, ca=True)
        self.middle = self.certify("middle", self.middle_key.public_key(), "root", self.root_key, ca=True)
        self.registrar = Ed25519PrivateKey.generate()

    def certify(
        self,
        subject: str,
        key: Any,
        issuer: str,
        by: Any,
        *,
        ca: bool,
        start: datetime = NOW - 365 * DAY,
        days: int = 3650,
    ) -> x509.Certificate:
        made = x509.CertificateBuilder(
            name(issuer), name(subject), key, x509.random_serial_number(), start, start + days * DAY
        )
        made = made.add_extension(x509.BasicConstraints(ca, None), critical=True)
        if not subject:  # as TPM makers do: no subject, and a critical alternative name
            directory = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "id:00001014")]))
            made = made.add_extension(x509.SubjectAlternativeName([directory]), critical=True)
        return made.sign(by, SHA384() if by is self.root_key else SHA256())

    def ek_chain(self, **changes: Any) -> tuple[bytes, ...]:
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        ek = self.certify("", key, "middle", self.middle_key, ca=False, **changes)
        return ek.public_bytes(Encoding.DER), self.middle.public_bytes(Encoding.DER)

    def enrol(self, ek: bytes, ak: Public) -> bytes:
        return self.registrar.sign(evidence.enrolment_record(ek, ak))

    def policy(self, **changes: Any) -> Policy:
        fields: dict[str, Any] = {
            "environments": (sha256(DOCUMENT).hexdigest(),),
            "backends": ("swtpm", "utpm"),
            "roots": (self.root.public_bytes(Encoding.PEM).decode(),),
            "registrar": self.registrar.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex(),
        }
        return Policy(**(fields | changes))


@dataclass
class Worker:
    launch: int
    domain: str
    tpm: MicroTpm
    follower: Follower
    batcher: Batcher
    batches: list[QuotedBatch]


@dataclass(frozen=True)
class Attested:
    """A receipt with what its verification needs; ``verify(changes...)`` replaces arguments of the verifier."""

    receipt: Receipt
    manifest: bytes
    policy: Policy
    authority: Authority
    tpms: tuple[MicroTpm, ...]
    node_tpms: tuple[MicroTpm, ...]

    @property
    def raw(self) -> bytes:
        return self.receipt.encode()

    def verify(self, raw: bytes | None = None, **changes: Any) -> Verification:
        arguments: dict[str, Any] = {
            "manifest": self.manifest, "policy": self.policy, "now": NOW, "nonce": CHALLENGE,
        }  # fmt: skip
        return verify_receipt(self.raw if raw is None else raw, **(arguments | changes))

    def changed(self, **changes: Any) -> Attested:
        """With members of the receipt replaced, and sealed anew by the honest µTPMs: the driver's own lie."""
        return replace(self, receipt=seal(msgspec.structs.replace(self.receipt, **changes), self.tpms))


def seal(receipt: Receipt, tpms: tuple[MicroTpm, ...]) -> Receipt:
    nonce = evidence.seal_nonce(receipt.challenge, receipt.body())
    seals = []
    for number, (utpm, tpm) in enumerate(zip(receipt.utpms, tpms, strict=True)):
        if utpm.sealed:
            quoted = tpm.quote(evidence.LEVEL2_PCRS, nonce)
            seals.append(Seal(number, quoted.message, quoted.signature))
    return receipt.sealed(seals)


def digest_of(*what: object) -> bytes:
    return blake3(repr(what).encode()).digest()


def launch_of(
    node: str, document: bytes, keys: list[bytes], job: bytes, authority: Authority | None
) -> tuple[LateLaunch, MicroTpm]:
    """What a node hands over; with an authority from a TPM that another µTPM plays."""
    log = evidence.launch_log(document, keys)
    tpm = MicroTpm()
    if authority is None:
        return LateLaunch(node, "utpm", encode_binary(log)), tpm
    for event in log:
        tpm.extend(event.pcr, event.digest)
    quoted = tpm.quote(evidence.LEVEL1_PCRS, evidence.launch_nonce(CHALLENGE, job, node))
    chain = authority.ek_chain()
    ak, enrolment = sized(tpm.public.encode()), authority.enrol(chain[0], tpm.public)
    hardware = Hardware(chain, ak, enrolment, quoted.message, quoted.signature)
    return LateLaunch(node, "swtpm", encode_binary(log), hardware), tpm


def attested(
    *, maps: int = 3, reduces: int = 2, workers: int = 3, nodes: int = 2, size: int = 2, mode: Any = "merkle",
    hardware: bool = True, wrong: tuple[tuple[str, int, int], ...] = (("map", 1, 0),),
    documents: tuple[bytes, ...] = (),
    authority: Authority | None = None, record: dict[str, Any] | None = None,
) -> Attested:  # fmt: skip
    """Run the driver's side of an attested job with f=1; ``wrong`` replicas are (kind, index, replica).

    ``record`` changes what the receipt says of the job.
    """
    authority = authority or Authority()
    documents = documents or (DOCUMENT,) * nodes
    known: dict[str, Any] = {
        "name": "wordcount", "f": 1, "need": 2, "mode": "bft", "digest": "blake3", "batch": mode, "samples": 0,
        "maps": maps,
        "reduces": reduces, "options": {"reducers": str(reduces)},
    }  # fmt: skip
    job = JobRecord(**(known | (record or {})))
    id_ = job_id(CHALLENGE, job)
    staff = [_worker(number, number % nodes, documents[number % nodes], id_, mode, size) for number in range(workers)]
    keys = [[w.tpm.public.encode() for w in staff if w.launch == n] for n in range(nodes)]
    maker = authority if hardware else None
    made = [launch_of(f"node-{n}", document, keys[n], id_, maker) for n, document in enumerate(documents)]
    tasks = TaskLog()
    _run_tasks(id_, staff, tasks, maps, reduces, wrong)
    utpms = tuple(Utpm(w.launch, w.domain, w.tpm.public.encode(), True, tuple(w.batches)) for w in staff)
    manifest = manifest_of(reduces)
    receipt = Receipt(
        job=job, challenge=CHALLENGE, started=STARTED, ended=ENDED, launches=tuple(launch for launch, _ in made),
        utpms=utpms,
        tasks=tasks.entries(), reads=tuple(range(reduces)), manifest=blake3(manifest).digest(),
    )  # fmt: skip
    tpms = tuple(w.tpm for w in staff)
    return Attested(seal(receipt, tpms), manifest, authority.policy(), authority, tpms, tuple(tpm for _, tpm in made))


def _worker(number: int, launch: int, document: bytes, job: bytes, mode: Any, size: int) -> Worker:
    tpm, domain = MicroTpm(), f"core {number}"
    begin(tpm, document, job, domain)
    follower = Follower(tpm.public.encode(), sha256(document).digest(), domain, job, CHALLENGE, mode)
    return Worker(launch, domain, tpm, follower, Batcher(mode, size, 1000), [])


def _run_tasks(
    job: bytes, staff: list[Worker], tasks: TaskLog, maps: int, reduces: int, wrong: tuple[tuple[str, int, int], ...]
) -> None:
    waiting: list[list[tuple[Any, ...]]] = [[] for _ in staff]
    attempt = 0

    def commit_batch(number: int) -> None:
        worker, batch = staff[number], staff[number].batcher.close()
        if batch is None:
            return
        mirrored = [
            evidence.task_leaf(job, kind, index, a, read, wrote) for kind, index, a, read, wrote in waiting[number]
        ]
        quoted = commit(worker.tpm, batch, CHALLENGE)
        check_batch(worker.follower, quoted, mirrored)
        worker.batches.append(quoted)
        for position, (kind, index, a, read, wrote) in enumerate(waiting[number]):
            tasks.measured(kind, index, read, wrote, utpm=number, batch=batch.number, position=position, attempt=a)
        waiting[number] = []

    todo = [("map", i) for i in range(maps)] + [("reduce", i) for i in range(reduces)]
    for place, (kind, index) in enumerate(todo):
        read, right = digest_of("in", kind, index), output_of(kind, index)
        replicas = 2 + sum(one[:2] == (kind, index) for one in wrong)
        for replica in range(replicas):
            number = (place + replica) % len(staff)
            wrote = digest_of("wrong", kind, index, replica) if (kind, index, replica) in wrong else right
            waiting[number].append((kind, index, attempt, read, wrote))
            if staff[number].batcher.add(evidence.task_leaf(job, kind, index, attempt, read, wrote), attempt):
                commit_batch(number)
            attempt += 1
        tasks.agreed(kind, index, read, right)  # type: ignore[arg-type]
    for number in range(len(staff)):
        commit_batch(number)


def output_of(kind: str, index: int) -> bytes:
    return (
        digest_of("out", kind, index) if kind == "map" else evidence.part_output(digest_of("part", index), 7, index, 9)
    )


def manifest_of(reduces: int) -> bytes:
    parts = [
        {"name": f"part-r-{i:05d}", "digest": digest_of("part", i).hex(), "bytes": 9, "records": 7}
        for i in range(reduces)
    ]
    known = {
        "version": 1,
        "job": "wordcount",
        "mode": "bft",
        "f": 1,
        "digest_algorithm": "blake3",
        "parts": parts,
        "extras": {},
    }
    return json.dumps(known, indent=2).encode()
