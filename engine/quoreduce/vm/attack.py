"""The attack of an insider who controls the manager: it takes an RSA key out of a guest, without protection and with.

Three ways, each twice: the guest's memory through QMP (``dump-guest-memory``), the image at rest, a migration on the
wire. The bytes are searched for RSA private keys in the way of ``rsakeyfind``: DER ``RSAPrivateKey`` (RFC 8017, A.1.2)
whose numbers agree, from which the whole key can be taken. Then the modulus shows whether one is the guest's: a
kernel holds test keys as well. Finding nothing means something only if the same search finds the key elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import secrets
import shutil
import socket
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quoreduce.errors import VmError
from quoreduce.files import mark
from quoreduce.vm import kvm, machine, processes
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.hypervisor import Guest, tpm_line
from quoreduce.vm.ports import VmSpec
from quoreduce.vm.processes import Process
from quoreduce.vm.qmp import Qmp, QmpRefused, listen, short
from quoreduce.vm.scrub import scrub
from quoreduce.vm.sealing import KEY_BYTES, StreamSealer
from quoreduce.vm.serial import Serial
from quoreduce.vm.wire import CHUNK_BYTES

READY: Final = "GUEST-READY"
BOOT_S: Final = 120.0
DUMP_S: Final = 120.0
WIRE_S: Final = 60.0
SEARCH_S: Final = 300.0
UNPACKED_BYTES_MAX: Final = 1 << 30
KEY_BYTES_MAX: Final = 20_000  # of a DER key of 16,384 bits
_BEGINS: Final = re.compile(rb"\x30\x82..\x02\x01\x00\x02[\x81\x82]", re.DOTALL)  # SEQUENCE, version 0, a long INTEGER
_NUMBERS: Final = 9  # version, n, e, d, p, q, d mod (p-1), d mod (q-1), q^-1 mod p


@dataclass(frozen=True, slots=True)
class RsaKey:
    """A private key that was found: where, its bits, and SHA-256 (hex) of its modulus, big-endian."""

    offset: int
    bits: int
    modulus: str


@dataclass(frozen=True, slots=True)
class AttackFinding:
    """What an attack got.

    Attributes:
        way: memory, image or wire.
        setting: the protection: nothing, the broker, or sealing.
        found: whether the guest's private key was found.
        searched: bytes that were obtained and searched.
        evidence: what was seen, in lines.
        keys: all RSA private keys that were found, test keys of the kernel's too.
    """

    way: str
    setting: str
    found: bool
    searched: int
    evidence: tuple[str, ...]
    keys: tuple[RsaKey, ...] = ()


def find_keys(data: bytes | mmap.mmap) -> list[RsaKey]:
    """Find RSA private keys in DER; only those whose numbers agree: n = p q, and e d = 1 modulo p - 1 and q - 1."""
    found = []
    for begin in _BEGINS.finditer(data):
        at = begin.start()
        numbers = _integers(data[at : at + KEY_BYTES_MAX])
        if numbers is not None and _agree(*numbers[1:6]):
            n = numbers[1]
            modulus = hashlib.sha256(n.to_bytes((n.bit_length() + 7) // 8, "big")).hexdigest()
            found.append(RsaKey(at, n.bit_length(), modulus))
    return found


def _integers(der: bytes) -> list[int] | None:
    """Read a DER sequence of nine INTEGERs; None if malformed."""
    end, at = 4 + int.from_bytes(der[2:4], "big"), 4
    numbers: list[int] = []
    while at < end and len(numbers) < _NUMBERS:
        if der[at : at + 1] != b"\x02":
            return None
        size, at = der[at + 1 : at + 2], at + 2
        length = size[0] if size else 0
        if length & 0x80:
            more = length & 0x7F
            length, at = int.from_bytes(der[at : at + more], "big"), at + more
        if not 0 < length <= end - at or end > len(der):
            return None
        numbers.append(int.from_bytes(der[at : at + length], "big", signed=True))
        at += length
    return numbers if at == end and len(numbers) == _NUMBERS else None


def _agree(n: int, e: int, d: int, p: int, q: int) -> bool:
    return min(p, q) > 2 and n == p * q and e * d % (p - 1) == 1 and e * d % (q - 1) == 1


def planted(bundle: Bundle) -> frozenset[str]:
    """The moduli (SHA-256, hex) of the keys in an image's initrd. Raises VmError if there is none."""
    moduli = frozenset(key.modulus for part in (bundle.initrd, *_unpacked(bundle.initrd)) for key in find_keys(part))
    if not moduli:
        raise VmError("the image holds no RSA key that could be found: make one with `quoreduce vm image --plant KEY`")
    return moduli


