"""Commit (rule R8): attempts write privately, one agreed attempt of each part is published, the manifest comes last.

A run that writes OUT in the directory PARENT owns, until it ends::

    PARENT/.OUT.lock                     held with flock for as long as the run lives
    PARENT/.OUT.JOB.staging/attempts/    part-r-00003.2 is attempt 2 of part 3; any number of replicas write here
    PARENT/.OUT.JOB.staging/output/      published parts, then _SUCCESS; renamed to OUT in the end
    PARENT/.OUT.JOB.staging/old/         with ``overwrite``: the output that OUT replaces, between two renames
    PARENT/.OUT.JOB.staging/journal      of a durable job, and
    PARENT/.OUT.JOB.staging/blocks/      what its maps stored, by life of the job
    PARENT/.OUT.JOB.staging/.quoreduce-owner.*   who made it: what bears no such marker is not ours (quoreduce.files)

OUT appears complete or not at all, because it appears by one rename of a directory that is already synced. A crash
between the two renames of an overwrite leaves the old output in ``old/``; the next run puts it back before it starts.
Whoever holds the lock may sweep the staging directories of OUT that are ours and whose owners are dead; one whose owner
lives although the lock was free, because somebody deleted the file, is a live run. Attempts are not inside
``output/``, so that a replica that writes on after the vote disturbs nothing.

What a durable job left is not swept: :meth:`OutputDir.reopen` resumes it. Its journal is made when all else is
there, and is the first to go; so if there is a journal and no ``output/``, that was renamed to OUT: the job is done.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from quoreduce import files
from quoreduce.data.splits import expand_local, is_uri, is_utf8, local_path, open_filesystem, public_name
from quoreduce.data.staging import JOURNAL, SUCCESS, is_done_with, kept, restore, sweep, take_lock
from quoreduce.errors import InputError, JournalError, OutputError
from quoreduce.reading import close_quietly

BLOCKS = "blocks"
RECEIPT = "_RECEIPT.json"
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")  # no dots: .OUT.JOB.staging must parse in one way only
_CHUNK = 8 << 20


class OutputPlace(Protocol):
    """Where a job's output goes; :class:`OutputDir` and :class:`UriOutput`."""

    def attempt_path(self, part: int, attempt: int) -> str:
        """Return the private local path that an attempt writes to."""

    def publish(self, part: int, attempt: int) -> None:
        """Make ``attempt`` the one that becomes ``part``."""

    def part_path(self, part: int) -> str | None:
        """Return where a published part lies; None if it is no local file."""

    def commit(self, manifest: bytes, receipt: bytes | None = None) -> None:
        """Publish the output as a whole, with its manifest, and a receipt if there is one; :meth:`abort` comes next."""

    def finish(self, manifest: bytes, receipt: bytes | None = None) -> None:
        """:meth:`commit`, and :meth:`abort`."""

    def abort(self) -> None:
        """Remove what is left of the run; what was committed stays. Again this does nothing."""


def open_output(
    path: str,
    overwrite: bool,
    inputs: Sequence[str],
    job_id: str,
    scratch_dir: str | os.PathLike[str],
    sync: bool = False,
) -> OutputPlace:
    """Prepare the output ``path``: a directory, or a URI whose parts are staged under ``scratch_dir`` and uploaded.

    Args:
        path: must not exist, unless ``overwrite`` and it looks like an output of a job.
        overwrite: replace an earlier output.
        inputs: what the job reads; the output may not lie in it, nor it in the output.
        job_id: distinct for each run; letters, digits, ``_`` and ``-``, at most 64.
        scratch_dir: for URIs only; every worker must see it.
        sync: for directories: force everything to disk before it is published, so that it survives a loss of power too.

    Raises:
        OutputError: any of the above does not hold, another run is writing there, or the place is not writable.
    """
    local = _local_output(path)
    if local is None:
        return UriOutput(path, overwrite, inputs, job_id, scratch_dir)
    return OutputDir(local, overwrite, inputs, job_id, sync)


