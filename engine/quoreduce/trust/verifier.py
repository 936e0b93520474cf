"""The verifier: claims in order, each with its reason; the first that fails ends it. Pure: time and all bytes are
arguments.

It fails closed: evidence is accepted only if every claim was checked and holds, except for those that the caller gave
no means to check (a nonce, the parts' digests) and those that a software root cannot make (the policy has to allow it).
An exception on the way is a failed claim.

It does not prove that memory held what the measured files held; nor that reduces read the outputs of the maps that won
(the driver is trusted with that); nor anything about a root in software, except that one µTPM signed all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from blake3 import blake3

from quoreduce.errors import AttestationError, EvidenceError
from quoreduce.trust.chain import check_ek_chain
from quoreduce.trust.eventlog import decode_binary, replay
from quoreduce.trust.evidence import (
    HARDWARE,
    KINDS,
    Count,
    Follower,
    Hardware,
    LateLaunch,
    LaunchLog,
    attestation_key,
    check_enrolment,
    check_launch_signature,
    check_leaves,
    check_signature,
    check_values,
    part_output,
)
from quoreduce.trust.pcr import ONES, ZEROS
from quoreduce.trust.policy import Policy
from quoreduce.trust.receipt import Receipt, TaskEntry, batch_leaves, decode_receipt, job_id, task_name
from quoreduce.trust.signatures import load_pem
from quoreduce.trust.wire import ALG_SHA256, PcrSelection, Public, PublicKey, Quote, decode_pcrs_file

Status = Literal["ok", "failed", "not_checked"]
PROFILE: Final = "tag:quoreduce,2026:verdict-1"
MANIFEST_BYTES_MAX: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Claim:
    """One link of the chain, and the result of its check."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class VerifiedNode:
    """A node of the evidence: its backend, its environment (hex), and whether the policy lets it vote."""

    name: str
    backend: str
    environment: str
    allowed: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verifier: the claims in order, and the nodes if they were checked."""

    claims: tuple[Claim, ...]
    nodes: tuple[VerifiedNode, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the evidence is accepted."""
        return bool(self.claims) and all(claim.status != "failed" for claim in self.claims)

    @property
    def reason(self) -> str:
        """The claim that failed and why, in one line; empty if the evidence is accepted."""
        return next((f"{claim.name}: {claim.detail}" for claim in self.claims if claim.status == "failed"), "")

    def as_text(self) -> str:
        """Return a line for each claim, and one for the result."""
        width = max((len(claim.name) for claim in self.claims), default=0)
        lines = [
            f"{claim.status.replace('_', ' '):<11}  {claim.name:<{width}}  {claim.detail}" for claim in self.claims
        ]
        return "\n".join([*lines, "accepted" if self.accepted else f"REFUSED: {self.reason}"]) + "\n"

    def as_json(self) -> str:
        """Return it as JSON with the members of an EAT Attestation Result (draft-ietf-rats-ear) that apply, and the
        claims.
        """
        status = {True: "affirming", False: "contraindicated"}
        nodes = {
            node.name: {
                "ear.status": status[self.accepted and node.allowed],
                "backend": node.backend,
                "environment": node.environment,
            }
            for node in self.nodes
        }
        claims = [{"name": claim.name, "status": claim.status, "detail": claim.detail} for claim in self.claims]
        verdict = {"eat_profile": PROFILE, "ear.status": status[self.accepted], "claims": claims, "submods": nodes}
        return json.dumps(verdict, indent=2, ensure_ascii=False) + "\n"


class Unchecked(str):
    """The detail of a claim that could not be checked."""

    __slots__ = ()


Step = tuple[str, Callable[[], str]]


def verify_receipt(
    receipt: bytes,
    manifest: bytes,
    policy: Policy,
    now: datetime,
    nonce: bytes | None = None,
    part_digests: Mapping[str, str] | None = None,
) -> Verification:
    """Verify a job's receipt. Nothing is raised.

    Args:
        receipt: the bytes of ``_RECEIPT.json``.
        manifest: the bytes of ``_SUCCESS``.
        policy: what is trusted.
        now: the verifier's time, with a time zone.
        nonce: the challenge that was given to the job, 32 bytes; None: unknown, so only its age can show a replay.
        part_digests: the digest (hex) of each part on disk, by file name; None: the parts were not read.
    """
    checks = _ReceiptChecks(receipt, manifest, policy, now, nonce, part_digests)
    claims = _run(checks.steps())
    return Verification(claims, checks.nodes())


