"""Charts as SVG, drawn by hand: bars in groups, and lines over a number. Each is one string that stands alone as a
file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5d5d5d", "#f0e442")  # Okabe and Ito's
INK, PAPER, FAINT, BAND = "#222222", "#ffffff", "#d0d0d0", "#dfead0"  # pages have others for them in the dark
FONT = "font-family=\"system-ui, 'DejaVu Sans', sans-serif\""
TEXT_PX = 12
CHARACTER_PX = 7.2  # on average, at TEXT_PX
LINE_PX = 15
LEFT_PX, RIGHT_PX, PLOT_PX = 62, 16, 240
GROUP_GAP = 0.28
TICKS = 5
LABEL_LINES_MAX = 5


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar; ``low`` and ``high`` are the ends of its whisker, if it has one; ``note`` is shown on hovering."""

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Bars side by side, one for each series (None: not measured), with lines of text below."""

    label: str
    bars: tuple[Bar | None, ...]
    below: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Band:
    """A range of values that is shaded; a line if both are equal."""

    low: float
    high: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x, y), y with the ends of a whisker."""

    label: str
    points: tuple[tuple[float, Bar], ...]


@dataclass(slots=True)
class _Canvas:
    """Collects elements; y runs from ``top`` down over PLOT_PX to the axis."""

    width: float
    top: float
    limit: float
    items: list[str] = field(default_factory=list)

    def y(self, value: float) -> float:
        """Height of a value in pixels."""
        return self.top + PLOT_PX * (1 - value / self.limit)

    def text(
        self, x: float, y: float, text: str, anchor: str = "middle", size: int = TEXT_PX, weight: str = "normal"
    ) -> None:
        """Write a line."""
        self.items.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'fill="{INK}">{escape(text)}</text>'
        )

    def rule(
        self, x1: float, y1: float, x2: float, y2: float, colour: str = INK, dash: str = "", width: float = 1
    ) -> None:
        """Draw a line."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.items.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour}" stroke-width="{width:g}"{dashed}/>'
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str, note: str = "") -> None:
        """Fill a rectangle."""
        title = f"<title>{escape(note)}</title>" if note else ""
        self.items.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0):.1f}" '
            f'fill="{colour}">{title}</rect>'
        )

    def whisker(self, x: float, bar: Bar) -> None:
        """Draw from the lower to the upper quartile."""
        if bar.low is not None and bar.high is not None and bar.high > bar.low:
            self.rule(x, self.y(bar.low), x, self.y(bar.high))
            for value in (bar.low, bar.high):
                self.rule(x - 3, self.y(value), x + 3, self.y(value))

    def svg(self, height: float, title: str) -> str:
        """Return the document."""
        body = "\n".join(self.items)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {self.width:.0f} {height:.0f}" role="img" {FONT}>\n<title>{escape(title)}</title>\n'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )


def bar_chart(
    title: str,
    axis: str,
    series: Sequence[str],
    groups: Sequence[Group],
    bands: Sequence[Band] = (),
    group_px: float = 118,
) -> str:
    """Draw bars in groups.

    Args:
        title: of the chart.
        axis: what the bars are, with the unit.
        series: names of the bars of a group, for the legend.
        groups: at least one.
        bands: shaded ranges behind the bars; they widen the axis.
        group_px: width of a group.
    """
    highest = max([_top(bar) for group in groups for bar in group.bars if bar is not None] + [b.high for b in bands])
    ticks = ticks_to(highest)
    width = max(LEFT_PX + RIGHT_PX + group_px * len(groups), 430.0)
    rows = _legend_rows([*series, *(band.label for band in bands)], width)
    canvas = _Canvas(width, 34 + LINE_PX * len(rows) + LINE_PX, ticks[-1])
    _frame(canvas, title, axis, ticks, rows, bands)
    for number, group in enumerate(groups):
        left = LEFT_PX + number * group_px
        each = group_px * (1 - GROUP_GAP) / max(len(group.bars), 1)
        for k, bar in enumerate(group.bars):
            if bar is not None:
                x = left + group_px * GROUP_GAP / 2 + k * each
                top, colour = canvas.y(bar.value), COLOURS[k % len(COLOURS)]
                canvas.box(x, top, each - 1, canvas.y(0) - top, colour, bar.note)
                canvas.whisker(x + each / 2, bar)
                canvas.text(x + each / 2, canvas.y(_top(bar)) - 4, f"{bar.value:.2f}", size=10)
        for k, line in enumerate([*_wrapped(group.label, group_px), *group.below]):
            canvas.text(left + group_px / 2, canvas.y(0) + LINE_PX * (k + 1) + 2, line, size=TEXT_PX - (k > 0))
    lines = max(len(_wrapped(group.label, group_px)) + len(group.below) for group in groups)
    return canvas.svg(canvas.y(0) + LINE_PX * (lines + 1), title)


def line_chart(title: str, axis: str, axis_x: str, lines: Sequence[Line], width: float = 430) -> str:
    """Draw lines with points over something counted; at least one line of one point. Both axes begin at 0."""
    ticks = ticks_to(max(_top(bar) for line in lines for _, bar in line.points))
    ticks_x = ticks_to(max(x for line in lines for x, _ in line.points), whole=True)
    rows = _legend_rows([line.label for line in lines], width)
    canvas = _Canvas(width, 34 + LINE_PX * len(rows) + LINE_PX, ticks[-1])
    _frame(canvas, title, axis, ticks, rows, ())

    def at(x: float) -> float:
        return LEFT_PX + (width - LEFT_PX - 2 * RIGHT_PX) * x / ticks_x[-1]

    for tick in ticks_x:
        canvas.rule(at(tick), canvas.y(0), at(tick), canvas.y(0) + 4)
        canvas.text(at(tick), canvas.y(0) + LINE_PX + 2, short(tick), size=11)
    canvas.text((LEFT_PX + width) / 2, canvas.y(0) + 2 * LINE_PX + 3, axis_x, size=11)
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = sorted(line.points, key=lambda point: point[0])
        path = " ".join(f"{at(x):.1f},{canvas.y(bar.value):.1f}" for x, bar in points)
        canvas.items.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, bar in points:
            canvas.whisker(at(x), bar)
            canvas.items.append(
                f'<circle cx="{at(x):.1f}" cy="{canvas.y(bar.value):.1f}" r="4" fill="{colour}">'
                f"<title>{escape(bar.note)}</title></circle>"
            )
    return canvas.svg(canvas.y(0) + 3 * LINE_PX, title)


def ticks_to(highest: float, whole: bool = False) -> list[float]:
    """Return round numbers from 0 to at least ``highest``, a little more than TICKS at most; ``whole``: of something
    counted.
    """
    if not math.isfinite(highest) or highest <= 0:
        return [0.0, 1.0]
    raw = highest * 1.06 / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(
        m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9) and not (whole and m * power % 1)
    )
    return [round(step * k, 12) for k in range(math.ceil(highest * 1.06 / step - 1e-9) + 1)]


def short(value: float) -> str:
    """Three digits, no exponent where it can be avoided."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _top(bar: Bar) -> float:
    return max(bar.value, bar.high or 0.0)


