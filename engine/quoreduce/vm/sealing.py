"""Encryption of VM operations: HPKE to a public key, streams of chunks, channels for short messages. Pure except for
randomness.

``hpke``     RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; encapsulated key (32 bytes) ||
             ciphertext. It does not identify its sender: the message around it is signed or attested.
``stream``   AES-256-GCM under HKDF-SHA256( key, "quoreduce vm stream 1" || context ). A sealed chunk is ``u8 final ||
             ciphertext``; nonce = u32 0 || u64 index, associated data = context || u64 index || u8 final. So a chunk
             opens only at its own place in its own stream, and a stream that was cut has no end.
``channel``  the same under HKDF-SHA256( key, "quoreduce vm channel 1" || sender || context ); a message is ``u64
             counter || ciphertext``, and the counter has to grow: messages may be lost, never repeated or swapped.

Integers are big-endian. A key serves for one stream and one channel.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quoreduce.errors import VmError
from quoreduce.vm.wire import CHUNK_BYTES

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
SEALED_BYTES_MAX: Final = 1 + CHUNK_BYTES + TAG_BYTES  # of one chunk of a stream
STREAM_BYTES_MAX: Final = (
    1 << 44
)  # of plaintext: AES-GCM's own bound for one key is far beyond (2^64 blocks in 2^32 messages)
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

# The purposes of sealed data and streams, so that nothing opens for another one; the name of an operation is appended.
PACKAGE: Final = b"quoreduce vm package 1"
TRANSFER: Final = b"quoreduce vm transfer 1"
BACKUP_KEY: Final = b"quoreduce vm backup key 1"
IMAGE_STREAM: Final = b"quoreduce vm image 1"
BACKUP_STREAM: Final = b"quoreduce vm backup 1"
MIGRATION_STREAM: Final = b"quoreduce vm migration 1"

Side = Literal["source", "destination"]


def new_keypair(random: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """Make an X25519 key of 32 bytes of ``random``: (private, public), 32 bytes each."""
    private = X25519PrivateKey.from_private_bytes(random(KEY_BYTES))
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def hpke_seal(public: bytes, info: bytes, plaintext: bytes) -> bytes:
    """Encrypt to an X25519 public key, for the purpose ``info``: 48 bytes more. Raises VmError for a malformed key."""
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public), info=info)
    except ValueError as error:
        raise VmError(f"cannot seal to this key: {error or 'it is no X25519 public key'}") from error


def hpke_open(private: bytes, info: bytes, sealed: bytes) -> bytes:
    """Return the plaintext of :func:`hpke_seal`. Raises VmError if it was altered, or is for another key or purpose."""
    try:
        return _SUITE.decrypt(sealed, X25519PrivateKey.from_private_bytes(private), info=info)
    except (InvalidTag, ValueError) as error:
        raise VmError("sealed secret: it was altered, or is for another key or another purpose") from error


class StreamSealer:
    """Seals a stream, chunk by chunk.

    Args:
        key: 32 bytes, fresh for this stream.
        context: what the stream contains and is for; the opener needs the same.
        limit: of its plaintext, bytes.
    """

    def __init__(self, key: bytes, context: bytes, limit: int = STREAM_BYTES_MAX) -> None:
        self._stream = _Stream(key, context, limit)

    @property
    def digest(self) -> bytes:
        """SHA-256 over the sealed chunks so far, u32 length before each."""
        return self._stream.digest()

    @property
    def size(self) -> int:
        """Bytes of plaintext so far."""
        return self._stream.size

    def chunk(self, data: bytes, final: bool) -> bytes:
        """Seal the next chunk, 1 to CHUNK_BYTES (the final one may be empty). Raises VmError after that, or beyond
        the limit.
        """
        stream = self._stream
        stream.check(len(data), final)
        sealed = (b"\1" if final else b"\0") + stream.aead.encrypt(stream.nonce(), data, stream.aad(final))
        stream.advance(sealed, len(data), final)
        return sealed


class StreamOpener:
    """Opens what a :class:`StreamSealer` sealed; arguments as there. After a chunk was refused it accepts no
    other.
    """

    def __init__(self, key: bytes, context: bytes, limit: int = STREAM_BYTES_MAX) -> None:
        self._stream = _Stream(key, context, limit)
        self._refused = False

    @property
    def digest(self) -> bytes:
        """SHA-256 over the sealed chunks so far, u32 length before each: the sealer's, if all arrived."""
        return self._stream.digest()

    @property
    def size(self) -> int:
        """Bytes of plaintext so far."""
        return self._stream.size

    @property
    def ended(self) -> bool:
        """Whether the final chunk was opened: only then is the stream whole."""
        return self._stream.ended

    def chunk(self, sealed: bytes) -> tuple[bytes, bool]:
        """Open the next chunk: its plaintext, and whether it is the final one.

        Raises:
            VmError: it was altered, is not the next one of this stream, comes after the final one, or is beyond the
                limit.
        """
        if self._refused:
            raise VmError("stream: an earlier chunk was refused")
        self._refused = True  # until everything below has passed, whatever is raised
        stream = self._stream
        if not 1 + TAG_BYTES <= len(sealed) <= SEALED_BYTES_MAX or sealed[0] > 1:
            raise VmError(f"stream: chunk {stream.index} is no sealed chunk: it was cut or altered")
        final = sealed[0] == 1
        stream.check(len(sealed) - 1 - TAG_BYTES, final)
        try:
            data = stream.aead.decrypt(stream.nonce(), memoryview(sealed)[1:], stream.aad(final))
        except InvalidTag as error:
            raise VmError(
                f"stream: chunk {stream.index} was altered, or is another one: one is missing, repeated or of"
                " another stream"
            ) from error
        stream.advance(sealed, len(data), final)
        self._refused = False
        return data, final


