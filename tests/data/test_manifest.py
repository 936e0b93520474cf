"""The manifest: canonical, checked against itself, and never a crash on whatever it is fed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce.data import manifest as manifest_module
from quoreduce.data.manifest import (
    InputFile,
    Manifest,
    ManifestError,
    ManifestPart,
    decode_manifest,
    output_digest,
    read_manifest,
    verify_output,
)

CONTENTS = [b"one\n", b"", b"three\nthree\n"]


def digest_file(path: Path) -> bytes:
    return blake3(path.read_bytes()).digest()


def parts_of(contents: list[bytes]) -> list[ManifestPart]:
    return [
        ManifestPart(f"part-r-{i:05d}", blake3(one).hexdigest(), len(one), one.count(b"\n"))
        for i, one in enumerate(contents)
    ]


def build(contents: list[bytes] = CONTENTS, **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "quoreduce": "0.1.0",
        "job": "wordcount",
        "mode": "bft",
        "f": 1,
        "digest_algorithm": "blake3",
        "parts": parts_of(contents),
        "inputs": [InputFile("/data/b", 7), InputFile("/data/a", 5)],
        "records_in": 3,
        "extras": {"z": 1, "a": {"y": [1, None], "b": "ü"}},
    }
    return Manifest.build(**(arguments | changes))


def as_json(**changes: Any) -> dict[str, Any]:
    return dict(json.loads(build().encode()), **changes)


def refused(raw: bytes | dict[str, Any]) -> str:
    with pytest.raises(ManifestError) as caught:
        decode_manifest(raw if isinstance(raw, bytes) else json.dumps(raw).encode(), "out/_SUCCESS")
    message = str(caught.value)
    assert message.startswith("out/_SUCCESS ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_a_manifest_round_trips_and_sums_up_its_parts() -> None:
    manifest = build()
    assert decode_manifest(manifest.encode()) == manifest
    assert (manifest.records_out, manifest.bytes_out, manifest.bytes_in) == (3, 16, 12)


def test_the_same_manifest_gives_the_same_bytes_whatever_the_order_of_its_extras() -> None:
    first = build(extras={"a": 1, "b": {"c": 2, "d": 3}})
    second = build(extras={"b": {"d": 3, "c": 2}, "a": 1})
    assert first.encode() == second.encode()
    assert first.encode().endswith(b"}\n")


def test_the_output_digest_is_the_documented_formula() -> None:
    hasher = blake3(b"quoreduce output 1\n")
    for content in CONTENTS:
        digest = blake3(content).digest()
        hasher.update(len(digest).to_bytes(2, "little") + digest)
        hasher.update(len(content).to_bytes(8, "little") + content.count(b"\n").to_bytes(8, "little"))
    assert build().digest == hasher.hexdigest()
    assert output_digest([]) == blake3(b"quoreduce output 1\n").hexdigest()


def test_the_output_digest_depends_on_every_part_and_on_their_order() -> None:
    parts = parts_of(CONTENTS)
    variants = [parts, parts[::-1], parts[:2], [*parts, parts[1]], parts_of([b"One\n", *CONTENTS[1:]])]
    assert len({output_digest(one) for one in variants}) == len(variants)


def test_an_output_without_parts_has_a_manifest() -> None:
    assert decode_manifest(build([], inputs=[], records_in=0).encode()).bytes_out == 0


def test_credentials_do_not_get_into_a_manifest() -> None:
    manifest = build(inputs=[InputFile("s3://user:secret@bucket/in?token=secret", 3)])
    assert manifest.inputs == (InputFile("s3://bucket/in", 3),)


def test_building_from_wrong_parts_is_refused() -> None:
    for parts in (
        [ManifestPart("part-r-00001", "ab" * 32, 1, 1)],
        [ManifestPart("part-r-00000", "xy", 1, 1)],
        [ManifestPart("x", "ab" * 32, -1, 1)],
    ):
        with pytest.raises(ManifestError):
            build(parts=parts)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "part-r-00001", "part-r-0", "part-r-00000\n", "", "_SUCCESS"]
)
def test_part_names_cannot_lead_anywhere_else(name: str) -> None:
    parts = as_json()["parts"]
    parts[0]["name"] = name
    assert "instead of part-r-00000" in refused(as_json(parts=parts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2"),
        ({"digest": "00" * 32}, "not that of its parts"),
        ({"records_out": 4}, "totals"),
        ({"bytes_out": 15}, "totals"),
        ({"f": -1}, "manifest"),
        ({"records_in": 1 << 63}, "manifest"),
        ({"records_in": 1.5}, "manifest"),
        ({"digest": "0" * 63}, "manifest"),
        ({"digest": "00" * 32 + "\n"}, "manifest"),
        ({"unknown": 1}, "unknown"),
        ({"inputs": [{"path": "a", "bytes": 1, "host": "b"}]}, "unknown"),
        ({"inputs": [{"path": "a", "bytes": -1}]}, "manifest"),
        ({"job": "j" * 129}, "manifest"),
        ({"f": (1 << 16) + 1}, "manifest"),
        ({"parts": {}}, "manifest"),
        ({"digest_key": "x"}, "manifest"),
        ({"extras": None}, "manifest"),
    ],
)
def test_a_manifest_at_odds_with_itself_is_refused(change: dict[str, Any], message: str) -> None:
    assert message in refused(as_json(**change))


def test_a_part_has_no_other_fields() -> None:
    parts = as_json()["parts"]
    parts[0]["host"] = "n1"
    assert "unknown" in refused(as_json(parts=parts))


def test_the_largest_values_are_taken() -> None:
    last = (1 << 63) - 1
    manifest = build([], inputs=[InputFile("a", last)], records_in=last, job="j" * 128, f=1 << 16, digest_key="ab" * 64)
    assert decode_manifest(manifest.encode()) == manifest
    assert (manifest.bytes_in, manifest.digest_key) == (last, "ab" * 64)


def test_a_manifest_is_indented_json_in_the_order_of_its_fields() -> None:
    raw = build([], inputs=[InputFile("/a", 7)], extras={"b": 1, "a": [2]}).encode()
    assert raw == json.dumps(json.loads(raw), indent=2, ensure_ascii=False).encode() + b"\n"
    assert json.loads(raw)["extras"] == {"a": [2], "b": 1}
    assert build(extras=None).extras == {}


def test_a_manifest_as_large_as_the_bound_is_read(monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    raw = build().encode()
    monkeypatch.setattr(manifest_module, "MANIFEST_BYTES_MAX", len(raw))
    assert decode_manifest(raw) == read_manifest(output) == build()
    monkeypatch.setattr(manifest_module, "MANIFEST_BYTES_MAX", len(raw) - 1)
    with pytest.raises(ManifestError, match=f"has {len(raw)} bytes, over the bound of {len(raw) - 1}"):
        read_manifest(output)


@pytest.mark.parametrize("missing", ["parts", "digest", "version", "extras"])
def test_a_manifest_with_a_field_missing_is_refused(missing: str) -> None:
    fields = as_json()
    del fields[missing]
    assert missing in refused(fields)


def test_deep_huge_and_truncated_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build().encode()
    for raw in (
        b"[" * 200_000,
        b'{"extras":' * 100_000,
        b"",
        b"null",
        b"\xff\xfe",
        whole[:-3],
        whole + b"{}",
        b"9" * 5000,
    ):
        refused(raw)
    nested = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    refused(whole.replace(b'"extras": {', b'"extras": {"deep": ' + nested + b","))
    assert len(refused(b'{"%s": 1}' % (b"x" * 70_000))) < 1000
    monkeypatch.setattr(manifest_module, "MANIFEST_BYTES_MAX", 100)
    assert "over the bound" in refused(whole)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_refused_or_decoded_never_a_crash(raw: bytes) -> None:
    refused(raw)


@settings(deadline=None)
@given(field=st.sampled_from(sorted(as_json())), value=JSON, inner=st.booleans())
def test_a_field_of_any_other_value_is_refused_or_kept(field: str, value: Any, inner: bool) -> None:
    fields = as_json()
    if inner:
        fields["parts"][1]["digest"] = value
    else:
        fields[field] = value
    try:
        manifest = decode_manifest(json.dumps(fields).encode())
    except ManifestError:
        return
    assert decode_manifest(manifest.encode()).digest == manifest.digest


@settings(deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(at: int, bit: int) -> None:
    raw = bytearray(build().encode())
    raw[at % len(raw)] ^= 1 << bit
    try:
        manifest = decode_manifest(bytes(raw))
    except ManifestError:
        return
    assert manifest.parts == build().parts


@pytest.fixture
def output(tmp_path: Path) -> Path:
    directory = tmp_path / "out"
    directory.mkdir()
    for i, content in enumerate(CONTENTS):
        (directory / f"part-r-{i:05d}").write_bytes(content)
    (directory / "_SUCCESS").write_bytes(build().encode())
    return directory


def test_an_untouched_output_verifies_by_path_and_by_uri(output: Path) -> None:
    for name in (output, str(output), f"file://{output}"):
        report = verify_output(name, digest_file)
        assert report.ok
        assert report.manifest == read_manifest(output)
        assert report.path == str(output)


def test_every_altered_byte_of_every_part_is_found(output: Path) -> None:
    for part in read_manifest(output).parts:
        path = output / part.name
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert verify_output(output, digest_file).altered == (part.name,)
        path.write_bytes(whole + b"\n")
        assert "the manifest says" in verify_output(output, digest_file).problems[0]
        path.write_bytes(whole)


def test_missing_and_extra_files_are_named(output: Path) -> None:
    (output / "part-r-00001").unlink()
    for name in ("part-r-00003", "notes.txt", "_logs", ".crc"):
        (output / name).write_text("x")
    report = verify_output(output, digest_file)
    assert report.missing == ("part-r-00001",)
    assert report.extra == ("notes.txt", "part-r-00003")
    assert len(report.problems) == 3
    assert not report.ok


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_a_part_that_is_no_regular_file_is_altered_and_not_read(output: Path, kind: str) -> None:
    path = output / "part-r-00000"
    path.rename(output.parent / "moved")
    if kind == "link":
        path.symlink_to(output.parent / "moved")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert verify_output(output, digest_file).problems == ("part-r-00000: not a regular file",)


def test_a_part_that_cannot_be_read_is_altered(output: Path) -> None:
    def failing(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    assert "cannot be read: Input/output error" in verify_output(output, failing).problems[0]


@pytest.mark.parametrize("kind", ["absent", "no manifest", "file", "fifo", "directory", "nul"])
def test_what_has_no_manifest_is_no_output(output: Path, kind: str) -> None:
    success = output / "_SUCCESS"
    success.unlink()
    if kind == "fifo":
        os.mkfifo(success)
    elif kind == "directory":
        success.mkdir()
    path: Path | str = {"absent": output / "nowhere", "file": output / "part-r-00000", "nul": "nul\0"}.get(kind, output)
    with pytest.raises(ManifestError, match="_SUCCESS"):
        verify_output(path, digest_file)
