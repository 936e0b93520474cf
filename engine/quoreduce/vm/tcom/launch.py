"""The TCOM of launch and restore: takes a VM's image, or its state from a backup, from the owner only, and starts it.
Pure.

Phases, and what holds in each:

``offered``    the order is used up (record ``launching``); the TCOM's key is attested; nothing of the VM is here.
``filling``    the owner has sealed the VM's key to this very TCOM; what comes is verified chunk by chunk; nothing runs.
``starting``   all has come and is what the owner named (the image's digest; the manifest's stream and counter), and is
               measured.
``running``    record ``running`` comes before the receipt: nobody is told of a guest that a crash would take away.
``ending``     it failed: the guest, if there is one, is destroyed first, and then the record says ``aborted``.

A crash before ``running`` ends as ``aborted``: a guest that nobody was told of is destroyed when the agent starts
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from quoreduce.errors import VmError
from quoreduce.vm import wire
from quoreduce.vm.evidence import IMAGE, SESSION_KEY
from quoreduce.vm.ports import (
    IMAGE_BYTES_MAX,
    NO_ORDER,
    REFUSED,
    Boot,
    Booted,
    Command,
    CommandFailed,
    Destroy,
    EndTcom,
    Extend,
    Feed,
    FeedEnd,
    Fetched,
    GetBlob,
    Loaded,
    Note,
    Open,
    Received,
    Resume,
    Resumed,
    Scrubbed,
    ScrubFailed,
    SendAttested,
    Settle,
    StartTcom,
    TcomEvent,
    TcomJob,
    TimedOut,
    VmRecord,
    VmSpec,
)
from quoreduce.vm.sealing import BACKUP_STREAM, IMAGE_STREAM, PACKAGE, StreamOpener, hpke_open, new_keypair


@dataclass(slots=True)
class _Filling:
    """What is being received: the user's secrets, the stream, and the digest of its plaintext."""

    secrets: wire.Secrets
    opener: StreamOpener
    manifest: wire.BackupManifest | None