def search(path: Path, way: str, setting: str, secret: frozenset[str], *before: str) -> AttackFinding:
    """Search a file that an insider obtained, also with ``rsakeyfind`` if installed; ``secret``: the wanted moduli."""
    size = path.stat().st_size
    keys: list[RsaKey] = []
    if size:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            keys = find_keys(data)
    hits = [key for key in keys if key.modulus in secret]
    said = [
        f"FOUND the guest's RSA-{key.bits} private key at byte {key.offset:,}: modulus {key.modulus[:16]}..."
        for key in hits
    ]
    said = said or [f"the guest's private key is not in these {size:,} bytes"]
    if others := {key.modulus for key in keys} - secret:
        said.append(f"other RSA private keys there: {len(others)} (the kernel's test vectors, for one)")
    theirs = _rsakeyfind(path, secret) if size else None
    if theirs is not None:
        said.append(
            f"rsakeyfind: the guest's private key {f'found {theirs.count(True)} times' if any(theirs) else 'not found'}"
        )
    return AttackFinding(way, setting, bool(hits) or any(theirs or ()), size, (*before, *said), tuple(keys))


def _rsakeyfind(path: Path, secret: frozenset[str]) -> list[bool] | None:
    """Ask rsakeyfind: for each private key that it finds, whether it is one of these; None if it is not installed."""
    if shutil.which("rsakeyfind") is None:
        return None
    try:
        done = subprocess.run(
            ["rsakeyfind", path], stdin=subprocess.DEVNULL, capture_output=True, timeout=SEARCH_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise VmError(f"rsakeyfind did not end within {SEARCH_S:g} s") from error
    moduli = re.findall(rb"modulus =\s*((?:[0-9a-f]{2}\s+)+)", done.stdout)
    return [hashlib.sha256(bytes.fromhex(modulus.decode()).lstrip(b"\0")).hexdigest() in secret for modulus in moduli]


def dump_memory(qmp: Path, target: Path, setting: str, secret: frozenset[str]) -> AttackFinding:
    """Ask a QMP socket for the guest's memory, as an insider does who can reach it; search the result.

    Args:
        qmp: QEMU's own socket, or a broker's.
        target: the file to be written.
    """
    insider = Qmp(qmp)
    try:
        insider.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{target}"}, timeout_s=DUMP_S)
        said = f"dump-guest-memory: done, {target.stat().st_size:,} bytes"
    except QmpRefused as refusal:
        said = f"dump-guest-memory: {refusal.kind}: {refusal.reason}"
    finally:
        insider.close()
    if not target.exists():
        return AttackFinding("memory", setting, False, 0, (said, "no dump was written"))
    return search(target, "memory", setting, secret, said)


def read_image(data: bytes, target: Path, setting: str, secret: frozenset[str]) -> AttackFinding:
    """Search an image as it lies in the manager's store; gzip parts of it are unpacked first."""
    with open(target, "wb") as file:
        file.write(data)
        for part in _unpacked(data):
            file.write(part)
    return search(target, "image", setting, secret, f"{len(data):,} bytes at rest")


def _unpacked(data: bytes) -> Iterator[bytes]:
    """The gzip members in some bytes, unpacked; together at most UNPACKED_BYTES_MAX."""
    left = UNPACKED_BYTES_MAX
    for begin in re.finditer(rb"\x1f\x8b\x08", data):
        member = zlib.decompressobj(wbits=31)
        with contextlib.suppress(zlib.error):
            part = member.decompress(data[begin.start() :], left)
            left -= len(part)
            yield part
        if left <= 0:
            return


def sealed(data: bytes) -> bytes:
    """Bytes as a relay or a store sees them: sealed in chunks under a key that is forgotten."""
    sealer = StreamSealer(secrets.token_bytes(KEY_BYTES), b"quoreduce vm attack")
    starts = range(0, len(data), CHUNK_BYTES)
    return b"".join(sealer.chunk(data[at : at + CHUNK_BYTES], at + CHUNK_BYTES >= len(data)) for at in starts)


def tap_plain(qmp: Path, target: Path, secret: frozenset[str]) -> AttackFinding:
    """Have QEMU migrate a guest as it does without us, and search what passes on the wire."""
    where = target.parent / "wire.sock"
    with listen(where) as server, open(target, "wb") as file, short(where) as address:
        server.settimeout(WIRE_S)
        insider = Qmp(qmp)
        try:
            insider.execute("migrate", {"uri": f"unix:{address if len(os.fsencode(where)) > 107 else where}"})
            wire, _ = server.accept()
            with wire:
                wire.settimeout(WIRE_S)
                while piece := wire.recv(CHUNK_BYTES):
                    file.write(piece)
        except (TimeoutError, ConnectionError) as error:
            raise VmError(f"QEMU did not migrate its guest: {error}") from error
        finally:
            insider.close()
    return search(target, "wire", "nothing", secret, "QEMU's own migration, read on the wire")


def tap_sealed(guest: Guest, target: Path, secret: frozenset[str]) -> AttackFinding:
    """Let a guest's state leave as our migration does, and search what passes on the wire."""
    sealer = StreamSealer(secrets.token_bytes(KEY_BYTES), b"quoreduce vm attack")
    with open(target, "wb") as file:

        def wire(piece: bytes) -> None:
            file.write(sealer.chunk(piece, False))

        stats = guest.outgoing(wire)
        file.write(sealer.chunk(b"", True))
    said = f"the same, sealed: {stats.bytes:,} bytes of state in {target.stat().st_size:,} on the wire"
    return search(target, "wire", "sealing", secret, said)


class OpenGuest:
    """A guest without our protection: the same machine, but its kernel and initrd are files, and QMP is open.

    It is also the plain start with which ours is compared: nothing is attested, sealed or checked.

    Args:
        folder: empty or missing; on any file system.
    """

    def __init__(self, folder: Path, spec: VmSpec, bundle: Bundle, accel: str | None = None) -> None:
        accel = kvm.choose(accel)
        qemu, swtpm = processes.program("qemu-system-x86_64"), processes.program("swtpm")
        (folder / "vtpm").mkdir(parents=True)
        mark(folder)
        (folder / "kernel").write_bytes(bundle.kernel)
        (folder / "initrd").write_bytes(bundle.initrd)
        (folder / "config").write_bytes(machine.config(bundle.cmdline))
        with open(folder / machine.DISK, "wb") as disk:
            disk.truncate(spec.disk_mb << 20)
        self.folder, self.qmp = folder, folder / "qmp.sock"
        self._processes: list[Process] = []
        try:
            self._start(qemu, swtpm, spec, bundle, accel)
            self.serial = Serial(folder / "serial.sock")
        except BaseException:
            self.quit()
            raise

    def _start(self, qemu: str, swtpm: str, spec: VmSpec, bundle: Bundle, accel: str) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, listen(self.qmp) as qmp, listen(self.folder / "serial.sock") as serial:
            tpm = processes.spawn(tpm_line(swtpm, theirs.fileno()), self.folder, "swtpm.log", (theirs.fileno(),))
            self._processes.append(tpm)
            line = machine.line(
                qemu, spec, accel, kernel="kernel", initrd="initrd", config="config", tpm=f"fd={ours.fileno()}",
                qmp=f"fd={qmp.fileno()},server=on,wait=off", serial=f"fd={serial.fileno()},server=on,wait=off",
            )  # fmt: skip
            fds = (qmp.fileno(), serial.fileno(), ours.fileno())
            self._processes.insert(0, processes.spawn(line, self.folder, "qemu.log", fds))

    def __enter__(self) -> OpenGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.quit()

    def quit(self) -> None:
        """End it; its files stay. May be called again."""
        for process in self._processes:
            process.end()
        with contextlib.suppress(AttributeError):
            self.serial.close()


def campaign(bundle: Bundle, folder: Path, spec: VmSpec | None = None, accel: str | None = None) -> list[AttackFinding]:
    """All attacks on guests of one image, each without protection and with it: six findings.

    Args:
        bundle: an image whose guest holds an RSA key (``quoreduce vm image --plant``).
        folder: missing; in memory (a dump has the size of the guest's memory); it is scrubbed afterwards.

    Raises:
        VmError: a guest does not start or boot.
    """
    spec = spec or VmSpec()
    secret, image = planted(bundle), bundle.encode()
    try:
        folder.mkdir(mode=0o700)
        mark(folder)
    except OSError as error:
        raise VmError(f"cannot attack guests in {folder}: {error.strerror or error}") from error
    try:
        found = [
            read_image(image, folder / "image", "nothing", secret),
            read_image(sealed(image), folder / "image", "sealing", secret),
        ]
        with OpenGuest(folder / "open", spec, bundle, accel) as bare:
            bare.serial.wait(READY, BOOT_S)
            found.append(dump_memory(bare.qmp, folder / "dump", "nothing", secret))
            (folder / "dump").unlink(missing_ok=True)
            found.append(tap_plain(bare.qmp, folder / "wire", secret))
        scrub(folder / "open")
        with Guest.start(folder / "guest", spec, bundle, accel=accel) as guest:
            guest.serial.wait(READY, BOOT_S)
            found.append(dump_memory(guest.broker_socket, folder / "dump", "the broker", secret))
            found.append(tap_sealed(guest, folder / "wire", secret))
    except OSError as error:
        raise VmError(f"cannot attack guests in {folder}: {error.strerror or error}") from error
    finally:
        scrub(folder)
    return sorted(found, key=lambda finding: (finding.way, finding.setting != "nothing"))
