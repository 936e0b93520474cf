"""Typed errors, split by whose fault it is: the caller's, the job's, a replica's, the host's.

Every error that reaches a user is one clear line that says what to do; ``exit_code`` is what the command
line ends with (docs/guide/batch-jobs.md, "Exit codes").
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

LINE_CHARS_MAX = 500


def one_line(error: object) -> str:
    """Return what an error says in one line, cut where it is too long: it may quote what was found in a file or a
    message.
    """
    text = " ".join(str(error).split())
    return text if len(text) <= LINE_CHARS_MAX else f"{text[:LINE_CHARS_MAX]}..."


class QuoreduceError(Exception):
    """Base of all errors that quoreduce raises on purpose; ``exit_code`` is the command line's."""

    exit_code = 1


class UsageError(QuoreduceError):
    """The caller asked for something that cannot be: an unknown job, a bad flag, a bad combination."""

    exit_code = 2


class InputError(QuoreduceError):
    """An input is missing, unreadable, corrupt or not of the job's format."""

    exit_code = 2


class OutputError(QuoreduceError):
    """The output exists, lies inside the input, cannot be written or is not what its manifest says."""

    exit_code = 2


class JournalError(QuoreduceError):
    """A durable job cannot be resumed: it does not exist, its journal is corrupt, or its inputs have changed."""

    exit_code = 2


class JobError(QuoreduceError):
    """The job's own code failed in the same way on f+1 failure domains: the agreed outcome is this error."""

    exit_code = 2


class FaultsMasked(QuoreduceError):
    """With ``--strict``: the output is right and published, but faults were masked on the way."""

    exit_code = 3


class NoQuorum(QuoreduceError):
    """No output of a task was produced by f+1 distinct failure domains within the bound on attempts (R3)."""

    exit_code = 4


class TooFewDomains(QuoreduceError):
    """Fewer failure domains than f+1: no vote could ever be won (R1)."""

    exit_code = 4


class NotDeterministic(QuoreduceError):
    """The job disagrees with itself on the same node (R11): the job's fault, not the node's."""

    exit_code = 5


class BlockError(QuoreduceError):
    """Bytes that are not a well-formed block: truncated, oversized, overlapping, unknown schema."""

    exit_code = 4


class HostError(QuoreduceError):
    """The machine or the cluster failed us: no space, no Ray, workers that cannot start."""

    exit_code = 4


class AttestationError(QuoreduceError):
    """Evidence of what ran is refused, or cannot be made."""

    exit_code = 6


class EvidenceError(AttestationError):
    """Bytes that are not well-formed evidence: a quote, a signature, a key, an event log, a receipt."""


class VmError(QuoreduceError):
    """A trusted VM operation was refused, or cannot be done."""

    exit_code = 6


@contextmanager
def host_errors(doing: str) -> Iterator[None]:
    """Turn an OSError of our own calls, for which there is no better name, into a HostError; ``doing``: what failed.

    A broken pipe stays what it is: somebody no longer wants to read what we say.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = f"no space left on device: {name or doing}; free some, or write somewhere else"
            raise HostError(one_line(full)) from error
        where = f": {name}" if name else ""
        raise HostError(one_line(f"{doing}{where}: {error.strerror or error}")) from error