def check_launch(launch: LateLaunch, job: bytes, challenge: bytes, policy: Policy, at: datetime) -> LaunchLog:
    """Check level 1 of one node, as a driver does before it counts votes of its workers, and return what its log says.

    Args:
        launch: from the node.
        job: the job's id.
        challenge: the challenger's nonce.
        policy: what is trusted; the environment has to be in it.
        at: the time now, with a time zone.

    Raises:
        AttestationError: the check that fails; the node has no vote.
    """
    _check_backend(launch, policy)
    log = LaunchLog.decode(launch.log)
    if launch.hardware is not None:
        check_ek_chain(launch.hardware.ek, policy.authorities(), at)
        check_enrolment(launch.hardware, bytes.fromhex(policy.registrar or ""))
        check_values(check_launch_signature(launch, launch.hardware, job, challenge), log.values)
    if log.environment.hex() not in policy.environments:
        raise AttestationError(f"the environment of node {launch.node}, {log.environment.hex()}, is not in the policy")
    return log


def verify_quote(
    key: bytes, message: bytes, signature: bytes, nonce: bytes, pcrs: bytes | None = None, log: bytes | None = None
) -> Verification:
    """Verify a quote with files as tpm2-tools name and format them. Nothing is raised.

    Args:
        key: ``ak.pem``, or ``ak.tss`` (TPM2B_PUBLIC), which also says whether the key signs only what its TPM made.
        message, signature: ``quote.msg``, ``quote.sig``.
        nonce: that the quote has to answer.
        pcrs: ``quote.pcrs``.
        log: ``eventlog.bin``; every PCR that is quoted has to replay.
    """
    return Verification(_run(_QuoteChecks(key, message, signature, nonce, pcrs, log).steps()))


def _run(steps: Sequence[Step]) -> tuple[Claim, ...]:
    claims: list[Claim] = []
    failed = False
    for name, step in steps:
        if failed:
            claims.append(Claim(name, "not_checked", "not reached"))
            continue
        try:
            detail = step()
            claims.append(Claim(name, "not_checked" if isinstance(detail, Unchecked) else "ok", _line(detail)))
        except Exception as error:  # noqa: BLE001 - fails closed, whatever it is
            reason = str(error) if isinstance(error, AttestationError) else f"{type(error).__name__}: {error}"
            claims.append(Claim(name, "failed", _line(reason)))
            failed = True
    return tuple(claims)


def _line(text: str) -> str:
    """One line that is safe to print: nobody vouches for names in evidence."""
    return "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))


def _check_backend(launch: LateLaunch, policy: Policy) -> None:
    if launch.backend not in policy.backends:
        raise EvidenceError(f"node {launch.node} has the backend {launch.backend}, which the policy does not accept")
    if (launch.backend in HARDWARE) != (launch.hardware is not None):
        raise EvidenceError(
            f"node {launch.node}, of backend {launch.backend}, has a quote of a TPM too much or too little"
        )


class _Part(msgspec.Struct):
    name: str
    digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    bytes: Count
    records: Count


class _Manifest(msgspec.Struct):
    """The members of a manifest that are compared with the receipt; its digest binds the others."""

    job: str
    mode: str
    f: int
    digest_algorithm: str
    parts: tuple[_Part, ...]


_MANIFEST: Final = msgspec.json.Decoder(_Manifest)


