"""What an attested job stands on, looked up before it starts: policy, backend, nonce; and its record in the receipt."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from quoreduce.errors import AttestationError
from quoreduce.trust.node import read_policy, state_folder
from quoreduce.trust.receipt import JobRecord

if TYPE_CHECKING:
    from quoreduce.driver.nodes import Trust
    from quoreduce.job import Job
    from quoreduce.protocol.options import Attest, Options

SAID = ("split_mb", "seed", "deferred", "tentative", "digest_outputs", "tight_storage")


def look_up(attest: Attest) -> Trust:
    """Find policy and backend. Raises AttestationError or HostError, which says what is missing and how to make it."""
    from quoreduce.driver.nodes import Trust

    state = state_folder(attest.state)
    policy = read_policy(attest.policy or str(state / "policy.json"))
    backend = attest.backend or policy.backends[0]
    if backend not in policy.backends:
        raise AttestationError(f"the policy does not accept backend {backend}, only {', '.join(policy.backends)}")
    challenge = bytes.fromhex(attest.nonce) if attest.nonce else secrets.token_bytes(32)
    return Trust(
        backend, policy, challenge, attest.scheme, attest.batch, attest.batch_size, attest.batch_ms, str(state)
    )


def job_record(job: Job, options: Options, maps: int, reducers: int) -> JobRecord:
    """What the receipt says about the job."""
    assert options.attest is not None
    return JobRecord(
        name=job.name, f=options.f, need=options.replicas_needed, mode=options.mode, digest=options.algorithm,
        batch=options.attest.batch, samples=int(job.sample is not None), maps=maps, reduces=reducers,
        options={name: str(getattr(options, name)) for name in SAID},
    )  # fmt: skip
