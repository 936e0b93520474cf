"""A hardware TPM 2.0, through the TCG's software stack: ``/dev/tpmrm0``, or any other TCTI.

Needs the package tpm2-pytss (the extra ``quoreduce[tpm]``), of which only the transport is used. With ``/dev/tpmrm0``
the kernel separates our objects from others'. Software speaks from locality 0: nothing here can extend PCRs 17 to 22.
"""

from __future__ import annotations

import importlib
import os
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from quoreduce.errors import HostError
from quoreduce.trust.tpm2 import Tpm2, check_kinds

DEVICE: Final = "device:/dev/tpmrm0"
TIMEOUT_S: Final = 120.0  # for one answer: a hardware TPM may take a minute to make an RSA key


class DeviceTpm(Tpm2):
    """A TPM behind a TCTI.

    Args:
        tcti: name and configuration of the transport, as tpm2-tools take it: ``device:/dev/tpmrm0``,
            ``swtpm:path=...``.
        scheme: of the AK: ecdsa (P-256) or rsassa (RSA-2048).
        ek: the endorsement key that vouches for it: ecc or rsa.
        timeout_s: for one answer.

    Raises:
        UsageError: an unknown scheme or kind of EK.
        HostError: tpm2-pytss is not installed, there is no such device, it does not answer.
    """

    def __init__(
        self, tcti: str = DEVICE, scheme: str = "ecdsa", ek: str = "ecc", timeout_s: float = TIMEOUT_S
    ) -> None:
        check_kinds(scheme, ek)
        self._tcti, self._error = _open(tcti)
        self._where = tcti
        self._timeout_s = timeout_s
        try:
            super().__init__(self._exchange, "tpm2", scheme, ek)
        except BaseException:
            self._drop()
            raise

    def __enter__(self) -> DeviceTpm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the AK out of the TPM and close the device; may be called again."""
        if self._tcti is not None:
            try:
                super().close()
            finally:
                self._drop()

    def _exchange(self, command: bytes) -> bytes:
        """Send and receive in a thread of its own, because most TCTIs wait forever, and no signal reaches them."""
        tcti = self._tcti
        if tcti is None:
            raise HostError(f"the TPM at {self._where} is closed")
        outcome: SimpleQueue[bytes | Exception] = SimpleQueue()
        Thread(target=_exchange, args=(tcti, command, self._error, outcome), daemon=True).start()
        try:
            response = outcome.get(timeout=self._timeout_s)
        except Empty:
            self._tcti = None  # not closed: the thread is still in it
            raise HostError(f"the TPM at {self._where} did not answer within {self._timeout_s:g} s") from None
        if isinstance(response, Exception):
            self._drop()
            raise HostError(f"the TPM at {self._where} does not answer: {response}") from response
        return response

    def _drop(self) -> None:
        tcti, self._tcti = self._tcti, None
        if tcti is not None:
            tcti.close()


def _exchange(tcti: Any, command: bytes, error: type[Exception], outcome: SimpleQueue[bytes | Exception]) -> None:
    try:
        tcti.transmit(command)
        outcome.put(bytes(tcti.receive()))
    except error as refused:
        outcome.put(refused)


def _open(tcti: str) -> tuple[Any, type[Exception]]:
    """Return the transport, and the class of its errors."""
    try:
        pytss = importlib.import_module("tpm2_pytss")
    except (ImportError, NotImplementedError, RuntimeError) as error:  # RuntimeError: TSS too old or missing
        raise HostError(f"a TPM device needs tpm2-pytss: pip install 'quoreduce[tpm]' ({error})") from error
    os.environ.setdefault("TSS2_LOG", "all+none")  # the errors below say it in one line
    name, _, configuration = tcti.partition(":")
    try:
        return pytss.TCTILdr(name, configuration or None), pytss.TSS2_Exception
    except pytss.TSS2_Exception as error:
        raise HostError(f"no TPM at {tcti}: {error}") from error
