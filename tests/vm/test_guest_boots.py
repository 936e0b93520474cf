"""The guest: boots under plain QEMU, answers on its console, and holds the planted key in its memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from plain_guest import PlainGuest

from quoreduce.errors import VmError
from quoreduce.vm.bundle import Bundle

SECRET = "spoken to the guest only 0123456789"


@pytest.mark.slow
def test_a_guest_answers_and_holds_its_key(image: Path, planted: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    with PlainGuest(Bundle.decode(image.read_bytes()), tmp_path) as guest:
        guest.wait("GUEST-READY")
        first = int(guest.ask("TICK", "tick ").split()[1])
        assert guest.ask("SHOW", "HELD") == "HELD"
        assert guest.ask(f"SECRET {SECRET}", "STORED") == "STORED"
        assert guest.ask("SHOW", "HELD") == f"HELD {SECRET}"
        assert guest.ask("DISK", "DISK") == f"DISK {SECRET}"
        assert guest.disk.read_bytes().startswith(SECRET.encode() + b"\n")
        assert guest.ask("SECRET another", "STORED")
        guest.disk.write_bytes(b"from outside\n".ljust(guest.disk.stat().st_size, b"\0"))
        assert guest.ask("DISK", "DISK") == "DISK from outside"  # not from a cache
        assert guest.ask("SHOW", "HELD") == "HELD another"
        pcr = guest.ask("PCR", "PCR10")
        assert re.fullmatch(r"PCR10 [0-9A-F]{64}", pcr)
        assert pcr != "PCR10 " + "0" * 64
        assert guest.ask("what", "UNKNOWN") == "UNKNOWN what"
        later = int(guest.ask("TICKS", "tick ").split()[1])  # comes by itself
        assert guest.wait("tick ") == f"tick {later + 10}"
        assert later > first
        assert guest.ask("PCR", "PCR10") == pcr  # nothing was measured since
        memory = guest.memory.read_bytes()
        _found(guest.memory, planted)
    assert planted.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()) in memory
    assert b"another" in memory


def _found(memory: Path, key: rsa.RSAPrivateKey) -> None:
    """rsakeyfind, which knows nothing of ours, finds the key."""
    if shutil.which("rsakeyfind") is None:
        pytest.skip("rsakeyfind is not installed (apt-get install rsakeyfind)")
    said = subprocess.run(["rsakeyfind", str(memory)], capture_output=True, text=True, timeout=120).stdout
    assert "FOUND PRIVATE KEY" in said
    numbers = key.private_numbers()
    assert f"{numbers.p:x}" in re.sub(r"[^0-9a-f]", "", said.lower())


@pytest.mark.slow
def test_two_boots_differ_in_pcr_10_and_without_a_vtpm_there_is_none(tmp_path: Path) -> None:
    from quoreduce.vm.image import build

    try:
        bundle = Bundle.decode(build(tmp_path / "image").path.read_bytes())
    except VmError as error:
        pytest.skip(str(error))
    pcrs = []
    for number, tpm in enumerate((True, True, False)):
        (tmp_path / str(number)).mkdir()
        with PlainGuest(bundle, tmp_path / str(number), tpm=tpm) as guest:
            guest.wait("GUEST-READY")
            pcrs.append(guest.ask("PCR", "PCR10"))
    assert pcrs[0] != pcrs[1]
    assert pcrs[2] == "PCR10 none"
