"""The frame of all pages that quoreduce writes: one HTML file that loads nothing, for small and large screens, light
and dark.

A page is well-formed XML after its first line. What is wider than the screen (tables, charts) scrolls in a box of its
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from quoreduce import __version__
from quoreduce_gridmix.figures import BAND, COLOURS, FAINT, INK, PAPER

GREY = COLOURS[6]
STYLE = f"""
:root {{ color-scheme: light dark; --ink: {INK}; --paper: {PAPER}; --faint: #e4e4e4; --head: #f6f6f6; --note: #555555;
  --good: #176f2c; --bad: #a00000; --bad-paper: #f8d0d0; --odd-paper: #fff3d6; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
  margin: 2em auto; padding: 0 1em; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6em; line-height: 1.25; }}
h2 {{ font-size: 1.3em; margin-top: 2em; border-bottom: 1px solid var(--faint); }}
h3 {{ font-size: 1.05em; margin-top: 1.6em; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }}
th, td {{ padding: .25em .7em; text-align: right; border-bottom: 1px solid var(--faint); }}
th {{ background: var(--head); vertical-align: bottom; white-space: normal; }}
td {{ white-space: nowrap; }}
table.facts td {{ white-space: normal; }}
th.text, td.text {{ text-align: left; }}
tr.total td {{ font-weight: bold; border-top: 2px solid var(--note); }}
tr.odd {{ background: var(--odd-paper); }}
td.bad {{ background: var(--bad-paper); }}
.good {{ color: var(--good); }}
.bad {{ color: var(--bad); }}
dt {{ font-weight: 600; }}
.wide {{ overflow-x: auto; margin: 1em 0; }}
.charts {{ display: flex; flex-wrap: wrap; gap: 12px; }}
.charts .wide {{ max-width: 100%; margin: 0; }}
svg {{ display: block; }}
.note, footer {{ color: var(--note); font-size: 13px; }}
footer {{ margin-top: 3em; border-top: 1px solid var(--faint); }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e4e4; --paper: #171717; --faint: #3a3a3a; --head: #242424; --note: #ababab;
    --good: #6cc784; --bad: #ff8f8f; --bad-paper: #5a2424; --odd-paper: #3d3215; }}
  svg [fill="{INK}"] {{ fill: var(--ink); }}
  svg [stroke="{INK}"] {{ stroke: var(--ink); }}
  svg [fill="{PAPER}"] {{ fill: var(--paper); }}
  svg [stroke="{FAINT}"] {{ stroke: var(--faint); }}
  svg [fill="{BAND}"] {{ fill: #2d3a24; }}
  svg [fill="{GREY}"] {{ fill: #a0a0a0; }}
  svg [stroke="{GREY}"] {{ stroke: #a0a0a0; }}
}}
"""


def page(title: str, body: str) -> str:
    """Return a whole page; ``body`` is what stands on it, as XML."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n"
        f"<footer><p>Written on {made} by quoreduce {escape(__version__)}.</p></footer>\n</body></html>\n"
    )


def wide(content: str) -> str:
    """Put a table or a chart into a box that scrolls by itself; it can be reached by the keyboard."""
    return f'<div class="wide" tabindex="0">{content}</div>'


def charts(svgs: Sequence[str]) -> str:
    """Put charts side by side, as far as there is room."""
    return f'<div class="charts">{"".join(wide(svg) for svg in svgs)}</div>'


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1, total: bool = False) -> str:
    """Make a table; the first ``text`` columns are left-aligned, and with ``total`` the last row stands out."""

    def row(tag: str, values: Sequence[str]) -> str:
        kind = (' class="text"' if k < text else "" for k in range(len(values)))
        return "".join(f"<{tag}{c}>{escape(value)}</{tag}>" for c, value in zip(kind, values, strict=True))

    head = f"<thead><tr>{row('th', heads)}</tr></thead>" if heads else ""
    opened = ["<tr>"] * len(rows)
    if total:
        opened[-1] = '<tr class="total">'
    body = "\n".join(f"{start}{row('td', values)}</tr>" for start, values in zip(opened, rows, strict=True))
    kind = "" if heads else ' class="facts"'
    return wide(f"<table{kind}>{head}<tbody>\n{body}\n</tbody></table>")
