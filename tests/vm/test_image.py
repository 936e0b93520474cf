"""The image builder: the same inputs make the same bytes; what is missing or wrong is one clear error, and nothing is
left.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from quoreduce.errors import InputError, OutputError, UsageError, VmError
from quoreduce.vm import cpio, kernel
from quoreduce.vm import image as builder
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.image import build, find_busybox, initramfs, is_static, pkcs1
from quoreduce.vm.kernel import given, kernel_version, load_order

STATIC = b"\x7fELF\x02\x01".ljust(32, b"\0") + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1) + bytes(6)
LOADED, INTERPRETED = struct.pack("<I", 1), struct.pack("<I", 3)


def der(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def bzimage(version: bytes = b"6.1.0-9-test (someone) #1") -> bytes:
    start = 0x300
    head = bytearray(start)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, start - 0x200)
    return bytes(head) + version + b"\0"


def module(depends: str) -> bytes:
    return b"\x7fELF" + bytes(60) + b"\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a kernel, modules in their folders, and a static busybox that comes first in the PATH."""
    drivers = tmp_path / "modules" / "kernel" / "drivers"
    (drivers / "deep").mkdir(parents=True)
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    (tmp_path / "modules" / "modules.builtin").write_text(
        "kernel/drivers/char/tpm/tpm_crb.ko\nkernel/drivers/virtio/virtio.ko\n"
    )
    (drivers / "virtio_blk.ko").write_bytes(module("virtio,virtio-ring"))
    (drivers / "virtio_pci.ko").write_bytes(module("virtio_ring,virtio"))
    (drivers / "deep" / "virtio_ring.ko.xz").write_bytes(lzma.compress(module("")))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "busybox").write_bytes(STATIC + LOADED + bytes(52))
    (tmp_path / "bin" / "busybox").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    return tmp_path


def made(files: Path, out: Path, plant: bytes | None = None) -> bytes:
    built = build(out, kernel=files / "vmlinuz", modules=files / "modules", plant=plant)
    data = out.read_bytes()
    assert (built.digest, built.bytes, built.kernel_version[:3]) == (Bundle.decode(data).digest, len(data), "6.1")
    return data


def test_the_same_inputs_make_the_same_bytes_whatever_the_folder_time_and_umask(
    files: Path, monkeypatch: pytest.MonkeyPatch, planted: rsa.RSAPrivateKey
) -> None:
    first = made(files, files / "one.image", der(planted))
    copy = shutil.copytree(files, files.parent / f"{files.name}-elsewhere", copy_function=shutil.copyfile)
    (copy / "bin" / "busybox").chmod(0o700)
    monkeypatch.setenv("PATH", f"{copy}/bin", prepend=os.pathsep)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    before = os.umask(0o077)
    try:
        assert made(copy, copy / "two.image", der(planted)) == first
    finally:
        os.umask(before)


def test_each_input_counts(files: Path, planted: rsa.RSAPrivateKey) -> None:
    seen = {made(files, files / "image"), made(files, files / "image", der(planted))}
    (files / "vmlinuz").write_bytes(bzimage(b"6.1.0-10-test"))
    seen.add(made(files, files / "image"))
    (files / "bin" / "busybox").write_bytes(STATIC + LOADED + bytes(53))
    seen.add(made(files, files / "image"))
    (files / "modules" / "kernel" / "drivers" / "virtio_blk.ko").write_bytes(module("") + b"x")
    seen.add(made(files, files / "image"))
    assert len(seen) == 5


def test_the_planted_key_is_in_the_image_for_which_it_was_given_only(files: Path, planted: rsa.RSAPrivateKey) -> None:
    assert der(planted) in made(files, files / "with.image", der(planted))
    without = made(files, files / "without.image")
    assert der(planted) not in without
    assert der(planted)[100:150] not in without


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_a_key_may_come_in_any_format(planted: rsa.RSAPrivateKey, encoding: Encoding, form: PrivateFormat) -> None:
    assert pkcs1(planted.private_bytes(encoding, form, NoEncryption())) == der(planted)


def test_what_is_no_rsa_key_is_not_planted(planted: rsa.RSAPrivateKey) -> None:
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    locked = planted.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    with pytest.raises(InputError, match="must be an RSA"):
        pkcs1(curve)
    for bad in (b"", b"hello", b"-----BEGIN", locked, der(planted)[:-1]):
        with pytest.raises(InputError, match="is no private key"):
            pkcs1(bad)


