"""Enrolment: credentials against real TPMs and tpm2-tools, the registrar, and each broken link refused for its own
reason.
"""

from __future__ import annotations

import dataclasses
import shutil
import struct
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from attested import DAY, NOW, Authority
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from quoreduce.errors import AttestationError, EvidenceError, HostError
from quoreduce.trust import commands, wire
from quoreduce.trust.enrol import Registrar, enrol, kdf_a, kdf_e, make_credential
from quoreduce.trust.evidence import enrolment_record
from quoreduce.trust.swtpm import Swtpm, setup
from quoreduce.trust.tpm2 import _Ek
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import Public

SECRET = bytes(range(32))
MAGIC = struct.pack(">II", 0xBADCC0DE, 1)  # of tpm2-tools' credential files


def now() -> datetime:
    return datetime.now(UTC)


def ek_of(key, template: Public) -> Public:
    """The public area of an EK with this key."""
    return dataclasses.replace(template, unique=Public.of_key(key).unique, curve=Public.of_key(key).curve)


@pytest.fixture(params=["ecc P-384", "rsa", "ecc P-256", "rsa made from its template"])
def endorsed(request, start):
    """swtpm with each kind of EK that we know; the last two are in no persistent handle."""
    tpm = start(ek=request.param[:3])
    if request.param == "ecc P-256":
        tpm._ek_found = _Ek(commands.EK_P256, tpm._public_of(commands.EK_P256), b"")
    if request.param.endswith("template"):
        tpm._ek_found = _Ek(commands.EK_RSA, tpm._public_of(commands.EK_RSA), b"")
    return tpm


@pytest.mark.parametrize("size", [0, 1, 15, 16, 32])
def test_tpm_opens_a_credential_made_for_its_two_keys(endorsed, size):
    made = make_credential(endorsed.ek_public, endorsed.public.name(), SECRET[:size])
    assert endorsed.activate(made.credential, made.encrypted_secret) == SECRET[:size]


def test_tpm_refuses_a_credential_made_for_another_ak(endorsed):
    made = make_credential(endorsed.ek_public, MicroTpm().public.name(), SECRET)
    with pytest.raises(AttestationError, match="TPM_RC_INTEGRITY"):
        endorsed.activate(made.credential, made.encrypted_secret)


def test_tpm_refuses_a_credential_with_a_bit_changed(endorsed):
    made = make_credential(endorsed.ek_public, endorsed.public.name(), SECRET)
    for at in (2, 20, len(made.credential) - 1):
        altered = bytearray(made.credential)
        altered[at] ^= 1
        with pytest.raises(AttestationError):
            endorsed.activate(bytes(altered), made.encrypted_secret)
    assert endorsed.activate(made.credential, made.encrypted_secret) == SECRET


def test_rsa_ek_of_swtpm_is_that_of_the_default_template(start):
    tpm = start(ek="rsa")
    assert tpm._public_of(commands.EK_RSA) == tpm.ek_public


@pytest.mark.parametrize("ek", ["ecc", "rsa"])
def test_tpm_opens_a_credential_that_tpm2_tools_made(start, tmp_path, ek):
    if shutil.which("tpm2_makecredential") is None:
        pytest.skip("tpm2_makecredential is not installed (apt-get install tpm2-tools)")
    tpm = start(ek=ek)
    (tmp_path / "ek.tss").write_bytes(wire.sized(tpm.ek_public.encode()))
    (tmp_path / "secret").write_bytes(SECRET)
    line = [
        "tpm2_makecredential",
        "-T",
        "none",
        "-u",
        "ek.tss",
        "-s",
        "secret",
        "-n",
        tpm.public.name().hex(),
        "-o",
        "made",
    ]
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    reader = wire.TpmReader((tmp_path / "made").read_bytes())
    assert reader.take(8) == MAGIC
    credential, encrypted_secret = reader.sized(), reader.sized()
    assert tpm.activate(credential, encrypted_secret) == SECRET


