"""The manifest of an output: ``_SUCCESS``, JSON, written last (rule R8).

It names every part with its digest, size and record count, and the digest of the whole::

    output digest = BLAKE3-256( "quoreduce output 1\\n"
                                for each part in order:  u16 length of the digest, the digest,
                                                         u64 size in bytes, u64 number of records )

little-endian; lengths are framed in, so no two lists of parts give the same bytes. There is no time, host or path of a
worker in a manifest. One that is read back is untrusted: it is bounded, typed and checked against itself before use.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quoreduce.data.commit import output_errors, part_name
from quoreduce.data.splits import local_path, open_filesystem, public_name
from quoreduce.data.staging import SUCCESS
from quoreduce.errors import InputError, OutputError, one_line
from quoreduce.reading import open_regular
from quoreduce.scratch import temporary_folder

FORMAT_VERSION = 1
MANIFEST_BYTES_MAX = 64 << 20
_DOMAIN = b"quoreduce output 1\n"
_ENCODER = msgspec.json.Encoder(order="deterministic")

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2}){16,64}\Z")]
Name = Annotated[str, msgspec.Meta(max_length=128)]


class ManifestError(OutputError):
    """A manifest that is missing, unreadable, malformed or at odds with itself."""


class ManifestPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part of an output: its file name, the digest of its bytes (hex), its size in bytes, its number of records."""

    name: Name
    digest: Digest
    bytes: Count
    records: Count


class InputFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file that the job read: its path, or its URI without credentials, and its stored size in bytes."""

    path: str
    bytes: Count


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The inputs and outputs of a job. Build it with :meth:`build`; read it with :func:`read_manifest`."""

    version: int
    quoreduce: Name
    job: Name
    mode: Name
    f: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
    digest_algorithm: Name
    digest_key: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2}){1,64}\Z")] | None
    digest: Digest
    parts: tuple[ManifestPart, ...]
    inputs: tuple[InputFile, ...]
    records_in: Count
    records_out: Count
    bytes_in: Count
    bytes_out: Count
    extras: dict[str, Any]

    @classmethod
    def build(
        cls,
        *,
        quoreduce: str,
        job: str,
        mode: str,
        f: int,
        digest_algorithm: str,
        parts: Sequence[ManifestPart],
        inputs: Sequence[InputFile],
        records_in: int,
        digest_key: str | None = None,
        extras: dict[str, Any] | None = None,
    ) -> Manifest:
        """Make a manifest; what follows from the arguments (digest, sums, names' order) is computed and checked.

        Args:
            quoreduce: version of quoreduce that ran the job.
            job: name of the job.
            mode: ``original``, ``basic`` or ``bft``.
            f: faults tolerated.
            digest_algorithm: of the parts' digests.
            parts: in order, named ``part-r-00000`` and on without a gap.
            inputs: the files that were read; credentials in URIs are dropped here.
            records_in: records that the maps read.
            digest_key: hex, for keyed digests.
            extras: anything that JSON can hold and the reader may ignore.

        Raises:
            ManifestError: parts with wrong names or malformed digests.
        """
        manifest = cls(
            version=FORMAT_VERSION,
            quoreduce=quoreduce,
            job=job,
            mode=mode,
            f=f,
            digest_algorithm=digest_algorithm,
            digest_key=digest_key,
            digest=_digest_or_error(parts, SUCCESS),
            parts=tuple(parts),
            inputs=tuple(InputFile(public_name(one.path), one.bytes) for one in inputs),
            records_in=records_in,
            records_out=sum(part.records for part in parts),
            bytes_in=sum(one.bytes for one in inputs),
            bytes_out=sum(part.bytes for part in parts),
            extras=extras or {},
        )
        return decode_manifest(manifest.encode())

    def encode(self) -> bytes:
        """Return the manifest as indented JSON: the same manifest gives the same bytes."""
        return msgspec.json.format(_ENCODER.encode(self), indent=2) + b"\n"


def output_digest(parts: Sequence[ManifestPart]) -> str:
    """Return the digest of a whole output in hex, by the formula of the module's docstring; empty parts count too."""
    from blake3 import blake3

    hasher = blake3(_DOMAIN)
    for part in parts:
        raw = bytes.fromhex(part.digest)
        hasher.update(struct.pack("<H", len(raw)) + raw + struct.pack("<QQ", part.bytes, part.records))
    return hasher.hexdigest()


