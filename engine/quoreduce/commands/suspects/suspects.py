"""``quoreduce suspects``: the record of cores and nodes; test those of this machine; forget them
(docs/guide/suspects.md).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from quoreduce.arguments import unknown_name
from quoreduce.driver.suspects import Record, book
from quoreduce.errors import HostError, UsageError
from quoreduce.printable import printable_name
from quoreduce.protocol import wire
from quoreduce.protocol.compile import ensure_kernels
from quoreduce.protocol.faults import FaultPlan
from quoreduce.protocol.port import WorkerInfo, cores
from quoreduce.protocol.selftest import ALL, ROUNDS, failures
from quoreduce.runtime.local import LocalExecutor

TEST_ROUNDS = 16 * ROUNDS
TEST_LIMIT_S = 120.0
TICK_S = 0.2


def suspects(*, test: bool, clear: str | None, faults: Sequence[str], as_json: bool) -> int:
    """Test this machine's cores, or forget a place, or neither; print what is remembered; return the exit code."""
    if clear:
        return _clear(clear)
    found = test_cores(faults, lambda text: print(text, file=sys.stderr)) if test else {}
    now = time.time()
    if any(wrong is None or wrong or place in book().read() for place, wrong in found.items()) and not faults:
        book().change(lambda places: _note(places, found, now), now)
    _print(book().read(), found, now, as_json)
    return HostError.exit_code if any(wrong is None or wrong for wrong in found.values()) else 0


def test_cores(faults: Sequence[str], say: Callable[[str], None]) -> dict[str, dict[str, int] | None]:
    """Test all cores of this machine at once: place -> test -> wrong answers of TEST_ROUNDS; None if it did not
    answer.
    """
    ensure_kernels(say)
    plan = FaultPlan(faults)
    plan.arm(0, 0, 0)
    executor = LocalExecutor(len(cores()), "core")
    found: dict[str, dict[str, int] | None] = {}
    try:
        workers = {info.name: info for info in executor.start()}
        for number, info in enumerate(workers.values()):
            found[info.place] = None
            executor.submit(info.name, wire.encode(_request(plan, number, info)))
        end = time.monotonic() + TEST_LIMIT_S
        while workers and time.monotonic() < end:
            for arrival in executor.wait(TICK_S):
                place = workers.pop(arrival.worker).place
                if arrival.raw is not None:
                    reply = wire.decode_reply(arrival.raw)
                    found[place] = failures(reply.data if isinstance(reply, wire.Tested) else b"", TEST_ROUNDS)
    finally:
        executor.close()
    return found


def _request(plan: FaultPlan, number: int, info: WorkerInfo) -> wire.SelfTest:
    struck = plan.strike_test(number, (info.domain, info.name, str(number)))
    fault, percent = struck if struck is not None else (None, 0)
    return wire.SelfTest(number, TEST_ROUNDS, ALL, fault, percent)


def _note(places: dict[str, Record], found: dict[str, dict[str, int] | None], now: float) -> None:
    """Note outcomes: of who failed, and of who was in the record before."""
    for place, wrong in found.items():
        if place in places or wrong is None or wrong:
            places.setdefault(place, Record()).tested(wrong == {}, now)


def _clear(place: str) -> int:
    if place == "all":
        kept = book().clear()
        print("all are forgotten" if kept is None else f"begun anew; what could not be read is in {kept}")
        return 0
    if place not in book().read():
        raise UsageError(f"{book().path}: {unknown_name(place, [*book().read(), 'all'])}")
    book().change(lambda places: _forget(places, place), time.time())
    print(f"{printable_name(place)} is forgotten")
    return 0


def _forget(places: dict[str, Record], place: str) -> None:
    places.pop(place, None)


def _print(records: dict[str, Record], found: dict[str, dict[str, int] | None], now: float, as_json: bool) -> None:
    if as_json:
        state: dict[str, Any] = {"file": str(book().path), "places": msgspec.to_builtins(records)}
        if found:
            state["rounds"] = TEST_ROUNDS
            state["tests"] = {place: {"passed": wrong == {}, "wrong": wrong} for place, wrong in found.items()}
        print(json.dumps(state))
        return
    for place, wrong in found.items():
        outcome = "no answer" if wrong is None else "passed" if not wrong else f"FAILED: {_counts(wrong)}"
        print(f"{printable_name(place)}: {outcome}")
    if not records:
        print("nobody is suspected")
        return
    print(f"{'place':30} {'state':12} {'jobs':>6} {'lost/judged':>14} {'failed/tests':>13}  quarantined")
    for place, one in records.items():
        lost, tests = f"{one.lost}/{one.judged}", f"{one.failed}/{one.failed + one.passed}"
        print(f"{printable_name(place):30} {one.state:12} {one.jobs:6} {lost:>14} {tests:>13}  {_terms(one, now)}")


def _counts(wrong: dict[str, int]) -> str:
    return ", ".join(f"{name} wrong {times} of {TEST_ROUNDS} times" for name, times in wrong.items())


def _terms(one: Record, now: float) -> str:
    times = {0: "never", 1: "once"}.get(one.times, f"{one.times} times")
    left_h = (one.until - now) / 3600
    if one.state != "quarantined":
        return times
    return (
        f"{times}, for {one.why}; {f'{left_h:.0f} h are left' if left_h > 0 else 'on probation from the next job on'}"
    )