class _ReceiptChecks:
    """The claims of a receipt, in the order of :meth:`steps`; each relies on those before it."""

    def __init__(
        self,
        raw: bytes,
        manifest: bytes,
        policy: Policy,
        now: datetime,
        nonce: bytes | None,
        part_digests: Mapping[str, str] | None,
    ) -> None:
        self._raw, self._manifest, self._policy, self._now = raw, manifest, policy, now
        self._nonce, self._part_digests = nonce, part_digests
        self._receipt: Receipt
        self._job = b""
        self._logs: list[LaunchLog] = []
        self._quotes: list[tuple[LaunchLog, Quote]] = []
        self._followers: list[Follower] = []
        self._agreed: dict[tuple[int, int], TaskEntry] = {}

    def steps(self) -> list[Step]:
        return [
            ("format", self.format), ("nonce", self.nonce), ("freshness", self.freshness), ("ek_chain", self.ek_chain),
            ("enrolment", self.enrolment), ("ak_signature", self.ak_signature), ("pcr_values", self.pcr_values),
            ("environment", self.environment), ("utpm", self.utpm), ("batches", self.batches), ("leaves", self.leaves),
            ("votes", self.votes), ("output", self.output), ("seal", self.seal),
        ]  # fmt: skip

    def nodes(self) -> tuple[VerifiedNode, ...]:
        pairs = zip(self._receipt.launches, self._logs, strict=True) if self._logs else ()
        return tuple(
            VerifiedNode(one.node, one.backend, log.environment.hex(), self._allows(log)) for one, log in pairs
        )

    def format(self) -> str:
        self._policy.checked()
        self._receipt = receipt = decode_receipt(self._raw)
        self._job = job_id(receipt.challenge, receipt.job)
        logs = [LaunchLog.decode(launch.log) for launch in receipt.launches]
        if len({launch.node for launch in receipt.launches}) != len(receipt.launches):
            raise EvidenceError("a node is launched twice")
        if any(utpm.launch >= len(receipt.launches) for utpm in receipt.utpms):
            raise EvidenceError("a µTPM is of a launch that is not there")
        self._logs = logs
        return f"{receipt.format}: {receipt.job.name}, {len(receipt.launches)} nodes, {len(receipt.utpms)} µTPMs"

    def nonce(self) -> str:
        if self._nonce is None:
            return Unchecked("no nonce was given: only its age tells a replayed receipt")
        if self._nonce != self._receipt.challenge:
            raise EvidenceError("the receipt answers another nonce: it is replayed, or of another job")
        return "the receipt answers the nonce given"

    def freshness(self) -> str:
        started, ended = self._receipt.started, self._receipt.ended
        skew, oldest = timedelta(seconds=self._policy.clock_skew_s), timedelta(seconds=self._policy.max_age_s)
        if ended < started:
            raise EvidenceError(f"the job ended at {ended} before it started at {started}")
        age = self._now - ended
        if age < -skew:
            raise EvidenceError(f"the job ends {-age} ahead of this clock: one of the two clocks is wrong")
        if age > oldest + skew:
            raise EvidenceError(f"the job ended {age} ago; the policy accepts {oldest}")
        return f"the job ended {ended:%Y-%m-%d %H:%M:%S} UTC"

    def ek_chain(self) -> str:
        for launch in self._receipt.launches:
            _check_backend(launch, self._policy)
        roots = self._policy.authorities()
        ended = self._receipt.ended
        return self._hardware(
            lambda _, one, __: check_ek_chain(one.ek, roots, ended), "EKs certified by CAs of the policy"
        )

    def enrolment(self) -> str:
        registrar = bytes.fromhex(self._policy.registrar or "")
        detail = self._hardware(lambda _, one, __: check_enrolment(one, registrar), "AKs bound to EKs by the registrar")
        keys = [one.hardware.ak for one in self._receipt.launches if one.hardware]
        if len(set(keys)) != len(keys):
            raise EvidenceError("two nodes have the same AK")
        return detail

    def ak_signature(self) -> str:
        def check(launch: LateLaunch, hardware: Hardware, log: LaunchLog) -> None:
            self._quotes.append((log, check_launch_signature(launch, hardware, self._job, self._receipt.challenge)))

        return self._hardware(check, "quotes signed by AKs, for this job")

    def pcr_values(self) -> str:
        for log, quote in self._quotes:
            check_values(quote, log.values)
        if not self._quotes:
            return Unchecked("software root: no TPM confirms the environment")
        return "logs replay to the PCRs quoted (17, 19)"

    def environment(self) -> str:
        refused = [node.name for node in self.nodes() if not node.allowed]
        if len(refused) == len(self._logs):
            names = ", ".join(sorted({log.environment.hex() for log in self._logs})) or "there is none"
            raise EvidenceError(f"no environment is in the policy: {names}")
        return "in the policy" + f"; without a vote, because they are not: {', '.join(refused)}" * bool(refused)

    def utpm(self) -> str:
        receipt = self._receipt
        for number, log in enumerate(self._logs):
            keys = tuple(one.public for one in receipt.utpms if one.launch == number)
            if keys != log.keys:
                raise EvidenceError(
                    f"the µTPMs of node {receipt.launches[number].node} are not those in its log (PCR 19)"
                )
        if len({one.public for one in receipt.utpms}) != len(receipt.utpms):
            raise EvidenceError("two µTPMs have the same key")
        self._followers = [
            Follower(
                one.public, self._logs[one.launch].environment, one.domain, self._job, receipt.challenge,
                receipt.job.batch,
            ) for one in receipt.utpms
        ]  # fmt: skip
        return f"{len(receipt.utpms)} µTPMs, each in the log of its node"

    def batches(self) -> str:
        count = 0
        for number, (follower, utpm) in enumerate(zip(self._followers, self._receipt.utpms, strict=True)):
            for batch in utpm.batches:
                try:
                    follower.follow(batch)
                except EvidenceError as error:
                    raise EvidenceError(f"batch {follower.number} of µTPM {number} ({utpm.domain}): {error}") from error
            count += len(utpm.batches)
        return f"{count} batches, each quoted for this job and replayed into µPCR 16"

    def leaves(self) -> str:
        found = batch_leaves(self._receipt)
        count = 0
        for number, utpm in enumerate(self._receipt.utpms):
            for place, batch in enumerate(utpm.batches):
                leaves = found.pop((number, place), [])
                try:
                    check_leaves(batch, self._receipt.job.batch, leaves)
                except EvidenceError as error:
                    raise EvidenceError(f"batch {place} of µTPM {number} ({utpm.domain}): {error}") from error
                count += len(leaves)
        if found:
            raise EvidenceError(f"leaves are listed of a batch that is not there: {min(found)}")
        return f"{count} leaves are all those of the batches"

    def votes(self) -> str:
        job = self._receipt.job
        masked = job.need - 1
        if masked != (0 if job.mode == "original" else job.f):
            raise EvidenceError(f"{job.need} votes do not win in mode {job.mode} with f={job.f}")
        if masked < self._policy.f_min:
            raise EvidenceError(f"the job masks {masked} faults, the policy wants {self._policy.f_min}")
        wanted = {(kind, i) for kind, count in enumerate((job.samples, job.maps, job.reduces)) for i in range(count)}
        for entry in self._receipt.tasks:
            if (entry.kind, entry.index) not in wanted:
                raise EvidenceError(f"the job has no {task_name(entry)}")
            if entry.agreed:
                self._count_votes(entry, job.need)
        if missing := wanted - self._agreed.keys():
            kind, index = min(missing)
            raise EvidenceError(f"no output of {KINDS[kind]} {index} won a vote")
        return f"{len(wanted)} tasks, each with {job.need} or more votes of distinct domains"

    def output(self) -> str:
        receipt = self._receipt
        if len(self._manifest) > MANIFEST_BYTES_MAX or blake3(self._manifest).digest() != receipt.manifest:
            raise EvidenceError("the manifest (_SUCCESS) is not the one of this receipt")
        manifest = _MANIFEST.decode(self._manifest)
        job = receipt.job
        if (manifest.job, manifest.mode, manifest.f, manifest.digest_algorithm) != (
            job.name,
            job.mode,
            job.f,
            job.digest,
        ):
            raise EvidenceError("the manifest is of another job than the receipt")
        if len(manifest.parts) != job.reduces or len(receipt.reads) != job.reduces:
            raise EvidenceError(
                f"{job.reduces} reduces, but {len(manifest.parts)} parts and {len(receipt.reads)} record counts"
            )
        for index, (part, read) in enumerate(zip(manifest.parts, receipt.reads, strict=True)):
            voted = part_output(bytes.fromhex(part.digest), part.records, read, part.bytes)
            if part.name != f"part-r-{index:05d}" or voted != self._agreed[KINDS.index("reduce"), index].output:
                raise EvidenceError(f"{part.name} is not what reduce {index} was voted to have written")
        return self._compare_parts({part.name: part.digest for part in manifest.parts})

    def seal(self) -> str:
        receipt = self._receipt
        body = receipt.body()
        sealed = [number for number, utpm in enumerate(receipt.utpms) if utpm.sealed]
        if [seal.utpm for seal in receipt.seals] != sealed:
            raise EvidenceError("seals are missing, too many, or out of order")
        for seal in receipt.seals:
            try:
                self._followers[seal.utpm].check_seal(seal.message, seal.signature, body)
            except EvidenceError as error:
                raise EvidenceError(
                    f"the seal of µTPM {seal.utpm} ({receipt.utpms[seal.utpm].domain}): {error}"
                ) from error
        domains = {receipt.utpms[number].domain for number in sealed if self._votes(number)}
        if len(domains) < receipt.job.need:
            raise EvidenceError(f"{len(domains)} domains sealed the receipt; {receipt.job.need} are needed")
        return f"{len(sealed)} µTPMs vouch for the receipt as a whole"

    def _hardware(self, check: Callable[[LateLaunch, Hardware, LaunchLog], None], detail: str) -> str:
        """Run a check on each launch with a certified TPM; say so if there is none."""
        software = []
        for launch, log in zip(self._receipt.launches, self._logs, strict=True):
            if launch.hardware is None:
                software.append(launch.node)
                continue
            try:
                check(launch, launch.hardware, log)
            except EvidenceError as error:
                raise EvidenceError(f"node {launch.node}: {error}") from error
        if len(software) == len(self._logs):
            return Unchecked("software root: no TPM vouches for these nodes, and the policy accepts it")
        return detail + f"; software root: {', '.join(software)}" * bool(software)

    def _allows(self, log: LaunchLog) -> bool:
        return log.environment.hex() in self._policy.environments

    def _votes(self, utpm: int) -> bool:
        return self._allows(self._logs[self._receipt.utpms[utpm].launch])

    def _count_votes(self, entry: TaskEntry, need: int) -> None:
        domains = {self._receipt.utpms[leaf.utpm].domain for leaf in entry.leaves if self._votes(leaf.utpm)}
        if len(domains) < need:
            raise EvidenceError(f"{task_name(entry)} has {len(domains)} votes of distinct domains, {need} are needed")
        if (entry.kind, entry.index) in self._agreed:
            raise EvidenceError(f"two outputs of {task_name(entry)} are said to have won")
        self._agreed[entry.kind, entry.index] = entry

    def _compare_parts(self, wanted: Mapping[str, str]) -> str:
        if self._part_digests is None:
            return "the manifest names what was voted; the parts themselves were not read"
        for name, digest in wanted.items():
            if self._part_digests.get(name) != digest:
                raise EvidenceError(
                    f"{name} is not what was voted" if name in self._part_digests else f"{name} is missing"
                )
        return f"{len(wanted)} parts are what was voted"


