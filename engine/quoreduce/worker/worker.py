"""What a worker does, the same on every executor: split -> map -> blocks -> digest; blocks -> reduce -> output ->
digest.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
from blake3 import blake3
from msgspec import structs

from quoreduce.data.block import Block, Buffer
from quoreduce.data.digest import Digester, SealedBlock
from quoreduce.data.formats import parse_format
from quoreduce.data.inputs import open_records
from quoreduce.errors import HostError, host_errors
from quoreduce.interrupts import Terminated
from quoreduce.job import Job, record_width
from quoreduce.jobs.python import block_style
from quoreduce.protocol import wire
from quoreduce.worker.context import MapContext, ReduceContext
from quoreduce.worker.inspector import inspect_copy
from quoreduce.worker.reading import Inputs, Refused
from quoreduce.worker.spoil import delay_s, spoil_blocks, spoil_bytes, spoil_file
from quoreduce.worker.store import BlockReader, BlockStore

if TYPE_CHECKING:
    from quoreduce.worker.attester import Attester

Fetch = Callable[[wire.StoredCopy], bytes]
COMPUTE_FAULTS = ("flip", "wrong", "stuck", "bad")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)


class Crash(BaseException):
    """An injected crash: the executor turns it into the death of the worker."""


class Hang(BaseException):
    """An injected hang: the executor never answers."""


class Worker:
    """Executes requests, one at a time. ``fetch`` brings a partition from another node, if there are others."""

    def __init__(self, name: str, node: str, folder: Path, fetch: Fetch | None = None) -> None:
        self.name = name
        self.node = node
        self.store = self._blocks = BlockStore(folder)
        self._reader = BlockReader()
        self._fetch = fetch
        self._setup: wire.Setup | None = None
        self._attester: Attester | None = None

    def handle(self, raw: bytes) -> bytes | None:
        """Execute one request and return the reply, both as msgpack; None for requests without a reply."""
        request = wire.decode_request(raw)
        if isinstance(request, wire.DiscardTask):
            self._discard(request)
            return None
        start, began = _cpu_s(), time.monotonic()
        try:
            reply = self._run(request)
        except Refused as refused:
            assert isinstance(request, wire.ReduceTask | wire.CheckTask | wire.ProbeTask), "others refuse nothing"
            reply = wire.InputsRefused(request.attempt, refused.bad, refused.why)
        except (HostError, MemoryError) as error:
            reply = _failure(request, str(error) or "out of memory", host=True)
        except OSError as error:
            full = error.errno in NO_SPACE
            where = f"no space left on device: {error.filename or self.store.folder}"
            reply = _failure(request, where if full else _raised(error), host=full)
        except Terminated:
            raise  # this process is to end, and no job's code has said so
        except (Exception, SystemExit) as error:  # noqa: BLE001 - what the job's code raises is voted on, whatever it is
            reply = _failure(request, _raised(error), host=False)
        fault: wire.Fault | None = getattr(request, "fault", None)
        if fault is not None and fault.kind == "slow":
            time.sleep(delay_s(time.monotonic() - began))
        if self._attester is not None and isinstance(request, wire.MapTask | wire.ReduceTask | wire.SampleTask):
            assert self._setup is not None
            self._attester.measure(request, self._setup, reply)
        generation = self._setup.generation if self._setup else 0
        return wire.encode(structs.replace(reply, cpu_s=_cpu_s() - start, generation=generation))

    def _run(self, request: wire.Request) -> wire.Reply:
        match request:
            case wire.Setup():
                return self._begin(request)
            case wire.MapTask():
                return self._map(request)
            case wire.ReduceTask():
                return self._reduce(request)
            case wire.SampleTask():
                return self._sample(request)
            case wire.CheckTask():
                return self._check(request)
            case wire.RereadTask():
                with host_errors("cannot read a part"):
                    digest = self._digester.file(Path(request.path), request.stride)
                return wire.Reread(request.attempt, digest)
            case wire.ProbeTask():
                return self._run(request.task)
            case wire.InspectTask():
                return inspect_copy(request, self.read, self._digester, record_width(self._job.output))
            case wire.InputTask():
                return self._input(request)
            case wire.SelfTest():
                from quoreduce.protocol import selftest

                return wire.Tested(request.attempt, selftest.answer(request))
            case wire.CommitTask() | wire.SealTask() | wire.RootTask():
                return self._attest(request)
        raise HostError(f"unknown request {type(request).__name__}")

    def _begin(self, setup: wire.Setup) -> wire.Ready:
        self.store.recycle(setup.gone)
        self._reader.forget()
        self._setup = setup
        self._blocks = _durable_store(setup.store, self.name) if setup.store else self.store
        self._digester = Digester(setup.algorithm, setup.key)  # type: ignore[arg-type]
        declared: Job = cloudpickle.loads(setup.job)
        self._job = block_style(declared)
        self._format = parse_format(self._job.input)
        self._attester = None
        if setup.attested is None:
            return wire.Ready()
        from quoreduce.worker.attester import Attester

        self._attester = Attester(setup.attested)
        return wire.Ready(wire.encode(self._attester.admission()))

    def _attest(self, request: wire.CommitTask | wire.SealTask | wire.RootTask) -> wire.EvidenceReply:
        if isinstance(request, wire.RootTask):
            from quoreduce.worker.attester import launch

            return wire.LaunchQuoted(wire.encode(launch(request)))
        if self._attester is None:
            raise HostError("this worker does not attest")
        if isinstance(request, wire.SealTask):
            return wire.SealQuoted(wire.encode(self._attester.seal(request.nonce)))
        return wire.BatchQuoted(wire.encode(self._attester.commit(request.count)))

    def _seed(self, kind: str, index: int) -> int:
        assert self._setup is not None
        return int.from_bytes(blake3(f"{self._setup.seed} {kind} {index}".encode()).digest(8), "little")

    def _map(self, task: wire.MapTask) -> wire.Done:
        assert self._setup is not None
        allocate = (lambda n: self._blocks.allocate(task.attempt, n)) if task.store else self.store.scratch
        ctx = MapContext(
            task.index, self._setup.reducers, task.side, self._seed("map", task.index),
            task.store or task.fault is not None, self._digester, allocate, self._setup.maps,
        )  # fmt: skip
        try:
            with open_records(task.split, self._format, self.store.folder, direct=task.direct) as data:
                outputs = self._partitions(self._job.map(data, ctx), ctx)
                bytes_in = int(data.nbytes)
                del data
            if task.fault and task.fault.kind in COMPUTE_FAULTS:
                spoil_blocks(task.fault, ctx.placed or ())
            parts = tuple(self._part(output, i, ctx) for i, output in enumerate(outputs))
        except BaseException:
            self._blocks.discard(task.attempt)
            raise
        path = self._blocks.path(task.attempt) if task.store else ""
        if task.fault:
            parts = self._after(task.fault, parts, path, ctx.placed or ())
        return wire.Done(
            task.attempt, parts, path, records_in=ctx_records(ctx), bytes_in=bytes_in, counters=ctx.counters
        )

    def _partitions(self, result: Any, ctx: MapContext) -> Sequence[Block | SealedBlock]:
        """Make R partitions of what a map returned, each in its place."""
        from quoreduce.jobs.partition import place, spread

        if isinstance(result, Block):
            if self._job.combine is not None:
                result = self._job.combine(result, ctx)
            return spread(result, self._job.partition, ctx)
        outputs = list(result)
        if len(outputs) != ctx.reducers:
            raise ValueError(f"map returned {len(outputs)} partitions for {ctx.reducers} reducers")
        if all(isinstance(output, SealedBlock) for output in outputs):
            if ctx.store:
                raise ValueError("map returned digests where blocks must be stored")
            return outputs
        if ctx.placed is None or any(a is not b for a, b in zip(outputs, ctx.placed, strict=True)):
            return place(outputs, ctx)
        return outputs

    def _part(self, output: Block | SealedBlock, index: int, ctx: MapContext) -> wire.PartReply:
        if isinstance(output, SealedBlock):
            return wire.PartReply(output.digest, output.records, output.nbytes, -1)
        digest = self._digester.block(output)
        return wire.PartReply(digest, output.records, output.buffer.size, ctx.offsets[index])

    def _after(
        self, fault: wire.Fault, parts: tuple[wire.PartReply, ...], path: str, blocks: Sequence[Block]
    ) -> tuple[wire.PartReply, ...]:
        """Strike after the digests are taken."""
        if fault.kind == "crash":
            raise Crash
        if fault.kind == "hang":
            raise Hang
        if fault.kind == "swap" and blocks:
            spoil_blocks(fault, blocks)
        if fault.kind == "lose" and path:
            os.unlink(path)
        if fault.kind == "lie":
            return (_lying(parts[0]), *parts[1:])
        return parts

    def _reduce(self, task: wire.ReduceTask) -> wire.Done:
        assert self._setup is not None
        stride = record_width(self._job.output) or 128
        spoil = None
        if task.fault and task.fault.kind in COMPUTE_FAULTS:
            fault, width = task.fault, record_width(self._job.output)
            spoil = lambda data: spoil_bytes(fault, data, width)  # noqa: E731
        inputs = Inputs(self, task.watch, tampered=bool(task.fault and task.fault.kind == "wire"))
        blocks = inputs.all(task.sources)
        with ExitStack() as stack:
            files = [_create(path, stack) for path in task.paths]
            ctx = ReduceContext(
                task.index, self._setup.reducers, task.side, self._seed("reduce", task.index), self._digester, stride,
                files, spoil,
            )  # fmt: skip
            with inputs.unchanged():
                self._job.reduce(blocks, ctx)
                part = wire.PartReply(ctx.finish(), ctx.records, ctx.nbytes, 0)
        if task.fault:
            part = self._after_reduce(task.fault, part, task.paths)
        return wire.Done(
            task.attempt, (part,), task.paths[0] if task.paths else "", bad=tuple(inputs.bad),
            slips=tuple(inputs.slips), refetched=inputs.refetched, bytes_in=inputs.nbytes, bytes_shipped=inputs.shipped,
            counters=ctx.counters,
        )  # fmt: skip

    def _check(self, task: wire.CheckTask) -> wire.Summed:
        from quoreduce.worker.checking import CheckContext, Checker

        assert self._setup is not None
        assert self._job.check is not None, "the driver asks for checks that the job has"
        stride = record_width(self._job.output) or 128
        checker = Checker(self, self._digester, stride, self._format, self.store.folder)
        ctx = CheckContext(task.index, self._setup.reducers, task.side, task.key)
        if task.kind == "map":
            assert self._job.check.map is not None
            return checker.map(task, self._job.check.map, ctx)
        assert self._job.check.reduce is not None
        return checker.reduce(task, self._job.check.reduce, ctx)

    def _after_reduce(self, fault: wire.Fault, part: wire.PartReply, paths: Sequence[str]) -> wire.PartReply:
        (part,) = self._after(fault, (part,), "", ())
        if fault.kind == "swap" and paths:
            spoil_file(fault, paths[0])
        if fault.kind == "lose" and paths:
            os.unlink(paths[0])
        return part

    def _sample(self, task: wire.SampleTask) -> wire.Done:
        assert self._setup is not None
        assert self._job.sample is not None
        ctx = MapContext(
            0, self._setup.reducers, b"", self._seed("sample", 0), False, self._digester, self.store.scratch,
            self._setup.maps
        )  # fmt: skip
        openers = [
            lambda s=s: open_records(s, self._format, self.store.folder, populate=False) for s in self._setup.sources
        ]
        data = bytes(self._job.sample(openers, ctx))
        if len(data) > wire.SIDE_BYTES_MAX:
            raise ValueError(f"sample returned {len(data)} bytes; at most {wire.SIDE_BYTES_MAX} are agreed on")
        if task.fault and task.fault.kind in COMPUTE_FAULTS and data:
            data = bytes(spoil_bytes(task.fault, bytearray(data)))
        part = wire.PartReply(Digester("blake3").of(data), 1, len(data), 0)
        if task.fault:
            (part,) = self._after(task.fault, (part,), "", ())
        return wire.Done(task.attempt, (part,), data=data)

    def _input(self, task: wire.InputTask) -> wire.Inspected:
        with open_records(task.split, self._format, self.store.folder, direct=task.direct) as data:
            raw = data.buffer if isinstance(data, Block) else data
            return wire.Inspected(task.attempt, digest=Digester("blake3").of(raw), bytes_in=int(data.nbytes))

    def _discard(self, request: wire.DiscardTask) -> None:
        for attempt in request.attempts:
            self._blocks.discard(attempt)
        for path, offset, nbytes in request.ranges:
            self._blocks.punch(path, offset, nbytes)

    def read(self, stored: wire.StoredCopy) -> Buffer:
        """Return the bytes of a stored partition: a view of the file on this node, or a copy fetched from its
        holder.
        """
        if stored.node in ("", self.node):
            return self._reader.view(stored.path, stored.offset, stored.nbytes)
        if self._fetch is None:
            raise FileNotFoundError(stored.path)
        return self._fetch(stored)

    def digest(self, block: Block) -> bytes:
        """Digest a block with the job's algorithm."""
        return self._digester.block(block)


