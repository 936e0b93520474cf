"""webdataScan: reads everything and keeps next to nothing: 0.2 % in its maps, 5 % of that in its reduces."""

from __future__ import annotations

from quoreduce_gridmix.apps.loadgen import load_job

JOB = load_job("webdataScan", 0.2, 5)
