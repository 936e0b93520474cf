"""webdataSort: keeps everything, so that all of a SequenceFile set is shuffled, sorted by key and written."""

from __future__ import annotations

from quoreduce_gridmix.apps.loadgen import load_job

JOB = load_job("webdataSort", 100, 100)
