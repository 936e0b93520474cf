"""Each of the four modifications of slide 18 can be switched off: the same output, and what it buys is in the
figures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import EXECUTORS, WORDCOUNT, Runner

from quoreduce import Result, Session
from quoreduce.driver import driver as driver_module
from quoreduce.driver import requests as requests_module
from quoreduce.protocol.options import Place
from quoreduce.tracker import messages as m

REDUCES = 3
SPLIT_MB = 0.005


@pytest.fixture(scope="module")
def plain(processes: object, verses: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[bytes]]:
    """The same job with all four modifications."""
    return Runner(processes, tmp_path_factory.mktemp("plain"))(  # type: ignore[arg-type]
        "inline", WORDCOUNT, verses, workers=3, reducers=REDUCES, split_mb=SPLIT_MB
    )


def count(run: Runner, on: str, text: Path, workers: int = 3, **options: object) -> tuple[Result, list[bytes]]:
    return run(on, WORDCOUNT, text, workers=workers, reducers=REDUCES, split_mb=SPLIT_MB, **options)


@pytest.mark.parametrize("on", EXECUTORS)
def test_without_deferred_execution_2f_plus_1_replicas_are_executed(
    on: str, run: Runner, verses: Path, plain: tuple[Result, list[bytes]]
) -> None:
    """Slide 19: deferred execution saves f of 2f+1 executions."""
    result, parts = count(run, on, verses, deferred=False)
    assert parts == plain[1]
    assert result.executions == {"map": 3 * result.splits, "reduce": 3 * REDUCES}
    assert plain[0].executions == {"map": 2 * result.splits, "reduce": 2 * REDUCES}


@pytest.mark.parametrize("on", EXECUTORS)
def test_without_digest_outputs_every_replica_stores_and_is_read(
    on: str, run: Runner, verses: Path, plain: tuple[Result, list[bytes]]
) -> None:
    """Slide 21, R6: with digest outputs one copy of the map outputs is stored and shipped, without them f+1."""
    result, parts = count(run, on, verses, digest_outputs=False, tentative=False)
    assert parts == plain[1]
    assert result.executions == plain[0].executions
    assert result.bytes_stored == 2 * plain[0].bytes_stored
    assert result.bytes_shipped > plain[0].bytes_shipped


def test_without_digest_outputs_an_altered_copy_is_replaced_by_the_other(
    run: Runner, verses: Path, plain: tuple[Result, list[bytes]]
) -> None:
    """What that buys: a stored copy that goes bad costs no execution."""
    result, parts = count(run, "inline", verses, digest_outputs=False, tentative=False, faults=("swap:map:1",))
    assert parts == plain[1]
    assert result.executions == plain[0].executions
    assert result.faults.masked == result.faults.detected >= 1


@pytest.mark.parametrize("on", EXECUTORS)
def test_without_tight_storage_the_output_is_written_as_often_as_a_replicating_store_would(
    on: str, run: Runner, verses: Path, plain: tuple[Result, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slide 22, R7."""
    written: list[int] = []
    paths = requests_module.Requests._paths

    def watched(self: requests_module.Requests, part: int, attempt: int) -> list[str]:
        found = paths(self, part, attempt)
        written.append(len(found))
        return found

    monkeypatch.setattr(requests_module.Requests, "_paths", watched)
    for tight, copies in ((True, 1), (False, requests_module.STORAGE_COPIES)):
        written.clear()
        _, parts = count(run, on, verses, tight_storage=tight)
        assert parts == plain[1]
        assert written == [copies] * REDUCES  # digest outputs: one of the replicas stores


def starts(monkeypatch: pytest.MonkeyPatch) -> list[m.Command | m.Event]:
    """Record what the tracker says in order."""
    said: list[m.Command | m.Event] = []
    execute = driver_module.Driver._execute

    def watched(self: driver_module.Driver, commands: list[m.Command]) -> None:
        said.extend(commands)
        execute(self, commands)

    monkeypatch.setattr(driver_module.Driver, "_execute", watched)
    return said


def reduces_before_the_last_vote(said: list[m.Command | m.Event]) -> int:
    """How many reduces were launched before the last map had won its vote."""
    agreed = [i for i, c in enumerate(said) if isinstance(c, m.Agreed) and c.task.kind == "map"]
    return sum(isinstance(c, m.Launch) and c.task.kind == "reduce" for c in said[: agreed[-1]])


def test_tentative_reduces_start_before_the_last_vote(
    run: Runner, verses: Path, plain: tuple[Result, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slide 20, R5: while the replica of the last map that is still missing runs, reduces use the other worker."""
    said = starts(monkeypatch)
    for tentative in (True, False):
        said.clear()
        _, parts = count(run, "inline", verses, tentative=tentative, faults=("crash:map:100%",))
        assert parts == plain[1]
        assert (reduces_before_the_last_vote(said) > 0) is tentative


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_tentative_reduce_on_what_loses_its_vote_is_restarted(
    on: str, run: Runner, verses: Path, plain: tuple[Result, list[bytes]]
) -> None:
    """R5: the storing replicas are wrong, so every reduce that has read them begins anew; nobody else does."""
    result, parts = count(run, on, verses, faults=("flip:map:100%@first",))
    assert parts == plain[1]
    assert result.faults.injected == result.splits


@pytest.mark.parametrize("on", EXECUTORS)
@pytest.mark.parametrize("off", [("deferred",), ("tentative",), ("digest_outputs",), ("tight_storage",),
                                 ("deferred", "tentative", "digest_outputs", "tight_storage")])  # fmt: skip
def test_faults_are_masked_without_it_too(
    on: str, off: tuple[str, ...], run: Runner, verses: Path, plain: tuple[Result, list[bytes]]
) -> None:
    faults = ("flip:map:2@any", "lie:reduce:1", "swap:map:1", "lose:map:1", "swap:reduce:1", "late:all:2")
    result, parts = count(run, on, verses, faults=faults, **dict.fromkeys(off, False))
    assert parts == plain[1]
    assert result.faults.injected >= 6


def test_all_four_off_costs_what_basic_costs(run: Runner, verses: Path) -> None:
    off = dict.fromkeys(("deferred", "tentative", "digest_outputs", "tight_storage"), False)
    switched, _ = count(run, "inline", verses, **off)
    basic, _ = count(run, "inline", verses, mode="basic")
    for figure in ("executions", "bytes_stored", "bytes_shipped", "digest"):
        assert getattr(switched, figure) == getattr(basic, figure), figure


def test_domains_are_cores_by_default() -> None:
    with Session(Place("local", 2)) as session:
        assert all(domain.startswith("core") for domain in session.domains)
        assert all(info.core is not None for info in session.workers)
