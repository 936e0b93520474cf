"""The TCOM of backup: writes a VM's state, sealed under a key that only the owner gets, to storage that nobody trusts.
Pure.

Phases, and what holds in each:

``writing``    the order is used up; the VM stays ``running`` in the record, and is paused for the end of the stream at
               most.
``resuming``   all is written; only this TCOM has the key.
``over``       the VM runs; the receipt has K_B and the manifest's digest, sealed to the owner (HPKE); K_B is forgotten.

A crash or a failure leaves the VM ``running`` (it is resumed in any case) and a blob that nobody can read. The counter
of an order that failed is not used again; the owner keeps the newest.
"""

from __future__ import annotations

from typing import Literal

from quoreduce.vm import wire
from quoreduce.vm.evidence import IMAGE
from quoreduce.vm.ports import (
    NO_ORDER,
    REFUSED,
    Command,
    CommandFailed,
    Data,
    DataEnd,
    EndTcom,
    Extend,
    Note,
    Outgoing,
    PutBlob,
    Resume,
    Resumed,
    SendAttested,
    Settle,
    StartTcom,
    TcomEvent,
    TcomJob,
    TimedOut,
    VmRecord,
    VmSpec,
)
from quoreduce.vm.sealing import BACKUP_KEY, BACKUP_STREAM, StreamSealer, hpke_seal


class BackupTcom:
    """One backup of a running VM; ``step`` until it has given :class:`EndTcom`."""

    def __init__(self, job: TcomJob, record: VmRecord) -> None:
        self._job = job
        self._record = record.with_(number=job.order.number, order=job.session, nonce=job.order.nonce)
        self._state: Literal["writing", "resuming"] = "writing"
        self._key = job.random(32)
        self._sealer = StreamSealer(self._key, BACKUP_STREAM + job.session, VmSpec.of(record.spec).stream_bytes_max())
        self._reason = ""

    def begin(self) -> list[Command]:
        """Use the order up, and read the VM."""
        job, record = self._job, self._record
        return [
            record.persist(),
            StartTcom(job.session, "backup"),
            Extend(job.session, IMAGE, record.image),
            Outgoing(job.session, record.vmid),
        ]

    def step(self, event: TcomEvent) -> list[Command]:
        """Go on. What is no part of this is noted, and changes nothing."""
        job = self._job
        try:
            match event:
                case Data() if self._state == "writing":
                    return [PutBlob(job.session, job.session.hex(), self._sealer.chunk(event.data, False), False)]
                case DataEnd() if self._state == "writing":
                    last = PutBlob(job.session, job.session.hex(), self._sealer.chunk(b"", True), True)
                    return [last, *self._resume("")]
                case CommandFailed() | TimedOut() | Settle() if self._state == "writing":
                    return self._resume(_why(event))
                case Resumed() if self._state == "resuming":
                    return self._receipt()
                case CommandFailed() | TimedOut() if self._state == "resuming":
                    self._reason = self._reason or f"the VM could not be resumed: {_why(event)}"
                    return self._receipt()
        except REFUSED as error:
            return self._resume(str(error))
        return [Note(self._record.vmid, f"ignored in backup, {self._state}: {type(event).__name__}")]

    def _resume(self, reason: str) -> list[Command]:
        self._state, self._reason = "resuming", reason
        notes: list[Command] = [Note(self._record.vmid, f"backup failed: {reason}")] if reason else []
        return [*notes, Resume(self._job.session, self._record.vmid)]

    def _receipt(self) -> list[Command]:
        job, record, done = self._job, self._record, not self._reason
        manifest, sealed = b"", b""
        if done:
            manifest = wire.encode(
                wire.BackupManifest(
                    job.session, record.vmid, record.sequence, job.order.counter, record.spec, record.image,
                    self._sealer.digest, self._sealer.size,
                )
            )  # fmt: skip
            secret = wire.encode(wire.BackupKey(self._key, wire.digest(manifest), job.order.counter))
            sealed = hpke_seal(record.owner.box, BACKUP_KEY + job.session, secret)
        receipt = wire.VmReceipt(
            "backup", record.vmid, job.session, done, record.sequence, job.order.nonce, NO_ORDER,
            self._sealer.digest if done else NO_ORDER, job.order.counter, sealed, manifest, reason=self._reason[:600],
        )  # fmt: skip
        self._key = b""
        return [
            SendAttested(job.session, (job.user,), job.session, record.vmid, wire.encode(receipt)),
            EndTcom(job.session),
        ]


def _why(event: TcomEvent) -> str:
    if isinstance(event, CommandFailed):
        return event.reason
    return "the user ended it" if isinstance(event, Settle) else "nothing came that brings it on, for too long"