def test_a_key_that_no_page_holds_is_not_planted(monkeypatch: pytest.MonkeyPatch, planted: rsa.RSAPrivateKey) -> None:
    monkeypatch.setattr(builder, "KEY_BYTES_MAX", len(der(planted)))
    pkcs1(der(planted))
    monkeypatch.setattr(builder, "KEY_BYTES_MAX", len(der(planted)) - 1)
    with pytest.raises(InputError, match="2,048 to 4,096 bits"):
        pkcs1(der(planted))


def test_drivers_are_loaded_after_what_they_need_and_not_if_built_in(files: Path) -> None:
    assert [name for name, _ in load_order(files / "modules", kernel.DRIVERS)] == [
        "virtio_ring",
        "virtio_pci",
        "virtio_blk",
    ]
    assert dict(load_order(files / "modules", kernel.DRIVERS))["virtio_ring"] == module("")  # decompressed


def test_a_driver_that_is_nowhere_is_named(files: Path) -> None:
    (files / "modules" / "kernel" / "drivers" / "virtio_blk.ko").unlink()
    with pytest.raises(InputError, match="no driver virtio_blk"):
        given(files / "vmlinuz", files / "modules")


@pytest.mark.parametrize(
    ("name", "data"), [("virtio_blk.ko", b"text"), ("deep/virtio_ring.ko.xz", b"\xfd7zXZ\0damaged")]
)
def test_a_damaged_driver_is_named(files: Path, name: str, data: bytes) -> None:
    (files / "modules" / "kernel" / "drivers" / name).write_bytes(data)
    with pytest.raises(InputError, match=Path(name).name):
        given(files / "vmlinuz", files / "modules")


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF" + bytes(4000), bytes(0x210), bzimage()[:0x205], bzimage(b"\xff"), bzimage(b"")]
)
def test_what_is_no_kernel_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="FILE is "):
        kernel_version(data, "FILE")


def test_a_kernel_states_its_version() -> None:
    assert kernel_version(bzimage(), "FILE") == "6.1.0-9-test"


