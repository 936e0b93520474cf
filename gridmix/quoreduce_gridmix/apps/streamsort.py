"""streamSort: Hadoop streaming with ``cat`` as mapper and as reducer; lines of VARINFLTEXT, sorted by key."""

from __future__ import annotations

from quoreduce import stream_job

JOB = stream_job("cat", "cat", name="streamSort", folder="/")
