"""The dynamic root of trust (DRTM) of swtpm: a CPU's late launch, played through swtpm's control channel.

A late launch resets PCRs 17 to 22 and extends PCR 17 with the hash of what is launched; no software can do that,
because it is done from locality 4, from which only hardware speaks (PC Client Platform TPM Profile, 2.3.4 and 4.6).
swtpm's control channel (``swtpm_ioctls``) stands for that hardware. PCR 19 is extended from locality 2: that of the
launched environment.

Afterwards PCR 17 holds :func:`quoreduce.trust.pcr.launched`.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from quoreduce.errors import HostError

LAUNCHED: Final = 2  # the locality of the launched environment
_CHUNK_BYTES: Final = 4000  # swtpm takes at most 4096 bytes a message
# swtpm_ioctls: numbers of commands; each answer begins with a u32 result, 0 if it went well
_SHUTDOWN, _SET_LOCALITY, _HASH_START, _HASH_DATA, _HASH_END = 3, 5, 6, 7, 8


class Control:
    """swtpm's control channel over a connected stream socket, which it owns from now on.

    Errors: HostError, if swtpm refuses or does not answer within the socket's timeout.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def launch(self, measured: bytes) -> None:
        """Perform a DRTM launch: PCRs 17 to 22 become zeros, PCR 17 is extended with SHA-256(``measured``)."""
        self._ask(_HASH_START)
        for at in range(0, len(measured), _CHUNK_BYTES):
            chunk = measured[at : at + _CHUNK_BYTES]
            self._ask(_HASH_DATA, struct.pack(">I", len(chunk)) + chunk)
        self._ask(_HASH_END)

    def set_locality(self, locality: int) -> None:
        """Set the locality, 0 to 4, of the commands that follow."""
        self._ask(_SET_LOCALITY, bytes([locality]))

    def shutdown(self) -> None:
        """End swtpm in order."""
        self._ask(_SHUTDOWN)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, command: int, payload: bytes = b"") -> None:
        try:
            self._connection.sendall(command.to_bytes(4, "big") + payload)
            result = self._connection.recv(4)
        except OSError as error:
            raise HostError(f"swtpm's control channel does not answer: {error}") from error
        if result != bytes(4):
            raise HostError(f"swtpm's control channel refuses command {command}: result {result.hex() or 'none'}")
