"""Every kind of fault, on maps and on reduces, on every executor: masked, counted, and at the price that R2 states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from runs import EXECUTORS, WORDCOUNT, Runner, beginning, counted

from quoreduce import Result
from quoreduce.data.digest import ALGORITHMS
from quoreduce.driver.result import Suspect
from quoreduce.errors import NoQuorum, UsageError

MAPS, REDUCES = 6, 3
SPLIT_MB = 0.005
DEADLINE_S = 6.0  # of a job with a worker that hangs
FAR_S = 120.0  # of all others: a busy machine must not look like a fault
ONE_MORE = ("flip", "wrong", "lie", "crash", "hang")
COUNTED = ("injected", "detected", "masked")


@pytest.fixture(scope="module")
def text(verses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning(verses, MAPS * SPLIT_MB, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def right(text: Path, processes: object, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    _, parts = Runner(processes, tmp_path_factory.mktemp("right"))(  # type: ignore[arg-type]
        "inline", WORDCOUNT, text, mode="original", reducers=REDUCES, split_mb=SPLIT_MB
    )
    return parts


def with_faults(
    run: Runner, on: str, text: Path, *faults: str, workers: int = 2, **options: object
) -> tuple[Result, list[bytes]]:
    deadline = DEADLINE_S if any(fault.startswith("hang") for fault in faults) else FAR_S
    return run(
        on, WORDCOUNT, text, workers=workers, reducers=REDUCES, split_mb=SPLIT_MB, faults=faults, deadline_s=deadline,
        **options,
    )  # fmt: skip


def more_than_planned(result: Result, replicas: int = 2) -> dict[str, int]:
    planned = {"map": replicas * MAPS, "reduce": replicas * REDUCES}
    return {kind: result.executions[kind] - planned[kind] for kind in planned}


@pytest.mark.parametrize("target", ["map", "reduce"])
@pytest.mark.parametrize("kind", ["flip", "wrong", "lie", "swap", "crash", "hang", "lose", "late"])
@pytest.mark.parametrize("on", EXECUTORS)
def test_one_fault_with_two_domains(
    on: str, kind: str, target: str, run: Runner, text: Path, right: list[bytes]
) -> None:
    """R2: a fault costs one execution more; R6 and R9: what is lost or altered in a store costs at most one; R10: late,
    none.
    """
    result, parts = with_faults(run, on, text, f"{kind}:{target}:1")
    assert parts == right
    assert result.faults.injected == 1
    assert result.faults.detected >= 1
    assert result.faults.masked == result.faults.detected
    extra = more_than_planned(result)
    other = "reduce" if target == "map" else "map"
    assert extra[other] == 0
    assert extra[target] == result.reexecutions
    if kind in ONE_MORE:
        assert extra[target] == 1
    else:
        assert extra[target] <= (kind != "late")


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_bit_that_flips_on_the_way_is_fetched_again(on: str, run: Runner, text: Path, right: list[bytes]) -> None:
    """R6: the reader recomputes the digest of the very bytes that it will use."""
    result, parts = with_faults(run, on, text, "wire:reduce:1")
    assert parts == right
    assert more_than_planned(result) == {"map": 0, "reduce": 0}
    assert [getattr(result.faults, name) for name in COUNTED] == [1, 1, 1]


@pytest.mark.parametrize("replica", ["first", "last", "any", "0", "1"])
@pytest.mark.parametrize("target", ["map", "reduce"])
@pytest.mark.parametrize("kind", ONE_MORE[:4])
def test_whichever_replica_is_struck(
    kind: str, target: str, replica: str, run: Runner, text: Path, right: list[bytes]
) -> None:
    """With three domains; if it is the first one, the storing replica, reduces that read it are restarted too (R5)."""
    result, parts = with_faults(run, "inline", text, f"{kind}:{target}:1@{replica}", workers=3)
    assert parts == right
    assert result.faults.injected == 1
    assert result.faults.masked == result.faults.detected >= 1
    assert more_than_planned(result)[target] == 1


@pytest.mark.parametrize("kind", ONE_MORE)
@pytest.mark.parametrize("on", EXECUTORS[1:])
def test_the_storing_replica_is_struck_with_three_domains(
    on: str, kind: str, run: Runner, text: Path, right: list[bytes]
) -> None:
    result, parts = with_faults(run, on, text, f"{kind}:all:1@first", workers=3, fault_seed=2)
    assert parts == right
    assert result.faults.injected == 1
    assert result.faults.masked == result.faults.detected >= 1


@pytest.mark.parametrize("on", EXECUTORS)
@pytest.mark.parametrize("kind", ["flip", "wrong", "lie", "swap", "lose", "late"])
def test_every_map_faulty_once(on: str, kind: str, run: Runner, text: Path, right: list[bytes]) -> None:
    """100 % of the map tasks silently faulty, once each: still right."""
    result, parts = with_faults(run, on, text, f"{kind}:map:100%")
    assert parts == right
    assert result.faults.injected == MAPS
    assert more_than_planned(result)["map"] <= (0 if kind == "late" else MAPS)


@pytest.mark.parametrize("kind", ["crash", "hang"])
def test_every_map_crashes_once(kind: str, run: Runner, text: Path, right: list[bytes]) -> None:
    """R9. Inline, where no processes have to be started anew."""
    result, parts = with_faults(run, "inline", text, f"{kind}:map:100%")
    assert parts == right
    assert result.faults.injected == result.faults.masked == MAPS
    assert more_than_planned(result) == {"map": MAPS, "reduce": 0}


def test_every_execution_of_the_first_round_faulty(run: Runner, text: Path, right: list[bytes]) -> None:
    """R3: no cap of 2f+1. Both first replicas of every task are wrong, each in a way of its own."""
    faults = ("flip:all:100%@0", "flip:all:100%@1")
    result, parts = with_faults(run, "inline", text, *faults, workers=3)
    assert parts == right
    assert result.faults.injected == 2 * (MAPS + REDUCES)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("digest", [name for name in ALGORITHMS if name != "checksum"])
def test_many_faults_at_once(seed: int, digest: str, run: Runner, text: Path, right: list[bytes]) -> None:
    faults = (
        "flip:map:25%@any", "wrong:all:2@any", "lie:reduce:1@any", "swap:map:50%", "swap:reduce:1", "crash:all:2@any",
        "lose:map:2", "late:all:3@any", "wire:reduce:2",
    )  # fmt: skip
    result, parts = with_faults(run, "inline", text, *faults, workers=3, fault_seed=seed, digest=digest)
    assert parts == right
    assert result.faults.injected >= 9
    assert result.faults.masked == result.faults.detected


def test_the_same_seed_strikes_the_same_executions(run: Runner, text: Path) -> None:
    figures = []
    for seed in (7, 7, 8):
        result, _ = with_faults(run, "inline", text, "flip:map:2@any", "swap:map:1", "crash:reduce:1", fault_seed=seed)
        figures.append((result.executions, result.faults, result.lost_votes))
    assert figures[0] == figures[1]
    assert figures[0] != figures[2]


@pytest.mark.parametrize("kind", ["flip", "lie", "crash"])
@pytest.mark.parametrize("on", EXECUTORS)
def test_two_faulty_replicas_of_a_task_at_f_2(on: str, kind: str, run: Runner, text: Path, right: list[bytes]) -> None:
    """All three domains must agree. While they differ nobody knows who is right: one that was right may be asked
    again.
    """
    faults = (f"{kind}:reduce:100%@0", f"{kind}:reduce:1@1")
    result, parts = with_faults(run, on, text, *faults, workers=3, f=2)
    assert parts == right
    assert result.faults.injected == REDUCES + 1
    extra = more_than_planned(result, 3)
    # On Ray all three actors may be dead at once: then nobody is there who could serve what the maps have stored.
    assert extra["map"] <= (MAPS if (on, kind) == ("ray", "crash") else 0)
    assert REDUCES + 1 <= extra["reduce"] <= (REDUCES + 1) * (1 if kind == "crash" else 2)


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_stuck_domain_of_three_never_wins(on: str, run: Runner, text: Path, right: list[bytes]) -> None:
    """R1: a domain that repeats itself counts once. R11: it is suspected."""
    result, parts = with_faults(run, on, text, "stuck:worker1", workers=3)
    assert parts == right
    assert set(result.suspects) == {"worker1"}
    assert result.suspects["worker1"].why == "test"
    assert result.faults.injected >= 1


@pytest.mark.parametrize("number", [0, 2])
def test_domains_may_be_named_by_number(number: int, run: Runner, text: Path, right: list[bytes]) -> None:
    result, parts = with_faults(run, "inline", text, f"stuck:{number}", workers=3)
    assert parts == right
    assert set(result.suspects) == {f"worker{number}"}


@pytest.mark.parametrize("on", EXECUTORS)
def test_a_stuck_domain_of_two_ends_in_no_quorum(on: str, run: Runner, text: Path) -> None:
    """R1 and R3: nothing is published, and the message says what would help."""
    with pytest.raises(NoQuorum, match="one more domain would mask it") as caught:
        with_faults(run, on, text, "stuck:worker1")
    assert caught.value.exit_code == 4


def test_two_colluding_domains_win_at_f_1(run: Runner, text: Path, right: list[bytes]) -> None:
    """Out of the model: f+1 domains that agree on a wrong output are believed. Then f was too small."""
    result, parts = with_faults(run, "inline", text, "stuck:worker0", "stuck:worker1", workers=3)
    assert parts != right
    assert "worker2" in result.lost_votes


def test_the_same_collusion_loses_at_f_2(run: Runner, text: Path, right: list[bytes]) -> None:
    _, parts = with_faults(run, "inline", text, "stuck:worker0", "stuck:worker1", workers=5, f=2)
    assert parts == right


@pytest.mark.parametrize("kind", ["flip", "wrong"])
@pytest.mark.parametrize("target", ["map", "reduce"])
@pytest.mark.parametrize("on", EXECUTORS)
def test_original_lets_a_wrong_output_pass_in_silence(
    on: str, target: str, kind: str, run: Runner, text: Path, right: list[bytes]
) -> None:
    """One execution, nobody to compare it with: the output is wrong, and nothing says so."""
    result, parts = with_faults(run, on, text, f"{kind}:{target}:1", mode="original", fault_seed=1)
    assert parts != right
    assert result.faults.injected == 1
    assert result.faults.detected == 0
    assert result.executions == {"map": MAPS, "reduce": REDUCES}


@pytest.mark.parametrize("on", EXECUTORS)
def test_original_finds_altered_map_output_by_its_checksum(
    on: str, run: Runner, text: Path, right: list[bytes]
) -> None:
    """As Hadoop's does: stored data that has changed is found when it is read, and the map is executed again."""
    result, parts = with_faults(run, on, text, "swap:map:1", mode="original")
    assert parts == right
    assert result.faults.masked == result.faults.detected >= 1
    assert more_than_planned(result, 1) == {"map": 1, "reduce": 0}


