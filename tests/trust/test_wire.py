"""TPM structures: what swtpm wrote is read and written again to the byte; nothing else is, and nothing crashes a
decoder.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.errors import EvidenceError
from quoreduce.trust import wire
from quoreduce.trust.wire import Clock, PcrSelection, Public, Quote, Signature, TpmReader

VECTORS = json.loads((Path(__file__).parent / "swtpm_quotes.json").read_text())
SCHEMES = ("ecdsa", "rsassa")


def vector(name: str, field: str) -> bytes:
    return bytes.fromhex(VECTORS[name][field])


def reencoded_selection(data: bytes) -> bytes:
    reader = TpmReader(data)
    selection = PcrSelection.decode(reader)
    reader.end()
    return selection.encode()


def reencoded_pcrs_file(data: bytes) -> bytes:
    selection, values = wire.decode_pcrs_file(data)
    return wire.encode_pcrs_file(selection, {pcr: value for (_, pcr), value in values.items()})


SELECTION = PcrSelection.sha256(0, 1, 16).encode()
# for each kind of structure: decode and encode again; real bytes of it
STRUCTURES: dict[str, tuple[Callable[[bytes], bytes], list[bytes]]] = {
    "quote": (lambda data: Quote.decode(data).encode(), [vector(name, "message") for name in SCHEMES]),
    "signature": (lambda data: Signature.decode(data).encode(), [vector(name, "signature") for name in SCHEMES]),
    "public": (
        lambda data: wire.sized(Public.decode_sized(data).encode()),
        [vector(name, "public") for name in (*SCHEMES, "ek", "ek_p384", "sealed")],
    ),
    "selection": (reencoded_selection, [SELECTION]),
}
EACH_VECTOR = [
    pytest.param(recode, data, id=f"{kind}{n}")
    for kind, (recode, real) in STRUCTURES.items()
    for n, data in enumerate(real)
]


@pytest.mark.parametrize(("recode", "data"), EACH_VECTOR)
def test_what_swtpm_wrote_encodes_to_the_same_bytes(recode, data):
    assert recode(data) == data


@pytest.mark.parametrize(("recode", "data"), EACH_VECTOR)
def test_truncated_at_any_byte_or_with_one_too_many_is_refused(recode, data):
    for size in range(len(data)):
        with pytest.raises(EvidenceError):
            recode(data[:size])
    with pytest.raises(EvidenceError):
        recode(data + b"\0")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quote_of_swtpm_says_what_it_was_asked(scheme):
    quote = Quote.decode(vector(scheme, "message"))
    _, values = wire.decode_pcrs_file(vector(scheme, "pcrs"))
    assert quote.extra == vector(scheme, "nonce")
    assert quote.selection == PcrSelection.sha256(*((0, 1, 16) if scheme == "ecdsa" else range(24)))
    assert quote.pcr_digest == wire.pcr_digest(list(values.values()))
    assert (quote.clock.reset_count, quote.clock.restart_count, quote.clock.safe) == (1, 0, True)
    extended_once = sha256(bytes(32) + sha256(b"task").digest()).digest()
    assert values[wire.ALG_SHA256, 16] == extended_once


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_and_pem_are_those_of_the_tpm(scheme):
    public = Public.decode_sized(vector(scheme, "public"))
    ek = Public.decode_sized(vector("ek", "public"))
    assert public.name() == vector(scheme, "name")
    assert public.qualified_name(ek.qualified_name()) == vector(scheme, "qualified_name")
    assert Quote.decode(vector(scheme, "message")).signer == vector(scheme, "qualified_name")
    assert public.pem().decode() == VECTORS[scheme]["pem"]


def test_public_areas_say_what_their_keys_are_for():
    ak, rsa_ak, ek, ek_p384, sealed = (
        Public.decode_sized(vector(name, "public")) for name in (*SCHEMES, "ek", "ek_p384", "sealed")
    )
    assert [one.is_restricted_signing for one in (ak, rsa_ak, ek, ek_p384, sealed)] == [True, True, False, False, False]
    assert (ak.kind, ak.curve, ak.scheme, ak.scheme_hash) == (
        wire.ALG_ECC,
        wire.CURVE_P256,
        wire.ALG_ECDSA,
        wire.ALG_SHA256,
    )
    assert (rsa_ak.kind, rsa_ak.bits, rsa_ak.exponent, rsa_ak.scheme) == (wire.ALG_RSA, 2048, 0, wire.ALG_RSASSA)
    assert (ek.symmetric, ek.scheme, ek.scheme_hash) == ((wire.ALG_AES, 128, wire.ALG_CFB), wire.ALG_NULL, 0)
    assert (ek_p384.curve, ek_p384.name_alg, len(ek_p384.name())) == (wire.CURVE_P384, wire.ALG_SHA384, 2 + 48)
    assert sealed.kind == wire.ALG_KEYEDHASH


@pytest.mark.parametrize(
    "attributes",
    [
        wire.RESTRICTED_SIGNING & ~wire.RESTRICTED,
        wire.RESTRICTED_SIGNING & ~wire.SIGN,
        wire.RESTRICTED_SIGNING & ~wire.FIXED_TPM,
        wire.RESTRICTED_SIGNING & ~wire.FIXED_PARENT,
        wire.RESTRICTED_SIGNING & ~wire.SENSITIVE_DATA_ORIGIN,
        wire.RESTRICTED_SIGNING | wire.DECRYPT,
    ],
)
def test_key_that_could_sign_or_live_elsewhere_is_no_attestation_key(attributes):
    ak = Public.decode_sized(vector("ecdsa", "public"))
    assert ak.is_restricted_signing
    assert not replace(ak, attributes=attributes).is_restricted_signing


@pytest.mark.parametrize(
    ("key", "of_key"),
    [
        (ec.generate_private_key(ec.SECP256R1()).public_key(), (wire.ALG_ECC, wire.CURVE_P256, 0, 0)),
        (ec.generate_private_key(ec.SECP384R1()).public_key(), (wire.ALG_ECC, wire.CURVE_P384, 0, 0)),
        (rsa.generate_private_key(65537, 2048).public_key(), (wire.ALG_RSA, 0, 2048, 0)),
        (rsa.generate_private_key(3, 1024).public_key(), (wire.ALG_RSA, 0, 1024, 3)),
    ],
)
def test_public_area_of_a_key_gives_the_key_back(key, of_key):
    public = Public.of_key(key)
    assert (public.kind, public.curve, public.bits, public.exponent) == of_key
    assert public.is_restricted_signing
    assert Public.decode(public.encode()) == public
    assert public.key() == key


def test_public_area_of_another_curve_cannot_be_made():
    with pytest.raises(EvidenceError, match="P-256, P-384 or RSA"):
        Public.of_key(ec.generate_private_key(ec.SECP521R1()).public_key())


def test_key_that_is_none_is_refused():
    ak, rsa_ak = (Public.decode_sized(vector(name, "public")) for name in SCHEMES)
    x, y = ak.unique
    for unique in (
        (y, x),
        (x, bytes(32)),
        (b"", b""),
        (b"\xff" * 32, y),
        (b"\1" + bytes(32), y),
        (b"\xff" * 66, b"\xff" * 66),
    ):
        with pytest.raises(EvidenceError, match="not a key"):
            replace(ak, unique=unique).key()
    (modulus,) = rsa_ak.unique
    for wrong in (
        replace(rsa_ak, unique=(modulus[:128],)),
        replace(rsa_ak, bits=1024),
        replace(rsa_ak, unique=(b"\0" + modulus[1:],)),
        replace(rsa_ak, unique=(b"",)),
        replace(rsa_ak, exponent=1),
        replace(rsa_ak, exponent=2),
    ):
        with pytest.raises(EvidenceError, match="not a key"):
            wrong.key()
    with pytest.raises(EvidenceError, match="sealed object"):
        Public.decode_sized(vector("sealed", "public")).pem()


QUOTE = vector("ecdsa", "message")
AT_EXTRA = 6 + 2 + 34  # magic, type, signer
AT_SAFE = AT_EXTRA + 2 + 32 + 8 + 4 + 4
AT_BANKS = AT_SAFE + 1 + 8


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (patched(QUOTE, 0, b"\0"), "not generated by a TPM"),
        (patched(QUOTE, 4, b"\x80\x17"), "not a quote"),  # TPM_ST_ATTEST_CERTIFY
        (patched(QUOTE, 6, b"\x00\x43"), "at most 66"),
        (patched(QUOTE, AT_EXTRA, b"\xff\xff"), "at most 66"),
        (patched(QUOTE, AT_SAFE, b"\2"), "neither yes"),
        (patched(QUOTE, AT_BANKS, b"\xff\xff\xff\xff"), "4294967295 PCR banks"),
        (patched(QUOTE, AT_BANKS, b"\0\0\0\2"), "is unknown|bitmap"),
        (patched(QUOTE, AT_BANKS + 4, b"\x12\x34"), "0x1234 of a PCR bank is unknown"),
        (patched(QUOTE, AT_BANKS + 6, b"\4"), "bitmap of 4 bytes"),
        (patched(QUOTE, len(QUOTE) - 34, b"\0\x41"), "at most 64"),
        (b"", "4 bytes are needed"),
    ],
)
def test_malformed_quote_is_refused_with_its_reason(data, reason):
    with pytest.raises(EvidenceError, match=reason):
        Quote.decode(data)


def test_same_bank_twice_is_refused():
    bank = SELECTION[4:]
    with pytest.raises(EvidenceError, match="given twice"):
        PcrSelection.decode(TpmReader(b"\0\0\0\2" + bank + bank))


@pytest.mark.parametrize("pcrs", [(-1,), (24,), (0, 99)])
def test_pcr_that_does_not_exist_cannot_be_selected(pcrs):
    with pytest.raises(EvidenceError, match=r"PCRs are 0\.\.23"):
        PcrSelection.sha256(*pcrs)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack(">HH", wire.ALG_RSAPSS, wire.ALG_SHA256) + wire.sized(bytes(256)), "neither ECDSA"),
        (struct.pack(">H", wire.ALG_NULL) + bytes(2), "neither ECDSA"),
        (struct.pack(">HH", wire.ALG_HMAC, wire.ALG_SHA256) + bytes(32), "neither ECDSA"),
        (
            struct.pack(">HH", wire.ALG_RSASSA, wire.ALG_NULL) + wire.sized(bytes(256)),
            "hash algorithm 0x0010 is unknown",
        ),
        (struct.pack(">HH", wire.ALG_RSASSA, wire.ALG_SHA256) + wire.sized(bytes(513)), "at most 512"),
        (struct.pack(">HH", wire.ALG_ECDSA, wire.ALG_SHA256) + wire.sized(bytes(67)) * 2, "at most 66"),
    ],
)
def test_malformed_signature_is_refused_with_its_reason(data, reason):
    with pytest.raises(EvidenceError, match=reason):
        Signature.decode(data)


ECC_PUBLIC = vector("ecdsa", "public")[2:]
RSA_PUBLIC = vector("rsassa", "public")[2:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (patched(ECC_PUBLIC, 0, b"\0\x25"), "neither ECC, RSA nor KEYEDHASH"),  # SYMCIPHER
        (patched(ECC_PUBLIC, 2, b"\0\x10"), "hash 0x0010 of its name"),
        (patched(ECC_PUBLIC, 8, b"\0\x41"), "at most 64"),
        (patched(ECC_PUBLIC, 10, b"\0\x06"), "not AES-CFB"),
        (patched(ECC_PUBLIC, 12, b"\0\x14"), "scheme 0x0014"),  # RSASSA with an ECC key
        (patched(ECC_PUBLIC, 12, b"\0\x1a"), "scheme 0x001a"),  # ECDAA
        (patched(ECC_PUBLIC, 14, b"\0\x10"), "hash 0x0010"),
        (patched(ECC_PUBLIC, 16, b"\0\x05"), "curve 0x0005"),
        (patched(ECC_PUBLIC, 18, b"\0\x07"), "KDF 0x0007"),
        (patched(RSA_PUBLIC, 16, b"\xff\xff"), "65535 bits"),
        (patched(RSA_PUBLIC, 16, b"\0\0"), "RSA key of 0 bits"),
        (patched(RSA_PUBLIC, 16, b"\4\0"), "at most 128"),
    ],
)
def test_malformed_public_area_is_refused_with_its_reason(data, reason):
    with pytest.raises(EvidenceError, match=reason):
        Public.decode(data)


def test_sized_refuses_what_does_not_fit():
    assert wire.sized(bytes(0xFFFF))[:2] == b"\xff\xff"
    with pytest.raises(EvidenceError, match="do not fit"):
        wire.sized(bytes(0x10000))


def test_unknown_hash_is_refused():
    with pytest.raises(EvidenceError, match="0x0012"):
        wire.digest(0x0012, b"")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pcr_file_is_written_as_tpm2_quote_writes_it(scheme):
    data = vector(scheme, "pcrs")
    assert reencoded_pcrs_file(data) == data


PCRS_FILE = vector("ecdsa", "pcrs")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PCRS_FILE[:-1], "bytes are needed"),
        (PCRS_FILE + b"\0", "1 bytes too many"),
        (PCRS_FILE[:131], "bytes are needed"),
        (patched(PCRS_FILE, 0, b"\x11"), "17 PCR banks"),
        (patched(PCRS_FILE, 0, b"\0"), "3 values for 0 PCRs"),
        (patched(PCRS_FILE, 4, b"\x0f"), "0x000f of a PCR bank is unknown"),
        (patched(PCRS_FILE, 6, b"\2"), "bitmap of 2 bytes"),
        (patched(PCRS_FILE, 7, b"\1"), "3 values for 2 PCRs"),
        (patched(PCRS_FILE, 132, b"\x21"), "33 lists"),
        (patched(PCRS_FILE, 136, b"\x09"), "9 digests in a list"),
        (patched(PCRS_FILE, 136, b"\2"), "2 values for 3 PCRs"),
        (patched(PCRS_FILE, 140, b"\x14"), "20 bytes, not 32"),
        (patched(PCRS_FILE, 140, b"\x41"), "65 bytes"),
    ],
)
def test_malformed_pcr_file_is_refused_with_its_reason(data, reason):
    with pytest.raises(EvidenceError, match=reason):
        wire.decode_pcrs_file(data)


@pytest.mark.parametrize(
    ("selection", "values"),
    [
        (PcrSelection(()), {}),
        (PcrSelection(((wire.ALG_SHA256, (0,)), (wire.ALG_SHA1, (0,)))), {0: bytes(32)}),
        (PcrSelection.sha256(0, 1), {0: bytes(32)}),
        (PcrSelection.sha256(0), {0: bytes(20)}),
    ],
)
def test_pcr_file_that_would_be_malformed_is_not_written(selection, values):
    with pytest.raises(EvidenceError, match="PCR file"):
        wire.encode_pcrs_file(selection, values)


HASHES = st.sampled_from(sorted(wire.DIGEST_BYTES))
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
SELECTIONS = st.builds(
    PcrSelection,
    st.lists(
        st.tuples(HASHES, st.sets(st.integers(0, 23)).map(lambda pcrs: tuple(sorted(pcrs)))),
        unique_by=lambda bank: bank[0],
    ).map(tuple),
)
QUOTES = st.builds(
    Quote, st.binary(max_size=66), st.binary(max_size=66), st.builds(Clock, U64, U32, U32, st.booleans()), U64,
    SELECTIONS,
    st.binary(max_size=64),
)  # fmt: skip
SIGNATURES = st.one_of(
    st.builds(Signature, st.just(wire.ALG_ECDSA), HASHES, st.tuples(st.binary(max_size=66), st.binary(max_size=66))),
    st.builds(Signature, st.just(wire.ALG_RSASSA), HASHES, st.tuples(st.binary(max_size=512))),
)


@given(QUOTES)
def test_every_quote_survives_encoding(quote):
    assert Quote.decode(quote.encode()) == quote


@given(SIGNATURES)
def test_every_signature_survives_encoding(signature):
    assert Signature.decode(signature.encode()) == signature


@given(st.sets(st.integers(0, 23)), st.data())
def test_every_pcr_file_survives_encoding(pcrs, data):
    values = {pcr: data.draw(st.binary(min_size=32, max_size=32)) for pcr in pcrs}
    selection, decoded = wire.decode_pcrs_file(wire.encode_pcrs_file(PcrSelection.sha256(*pcrs), values))
    assert selection == PcrSelection.sha256(*pcrs)
    assert decoded == {(wire.ALG_SHA256, pcr): value for pcr, value in values.items()}


@st.composite
def damaged(draw: st.DrawFn, real: list[bytes]) -> bytes:
    """Real bytes with some overwritten, inserted or dropped; or any bytes."""
    data = bytearray(draw(st.one_of(st.sampled_from(real), st.binary(max_size=300))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        drop = draw(st.integers(0, 4))
        data[at : at + drop] = draw(st.binary(max_size=4))
    return bytes(data)


@pytest.mark.parametrize("kind", STRUCTURES)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_decoded_one_to_one(kind, data):
    recode, real = STRUCTURES[kind]
    raw = data.draw(damaged(real))
    try:
        again = recode(raw)
    except EvidenceError:
        return
    assert again == raw


@given(damaged([vector(name, "pcrs") for name in SCHEMES]))
def test_damaged_pcr_file_is_refused_or_decoded(raw):
    try:
        selection, values = wire.decode_pcrs_file(raw)
    except EvidenceError:
        return
    assert [(alg, pcr) for alg, pcrs in selection.banks for pcr in pcrs] == list(values)


@given(damaged([vector(name, "public") for name in SCHEMES]))
def test_damaged_public_area_never_crashes_the_key(raw):
    try:
        Public.decode_sized(raw).pem()
    except EvidenceError:
        return


@given(st.binary(max_size=64), st.integers(-2, 80))
def test_reader_never_goes_past_the_end(data, size):
    reader = TpmReader(data)
    if 0 <= size <= len(data):
        assert reader.take(size) == data[:size]
        assert reader.rest() == data[size:]
        reader.end()
    else:
        with pytest.raises(EvidenceError):
            reader.take(size)