def remove_output(path: Path) -> None:
    """Delete the output of a job, if it is there; if it holds anything else, OutputError, and nothing is deleted."""
    with output_errors(path):
        if not os.path.lexists(path):
            return
        if path.is_symlink() or not path.is_dir():
            raise OutputError(f"{path} is not the output of a job, so it is not deleted; remove it first")
        with os.scandir(path) as entries:
            found = [(entry.name, entry.is_file(follow_symlinks=False)) for entry in entries]
        _refuse_foreign(str(path), found)
        for name, _ in sorted(found, key=lambda one: one[0] != SUCCESS):
            os.unlink(path / name)
        os.rmdir(path)


def part_name(part: int) -> str:
    """Return the file name of a part, ``part-r-00000`` and on."""
    return f"part-r-{part:05d}"


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of writing into an OutputError: one line that names ``path`` and says what to do."""
    try:
        yield
    except OSError as error:
        name = os.fspath(error.filename if isinstance(error.filename, str | os.PathLike) else path)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"no space left on device: {name}; free some, or write somewhere else") from error
        reason = " ".join((error.strerror or str(error)).split())
        raise OutputError(f"cannot write {name}: {reason}; choose another output") from error


class OutputDir:
    """The output of one run in a local (or shared, mounted) directory. See the module's docstring for the layout."""

    def __init__(self, path: str, overwrite: bool, inputs: Sequence[str], job_id: str, sync: bool = True) -> None:
        """Check everything that can be refused, take the lock, sweep what dead runs left, create the staging directory.

        Args and errors as for :func:`open_output`.
        """
        _check_job_id(job_id)
        self.path = _resolve(path)
        self.overwrite = overwrite
        self._sync = sync
        _refuse_overlap(self.path, inputs)
        self._published: dict[int, int] = {}
        self._lock: int | None = None
        self._hold: files.Hold | None = None
        self._pid, self._reopened, self._committed = os.getpid(), False, False
        self._created: list[Path] = []
        self.staging = self.path.parent / f".{self.path.name}.{job_id}.staging"
        with output_errors(path):
            _refuse_long(self.path, len(os.fsencode(self.staging.name)))
        try:
            with output_errors(path):
                self._create_parents()
                self._lock = take_lock(self._lock_path, self.path)
                sweep(self.path, overwrite)
                self._refuse_existing()
                self.staging.mkdir(mode=0o700)  # a durable job that is resumed trusts what lies in it
                try:
                    self._hold = files.Hold(self.staging)
                except BaseException:
                    self.staging.rmdir()  # it is empty
                    raise
                for name in ("attempts", "output"):
                    (self.staging / name).mkdir()
        except BaseException:
            self.abort()
            raise

    @classmethod
    def reopen(cls, path: str) -> OutputDir:
        """Take the lock of an output whose durable job was cut short; :meth:`go_on` comes next.

        Raises:
            OutputError: another run is writing there.
            JournalError: there is nothing to resume.
        """
        self = cls.__new__(cls)
        self.path = _resolve(path)
        self._published, self._created, self._lock, self._hold = {}, [], None, None
        self._pid, self._reopened, self._committed = os.getpid(), False, False
        if not self.path.parent.is_dir():
            raise JournalError(f"nothing to resume: {self.path.parent} is no directory")
        with output_errors(path):
            self._lock = take_lock(self._lock_path, self.path)
            try:
                sweep(self.path, spare=True)
                self.staging = kept(self.path)
                self._reopened = True
            except BaseException:
                self.release()
                raise
        return self

    def go_on(self, overwrite: bool, sync: bool, agreed: Mapping[int, int]) -> None:
        """Prepare to resume: parts that were published are attempts again, to be checked anew.

        ``agreed``: part -> the attempt that was agreed on. Other arguments as for the first run, and its errors.
        """
        self.overwrite, self._sync = overwrite, sync
        with output_errors(self.path):
            restore(self.staging, self.path)
            self._refuse_existing()
            if self._hold is None:
                self._hold = files.Hold(self.staging)
            for part, attempt in agreed.items():
                with suppress(FileNotFoundError):
                    (self.staging / "output" / part_name(part)).rename(self.attempt_path(part, attempt))

    @property
    def journal_path(self) -> Path:
        """Where a durable job keeps its journal."""
        return self.staging / JOURNAL

    def blocks_path(self, life: int) -> str:
        """Return the folder for what maps store in a life of a durable job; it is made."""
        path = self.staging / BLOCKS / str(life)
        with output_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return str(path)

    @property
    def _lock_path(self) -> Path:
        return self.path.parent / f".{self.path.name}.lock"

    def attempt_path(self, part: int, attempt: int) -> str:
        """Return the path, on the driver's file system, that ``attempt`` (>= 0) of ``part`` (>= 0) writes to."""
        return str(self.staging / "attempts" / f"{part_name(part)}.{attempt}")

    def publish(self, part: int, attempt: int) -> None:
        """Rename one agreed attempt to its part; the same again does nothing.

        Raises:
            OutputError: another attempt of the part was published, or this one wrote no regular file.
        """
        if _published_before(self._published, part, attempt):
            return
        source = Path(self.attempt_path(part, attempt))
        _check_attempt(source)
        with output_errors(source):
            source.rename(self.staging / "output" / part_name(part))
        self._published[part] = attempt

    def part_path(self, part: int) -> str | None:
        """Return the path of a part that was published; None if it was not."""
        folder = self.path if self._committed else self.staging / "output"
        return str(folder / part_name(part)) if part in self._published else None

    def finish(self, manifest: bytes, receipt: bytes | None = None) -> None:
        """:meth:`commit`, and :meth:`abort` if the output is in its place."""
        try:
            self.commit(manifest, receipt)
        finally:
            if self._committed:
                self.abort()

    def commit(self, manifest: bytes, receipt: bytes | None = None) -> None:
        """Write ``_SUCCESS`` last, sync everything if that was asked for, and rename the whole to the output path.

        Raises:
            OutputError: no space, or the output came into being meanwhile; or, with ``sync``, that its name could not
                be forced to disk. The caller calls :meth:`abort` in any case.
        """
        output = self.staging / "output"
        with output_errors(self.path):
            for part in self._published if self._sync else ():
                files.sync_path(output / part_name(part))
            if receipt is not None:
                files.write_whole(output / RECEIPT, receipt, self._sync)
            files.write_whole(output / SUCCESS, manifest, self._sync)  # and all names in its folder
            self._refuse_existing()
            if self.path.exists():
                self.path.rename(self.staging / "old")
                self._refuse_foreign(self.staging / "old")  # what came in since then
            output.rename(self.path)
            self._committed = True
        try:
            if self._sync:
                files.sync_path(self.path.parent)
        except OSError as error:
            why = f"cannot be forced to disk: {error.strerror}; see to the disk, and copy it"
            raise OutputError(f"{self.path} is complete, but {why}") from error

    def abort(self) -> None:
        """Remove the staging directory, the lock, and parents that were created and are empty."""
        if self._pid != os.getpid():
            return  # in a process that was forked from a run
        if self._lock is not None:
            if (self._hold is not None or self._reopened) and is_done_with(self.staging, self.path):
                if self._hold is not None:
                    self._hold.remove()
                else:
                    files.remove_dead(self.staging)
            self.release()
        while self._created:
            with suppress(OSError):
                self._created.pop().rmdir()

    def release(self) -> None:
        """Let go of the lock and leave everything as it is: a durable job can be resumed. Then :meth:`abort` does
        nothing.
        """
        if self._lock is not None and self._pid == os.getpid():
            if self._hold is not None:
                self._hold.release()
            with suppress(OSError):
                if os.path.samestat(os.fstat(self._lock), os.lstat(self._lock_path)):
                    self._lock_path.unlink()
            close_quietly(self._lock)
            self._lock = None

    def _create_parents(self) -> None:
        missing = [parent for parent in self.path.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._created.append(parent)

    def _refuse_existing(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise OutputError(f"the output {self.path} exists; choose another, or replace it with --overwrite")
        if self.path.is_symlink() or not self.path.is_dir():
            raise OutputError(f"the output {self.path} is not a directory, so it is not overwritten; remove it first")
        self._refuse_foreign(self.path)

    def _refuse_foreign(self, path: Path) -> None:
        with os.scandir(path) as entries:
            _refuse_foreign(str(self.path), [(e.name, e.is_file(follow_symlinks=False)) for e in entries])


class UriOutput:
    """The output of one run behind a URI (s3, gs, hdfs): attempts are local files, publishing uploads.

    An output is complete when it has ``_SUCCESS``, uploaded last. With ``overwrite`` the old output goes when the
    first part is published, its ``_SUCCESS`` first. Two runs that write to one URI at once are not kept apart.
    """

    def __init__(
        self, uri: str, overwrite: bool, inputs: Sequence[str], job_id: str, scratch_dir: str | os.PathLike[str]
    ) -> None:
        """Check what can be refused; args and errors as for :func:`open_output`."""
        _check_job_id(job_id)
        self.name = public_name(uri)
        self.overwrite = overwrite
        _refuse_uri_overlap(uri, inputs)
        self._published: dict[int, int] = {}
        self._replaced = self._finished = False
        with self._errors():
            self._fs, self._path = open_filesystem(uri)
            self._path = self._path.rstrip("/")
            self._old = self._list_old()
        with output_errors(scratch_dir):
            os.makedirs(scratch_dir, mode=0o700, exist_ok=True)
            self.staging = Path(tempfile.mkdtemp(prefix=f"output.{job_id}.", dir=scratch_dir))

    def attempt_path(self, part: int, attempt: int) -> str:
        """Return the local path that ``attempt`` of ``part`` writes to."""
        return str(self.staging / f"{part_name(part)}.{attempt}")

    def publish(self, part: int, attempt: int) -> None:
        """Upload one agreed attempt as its part and remove the local file; raises OutputError as OutputDir does."""
        if _published_before(self._published, part, attempt):
            return
        source = Path(self.attempt_path(part, attempt))
        _check_attempt(source)
        self._published[part] = attempt
        with self._errors():
            self._replace_old()
            with source.open("rb") as data:
                self._upload(part_name(part), data)
            source.unlink()

    def part_path(self, part: int) -> str | None:
        """Return None: parts that were published are no local files."""
        return None

    def finish(self, manifest: bytes, receipt: bytes | None = None) -> None:
        """:meth:`commit`, and :meth:`abort`."""
        self.commit(manifest, receipt)
        self.abort()

    def commit(self, manifest: bytes, receipt: bytes | None = None) -> None:
        """Upload the receipt, if there is one, and then ``_SUCCESS``."""
        with self._errors():
            self._replace_old()
            if receipt is not None:
                self._upload(RECEIPT, io.BytesIO(receipt))
            self._upload(SUCCESS, io.BytesIO(manifest))
        self._finished = True

    def abort(self) -> None:
        """Delete the parts uploaded so far and the local files."""
        shutil.rmtree(self.staging, ignore_errors=True)
        if self._finished:
            return
        for part in self._published:
            with suppress(OSError):
                self._fs.delete_file(f"{self._path}/{part_name(part)}")
        if self._published:
            with suppress(OSError):
                self._delete_if_empty()
        self._published.clear()

    def _delete_if_empty(self) -> None:
        """Delete the directory too: pyarrow leaves an object ``out/`` on S3 when the last file in it goes."""
        from pyarrow import fs

        if not self._fs.get_file_info(fs.FileSelector(self._path, allow_not_found=True)):
            self._fs.delete_dir(self._path)

    def _upload(self, name: str, data: Any) -> None:
        with self._fs.open_output_stream(f"{self._path}/{name}") as stream:
            shutil.copyfileobj(data, stream, _CHUNK)

    def _list_old(self) -> list[str]:
        """Return the paths of the output that is there, ``_SUCCESS`` first; refuse what may not be replaced."""
        from pyarrow import fs

        info = self._fs.get_file_info(self._path)
        if info.type == fs.FileType.NotFound:
            return []
        if not self.overwrite:
            raise OutputError(f"the output {self.name} exists; choose another, or replace it with --overwrite")
        if info.type != fs.FileType.Directory:
            raise OutputError(f"the output {self.name} is not a directory, so it is not overwritten; remove it first")
        found = self._fs.get_file_info(fs.FileSelector(self._path, recursive=True))
        _refuse_foreign(self.name, [(one.path[len(self._path) + 1 :], one.type == fs.FileType.File) for one in found])
        return sorted((one.path for one in found), key=lambda path: not path.endswith(f"/{SUCCESS}"))

    def _replace_old(self) -> None:
        if not self._replaced:
            for path in self._old:
                self._fs.delete_file(path)
            self._replaced = True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, InputError) as error:
            raise OutputError(f"cannot write {self.name}: {' '.join(str(error).split())}") from error


def _check_job_id(job_id: str) -> None:
    if not _JOB_ID.match(job_id):
        raise OutputError(f"the job id {job_id!r} is not made of 1 to 64 letters, digits, _ and -")


def _local_output(path: str) -> str | None:
    try:
        return local_path(path)
    except InputError as error:
        raise OutputError(str(error)) from error


def _resolve(path: str) -> Path:
    """Return the absolute path of an output; links in its parents are followed, a link at its end is kept."""
    full = os.path.abspath(path)
    head, name = os.path.split(full)
    if not path or not name or "\0" in path or not is_utf8(path):
        raise OutputError(f"{path!r} cannot be an output: name a directory that does not exist yet, in UTF-8")
    return Path(os.path.realpath(head)) / name


def _refuse_long(output: Path, staging_bytes: int) -> None:
    """Refuse a name beside which there is no place for those of the lock and the staging directory."""
    folder = next(parent for parent in output.parents if parent.exists())
    least = staging_bytes - len(os.fsencode(output.name))
    limit = os.pathconf(folder, "PC_NAME_MAX") - least
    if len(os.fsencode(output.name)) > limit:
        raise OutputError(
            f"the output's name has {staging_bytes - least} bytes, and at most {limit} here; choose a shorter one"
        )


def _refuse_overlap(output: Path, inputs: Sequence[str]) -> None:
    """Refuse an output that is, lies in or holds an input; globs count as the files they match."""
    for source in inputs:
        path = local_path(source)
        for one in expand_local(path) if path is not None else []:
            real = Path(os.path.realpath(one))
            if real == output:
                raise OutputError(f"the output {output} is also an input; choose another output")
            if real in output.parents:
                raise OutputError(f"the output {output} lies inside the input {one}; choose another output")
            if output in real.parents:
                raise OutputError(f"the input {one} lies inside the output {output}; choose another output")


def _refuse_uri_overlap(uri: str, inputs: Sequence[str]) -> None:
    output = public_name(uri).rstrip("/") + "/"
    for source in inputs:
        one = public_name(source).rstrip("/") + "/"
        if is_uri(source) and (one.startswith(output) or output.startswith(one)):
            raise OutputError(f"the output {output} and the input {one} lie inside each other; choose another output")


def _refuse_foreign(name: str, entries: Sequence[tuple[str, bool]]) -> None:
    """Refuse to overwrite anything but the output of a job: parts alone, or ``_SUCCESS`` with parts and ``_*`` files.

    ``entries`` are (name, is it a regular file).
    """
    complete = any(entry == SUCCESS for entry, _ in entries)
    for entry, regular in entries:
        if not regular or not (entry.startswith("part-") or (complete and entry.startswith("_") and "/" not in entry)):
            raise OutputError(
                f"{name} holds {entry!r}, which no job wrote, so it is not overwritten or deleted; remove it first"
            )


def _published_before(published: dict[int, int], part: int, attempt: int) -> bool:
    """Tell whether exactly this attempt was published; refuse a second attempt of the part."""
    if published.get(part, attempt) != attempt:
        raise OutputError(f"{part_name(part)} is published from attempt {published[part]}; {attempt} comes too late")
    return part in published


def _check_attempt(path: Path) -> None:
    try:
        regular = stat.S_ISREG(path.lstat().st_mode)
    except OSError as error:
        raise OutputError(f"cannot publish {path}: {error.strerror}; its writer left no file") from error
    if not regular:
        raise OutputError(f"cannot publish {path}: not a regular file")