@pytest.mark.parametrize("kind", ["crash", "hang", "lose"])
@pytest.mark.parametrize("on", EXECUTORS)
def test_original_recovers_from_crashes(on: str, kind: str, run: Runner, text: Path, right: list[bytes]) -> None:
    """R9."""
    result, parts = with_faults(run, on, text, f"{kind}:map:1", mode="original")
    assert parts == right
    assert more_than_planned(result, 1) == {"map": 1, "reduce": 0}


def test_basic_masks_without_a_further_execution(run: Runner, text: Path, right: list[bytes]) -> None:
    """2f+1 up front: a wrong replica is outvoted by those that were executed anyway (slide 12)."""
    result, parts = with_faults(run, "inline", text, "flip:map:2", "lie:reduce:1", workers=3, mode="basic")
    assert parts == right
    assert result.executions == {"map": 3 * MAPS, "reduce": 3 * REDUCES}
    assert result.reexecutions == 0


@pytest.mark.parametrize(
    "spec",
    ["flip", "flip:map", "flip:maps:1", "flap:map:1", "flip:map:-1", "flip:map:1@second", "flip:map:101%", "wire:map:1",
     "flip:map:7", "stuck:", "", "flip:map:1 ", "flip:reduce:4"],
)  # fmt: skip
def test_a_fault_that_cannot_be_is_a_usage_error(spec: str, run: Runner, text: Path) -> None:
    with pytest.raises(UsageError, match=r"--fault"):
        with_faults(run, "inline", text, spec)


