"""DuckDB; script.py says how it is called."""

from __future__ import annotations

from bench.peers.script import run_all, scratch

LINES = (
    "read_csv('{}', delim='\x01', quote='', escape='', header=false, auto_detect=false, columns={{'line': 'VARCHAR'}})"
)
QUERIES = {
    "wordcount": f"SELECT w, count(*) FROM (SELECT unnest(string_split(line, ' ')) w FROM {LINES}) WHERE w <> "
    "'' GROUP BY w",
    "sort": f"SELECT line FROM {LINES} ORDER BY line",
    "scan": f"SELECT line FROM {LINES} WHERE starts_with(line, '~')",
}
TABLE = "(FORMAT csv, HEADER false, DELIMITER '\t')"
RAW = "(FORMAT csv, HEADER false, DELIMITER '\x01', QUOTE '', ESCAPE '')"


def do(job: str, source: str, output: str) -> None:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads=2; SET enable_progress_bar=false; SET temp_directory='{scratch()}'")
    connection.execute(f"SET preserve_insertion_order={'false' if job == 'wordcount' else 'true'}")
    connection.execute(f"COPY ({QUERIES[job].format(source)}) TO '{output}' {TABLE if job == 'wordcount' else RAW}")


def main() -> None:
    import duckdb  # noqa: F401 - before the clock starts

    run_all(do)


if __name__ == "__main__":
    main()
