"""The page of ``quoreduce chaos --html``: one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape

from quoreduce.chaos.plan import KINDS, STAGES
from quoreduce.chaos.tally import Campaign, Row
from quoreduce.report.chaos import COLUMNS, cells, summary

STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right}"
    "th:first-child,td:first-child,td:last-child{text-align:left}"
    "tr.outside{background:#fff3d6}td.bad{background:#f8d0d0}.ok{color:#176f2c}.bad{color:#a00}dt{font-weight:600}"
)


def page(campaign: Campaign) -> str:
    """Draw the table, what there is to say beside it, and what the kinds and stages are."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "\n".join(_row(row, False) for row in campaign.rows())
    collusion = campaign.collusion()
    if collusion is not None:
        rows += "\n" + _row(collusion, True)
    verdict = '<span class="ok">nothing wrong, nothing left behind</span>' if campaign.ok else '<span class="bad">FAILED</span>'
    notes = "".join(f"<li>{escape(line)}</li>" for line in summary(campaign))
    kinds = "".join(f"<dt>{kind.name}</dt><dd>{escape(kind.text)}: {', '.join(kind.stages)}</dd>" for kind in KINDS.values())
    stages = "".join(f"<dt>{stage.name}</dt><dd>{escape(stage.text)}</dd>" for stage in STAGES.values())
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>quoreduce: chaos campaign</title>\n'
        f"<style>{STYLE}</style>\n<h1>Chaos campaign, seed {campaign.seed}: {verdict}</h1>\n<ul>{notes}</ul>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>\n"
        f"<h2>Faults</h2><dl>{kinds}</dl>\n<h2>Stages</h2><dl>{stages}</dl></html>\n"
    )


def _row(row: Row, outside: bool) -> str:
    texts = cells(row)
    label = f"{row.kind} (outside the model)" if outside else row.kind
    bad = ' class="bad"' if row.failed and not outside else ""
    body = "".join(
        f"<td{bad if name == 'wrong or partial' else ''}>{escape(label if name == 'fault' else text)}</td>"
        for name, text in zip(COLUMNS, texts, strict=True)
    )
    return f'<tr{" class=outside" if outside else ""} title="{escape(row.text)}">{body}</tr>'
