"""The report: one HTML file with everything in it, and its figures as SVG files beside it, or as SVG and PNG in a
folder.

Nothing is loaded from elsewhere, and there are no scripts. The page is well-formed XML after its first line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from quoreduce.data.commit import output_errors
from quoreduce.errors import OutputError
from quoreduce_gridmix.data import SWEEP, parts_in
from quoreduce_gridmix.figures import Band, Bar, Group, Line, bar_chart, line_chart
from quoreduce_gridmix.page import charts, html_table, page, wide
from quoreduce_gridmix.png import png_renderer
from quoreduce_gridmix.results import (
    PLAIN,
    Cell,
    Comparison,
    MedianFigure,
    Run,
    StudyResults,
    StudySetting,
    by_setting,
    cells,
    compare,
    geometric_mean,
    variants,
)

PUBLISHED_TIME = Band(1.5, 2.5, "published, 10 nodes: 1.5 to 2.5")
EVEN = Band(1.0, 1.0, "plain = 1")
PUBLISHED = (
    ("BFT MapReduce (the slides), f=1, GridMix, 10 nodes", "1.5 to 2.5", "2"),
    ("BFT MapReduce (the slides), f=1, GridMix, 20 nodes", "only slightly longer", "2"),
    ("FTMR's logs, f=1, deferred, GridMix 2, twice the nodes", "1.02 to 1.04", "2.05 to 2.08 (node-seconds)"),
    ("FTMR's logs, f=1, all 2f+1 replicas", "", "3.14 to 3.22 (node-seconds)"),
)
SPLITS_FIRST = "webdataScan"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart with the name that its file gets."""

    name: str
    svg: str


def write_report(
    all_results: Sequence[StudyResults], out: Path, overwrite: bool = False, figures: Path | None = None
) -> list[Path]:  # fmt: skip
    """Write the page to ``out``, and its figures; return the paths written, the page first.

    Figures are SVG files beside the page, or with ``figures``, a folder that is made if need be, SVG and PNG files
    there.

    Raises:
        OutputError: one of the files exists and ``overwrite`` is False, or cannot be written.
        UsageError: PNG files are wanted, and what makes them is not installed.
    """
    to_png = None if figures is None else png_renderer()
    folder = out.parent if figures is None else figures
    page, drawings = render(all_results)
    files = {out: page.encode()}
    for drawing in drawings:
        name = f"{out.stem}-{drawing.name}"
        files[folder / f"{name}.svg"] = drawing.svg.encode()
        if to_png is not None:
            files[folder / f"{name}.png"] = to_png(drawing.svg)
    for path in files:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists: use --overwrite to replace it")
    if figures is not None:
        with output_errors(figures):
            figures.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        with output_errors(path):
            path.write_bytes(content)
    return list(files)


def render(all_results: Sequence[StudyResults]) -> tuple[str, list[Drawing]]:
    """Make the page, and the figures in it, of one or more results."""
    drawings: list[Drawing] = []
    sections = []
    settings = by_setting(all_results)
    for number, (setting, results) in enumerate(settings, 1):
        prefix = f"{number}-" if len(settings) > 1 else ""
        section, own = _section(setting, results, prefix)
        sections.append(section)
        drawings += own
    body = "\n".join([*sections, _published()])
    intro = (
        "<h1>GridMix on quoreduce: what voting costs</h1>\n"
        "<p>Every task of a voted job runs on f+1 failure domains, and its output counts when they agree on the "
        "digest; a plain job runs each task once. Figures are medians of runs that alternate (plain, voted, plain, "
        "voted, ...); a ratio is the median of the ratios of pairs, ± half of the distance between the quartiles. Runs "
        "that other processes disturbed are dropped and made up for, at most as many again as were asked for, unless "
        "the clean ones are fewer than half of those. All runs of an application wrote the same bytes.</p>"
    )
    return page("GridMix on quoreduce", f"{intro}\n{body}"), drawings


