"""The runner: every application in turn, plain and voted, with outputs that are compared; and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quoreduce import Job, Place, Session
from quoreduce.cli import main
from quoreduce.errors import InputError, OutputError, QuoreduceError, UsageError
from quoreduce_gridmix import data, runner
from quoreduce_gridmix.results import MODIFICATIONS, Results, as_json, cells, compare, geometric_mean, read_results
from quoreduce_gridmix.runner import Application, Study, Variant

SEED = 5
NBYTES = 150_000
PARTS = 4
RUN_FIELDS = {
    "app", "size", "variant", "mode", "f", "off", "repetition", "wall_s", "cpu_s", "bytes", "executions", "counters", "digest",
    "splits", "noise", "stages",
}  # fmt: skip
BOTH = (Variant("original"), Variant("bft", 1))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three sets, tiny."""
    path = tmp_path_factory.mktemp("gridmix")
    for kind in data.KINDS:
        data.generate(kind, path / kind, NBYTES, parts=PARTS, seed=SEED, workers=1)
    return path


@pytest.fixture(scope="session")
def sets(folder: Path) -> dict[data.Kind, data.DataSet]:
    return runner.find_sets(folder, data.KINDS)


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    with Session(Place("inline", 3)) as opened:
        yield opened


@pytest.fixture(scope="session")
def all_six(sets: dict[data.Kind, data.DataSet], session: Session, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All applications, plain and voted, twice."""
    names = ("streamSort", "javaSort", "combiner", "monsterQuery", "webdataScan", "webdataSort")
    study = Study(runner.applications(names), ("small",), BOTH, repeat=2, warm_up=0, reducers=2)
    return runner.run_study(study, sets, tmp_path_factory.mktemp("out"), session)


def run(*arguments: object) -> int:
    return main(["gridmix", *map(str, arguments)])


def a_job(text: Callable[[], str], name: str = "told") -> Application:
    """An application whose output is what ``text`` says when it runs."""
    job = Job(name, map=lambda line: [("k", text())], reduce=lambda key, values: [(key, values[0])])
    return Application(name, "varinfltext", (job,), {})


def test_plain_and_voted_take_turns(all_six: Results) -> None:
    order = [(r.app, r.variant, r.repetition) for r in all_six.runs][:4]
    assert order == [("streamSort", v, k) for k in (0, 1) for v in ("plain", "voted f=1")]


def test_every_application_writes_the_same_plain_and_voted(all_six: Results) -> None:
    digests = {app: {r.digest for r in all_six.runs if r.app == app} for app in {r.app for r in all_six.runs}}
    assert len(digests) == 6
    assert all(len(found) == 1 for found in digests.values())


def test_a_voted_run_executes_every_task_twice(all_six: Results) -> None:
    for name in ("map", "reduce"):
        counts = {(r.app, r.variant): r.executions[name] for r in all_six.runs}
        assert all(counts[app, "voted f=1"] == 2 * n for (app, variant), n in counts.items() if variant == "plain")


def test_stages_are_summed(all_six: Results) -> None:
    run = next(r for r in all_six.runs if r.app == "monsterQuery")
    assert [stage.job for stage in run.stages] == ["monsterQuery-1", "monsterQuery-2", "monsterQuery-3"]
    assert run.wall_s == pytest.approx(sum(stage.wall_s for stage in run.stages))
    assert run.splits == sum(stage.splits for stage in run.stages)
    assert run.bytes.stored == sum(stage.bytes.stored for stage in run.stages)
    assert run.counters["MAP_INPUT_RECORDS"] == sum(stage.counters["MAP_INPUT_RECORDS"] for stage in run.stages)


def test_a_run_has_these_fields_in_json(all_six: Results) -> None:
    for run in as_json(all_six)["runs"]:
        assert set(run) == RUN_FIELDS
        assert set(run["bytes"]) == {"in", "out", "stored", "shipped"}
        assert run["wall_s"] > 0
        assert run["cpu_s"] > 0
        assert len(run["digest"]) == 64


def test_results_are_read_back_as_they_were(all_six: Results, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(all_six.encode())
    assert read_results(tmp_path / "results.json") == all_six


def test_outputs_are_deleted_unless_kept(sets: dict[data.Kind, data.DataSet], session: Session, tmp_path: Path) -> None:
    study = Study(runner.applications(["javaSort"]), ("small",), BOTH, repeat=1, warm_up=0, reducers=1)
    runner.run_study(study, sets, tmp_path / "gone", session)
    assert list(tmp_path.rglob("part-*")) == []
    runner.run_study(replace(study, keep=True), sets, tmp_path / "kept", session)
    kept = sorted(str(path.relative_to(tmp_path / "kept")) for path in tmp_path.rglob("part-*"))
    assert kept == ["small/javaSort/plain/part-r-00000", "small/javaSort/voted-f=1/part-r-00000"]


def test_warm_up_runs_do_not_count(sets: dict[data.Kind, data.DataSet], session: Session, tmp_path: Path) -> None:
    study = Study(runner.applications(["javaSort"]), ("small",), (Variant("original"),), repeat=2, warm_up=2, reducers=1)
    said: list[str] = []
    results = runner.run_study(study, sets, tmp_path / "out", session, said.append)
    assert [r.repetition for r in results.runs] == [0, 1]
    assert [line.split()[0] for line in said] == ["[1/2]", "[2/2]"]


def test_an_output_that_differs_is_an_error_that_names_both(
    sets: dict[data.Kind, data.DataSet], session: Session, tmp_path: Path
) -> None:
    state = {"text": "first"}
    study = Study((a_job(lambda: state["text"]),), ("small",), BOTH, repeat=1, warm_up=0, reducers=1)
    one = runner._Runner(study, study.apps[0], "small", sets["varinfltext"].files("small"), tmp_path / "out", session)
    one._run(BOTH[0], 0)
    state["text"] = "second"
    with pytest.raises(QuoreduceError, match=r"told, small, voted f=1: .*other bytes than that of plain") as caught:
        one._run(BOTH[1], 0)
    assert caught.value.exit_code == 1
    assert len(list(tmp_path.rglob("part-r-00000"))) == 2


def test_a_part_that_changes_after_the_vote_is_noticed(
    sets: dict[data.Kind, data.DataSet], session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(runner.applications(["javaSort"]), ("small",), (Variant("bft", 1),), repeat=1, warm_up=0, reducers=1)
    whole = runner.digest_parts

    def meddled(output: Path) -> str:
        part = output / "part-r-00000"
        raw = bytearray(part.read_bytes())
        raw[len(raw) // 2] ^= 1
        part.write_bytes(raw)
        return whole(output)

    monkeypatch.setattr(runner, "digest_parts", meddled)
    with pytest.raises(QuoreduceError, match="not what was voted on"):
        runner.run_study(study, sets, tmp_path / "out", session)


def test_an_ablation_switches_off_one_modification_at_a_time(
    sets: dict[data.Kind, data.DataSet], session: Session, tmp_path: Path
) -> None:
    chosen = runner.ablation(1)
    assert [v.off for v in chosen] == [(), (), (), *((name,) for name in MODIFICATIONS)]
    study = Study(runner.applications(["javaSort"]), ("small",), chosen, repeat=1, warm_up=0, reducers=1)
    results = runner.run_study(study, sets, tmp_path / "out", session)
    executions = {r.variant: sum(r.executions.values()) for r in results.runs}
    assert len({r.digest for r in results.runs}) == 1
    assert executions["basic f=1"] == executions["voted f=1 without deferred"] == 3 * executions["plain"]
    assert executions["voted f=1"] == 2 * executions["plain"]


def test_variants_are_every_mode_with_every_f() -> None:
    found = runner.compared([1, 2], ["original", "bft"])
    assert [v.name for v in found] == ["plain", "voted f=1", "voted f=2"]


def test_ratios_are_of_pairs(all_six: Results) -> None:
    table = cells(all_six.runs)
    (found,) = [c for c in compare(table, "plain", "voted f=1") if c.base.app == "combiner"]
    ratios = [b.wall_s / a.wall_s for a, b in zip(found.base.runs, found.other.runs, strict=True)]
    assert min(ratios) <= found.wall.median <= max(ratios)
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_a_set_that_is_missing_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no set fixcompseq .* --set fixcompseq"):
        runner.find_sets(tmp_path, ("fixcompseq",))


def test_a_folder_that_is_itself_a_set_will_do(folder: Path) -> None:
    assert list(runner.find_sets(folder / "varinfltext", ("varinfltext",))) == ["varinfltext"]


# --- the command


def test_the_command_generates_and_runs_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--set", "all", "--bytes", "40K", "--parts", 2, "--workers", 1, "--seed", 3, tmp_path / "d") == 0
    assert capsys.readouterr().out.count("2 parts") == 3
    words = ("run", tmp_path / "d", tmp_path / "o", "--app", "combiner", "--on", "inline", "--repeat", 2, "--reducers", 1)
    assert run(*words, "--json") == 0
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert [r["mode"] for r in printed["runs"]] == ["original", "bft"] * 2
    assert printed["setting"]["data"]["varinfltext"]["seed"] == 3
    assert "[4/4]" in said.err
    assert json.loads((tmp_path / "o" / "gridmix.json").read_bytes()) == printed


def test_the_table_shows_medians_and_ratios(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--app", "javaSort,combiner", "--on", "inline", "--repeat", 1, "--warm-up", 0, "--reducers", 1, "--quiet")
    assert run("run", folder, tmp_path / "o", *words) == 0
    said = capsys.readouterr()
    assert "geometric mean" in said.out
    assert "2 applications: all runs of each wrote the same bytes." in said.out
    assert "[1/" not in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--app", "sleepSort"), "no application 'sleepSort'"),
        (("--size", "huge"), "--size 'huge'"),
        (("--mode", "maybe"), "--mode 'maybe'"),
        (("--mode", ","), "--mode ','"),
        (("-f", "one"), "-f is a number"),
        (("-f", "99"), "f is 0 to 16"),
        (("--repeat", "0"), "repetitions are 1 to"),
        (("--reducers", "0"), "number of reducers"),
        (("--ablation", "--mode", "bft"), "leave out --mode"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run("run", folder, tmp_path / "o", "--on", "inline", *words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / "o").exists()


def test_an_output_that_is_not_ours_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "diary.txt").write_text("mine")
    assert run("run", folder, tmp_path / "o", "--on", "inline", "--overwrite") == 2
    assert "not empty" in capsys.readouterr().err
    assert os.listdir(tmp_path / "o") == ["diary.txt"]


def test_earlier_results_are_replaced_only_if_asked_to(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--app", "javaSort", "--on", "inline", "--repeat", 1, "--reducers", 1)
    words: tuple[Any, ...] = ("run", folder, tmp_path / "o", *how)
    assert run(*words) == 0
    assert run(*words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 0


def test_an_output_inside_the_data_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", folder, folder / "o", "--on", "inline") == 2
    assert "lie in one another" in capsys.readouterr().err


def test_an_output_without_parts_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        runner.digest_parts(tmp_path)


def test_a_study_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to run"):
        Study((), ("small",), BOTH)
