"""A TPM behind the TCG's software stack, here swtpm on sockets; the contract that it keeps is in test_port.py."""

from __future__ import annotations

import os
import signal
import struct
import sys
from hashlib import sha256

import pytest

from quoreduce.errors import AttestationError, HostError, UsageError
from quoreduce.trust import commands
from quoreduce.trust.device import DEVICE, DeviceTpm
from quoreduce.trust.swtpm import Swtpm
from quoreduce.trust.tpm2 import certifies

TRANSIENT = 0x80000000


@pytest.fixture
def tcti(listening):
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed (pip install 'quoreduce[tpm]')")
    return listening[0]


def transient_handles(tpm) -> list[int]:
    command = commands.build("GetCapability", parameters=struct.pack(">III", 1, TRANSIENT, 254))
    return commands.read_handles(tpm._send(command).parameters)


@pytest.mark.parametrize("ek", ["ecc", "rsa"])
def test_device_finds_the_endorsement_key_and_its_certificate(tcti, ek):
    with DeviceTpm(tcti, ek=ek) as tpm:
        assert certifies(tpm.ek_certificate, tpm.ek_public)


def test_device_has_the_key_that_the_same_tpm_has_without_the_stack(made, tcti):
    with DeviceTpm(tcti) as tpm, Swtpm(made.state) as same:
        assert tpm.public == same.public


def test_close_leaves_nothing_in_the_tpm(tcti):
    tpm = DeviceTpm(tcti)
    tpm.unseal(tpm.seal(b"secret", [16]))
    with pytest.raises(AttestationError):
        tpm.activate(bytes(66), bytes(102))
    assert len(transient_handles(tpm)) == 1
    tpm.close()
    with DeviceTpm(tcti) as again:
        assert len(transient_handles(again)) == 1


def test_device_cannot_touch_what_a_launch_measures(tcti):
    with DeviceTpm(tcti) as tpm:
        for pcr in (17, 18, 19):
            with pytest.raises(AttestationError, match="TPM_RC_LOCALITY"):
                tpm.extend(pcr, sha256(b"").digest())


def test_device_that_hangs_is_a_host_error_in_time(listening, tcti):
    tpm = DeviceTpm(tcti, timeout_s=5.0)
    tpm._timeout_s = 0.05
    os.kill(listening[1].pid, signal.SIGSTOP)
    with pytest.raises(HostError, match=r"did not answer within 0.05 s"):
        tpm.extend(16, bytes(32))
    with pytest.raises(HostError, match="is closed"):
        tpm.read([16])
    tpm.close()


def test_device_that_goes_away_is_a_host_error(listening, tcti):
    tpm = DeviceTpm(tcti, timeout_s=5.0)
    listening[1].kill()
    listening[1].wait()
    with pytest.raises(HostError, match="does not answer"):
        tpm.quote([16], b"")
    tpm.close()


@pytest.mark.parametrize("name", ["device:/dev/no-such-tpm", "swtpm:path=/no/such/socket", "no-such-transport:x"])
def test_device_that_is_not_there_is_a_host_error(tcti, name, capfd):
    with pytest.raises(HostError, match=f"^no TPM at {name}: "):
        DeviceTpm(name)
    assert capfd.readouterr().err == ""  # the stack itself would say it in five lines


def test_default_device_is_the_kernels_resource_manager():
    assert DEVICE == "device:/dev/tpmrm0"


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(HostError, match=r"pip install 'quoreduce\[tpm\]'"):
        DeviceTpm()


def test_unknown_algorithm_is_the_callers_error():
    with pytest.raises(UsageError, match="unknown signature scheme 'sm2': choose one of ecdsa, rsassa"):
        DeviceTpm(scheme="sm2")
