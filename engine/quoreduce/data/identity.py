"""Which file an input is: what is noted of it when a job is planned, and compared whenever it is opened and before
publishing.

Of a local file: device, inode, and time of change. Another machine may have other numbers for the same file (NFS), or a
copy of its own, so device and inode are compared only at the *place* where the file was planned (the same boot of the
same machine, and the same mounts); elsewhere the time is compared in whole seconds, for copying tools keep no more. Of
an object: its time of change, and its version or ETag if the store has one. The size is compared everywhere; it is not
part of this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from blake3 import blake3

TAGGED = ("s3", "gcs", "abfs")
"""pyarrow's names of file systems whose objects have versions or ETags."""
_TAGS = ("VersionId", "ETag", "etag", "Etag", "generation")
_SECOND_NS = 1_000_000_000


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """See above. ``mtime_ns`` since 1970; ``place`` is 0 for what is no local file; ``tag`` is empty if there is
    none.
    """

    mtime_ns: int = 0
    device: int = 0
    inode: int = 0
    place: int = 0
    tag: str = ""


def of_file(status: os.stat_result) -> Identity:
    """The identity of a local file, here."""
    return Identity(status.st_mtime_ns, status.st_dev, status.st_ino, here())


def tag_of(metadata: Mapping[Any, Any] | None) -> str:
    """The version or ETag in what pyarrow says of an object that was opened, or ""."""
    said = {_text(key): _text(value) for key, value in (metadata or {}).items()}
    return next((said[name] for name in _TAGS if said.get(name)), "")


def change(planned: Identity, now: Identity) -> str:
    """The difference between a file and the planned one, in words; "" if none can be told."""
    if planned.tag != now.tag and planned.tag and now.tag:
        return f"its version was {planned.tag} at first, now {now.tag}"
    same_place = planned.place == now.place
    if same_place and planned.place and (planned.device, planned.inode) != (now.device, now.inode):
        return "another file has its name now"
    unit = 1 if same_place else _SECOND_NS
    if planned.mtime_ns // unit != now.mtime_ns // unit:
        return "it was written to, or replaced by a copy with another time of change"
    return ""


@lru_cache(maxsize=1)
def here() -> int:
    """A number for this boot of this machine and these mounts; 1 if the system says nothing of the kind."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            boot = file.read()
        mounts = os.stat("/proc/self/ns/mnt").st_ino
    except OSError:
        return 1
    return int.from_bytes(blake3(boot + mounts.to_bytes(8, "little")).digest(4), "little") + 2


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
