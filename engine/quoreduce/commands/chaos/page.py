"""The page of ``quoreduce chaos --html``: one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape

from quoreduce.chaos.plan import KINDS, STAGES
from quoreduce.chaos.tally import Campaign, Row
from quoreduce.commands.chaos.text import COLUMNS, cells, summary
from quoreduce_gridmix import page as frame

TEXT, LEFT = ("fault", "not masked"), ' class="text"'  # columns of text


def page(campaign: Campaign) -> str:
    """Draw the table, what there is to say beside it, and what the kinds and stages are."""
    head = "".join(f"<th{LEFT * (name in TEXT)}>{escape(name)}</th>" for name in COLUMNS)
    rows = "\n".join(_row(row, False) for row in campaign.rows())
    collusion = campaign.collusion()
    if collusion is not None:
        rows += "\n" + _row(collusion, True)
    verdict = (
        '<span class="good">nothing wrong, nothing left behind</span>'
        if campaign.ok
        else '<span class="bad">FAILED</span>'
    )
    notes = "".join(f"<li>{escape(line)}</li>" for line in summary(campaign))
    kinds = "".join(
        f"<dt>{kind.name}</dt><dd>{escape(kind.text)}: {', '.join(kind.stages)}</dd>" for kind in KINDS.values()
    )
    stages = "".join(f"<dt>{stage.name}</dt><dd>{escape(stage.text)}</dd>" for stage in STAGES.values())
    table = frame.wide(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>")
    return frame.page(
        "quoreduce: chaos campaign",
        f"<h1>Chaos campaign, seed {campaign.seed}: {verdict}</h1>\n<ul>{notes}</ul>\n{table}\n"
        f"<h2>Faults</h2><dl>{kinds}</dl>\n<h2>Stages</h2><dl>{stages}</dl>",
    )


def _row(row: Row, outside: bool) -> str:
    texts = cells(row)
    label = f"{row.kind} (outside the model)" if outside else row.kind
    kinds = dict.fromkeys(TEXT, LEFT)
    if row.failed and not outside:
        kinds["wrong or partial"] = ' class="bad"'
    body = "".join(
        f"<td{kinds.get(name, '')}>{escape(label if name == 'fault' else text)}</td>"
        for name, text in zip(COLUMNS, texts, strict=True)
    )
    odd = ' class="odd"' * outside
    return f'<tr{odd} title="{escape(row.text)}">{body}</tr>'
