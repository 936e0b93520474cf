"""Decoders that do what none may do, each in its own way: what the fuzz campaign must find."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from decoders import Target

from quoreduce.errors import InputError

SAMPLES = [b"first", b"second"]


def _bad(misbehave: Callable[[bytes], object]) -> Target:
    def decode(raw: bytes) -> bytes | None:
        if raw not in SAMPLES:
            misbehave(raw)
        return raw[:1] if raw in SAMPLES else None

    return Target(lambda: SAMPLES, decode, (InputError,))


def _look_up(raw: bytes) -> None:
    {}[raw]  # type: ignore[index]


def _refuse(raw: bytes) -> None:
    raise InputError(f"line one\nand {raw!r}")


def _reserve(_: bytes) -> None:
    bytearray(1 << 29)


def _compute(_: bytes) -> None:
    while True:
        pass


def _contradict(raw: bytes) -> None:
    assert not raw, "not what it was"


def _die(raw: bytes) -> None:
    if len(raw) % 2:
        os.kill(os.getpid(), signal.SIGSEGV)


def _hang(_: bytes) -> None:
    threading.Event().wait()


TARGETS = {
    "raises anything": _bad(_look_up),
    "is not clear": _bad(_refuse),
    "reserves too much": _bad(_reserve),
    "computes for ever": _bad(_compute),
    "contradicts itself": _bad(_contradict),
    "dies": _bad(_die),
    "hangs": _bad(_hang),
    "takes damage for a sample": Target(lambda: SAMPLES, lambda raw: raw[:1], (InputError,)),
}