def _cpu_s() -> float:
    """CPU seconds of this thread and of the commands that it has run and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime


def _create(path: str, stack: ExitStack) -> int:
    """Open a part's file. Raises HostError if its folder does not exist: that is no fault of the job's code."""
    with host_errors("cannot write"):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError as error:
            folder = os.path.dirname(path)
            why = "something deleted it while the job ran, or this node does not see it"
            raise HostError(f"the folder {folder} is gone: {why}") from error
    stack.callback(_close, fd, path)
    return fd


def _close(fd: int, path: str) -> None:
    """Close a part: a file system may say only now that it could not write (NFS)."""
    with host_errors(f"cannot write {path}"), suppress(InterruptedError):
        os.close(fd)


def _lying(part: wire.PartReply) -> wire.PartReply:
    return wire.PartReply(bytes([part.digest[0] ^ 1]) + part.digest[1:], part.records, part.nbytes, part.offset)


def _durable_store(folder: str, name: str) -> BlockStore:
    """A store whose files are not this session's: nothing is recycled, and whoever ends the job deletes them."""
    if not os.path.isdir(folder):
        raise HostError(
            f"{folder} is not to be seen on a node: a durable job's output has to be where all nodes see it"
        )
    return BlockStore(Path(folder) / name, "free some, and resume the job")