class LaunchTcom:
    """One launch or restore; ``step`` until it has given :class:`EndTcom`."""

    def __init__(self, job: TcomJob) -> None:
        self._job = job
        self._operation: Literal["launch", "restore"] = "restore" if job.order.operation == "restore" else "launch"
        self._state: Literal["offered", "filling", "starting", "ending"] = "offered"
        self._nonce = job.random(32)
        self._private, self._public = new_keypair(job.random)
        order = job.order
        self._record = VmRecord(
            order.vmid, job.signed.keys, order.policy, "launching", order.sequence, order.number, job.session,
            order.nonce,
        )  # fmt: skip
        self._filling: _Filling | None = None
        self._image = sha256()
        self._reason = ""

    def begin(self) -> list[Command]:
        """Use the order up, and offer a key of this TCOM's own."""
        job = self._job
        offer = wire.encode(wire.Offer(job.session, self._nonce, self._public))
        return [
            self._record.persist(),
            StartTcom(job.session, self._operation),
            Extend(job.session, SESSION_KEY, self._public),
            SendAttested(job.session, (job.user,), job.session, job.order.vmid, offer),
        ]

    def step(self, event: TcomEvent) -> list[Command]:
        """Go on. What is no part of this is noted, and changes nothing."""
        try:
            return self._step(event)
        except REFUSED as error:
            return self._fail(str(error))

    def _step(self, event: TcomEvent) -> list[Command]:
        match event:
            case Received(wire.Signed() as signed) if self._state == "offered":
                return self._open(signed)
            case Received(wire.StreamChunk() as chunk) if self._state == "filling" and self._operation == "launch":
                return self._fill(chunk.data)
            case Fetched() if self._state == "filling" and self._operation == "restore":
                return self._fill(event.data)
            case Loaded() if self._state == "starting":
                return [Resume(self._job.session, self._record.vmid)]
            case Booted() | Resumed() if self._state == "starting":
                return self._receipt(True)
            case Scrubbed() if self._state == "ending":
                return self._receipt(False)
            case ScrubFailed() if self._state == "ending":
                self._reason += f"; and what it left behind could not be overwritten: {event.reason}"
                self._record = self._record.with_(dirty=True)
                return self._receipt(False)
            case CommandFailed() | TimedOut() | Settle() if self._state != "ending":
                return self._fail(_why(event))
        return [Note(self._record.vmid, f"ignored in {self._operation}, {self._state}: {type(event).__name__}")]

    def _open(self, signed: wire.Signed) -> list[Command]:
        """The owner's package: everything in it is the owner's word, and only this TCOM can read it."""
        job, order = self._job, self._job.order
        wire.verify(signed, self._record.owner)
        package = wire.decode(signed.body, wire.Package)
        if (package.order, package.nonce) != (job.session, self._nonce):
            raise VmError("the package answers another offer")
        secrets = wire.decode(hpke_open(self._private, PACKAGE + job.session, package.sealed), wire.Secrets)
        if secrets.nonce != self._nonce:
            raise VmError("the sealed secrets answer another offer")
        spec = VmSpec.of(secrets.spec)
        self._record = self._record.with_(spec=secrets.spec, image=secrets.image)
        self._state = "filling"
        commands: list[Command] = [Open(job.session, order.vmid, spec, self._operation == "restore")]
        if self._operation == "launch":
            self._filling = _Filling(
                secrets, StreamOpener(secrets.key, IMAGE_STREAM + job.session, IMAGE_BYTES_MAX), None
            )
            return commands
        manifest = _manifest(order, secrets)
        opener = StreamOpener(secrets.key, BACKUP_STREAM + manifest.order, spec.stream_bytes_max())
        self._filling = _Filling(secrets, opener, manifest)
        return [*commands, GetBlob(job.session, manifest.order.hex())]

    def _fill(self, sealed: bytes) -> list[Command]:
        job, filling = self._job, self._filling
        assert filling is not None
        data, final = filling.opener.chunk(sealed)
        self._image.update(data)
        commands: list[Command] = [Feed(job.session, data)] if data else []
        if not final:
            return commands
        secrets, manifest = filling.secrets, filling.manifest
        if filling.opener.size != secrets.size:
            raise VmError(f"{filling.opener.size} bytes came, where the owner named {secrets.size}")
        if manifest is None and self._image.digest() != secrets.image:
            raise VmError("the image is not the one that the owner named: its SHA-256 is another")
        if manifest is not None and filling.opener.digest != manifest.stream:
            raise VmError("the backup is not the one of the manifest: its stream has another digest")
        self._state, self._filling = "starting", None
        commands += [Extend(job.session, IMAGE, secrets.image), FeedEnd(job.session)]
        if manifest is None:
            commands.append(Boot(job.session, self._record.vmid, VmSpec.of(secrets.spec)))
        return commands

    def _fail(self, reason: str) -> list[Command]:
        if self._state == "ending":
            return [Note(self._record.vmid, reason)]
        self._state, self._filling, self._reason = "ending", None, reason
        return [
            Note(self._record.vmid, f"{self._operation} refused or failed: {reason}"),
            Destroy(self._job.session, self._record.vmid),
        ]

    def _receipt(self, done: bool) -> list[Command]:
        job, record = self._job, self._record
        self._record = record = record.with_(phase="running" if done else "aborted")
        receipt = wire.VmReceipt(
            self._operation, record.vmid, job.session, done, record.sequence, job.order.nonce, self._nonce,
            record.image if done else NO_ORDER, counter=job.order.counter, reason=self._reason[:600],
        )  # fmt: skip
        return [
            record.persist(),
            SendAttested(job.session, (job.user,), job.session, record.vmid, wire.encode(receipt)),
            EndTcom(job.session),
        ]


def _manifest(order: wire.Order, secrets: wire.Secrets) -> wire.BackupManifest:
    """The manifest of a restore, if the owner's order, secrets and manifest are of one backup."""
    manifest = wire.decode(secrets.manifest, wire.BackupManifest)
    if manifest.vmid != order.vmid:
        raise VmError("the backup is of another VM")
    if not manifest.counter == secrets.counter == order.counter:
        raise VmError(
            f"the backup has the counter {manifest.counter}, the order names {order.counter}: it is an older one"
        )
    if manifest.sequence >= order.sequence:
        raise VmError("the order would restore the VM to a sequence that it had already")
    if (manifest.image, manifest.spec, manifest.size) != (secrets.image, secrets.spec, secrets.size):
        raise VmError("the manifest is of another image or size than the order's secrets")
    return manifest


def _why(event: TcomEvent) -> str:
    if isinstance(event, CommandFailed):
        return event.reason
    return "the user ended it" if isinstance(event, Settle) else "nothing came that brings it on, for too long"
