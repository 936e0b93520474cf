"""What a server does with a VM after a crash, or when an order settles it and nothing is under way. Pure."""

from __future__ import annotations

from collections.abc import Callable

from quoreduce.vm.ports import (
    Command,
    CommandFailed,
    Destroy,
    Note,
    Resume,
    Resumed,
    Scrubbed,
    ScrubFailed,
    TcomEvent,
    VmRecord,
)
from quoreduce.vm.server_admission import OrderAdmission
from quoreduce.vm.server_sessions import Sessions
from quoreduce.vm.tcom.migrate_out import MigrateOutTcom


class Recovery:
    """Takes VMs up again, or ends them; for the arguments see ``Server``."""

    def __init__(
        self, identity: str, random: Callable[[int], bytes], sessions: Sessions, admission: OrderAdmission
    ) -> None:
        self._identity, self._random = identity, random
        self._sessions, self._admission, self._records = sessions, admission, sessions.records

    def again(self, record: VmRecord) -> list[Command]:
        """Take up what is not over, and not under way any more: resume a guest, or ask the destination once more."""
        if record.phase == "running":
            self._sessions.clearing[record.order] = record
            return [Resume(record.order, record.vmid)]
        if record.phase != "released":
            return []
        out = MigrateOutTcom(record, self._identity, self._random)
        self._sessions.begin(record.order, record.vmid, record.owner.user, out)
        return self._sessions.carry(out.again())

    def recover(self, vmid: bytes, alive: bool) -> list[Command]:
        """A record of an earlier process is here; ``alive``: its guest, too."""
        record = self._records.get(vmid)
        if record is None:
            return [Note(vmid, "a guest without a record: it is none of ours")]
        if record.server not in ("", self._identity):
            self._sessions.clearing[record.order] = record
            return [
                Note(vmid, "of this server with another TPM: nobody can attest for it"),
                Destroy(record.order, vmid),
            ]
        match record.phase:
            case "released":
                return self.again(record)
            case "running" | "leaving" if alive:
                self._sessions.clearing[record.order] = record
                return [*self._sessions.carry([record.with_(phase="running").persist()]), Resume(record.order, vmid)]
            case "running" | "leaving":
                return self._sessions.carry(
                    [record.with_(phase="lost").persist(), Note(vmid, "the guest is gone: the VM is lost here")]
                )
            case "resuming" if alive:
                self._sessions.clearing[record.order] = record
                return [Resume(record.order, vmid)]
            case "launching" | "arriving" | "prepared" | "resuming" | "ending":
                self._sessions.clearing[record.order] = record
                return [Destroy(record.order, vmid)]
        return []

    def cleared(self, record: VmRecord, event: TcomEvent) -> list[Command]:
        """A command for a VM that was found after a crash has ended."""
        ended = isinstance(event, Scrubbed | ScrubFailed)
        failed = [Note(record.vmid, f"scrub failed: {event.reason}")] if isinstance(event, ScrubFailed) else []
        if record.server not in ("", self._identity):
            return [*failed] if failed else self._admission.forget(record)
        match record.phase, event:
            case "ending", Scrubbed():
                return self._sessions.carry([record.with_(phase="terminated", report=event.report).persist()])
            case "ending", ScrubFailed():
                return [*failed]
            case (("launching" | "arriving" | "prepared" | "resuming"), _) if ended:
                return [*self._sessions.carry([record.with_(phase="aborted", dirty=bool(failed)).persist()]), *failed]
            case "resuming", Resumed():
                return self._sessions.carry([record.with_(phase="running").persist()])
            case "resuming", CommandFailed():
                self._sessions.clearing[record.order] = record
                return [Destroy(record.order, record.vmid)]
            case (("running" | "leaving"), CommandFailed()):
                return [
                    Note(record.vmid, f"the VM could not be resumed: {event.reason}"),
                    *self._sessions.missed(record.vmid),
                ]
            case (("running" | "leaving"), Resumed()):
                return self._sessions.missed(record.vmid)
        self._sessions.clearing[record.order] = record  # none of this was asked for
        return [Note(record.vmid, f"ignored after a crash: {type(event).__name__}")]
