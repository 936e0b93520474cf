"""The TCOM of termination: ends a VM for good, overwrites all that it left, and says so only if it was read back. Pure.

Phases, and what holds in each:

``ending``      the owner's order is in the record before the guest is touched: nothing but that order ends a VM.
``terminated``  all is overwritten and read back; the report is in µPCR 3 and in the record, and then in the receipt.

A scrub that fails leaves the record at ``ending``: the owner gets an attested failure, no receipt, and orders it again.
A crash before ``terminated`` does the scrub again when the agent starts.
"""

from __future__ import annotations

from quoreduce.vm import wire
from quoreduce.vm.evidence import REPORT
from quoreduce.vm.ports import (
    NO_ORDER,
    Command,
    Destroy,
    EndTcom,
    Extend,
    Note,
    Scrubbed,
    ScrubFailed,
    SendAttested,
    StartTcom,
    TcomEvent,
    TcomJob,
    VmRecord,
)


class TerminateTcom:
    """One termination; ``step`` until it has given :class:`EndTcom`."""

    def __init__(self, job: TcomJob, record: VmRecord) -> None:
        self._job = job
        self._record = record.with_(phase="ending", number=job.order.number, order=job.session, nonce=job.order.nonce)

    def begin(self) -> list[Command]:
        """Write down that the owner wants it, then end the guest."""
        job, record = self._job, self._record
        return [record.persist(), StartTcom(job.session, "terminate"), Destroy(job.session, record.vmid)]

    def step(self, event: TcomEvent) -> list[Command]:
        """Go on. Nothing but the scrub's outcome counts: not even time ends this."""
        job = self._job
        match event:
            case Scrubbed():
                self._record = self._record.with_(phase="terminated", report=event.report, dirty=False)
                receipt = self._receipt(True, wire.digest(event.report), event.report, "")
                return [Extend(job.session, REPORT, event.report), self._record.persist(), *receipt]
            case ScrubFailed():
                note = Note(self._record.vmid, f"scrub failed: {event.reason}")
                return [note, *self._receipt(False, NO_ORDER, b"", event.reason)]
        return [Note(self._record.vmid, f"ignored while a VM is terminated: {type(event).__name__}")]

    def _receipt(self, done: bool, digest: bytes, report: bytes, reason: str) -> list[Command]:
        job, record = self._job, self._record
        receipt = wire.VmReceipt(
            "terminate", record.vmid, job.session, done, record.sequence, job.order.nonce, NO_ORDER, digest,
            report=report, reason=reason[:600],
        )  # fmt: skip
        return [
            SendAttested(job.session, (job.user,), job.session, record.vmid, wire.encode(receipt)),
            EndTcom(job.session),
        ]
