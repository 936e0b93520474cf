"""Platform configuration registers: 24 values of SHA-256 that can only be extended: new = SHA-256(old || digest).

Two profiles say what a bank starts with and who may extend or reset which register:

- :data:`PC_CLIENT`, the hardware's (*TCG PC Client Platform TPM Profile*, 4.6.2, "PCR attributes"): 0-15 are never
  reset while the power is on; 17-22 hold ones until a dynamic launch (DRTM) resets them to zeros, and belong to
  localities 1-4.
- :data:`MICRO`, ours: a µTPM lives in one execution environment, so that there are no localities; all start at zero,
  only 16 and 23 can be reset.

Locality 0 is any software; 4 the CPU itself at a dynamic launch; 3 its launch code, 2 the launched environment.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final, NamedTuple

from quoreduce.errors import AttestationError
from quoreduce.trust.wire import PCRS

DIGEST_BYTES: Final = 32
ZEROS: Final = bytes(DIGEST_BYTES)
ONES: Final = b"\xff" * DIGEST_BYTES
LAUNCH: Final = 17  # holds the measurement of what a dynamic launch started
DYNAMIC: Final = range(17, 23)  # those that a dynamic launch resets
RESETTABLE: Final = (16, 23)  # by any software: debug, application


class Attributes(NamedTuple):
    """What one register starts with, and the localities that may extend and reset it (bit n: locality n)."""

    initial: bytes
    extend: int
    reset: int


def _pc_client(pcr: int) -> Attributes:
    dynamic = {17: (0b11100, 0b10000), 18: (0b11100, 0b10000), 19: (0b01100, 0b10000),
               20: (0b01110, 0b10100), 21: (0b00100, 0b10100), 22: (0b00100, 0b10100)}  # fmt: skip
    if pcr in dynamic:
        return Attributes(ONES, *dynamic[pcr])
    return Attributes(ZEROS, 0b11111, 0b01111 if pcr in RESETTABLE else 0)


PC_CLIENT: Final = tuple(_pc_client(pcr) for pcr in range(PCRS))
MICRO: Final = tuple(Attributes(ZEROS, 0b00001, 0b00001 if pcr in RESETTABLE else 0) for pcr in range(PCRS))


def extended(value: bytes, digest: bytes) -> bytes:
    """Return what a register that holds ``value`` holds after ``digest`` (32 bytes) was extended into it."""
    return sha256(value + digest).digest()


def launched(data: bytes) -> bytes:
    """Return PCR 17 after a dynamic launch that measured ``data``: SHA-256(zeros || SHA-256(data))."""
    return extended(ZEROS, sha256(data).digest())


class PcrBank:
    """One bank of registers, SHA-256, by a profile.

    Its methods raise AttestationError for a register that is not 0..23 and for what the profile forbids.
    """

    __slots__ = ("_profile", "_values")

    def __init__(self, profile: tuple[Attributes, ...] = MICRO) -> None:
        self._profile = profile
        self._values = [attributes.initial for attributes in profile]

    def extend(self, pcr: int, digest: bytes, locality: int = 0) -> None:
        """Extend ``digest``, 32 bytes, into a register."""
        if not 0 <= pcr < PCRS or len(digest) != DIGEST_BYTES or not self._profile[pcr].extend >> locality & 1:
            raise _refusal(f"PCR {pcr} cannot be extended by {len(digest)} bytes from locality {locality}")
        self._values[pcr] = sha256(self._values[pcr] + digest).digest()

    def read(self, pcr: int) -> bytes:
        """Return the value of a register, 32 bytes."""
        if not 0 <= pcr < PCRS:
            raise _refusal(f"there is no PCR {pcr}")
        return self._values[pcr]

    def read_all(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """Return the values of these registers, ascending."""
        return {pcr: self.read(pcr) for pcr in sorted(set(pcrs))}

    def reset(self, pcr: int, locality: int = 0) -> None:
        """Set a register to zeros."""
        if not 0 <= pcr < PCRS or not self._profile[pcr].reset >> locality & 1:
            raise _refusal(f"PCR {pcr} cannot be reset from locality {locality}")
        self._values[pcr] = ZEROS

    def launch(self, data: bytes) -> None:
        """Do what a dynamic launch does: registers 17-22 to zeros, then the SHA-256 of ``data`` into 17."""
        for pcr in DYNAMIC:
            self._values[pcr] = ZEROS
        self._values[LAUNCH] = launched(data)

    def snapshot(self) -> tuple[bytes, ...]:
        """Return the values of all registers, of one instant."""
        return tuple(self._values)


def _refusal(reason: str) -> AttestationError:
    return AttestationError(f"{reason} (PCRs are 0..{PCRS - 1}; digests have {DIGEST_BYTES} bytes)")
