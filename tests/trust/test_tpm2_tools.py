"""Both directions: tpm2-tools accept the µTPM's quotes and refuse altered ones; swtpm's quotes pass our verifier.

Needs swtpm and tpm2-tools: ``apt-get install -y --no-install-recommends swtpm tpm2-tools``.
"""

import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest

from quoreduce.errors import EvidenceError
from quoreduce.trust import eventlog, pcr, wire
from quoreduce.trust.signatures import load_pem, verify
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import PcrSelection, Public, Quote, Signature

PROGRAMS = ("swtpm", "tpm2_checkquote", "tpm2_print")
MISSING = [program for program in PROGRAMS if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (apt-get install swtpm tpm2-tools)"
)

TIMEOUT_S = 30
NONCE = sha256(b"nonce").digest()
PCRS = (0, 1, 16)
SCHEMES = ("ecdsa", "rsassa")
KEYS = ("ak.pem", "ak.tss")
PRIMARY_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"


def tool(*command: object, cwd: Path, tcti: str = "none", good: bool = True) -> str:
    """Run a program of tpm2-tools; fail if its exit code is not that of success."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**os.environ, "TPM2TOOLS_TCTI": tcti}, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode == 0) == good, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


EVENTS = [eventlog.Event.of(number, b"event %d" % at) for at, number in enumerate((0, 16, 16, 1, 16))]


class Files(NamedTuple):
    """What ``tpm2_quote`` would have written, of a µTPM."""

    contents: dict[str, bytes]
    tpm: MicroTpm


@pytest.fixture(scope="module", params=SCHEMES)
def files(request) -> Files:
    tpm = MicroTpm(request.param)
    for event in EVENTS:
        tpm.extend(event.pcr, event.digest)
    quoted = tpm.quote(PCRS, NONCE)
    contents = {
        "ak.pem": tpm.public.pem(),
        "ak.tss": wire.sized(tpm.public.encode()),
        "quote.msg": quoted.message,
        "quote.sig": quoted.signature,
        "quote.pcrs": wire.encode_pcrs_file(PcrSelection.sha256(*PCRS), quoted.values),
        "eventlog.bin": eventlog.encode_binary(EVENTS),
    }
    return Files(contents, tpm)


def checkquote(
    folder: Path,
    files: Files,
    *more: str,
    key: str = "ak.tss",
    nonce: bytes = NONCE,
    good: bool = True,
    **altered: bytes,
) -> str:
    for name, data in (files.contents | {f"quote.{kind}": data for kind, data in altered.items()}).items():
        (folder / name).write_bytes(data)
    return tool(
        "tpm2_checkquote", "-u", key, "-m", "quote.msg", "-s", "quote.sig", "-f", "quote.pcrs", "-g", "sha256", "-q",
        nonce.hex(),
        *more, cwd=folder, good=good,
    )  # fmt: skip


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("key", KEYS)
def test_checkquote_accepts(files, key, tmp_path):
    said = checkquote(tmp_path, files, key=key)
    for value in files.tpm.read(PCRS).values():
        assert value.hex().upper() in said


@pytest.mark.parametrize("key", KEYS)
def test_checkquote_accepts_with_the_event_log(files, key, tmp_path):
    checkquote(tmp_path, files, "-e", "eventlog.bin", key=key)


@pytest.mark.parametrize("pcrs", [(), (16,), tuple(range(8)), tuple(range(9)), tuple(range(24))])
def test_checkquote_accepts_any_number_of_pcrs(files, pcrs, tmp_path):
    quoted = files.tpm.quote(pcrs, NONCE)
    values = wire.encode_pcrs_file(PcrSelection.sha256(*pcrs), quoted.values)
    checkquote(tmp_path, files, msg=quoted.message, sig=quoted.signature, pcrs=values)


@pytest.mark.parametrize("size", [1, 20, 64])
def test_checkquote_accepts_nonces_up_to_64_bytes(files, size, tmp_path):
    nonce = bytes(range(size))
    quoted = files.tpm.quote(PCRS, nonce)
    checkquote(tmp_path, files, nonce=nonce, msg=quoted.message, sig=quoted.signature)


MESSAGE_BYTES = range(0, 145, 9)  # of all fields


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("byte", MESSAGE_BYTES)
def test_checkquote_refuses_a_message_with_one_bit_changed(files, key, byte, tmp_path):
    checkquote(tmp_path, files, key=key, good=False, msg=flipped(files.contents["quote.msg"], 8 * byte + byte % 8))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("byte", range(6, 262, 16))
def test_checkquote_refuses_a_signature_with_one_bit_changed(files, key, byte, tmp_path):
    signature = files.contents["quote.sig"]
    checkquote(tmp_path, files, key=key, good=False, sig=flipped(signature, 8 * (byte % len(signature)) + byte % 8))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("place", range(len(PCRS)))
@pytest.mark.parametrize("bit", [0, 100, 255])
def test_checkquote_refuses_pcr_values_with_one_bit_changed(files, key, place, bit, tmp_path):
    at = 4 + 16 * 8 + 4 + 4 + place * 66 + 2  # selection, count of lists, count of digests, digests
    changed = flipped(files.contents["quote.pcrs"], 8 * at + bit)
    assert wire.decode_pcrs_file(changed) != wire.decode_pcrs_file(files.contents["quote.pcrs"])
    said = checkquote(tmp_path, files, key=key, good=False, pcrs=changed)
    assert "PCR values failed to match quote's digest" in said


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("bit", [0, 7, 100, 255])
def test_checkquote_refuses_another_nonce(files, key, bit, tmp_path):
    said = checkquote(tmp_path, files, key=key, good=False, nonce=flipped(NONCE, bit))
    assert "Error validating nonce from quote" in said


def test_checkquote_refuses_another_key(files, tmp_path):
    other = Files(files.contents | {"ak.tss": wire.sized(MicroTpm().public.encode())}, files.tpm)
    assert "Verify signature failed" in checkquote(tmp_path, other, good=False)


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_checkquote_refuses_a_log_without_one_of_its_events(files, number, tmp_path):
    log = eventlog.encode_binary(EVENTS[:number] + EVENTS[number + 1 :])
    changed = Files(files.contents | {"eventlog.bin": log}, files.tpm)
    said = checkquote(tmp_path, changed, "-e", "eventlog.bin", good=False)
    assert "Eventlog and quote PCR mismatch" in said


def test_checkquote_refuses_a_log_with_one_bit_of_a_digest_changed(files, tmp_path):
    log = files.contents["eventlog.bin"]
    changed = Files(files.contents | {"eventlog.bin": flipped(log, 8 * log.index(EVENTS[2].digest))}, files.tpm)
    checkquote(tmp_path, changed, "-e", "eventlog.bin", good=False)


def test_quote_that_tpm2_print_reads_says_what_was_signed(files, tmp_path):
    (tmp_path / "quote.msg").write_bytes(files.contents["quote.msg"])
    quote = Quote.decode(files.contents["quote.msg"])
    said = tool("tpm2_print", "-t", "TPMS_ATTEST", "quote.msg", cwd=tmp_path)
    for part in ("ff544347", "type: 8018", NONCE.hex(), quote.signer.hex(), quote.pcr_digest.hex(), "sha256", "030001"):
        assert part in said, said


def test_public_area_that_tpm2_print_reads_says_what_the_key_is_for(files, tmp_path):
    (tmp_path / "ak.tss").write_bytes(files.contents["ak.tss"])
    said = tool("tpm2_print", "-t", "TPM2B_PUBLIC", "ak.tss", cwd=tmp_path)
    ecc = files.tpm.public.kind == wire.ALG_ECC
    for part in (
        PRIMARY_ATTRIBUTES,
        f"value: {'ecdsa' if ecc else 'rsassa'}",
        *(one.hex() for one in files.tpm.public.unique),
    ):
        assert part in said, said
    assert (
        tool("tpm2_print", "-t", "TPM2B_PUBLIC", "-f", "pem", "ak.tss", cwd=tmp_path).encode() == files.tpm.public.pem()
    )


class Swtpm(NamedTuple):
    """A running swtpm, tpm2-tools on it (in its folder), and commands as bytes."""

    folder: Path
    run: Callable[..., str]
    send: Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def swtpm() -> Iterator[Swtpm]:
    """swtpm on two Unix sockets that listen before it starts, so that nobody waits for it."""
    with tempfile.TemporaryDirectory(prefix="swtpm-") as name:
        folder = Path(name)
        sockets = [listening(folder / "sock"), listening(folder / "sock.ctrl")]
        server, control = (one.fileno() for one in sockets)
        process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--server", f"type=unixio,fd={server}",
             "--ctrl", f"type=unixio,fd={control}", "--flags", "not-need-init,startup-clear"],
            pass_fds=(server, control), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for one in sockets:
            one.close()

        def run(*command: object) -> str:
            said = tool(*command, cwd=folder, tcti=f"swtpm:path={folder / 'sock'}")
            tool("tpm2_flushcontext", "-t", cwd=folder, tcti=f"swtpm:path={folder / 'sock'}")
            return said

        def send(command: bytes) -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT_S)
                connection.connect(str(folder / "sock"))
                connection.sendall(command)
                return connection.recv(4096)

        try:
            yield Swtpm(folder, run, send)
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def listening(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.bind(str(path))
    one.listen()
    return one


class SwtpmQuote(NamedTuple):
    """A quote that tpm2_quote wrote, its key, and the qualified name of the EK above it."""

    public: Public
    pem: bytes
    name: bytes
    parent: bytes
    message: bytes
    signature: bytes
    pcrs: bytes


MADE = {  # how a key is made: an AK below an EK as tpm2-tools make it, or a primary key as the µTPM's
    "ecc ak": ("tpm2_createak", "-C", "ek.ctx", "-G", "ecc", "-s", "ecdsa", "-g", "sha256"),
    "rsa ak": ("tpm2_createak", "-C", "ek.ctx", "-G", "rsa", "-s", "rsassa", "-g", "sha256"),
    "ecc primary": ("tpm2_createprimary", "-C", "e", "-G", "ecc256:ecdsa-sha256:null"),
    "rsa primary": ("tpm2_createprimary", "-C", "e", "-G", "rsa2048:rsassa-sha256:null"),
}


@pytest.fixture(scope="module", params=MADE)
def from_swtpm(request, swtpm) -> SwtpmQuote:
    if not (swtpm.folder / "ek.ctx").exists():
        swtpm.run("tpm2_createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.tss")
        swtpm.run(
            "tpm2_pcrextend", f"0:sha256={sha256(b'code').hexdigest()}", f"16:sha256={sha256(b'task').hexdigest()}"
        )
    if request.param.endswith("ak"):
        swtpm.run(*MADE[request.param], "-c", "ak.ctx")
        parent = Public.decode_sized((swtpm.folder / "ek.tss").read_bytes()).qualified_name()
    else:
        swtpm.run(*MADE[request.param], "-a", PRIMARY_ATTRIBUTES, "-c", "ak.ctx")
        parent = wire.RH_ENDORSEMENT.to_bytes(4, "big")
    swtpm.run("tpm2_readpublic", "-c", "ak.ctx", "-f", "tss", "-o", "ak.tss", "-n", "ak.name")
    swtpm.run("tpm2_readpublic", "-c", "ak.ctx", "-f", "pem", "-o", "ak.pem")
    swtpm.run(
        "tpm2_quote", "-c", "ak.ctx", "-l", "sha256:0,1,16", "-q", NONCE.hex(), "-g", "sha256",
        "-m", "quote.msg", "-s", "quote.sig", "-o", "quote.pcrs",
    )  # fmt: skip
    pem, name, message, signature, pcrs = (
        (swtpm.folder / one).read_bytes() for one in ("ak.pem", "ak.name", "quote.msg", "quote.sig", "quote.pcrs")
    )
    public = Public.decode_sized((swtpm.folder / "ak.tss").read_bytes())
    return SwtpmQuote(public, pem, name, parent, message, signature, pcrs)


def test_quote_of_swtpm_passes_our_verifier(from_swtpm):
    for key in (from_swtpm.public, load_pem(from_swtpm.pem)):
        verify(key, from_swtpm.message, Signature.decode(from_swtpm.signature))
    quote = Quote.decode(from_swtpm.message)
    selection, values = wire.decode_pcrs_file(from_swtpm.pcrs)
    assert quote.selection == selection == PcrSelection.sha256(*PCRS)
    assert quote.pcr_digest == wire.pcr_digest(list(values.values()))
    assert quote.extra == NONCE
    assert quote.signer == from_swtpm.public.qualified_name(from_swtpm.parent)
    assert values[wire.ALG_SHA256, 16] == pcr.extended(bytes(32), sha256(b"task").digest())


def test_structures_of_swtpm_are_read_and_written_to_the_byte(from_swtpm):
    public = from_swtpm.public
    assert Quote.decode(from_swtpm.message).encode() == from_swtpm.message
    assert Signature.decode(from_swtpm.signature).encode() == from_swtpm.signature
    assert public.is_restricted_signing
    assert public.name() == from_swtpm.name
    assert public.pem() == from_swtpm.pem
    selection, values = wire.decode_pcrs_file(from_swtpm.pcrs)
    assert wire.encode_pcrs_file(selection, {number: value for (_, number), value in values.items()}) == from_swtpm.pcrs


def test_quote_of_swtpm_with_any_bit_of_its_message_changed_is_refused(from_swtpm):
    signature, key = Signature.decode(from_swtpm.signature), from_swtpm.public.key()
    for bit in range(8 * len(from_swtpm.message)):
        with pytest.raises(EvidenceError, match="not one of this message"):
            verify(key, flipped(from_swtpm.message, bit), signature)


def test_quote_of_swtpm_with_any_bit_of_its_signature_changed_is_refused(from_swtpm):
    key = from_swtpm.public.key()
    for bit in range(8 * len(from_swtpm.signature)):
        with pytest.raises(EvidenceError):
            verify(key, from_swtpm.message, Signature.decode(flipped(from_swtpm.signature, bit)))


def test_key_of_the_utpm_has_the_same_public_area_as_one_of_swtpm(from_swtpm):
    """But for the key itself: so that whoever handles a TPM's key handles the µTPM's."""
    if from_swtpm.parent == wire.RH_ENDORSEMENT.to_bytes(4, "big"):
        ours = MicroTpm("ecdsa" if from_swtpm.public.kind == wire.ALG_ECC else "rsassa").public
        assert replace(ours, unique=from_swtpm.public.unique) == from_swtpm.public


def test_pcr_attributes_are_those_of_swtpm(swtpm):
    """TPM2_GetCapability(TPM_CAP_PCR_PROPERTIES) (Part 2, 6.12, TPM_PT_PCR): a bitmap of PCRs for each property."""
    answer = swtpm.send(struct.pack(">HIIIII", 0x8001, 22, 0x17A, 7, 0, 64))
    reader = wire.TpmReader(answer[10:])
    assert answer[6:10] == bytes(4)
    assert (reader.u8(), reader.u32()) == (0, 7)  # no more data; PCR properties
    properties = {}
    for _ in range(reader.u32()):
        tag = reader.u32()
        properties[tag] = int.from_bytes(reader.take(reader.u8()), "little")
    for locality in range(5):
        extend, reset = properties[1 + 2 * locality], properties[2 + 2 * locality]
        for number, attributes in enumerate(pcr.PC_CLIENT):
            assert (extend >> number & 1, reset >> number & 1) == (
                attributes.extend >> locality & 1, attributes.reset >> locality & 1,
            ), f"PCR {number}, locality {locality}"  # fmt: skip
    assert [number for number in range(24) if properties[0x12] >> number & 1] == list(pcr.DYNAMIC)