def test_files_that_are_not_there_are_named(files: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*nothing: No such file"):
        given(files / "nothing", files / "modules")
    with pytest.raises(InputError, match=r"/lib/modules/6.1.0-9-test is no folder of the modules .* --modules"):
        given(files / "vmlinuz")
    with pytest.raises(UsageError, match="--modules goes with --kernel"):
        build(files / "image", modules=files / "modules")


def test_an_image_that_cannot_be_written_leaves_nothing(files: Path) -> None:
    (files / "taken").mkdir()
    for out in (files / "taken", files / "no" / "folder"):
        with pytest.raises(OutputError, match="cannot write"):
            build(out, kernel=files / "vmlinuz", modules=files / "modules")
    assert {path.name for path in files.iterdir()} == {"vmlinuz", "modules", "bin", "taken"}
    assert not list((files / "taken").iterdir())


def test_an_image_replaces_another_and_only_its_owner_may_read_it(files: Path) -> None:
    (files / "image").write_bytes(b"old")
    made(files, files / "image")
    assert stat.S_IMODE((files / "image").stat().st_mode) == 0o600


def test_busybox_must_be_static(files: Path) -> None:
    assert find_busybox() == STATIC + LOADED + bytes(52)
    (files / "bin" / "busybox").write_bytes(STATIC + INTERPRETED + bytes(52))
    with pytest.raises(VmError, match="apt-get install busybox-static"):
        find_busybox()
    for bad in (b"", b"#!/bin/sh\n" + bytes(100), STATIC):
        assert not is_static(bad)


def test_a_machine_without_busybox_or_apt_is_told_what_to_install(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.shutil, "which", lambda name, path: None)
    with pytest.raises(VmError, match="apt-get install busybox-static"):
        build(files / "image", kernel=files / "vmlinuz", modules=files / "modules")
    monkeypatch.setenv("PATH", str(files / "bin"))
    monkeypatch.setattr(kernel.os, "geteuid", lambda: 1000)
    with pytest.raises(VmError, match=r"apt-cache is not installed.*--kernel FILE"):
        kernel.packaged(files / "cache")


def apt(monkeypatch: pytest.MonkeyPatch, answers: Callable[[list[str]], str]) -> list[list[str]]:
    """Put ``answers`` in the place of apt's programs; return the list of the calls to come."""
    calls: list[list[str]] = []

    def run(line: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(list(line))
        try:
            return subprocess.CompletedProcess(line, 0, answers(calls[-1]).encode(), b"")
        except LookupError as error:
            return subprocess.CompletedProcess(line, 100, b"", f"W: first\nE: {error.args[0]}\n".encode())

    monkeypatch.setattr(kernel.subprocess, "run", run)
    return calls


def answers_for(package: str) -> dict[str, str]:
    """What apt says if the newest kernel is ``package``."""
    name = package.split("_")[0]
    return {"depends": f"x\n  Depends: {name}\n", "--print-uris": f"'http://x/y.deb' {package}.deb 1 SHA256:00"}


def unknown(line: list[str]) -> str:
    raise LookupError("No packages found")


def test_a_user_whose_apt_knows_no_kernel_is_told_to_update(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = apt(monkeypatch, unknown)
    monkeypatch.setattr(kernel.os, "geteuid", lambda: 1000)
    with pytest.raises(
        VmError, match=r"E: No packages found.*run 'sudo apt-get update', or give a kernel with --kernel FILE"
    ):
        kernel.packaged(files / "cache")
    assert len(calls) == 1


def test_root_updates_the_lists_once_and_tries_again(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = apt(monkeypatch, lambda line: "" if "update" in line else unknown(line))
    monkeypatch.setattr(kernel.os, "geteuid", lambda: 0)
    with pytest.raises(VmError, match="No packages found"):
        kernel.packaged(files / "cache")
    assert [line[-1] for line in calls] == [kernel.PACKAGE, "update", kernel.PACKAGE]


def test_a_kernel_in_the_cache_is_not_downloaded_again(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files / "cache" / "linux-image-6.1.0-9-test_6.1.1_amd64"
    folder.mkdir(parents=True)
    for path in (files / "vmlinuz", files / "modules" / "modules.builtin", *(files / "modules").rglob("*.ko*")):
        shutil.copy(path, folder)
    answers = answers_for(folder.name)
    calls = apt(monkeypatch, lambda line: next(answers[word] for word in line if word in answers))
    assert kernel.packaged(files / "cache").version == "6.1.0-9-test"
    assert len(calls) == 2


def test_a_download_that_is_no_package_leaves_nothing(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = answers_for("linux-image-9_1_amd64")

    def download(line: list[str]) -> str:
        for word in line:
            if word in answers:
                return answers[word]
        (next((files / "cache").iterdir()) / "linux-image-9_1_amd64.deb").write_bytes(b"!<arch>\n")
        return ""

    apt(monkeypatch, download)
    monkeypatch.setattr(kernel.os, "geteuid", lambda: 1000)
    with pytest.raises(VmError, match=r"linux-image-9_1_amd64.deb cannot be unpacked|dpkg-deb is not installed"):
        kernel.packaged(files / "cache")
    assert not list((files / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = answers_for("linux-image-9_1_amd64")
    apt(monkeypatch, lambda line: next(answers[word] for word in line if word in answers))
    monkeypatch.setattr(kernel.os, "geteuid", lambda: 1000)
    with pytest.raises(VmError, match="vmlinuz: File exists; set XDG_CACHE_HOME"):
        kernel.packaged(files / "vmlinuz")


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert kernel.cache_folder() == tmp_path / "elsewhere" / "quoreduce" / "vm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    assert kernel.cache_folder() == tmp_path / "someone" / ".cache" / "quoreduce" / "vm"


def test_an_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed (apt-get install cpio)")
    raw = initramfs(b"busybox", [("virtio", b"a"), ("virtio_pci", b"bcd")], None)
    lines = (
        subprocess.run(["cpio", "-tvn", "--quiet"], input=raw, capture_output=True, check=True)
        .stdout.decode()
        .splitlines()
    )
    listed = {line.split(" 1970 ", 1)[1]: line.split() for line in lines}
    assert listed["init"][0] == "-rwxr-xr-x"
    assert listed["bin/sh -> busybox"][0] == "lrwxrwxrwx"
    assert listed["dev/console"][:1] + listed["dev/console"][4:6] == ["crw-------", "5,", "1"]
    assert [name for name in listed if name.endswith(".ko")] == ["modules/00-virtio.ko", "modules/01-virtio_pci.ko"]
    assert {tuple(words[2:4]) for words in listed.values()} == {("0", "0")}
    init = subprocess.run(
        ["cpio", "-i", "--to-stdout", "--quiet", "init"], input=raw, capture_output=True, check=True
    ).stdout
    assert init == Path(builder.__file__).with_name("guest.sh").read_bytes()


def test_entries_keep_their_order_and_owners() -> None:
    assert cpio.archive([cpio.folder("a"), cpio.file("a/b", b"12345")])[:110] == (
        b"070701" + b"00000001" + b"000041ED" + b"0" * 16 + b"00000002" + b"0" * 48 + b"00000002" + b"0" * 8
    )