class _Stream:
    """What both ends keep: the index, the sizes, the digest."""

    def __init__(self, key: bytes, context: bytes, limit: int) -> None:
        self.aead = AESGCM(_derived(key, b"quoreduce vm stream 1" + context))
        self.index, self.size, self.ended = 0, 0, False
        self._context, self._limit = context, min(limit, STREAM_BYTES_MAX)
        self._hash = sha256()

    def nonce(self) -> bytes:
        return self.index.to_bytes(12, "big")

    def aad(self, final: bool) -> bytes:
        return self._context + self.index.to_bytes(8, "big") + bytes([final])

    def check(self, size: int, final: bool) -> None:
        if self.ended:
            raise VmError("stream: a chunk comes after the final one")
        if size > CHUNK_BYTES or (size == 0 and not final):
            raise VmError(f"stream: a chunk of {size} bytes, where 1 to {CHUNK_BYTES} can be")
        if self.size + size > self._limit:
            raise VmError(f"stream: more than {self._limit} bytes, which is the bound for this one")

    def advance(self, sealed: bytes, size: int, final: bool) -> None:
        self._hash.update(len(sealed).to_bytes(4, "big"))
        self._hash.update(sealed)
        self.index += 1
        self.size += size
        self.ended = final

    def digest(self) -> bytes:
        return self._hash.digest()


class SealedChannel:
    """One end of a session's channel for short messages.

    Args:
        key: 32 bytes, that both ends have.
        side: which end this is.
        context: what the session is for; the same on both ends.
    """

    def __init__(self, key: bytes, side: Side, context: bytes = b"") -> None:
        other = "destination" if side == "source" else "source"
        self._sealer, self._opener = (
            AESGCM(_derived(key, b"quoreduce vm channel 1" + who.encode() + b"\0" + context)) for who in (side, other)
        )
        self._sent = self._received = 0

    def seal(self, data: bytes) -> bytes:
        """Seal the next message to the other end: 24 bytes more."""
        self._sent += 1
        counter = self._sent.to_bytes(8, "big")
        return counter + self._sealer.encrypt(bytes(4) + counter, data, counter)

    def open(self, sealed: bytes) -> bytes:
        """Open a message of the other end. Raises VmError if altered, repeated, overtaken, or of another session."""
        counter = sealed[:8]
        try:
            data = self._opener.decrypt(bytes(4) + counter, sealed[8:], counter)
        except (InvalidTag, ValueError) as error:
            raise VmError("channel: the message was altered, or is of another session or direction") from error
        if int.from_bytes(counter, "big") <= self._received:
            raise VmError("channel: the message is repeated, or was overtaken by a later one")
        self._received = int.from_bytes(counter, "big")
        return data


def _derived(key: bytes, info: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise VmError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(key)
