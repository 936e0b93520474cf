"""The runner: every application in turn, plain and voted, with outputs that are compared; and what it refuses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from quoreduce import Job, Place, Session
from quoreduce.cli import main
from quoreduce.errors import InputError, OutputError, QuoreduceError, UsageError
from quoreduce_gridmix import data, runner
from quoreduce_gridmix.cli import print_table
from quoreduce_gridmix.noise import Noise
from quoreduce_gridmix.results import MODIFICATIONS, StudyResults, as_json, cells, compare, geometric_mean, read_results
from quoreduce_gridmix.runner import Application, Study, Variant

SEED = 5
NBYTES = 150_000
PARTS = 4
RUN_FIELDS = {
    "app", "size", "variant", "mode", "f", "off", "repetition", "wall_s", "cpu_s", "bytes", "executions", "counters",
    "digest", "splits", "noise", "stages", "extra",
}  # fmt: skip
BOTH = (Variant("original"), Variant("bft", 1))
QUIET = Noise(0.0, 0.0, 0.0, False)
LOUD = Noise(9.0, 0.0, 0.0, True)


class Told:
    """A watch that says what it is told, run after run; quiet when there is no more."""

    noises: ClassVar[list[Noise]] = []

    def close(self, own_cpu_s: float) -> Noise:
        return self.noises.pop(0) if self.noises else QUIET


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """So that what other processes do on this machine adds no runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "NoiseWatch", Told)
        yield


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[Noise]:
    """What runs are disturbed by, in turn: to be filled by a test."""
    told: list[Noise] = []
    monkeypatch.setattr(Told, "noises", told)
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three sets, tiny."""
    path = tmp_path_factory.mktemp("gridmix")
    for kind in data.KINDS:
        data.generate(kind, path / kind, NBYTES, parts=PARTS, seed=SEED, workers=1)
    return path


@pytest.fixture(scope="module")
def sets(folder: Path) -> dict[data.Kind, data.DataSet]:
    return runner.find_sets(folder, data.KINDS)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(Place("inline", 3)) as opened:
        yield opened


@pytest.fixture(scope="module")
def all_six(
    _quiet: None, sets: dict[data.Kind, data.DataSet], session: Session, tmp_path_factory: pytest.TempPathFactory
) -> StudyResults:  # fmt: skip
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


def test_plain_and_voted_take_turns(all_six: StudyResults) -> None:
    order = [(r.app, r.variant, r.repetition) for r in all_six.runs][:4]
    assert order == [("streamSort", v, k) for k in (0, 1) for v in ("plain", "voted f=1")]


def test_every_application_writes_the_same_plain_and_voted(all_six: StudyResults) -> None:
    digests = {app: {r.digest for r in all_six.runs if r.app == app} for app in {r.app for r in all_six.runs}}
    assert len(digests) == 6
    assert all(len(found) == 1 for found in digests.values())


def test_a_voted_run_executes_every_task_twice(all_six: StudyResults) -> None:
    for name in ("map", "reduce"):
        counts = {(r.app, r.variant): r.executions[name] for r in all_six.runs}
        assert all(counts[app, "voted f=1"] == 2 * n for (app, variant), n in counts.items() if variant == "plain")


def test_stages_are_summed(all_six: StudyResults) -> None:
    run = next(r for r in all_six.runs if r.app == "monsterQuery")
    assert [stage.job for stage in run.stages] == ["monsterQuery-1", "monsterQuery-2", "monsterQuery-3"]
    assert run.wall_s == pytest.approx(sum(stage.wall_s for stage in run.stages))
    assert run.splits == sum(stage.splits for stage in run.stages)
    assert run.bytes.stored == sum(stage.bytes.stored for stage in run.stages)
    assert run.counters["MAP_INPUT_RECORDS"] == sum(stage.counters["MAP_INPUT_RECORDS"] for stage in run.stages)


def test_a_run_has_these_fields_in_json(all_six: StudyResults) -> None:
    for run in as_json(all_six)["runs"]:
        assert set(run) == RUN_FIELDS
        assert set(run["bytes"]) == {"in", "out", "stored", "shipped"}
        assert run["wall_s"] > 0
        assert run["cpu_s"] > 0
        assert len(run["digest"]) == 64


def test_results_are_read_back_as_they_were(all_six: StudyResults, tmp_path: Path) -> None:
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
    study = Study(
        runner.applications(["javaSort"]), ("small",), (Variant("original"),), repeat=2, warm_up=2, reducers=1
    )
    said: list[str] = []
    results = runner.run_study(study, sets, tmp_path / "out", session, said.append)
    assert [r.repetition for r in results.runs] == [0, 1]
    assert [line.split()[0] for line in said] == ["[1/2]", "[2/2]"]


def test_a_disturbed_repetition_is_made_up_for(
    sets: dict[data.Kind, data.DataSet], session: Session, tmp_path: Path, noises: list[Noise]
) -> None:
    noises += [QUIET, QUIET, QUIET, LOUD]  # plain, voted, plain, voted
    study = Study(runner.applications(["javaSort"]), ("small",), BOTH, repeat=2, warm_up=0, reducers=1)
    said: list[str] = []
    results = runner.run_study(study, sets, tmp_path / "out", session, said.append)
    assert [(r.variant, r.repetition, r.extra) for r in results.runs] == [
        (variant, k, k == 2) for k in range(3) for variant in ("plain", "voted f=1")
    ]
    assert [r.noise.dirty for r in results.runs] == [False, False, False, True, False, False]
    assert [line.split()[0] for line in said] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]", "[again]", "[again]"]
    assert [line.endswith("disturbed") for line in said] == [False] * 3 + [True] + [False] * 2
    (found,) = compare(cells(results.runs), "plain", "voted f=1")
    assert (found.pairs, found.clean, found.wall.count) == (3, 2, 2)


def test_on_a_machine_that_is_never_quiet_runs_come_to_an_end(
    sets: dict[data.Kind, data.DataSet],
    session: Session,
    tmp_path: Path,
    noises: list[Noise],
    capsys: pytest.CaptureFixture[str],
) -> None:
    noises += [LOUD] * 100
    study = Study(runner.applications(["javaSort"]), ("small", "medium"), BOTH, repeat=2, warm_up=1, reducers=1)
    results = runner.run_study(study, sets, tmp_path / "out", session)
    assert [(r.size, r.repetition) for r in results.runs[::2]] == [
        (size, k) for size in ("small", "medium") for k in range(4)
    ]
    print_table(results)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if " small " in line and " plain " in line]
    assert [cell.strip() for cell in row.split("│")[5:7]] == ["4", "0"]  # runs, clean


def test_half_of_the_runs_asked_for_are_enough(
    sets: dict[data.Kind, data.DataSet], session: Session, tmp_path: Path, noises: list[Noise]
) -> None:
    noises += [LOUD, QUIET, LOUD, LOUD]
    study = Study(runner.applications(["javaSort"]), ("small",), BOTH[:1], repeat=2, warm_up=0, reducers=1)
    results = runner.run_study(study, sets, tmp_path / "out", session)
    (cell,) = cells(results.runs).values()
    assert (len(cell.runs), cell.clean, cell.kept) == (4, 1, [results.runs[1]])


def test_a_sweep_reads_the_first_part_files(
    sets: dict[data.Kind, data.DataSet], session: Session, tmp_path: Path
) -> None:
    study = Study(runner.applications(["monsterQuery"]), ("parts:1", "parts:3"), BOTH, repeat=1, warm_up=0)
    results = runner.run_study(study, sets, tmp_path / "out", session)
    assert [(r.size, r.stages[0].splits) for r in results.runs] == [("parts:1", 1)] * 2 + [("parts:3", 3)] * 2
    assert {stage.parts for r in results.runs for stage in r.stages} == {5}  # the small job's, at every point
    records = [sum(part.records for part in sets["fixcompseq"].parts[:n]) for n in (1, 3)]
    assert [r.stages[0].counters["MAP_INPUT_RECORDS"] for r in results.runs[::2]] == records


def test_sizes_are_three_names_or_a_number_of_parts(sets: dict[data.Kind, data.DataSet]) -> None:
    data_set = sets["varinfltext"]
    assert data_set.files("parts:2") == data_set.files("large")[:2]
    assert len(data_set.files("parts:4")) == PARTS
    with pytest.raises(UsageError, match=r"varinfltext has 4 part files, not 5: .*--parts 5"):
        data_set.files("parts:5")
    for wrong in ("parts:0", "parts:", "parts:-1", "parts:1.5", "parts:9999999", "huge", ""):
        with pytest.raises(UsageError, match="a size is"):
            data_set.files(wrong)


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


def test_ratios_are_of_pairs(all_six: StudyResults) -> None:
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


def test_the_command_generates_and_runs_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("generate", "--set", "all", "--bytes", "40K", "--parts", 2, "--workers", 1, "--seed", 3, tmp_path / "d")
        == 0
    )
    assert capsys.readouterr().out.count("2 parts") == 3
    words = (
        "run",
        tmp_path / "d",
        tmp_path / "o",
        "--app",
        "combiner",
        "--on",
        "inline",
        "--repeat",
        2,
        "--reducers",
        1,
    )
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


def test_the_command_sweeps_and_the_report_draws_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--app",
        "javaSort",
        "--on",
        "inline",
        "--repeat",
        1,
        "--warm-up",
        0,
        "--sweep",
        "1,2,04",
        "--split-mb",
        0.01,
    )
    assert run("run", folder, tmp_path / "o", *words) == 0
    assert re.findall(r"parts:\d+", capsys.readouterr().out) == [
        "parts:1",
        "parts:1",
        "parts:2",
        "parts:2",
        "parts:4",
        "parts:4",
    ]
    results = read_results(tmp_path / "o" / "gridmix.json")
    splits = [r.stages[0].splits for r in results.runs[::2]]
    assert splits == sorted(set(splits))
    assert splits[0] > 1  # of one part file
    assert run("report", tmp_path / "o" / "gridmix.json", "--out", tmp_path / "page.html") == 0
    assert sorted(path.name for path in tmp_path.glob("page*")) == ["page-splits-javasort.svg", "page.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--app", "sleepSort"), "--app: there is no 'sleepSort'"),
        (("--size", "huge"), "--size 'huge'"),
        (("--sweep", "1,2", "--size", "small"), "--sweep and --size contradict each other"),
        (("--sweep", "1,5"), "has 4 part files, not 5"),
        (("--mode", "maybe"), "--mode 'maybe'"),
        (("--mode", ","), "--mode ','"),
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


def test_an_output_that_is_not_ours_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "diary.txt").write_text("mine")
    assert run("run", folder, tmp_path / "o", "--on", "inline", "--overwrite") == 2
    assert "not empty" in capsys.readouterr().err
    assert os.listdir(tmp_path / "o") == ["diary.txt"]


def test_earlier_results_are_replaced_only_if_asked_to(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_outputs_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "small" / "javaSort" / "plain"
    (folder / "stage-1").mkdir(parents=True)
    (folder / "stage-1" / "part-r-00000").touch()
    (folder / "stage-1" / "_SUCCESS").touch()
    runner._clear(folder)
    assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'thesis\.tex', which no job wrote"):
        runner._clear(folder)
    assert (folder / "thesis.tex").exists()
