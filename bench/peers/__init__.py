"""Comparison with other engines: ``python -m bench.peers --size quick|full [--job JOB] [--engine NAME] [--json FILE]``.

Word count, sort and scan by Spark, Hadoop MapReduce, Ray Data, Dask, DuckDB, Polars and coreutils, and by quoreduce,
plain and voted: the same files in the page cache, the same two cores, outputs written and compared after each run.
Engines take turns: every round runs each of them once, in an order that rotates; a slow one takes part in fewer rounds.
A run that others disturbed (measure.py has the rule) is tried again, at most as often as there are rounds. The job
``gridmix`` is another comparison: the six applications of GridMix against Spark (gridmix.py).

An engine is a process of its own, from its start to its end: ``wall``. ``job`` is what it says its own work took,
without start-up and imports; for quoreduce on a warm session (workers that have run jobs before) both are the same.
"""

from bench.peers.rounds import Engine, compare, fingerprint
from bench.peers.tables import as_json, markdown

__all__ = ["Engine", "as_json", "compare", "fingerprint", "markdown"]
