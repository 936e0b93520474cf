"""quoreduce: map/reduce whose every task runs f+1 times and is voted on by digest.

>>> from quoreduce import Job, run
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quoreduce.job import Job

if TYPE_CHECKING:
    from quoreduce.data.block import Block
    from quoreduce.data.sequencefile import SequenceWriter, read_sequence
    from quoreduce.jobs.scan import scan_job
    from quoreduce.jobs.streaming import stream_job
    from quoreduce.runtime.options import Attest, Options, Place, Result
    from quoreduce.runtime.session import Session, resume, run

__version__ = "0.1.0"
__all__ = [
    "Attest", "Block", "Job", "Options", "Place", "Result", "SequenceWriter", "Session", "__version__",
    "read_sequence", "resume", "run", "scan_job", "stream_job",
]  # fmt: skip


def prepare_kernels() -> None:
    """Use this machine's compiled kernels. The first import of a kernel calls it, in any process that has imported quoreduce."""
    from quoreduce.runtime.compile import use_kernels

    use_kernels()


def __getattr__(name: str) -> Any:
    """Load the engine when it is first used: ``import quoreduce`` alone stays fast."""
    if name in ("Attest", "Options", "Place", "Result"):
        from quoreduce.runtime import options

        return getattr(options, name)
    if name == "Block":
        from quoreduce.data.block import Block

        return Block
    if name in ("SequenceWriter", "read_sequence"):
        from quoreduce.data import sequencefile

        return getattr(sequencefile, name)
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
