"""Tables of README and docs, and what is said of them: the claims follow from the figures that stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text().split())
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
BENCHMARKS = (ROOT / "docs" / "design" / "benchmarks.md").read_text()
DEMO = ["text", "mode", "time s", "CPU s", "map", "reduce", "time ratio", "faults in", "masked", "output"]


def demo() -> dict[str, list[dict[str, str]]]:
    """The rows of the table of make demo, by text."""
    head = next(line for line in TUTORIAL.splitlines() if line.startswith("┃"))
    names = [cell.strip() for cell in head.strip("┃").split("┃")]
    assert names == DEMO
    rows = [dict(zip(names, (cell.strip() for cell in line.strip("│").split("│")), strict=True))
            for line in TUTORIAL.splitlines() if line.startswith("│")]  # fmt: skip
    return {text: [row for row in rows if row["text"] == text] for text in dict.fromkeys(row["text"] for row in rows)}


def test_the_table_of_the_demo_has_a_plain_a_voted_and_a_faulty_row_of_each_text() -> None:
    tables = demo()
    assert list(tables) == ["kjv.txt", "generated.txt"]
    for rows in tables.values():
        assert [row["mode"] for row in rows] == ["plain", "voted f=1", "voted, faults"]


@pytest.mark.parametrize("text", ["kjv.txt", "generated.txt"])
def test_ratios_and_counts_of_the_demo_follow_from_its_rows(text: str) -> None:
    plain, voted, faulty = demo()[text]
    for row in (plain, voted, faulty):
        at_least = (float(row["time s"]) - 0.0005) / (float(plain["time s"]) + 0.0005)
        at_most = (float(row["time s"]) + 0.0005) / (float(plain["time s"]) - 0.0005)
        assert at_least - 0.005 <= float(row["time ratio"]) <= at_most + 0.005
        assert row["output"] == plain["output"]
        assert row["masked"] == row["faults in"]
    assert all(int(voted[kind]) == 2 * int(plain[kind]) for kind in ("map", "reduce"))
    assert all(int(faulty[kind]) >= int(voted[kind]) for kind in ("map", "reduce"))
    assert (plain["faults in"], voted["faults in"]) == ("0", "0")
    assert int(faulty["faults in"]) > 0


def test_the_faults_of_the_demo_are_as_many_as_is_said_below_its_table() -> None:
    injected = sum(int(row["faults in"]) for rows in demo().values() for row in rows)
    assert (
        f"\n{injected} faults were injected, none reached an output: plain, "
        "voted and faulty runs gave the same bytes.\n" in TUTORIAL
    )


def seconds(job: str) -> dict[str, float]:
    """Wall seconds of each engine, from the table of a job in the comparison."""
    section = BENCHMARKS[re.search(rf"^#### {job},", BENCHMARKS, re.MULTILINE).start() :]  # type: ignore[union-attr]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.split("\n\n")[1].splitlines()[2:]]
    return {engine: float(found[0]) for engine, wall, *_ in rows if (found := re.match(r"\d+\.\d+", wall))}


def test_what_is_claimed_of_other_engines_follows_from_the_tables() -> None:
    assert (
        "a *voted* word count takes less than a quarter of the time of DuckDB's or Polars' unreplicated one" in README
    )
    assert "and a voted scan less than `grep`" in README
    words, scan = seconds("wordcount"), seconds("scan")
    voted = "quoreduce voted f=1, warm session"
    assert 4 * words[voted] < min(words["DuckDB"], words["Polars"])
    assert scan[voted] < scan["coreutils"]
