"""Signatures: what must be refused, after the ideas of Project Wycheproof; and beside each wrong one the right one,
accepted.

Wrong signatures and paddings are made with raw arithmetic, since no library makes them.
"""

import itertools
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256, sha384

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce.errors import EvidenceError
from quoreduce.trust import wire
from quoreduce.trust.signatures import P256_ORDER as N
from quoreduce.trust.signatures import PEM_BYTES_MAX, load_pem, verify
from quoreduce.trust.wire import ALG_ECDSA, ALG_NULL, ALG_RSASSA, ALG_SHA256, ALG_SHA384, Public, Signature

P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
MESSAGE = b"what is signed"
E = int.from_bytes(sha256(MESSAGE).digest(), "big")
KEY = ec.generate_private_key(ec.SECP256R1())
D = KEY.private_numbers().private_value
PUBLIC = Public.of_key(KEY.public_key())
R, S = decode_dss_signature(KEY.sign(MESSAGE, ec.ECDSA(hashes.SHA256())))

RSA_KEY = rsa.generate_private_key(65537, 2048)
RSA_N = RSA_KEY.public_key().public_numbers().n
RSA_PUBLIC = Public.of_key(RSA_KEY.public_key())


def ecdsa(r: int | bytes, s: int | bytes, hash_alg: int = ALG_SHA256) -> Signature:
    r, s = (
        one if isinstance(one, bytes) else one.to_bytes(max(32, (one.bit_length() + 7) // 8), "big") for one in (r, s)
    )
    return Signature(ALG_ECDSA, hash_alg, (r, s))


def rsassa(value: int | bytes, hash_alg: int = ALG_SHA256) -> Signature:
    return Signature(ALG_RSASSA, hash_alg, (value if isinstance(value, bytes) else value.to_bytes(256, "big"),))


def der(key) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pem(key: bytes) -> bytes:
    body = b64encode(key)
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join([b"-----BEGIN PUBLIC KEY-----", *lines, b"-----END PUBLIC KEY-----", b""])


def test_right_ecdsa_signature_is_accepted_from_each_form_of_its_key():
    for key in (PUBLIC, KEY.public_key(), load_pem(PUBLIC.pem()), Public.decode(PUBLIC.encode())):
        verify(key, MESSAGE, ecdsa(R, S))
    verify(PUBLIC, MESSAGE, ecdsa(R, N - S))  # ECDSA is malleable; nothing here depends on the bytes of a signature


SPECIAL = (0, 1, 2, N - 2, N - 1, N, N + 1, P - 1, P, P + 1, 2**255, 2**256 - 1, 2**256)


@pytest.mark.parametrize(("r", "s"), list(itertools.product(SPECIAL, SPECIAL)))
def test_special_values_of_r_and_s_are_refused(r, s):
    with pytest.raises(EvidenceError, match="signature"):
        verify(PUBLIC, MESSAGE, ecdsa(r, s))


@pytest.mark.parametrize("special", SPECIAL)
def test_special_value_beside_a_right_one_is_refused(special):
    verify(PUBLIC, MESSAGE, ecdsa(R, S))
    for r, s in ((special, S), (R, special)):
        with pytest.raises(EvidenceError, match="signature"):
            verify(PUBLIC, MESSAGE, ecdsa(r, s))


@pytest.mark.parametrize(
    ("r", "s"),
    [
        pytest.param(R + N, S, id="r+n"),
        pytest.param(R, S + N, id="s+n"),
        pytest.param(R + P, S, id="r+p"),
        pytest.param(N - R, S, id="-r mod n"),
        pytest.param(2**256 - R, S, id="-r in two's complement"),
        pytest.param(R, 2**256 - S, id="-s in two's complement"),
        pytest.param(S, R, id="swapped"),
        pytest.param(R ^ 1, S, id="bit of r"),
        pytest.param(R, S ^ 1, id="bit of s"),
        pytest.param(pow(R, -1, N), S, id="1/r"),
        pytest.param(R, pow(S, -1, N), id="1/s"),
        pytest.param(b"", S, id="empty r"),
        pytest.param(R, b"", id="empty s"),
        pytest.param(b"\0" + R.to_bytes(32, "big"), S, id="33 bytes of r"),
        pytest.param(R, bytes(34) + S.to_bytes(32, "big"), id="66 bytes of s"),
    ],
)
def test_altered_ecdsa_signature_is_refused(r, s):
    with pytest.raises(EvidenceError, match="signature"):
        verify(PUBLIC, MESSAGE, ecdsa(r, s))


@given(st.integers(0, 511), st.integers(0, 8 * len(MESSAGE) - 1))
@settings(max_examples=50)
def test_one_bit_changed_is_refused(of_signature, of_message):
    value = (R << 256 | S) ^ 1 << of_signature
    with pytest.raises(EvidenceError):
        verify(PUBLIC, MESSAGE, ecdsa(value >> 256, value % 2**256))
    changed = int.from_bytes(MESSAGE, "big") ^ 1 << of_message
    with pytest.raises(EvidenceError):
        verify(PUBLIC, changed.to_bytes(len(MESSAGE), "big"), ecdsa(R, S))


def test_signature_whose_point_is_at_infinity_is_refused():
    r = -E * pow(D, -1, N) % N  # then u1*G + u2*Q = (e + r*d)/s * G = 0, for every s
    for s in (1, 2, S, N - 1):
        with pytest.raises(EvidenceError, match="not one of this message"):
            verify(PUBLIC, MESSAGE, ecdsa(r, s))


def add(a, b):
    """Add two points of P-256; None is infinity."""
    if a is None or b is None:
        return b if a is None else a
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def times(k, point):
    result = None
    for bit in bin(k % N)[2:]:
        result = add(result, result)
        if bit == "1":
            result = add(result, point)
    return result


def key_with(point_x: int, s: int) -> ec.EllipticCurvePublicKey | None:
    """Find the key under which (point_x mod n, s) signs MESSAGE by the point with this x, if there is such a point."""
    square = (point_x**3 - 3 * point_x + B) % P
    y = pow(square, (P + 1) // 4, P)
    if y * y % P != square:
        return None
    r = point_x % N
    q = times(pow(r, -1, N), add(times(s, (point_x, y)), times(-E, G)))
    return ec.EllipticCurvePublicNumbers(*q, ec.SECP256R1()).public_key()


def test_r_is_taken_modulo_n_but_not_beyond_it():
    x, s = next((x, 7) for x in range(N + 1, N + 100) if key_with(x, 7))  # n < x < p: r = x - n is small
    key = key_with(x, s)
    verify(key, MESSAGE, ecdsa(x - N, s))
    with pytest.raises(EvidenceError, match=r"not in 1\.\.n-1"):
        verify(key, MESSAGE, ecdsa(x, s))  # fits in 32 bytes, and equals the point's x


def test_point_whose_x_equals_r_plus_n_only_beyond_p_is_refused():
    x = next(x for x in range(P - N + 5, P) if key_with(x, 7))  # r = x; r + n > p
    key = key_with(x, 7)
    verify(key, MESSAGE, ecdsa(x, 7))
    with pytest.raises(EvidenceError, match="not one of this message"):
        verify(key, MESSAGE, ecdsa((x + N) % P, 7))


def test_signature_of_another_hash_or_key_or_scheme_is_refused():
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(EvidenceError, match="not one of this message"):
        verify(Public.of_key(other.public_key()), MESSAGE, ecdsa(R, S))
    with_sha384 = ecdsa(*decode_dss_signature(KEY.sign(MESSAGE, ec.ECDSA(hashes.SHA384()))))
    with pytest.raises(EvidenceError, match="not one of this message"):
        verify(PUBLIC, MESSAGE, with_sha384)
    with pytest.raises(EvidenceError, match="is not the key's"):
        verify(PUBLIC, MESSAGE, replace(with_sha384, hash_alg=ALG_SHA384))
    with pytest.raises(EvidenceError, match="is not the key's"):
        verify(PUBLIC, MESSAGE, Signature(ALG_RSASSA, ALG_SHA256, (bytes(256),)))
    with pytest.raises(EvidenceError, match="is not the key's"):
        verify(RSA_PUBLIC, MESSAGE, ecdsa(R, S))


@pytest.mark.parametrize(
    "public",
    [
        replace(PUBLIC, scheme=ALG_NULL, scheme_hash=0),
        replace(PUBLIC, scheme_hash=ALG_SHA384),
        replace(PUBLIC, scheme=wire.ALG_ECDH),
    ],
)
def test_public_area_that_does_not_name_the_scheme_is_refused(public):
    verify(PUBLIC, MESSAGE, ecdsa(R, S))
    with pytest.raises(EvidenceError, match="the public area allows"):
        verify(public, MESSAGE, ecdsa(R, S))


X, Y = (int.from_bytes(one, "big") for one in PUBLIC.unique)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param(0, 0, id="origin"),
        pytest.param(X, Y ^ 1, id="off the curve"),
        pytest.param(Y, X, id="swapped"),
        pytest.param(X, 0, id="y=0"),
        pytest.param(0, Y, id="x=0"),
        pytest.param(P, Y, id="x=p"),
        pytest.param(X, P, id="y=p"),
        pytest.param(2**256 - 1, 2**256 - 1, id="all ones"),
        pytest.param(X, 2 * P - Y, id="y beyond p"),
    ],
)
def test_point_that_is_not_on_the_curve_is_no_key(x, y):
    size = max(32, (max(x, y).bit_length() + 7) // 8)
    public = replace(PUBLIC, unique=(x.to_bytes(size, "big"), y.to_bytes(size, "big")))
    with pytest.raises(EvidenceError, match="not a key"):
        verify(public, MESSAGE, ecdsa(R, S))


def test_coordinate_with_p_added_is_no_second_form_of_a_key():
    x = next(x for x in range(5, 2**256 - P) if key_with(x, 7))  # a small x, so that x + p fits in 32 bytes
    square = (x**3 - 3 * x + B) % P
    y = pow(square, (P + 1) // 4, P)
    good = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    assert Public.of_key(good).key() == good
    with pytest.raises(EvidenceError, match="smaller than the curve's prime"):
        replace(PUBLIC, unique=((x + P).to_bytes(32, "big"), y.to_bytes(32, "big"))).key()
    with pytest.raises(EvidenceError, match="more than 32 bytes"):
        replace(PUBLIC, unique=(x.to_bytes(33, "big"), y.to_bytes(32, "big"))).key()
    assert load_pem(pem(spki(P256, point_of(x, y)))) == good
    with pytest.raises(EvidenceError, match="not a public key"):
        load_pem(pem(spki(P256, point_of(x + P, y))))


@pytest.mark.parametrize(
    "curve", [ec.SECP384R1(), ec.SECP521R1(), ec.SECP256K1(), ec.SECP224R1(), ec.BrainpoolP256R1()]
)
def test_key_of_another_curve_is_refused(curve):
    other = ec.generate_private_key(curve)
    signature = ecdsa(*decode_dss_signature(other.sign(MESSAGE, ec.ECDSA(hashes.SHA256()))))
    with pytest.raises(EvidenceError, match=f"curve {curve.name}, not P-256"):
        load_pem(pem(der(other.public_key())))
    with pytest.raises(EvidenceError, match=f"curve {curve.name}, not P-256"):
        verify(other.public_key(), MESSAGE, signature)


def test_p384_public_area_is_refused():
    public = Public.of_key(ec.generate_private_key(ec.SECP384R1()).public_key())
    with pytest.raises(EvidenceError, match="not P-256"):
        verify(public, MESSAGE, ecdsa(R, S))


def tlv(tag: int, *parts: bytes, long_form: bool = False) -> bytes:
    """Encode DER, or with ``long_form`` BER with a length of one byte more than is needed."""
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag]) + (b"\x81" if long_form else b"") + bytes([len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


EC_KEY, PRIME_FIELD, P256 = (
    bytes.fromhex(oid) for oid in ("06072a8648ce3d0201", "06072a8648ce3d0101", "06082a8648ce3d030107")
)


def spki(parameters: bytes, point: bytes) -> bytes:
    return tlv(0x30, tlv(0x30, EC_KEY, parameters), tlv(3, b"\0", point))


def explicit_curve(base: tuple[int, int]) -> bytes:
    """P-256 by its parameters (RFC 3279, 2.3.5) instead of by its name, with this generator."""
    field = tlv(0x30, PRIME_FIELD, integer(P))
    coefficients = tlv(0x30, *(tlv(4, one.to_bytes(32, "big")) for one in (P - 3, B)))
    return tlv(0x30, integer(1), field, coefficients, tlv(4, point_of(*base)), integer(N), integer(1))


def point_of(x: int, y: int) -> bytes:
    return b"\4" + x.to_bytes(32, "big") + y.to_bytes(32, "big")


POINT = point_of(X, Y)


def test_key_in_pem_is_read():
    assert spki(P256, POINT) == der(KEY.public_key())
    assert load_pem(pem(spki(P256, POINT))) == KEY.public_key()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(spki(explicit_curve((X, Y)), POINT), id="own generator (CVE-2020-0601)"),
        pytest.param(spki(P256, b"\0"), id="point at infinity"),
        pytest.param(spki(P256, point_of(X, Y ^ 1)), id="off the curve"),
        pytest.param(spki(P256, point_of(0, 0)), id="origin"),
        pytest.param(spki(P256, b"\5" + POINT[1:]), id="unknown form of point"),
        pytest.param(spki(P256, POINT[:-1]), id="short point"),
        pytest.param(spki(P256, POINT + b"\0"), id="long point"),
        pytest.param(spki(P256, b""), id="no point"),
        pytest.param(spki(b"", POINT), id="no curve"),
        pytest.param(spki(b"\5\0", POINT), id="implicit curve"),
        pytest.param(spki(bytes.fromhex("06052b8104000a"), POINT), id="point of another curve (secp256k1)"),
        pytest.param(spki(P256, POINT)[:-1], id="truncated"),
        pytest.param(spki(P256, POINT) + b"\0", id="trailing byte"),
        pytest.param(b"", id="empty"),
        pytest.param(der(ed25519.Ed25519PrivateKey.generate().public_key()), id="Ed25519"),
        pytest.param(der(rsa.generate_private_key(65537, 1024).public_key()), id="RSA-1024"),
        pytest.param(der(rsa.generate_private_key(65537, 2056).public_key()), id="RSA-2056"),
        pytest.param(der(rsa.generate_private_key(3, 2048).public_key()), id="e=3"),
    ],
)
def test_malformed_key_in_pem_is_refused(key):
    with pytest.raises(EvidenceError, match="key"):
        load_pem(pem(key))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no PEM",
        PUBLIC.encode(),
        PUBLIC.pem()[:-30],
        PUBLIC.pem() + b" " * PEM_BYTES_MAX,
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
)
def test_what_is_no_public_key_in_pem_is_refused(data):
    with pytest.raises(EvidenceError, match="key"):
        load_pem(data)


