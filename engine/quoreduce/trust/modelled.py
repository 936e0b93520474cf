"""A model of a hardware TPM: a µTPM that computes the values, and published latencies that are *added up*, not waited
for.

All its times are modelled, and have to be labelled so. Only extends and quotes take time in it, because only they have
published figures; all else takes no time, so that the model favours the hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from quoreduce.errors import UsageError
from quoreduce.trust.utpm import MicroTpm, Scheme
from quoreduce.trust.wire import Public, QuoteResponse

_ATTESTATIONS: Final = "2 attestations a second: the talk that this work follows, slide 33"


@dataclass(frozen=True, slots=True)
class Chip:
    """Published latencies of a TPM, in milliseconds, and their source."""

    name: str
    extend_ms: float
    quote_ms: float
    source: str

    @property
    def label(self) -> str:
        """The label of each of its figures."""
        return f"modelled: {self.name}, {self.extend_ms:g} ms an extend, {self.quote_ms:g} ms a quote"


CHIPS: Final = {
    chip.name: chip
    for chip in (
        Chip("infineon-1.2-polling", 117.0, 500.0, f"TPM 1.2, Linux before commit 9f3fc7bc; {_ATTESTATIONS}"),
        Chip("infineon-1.2", 40.0, 500.0, f"TPM 1.2, Linux since commit 9f3fc7bc; {_ATTESTATIONS}"),
        Chip("stm-2.0-polling", 20.0, 500.0, f"TPM 2.0, Linux before commit 9f3fc7bc; {_ATTESTATIONS}"),
        Chip("stm-2.0", 7.0, 500.0, f"TPM 2.0, Linux since commit 9f3fc7bc; {_ATTESTATIONS}"),
        Chip(
            "stm-2.0-p256",
            7.0,
            200.0,
            "TPM 2.0, Linux since commit 9f3fc7bc; median of P-256 signatures in a field study",
        ),
        Chip("boot-log", 3.0, 500.0, f"spacing of systemd's log of extends; {_ATTESTATIONS}"),
    )
}
DEFAULT_CHIP: Final = "stm-2.0"


class ModelledTpm:
    """A TPM whose time is virtual. Values, quotes and seals are those of a µTPM.

    Args:
        chip: one of :data:`CHIPS`. Raises UsageError for another.
        scheme: of the AK: ecdsa or rsassa.

    Attributes:
        elapsed_ms: the modelled time that all commands so far would have taken.
    """

    name: Final = "modelled"
    modelled: Final = True

    def __init__(self, chip: str = DEFAULT_CHIP, scheme: Scheme = "ecdsa") -> None:
        if chip not in CHIPS:
            raise UsageError(f"no latencies are known of a TPM {chip!r}: choose one of {', '.join(CHIPS)}")
        self.chip = CHIPS[chip]
        self.elapsed_ms = 0.0
        self._inner = MicroTpm(scheme, clock_ms=lambda: int(self.elapsed_ms))

    @property
    def public(self) -> Public:
        """The public area of the AK."""
        return self._inner.public

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend, in the chip's time."""
        self._inner.extend(pcr, digest)
        self.elapsed_ms += self.chip.extend_ms

    def read(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Read; takes no time here."""
        return self._inner.read(pcrs)

    def reset(self, pcr: int) -> None:
        """Reset PCR 16 or 23; takes no time here."""
        self._inner.reset(pcr)

    def quote(self, pcrs: Sequence[int], nonce: bytes) -> QuoteResponse:
        """Quote, in the chip's time; the clock in the quote is the virtual one at its beginning."""
        quoted = self._inner.quote(pcrs, nonce)
        self.elapsed_ms += self.chip.quote_ms
        return quoted

    def random(self, size: int) -> bytes:
        """Return random bytes; takes no time here."""
        return self._inner.random(size)

    def seal(self, secret: bytes, pcrs: Sequence[int]) -> bytes:
        """Seal; takes no time here."""
        return self._inner.seal(secret, pcrs)

    def unseal(self, blob: bytes) -> bytes:
        """Unseal; takes no time here."""
        return self._inner.unseal(blob)

    def close(self) -> None:
        """Forget the keys."""
        self._inner.close()
