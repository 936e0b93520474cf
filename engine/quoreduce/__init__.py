"""quoreduce: map/reduce whose every task runs f+1 times and is voted on by digest.

>>> from quoreduce import Job, run
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quoreduce.job import Check, Job, Sums
from quoreduce.version import __version__

if TYPE_CHECKING:
    from quoreduce.data.block import Block
    from quoreduce.data.sequencefile import read_sequence
    from quoreduce.data.sequencewriter import SequenceWriter
    from quoreduce.driver.result import Result
    from quoreduce.jobs.scan import scan_job
    from quoreduce.jobs.streaming import stream_job
    from quoreduce.protocol.options import Attest, Options, Place
    from quoreduce.runtime.session import Session, resume, run

__all__ = [
    "Attest", "Block", "Check", "Job", "Options", "Place", "Result", "SequenceWriter", "Session", "Sums", "__version__",
    "read_sequence", "resume", "run", "scan_job", "stream_job",
]  # fmt: skip


def prepare_kernels() -> None:
    """Use this machine's compiled kernels. The first import of a kernel calls it, in any process that has imported
    quoreduce.
    """
    from quoreduce.protocol.compile import use_kernels

    use_kernels()


def _load(name: str) -> Any:
    """Load the engine when it is first used: ``import quoreduce`` alone stays fast."""
    if name in ("Attest", "Options", "Place"):
        from quoreduce.protocol import options

        return getattr(options, name)
    if name == "Result":
        from quoreduce.driver.result import Result

        return Result
    if name == "Block":
        from quoreduce.data.block import Block

        return Block
    if name == "read_sequence":
        from quoreduce.data.sequencefile import read_sequence

        return read_sequence
    if name == "SequenceWriter":
        from quoreduce.data.sequencewriter import SequenceWriter

        return SequenceWriter
    if name == "scan_job":
        from quoreduce.jobs.scan import scan_job

        return scan_job
    if name == "stream_job":
        from quoreduce.jobs.streaming import stream_job

        return stream_job
    if name in ("Session", "resume", "run"):
        from quoreduce.runtime import session

        return getattr(session, name)
    raise AttributeError(f"module 'quoreduce' has no attribute {name!r}")


if not TYPE_CHECKING:  # a type checker sees the imports above, and so reports a name that does not exist
    __getattr__ = _load