@given(st.binary(max_size=200), st.integers(0, 90))
def test_damaged_pem_never_crashes(junk, at):
    good = spki(P256, POINT)
    for data in (junk, pem(junk), pem(good[:at] + junk[:2] + good[at + len(junk[:2]) :])):
        try:
            load_pem(data)
        except EvidenceError:
            continue


DIGEST = sha256(MESSAGE).digest()
SHA256_OID = bytes.fromhex("0609608648016503040201")
SHA384_OID = bytes.fromhex("0609608648016503040202")
SHA1_OID = bytes.fromhex("06052b0e03021a")
NULL = b"\5\0"


def digest_info(oid: bytes = SHA256_OID, parameters: bytes = NULL, digest: bytes = DIGEST) -> bytes:
    return tlv(0x30, tlv(0x30, oid, parameters), tlv(4, digest))


def padded(info: bytes, ones: int | None = None, tail: bytes = b"", kind: int = 1, filler: bytes = b"\xff") -> bytes:
    """Pad to 256 bytes: 00 01 ff .. ff 00 info tail."""
    count = 256 - 3 - len(info) - len(tail) if ones is None else ones
    return bytes([0, kind]) + filler * count + b"\0" + info + tail


def signed(block: bytes) -> Signature:
    """Sign a whole block with the private key: by the Chinese remainder theorem, four times faster than with d."""
    private, value = RSA_KEY.private_numbers(), int.from_bytes(block, "big")
    assert len(block) == 256
    assert value < RSA_N
    by_p, by_q = pow(value, private.dmp1, private.p), pow(value, private.dmq1, private.q)
    return rsassa(by_q + (by_p - by_q) * private.iqmp % private.p * private.q)


