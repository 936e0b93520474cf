"""GridMix's three sets of data: random words, a function of (set, bytes, parts, seed) alone.

=========== ==================== ======================= ==================================================
set         words in a key       words in a value        part files
=========== ==================== ======================= ==================================================
varcompseq  5 to 9               100 to 9,999            SequenceFile of Text, compressed in blocks by zlib
fixcompseq  5                    100                     the same
varinfltext 1 to 9               0 to 199                text, ``key<TAB>value`` lines
=========== ==================== ======================= ==================================================

Each part file is made from a random stream of its own, so neither the number of workers nor the order of their work
shows in the bytes; nor does the version of zlib, since the compressor is ours (``quoreduce_kernels.gridgen``). As in
Hadoop's generator, the size that is asked for counts keys and values only, and a part ends with the record that reaches
its share.

A set is a directory with part-00000, part-00001, ... and ``_gridmix.json``, which says how it was made and what is in
it.
"""

from __future__ import annotations

import glob
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from quoreduce import files
from quoreduce.data.commit import output_errors
from quoreduce.data.sequencefile import file_header, sync_marker
from quoreduce.data.sequencewriter import block_frame
from quoreduce.errors import HostError, InputError, OutputError, UsageError, one_line

if TYPE_CHECKING:
    from quoreduce_kernels.gridgen import TextChunk, WordList

Kind = Literal["varcompseq", "fixcompseq", "varinfltext"]
Progress = Callable[[int, int], None]

RANGES: dict[str, tuple[int, int, int, int]] = {
    "varcompseq": (5, 5, 100, 9900),
    "fixcompseq": (5, 1, 100, 1),
    "varinfltext": (1, 9, 0, 200),
}
"""For each set: the fewest words in a key and how many numbers of words there are, then the same for values."""

KINDS: tuple[Kind, ...] = ("varcompseq", "fixcompseq", "varinfltext")
PARTS_USUAL = 100
PARTS_MAX = 100_000
NBYTES_MAX = 1 << 50
NBYTES_USUAL: dict[str, int] = {"varcompseq": 2 << 30, "fixcompseq": 2 << 30, "varinfltext": 512 << 20}
DESCRIPTION = "_gridmix.json"
VERSION = 1
SIZES = ("small", "medium", "large")
SWEEP = "parts:"
"""``parts:N`` is the size of a job that reads the first N part files."""

_PART = re.compile("part-[0-9]{5,}")
_DESCRIPTION_BYTES_MAX = 256 * PARTS_MAX
_STORED_BYTES_MAX = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class PartFile:
    """A part file: its name, size in bytes, records, bytes of keys and values in it, and BLAKE3 of the file."""

    name: str
    nbytes: int
    records: int
    text_bytes: int
    blake3: str


@dataclass(frozen=True, slots=True)
class DataSet:
    """A set on disk: what it was made of, and its part files in order."""

    path: Path
    kind: Kind
    nbytes: int
    seed: int
    parts: tuple[PartFile, ...]

    @property
    def format(self) -> str:
        """The record format of a job that reads it: ``sequence`` or ``lines``."""
        return "lines" if self.kind == "varinfltext" else "sequence"

    def files(self, size: str = "large") -> list[str]:
        """Paths of the part files that a job of a size reads; raise UsageError if there are not that many.

        ``small``: 00000 to 00002; ``medium``: numbers that end in 0, 1 or 2; ``large``: all; ``parts:N``: the first N.
        """
        wanted = parts_in(size)
        if wanted is not None and wanted > len(self.parts):
            raise UsageError(
                f"{self.kind} has {len(self.parts)} part files, not {wanted}: ask for fewer, "
                f"or generate it with --parts {wanted}"
            )
        return [str(self.path / part.name) for i, part in enumerate(self.parts) if _in_size(i, size, wanted)]


