"""Which orders a server takes, and of which VMs it keeps a record. Pure.

What keeps orders from being used twice: each order has a number; none is taken unless its number is above all that the
record has seen; a record's number never falls.

When an owner has too many records, the oldest one of a VM that is not here any more is forgotten. A user numbers all
orders in one sequence. So the greatest number of an owner that was forgotten, or that settled a VM without a record, is
kept (``floors``), and no order up to it is taken for a VM without a record. Of such a VM a server says ``unknown``,
never ``aborted``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quoreduce.errors import VmError
from quoreduce.vm import wire
from quoreduce.vm.ports import Command, Floor, Forget, TcomJob, VmRecord
from quoreduce.vm.server_sessions import Sessions

VMS_MAX: Final = 256  # with a guest, or about to have one
RECORDS_MAX: Final = 4096  # with those of VMs that were here once
SESSIONS_MAX: Final = 64
PAST: Final = frozenset({"aborted", "moved", "terminated"})  # nothing of the VM is here


class OrderAdmission:
    """Decides on orders, by the records, the owners and their quotas.

    Args:
        floors: of an earlier process, by owner.
    """

    def __init__(self, sessions: Sessions, floors: Mapping[str, int]) -> None:
        self._sessions, self._records = sessions, sessions.records
        self._floors = dict(floors)

    def admit(self, job: TcomJob, record: VmRecord | None) -> None:
        """Refuse an order that is not the owner's, or that was used before (VmError)."""
        if record is None:
            floor = self._floors.get(job.user, 0)
            if job.order.number <= floor and job.order.operation not in ("settle", "update", "terminate"):
                raise VmError(
                    f"order {job.order.number} is past: of this owner none up to {floor} is taken for a new VM"
                )
            return
        wire.verify(job.signed, record.owner)
        if job.order.number <= record.number:
            raise VmError(
                f"order {job.order.number} was used, or a later one was: the next is {record.number + 1} or above"
            )

    def make_room(self, job: TcomJob, record: VmRecord | None, sequence: int) -> list[Command]:
        """Refuse an owner one more VM here if it is too much (VmError); return what makes room for its record."""
        quota = self._sessions.owners.quota(job.user)
        if record is not None and record.phase not in PAST:
            raise VmError(
                f"the VM is here already: it is {record.phase}" + "; terminate it first" * (record.phase == "lost")
            )
        if record is not None and (
            sequence < record.sequence or (sequence == record.sequence and record.phase != "aborted")
        ):
            raise VmError(f"sequence {sequence} is past: the VM was here at {record.sequence}")
        alive = [one for one in self._records.values() if one.phase not in PAST]
        if len(alive) >= VMS_MAX or len(self._sessions.open) >= SESSIONS_MAX:
            raise VmError(f"the server is full: {len(alive)} VMs, {len(self._sessions.open)} operations under way")
        mine = sum(one.owner == job.signed.keys for one in alive)
        under_way = sum(one.owner == job.user for one in self._sessions.open.values())
        if mine >= quota.vms or under_way >= quota.sessions:
            raise VmError(
                f"you have {mine} VMs here and {under_way} operations under way: {quota.vms} and {quota.sessions} are"
                " your quota"
            )
        return [] if record is not None else self._remember(job)

    def _remember(self, job: TcomJob) -> list[Command]:
        """Make room for one more record: if the owner or the server has too many, the oldest one of a VM that is not
        here any more goes.
        """
        mine = [one for one in self._records.values() if one.owner == job.signed.keys]
        full = len(self._records) >= RECORDS_MAX
        among = (
            mine
            if len(mine) >= self._sessions.owners.quota(job.user).records
            else list(self._records.values())
            if full
            else []
        )
        if not among:
            return []
        past = [one for one in among if one.phase in PAST and not one.dirty and not self._sessions.busy(one.vmid)]
        if not past:
            raise VmError(f"the server remembers {len(among)} VMs, which all are here, and takes no new one")
        return self.forget(min(past, key=lambda one: one.number))

    def forget(self, record: VmRecord) -> list[Command]:
        """Remove a record; its number stays as a floor."""
        del self._records[record.vmid]
        return [self.floor(record.owner.user, record.number), Forget(record.vmid)]

    def floor(self, owner: str, number: int) -> Floor:
        """Take no order of this owner up to this number for a VM without a record, from now on."""
        self._floors[owner] = max(number, self._floors.get(owner, 0))
        return Floor(owner, self._floors[owner])