def test_right_rsa_signature_is_accepted_from_each_form_of_its_key():
    made = rsassa(RSA_KEY.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256()))
    assert signed(padded(digest_info())) == made
    for key in (RSA_PUBLIC, RSA_KEY.public_key(), load_pem(RSA_PUBLIC.pem()), Public.decode(RSA_PUBLIC.encode())):
        verify(key, MESSAGE, made)


def block_of(*parts: bytes) -> bytes:
    return b"".join(parts).ljust(256, b"\xa5")


INFO = digest_info()
WRONG_BLOCKS = {
    "block type 2": padded(INFO, kind=2),
    "block type 0": padded(INFO, kind=0),
    "block type 0, zeros": padded(INFO, kind=0, filler=b"\0"),
    "first byte 1": b"\1" + padded(INFO)[1:],
    "padding of fe": padded(INFO, filler=b"\xfe"),
    "one byte of padding fe": padded(INFO)[:100] + b"\xfe" + padded(INFO)[101:],
    "zero in the padding": padded(INFO)[:100] + b"\0" + padded(INFO)[101:],
    "no zero after the padding": padded(INFO)[: -len(INFO) - 1] + b"\xff" + INFO,
    "eight ones, then garbage after the digest (Bleichenbacher 2006)": block_of(padded(INFO, ones=8)),
    "no padding, garbage after the digest": block_of(padded(INFO, ones=0)),
    "one byte after the digest": padded(INFO, tail=b"\0"),
    "garbage in place of NULL": padded(digest_info(parameters=b"\4\2ab")),
    "garbage of 180 bytes as parameters (CVE-2006-4340)": padded(digest_info(parameters=tlv(4, bytes(180)))),
    "NULL of length 1": padded(digest_info(parameters=b"\5\1\0")),
    "no NULL": padded(digest_info(parameters=b"")),
    "two NULLs": padded(digest_info(parameters=NULL * 2)),
    "NULL with a BER length": padded(digest_info(parameters=b"\5\x81\0")),
    "BER length of the sequence": padded(tlv(0x30, tlv(0x30, SHA256_OID, NULL), tlv(4, DIGEST), long_form=True)),
    "BER length of the algorithm": padded(tlv(0x30, tlv(0x30, SHA256_OID, NULL, long_form=True), tlv(4, DIGEST))),
    "BER length of the digest": padded(tlv(0x30, tlv(0x30, SHA256_OID, NULL), tlv(4, DIGEST, long_form=True))),
    "indefinite length": padded(b"\x30\x80" + INFO[2:] + b"\0\0"),
    "element after the digest": padded(tlv(0x30, tlv(0x30, SHA256_OID, NULL), tlv(4, DIGEST), NULL)),
    "digest as a bit string": padded(tlv(0x30, tlv(0x30, SHA256_OID, NULL), tlv(3, DIGEST))),
    "set, not sequence": padded(b"\x31" + INFO[1:]),
    "OID of SHA-384": padded(digest_info(SHA384_OID)),
    "OID of SHA-1": padded(digest_info(SHA1_OID)),
    "OID with a bit changed": padded(INFO.replace(SHA256_OID, SHA256_OID[:-1] + b"\0")),
    "SHA-384 throughout": padded(digest_info(SHA384_OID, digest=sha384(MESSAGE).digest())),
    "digest with a byte too many": padded(digest_info(digest=DIGEST + b"\0")),
    "digest with a byte too few": padded(digest_info(digest=DIGEST[:-1])),
    "digest of another message": padded(digest_info(digest=sha256(b"other").digest())),
    "digest without its header": padded(DIGEST),
    "empty digest": padded(digest_info(digest=b"")),
    "header without a digest": padded(tlv(0x30, tlv(0x30, SHA256_OID, NULL))),
    "no header, no digest": padded(b""),
    "message, not its digest": padded(digest_info(digest=MESSAGE.ljust(32))),
    "zeros": bytes(256),
}