def parts_in(size: str) -> int | None:
    """Return N of a size ``parts:N``, None for small, medium and large; raise UsageError for anything else."""
    if size in SIZES:
        return None
    number = size.removeprefix(SWEEP)
    if number == size or not re.fullmatch("[0-9]{1,6}", number) or not 1 <= int(number) <= PARTS_MAX:
        raise UsageError(f"a size is small, medium, large, or parts:N with N in 1..{PARTS_MAX}, not {size!r}")
    return int(number)


def _in_size(number: int, size: str, wanted: int | None) -> bool:
    if wanted is not None:
        return number < wanted
    return size == "large" or number < 3 or (size == "medium" and number % 10 < 3)


def generate(
    kind: Kind, directory: str | os.PathLike[str], nbytes: int, parts: int = PARTS_USUAL, seed: int = 0,
    workers: int | None = None, progress: Progress | None = None, overwrite: bool = False,
) -> DataSet:  # fmt: skip
    """Make a set of data in ``directory``, which appears complete or not at all.

    Args:
        kind: which set.
        directory: must not exist, unless ``overwrite`` and it is a set; its parent is made if need be.
        nbytes: size of all keys and values, before compression; each of the parts has an equal share, and is over it by
            less than a record.
        parts: number of part files.
        seed: any integer.
        workers: processes; default: as many as there are cores, but not more than parts. With 1, this process does it.
        progress: is called now and then with (bytes made, ``nbytes``).
        overwrite: replace an earlier set.

    Raises:
        UsageError: numbers out of range.
        OutputError: the directory exists or cannot be written (no space): nothing of the new set is left.
        HostError: a worker died.
    """
    in_range = 0 <= nbytes <= NBYTES_MAX and 1 <= parts <= PARTS_MAX and (workers is None or workers >= 1)
    if kind not in KINDS or not in_range:
        raise UsageError(
            f"no set {kind!r} of {nbytes} bytes in {parts} parts by {workers} workers: sets are {', '.join(KINDS)}"
        )
    target = Path(os.path.abspath(directory))
    _refuse_existing(target, overwrite)
    count = min(workers or len(os.sched_getaffinity(0)), parts)
    with _staged(target) as staging:
        made = _make_parts(
            _Order(kind, str(staging), nbytes, parts, seed), count, progress or (lambda done, total: None)
        )
        data = DataSet(target, kind, nbytes, seed, made)
        with output_errors(target):
            (staging / DESCRIPTION).write_text(_describe(data))
            _publish(staging, target, overwrite)
    return data


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to make it in; what of this bears our marker and its maker is dead is deleted
    before.
    """
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for dead in target.parent.glob(f".{glob.escape(target.name)}.*.staging"):
            files.remove_dead(dead)
        folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.staging")
        folder.mkdir()
        hold = files.Hold(folder, ends=True)
    try:
        with output_errors(target):
            (folder / "set").mkdir()
        yield folder / "set"
    finally:
        hold.remove()


def load(directory: str | os.PathLike[str]) -> DataSet:
    """Read what :func:`generate` wrote about a set; raise InputError if it is malformed, or a part has another size."""
    path = Path(os.path.abspath(directory))
    try:
        with open(path / DESCRIPTION, "rb") as file:
            said = msgspec.json.decode(file.read(_DESCRIPTION_BYTES_MAX), type=_Said)
        if said.version != VERSION:
            raise ValueError(f"version {said.version} is not known")
        for number, part in enumerate(said.parts):
            if part.name != part_name(number):
                raise ValueError(f"part {number} is named {part.name!r}")
            size = (path / part.name).stat().st_size
            if size != part.nbytes:
                raise ValueError(f"{part.name} has {size} bytes, not {part.nbytes}")
        return DataSet(path, said.set, said.nbytes, said.seed, said.parts)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also what msgspec raises
        raise InputError(f"{path} is no set of GridMix's data: {one_line(error)}; generate it") from error


class _Said(msgspec.Struct, frozen=True):
    """The contents of ``_gridmix.json``."""

    version: int
    set: Kind
    nbytes: int
    seed: int
    parts: tuple[PartFile, ...]


@dataclass(frozen=True, slots=True)
class _Order:
    """An order to generate parts; sent to workers as JSON."""

    kind: Kind
    folder: str
    nbytes: int
    parts: int
    seed: int

    def share(self, part: int) -> int:
        """Bytes of keys and values of a part."""
        return self.nbytes // self.parts + (part < self.nbytes % self.parts)


def part_name(part: int) -> str:
    """Return the name of a part file: ``part-00000`` and on."""
    return f"part-{part:05d}"


def part_pieces(kind: Kind, seed: int, part: int, nbytes: int) -> Iterator[tuple[bytes | memoryview, int, int]]:
    """Yield a part file piece by piece: (bytes of the file, records, bytes of keys and values in it)."""
    from blake3 import blake3

    from quoreduce_kernels import gridgen

    words = _word_list()
    name = f"gridmix {VERSION} {kind} seed {seed} part {part}"
    stream = int.from_bytes(blake3(name.encode()).digest(8), "little")
    sync = sync_marker(seed, part)
    if kind != "varinfltext":
        yield file_header(sync), 0, 0
    for chunk in gridgen.draw_chunks(words, gridgen.Ranges(*RANGES[kind]), nbytes, stream):
        piece = gridgen.render_text(words, chunk).data if kind == "varinfltext" else _block(words, chunk, sync)
        yield piece, len(chunk.records), chunk.nbytes


def _word_list() -> WordList:
    from quoreduce_gridmix.words import WORDS
    from quoreduce_kernels.gridgen import WordList

    return WordList.of(WORDS)


def _block(words: WordList, chunk: TextChunk, sync: bytes) -> bytes:
    """A SequenceFile's block; the lengths, a few bytes for each record, are not compressed, so that zlib has no say."""
    from quoreduce_kernels import gridgen

    buffers = []
    for column in (gridgen.KEY, gridgen.VALUE):
        buffers.append(stored(gridgen.render_lengths(chunk, column).tobytes()))
        buffers.append(gridgen.deflate(words, chunk, column))
    return block_frame(sync, len(chunk.records), buffers)


