"""Every HTML page that quoreduce writes: whole, dated, and readable on a phone and on a screen, light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import Browser, chromium

from quoreduce import __version__
from quoreduce.chaos.plan import COLLUSION, KINDS
from quoreduce.chaos.tally import Campaign, JobOutcome
from quoreduce.commands.chaos import page as chaos_page
from quoreduce.commands.simulate import page as simulated_page
from quoreduce.sim import USUAL
from quoreduce.sim.slides import slides
from quoreduce_gridmix.noise import Noise
from quoreduce_gridmix.report import render
from quoreduce_gridmix.results import FORMAT, Amounts, JobStage, Run, StudyResults, StudySetting
from quoreduce_gridmix.runner import Variant, ablation

PAGES = ("gridmix", "simulate", "chaos")
PHONE, SCREEN = 390, 1200
CONTRAST = 4.5  # of text: WCAG 2, level AA
ROOT = Path(__file__).parents[2]


def gridmix_results() -> StudyResults:
    """Three applications, in two sizes, plain and voted, and an ablation."""

    def a_run(app: str, size: str, variant: Variant, repetition: int, splits: int) -> Run:
        n = {"original": 1, "basic": 3, "bft": 2}[variant.mode]
        wall_s = 0.37 * n * splits / 3
        amounts, executions = Amounts(10**9, 10**9, 10**9 * n, 10**9), {"map": splits * n, "reduce": 15 * n}
        stage = JobStage(
            job=app, wall_s=wall_s, cpu_s=2 * wall_s, bytes=amounts, executions=executions, counters={}, splits=splits,
            parts=2, reexecutions=0, faults_detected=0,
        )  # fmt: skip
        return Run(
            app=app, size=size, variant=variant.name, mode=variant.mode, f=variant.f, off=list(variant.off),
            repetition=repetition, wall_s=wall_s, cpu_s=2 * wall_s, bytes=amounts, executions=executions, counters={},
            digest="0" * 64, splits=splits, noise=Noise(0.0, 0.0, 0.0, False), stages=[stage],
        )  # fmt: skip

    runs = [
        a_run(app, size, variant, k, splits)
        for app in ("webdataScan", "monsterQuery", "streamSort")
        for size, splits in (("small", 3), ("medium", 30))
        for k in range(3)
        for variant in dict.fromkeys((Variant("original"), Variant("bft", 1), *ablation(1)))
    ]
    machine: dict[str, str | int | float] = {
        "cpu": "AMD EPYC Processor with a long name", "cores": 2, "cores_used": 2, "memory_gb": 8.0, "kernel": "6.18",
        "architecture": "x86_64",
    }  # fmt: skip
    setting = StudySetting(
        on="ray", workers=2, domains=2, machine=machine,
        data={"varinfltext": {"nbytes": 10**9, "seed": 1, "parts": 10}}, split_mb=64.0, digest="blake3",
    )  # fmt: skip
    versions = {"Python": "3.11.2", "quoreduce": __version__, "numba": "0.61.0", "numpy": "2.0.0", "Ray": "2.60.0"}
    return StudyResults(format=FORMAT, date="2026-01-02T03:04:05+00:00", versions=versions, setting=setting, runs=runs)


def campaign() -> Campaign:
    """Each kind of fault strikes a job; some are not masked."""
    records = [
        JobOutcome("local", n, "sort", 1, "stopped" if n % 5 == 0 else "right", {kind: 17 * n + 1}, 1.5, n, rss_mb=50.0)
        for n, kind in enumerate(KINDS)
    ]
    wrong = [
        JobOutcome("local", 99, "sort", 1, "wrong", {kind: 3}, 1.5, 1, rss_mb=50.0)
        for kind in (COLLUSION, next(iter(KINDS)))
    ]
    return Campaign(7, 1.0, tuple(KINDS), [*records, *wrong], wall_s=60.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, as NAME.html."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "gridmix.html").write_text(render([gridmix_results()])[0])
    (folder / "simulate.html").write_text(simulated_page.page(slides(USUAL)))
    (folder / "chaos.html").write_text(chaos_page.page(campaign()))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("Chromium is not installed (on Debian: apt-get install chromium)")
    with Browser(program) as found:
        yield found


def test_these_are_all_pages() -> None:
    """Whatever writes HTML does it through quoreduce_gridmix.page, and is drawn here."""
    sources = [path for top in ("engine", "gridmix", "bench") for path in sorted((ROOT / top).rglob("*.py"))]
    frames = [path.name for path in sources if "<!doctype html>" in path.read_text().lower()]
    assert frames == ["page.py"]
    users = {
        f"{path.parent.name}/{path.name}" for path in sources
        if re.search(r"import page as frame|from quoreduce_gridmix.page import", path.read_text())
    }  # fmt: skip
    assert users == {"quoreduce_gridmix/report.py", "simulate/page.py", "chaos/page.py"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed_dated_and_loads_nothing(name: str, folder: Path) -> None:
    first, _, rest = (folder / f"{name}.html").read_text().partition("\n")
    assert first == "<!doctype html>"
    root = ElementTree.fromstring(rest)
    assert {"viewport"} == {meta.get("name") for meta in root.iter("meta")} - {None}
    assert "prefers-color-scheme: dark" in rest
    assert not re.search(r"<script|\b(src|href)=|url\(|@import", rest)
    said = "".join(next(root.iter("footer")).itertext())
    assert re.fullmatch(rf"Written on \d{{4}}-\d\d-\d\d \d\d:\d\d UTC by quoreduce {re.escape(__version__)}\.", said)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, SCREEN])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_the_width_of_a_screen(name: str, width: int, dark: bool, folder: Path, browser: Browser) -> None:
    """What is wider scrolls in a box of its own; text is not shrunk."""
    browser.open(folder / f"{name}.html", width, dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("innerWidth") == width
    boxes = browser.evaluate("[...document.querySelectorAll('.wide')].map(e => [e.clientWidth, e.scrollWidth])")
    assert boxes
    assert all(shown <= width for shown, _ in boxes)
    if width == PHONE:
        assert any(whole > shown for shown, whole in boxes)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('p, td, th, dd, li')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 13
    scales = browser.evaluate(
        "[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width / e.viewBox.baseVal.width)"
    )
    assert all(scale > 0.99 for scale in scales)


CONTRASTS = """
(() => {
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(v => linear(Number(v)));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const worst = {};
  for (const e of document.querySelectorAll('h1, h2, h3, p, td, th, dt, dd, li, span, svg text')) {
    const svg = e.closest('svg');
    const ink = svg ? getComputedStyle(e).fill : getComputedStyle(e).color;
    const under = svg ? getComputedStyle(svg.querySelector('rect')).fill : paper(e);
    const [light, dark] = [luminance(ink), luminance(under)].sort((x, y) => y - x);
    worst[e.tagName] = Math.min(worst[e.tagName] ?? 99, (light + 0.05) / (dark + 0.05));
  }
  return [luminance(paper(document.body)), worst];
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_stands_out_from_its_paper(name: str, dark: bool, folder: Path, browser: Browser) -> None:
    browser.open(folder / f"{name}.html", PHONE, dark)
    paper, worst = browser.evaluate(CONTRASTS)
    assert (paper < 0.05) if dark else (paper > 0.9)
    assert min(worst.values()) >= CONTRAST, worst