@pytest.mark.parametrize("name", WRONG_BLOCKS)
def test_wrong_padding_is_refused(name):
    assert WRONG_BLOCKS[name] != padded(INFO)
    with pytest.raises(EvidenceError, match="not one of this message"):
        verify(RSA_PUBLIC, MESSAGE, signed(WRONG_BLOCKS[name]))


@given(st.integers(0, 2046))
@settings(max_examples=30)
def test_padding_with_one_bit_changed_is_refused(bit):
    value = int.from_bytes(padded(INFO), "big") ^ 1 << bit
    with pytest.raises(EvidenceError, match="not one of this message"):
        verify(RSA_PUBLIC, MESSAGE, signed(value.to_bytes(256, "big")))


GOOD = int.from_bytes(signed(padded(INFO)).values[0], "big")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(0, id="0"),
        pytest.param(1, id="1"),
        pytest.param(RSA_N - 1, id="n-1"),
        pytest.param(RSA_N, id="n"),
        pytest.param(RSA_N + 1, id="n+1"),
        pytest.param(2**2048 - 1, id="all ones"),
        pytest.param(RSA_N - GOOD, id="-s"),
        pytest.param(GOOD ^ 1, id="one bit"),
        pytest.param(int.from_bytes(padded(INFO), "big"), id="padding, not signed"),
        pytest.param(b"", id="empty"),
        pytest.param(GOOD.to_bytes(256, "big")[:-1], id="255 bytes"),
        pytest.param(b"\0" + GOOD.to_bytes(256, "big"), id="zero before"),
        pytest.param(GOOD.to_bytes(256, "big") + b"\0", id="zero after"),
        pytest.param((GOOD + RSA_N).to_bytes(257, "big"), id="s+n in 257 bytes"),
        pytest.param(bytes(256) + GOOD.to_bytes(256, "big"), id="512 bytes"),
    ],
)
def test_wrong_rsa_value_is_refused(value):
    verify(RSA_PUBLIC, MESSAGE, rsassa(GOOD))
    with pytest.raises(EvidenceError, match="signature"):
        verify(RSA_PUBLIC, MESSAGE, rsassa(value))


