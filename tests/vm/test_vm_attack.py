"""The insider's attack finds the guest's key in the open, and not where we stand before it; what it finds is a key."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from running import folder_in_memory, require_programs

from quoreduce.errors import VmError
from quoreduce.vm import attack
from quoreduce.vm.bundle import Bundle


def der(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def modulus(key: rsa.RSAPrivateKey) -> str:
    n = key.public_key().public_numbers().n
    return hashlib.sha256(n.to_bytes((n.bit_length() + 7) // 8, "big")).hexdigest()


@pytest.mark.nightly  # its parts are tested one by one
def test_the_attack_succeeds_in_the_open_and_only_there(image: Path, planted: rsa.RSAPrivateKey) -> None:
    require_programs()
    with folder_in_memory() as folder:
        findings = attack.campaign(Bundle.decode(image.read_bytes()), folder)
    assert [(one.way, one.setting, one.found) for one in findings] == [
        ("image", "nothing", True), ("image", "sealing", False),
        ("memory", "nothing", True), ("memory", "the broker", False),
        ("wire", "nothing", True), ("wire", "sealing", False),
    ]  # fmt: skip
    got = {(one.way, one.setting): one for one in findings}
    for one in findings:
        assert (modulus(planted) in {key.modulus for key in one.keys}) == one.found
        assert one.found == any(
            line.startswith("FOUND the guest's RSA-2048 private key at byte ") for line in one.evidence
        )
    assert got["memory", "nothing"].searched > 128 << 20
    refused = got["memory", "the broker"]
    assert refused.searched == 0
    assert refused.evidence[0].startswith(
        "dump-guest-memory: CommandNotAllowed: dump-guest-memory is not what the manager"
    )
    assert refused.evidence[1] == "no dump was written"
    assert got["wire", "sealing"].searched > 1 << 20


def test_keys_are_found_by_what_they_are() -> None:
    one, other = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(3, 1024)
    data = b"\x30\x82" * 99 + der(one) + bytes(777) + der(other) + b"\x30\x82\x04\xa4\x02\x01\x00\x02\x82"
    found = attack.find_keys(data)
    assert [(key.offset, key.bits) for key in found] == [(198, 2048), (198 + len(der(one)) + 777, 1024)]
    assert [key.modulus for key in found] == [modulus(one), modulus(other)]


def test_a_key_with_one_bit_wrong_in_its_numbers_is_none() -> None:
    key = der(rsa.generate_private_key(65537, 1024))
    numbers = len(key) * 4 // 9  # version, n, e, d: from there on p and q
    for at in (20, len(key) // 3, numbers + 40, numbers + 100):
        assert attack.find_keys(key[:at] + bytes([key[at] ^ 1]) + key[at + 1 :]) == []
    assert attack.find_keys(key[:-1]) == []
    assert attack.find_keys(b"\x30\x82\x00\x09\x02\x01\x00\x02\x81\x00" + bytes(9)) == []


def test_compressed_images_are_unpacked() -> None:
    import gzip

    key = rsa.generate_private_key(65537, 2048)
    bundle = Bundle(b"kernel", gzip.compress(b"archive" + der(key)), "")
    assert attack.planted(bundle) == {modulus(key)}
    with pytest.raises(VmError, match=r"holds no RSA key .* --plant KEY"):
        attack.planted(Bundle(b"kernel", der(key)[:-1], ""))
