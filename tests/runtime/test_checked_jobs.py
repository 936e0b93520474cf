"""Checked execution (R13): executed once, checked f times elsewhere, voted on when anything disagrees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from checked_jobs import JOB
from runs import EXECUTORS, WORDCOUNT, Runner

from quoreduce import Options, Place, Session
from quoreduce.data.manifest import read_manifest
from quoreduce.errors import UsageError

SPLITS, REDUCERS = 3, 2


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("numbers") / "numbers"
    np.random.default_rng(1).integers(0, 64, 30_000, np.uint64).tofile(path)
    return path


@pytest.fixture(scope="module")
def right(numbers: Path) -> list[bytes]:
    counts = Counter(np.fromfile(numbers, np.uint64).tolist())
    return [b"".join(b"%d\t%d\n" % (n, counts[n]) for n in range(r, 64, REDUCERS)) for r in range(REDUCERS)]


OPTIONS = {"assurance": "checked", "split_mb": 0.08, "reducers": REDUCERS, "suspects": False}


@pytest.mark.parametrize("on", EXECUTORS)
@pytest.mark.parametrize("f", [1, 2])
def test_without_faults_each_task_is_executed_once_and_checked_f_times(
    run: Runner, numbers: Path, right: list[bytes], on: str, f: int
) -> None:
    result, parts = run(on, JOB, numbers, workers=f + 1, f=f, **OPTIONS)
    assert parts == right
    assert result.executions == {"map": SPLITS, "reduce": REDUCERS}
    assert result.checks == {"map": f * SPLITS, "reduce": f * REDUCERS}
    assert (result.rejected, result.checked, result.faults.detected) == (0, SPLITS + REDUCERS, 0)


def test_the_manifest_says_how_each_part_was_agreed_on(numbers: Path, tmp_path: Path) -> None:
    with Session(Place("inline")) as session:
        for assurance, faults in (("strict", ()), ("checked", ()), ("checked", ("wrong:reduce:1@first",))):
            output = tmp_path / f"{assurance}{len(faults)}"
            options = OPTIONS | {"assurance": assurance, "faults": faults}
            session.run(JOB, [str(numbers)], str(output), Options(**options))  # type: ignore[arg-type]
    said = [read_manifest(str(tmp_path / name)).extras.get("assurance") for name in ("strict0", "checked0", "checked1")]
    assert said[0] is None
    assert said[1] == {"parts": ["checked"] * REDUCERS, "maps_checked": SPLITS}
    assert sorted(said[2]["parts"]) == ["checked", "voted"]


def test_strict_is_the_default(run: Runner, numbers: Path, right: list[bytes]) -> None:
    result, parts = run("inline", JOB, numbers, **OPTIONS | {"assurance": "strict"})
    assert parts == right
    assert result.executions == {"map": 2 * SPLITS, "reduce": 2 * REDUCERS}
    assert (result.checks, result.checked) == ({}, 0)


@pytest.mark.parametrize("fault", ["flip", "wrong", "lie"])
@pytest.mark.parametrize("kind", ["map", "reduce"])
def test_a_wrong_output_is_rejected_and_voted_down(
    run: Runner, numbers: Path, right: list[bytes], fault: str, kind: str
) -> None:
    result, parts = run("local", JOB, numbers, workers=3, faults=(f"{fault}:{kind}:1@first",), **OPTIONS)
    assert parts == right
    assert result.rejected >= 1 or (kind, fault) == ("map", "lie")  # which a reduce may find first
    assert result.faults.masked >= 1
    assert sum(result.lost_votes.values()) == 1
    assert result.executions[kind] == {"map": SPLITS, "reduce": REDUCERS}[kind] + 2


@pytest.mark.parametrize("kind", ["map", "reduce"])
def test_a_stored_output_that_rots_before_its_check_is_made_again(
    run: Runner, numbers: Path, right: list[bytes], kind: str
) -> None:
    result, parts = run("local", JOB, numbers, workers=3, faults=(f"swap:{kind}:1",), **OPTIONS)
    assert parts == right
    assert result.faults.masked >= 1
    assert result.lost_votes == {}


@pytest.mark.parametrize("fault", ["reject", "rot"])
@pytest.mark.parametrize("kind", ["map", "reduce"])
def test_a_check_that_is_wrong_costs_one_more_execution(
    run: Runner, numbers: Path, right: list[bytes], fault: str, kind: str
) -> None:
    result, parts = run("local", JOB, numbers, workers=3, faults=(f"{fault}:{kind}:1",), **OPTIONS)
    assert parts == right
    if (fault, kind) == ("rot", "reduce"):  # a block that is read wrong is read again (R6)
        assert (result.rejected, result.faults.detected) == (0, 1)
        return
    assert result.rejected == 1
    assert sum(result.lost_votes.values()) == 1
    assert sum(result.executions.values()) == SPLITS + REDUCERS + 1
    assert result.reexecutions == 1
    assert [one.kind for one in result.diagnoses] == ["compute"]


def test_a_checker_that_approves_everything_does_no_harm_beside_an_honest_executor(
    run: Runner, numbers: Path, right: list[bytes]
) -> None:
    faults = ("approve:map:all", "approve:reduce:all")
    result, parts = run("local", JOB, numbers, workers=2, faults=faults, **OPTIONS)
    assert parts == right
    assert result.rejected == 0


def test_a_wrong_executor_and_a_checker_that_approves_it_win_at_f_1(
    run: Runner, numbers: Path, right: list[bytes]
) -> None:
    """Two faulty domains are one more than f: this is what checked execution does not promise (docs)."""
    faults = ("wrong:map:1@first", "approve:map:all")
    result, parts = run("local", JOB, numbers, workers=3, faults=faults, **OPTIONS)
    assert parts != right
    assert result.rejected == 0


def test_with_f_2_it_takes_three(run: Runner, numbers: Path, right: list[bytes]) -> None:
    faults = ("wrong:map:1@first", "approve:map:all@first")
    result, parts = run("local", JOB, numbers, workers=4, f=2, faults=faults, **OPTIONS)
    assert parts == right
    assert result.rejected == 1


@pytest.mark.parametrize(
    "options", [{"mode": "basic"}, {"mode": "original"}, {"deferred": False}, {"digest_outputs": False}]
)
def test_checked_execution_is_refused_where_it_has_no_meaning(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="checked execution is for mode bft"):
        Options(assurance="checked", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("on", EXECUTORS)
@pytest.mark.parametrize("f", [1, 2])
def test_a_word_count_gives_the_same_bytes_checked_and_voted_on(run: Runner, verses: Path, on: str, f: int) -> None:
    options = {"f": f, "split_mb": 0.02, "reducers": 3, "suspects": False}
    voted, parts = run(on, WORDCOUNT, verses, workers=f + 1, **options)
    result, checked = run(on, WORDCOUNT, verses, workers=f + 1, **options, assurance="checked")
    assert checked == parts
    assert sum(result.executions.values()) * (f + 1) == sum(voted.executions.values())
    assert sum(result.checks.values()) == f * sum(result.executions.values())
    assert result.rejected == 0
    assert result.counters == voted.counters


@pytest.mark.parametrize("fault", ["flip", "wrong", "lie", "swap"])
@pytest.mark.parametrize("kind", ["map", "reduce"])
def test_a_wrong_word_count_is_rejected(run: Runner, verses: Path, fault: str, kind: str) -> None:
    options = {"split_mb": 0.02, "reducers": 3, "suspects": False}
    _, right = run("local", WORDCOUNT, verses, workers=3, **options)
    faults = (f"{fault}:{kind}:1@first",)
    result, parts = run("local", WORDCOUNT, verses, workers=3, **options, assurance="checked", faults=faults)
    assert parts == right
    assert result.rejected >= 1 or (kind == "map" and fault in ("lie", "swap"))  # which a reduce may find first
    assert result.faults.masked >= 1


def test_a_bit_that_flips_in_the_input_before_a_check_reads_it_is_rejected(run: Runner, verses: Path) -> None:
    options = {"split_mb": 0.02, "reducers": 3, "suspects": False}
    _, right = run("local", WORDCOUNT, verses, workers=3, **options)
    result, parts = run("local", WORDCOUNT, verses, workers=3, **options, assurance="checked", faults=("rot:map:1",))
    assert parts == right
    assert result.rejected == 1