def signature_of(number: int) -> tuple[bytes, int]:
    message = b"%d" % number
    return message, int.from_bytes(RSA_KEY.sign(message, padding.PKCS1v15(), hashes.SHA256()), "big")


def test_value_with_n_added_in_256_bytes_is_refused():
    key = next(
        key for key in iter(lambda: rsa.generate_private_key(65537, 2048), None) if modulus_of(key) < 3 * 2**2046
    )
    n = modulus_of(key)  # at least a third of all signatures are below 2**2048 - n
    made = (
        (b"%d" % k, int.from_bytes(key.sign(b"%d" % k, padding.PKCS1v15(), hashes.SHA256()), "big"))
        for k in range(1000)
    )
    message, value = next((message, value) for message, value in made if value + n < 2**2048)
    public = Public.of_key(key.public_key())
    verify(public, message, rsassa(value))
    with pytest.raises(EvidenceError, match="not smaller than the modulus"):
        verify(public, message, rsassa(value + n))


def modulus_of(key: rsa.RSAPrivateKey) -> int:
    return key.public_key().public_numbers().n


def test_value_that_begins_with_zero_is_accepted_with_it_and_refused_without():
    message, value = next(one for one in map(signature_of, range(10_000)) if one[1] < 2**2040)
    verify(RSA_PUBLIC, message, rsassa(value))
    with pytest.raises(EvidenceError, match="255 bytes"):
        verify(RSA_PUBLIC, message, rsassa(value.to_bytes(256, "big")[1:]))


