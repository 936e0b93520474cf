"""The report: one page that stands alone, with the figures that the runs give, and beside it the same figures as
SVG.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from quoreduce.cli import main
from quoreduce.errors import InputError, OutputError
from quoreduce_gridmix.figures import Band, Bar, Group, Line, bar_chart, line_chart, short, ticks_to
from quoreduce_gridmix.noise import Noise
from quoreduce_gridmix.png import png_renderer
from quoreduce_gridmix.report import render, write_report
from quoreduce_gridmix.results import (
    FORMAT,
    Amounts,
    JobStage,
    MedianFigure,
    Run,
    StudyResults,
    StudySetting,
    as_json,
    cells,
    compare,
    read_results,
)
from quoreduce_gridmix.runner import Variant, ablation

SVG = "{http://www.w3.org/2000/svg}"
QUIET = Noise(0.0, 0.0, 0.0, False)
LOUD = Noise(9.0, 0.0, 0.0, True)


def a_run(
    app: str, size: str, variant: Variant, repetition: int, wall_s: float, splits: int = 3, noise: Noise = QUIET
) -> Run:
    n = {"original": 1, "basic": 3, "bft": 2}[variant.mode]
    amounts, executions = Amounts(100, 90, 50 * n, 10 * n), {"map": splits * n, "reduce": 2 * n}
    stage = JobStage(
        job=app, wall_s=wall_s, cpu_s=2 * wall_s, bytes=amounts, executions=executions, counters={}, splits=splits,
        parts=2, reexecutions=0, faults_detected=0,
    )  # fmt: skip
    return Run(
        app=app, size=size, variant=variant.name, mode=variant.mode, f=variant.f, off=list(variant.off),
        repetition=repetition,
        wall_s=wall_s, cpu_s=2 * wall_s, bytes=amounts, executions=executions, counters={}, digest="0" * 64,
        splits=splits, noise=noise, stages=[stage],
    )  # fmt: skip


def results(runs: list[Run], on: str = "local") -> StudyResults:
    machine: dict[str, str | int | float] = {
        "cpu": "Example <CPU> & Co", "cores": 2, "cores_used": 2, "memory_gb": 8.0, "kernel": "6.1",
        "architecture": "x86_64",
    }  # fmt: skip
    setting = StudySetting(
        on=on, workers=2, domains=2, machine=machine, data={"varinfltext": {"nbytes": 1000, "seed": 1, "parts": 10}},
        split_mb=64.0, digest="blake3",
    )  # fmt: skip
    return StudyResults(
        format=FORMAT, date="2026-01-02T03:04:05+00:00", versions={"quoreduce": "0.1.0"}, setting=setting, runs=runs
    )


@pytest.fixture
def pairs() -> StudyResults:
    """Two applications in three sizes: voted runs take twice as long, or 1.5 times."""
    runs = [
        a_run(app, size, variant, k, wall * splits * (1 + k / 10) * (factor if variant.mode == "bft" else 1), splits)
        for app, wall, factor in (("javaSort", 0.5, 2.0), ("webdataScan", 0.25, 1.5))
        for size, splits in (("small", 3), ("medium", 30), ("large", 100))
        for k in range(3)
        for variant in (Variant("original"), Variant("bft", 1))
    ]
    return results(runs)


@pytest.fixture
def ablated() -> StudyResults:
    runs = [a_run("javaSort", "small", v, k, 1.0 + n / 10 + k) for k in range(2) for n, v in enumerate(ablation(1))]
    return results(runs, "ray")


def page(text: str) -> ElementTree.Element:
    first, _, rest = text.partition("\n")
    assert first == "<!doctype html>"
    return ElementTree.fromstring(rest)


def test_the_page_stands_alone_and_is_well_formed(pairs: StudyResults, ablated: StudyResults) -> None:
    text, _ = render([pairs, ablated])
    root = page(text)
    assert {element.tag for element in root.iter()}.isdisjoint(
        {"script", "link", "img", "iframe", "object", f"{SVG}image"}
    )
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address that is loaded
    assert not re.search(r"\b(src|href)=|url\(|@import", text)


def test_the_page_has_ratios_with_seconds_beside_them(pairs: StudyResults) -> None:
    text = "".join(page(render([pairs])[0]).itertext())
    assert "voted f=1 against plain, small" in text
    for figure in ("2.00 ± 0.00", "1.50 ± 0.00", "1.65 ± 0.07", "3.30 ± 0.15", "1.73"):
        assert figure in text, figure


def test_the_page_says_where_and_when(pairs: StudyResults) -> None:
    text = "".join(page(render([pairs])[0]).itertext())
    for fact in ("2026-01-02T03:04:05", "Example <CPU> & Co", "quoreduce 0.1.0", "seed 1", "local, 2 workers"):
        assert fact in text


def test_published_figures_are_labelled_as_published(pairs: StudyResults) -> None:
    text = "".join(page(render([pairs])[0]).itertext())
    assert "published, 10 nodes: 1.5 to 2.5" in text
    assert "Other systems on other machines" in text


def test_figures_are_there_for_ratios_splits_and_ablation(pairs: StudyResults, ablated: StudyResults) -> None:
    names = [drawing.name for drawing in render([pairs])[1]]
    ratios = [f"ratios-{size}-voted-f-1" for size in ("small", "medium", "large")]
    assert names == [*ratios, "splits-webdatascan", "splits-javasort"]
    names = [drawing.name for drawing in render([ablated])[1]]
    assert names == ["ratios-small-basic-f-1", "ratios-small-voted-f-1", "ablation-small-f1"]


def test_different_settings_do_not_mix(pairs: StudyResults, ablated: StudyResults) -> None:
    text, drawings = render([pairs, ablated])
    assert len(list(page(text).iter("h2"))) == 3  # two settings, and what was published
    assert len({drawing.name for drawing in drawings}) == len(drawings)


def test_results_of_the_same_setting_are_one(pairs: StudyResults) -> None:
    halves = [structs.replace(pairs, runs=pairs.runs[start::2]) for start in (0, 1)]
    assert [d.name for d in render(halves)[1]] == [d.name for d in render([pairs])[1]]


def test_runs_without_a_plain_one_are_shown_in_seconds() -> None:
    text = "".join(page(render([results([a_run("javaSort", "small", Variant("bft", 1), 0, 0.5)])])[0]).itertext())
    assert "javaSort" in text
    assert "0.500" in text


def test_dirty_pairs_are_dropped_unless_most_are_dirty() -> None:
    def ratio(noises: list[Noise]) -> MedianFigure:
        plain, voted = Variant("original"), Variant("bft", 1)
        runs = [a_run("a", "small", plain, k, 1.0) for k in range(3)]
        runs += [a_run("a", "small", voted, k, 2.0 + 10 * noise.dirty, noise=noise) for k, noise in enumerate(noises)]
        (found,) = compare(cells(runs), "plain", "voted f=1")
        assert found.clean == sum(not noise.dirty for noise in noises)
        return found.wall

    assert ratio([QUIET, LOUD, QUIET]).median == 2.0
    assert ratio([LOUD, LOUD, QUIET]).median == 12.0


def test_runs_that_make_up_for_others_are_not_more_that_must_be_clean() -> None:
    plain, voted = Variant("original"), Variant("bft", 1)
    noises = [QUIET, LOUD, LOUD, LOUD]  # two were asked for
    runs = [structs.replace(a_run("a", "small", v, k, 1.0 + k, noise=noise), extra=k > 1)
            for k, noise in enumerate(noises) for v in (plain, voted)]  # fmt: skip
    (found,) = compare(cells(runs), "plain", "voted f=1")
    assert (found.pairs, found.clean, found.wall.count) == (4, 1, 1)
    assert found.base.wall.median == 1.0


@pytest.fixture
def swept() -> StudyResults:
    """Two applications, one with three stages, at three points of a sweep."""
    runs = []
    for n in (10, 1, 5):
        for k in range(2):
            for variant in (Variant("original"), Variant("bft", 1)):
                wall = 0.1 * n * (1 + (variant.mode == "bft"))
                runs.append(a_run("javaSort", f"parts:{n}", variant, k, wall, n))
                run = a_run("monsterQuery", f"parts:{n}", variant, k, 3 * wall, n)
                runs.append(structs.replace(run, stages=run.stages * 3, splits=3 * n))
    return results(runs)


def test_a_sweep_is_drawn_over_the_splits_of_the_first_stage(swept: StudyResults) -> None:
    text, drawings = render([swept])
    assert [drawing.name for drawing in drawings] == ["splits-javasort", "splits-monsterquery"]
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.svg)
        assert "map splits of 64 MB" in "".join(root.itertext())
        assert len(list(root.iter(f"{SVG}polyline"))) == 2  # plain and voted
        notes = [title.text or "" for circle in root.iter(f"{SVG}circle") for title in circle]
        assert ["voted f=1, 5 splits (parts:5)" in note for note in notes].count(True) == 1
    rows = [
        "".join(cell.text or "" for cell in row)[:13]
        for row in page(text).iter("tr")
        if "2.00" in "".join(row.itertext())
    ]
    assert [row.startswith(app) for row in rows for app in ("javaSort",)] == [True] * 3 + [False] * 3
    assert [row[len("javaSort") :][:2] for row in rows[:3]] == ["11", "55", "10"]  # parts, splits


def test_ticks_of_something_counted_are_whole_numbers() -> None:
    assert ticks_to(2, whole=True) == [0, 1, 2, 3]
    assert all(tick == int(tick) for highest in range(1, 200) for tick in ticks_to(highest, whole=True))


def test_figures_in_a_folder_are_there_as_png_too_with_text_in_them(swept: StudyResults, tmp_path: Path) -> None:
    written = write_report([swept], tmp_path / "page.html", figures=tmp_path / "new" / "figures")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "new", tmp_path / "page.html"]
    assert sorted(written[1:]) == sorted((tmp_path / "new" / "figures").iterdir())
    assert [path.suffix for path in written[1:]] == [".svg", ".png"] * 2
    svg, png = written[1].read_text(), written[2].read_bytes()
    width, height = (int(size) for size in re.findall(r'(?:width|height)="(\d+)"', svg)[:2])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (2 * width, 2 * height)
    without_text = png_renderer()(re.sub("<text.*?</text>", "", svg))
    assert len(png) > 1.5 * len(without_text)  # the letters are drawn, whatever fonts the machine has


def test_without_what_makes_png_the_command_says_what_to_install(
    swept: StudyResults, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    (tmp_path / "runs.json").write_bytes(swept.encode())
    words = ["gridmix", "report", str(tmp_path / "runs.json"), "--out", str(tmp_path / "page.html")]
    assert main([*words, "--figures", str(tmp_path / "figures")]) == 2
    assert "resvg_py: pip install 'quoreduce[png]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]
    assert main(words) == 0  # SVG needs nothing


def test_files_of_the_first_format_are_read(pairs: StudyResults, tmp_path: Path) -> None:
    old = as_json(structs.replace(pairs, format=1))
    for run in old["runs"]:
        del run["extra"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert read_results(tmp_path / "old.json").runs == pairs.runs


def test_every_figure_is_a_file_beside_the_page(pairs: StudyResults, tmp_path: Path) -> None:
    written = write_report([pairs], tmp_path / "page.html")
    assert written[0] == tmp_path / "page.html"
    assert sorted(written) == sorted(tmp_path.iterdir())
    for path in written[1:]:
        assert ElementTree.parse(path).getroot().tag == f"{SVG}svg"


def test_the_command_writes_the_page_and_replaces_it_only_if_asked_to(
    pairs: StudyResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.json").write_bytes(pairs.encode())
    words = ["gridmix", "report", str(tmp_path / "runs.json"), "--out", str(tmp_path / "page.html")]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "page.html")
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b"\xff\xfe", b'{"runs": []}', b"not json", b'{"a":' * 100_000,
     b'{"a\\nb": 1}', b'{"%s": 1}' % (b"x" * 70_000)],
    ids=["nothing", "empty", "list", "not UTF-8", "no runs", "no JSON", "deep", "two lines", "a long name"],
)  # fmt: skip
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"bad\.json") as caught:
        read_results(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000 + len(str(path))


@pytest.mark.parametrize(
    ("old", "new"),
    [('"cores"', '"corse"'), ('"seed"', '"sede"'), ('"nbytes": 1000', '"nbytes": "many"'),
     ('"wall_s": ', '"wall_s": 99999999999'), ('"splits": 3', f'"splits": {10**30}'),
     ('"split_mb": 64', '"split_mb": -64')],
)  # fmt: skip
def test_results_that_the_page_cannot_show_are_refused(pairs: StudyResults, tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "bad.json"
    text = pairs.encode().decode()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=r"bad\.json"):
        read_results(path)


def test_results_that_cannot_be_are_refused(pairs: StudyResults, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    for wrong in (
        structs.replace(pairs, format=99), structs.replace(pairs, runs=[]),
        structs.replace(pairs, runs=[structs.replace(pairs.runs[0], wall_s=0.0)]),
        structs.replace(pairs, runs=[structs.replace(pairs.runs[0], stages=[])]),
        structs.replace(pairs, runs=[structs.replace(pairs.runs[0], size="parts:all")]),
    ):  # fmt: skip
        path.write_bytes(wrong.encode())
        with pytest.raises(InputError, match=r"bad\.json"):
            read_results(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: No such file"):
        read_results(tmp_path / "none.json")


def test_a_page_that_cannot_be_written_is_an_output_error(pairs: StudyResults, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_report([pairs], tmp_path / "no" / "page.html")


def test_text_in_a_chart_is_escaped() -> None:
    svg = bar_chart("<b> & co", "s", ("a<b",), [Group("x & y", (Bar(1.0, note="<i>"),))])
    assert "<b> & co" in "".join(ElementTree.fromstring(svg).itertext())


def test_bars_are_as_high_as_their_values() -> None:
    svg = bar_chart("t", "s", ("a",), [Group("x", (Bar(1.0),)), Group("y", (Bar(2.0),))], (Band(0.5, 1.5, "band"),))
    heights = [
        float(e.get("height", "")) for e in ElementTree.fromstring(svg).iter(f"{SVG}rect") if e.get("fill") == "#0072b2"
    ]
    _, first, second = heights  # the first is the legend's
    assert second == pytest.approx(2 * first, abs=0.2)


def test_a_bar_that_was_not_measured_is_left_out() -> None:
    svg = bar_chart("t", "s", ("a", "b"), [Group("x", (None, Bar(2.0)))])
    assert svg.count('fill="#0072b2"') == 1  # the legend's only


def test_lines_go_through_their_points_in_order() -> None:
    svg = line_chart("t", "s", "splits", [Line("plain", ((30, Bar(2.0)), (3, Bar(1.0)), (100, Bar(5.0))))])
    (line,) = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    xs = [float(point.split(",")[0]) for point in line.get("points", "").split()]
    assert xs == sorted(xs)
    assert len(xs) == 3


@given(st.floats(1e-9, 1e12))
def test_ticks_are_round_few_and_reach_the_top(highest: float) -> None:
    ticks = ticks_to(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= highest
    assert ticks[-1] <= 3 * highest
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))


def test_numbers_are_short() -> None:
    values = {0: "0", 1.0: "1", 1.234: "1.23", 0.0123: "0.0123", 123.4: "123", 12345.6: "12,346"}
    assert {value: short(value) for value in values} == values