def test_tpm2_tools_open_a_credential_that_we_made(made, listening, tmp_path):
    if shutil.which("tpm2_activatecredential") is None:
        pytest.skip("tpm2_activatecredential is not installed (apt-get install tpm2-tools)")
    folder = tmp_path / "tools"
    folder.mkdir()

    def tool(*line: str) -> None:
        done = subprocess.run(
            [line[0], "-T", listening[0], *line[1:]], cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr

    kind = ["-G", "ecc", "-g", "sha256", "-s", "ecdsa"]
    tool("tpm2_createak", "-C", "0x81010001", "-c", "ak.ctx", *kind, "-u", "ak.tss", "-n", "name")
    tool("tpm2_flushcontext", "-t")
    with Swtpm(made.state, ek="rsa") as same:
        ek = same.ek_public
    ours = make_credential(ek, (folder / "name").read_bytes(), SECRET)
    (folder / "made").write_bytes(MAGIC + wire.sized(ours.credential) + wire.sized(ours.encrypted_secret))
    tool("tpm2_startauthsession", "--policy-session", "-S", "session")
    tool("tpm2_policysecret", "-S", "session", "-c", "e")
    tool(
        "tpm2_activatecredential",
        "-c",
        "ak.ctx",
        "-C",
        "0x81010001",
        "-i",
        "made",
        "-o",
        "secret",
        "-P",
        "session:session",
    )
    assert (folder / "secret").read_bytes() == SECRET


def test_key_derivation_gives_any_length_as_a_prefix_of_counted_blocks():
    longest = kdf_e("sha256", b"z", b"IDENTITY", b"u", b"v", 512)
    for bits in (128, 256, 384, 512):
        assert len(kdf_a("sha256", b"key", b"STORAGE", b"u", b"v", bits)) == bits // 8
        assert kdf_e("sha256", b"z", b"IDENTITY", b"u", b"v", bits) == longest[: bits // 8]
    assert kdf_a("sha256", b"key", b"A", b"", b"", 256) != kdf_a("sha256", b"key", b"B", b"", b"", 256)


@pytest.mark.parametrize(
    "changes",
    [
        {"attributes": commands.EK_P256.attributes & ~wire.FIXED_TPM}, {"attributes": wire.RESTRICTED_SIGNING},
        {"attributes": commands.EK_P256.attributes & ~wire.RESTRICTED}, {"symmetric": None},
        {"name_alg": wire.ALG_SHA1},
    ],
    ids=["could leave the TPM", "a signing key", "decrypts anything", "without AES", "named by SHA-1"],
)  # fmt: skip
def test_credential_is_made_for_nothing_but_an_ek(changes):
    ek = ek_of(ec.generate_private_key(ec.SECP256R1()).public_key(), commands.EK_P256)
    make_credential(ek, MicroTpm().public.name(), SECRET)
    with pytest.raises(EvidenceError, match="not a storage key of its TPM"):
        make_credential(dataclasses.replace(ek, **changes), MicroTpm().public.name(), SECRET)


def test_credential_is_made_for_no_weak_rsa_key_and_no_point_off_the_curve():
    weak = ek_of(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), commands.EK_RSA)
    with pytest.raises(EvidenceError, match="1024 bits, not 2048"):
        make_credential(weak, b"name", SECRET)
    with pytest.raises(EvidenceError, match="not a key"):
        make_credential(dataclasses.replace(commands.EK_P256, unique=(b"\1" * 32, b"\2" * 32)), b"name", SECRET)


def test_credential_holds_no_more_than_a_digest():
    ek = ek_of(ec.generate_private_key(ec.SECP256R1()).public_key(), commands.EK_P256)
    with pytest.raises(EvidenceError, match="at most 32 bytes, not 33"):
        make_credential(ek, b"name", bytes(33))


@pytest.fixture
def registrar(made, tmp_path):
    return Registrar(tmp_path / "registrar", [x509.load_pem_x509_certificate(root.encode()) for root in made.roots])


@pytest.mark.parametrize("ek", ["ecc", "rsa"])
def test_enrolment_is_the_registrars_signature_over_ek_and_ak(registrar, made, start, ek):
    tpm = start(ek=ek)
    signature = enrol(registrar, tpm, made.intermediates, now())
    Ed25519PublicKey.from_public_bytes(registrar.public).verify(
        signature, enrolment_record(tpm.ek_certificate, tpm.public)
    )


def test_same_pair_may_be_enrolled_again_also_after_a_restart_of_the_registrar(registrar, made, swtpm, tmp_path):
    first = enrol(registrar, swtpm, made.intermediates, now())
    again = Registrar(tmp_path / "registrar", registrar._roots)
    assert again.public == registrar.public
    assert enrol(again, swtpm, made.intermediates, now()) == first


def test_second_ak_of_an_ek_is_refused(registrar, made, start):
    first = start(scheme="ecdsa")
    enrol(registrar, first, made.intermediates, now())
    first.close()
    with pytest.raises(AttestationError, match="bound to another AK already"):
        enrol(registrar, start(scheme="rsassa"), made.intermediates, now())


def test_second_ak_is_refused_also_when_both_were_challenged_before_either_answered(made, start, registrar, tmp_path):
    other = Registrar(tmp_path / "registrar", registrar._roots)
    answers = []
    for scheme, one in (("ecdsa", registrar), ("rsassa", other)):
        tpm = start(scheme=scheme)
        credential = one.challenge([tpm.ek_certificate, *made.intermediates], tpm.ek_public, tpm.public, now())
        answers.append(
            (tpm.ek_certificate, tpm.public, tpm.activate(credential.credential, credential.encrypted_secret))
        )
        tpm.close()
    registrar.enrol(*answers[0])
    with pytest.raises(AttestationError, match="bound to another AK already"):
        other.enrol(*answers[1])


def test_ak_swapped_after_the_ek_was_validated_is_refused(registrar, made, swtpm):
    chain = [swtpm.ek_certificate, *made.intermediates]
    credential = registrar.challenge(chain, swtpm.ek_public, swtpm.public, now())
    secret = swtpm.activate(credential.credential, credential.encrypted_secret)
    impostor = MicroTpm().public
    with pytest.raises(AttestationError, match="it was swapped"):
        registrar.enrol(chain[0], impostor, secret)
    with pytest.raises(AttestationError, match="no challenge waits"):  # and the secret is good for nothing any more
        registrar.enrol(chain[0], swtpm.public, secret)


def test_ak_of_another_tpm_breaks_the_chain_in_the_tpm(registrar, made, swtpm):
    """A software key, shown beside a real EK: the TPM does not hold it and does not open the credential."""
    credential = registrar.challenge(
        [swtpm.ek_certificate, *made.intermediates], swtpm.ek_public, MicroTpm().public, now()
    )  # fmt: skip
    with pytest.raises(AttestationError, match="TPM_RC_INTEGRITY"):
        swtpm.activate(credential.credential, credential.encrypted_secret)


def test_ek_of_another_tpm_breaks_the_chain_in_the_tpm(registrar, made, swtpm, tmp_path):
    setup(tmp_path / "other", ca=made.state / "ca")
    with Swtpm(tmp_path / "other") as other:
        credential = registrar.challenge(
            [other.ek_certificate, *made.intermediates], other.ek_public, swtpm.public, now()
        )
    with pytest.raises(AttestationError, match=r"TPM_RC_(INTEGRITY|VALUE)"):
        swtpm.activate(credential.credential, credential.encrypted_secret)


def test_wrong_secret_is_refused_and_there_is_one_guess(registrar, made, swtpm):
    chain = [swtpm.ek_certificate, *made.intermediates]
    registrar.challenge(chain, swtpm.ek_public, swtpm.public, now())
    with pytest.raises(AttestationError, match="secret is wrong"):
        registrar.enrol(chain[0], swtpm.public, bytes(32))
    with pytest.raises(AttestationError, match="no challenge waits"):
        registrar.enrol(chain[0], swtpm.public, bytes(32))


def test_certificate_for_another_key_than_the_ek_is_refused(registrar, made, start):
    tpm = start(ek="ecc")
    certificate = tpm.ek_certificate
    tpm.close()
    with pytest.raises(EvidenceError, match="for another key than the EK shown"):
        registrar.challenge([certificate, *made.intermediates], start(ek="rsa").ek_public, tpm.public, now())


def test_ak_that_signs_anything_is_refused(registrar, made, swtpm):
    loose = dataclasses.replace(swtpm.public, attributes=swtpm.public.attributes & ~wire.RESTRICTED)
    with pytest.raises(EvidenceError, match="signs anything it is given"):
        registrar.challenge([swtpm.ek_certificate, *made.intermediates], swtpm.ek_public, loose, now())


@pytest.mark.parametrize("away", [-1, 9000], ids=["slow", "fast"])
def test_clock_far_off_refuses_the_certificate(registrar, made, swtpm, away):
    at = now() + timedelta(days=365 * away) if away < 0 else datetime.max.replace(tzinfo=UTC)
    with pytest.raises(EvidenceError, match=r"not valid before|expired on"):
        enrol(registrar, swtpm, made.intermediates, at)


def test_files_of_the_registrar_are_private(registrar, made, swtpm, tmp_path):
    enrol(registrar, swtpm, made.intermediates, now())
    folder = tmp_path / "registrar"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {(folder / name).stat().st_mode & 0o777 for name in ("registrar.key", "bindings.json")} == {0o600}


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"format":1}', b'{"bindings":{"zz":"00"}}', b"\xff"])
def test_bindings_that_cannot_be_read_are_a_host_error_and_never_forgotten(registrar, made, swtpm, tmp_path, torn):
    (tmp_path / "registrar" / "bindings.json").write_bytes(torn)
    with pytest.raises(HostError, match="cannot read the registrar's"):
        enrol(registrar, swtpm, made.intermediates, now())
    assert (tmp_path / "registrar" / "bindings.json").read_bytes() == torn