def _section(setting: StudySetting, results: Sequence[StudyResults], prefix: str) -> tuple[str, list[Drawing]]:
    runs = [run for result in results for run in result.runs]
    table = cells(runs)
    drawings: list[Drawing] = []
    heading = f"{setting.on}, {setting.workers} workers in {setting.domains} failure domains"
    html = [f"<h2>{escape(heading)}</h2>", _about(setting, results)]
    compared = {variant: compare(table, PLAIN, variant) for variant in _voted(runs)}
    for variant, found in compared.items():
        for size in dict.fromkeys(c.base.size for c in found if not _in_sweep(c)):
            part = [c for c in found if c.base.size == size]
            drawing = Drawing(f"{prefix}ratios-{_slug(size)}-{_slug(variant)}", ratio_chart(part, size, variant))
            drawings.append(drawing)
            html.append(f"<h3>{escape(f'{variant} against plain, {size}')}</h3>")
            html += [wide(drawing.svg), ratio_table(part)]
    if not any(compared.values()):
        html += ["<h3>Seconds</h3>", _seconds(table.values())]
    html.append("<h3>Job time against the number of splits</h3>")
    lines = splits_charts(table, setting.split_mb)
    drawings += [Drawing(f"{prefix}splits-{_slug(app)}", svg) for app, svg in lines]
    html.append(
        charts([svg for _, svg in lines]) if lines
        else '<p class="note">Needs runs of one application with different numbers of splits: --sweep 1,2,5,10, or '
        "--size small,medium,large.</p>"
    )  # fmt: skip
    html += [sweep_table(found) for found in compared.values()]
    html.append("<h3>What each modification buys</h3>")
    abl = _ablation(table, runs, prefix)
    html += [text for text, _ in abl] or ['<p class="note">Needs the runs of --ablation.</p>']
    drawings += [drawing for _, drawing in abl]
    return "\n".join(html), drawings


def _about(setting: StudySetting, results: Sequence[StudyResults]) -> str:
    m = setting.machine
    versions = "; ".join(dict.fromkeys(", ".join(f"{k} {v}" for k, v in result.versions.items()) for result in results))
    sets = "; ".join(
        f"{kind}: {s['nbytes']:,} bytes, {s['parts']} parts, seed {s['seed']}" for kind, s in setting.data.items()
    )
    cores = f"{m['cores_used']} of {m['cores']} cores"
    facts = (
        ("Date", ", ".join(dict.fromkeys(result.date for result in results))),
        ("Machine", f"{m['cpu']}, {cores}, {m['memory_gb']} GB, {m['kernel']} {m['architecture']}"),
        ("Versions", versions),
        ("Data", f"{sets} (keys and values, before compression)"),
        ("Options", f"splits of {setting.split_mb:g} MB, digest of voted runs {setting.digest}"),
    )
    return html_table([], [[name, text] for name, text in facts], text=2)


def ratio_chart(found: Sequence[Comparison], size: str, variant: str) -> str:
    """Draw the ratios in time and CPU of each application (slide 25), with the seconds below."""
    groups = [
        Group(
            c.base.app,
            (_bar(c.wall, _note(c, "time")), _bar(c.cpu, _note(c, "CPU"))),
            (
                f"{c.base.wall.median:.3g} → {c.other.wall.median:.3g} s",
                f"CPU {c.base.cpu.median:.3g} → {c.other.cpu.median:.3g} s",
            ),
        )
        for c in found
    ]
    if len(found) > 1:
        means = [geometric_mean(getattr(c, name).median for c in found) for name in ("wall", "cpu")]
        groups.append(Group("geometric mean", tuple(Bar(mean, note=f"{mean:.3f}") for mean in means)))
    bands = (PUBLISHED_TIME, EVEN) if {c.other.runs[0].mode for c in found} == {"bft"} else (EVEN,)
    return bar_chart(f"{variant} / plain, {size}", "ratio", ("time", "CPU"), groups, bands, group_px=142)