def decode_manifest(raw: bytes, name: str = SUCCESS) -> Manifest:
    """Decode and check a manifest.

    Args:
        raw: at most MANIFEST_BYTES_MAX bytes of JSON.
        name: of the file, for the message.

    Raises:
        ManifestError: it is malformed; the message is one line.
    """
    if len(raw) > MANIFEST_BYTES_MAX:
        raise ManifestError(f"{name} has {len(raw)} bytes, over the bound of {MANIFEST_BYTES_MAX}: not a manifest")
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{name} is not a quoreduce manifest: {one_line(error)}") from error
    _check(manifest, name)
    return manifest


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check ``_SUCCESS`` of the output ``path`` (directory or URI).

    Raises:
        ManifestError: it is missing, unreadable or malformed.
    """
    name = os.fspath(path)
    try:
        local = local_path(name)
        raw = _read_local(Path(local)) if local is not None else _read_remote(name)
    except FileNotFoundError as error:
        what = f"{public_name(name)} has no {SUCCESS}: not a complete output"
        raise ManifestError(f"{what}; name an output directory, or run the job again") from error
    except (InputError, OSError, ValueError) as error:
        raise ManifestError(f"cannot read {SUCCESS} of {public_name(name)}: {' '.join(str(error).split())}") from error
    return decode_manifest(raw, f"{public_name(name).rstrip('/')}/{SUCCESS}")


def _read_local(directory: Path) -> bytes:
    file = directory / SUCCESS
    with open(open_regular(file), "rb") as opened:
        return opened.read(MANIFEST_BYTES_MAX + 1)


def _read_remote(uri: str) -> bytes:
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_stream(f"{path.rstrip('/')}/{SUCCESS}") as opened:
        return bytes(opened.read(MANIFEST_BYTES_MAX + 1))


def _check(manifest: Manifest, name: str) -> None:
    """Check what the types cannot say. Part names are wholly determined, so none can lead out of the directory."""
    if manifest.version != FORMAT_VERSION:
        raise ManifestError(f"{name} has format version {manifest.version}; this quoreduce reads {FORMAT_VERSION}")
    for i, part in enumerate(manifest.parts):
        if part.name != part_name(i):
            raise ManifestError(f"{name} names part {i} {part.name!r} instead of {part_name(i)}")
    if _digest_or_error(manifest.parts, name) != manifest.digest:
        raise ManifestError(f"{name} has an output digest that is not that of its parts")
    sums = (sum(p.records for p in manifest.parts), sum(p.bytes for p in manifest.parts))
    if sums != (manifest.records_out, manifest.bytes_out):
        raise ManifestError(f"{name} has totals of records or bytes that are not those of its parts")


def _digest_or_error(parts: Sequence[ManifestPart], name: str) -> str:
    try:
        return output_digest(parts)
    except (ValueError, struct.error) as error:
        raise ManifestError(f"{name} has a part that cannot be: {error}") from error


class VerifyReport(msgspec.Struct, frozen=True):
    """The result of :func:`verify_output`: names of parts, and one line for each problem.

    ``missing`` parts are in the manifest only; ``altered`` ones differ in size, digest or kind of file; ``extra`` files
    are not in the manifest, but a reader of the directory takes them for data: no ``_`` or ``.`` begins their names.
    """

    path: str
    manifest: Manifest
    missing: tuple[str, ...]
    altered: tuple[str, ...]
    extra: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the output is what its manifest says."""
        return not self.problems


def verify_output(path: str | os.PathLike[str], digest_file: Callable[[Path], bytes]) -> VerifyReport:
    """Recompute the digest and the size of every part and compare them with the manifest.

    Args:
        path: directory or URI of the output; behind a URI it is copied into a temporary directory first.
        digest_file: gives the digest of a file, by the manifest's algorithm and key.

    Raises:
        ManifestError: no ``_SUCCESS``, or a malformed one.
        OutputError: the output cannot be read.
    """
    name = os.fspath(path)
    local = local_path(name)
    if local is not None:
        return _verify(Path(local), local, digest_file)
    with temporary_folder("verify") as copy:
        _download(name, str(copy))
        return _verify(copy, public_name(name), digest_file)


def _verify(directory: Path, name: str, digest_file: Callable[[Path], bytes]) -> VerifyReport:
    manifest = read_manifest(directory)
    with output_errors(directory):
        present = {entry for entry in os.listdir(directory) if not entry.startswith(("_", "."))}
    expected = {part.name for part in manifest.parts}
    missing = tuple(sorted(expected - present))
    extra = tuple(sorted(present - expected))
    reasons = {
        part.name: reason
        for part in manifest.parts
        if part.name in present and (reason := _difference(directory / part.name, part, digest_file))
    }
    problems = [f"{one}: missing" for one in missing]
    problems += [f"{one}: {reason}" for one, reason in reasons.items()]
    problems += [f"{one}: not in the manifest" for one in extra]
    return VerifyReport(name, manifest, missing, tuple(reasons), extra, tuple(problems))


def _difference(path: Path, part: ManifestPart, digest_file: Callable[[Path], bytes]) -> str:
    """Say how the file differs from what the manifest says of it; "" if it does not."""
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            return "not a regular file"
        if info.st_size != part.bytes:
            return f"{info.st_size} bytes, the manifest says {part.bytes}"
        digest = digest_file(path).hex()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if digest == part.digest else f"digest {digest}, the manifest says {part.digest}"


def _download(uri: str, directory: str) -> None:
    try:
        filesystem, path = open_filesystem(uri)
        from pyarrow import fs

        fs.copy_files(path, directory, source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
    except (InputError, OSError, ValueError) as error:
        raise OutputError(f"cannot read {public_name(uri)}: {' '.join(str(error).split())}") from error