def test_folder_that_holds_another_key_is_a_host_error(tmp_path):
    (tmp_path / "registrar.key").write_bytes(b"short")
    with pytest.raises(HostError, match="cannot use the registrar"):
        Registrar(tmp_path, [])


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def of_authority(authority, tmp_path):
    return Registrar(tmp_path / "registrar", [authority.root])


KEY = ec.generate_private_key(ec.SECP256R1())
EK = ek_of(KEY.public_key(), commands.EK_P256)


def der(*certificates: x509.Certificate) -> list[bytes]:
    return [certificate.public_bytes(Encoding.DER) for certificate in certificates]


def test_certificate_of_a_ca_of_the_registrar_is_accepted(authority, of_authority):
    good = authority.certify("", KEY.public_key(), "middle", authority.middle_key, ca=False)
    of_authority.challenge(der(good, authority.middle), EK, MicroTpm().public, NOW)


def broken_chains(ours: Authority) -> dict[str, tuple[list[bytes], str]]:
    public, other = KEY.public_key(), Authority()
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    by_middle = {"issuer": "middle", "by": ours.middle_key, "ca": False}
    good = ours.certify("", public, **by_middle)
    leaf = ours.certify("leaf", leaf_key.public_key(), **by_middle)
    return {
        "other CA": (der(other.certify("", public, "middle", other.middle_key, ca=False), other.middle),
                      "no CA of the policy"),
        "self-signed": (der(ours.certify("root", public, "root", KEY, ca=False)), "signed by itself"),
        "no intermediate": (der(good), "no CA of the policy"),
        "other intermediate": (der(good, other.middle), "chain is broken"),
        "expired": (der(ours.certify("", public, **by_middle, start=NOW - 9 * DAY, days=8), ours.middle),
                      "expired on 2026-"),
        "not yet valid": (der(ours.certify("", public, **by_middle, start=NOW + DAY), ours.middle),
                      "not valid before 2026-"),
        "EK as CA": (der(ours.certify("", public, "middle", ours.middle_key, ca=True), ours.middle), "is one of a CA"),
        "issued by a leaf": (
            der(ours.certify("", public, "leaf", leaf_key, ca=False), leaf, ours.middle), "CN=leaf is not one of a CA",
        ),
        "no certificate": ([b"junk"], "chain is broken"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "what",
    ["other CA", "self-signed", "no intermediate", "other intermediate", "expired", "not yet valid", "EK as CA",
     "issued by a leaf", "no certificate"],
)  # fmt: skip
def test_certificate_that_does_not_hold_is_refused_for_its_reason(authority, of_authority, what):
    chain, reason = broken_chains(authority)[what]
    with pytest.raises(EvidenceError, match=reason):
        of_authority.challenge(chain, EK, MicroTpm().public, NOW)
    with pytest.raises(AttestationError, match=r"no challenge waits|EK certificate"):
        of_authority.enrol(chain[0], MicroTpm().public, SECRET)


def test_new_certificate_for_an_ek_does_not_free_it_for_another_ak(authority, of_authority):
    """The binding is to the EK itself, not to a certificate of it."""
    first, second = (
        der(authority.certify("", KEY.public_key(), "middle", authority.middle_key, ca=False), authority.middle)
        for _ in range(2)
    )
    ak = MicroTpm().public
    of_authority.challenge(first, EK, ak, NOW)
    of_authority.enrol(first[0], ak, of_authority._pending.copy().popitem()[1].secret)
    with pytest.raises(AttestationError, match="bound to another AK already"):
        of_authority.challenge(second, EK, MicroTpm().public, NOW)