def sweep_table(found: Sequence[Comparison]) -> str:
    """Ratios of the points of a sweep, as an HTML table, by application and number of part files; empty if there are
    none.
    """
    rows = [
        [
            c.base.app, f"{parts_in(c.base.size):,}", f"{c.base.first_splits:,}", f"{c.pairs} ({c.clean})",
            str(c.base.wall), str(c.other.wall), str(c.wall), str(c.cpu),
        ]
        for c in sorted(found, key=lambda c: (c.base.app, parts_in(c.base.size) or 0)) if _in_sweep(c)
    ]  # fmt: skip
    if not rows:
        return ""
    name = found[0].other.variant
    heads = ["application", "parts", "splits", "pairs (clean)", "plain s", f"{name} s", "time ratio", "CPU ratio"]
    return html_table(heads, rows)


def ratio_table(found: Sequence[Comparison]) -> str:
    """Ratios as an HTML table, seconds beside them; counts are those of plain → those of the variant."""
    name = found[0].other.variant
    heads = [
        "application", "splits", "pairs (clean)", "plain s", f"{name} s", "time ratio", "shortest runs' ratio",
        "plain CPU s", f"{name} CPU s", "CPU ratio",
        "executions", "MB stored", "MB shipped",
    ]  # fmt: skip
    rows = []
    for c in found:
        rows.append([
            c.base.app, f"{c.base.splits:,}", f"{c.pairs} ({c.clean})", str(c.base.wall), str(c.other.wall),
            str(c.wall),
            f"{c.least:.2f}", f"{c.base.cpu.median:.3g}", f"{c.other.cpu.median:.3g}", str(c.cpu),
            _both(c, _executions, ",.0f"), _both(c, lambda run: run.bytes.stored / 1e6, ",.1f"),
            _both(c, lambda run: run.bytes.shipped / 1e6, ",.1f"),
        ])  # fmt: skip
    if len(found) > 1:
        wall, cpu = (geometric_mean(getattr(c, name).median for c in found) for name in ("wall", "cpu"))
        least = geometric_mean(c.least for c in found)
        rows.append(["geometric mean", "", "", "", "", f"{wall:.2f}", f"{least:.2f}", "", "", f"{cpu:.2f}", "", "", ""])
    return html_table(heads, rows, total=len(found) > 1)


def splits_charts(table: dict[tuple[str, str, str], Cell], split_mb: float) -> list[tuple[str, str]]:
    """Draw job time against splits of the first stage (slide 24) of each application with several numbers of them.

    Returns:
        (application, SVG) of each.
    """
    points: dict[str, dict[str, dict[float, Bar]]] = {}
    for cell in table.values():
        note = f"{cell.variant}, {cell.first_splits} splits ({cell.size}): {cell.wall.median:.3f} s"
        points.setdefault(cell.app, {}).setdefault(cell.variant, {})[cell.first_splits] = _bar(cell.wall, note)
    charts = []
    for app in sorted(points, key=lambda name: name != SPLITS_FIRST):
        lines = [Line(name, tuple(of.items())) for name, of in points[app].items() if len(of) > 1]
        if lines:
            charts.append((app, line_chart(app, "job time, s", f"map splits of {split_mb:g} MB", lines)))
    return charts


def _ablation(table: dict[tuple[str, str, str], Cell], runs: Sequence[Run], prefix: str) -> list[tuple[str, Drawing]]:
    """For each size and f with all the runs: a chart and two tables, and the chart."""
    found = []
    for size in dict.fromkeys(run.size for run in runs):
        for f in sorted({run.f for run in runs if run.off}):
            names = [name for name in variants(run for run in runs if run.f == f and run.size == size) if name != PLAIN]
            base = f"basic f={f}"
            if base in names and any(run.off and run.f == f and run.size == size for run in runs):
                own = {key: cell for key, cell in table.items() if key[1] == size}
                by_variant = [(name, compare(own, base, name)) for name in names]
                chart = ablation_chart(by_variant, base, size)
                title = (
                    f"<p>Relative to {base} (2f+1 executions), {escape(size)}; "
                    "geometric means over the applications.</p>"
                )
                text = "\n".join(
                    [title, wide(chart), _ablation_table(by_variant), _ablation_seconds(own, [PLAIN, *names])]
                )
                found.append((text, Drawing(f"{prefix}ablation-{_slug(size)}-f{f}", chart)))
    return found