def test_pss_signature_is_no_pkcs1_signature():
    made = RSA_KEY.sign(MESSAGE, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    with pytest.raises(EvidenceError, match="not one of this message"):
        verify(RSA_PUBLIC, MESSAGE, rsassa(made))
    with pytest.raises(EvidenceError, match="is not the key's"):
        verify(RSA_PUBLIC, MESSAGE, Signature(wire.ALG_RSAPSS, ALG_SHA256, (made,)))


@pytest.mark.parametrize("hash_alg", [wire.ALG_SHA1, ALG_SHA384, wire.ALG_SHA512, ALG_NULL])
def test_rsa_signature_that_names_another_hash_is_refused(hash_alg):
    with pytest.raises(EvidenceError, match="is not the key's"):
        verify(RSA_PUBLIC, MESSAGE, rsassa(GOOD, hash_alg))


@pytest.mark.parametrize(("exponent", "bits"), [(3, 2048), (65537, 1024), (65537, 2040), (65537, 2056), (3, 1024)])
def test_rsa_key_of_another_size_or_exponent_is_refused(exponent, bits):
    key = rsa.generate_private_key(exponent, bits)
    signature = rsassa(key.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256()))
    for public in (Public.of_key(key.public_key()), key.public_key()):
        with pytest.raises(EvidenceError, match=f"RSA with {bits} bits and exponent {exponent}"):
            verify(public, MESSAGE, signature)


