"""HPKE against an implementation by hand; streams and channels against who alters, moves, repeats or leaves out
pieces.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.errors import VmError
from quoreduce.vm.sealing import SealedChannel, StreamOpener, StreamSealer, hpke_open, hpke_seal, new_keypair
from quoreduce.vm.wire import CHUNK_BYTES

KEY = bytes(range(32))
KEM, KDF = 0x0020, 0x0001
AES_128, AES_256 = (0x0001, 16), (0x0002, 32)


def slow_open(aead: tuple[int, int], private: bytes, info: bytes, sealed: bytes, aad: bytes) -> bytes:
    """RFC 9180, base mode, by hand: 4.1 (DHKEM), 5.1 (key schedule), 5.2 (first message)."""
    own = X25519PrivateKey.from_private_bytes(private)
    enc, ciphertext = sealed[:32], sealed[32:]
    shared = own.exchange(X25519PublicKey.from_public_bytes(enc))
    cipher, nonce = slow_aead(aead, shared, enc, own.public_key().public_bytes_raw(), info)
    return cipher.decrypt(nonce, ciphertext, aad)


def slow_seal(aead: tuple[int, int], public: bytes, info: bytes, plaintext: bytes) -> bytes:
    ephemeral = X25519PrivateKey.generate()
    enc = ephemeral.public_key().public_bytes_raw()
    cipher, nonce = slow_aead(aead, ephemeral.exchange(X25519PublicKey.from_public_bytes(public)), enc, public, info)
    return enc + cipher.encrypt(nonce, plaintext, b"")


def slow_aead(aead: tuple[int, int], shared: bytes, enc: bytes, public: bytes, info: bytes) -> tuple[AESGCM, bytes]:
    number, key_bytes = aead
    kem = b"KEM" + KEM.to_bytes(2, "big")
    suite = b"HPKE" + b"".join(one.to_bytes(2, "big") for one in (KEM, KDF, number))
    secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", enc + public, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    scheduled = extract(suite, secret, b"secret", b"")
    return AESGCM(expand(suite, scheduled, b"key", context, key_bytes)), expand(
        suite, scheduled, b"base_nonce", context, 12
    )


def extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")


def expand(suite: bytes, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
    whole = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, whole + b"\1", "sha256")[:size]


def test_the_implementation_by_hand_opens_the_vector_of_rfc_9180() -> None:
    """Appendix A.1.1.1, sequence number 0 (AES-128-GCM: the RFC has no X25519 with AES-256-GCM)."""
    private = bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    enc = bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
    sealed = bytes.fromhex("f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a")
    opened = slow_open(AES_128, private, b"Ode on a Grecian Urn", enc + sealed, b"Count-0")
    assert opened == b"Beauty is truth, truth beauty"


@given(plaintext=st.binary(max_size=200), info=st.binary(max_size=50))
def test_what_is_sealed_to_a_key_opens_by_hand_and_the_other_way_round(plaintext: bytes, info: bytes) -> None:
    private, public = new_keypair(os.urandom)
    sealed = hpke_seal(public, info, plaintext)
    assert len(sealed) == len(plaintext) + 48
    assert slow_open(AES_256, private, info, sealed, b"") == plaintext
    assert hpke_open(private, info, slow_seal(AES_256, public, info, plaintext)) == plaintext


@given(at=st.integers(0, 52), bit=st.integers(0, 7))
def test_a_sealed_secret_with_a_flipped_bit_does_not_open(at: int, bit: int) -> None:
    private, public = new_keypair(os.urandom)
    sealed = bytearray(hpke_seal(public, b"info", b"hello"))
    sealed[at] ^= 1 << bit
    with pytest.raises(VmError, match="altered"):
        hpke_open(private, b"info", bytes(sealed))


def test_a_sealed_secret_is_for_one_key_and_one_purpose() -> None:
    (private, public), (other, _) = new_keypair(os.urandom), new_keypair(os.urandom)
    sealed = hpke_seal(public, b"launch", b"secret")
    assert hpke_open(private, b"launch", sealed) == b"secret"
    for key, info, data in (
        (other, b"launch", sealed),
        (private, b"backup", sealed),
        (private, b"launch", sealed[:40]),
    ):
        with pytest.raises(VmError, match="another key or another purpose"):
            hpke_open(key, info, data)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32)])  # of 32 zeros nothing secret can be made
def test_nothing_is_sealed_to_what_is_no_key(public: bytes) -> None:
    with pytest.raises(VmError, match="cannot seal"):
        hpke_seal(public, b"", b"secret")


def test_keys_are_made_of_the_randomness_given() -> None:
    assert new_keypair(lambda size: bytes(range(size)))[0] == KEY
    assert X25519PrivateKey.from_private_bytes(KEY).public_key().public_bytes_raw() == new_keypair(lambda size: KEY)[1]


PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def seal_all(pieces: list[bytes], key: bytes = KEY, context: bytes = b"context") -> tuple[list[bytes], bytes]:
    """The pieces as a stream whose final chunk is empty, and its digest."""
    sealer = StreamSealer(key, context)
    sealed = [*(sealer.chunk(piece, False) for piece in pieces), sealer.chunk(b"", True)]
    return sealed, sealer.digest


def open_all(sealed: list[bytes], context: bytes = b"context") -> list[bytes]:
    """The pieces of a whole stream; VmError if it is not whole."""
    opener = StreamOpener(KEY, context)
    pieces = [opener.chunk(one)[0] for one in sealed]
    if not opener.ended:
        raise VmError("the stream was cut")
    return pieces


@given(pieces=PIECES)
def test_a_stream_opens_to_what_was_sealed_and_both_ends_have_the_same_digest(pieces: list[bytes]) -> None:
    sealed, digest = seal_all(pieces)
    opener = StreamOpener(KEY, b"context")
    opened = [opener.chunk(one) for one in sealed]
    assert [data for data, _ in opened] == [*pieces, b""]
    assert [final for _, final in opened] == [False] * len(pieces) + [True]
    assert opener.ended
    assert (opener.digest, opener.size) == (digest, len(b"".join(pieces)))
    whole = sha256()
    for one in sealed:
        whole.update(len(one).to_bytes(4, "big") + one)
    assert digest == whole.digest()


@given(pieces=PIECES, others=PIECES, data=st.data())
def test_a_stream_in_any_other_form_is_not_whole(pieces: list[bytes], others: list[bytes], data: st.DataObject) -> None:
    sealed, _ = seal_all(pieces)
    foreign, _ = seal_all(others, context=b"another")
    before, _ = seal_all(others, key=bytes(32))
    at = data.draw(st.integers(0, len(sealed) - 1))
    to = data.draw(st.integers(0, len(sealed) - 1))
    bit = data.draw(st.integers(0, 8 * len(sealed[at]) - 1))

    def flipped() -> list[bytes]:
        piece = bytearray(sealed[at])
        piece[bit // 8] ^= 1 << bit % 8
        return [*sealed[:at], bytes(piece), *sealed[at + 1 :]]

    def moved() -> list[bytes]:
        rest = [*sealed[:at], *sealed[at + 1 :]]
        return [*rest[:to], sealed[at], *rest[to:]]

    changes: dict[str, Callable[[], list[bytes]]] = {
        "cut": lambda: sealed[:at],
        "dropped": lambda: [*sealed[:at], *sealed[at + 1 :]],
        "moved": moved,
        "duplicated": lambda: [*sealed[:at], sealed[at], *sealed[at:]],
        "flipped": flipped,
        "appended": lambda: [*sealed, data.draw(st.sampled_from(sealed + foreign + [b"", b"\0" * 17, b"\1" * 17]))],
        "shortened": lambda: [*sealed[:at], sealed[at][:-1], *sealed[at + 1 :]],
        "lengthened": lambda: [*sealed[:at], sealed[at] + b"\0", *sealed[at + 1 :]],
        "spliced": lambda: [*sealed[:at], *foreign[min(at, len(foreign) - 1) :]],
        "of another key": lambda: [*sealed[:at], *before[min(at, len(before) - 1) :]],
    }
    changed = changes[data.draw(st.sampled_from(sorted(changes)))]()
    if changed != sealed:
        with pytest.raises(VmError):
            open_all(changed)


def derived(info: bytes) -> bytes:
    """HKDF-SHA256 of KEY, by hand (RFC 5869): 32 bytes are one block."""
    return hmac.digest(hmac.digest(bytes(32), KEY, "sha256"), info + b"\1", "sha256")


def test_a_sealed_stream_opens_by_hand() -> None:
    sealer, cipher = StreamSealer(KEY, b"context"), AESGCM(derived(b"quoreduce vm stream 1context"))
    for index, (data, final) in enumerate([(b"one", False), (b"two", False), (b"", True)]):
        sealed = sealer.chunk(data, final)
        assert sealed[0] == final
        aad = b"context" + index.to_bytes(8, "big") + bytes([final])
        assert cipher.decrypt(index.to_bytes(12, "big"), sealed[1:], aad) == data


def test_a_channels_messages_open_by_hand() -> None:
    for side in ("source", "destination"):
        cipher, channel = (
            AESGCM(derived(f"quoreduce vm channel 1{side}\0context".encode())),
            SealedChannel(KEY, side, b"context"),
        )
        for counter in (1, 2):
            sealed = channel.seal(b"hello")
            assert sealed[:8] == counter.to_bytes(8, "big")
            assert cipher.decrypt(counter.to_bytes(12, "big"), sealed[8:], sealed[:8]) == b"hello"


@pytest.mark.parametrize("final", [False, True])
def test_no_chunk_can_be_passed_off_as_the_last_one_or_as_not_the_last_one(final: bool) -> None:
    sealed = StreamSealer(KEY, b"context").chunk(b"data", final)
    with pytest.raises(VmError, match="altered"):
        StreamOpener(KEY, b"context").chunk(bytes([not final]) + sealed[1:])


def test_after_a_chunk_was_refused_no_other_is_accepted() -> None:
    sealed, _ = seal_all([b"one", b"two"])
    opener = StreamOpener(KEY, b"context")
    with pytest.raises(VmError, match="chunk 0 was altered"):
        opener.chunk(sealed[1])
    with pytest.raises(VmError, match="an earlier chunk was refused"):
        opener.chunk(sealed[0])


def test_streams_are_bounded_on_both_ends() -> None:
    sealer = StreamSealer(KEY, b"", limit=10)
    sealed = StreamSealer(KEY, b"").chunk(bytes(11), True)
    with pytest.raises(VmError, match="more than 10 bytes"):
        sealer.chunk(bytes(11), True)
    with pytest.raises(VmError, match="more than 10 bytes"):
        StreamOpener(KEY, b"", limit=10).chunk(sealed)
    assert sealer.chunk(bytes(10), True)
    for data, final in ((bytes(CHUNK_BYTES + 1), False), (b"", False)):
        with pytest.raises(VmError, match="where 1 to"):
            StreamSealer(KEY, b"").chunk(data, final)
    with pytest.raises(VmError, match="no sealed chunk"):
        StreamOpener(KEY, b"").chunk(bytes(CHUNK_BYTES + 18))


def test_the_largest_chunk_passes_and_a_stream_ends_once() -> None:
    sealer, opener = StreamSealer(KEY, b""), StreamOpener(KEY, b"")
    data = os.urandom(CHUNK_BYTES)
    assert opener.chunk(sealer.chunk(data, True)) == (data, True)
    for end in (lambda: sealer.chunk(b"more", True), lambda: opener.chunk(bytes(17))):
        with pytest.raises(VmError, match="after the final one"):
            end()


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(VmError, match="32 bytes, not 31"):
        StreamSealer(bytes(31), b"")


def test_a_channel_carries_messages_both_ways_and_some_may_be_lost() -> None:
    source, destination = SealedChannel(KEY, "source", b"order"), SealedChannel(KEY, "destination", b"order")
    first, second = source.seal(b"first"), source.seal(b"second")
    back = destination.seal(b"back")
    assert source.open(back) == b"back"
    assert destination.open(second) == b"second"
    for stale in (first, second):
        with pytest.raises(VmError, match="repeated, or was overtaken"):
            destination.open(stale)
    assert destination.open(source.seal(b"third")) == b"third"


@given(at=st.integers(0, 28), bit=st.integers(0, 7))
def test_an_altered_message_is_refused_and_the_right_one_still_accepted(at: int, bit: int) -> None:
    source, destination = SealedChannel(KEY, "source"), SealedChannel(KEY, "destination")
    sealed = source.seal(b"hello")
    altered = bytearray(sealed)
    altered[at] ^= 1 << bit
    with pytest.raises(VmError, match="altered"):
        destination.open(bytes(altered))
    assert destination.open(sealed) == b"hello"


def test_a_message_is_for_one_session_and_one_direction() -> None:
    source = SealedChannel(KEY, "source", b"order")
    sealed = source.seal(b"hello")
    for other in (
        source,
        SealedChannel(KEY, "destination", b"other"),
        SealedChannel(bytes(32), "destination", b"order"),
    ):
        with pytest.raises(VmError, match="another session or direction"):
            other.open(sealed)
    for junk in (b"", b"short", bytes(24)):
        with pytest.raises(VmError):
            SealedChannel(KEY, "destination", b"order").open(junk)


def test_no_key_serves_a_stream_and_a_channel_alike() -> None:
    """Both begin at their first nonce: what one sealed must mean nothing to the other."""
    sealed = StreamSealer(KEY, b"").chunk(b"hello", True)
    with pytest.raises(VmError):
        SealedChannel(KEY, "destination").open(bytes(8) + sealed[1:])
