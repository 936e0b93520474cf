"""What workers say, and evidence: samples, and how each is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any


@cache
def replies() -> list[bytes]:
    from quoreduce.protocol import wire

    parts = tuple(wire.PartReply(bytes([i]) * 32, 10 * i, 100 * i, i - 1) for i in range(3))
    return [
        wire.encode(reply)
        for reply in (
            wire.Done(
                3,
                parts,
                "/dev/shm/x/3",
                b"side",
                7,
                70,
                700,
                counters={"WORDS": 9, "LINES": 1},
                generation=2,
                cpu_s=0.25,
            ),
            wire.JobRaised(4, "ValueError: x"),
            wire.InputsRefused(5, (1, 2, 3), "its digest is another"),
            wire.HostFailed(6, "no space"),
            wire.Reread(7, b"e" * 32),
            wire.Summed(7, parts, b"given", b"found", 9),
            wire.Inspected(8, b"nodes", b"e" * 32, 9),
            wire.Tested(9, b"digests"),
            wire.NotTested(10, "out of memory"),
            wire.Ready(wire.encode(wire.Admission(b"document", b"public"))),
            wire.NotReady("no module named x", True),
            wire.LaunchQuoted(b"launch"),
            wire.BatchQuoted(b"batch"),
            wire.SealQuoted(b"seal"),
            wire.NotQuoted("no TPM"),
        )
    ]


def read_reply(raw: bytes) -> None:
    from quoreduce.protocol import wire

    reply = wire.decode_reply(raw)
    assert wire.decode_reply(wire.encode(reply)) == reply
    assert math.isfinite(reply.cpu_s)
    assert reply.cpu_s >= 0, "a figure that is none"
    for text in (getattr(reply, "error", ""), getattr(reply, "path", "")):
        text.encode()


def evidence(name: str) -> tuple[Callable[[], Sequence[bytes]], Callable[[bytes], None]]:
    def kind() -> tuple[Any, Any]:
        from quoreduce.protocol import wire
        from quoreduce.trust.evidence import Hardware

        quote = (b"message" * 20, b"signature" * 8)
        return {
            "admission": (wire.Admission, wire.Admission(b'{"document": 1}' * 9, b"public" * 15)),
            "committed": (wire.Committed, wire.Committed(64, bytes(32), *quote)),
            "quoted": (wire.Quoted, wire.Quoted(*quote)),
            "hardware": (Hardware, Hardware((b"ek" * 99, b"ca" * 99), b"ak" * 50, bytes(64), *quote)),
        }[name]

    def decode(raw: bytes) -> None:
        from quoreduce.protocol import wire

        found = wire.decode_evidence(raw, kind()[0])
        assert wire.decode_evidence(wire.encode(found), kind()[0]) == found

    def samples() -> list[bytes]:
        from quoreduce.protocol import wire

        return [wire.encode(kind()[1])]

    return samples, decode
