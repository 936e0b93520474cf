"""asv suites, and two command lines: ``python -m bench.jobs`` and ``python -m bench.peers``. See
docs/design/benchmarks.md.
"""
