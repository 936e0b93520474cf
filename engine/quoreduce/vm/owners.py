"""The owners who may have VMs at a server, and their quotas: a list that its operator gives. Pure.

Text with one owner on each line; ``#`` begins a comment::

    4f1d7c2e9a0b3c5d6e7f8091a2b3c4d5 vms=16 mb=8192    # alice

The first word is a user's id (``quoreduce vm key show``), a digest of both keys, so nobody else can sign for it.
``vms``: how many at a time; ``mb``: MiB of memory and disk of all of them, and of images that are on their way in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from quoreduce.errors import VmError

OWNERS_MAX: Final = 4096
OWNERS_BYTES_MAX: Final = 1 << 20
_BOUNDS: Final = {"vms": (1, 256), "mb": (1, 1 << 30)}


@dataclass(frozen=True, slots=True)
class Quota:
    """What one owner may have at a server: VMs, MiB, operations under way, and records, also of former VMs."""

    vms: int = 16
    mb: int = 16384
    sessions: int = 8
    records: int = 256


class Owners:
    """The owners that a server serves, by user id."""

    def __init__(self, quotas: Mapping[str, Quota]) -> None:
        self._quotas = dict(quotas)

    def quota(self, user: str) -> Quota:
        """The quota of this user. Raises VmError for a user who is not listed."""
        found = self._quotas.get(user)
        if found is None:
            raise VmError(
                f"user {user} is not on this server's list of owners: its operator adds the id to the file of --owners"
            )
        return found

    @classmethod
    def parse(cls, text: str) -> Owners:
        """Read a list. Raises VmError, which names the malformed line."""
        quotas: dict[str, Quota] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if not re.fullmatch(r"[0-9a-f]{32}", words[0]) or len(quotas) >= OWNERS_MAX:
                raise VmError(
                    f"line {number}: {words[0][:40]!r} is no user's id (32 hex digits), or there are over {OWNERS_MAX}"
                )
            quotas[words[0]] = Quota(**dict(_option(number, word) for word in words[1:]))
        return cls(quotas)


def _option(number: int, word: str) -> tuple[str, int]:
    name, _, value = word.partition("=")
    least, most = _BOUNDS.get(name, (1, 0))
    if not value.isascii() or not value.isdigit() or len(value) > 12 or not least <= int(value) <= most:
        raise VmError(f"line {number}: {word[:40]!r}: after the id come vms=1..256 and mb=1..{1 << 30}, or nothing")
    return name, int(value)