def stored(data: bytes) -> bytes:
    """Return a zlib stream of uncompressed blocks (RFC 1951, 3.2.4)."""
    import zlib

    out = b"\x78\x01"
    starts = range(0, len(data), _STORED_BYTES_MAX) or [0]
    for start in starts:
        piece = data[start : start + _STORED_BYTES_MAX]
        size, last = len(piece), start == starts[-1]
        out += bytes([last]) + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + piece
    return out + zlib.adler32(data).to_bytes(4, "big")


def _make_part(order: _Order, part: int, report: Callable[[int], None]) -> PartFile:
    """Write one part file; ``report`` gets the bytes of keys and values as they are made."""
    from blake3 import blake3

    path = Path(order.folder) / part_name(part)
    digest, nbytes, records, text_bytes = blake3(), 0, 0, 0
    with output_errors(path), open(path, "xb", buffering=0) as file:
        for piece, count, text in part_pieces(order.kind, order.seed, part, order.share(part)):
            digest.update(piece)
            view = memoryview(piece)
            nbytes += len(view)
            while view:
                view = view[file.write(view) :]
            records += count
            text_bytes += text
            report(text)
    return PartFile(path.name, nbytes, records, text_bytes, digest.hexdigest())


def _make_parts(order: _Order, workers: int, progress: Progress) -> tuple[PartFile, ...]:
    done = 0

    def report(text: int) -> None:
        nonlocal done
        done += text
        progress(min(done, order.nbytes), order.nbytes)

    _load_kernels()
    if workers == 1:
        return tuple(_make_part(order, part, report) for part in range(order.parts))
    made: dict[int, PartFile] = {}
    for message in _work(order, workers):
        if "part" in message:
            made[message["number"]] = PartFile(**message["part"])
        else:
            report(message["bytes"])
    return tuple(made[part] for part in range(order.parts))


