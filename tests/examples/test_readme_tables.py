"""The README's tables and what is said of them: the claims follow from the figures that stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
DEMO = ["text", "mode", "time s", "CPU s", "map", "reduce", "time ratio", "faults in", "masked", "output"]


def demo() -> dict[str, list[dict[str, str]]]:
    """The rows of the table of make demo, by text."""
    head = next(line for line in README.splitlines() if line.startswith("┃"))
    names = [cell.strip() for cell in head.strip("┃").split("┃")]
    assert names == DEMO
    rows = [dict(zip(names, (cell.strip() for cell in line.strip("│").split("│")), strict=True))
            for line in README.splitlines() if line.startswith("│")]  # fmt: skip
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
        f"\n{injected} faults were injected, none reached an output: plain, voted and faulty runs gave the same bytes.\n"
        in README
    )


def engines() -> dict[str, dict[str, float]]:
    """Seconds of each engine and job, of the comparison."""
    lines = README[README.index("| engine | word count | sort | scan |") :].split("\n\n")[0].splitlines()
    names = [cell.strip() for cell in lines[0].strip("|").split("|")]
    found = {}
    for line in lines[2:]:
        engine, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        numbers = [re.search(r"\d+(\.\d+)?", cell) for cell in cells]
        found[engine.replace("*", "")] = {job: float(n[0]) for job, n in zip(names[1:], numbers, strict=True) if n}
    return found


def test_what_is_claimed_of_other_engines_follows_from_the_table() -> None:
    assert "a *voted* word count takes less than a quarter of the time of\nDuckDB's or Polars' unreplicated one" in README
    assert "and a voted scan less than `grep`" in README
    table = engines()
    voted = table["quoreduce voted f=1, warm session"]
    others = [seconds for engine, seconds in table.items() if engine.startswith(("DuckDB", "Polars"))]
    assert len(others) == 2
    assert all(4 * voted["word count"] < seconds["word count"] for seconds in others)
    assert voted["scan"] < next(seconds for engine, seconds in table.items() if "grep" in engine)["scan"]