def test_rsa_exponent_of_one_is_refused():
    """Under e = 1 the padded digest is its own signature."""
    public = replace(RSA_PUBLIC, exponent=1)
    with pytest.raises(EvidenceError, match="key"):
        verify(public, MESSAGE, rsassa(padded(INFO)))
    rsa_oid = bytes.fromhex("06092a864886f70d010101")
    in_pem = pem(tlv(0x30, tlv(0x30, rsa_oid, NULL), tlv(3, b"\0", tlv(0x30, integer(RSA_N), integer(1)))))
    with pytest.raises(EvidenceError, match="key"):
        load_pem(in_pem)


@pytest.mark.parametrize("exponent", [0, 2, 4, 65536, 65539, 2**32 - 1])
def test_public_area_with_another_exponent_is_refused(exponent):
    public = replace(RSA_PUBLIC, exponent=exponent)
    if exponent == 0:  # how a TPM writes 65537
        verify(public, MESSAGE, rsassa(GOOD))
        verify(replace(RSA_PUBLIC, exponent=65537), MESSAGE, rsassa(GOOD))
        return
    with pytest.raises(EvidenceError, match="key"):
        verify(public, MESSAGE, rsassa(GOOD))


@pytest.mark.parametrize("modulus", [RSA_N - 1, RSA_N + 2, RSA_N >> 1, 0, 1, 2**2048 - 1, 2**2047])
def test_another_modulus_is_refused(modulus):
    with pytest.raises(EvidenceError):
        verify(replace(RSA_PUBLIC, unique=(modulus.to_bytes(256, "big"),)), MESSAGE, rsassa(GOOD % max(modulus, 1)))