def ctx_records(ctx: MapContext) -> int:
    """Number of input records that the map said it read (0 if it did not say)."""
    return int(getattr(ctx, "records_in", 0))


def _failure(request: wire.Request, error: str, host: bool) -> wire.Reply:
    """The reply to a request that could not be executed; ``host``: the machine failed, not the job's code."""
    match request:
        case wire.Setup():
            return wire.NotReady(error, host)
        case wire.CommitTask() | wire.SealTask() | wire.RootTask():
            return wire.NotQuoted(error)
        case wire.SelfTest(test):
            return wire.NotTested(test, error)
        case wire.DiscardTask():
            raise AssertionError("it has no reply")
    return wire.HostFailed(request.attempt, error) if host else wire.JobRaised(request.attempt, error)


def _raised(error: BaseException) -> str:
    """The text of an exception without addresses: an outcome, on which replicas agree or disagree."""
    text = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
    return re.sub(r"0x[0-9a-fA-F]+", "0x", text)[: wire.ERROR_CHARS_MAX].encode(errors="replace").decode()


def own_numba_cache(folder: Path) -> None:
    """Have numba keep the compiled functions of jobs (``cache=True``) in a folder of this worker alone.

    Numba does not check what it loads: a bit that flips in a file that all replicas load would make all of them wrong
    in the same way.
    """
    os.environ["NUMBA_CACHE_DIR"] = str(folder)


def pinned(core: int | None) -> None:
    """Pin this process to ``core`` and keep libraries to one thread."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    np.seterr(all="ignore")
