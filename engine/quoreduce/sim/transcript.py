"""The transcript of a simulated job: one line for each event and command, kept as a hash, and as text if wanted."""

from __future__ import annotations

import hashlib

from quoreduce.tracker import (
    BlockLost,
    Event,
    Finished,
    Launch,
    Published,
    Refused,
    Retested,
    Slow,
    Source,
    WorkerJoined,
    WorkerLost,
)


class Transcript:
    """``lines``: the text, or None if only the hash is kept."""

    def __init__(self, lines: bool) -> None:
        self.lines: list[str] | None = [] if lines else None
        self._hash = hashlib.blake2b(digest_size=16)
        self._last_sources: tuple[tuple[tuple[Source, ...], ...], str, int] = ((), "", 0)

    def record(self, line: str) -> None:
        """Add a line."""
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        if self.lines is not None:
            self.lines.append(line)

    def launched(self, c: Launch) -> None:
        """Add the line of a launch."""
        sources = self._sources_text(c)
        self.record(f"  launch {c.task} attempt {c.attempt} on {c.worker}{' storing' * c.store}{sources}")

    def _sources_text(self, c: Launch) -> str:
        """A hash of the copies that a reduce is to read, computed once for as long as they stay the same."""
        if not c.sources:
            return ""
        if self._last_sources[0] is not c.sources:
            attempts = ",".join(str(source.attempt) for copies in c.sources for source in copies)
            text = f" reading {hashlib.blake2b(attempts.encode(), digest_size=4).hexdigest()}"
            self._last_sources = (c.sources, text, sum(map(len, c.sources)))
        return self._last_sources[1]

    def copies(self, c: Launch) -> int:
        """How many copies a reduce is to read; those of the last launch are counted already."""
        return self._last_sources[2] if self._last_sources[0] is c.sources else sum(map(len, c.sources))

    def hexdigest(self) -> str:
        """The hash of all lines so far."""
        return self._hash.hexdigest()


def event_line(event: Event) -> str:
    """The line of an event."""
    if isinstance(event, Finished):
        return f"finished {event.attempt} {event.output.digest.decode()}"
    if isinstance(event, WorkerJoined):
        return f"joined {event.worker} in {event.domain}"
    if isinstance(event, WorkerLost):
        return f"lost {event.worker}{' and its blocks' * event.blocks_lost}"
    if isinstance(event, Refused):
        return f"refused {event.attempt}: {','.join(map(str, event.bad))}"
    if isinstance(event, BlockLost):
        return f"block lost {event.attempt}"
    if isinstance(event, Slow):
        return f"slow {event.attempt}"
    if isinstance(event, Retested):
        return f"test {event.test} {'passed' if event.passed else 'failed'}"
    return f"published {event.attempt}" if isinstance(event, Published) else "stalled"