def _legend_rows(labels: Sequence[str], width: float) -> list[list[tuple[float, int, str]]]:
    """Place labels in rows: (x, number of the series, label)."""
    rows: list[list[tuple[float, int, str]]] = [[]]
    x = float(LEFT_PX)
    for number, label in enumerate(labels):
        needed = 30 + CHARACTER_PX * len(label)
        if rows[-1] and x + needed > width:
            rows.append([])
            x = float(LEFT_PX)
        rows[-1].append((x, number, label))
        x += needed
    return rows


def _frame(
    canvas: _Canvas, title: str, axis: str, ticks: Sequence[float], rows: Sequence[Sequence[tuple[float, int, str]]],
    bands: Sequence[Band],
) -> None:  # fmt: skip
    """Draw title, legend, bands and the axes."""
    canvas.text(12, 18, title, "start", 14, "bold")
    for k, row in enumerate(rows):
        for x, number, label in row:
            band = bands[number - sum(map(len, rows))] if number >= sum(map(len, rows)) - len(bands) else None
            if band is not None and band.high == band.low:
                canvas.rule(x - 3, 32 + LINE_PX * k, x + 11, 32 + LINE_PX * k, INK, "5 4")
            else:
                canvas.box(x, 27 + LINE_PX * k, 10, 10, BAND if band else COLOURS[number % len(COLOURS)])
            canvas.text(x + 14, 36 + LINE_PX * k, label, "start", 11)
    right = canvas.width - RIGHT_PX
    for band in bands:
        if band.high > band.low:
            canvas.box(
                LEFT_PX,
                canvas.y(band.high),
                right - LEFT_PX,
                canvas.y(band.low) - canvas.y(band.high),
                BAND,
                band.label,
            )
    for tick in ticks:
        canvas.rule(LEFT_PX, canvas.y(tick), right, canvas.y(tick), INK if tick == 0 else FAINT)
        canvas.text(LEFT_PX - 6, canvas.y(tick) + 4, short(tick), "end", 11)
    for band in bands:
        if band.high == band.low:
            canvas.rule(LEFT_PX, canvas.y(band.low), right, canvas.y(band.low), INK, "5 4")
    middle = canvas.top + PLOT_PX / 2
    canvas.items.append(
        f'<text x="16" y="{middle:.1f}" text-anchor="middle" font-size="11" fill="{INK}" '
        f'transform="rotate(-90 16 {middle:.1f})">{escape(axis)}</text>'
    )


def _wrapped(label: str, width: float) -> list[str]:
    """Break a label into lines that fit."""
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) * CHARACTER_PX > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines[:LABEL_LINES_MAX]
