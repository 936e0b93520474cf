"""Polars, its streaming engine; script.py says how it is called."""

from __future__ import annotations

from bench.peers.script import run_all


def do(job: str, source: str, output: str) -> None:
    import polars as pl

    lines = pl.scan_csv(source, separator="\x01", quote_char=None, has_header=False, schema={"l": pl.String})
    if job == "wordcount":
        words = lines.select(pl.col("l").str.split(" ").explode().alias("w")).filter(pl.col("w") != "")
        words.group_by("w").agg(pl.len().alias("c")).sink_csv(
            output, separator="\t", include_header=False, engine="streaming"
        )
    else:
        kept = lines.sort("l") if job == "sort" else lines.filter(pl.col("l").str.starts_with("~"))
        kept.sink_csv(output, separator="\x01", include_header=False, quote_style="never", engine="streaming")


def main() -> None:
    import polars  # noqa: F401 - before the clock starts

    run_all(do)


if __name__ == "__main__":
    main()