class _QuoteChecks:
    """The claims of one quote."""

    def __init__(
        self, key: bytes, message: bytes, signature: bytes, nonce: bytes, pcrs: bytes | None, log: bytes | None
    ) -> None:  # fmt: skip
        self._key, self._message, self._signature = key, message, signature
        self._nonce, self._pcrs, self._log = nonce, pcrs, log
        self._public: Public | PublicKey
        self._quote: Quote
        self._values: dict[int, bytes] = {}

    def steps(self) -> list[Step]:
        return [
            ("key", self.key),
            ("ak_signature", self.ak_signature),
            ("pcr_values", self.pcr_values),
            ("log", self.log),
        ]

    def key(self) -> str:
        if self._key.lstrip().startswith(b"-----BEGIN"):
            self._public = load_pem(self._key)
            return "a public key (PEM): it may sign other things than quotes"
        self._public = attestation_key(self._key)
        return "a restricted signing key"

    def ak_signature(self) -> str:
        self._quote = check_signature(self._public, self._message, self._signature, self._nonce)
        return "signed by the key, for the nonce given"

    def pcr_values(self) -> str:
        if self._pcrs is None:
            return Unchecked("no PCR values were given")
        selection, values = decode_pcrs_file(self._pcrs)
        if selection != PcrSelection.sha256(*(pcr for _, pcr in values)) or selection != self._quote.selection:
            raise EvidenceError("the PCRs of the file are not those of the quote, of one SHA-256 bank")
        self._values = {pcr: value for (_, pcr), value in values.items()}
        check_values(self._quote, self._values)
        return f"PCRs {', '.join(map(str, self._values))} hold the values quoted"

    def log(self) -> str:
        if self._log is None:
            return Unchecked("no event log was given")
        events = decode_binary(self._log)
        replayed = replay(events)
        selected = [pcr for alg, bank in self._quote.selection.banks for pcr in bank if alg == ALG_SHA256]
        values = {pcr: replayed.get(pcr, ONES if self._values.get(pcr) == ONES else ZEROS) for pcr in selected}
        check_values(self._quote, values)
        return f"{len(events)} events replay to the PCRs quoted"
