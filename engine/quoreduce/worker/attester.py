"""The worker's side of an attested job: its µTPM, its environment, a leaf for each execution; and the TPM of its node.

Each job has a µTPM of its own in each worker. The worker that the driver chooses on a node holds the node's TPM only
during a launch, for some ten milliseconds: another worker, job or session may be next.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from quoreduce.errors import HostError
from quoreduce.protocol import wire
from quoreduce.protocol.outcome import Answered, input_digest, kind_of, outcome
from quoreduce.trust import evidence
from quoreduce.trust.batcher import Batch
from quoreduce.trust.measure import environment
from quoreduce.trust.node import open_node
from quoreduce.trust.utpm import MicroTpm


class Attester:
    """Attests what one worker does in one job."""

    def __init__(self, attested: wire.Attested) -> None:
        self._attested = attested
        self._tpm = MicroTpm(attested.scheme)  # type: ignore[arg-type]
        self._document = environment()
        self._leaves: list[bytes] = []
        self._number = 0
        evidence.begin(self._tpm, self._document, attested.job, attested.domain)

    def admission(self) -> wire.Admission:
        """This worker's environment, and the public area of its µTPM."""
        return wire.Admission(self._document, self._tpm.public.encode())

    def measure(self, task: Answered, setup: wire.Setup, reply: wire.Reply) -> None:
        """Note the leaf of an execution that ended with a vote; it is measured when its batch is committed."""
        if isinstance(reply, wire.Done | wire.JobRaised):
            kind, index = kind_of(task)
            made = evidence.task_leaf(
                self._attested.job, kind, index, task.attempt, input_digest(task, setup), outcome(kind, reply)
            )
            self._leaves.append(made)

    def commit(self, count: int) -> wire.Committed:
        """Extend and quote a batch of the oldest ``count`` leaves."""
        if not 1 <= count <= len(self._leaves):
            raise HostError(f"a batch of {count} leaves was asked for, there are {len(self._leaves)}")
        batch = Batch(self._number, self._attested.batch, tuple(self._leaves[:count]))  # type: ignore[arg-type]
        del self._leaves[:count]
        self._number += 1
        done = evidence.commit(self._tpm, batch, self._attested.challenge)
        return wire.Committed(done.count, done.root, done.message, done.signature)

    def seal(self, nonce: bytes) -> wire.Quoted:
        """Quote everything that was committed."""
        quoted = self._tpm.quote(evidence.LEVEL2_PCRS, nonce)
        return wire.Quoted(quoted.message, quoted.signature)


def launch(request: wire.RootTask) -> evidence.Hardware:
    """Launch an environment on the TPM of this node, extend the µTPMs' keys, and quote both. Raises HostError,
    AttestationError.
    """
    with closing(open_node(request.backend, Path(request.state))) as tpm:
        return tpm.launch(request.document, request.keys, request.nonce)