def ablation_chart(by_variant: Sequence[tuple[str, Sequence[Comparison]]], base: str, size: str) -> str:
    """Draw time, CPU, bytes stored and executions of each variant relative to ``base``."""
    groups = []
    for name, found in by_variant:
        if found:
            bars = tuple(Bar(value, note=f"{name}: {value:.3f}") for value in _means(found))
            groups.append(Group(name, bars))
    series = ("time", "CPU", "bytes stored", "executions")
    return bar_chart(
        f"relative to {base}, {size}", "ratio", series, groups, (Band(1.0, 1.0, f"{base} = 1"),), group_px=140
    )


def _ablation_table(by_variant: Sequence[tuple[str, Sequence[Comparison]]]) -> str:
    heads = ["variant", "time", "CPU", "bytes stored", "executions"]
    return html_table(
        heads, [[name, *(f"{value:.2f}" for value in _means(found))] for name, found in by_variant if found]
    )


def _ablation_seconds(table: dict[tuple[str, str, str], Cell], names: Sequence[str]) -> str:
    """Median seconds of each application and variant."""
    apps = list(dict.fromkeys(cell.app for cell in table.values()))
    rows = []
    for app in apps:
        found = {cell.variant: cell for cell in table.values() if cell.app == app}
        rows.append([app, *(str(found[name].wall) if name in found else "" for name in names)])
    return html_table(["seconds", *names], rows)


def _means(found: Sequence[Comparison]) -> tuple[float, float, float, float]:
    return (
        geometric_mean(c.wall.median for c in found),
        geometric_mean(c.cpu.median or 1.0 for c in found),
        geometric_mean(_quotient(c, lambda run: run.bytes.stored) for c in found),
        geometric_mean(_quotient(c, _executions) for c in found),
    )


def _seconds(found: Iterable[Cell]) -> str:
    rows = [[c.app, c.size, c.variant, f"{c.splits:,}", str(c.wall), str(c.cpu)] for c in found]
    return html_table(["application", "size", "variant", "splits", "s", "CPU s"], rows, text=3)


def _published() -> str:
    rows = [[what, time, cpu] for what, time, cpu in PUBLISHED]
    return (
        "<h2>Published, for comparison</h2>\n<p class=\"note\">Other systems on other machines, as their authors give "
        "them; not measured here.</p>\n" + html_table(["published", "time ratio", "CPU ratio"], rows, text=3)
    )  # fmt: skip


def _voted(runs: Sequence[Run]) -> list[str]:
    """Variants to compare with plain: not those of an ablation."""
    names = variants(run for run in runs if not run.off)
    return [name for name in names if name != PLAIN]


def _in_sweep(c: Comparison) -> bool:
    return c.base.size.startswith(SWEEP)


def _executions(run: Run) -> float:
    return float(sum(run.executions.values()))


def _both(c: Comparison, figure: object, style: str) -> str:
    assert callable(figure)
    return f"{c.base.amount(figure):{style}} → {c.other.amount(figure):{style}}"


def _quotient(c: Comparison, figure: object) -> float:
    assert callable(figure)
    base, other = c.base.amount(figure), c.other.amount(figure)
    return other / base if base > 0 and other > 0 else 1.0


def _bar(figure: MedianFigure, note: str) -> Bar:
    return Bar(figure.median, figure.low, figure.high, note)


def _note(c: Comparison, what: str) -> str:
    a, b = (c.base.wall, c.other.wall) if what == "time" else (c.base.cpu, c.other.cpu)
    ratio = c.wall if what == "time" else c.cpu
    return f"{c.base.app}, {what}: {a.median:.3f} s plain, {b.median:.3f} s {c.other.variant}: {ratio.median:.3f}"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-").lower()
