"""The tracker on simulated nodes: what is executed without faults, what faults do to it, and that a seed says it
all.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from quoreduce.errors import InputError, UsageError
from quoreduce.sim import USUAL, Calibration, Load, Outcome, Rate, Shape, Simulation, Work, parse_fault, simulate
from quoreduce.sim.faults import KINDS
from quoreduce.tracker import Plan

MASKED = (
    "wrong-map:25%", "wrong-map:100%", "wrong-reduce:50%", "bad:1", "bad:1:0.3", "collude:1", "crash:10%", "node:2",
    "slow:2", "slow:1:30", "rot:20%", "lose:2%", "duplicate:20%", "delay:20%", "reorder:30%",
)  # fmt: skip


def go(
    *faults: str, nodes: int = 10, maps: int = 40, reduces: int = 6, shape: dict[str, Any] | None = None, **more: Any
) -> Outcome:
    load = Load("sort", USUAL.job("sort"), maps, reduces)
    return simulate(
        Shape(nodes=nodes, **(shape or {})), load, USUAL, faults=[parse_fault(text) for text in faults], **more
    )


@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_without_faults_there_are_exactly_f_plus_1_executions_of_each_task(f: int) -> None:
    """R2."""
    out = go(f=f)
    assert (out.end, out.violations, out.wrong_outputs, out.reexecutions) == ("done", [], 0, 0)
    assert out.executions == {"map": (f + 1) * 40, "reduce": (f + 1) * 6}


@pytest.mark.parametrize(("mode", "times"), [("original", 1), ("basic", 3), ("bft", 2)])
def test_the_modes_execute_what_they_should(mode: str, times: int) -> None:
    out = go(mode=mode)
    assert (out.end, out.violations) == ("done", [])
    assert out.executions == {"map": times * 40, "reduce": times * 6}


@pytest.mark.parametrize("fault", MASKED)
def test_faults_are_masked(fault: str) -> None:
    for seed in range(5):
        out = go(fault, seed=seed)
        assert (out.end, out.violations, out.wrong_outputs, out.beyond_model) == ("done", [], 0, ""), f"seed {seed}"
        assert sum(out.injected.values()) > 0


@pytest.mark.parametrize("mode", ["original", "bft"])
def test_slow_nodes_are_overtaken(mode: str) -> None:
    """R9: with spares, one node that is ten times slower delays a job by less than half of what it does without."""
    overtaken_s = waited_s = 0.0
    for seed in range(3):
        healthy, waited = go(mode=mode, seed=seed), go("slow:1:10", mode=mode, seed=seed, spares=False)
        overtaken = go("slow:1:10", mode=mode, seed=seed)
        assert (waited.spares, overtaken.reexecutions, overtaken.violations) == (0, 0, [])
        assert overtaken.spares > 0
        assert sum(overtaken.executions.values()) == sum(healthy.executions.values()) + overtaken.spares
        overtaken_s += overtaken.makespan_s - healthy.makespan_s
        waited_s += waited.makespan_s - healthy.makespan_s
    assert overtaken_s < 0.5 * waited_s


@pytest.mark.parametrize("job", sorted(USUAL.jobs))
@pytest.mark.parametrize("mode", ["original", "basic", "bft"])
def test_nobody_is_taken_for_slow_who_is_not(job: str, mode: str) -> None:
    """R2, with domains to spare, and times that differ by 30 % both ways."""
    for nodes, maps in ((4, 40), (10, 25), (20, 41)):
        load = Load(job, USUAL.job(job), maps, 5)
        out = simulate(Shape(nodes=nodes, spread=0.3), load, USUAL, mode=mode, seed=nodes)
        assert (out.end, out.spares, out.reexecutions, out.violations) == ("done", 0, 0, [])


def test_every_kind_of_fault_is_tried() -> None:
    assert {text.partition(":")[0] for text in MASKED} | {"rack"} == set(KINDS)


def test_a_lost_rack_is_masked_if_others_are_left_and_else_the_job_says_why_not() -> None:
    assert go("rack:1", shape={"rack": 3}).end == "done"
    gone = go("rack:1")
    assert gone.end == "too_few_domains"
    assert "only 0 are there" in gone.message


def test_f_plus_1_that_collude_win_and_it_is_said_that_the_model_is_broken() -> None:
    out = go("collude:2", nodes=3)
    assert out.wrong_outputs > 0
    assert "2 domains collude, and f=1" in out.beyond_model
    assert not any("wrong" in violation for violation in out.violations)


@pytest.mark.parametrize("fault", ["wrong-map:1", "wrong-reduce:1", "bad:1", "collude:1"])
@pytest.mark.parametrize("mode", ["original", "bft"])
def test_without_votes_nothing_is_promised_of_wrong_answers(fault: str, mode: str) -> None:
    out = go(fault, f=0, mode=mode)
    assert (out.end, out.violations) == ("done", [])
    assert out.wrong_outputs > 0
    assert "one wins" in out.beyond_model


def test_a_node_that_is_always_wrong_and_only_f_plus_1_nodes_end_without_quorum() -> None:
    out = go("bad:1", nodes=2)
    assert out.end == "no_quorum"
    assert out.violations == []


def test_all_kinds_of_faults_at_once() -> None:
    """A mixture ends right, or says why not, and breaks no rule."""
    mixture = (
        "wrong-map:10%", "wrong-reduce:1", "bad:1:0.3", "crash:5%", "node:1", "slow:1", "rot:5%", "lose:1%",
        "duplicate:5%", "delay:5%", "reorder:10%",
    )  # fmt: skip
    for seed in range(60):
        out = go(*mixture, seed=seed, maps=20, reduces=3)
        assert (out.violations, out.wrong_outputs) == ([], 0), f"seed {seed}"
        assert out.end == "done" or (out.end == "no_quorum" and out.message), f"seed {seed}: {out.end}"


def test_the_same_seed_gives_the_same_transcript() -> None:
    faults = ("wrong-map:25%", "crash:10%", "delay:20%", "node:1")
    assert go(*faults, seed=7).as_dict() == go(*faults, seed=7).as_dict()
    assert go(*faults, seed=7).transcript != go(*faults, seed=8).transcript


def test_the_transcript_does_not_depend_on_the_order_of_sets() -> None:
    command = "from quoreduce.cli import main; main(['simulate', 'run', '--faults', 'bad:2:0.3', 'node:1', '--json'])"
    said = {
        subprocess.run(
            [sys.executable, "-c", command], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1
    assert b'"simulated": true' in said.pop()


def test_a_small_run_as_text(golden: Callable[[str, str], None]) -> None:
    load = Load("sort", USUAL.job("sort"), 2, 1)
    faults = [parse_fault("wrong-map:1"), parse_fault("rot:1")]
    small = Simulation(
        Shape(nodes=4, slots=1), load, Plan(2, 1, 1, "bft", confirm=True), USUAL, faults, seed=4, lines=True
    )
    assert small.run().end == "done"
    assert small.lines is not None
    golden("simulate/a_wrong_map_and_rotten_bytes.txt", "\n".join(small.lines) + "\n")


def test_more_nodes_and_faster_ones_take_less_time() -> None:
    assert go(nodes=20).makespan_s < go(nodes=10).makespan_s
    assert go(shape={"speeds": (1.0, 2.0)}).cpu_s < go().cpu_s < go("slow:3").cpu_s


def test_bandwidth_is_not_exceeded() -> None:
    """All splits have to come from disks and over the network."""
    shape = Shape()
    assert go().makespan_s > 2 * 40 * 64e6 / (10 * (shape.disk_bps + shape.net_bps))


def test_a_calibration_is_read_back_as_it_was_written() -> None:
    assert Calibration.decode(USUAL.encode()) == USUAL


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"format": "quoreduce-calibration-1"}', USUAL.encode().replace("0.05", "-1"),
    USUAL.encode().replace("0.05", "NaN"), USUAL.encode().replace("0.05", '"x"'),
])  # fmt: skip
def test_what_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Calibration.decode(text)


@pytest.mark.parametrize(
    "text", ["", "node", "node:x", "node:10%", "lose:3", "lose:101%", "node:1.5", "crash:1:2", "bad:1:2", "slow:1:0"]
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_fault(text)


@pytest.mark.parametrize(
    "wrong", [{"nodes": 0}, {"slots": 0}, {"disk_bps": 0}, {"speeds": (0.0,)}, {"spread": 1.0}, {"rack": 0}]
)
def test_what_is_no_cluster_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Shape(**wrong)


def calls(nodes: int, maps: int) -> float:
    """Function calls for each execution: what a simulation costs, whatever else the machine does."""
    count = 0

    def profile(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        out = go(nodes=nodes, maps=maps, reduces=10)
    finally:
        sys.setprofile(None)
    executed: Sequence[int] = list(out.executions.values())
    return count / sum(executed)


def test_the_cost_of_an_execution_does_not_grow() -> None:
    assert calls(200, 4000) < 1.2 * calls(20, 400)


def test_cores_do_one_thing_after_the_other_checks_of_parts_too() -> None:
    """Checks that are as much work as reduces: no core works for longer than there is time."""
    slow, cost = replace(USUAL, digest_s_per_byte=1e-8), USUAL.job("sort")
    reduce_ = Rate(0.0, 1e-8)
    load = Load("sort", replace(cost, reduce=Work(reduce_, reduce_, reduce_)), 4, 12)
    out = simulate(Shape.machine(2, slow), load, slow)
    assert out.end == "done"
    assert 3 * 12 * load.out_bytes * 1e-8 * 0.9 < out.cpu_s <= 2 * out.makespan_s


def test_a_job_with_a_sample_begins_with_it() -> None:
    load = Load("sort", replace(USUAL.job("sort"), sample_s=3.0), 10, 2)
    out = simulate(Shape(), load, USUAL, f=2)
    assert (out.end, out.violations, out.executions) == ("done", [], {"sample": 3, "map": 30, "reduce": 6})
    without = simulate(Shape(), Load("sort", USUAL.job("sort"), 10, 2), USUAL, f=2)
    assert 2.5 < out.makespan_s - without.makespan_s < 3.5


def test_cores_are_domains_of_one_machine() -> None:
    load = Load("sort", USUAL.job("sort"), 10, 2)
    assert simulate(Shape.machine(3, USUAL), load, USUAL, f=2).end == "done"
    assert simulate(Shape.machine(2, USUAL), load, USUAL, f=2).end == "too_few_domains"