@pytest.mark.parametrize("on", EXECUTORS)
def test_counts_are_right_after_everything_was_struck(on: str, run: Runner, text: Path, right: list[bytes]) -> None:
    result, parts = with_faults(run, on, text)
    assert parts == right
    assert counted(parts)
    assert result.reexecutions == 0


def test_a_job_without_a_quorum_counts_the_answers_of_a_suspect(text: Path, run: Runner) -> None:
    """Nothing is judged where nothing is agreed on, but a domain that answered was asked."""
    faults = ("stuck:worker1",)
    with pytest.raises(NoQuorum) as caught:
        run("inline", WORDCOUNT, text, workers=2, reducers=REDUCES, split_mb=SPLIT_MB, faults=faults, attempts_max=3)
    told = str(caught.value).partition("Suspect: worker1: ")[2]
    says = r"(lost \d+ of \d+ tasks|gave \d+ answers?, to tasks that were not agreed on); failed "
    assert re.match(says, told), str(caught.value)


@pytest.mark.parametrize(
    ("counts", "says"),
    [((3, 8, 9, 9), "lost 3 of 8 tasks"), ((0, 0, 9, 8), "gave 8 answers, to tasks that were not agreed on"),
     ((0, 0, 1, 1), "gave 1 answer, to tasks that were not agreed on"),
     ((0, 0, 2, 0), "gave no answer to 2 executions"), ((0, 0, 0, 0), "no task was asked of it")],
)  # fmt: skip
def test_a_suspect_is_told_as_it_was(counts: tuple[int, int, int, int], says: str) -> None:
    lost, judged, asked, answered = counts
    assert str(Suspect("test", lost, judged, 0, 1, {}, False, asked, answered)) == f"{says}; failed 1 of 1 tests"
