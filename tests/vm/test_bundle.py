"""The image's bytes: one encoding for each image, and a clear word on what is wrong with others."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.errors import InputError
from quoreduce.vm import bundle
from quoreduce.vm.bundle import CMDLINE_BYTES_MAX, HEADER_BYTES, MAGIC, Bundle

part = st.binary(min_size=1, max_size=200)
cmdline_characters = st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"')
bundles = st.builds(Bundle, part, part, st.text(cmdline_characters, max_size=100))


@given(bundles)
def test_an_image_comes_back_as_it_was(one: Bundle) -> None:
    assert Bundle.decode(one.encode()) == one


@given(bundles)
def test_its_digest_is_that_of_its_bytes(one: Bundle) -> None:
    assert one.digest == hashlib.sha256(one.encode()).digest()


@given(bundles, st.data())
def test_other_bytes_are_refused_or_another_image(one: Bundle, data: st.DataObject) -> None:
    raw = bytearray(one.encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        other = Bundle.decode(bytes(raw))
    except InputError:
        return
    assert other != one
    assert other.encode() == raw  # there is one encoding only


@given(bundles, st.data())
def test_a_cut_image_is_refused_as_cut(one: Bundle, data: st.DataObject) -> None:
    raw = one.encode()
    with pytest.raises(InputError, match="cut"):
        Bundle.decode(raw[: data.draw(st.integers(1, len(raw) - 1))])


@given(bundles, part)
def test_bytes_after_the_end_are_refused(one: Bundle, more: bytes) -> None:
    with pytest.raises(InputError, match=f"{len(more)} bytes after its end"):
        Bundle.decode(one.encode() + more)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(InputError, match="has 0 bytes"):
        Bundle.decode(b"")


@pytest.mark.parametrize("raw", [b"\x7fELF" + bytes(100), b"quoreduce image 2\n" + bytes(100), b"x"])
def test_another_format_is_refused(raw: bytes) -> None:
    with pytest.raises(InputError, match="this is no image"):
        Bundle.decode(raw)


def test_a_length_beyond_the_bound_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="at most 268,435,456"):
        Bundle.decode(MAGIC + struct.pack(">III", 0, 256 << 20, 1))


def test_an_image_of_the_largest_size_is_taken_and_one_byte_more_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "IMAGE_BYTES_MAX", HEADER_BYTES + 3)
    largest = Bundle(b"k", b"i", "c")
    assert Bundle.decode(largest.encode()) == largest
    with pytest.raises(InputError, match="at most"):
        Bundle(b"k", b"ii", "c")


@pytest.mark.parametrize(("kernel", "initrd", "name"), [(b"", b"i", "kernel"), (b"k", b"", "initrd")])
def test_no_part_is_empty(kernel: bytes, initrd: bytes, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} has 0 bytes"):
        Bundle(kernel, initrd, "")
    with pytest.raises(InputError, match=f"{name} has 0 bytes"):
        Bundle.decode(MAGIC + struct.pack(">III", 0, len(kernel), len(initrd)) + kernel + initrd)


@pytest.mark.parametrize("cmdline", ["a\nb", "a\0b", "é", "\x7f", 'a "b"'])
def test_a_command_line_is_printable_ascii(cmdline: str) -> None:
    raw = cmdline.encode()
    with pytest.raises(InputError, match="printable ASCII"):
        Bundle(b"k", b"i", cmdline)
    with pytest.raises(InputError, match="printable ASCII"):
        Bundle.decode(MAGIC + struct.pack(">III", len(raw), 1, 1) + raw + b"ki")


def test_a_command_line_that_qemu_would_cut_is_refused() -> None:
    Bundle(b"k", b"i", "x" * CMDLINE_BYTES_MAX)
    with pytest.raises(InputError, match="at most 1,000 boot"):
        Bundle(b"k", b"i", "x" * (CMDLINE_BYTES_MAX + 1))