def _load_kernels() -> None:
    """Have the kernels compiled, once, before workers of this process load them."""
    import quoreduce_kernels.gridgen  # noqa: F401


def _work(order: _Order, workers: int) -> Iterator[dict[str, Any]]:
    """Start processes, each with every ``workers``-th part, and yield their messages; they are gone when this ends."""
    with ExitStack() as stack:
        started = [_start(order, range(first, order.parts, workers), stack) for first in range(workers)]
        for process, line in _lines(started, stack):
            message = json.loads(line) if line.startswith(b"{") else {}
            if "error" in message:
                raise (OutputError if message["output"] else HostError)(message["error"])
            if line and not message:
                raise HostError(f"a worker of the generator said {line[:200]!r}")
            if not line and process.wait() != 0:
                raise HostError(f"a worker of the generator died with exit code {process.returncode}; run it again")
            if message:
                yield message


def _start(order: _Order, parts: range, stack: ExitStack) -> subprocess.Popen[bytes]:
    code = f"from {__name__} import _worker; _worker()"
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    stack.callback(_stop, process)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # what became of it, its exit code says
        pipe.write(json.dumps({"order": asdict(order), "parts": [parts.start, parts.stop, parts.step]}).encode())
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _lines(
    processes: Sequence[subprocess.Popen[bytes]], stack: ExitStack
) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """Yield (process, line) as lines come, and (process, b"") when a process has no more."""
    import selectors

    selector = stack.enter_context(selectors.DefaultSelector())
    pending = {}
    for process in processes:
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ, process)
        pending[process.pid] = b""
    while selector.get_map():
        for key, _ in selector.select():
            chunk = os.read(key.fd, 1 << 16)
            *lines, pending[key.data.pid] = (pending[key.data.pid] + chunk).split(b"\n")
            yield from ((key.data, line) for line in lines)
            if not chunk:
                selector.unregister(key.fileobj)
                yield key.data, b""


def _worker() -> None:
    """Make the parts that stdin names, and say so on stdout: the main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started this ends it
    request = json.loads(sys.stdin.buffer.read())
    order = _Order(**request["order"])

    def say(message: dict[str, Any], file: IO[str] = sys.stdout) -> None:
        print(json.dumps(message), file=file, flush=True)

    try:
        for number in range(*request["parts"]):
            part = _make_part(order, number, lambda text: say({"bytes": text}))
            say({"number": number, "part": asdict(part)})
    except (OutputError, MemoryError) as error:
        say({"error": str(error) or "out of memory", "output": isinstance(error, OutputError)})
        sys.exit(1)
    except BrokenPipeError:  # its reader is gone
        os._exit(1)


def _describe(data: DataSet) -> str:
    said = {"version": VERSION, "set": data.kind, "nbytes": data.nbytes, "seed": data.seed}
    return json.dumps({**said, "parts": [asdict(part) for part in data.parts]}, indent=1) + "\n"


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise OutputError(f"{target} exists: use --overwrite to replace it")
    if target.is_symlink() or not target.is_dir() or (os.listdir(target) and not (target / DESCRIPTION).is_file()):
        raise OutputError(f"{target} is no set of GridMix's data: it is not replaced; choose another directory")
    _refuse_foreign(target, target)


def _refuse_foreign(target: Path, folder: Path) -> None:
    """Refuse to replace a set beside whose parts there is something else."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name != DESCRIPTION and not (_PART.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)):
                raise OutputError(
                    f"{target} holds {entry.name!r}, which is no part of a set: remove it first, or choose another"
                )


def _publish(staging: Path, target: Path, overwrite: bool) -> None:
    """Rename the whole to its place; an earlier set is put aside before and goes with what it was made in."""
    _refuse_existing(target, overwrite)
    old = staging.with_name("old")
    if target.exists():
        target.rename(old)
    try:
        if old.exists():
            _refuse_foreign(target, old)  # what came in since then
        staging.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
