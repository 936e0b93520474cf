"""The worker's side of an attested job: its µTPM, its environment, a leaf for each execution; and the TPM of its node.

Each job has a µTPM of its own in each worker. The worker that the driver chooses on a node has that node's TPM for the time of a
launch, some ten milliseconds: another worker, job or session may be next.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from blake3 import blake3

from quoreduce.errors import HostError
from quoreduce.runtime import wire
from quoreduce.runtime.outcome import outcome
from quoreduce.trust import evidence
from quoreduce.trust.batcher import Batch
from quoreduce.trust.measure import environment
from quoreduce.trust.node import open_node
from quoreduce.trust.utpm import MicroTpm

Answered = wire.MapTask | wire.ReduceTask | wire.SampleTask


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
        """Say what this worker is made of, and give the public area of its µTPM."""
        return wire.Admission(self._document, self._tpm.public.encode())

    def measure(self, task: Answered, setup: wire.Setup, reply: wire.Reply) -> None:
        """Take an execution that ended with a vote as a leaf; it is measured when its batch is committed."""
        if reply.status in ("ok", "failed"):
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
        """Quote once more, over all that was committed."""
        quoted = self._tpm.quote(evidence.LEVEL2_PCRS, nonce)
        return wire.Quoted(quoted.message, quoted.signature)


def launch(request: wire.RootTask) -> evidence.Hardware:
    """Launch an environment on the TPM of this node, extend the µTPMs' keys, and quote both; HostError, AttestationError."""
    with closing(open_node(request.backend, Path(request.state))) as tpm:
        return tpm.launch(request.document, request.keys, request.nonce)


def kind_of(task: Answered) -> tuple[evidence.Kind, int]:
    """The kind and index of a task as they stand in its leaf."""
    if isinstance(task, wire.SampleTask):
        return "sample", 0
    return ("map" if isinstance(task, wire.MapTask) else "reduce"), task.index


def input_digest(task: Answered, setup: wire.Setup) -> bytes:
    """What a task was given, 32 bytes: the same for all its replicas.

    A map: where its split lies, and the agreed sample. A reduce: the digests of the partitions that it reads (which it
    recomputes over what it has read), and the sample. A sample: where all splits lie.
    """
    whole = blake3(b"quoreduce input 1")
    if isinstance(task, wire.SampleTask):
        whole.update(wire.encode_splits(setup.sources))
        return whole.digest()
    whole.update(len(task.side).to_bytes(8, "little") + task.side)
    if isinstance(task, wire.MapTask):
        whole.update(wire.encode_splits((task.split,)))
    else:
        whole.update(b"".join(copies[0].digest for copies in task.sources))
    return whole.digest()
