"""The six applications of GridMix 2: each is one job, or three that read what the one before wrote.

=============== ======== ============ ==========================================================================
application     input    reduces      what it does
=============== ======== ============ ==========================================================================
streamSort      text     15, 170, 370 Hadoop streaming with ``cat`` as mapper and reducer
javaSort        text     15, 170, 370 identity map and reduce
combiner        text     10, 100, 360 token counts, combined; the same job reads SequenceFiles
monsterQuery    fixed     5, 100, 370 load generator, 3 stages, keeps 10 % and 40 %
webdataScan     var      15, 7, 70    load generator, keeps 0.2 % and 5 %
webdataSort     var      15, 170, 800 load generator, keeps 100 % and 100 %
=============== ======== ============ ==========================================================================

Input: VARINFLTEXT, FIXCOMPSEQ, VARCOMPSEQ. Numbers of reduces are those of the small, medium and large jobs. Output is
text everywhere; where Hadoop's load generator writes SequenceFiles, ``loadgen.load_job(..., output="sequence")`` does
too, but their bytes are those of a machine's zlib, which is no good ground for votes between machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from quoreduce import Job
from quoreduce_gridmix.apps import combiner, javasort, monsterquery, streamsort, webdatascan, webdatasort

if TYPE_CHECKING:
    from quoreduce_gridmix.data import Kind

NAMES = ("streamSort", "javaSort", "combiner", "monsterQuery", "webdataScan", "webdataSort")
KINDS: dict[str, Kind] = {
    "streamSort": "varinfltext", "javaSort": "varinfltext", "combiner": "varinfltext",
    "monsterQuery": "fixcompseq", "webdataScan": "varcompseq", "webdataSort": "varcompseq",
}  # fmt: skip
REDUCES: dict[str, dict[str, int]] = {
    name: dict(zip(("small", "medium", "large"), numbers, strict=True))
    for name, numbers in {
        "streamSort": (15, 170, 370), "javaSort": (15, 170, 370), "combiner": (10, 100, 360),
        "monsterQuery": (5, 100, 370), "webdataScan": (15, 7, 70), "webdataSort": (15, 170, 800),
    }.items()
}  # fmt: skip


def jobs_of(name: str, stages: Literal["code", "readme"] = "code") -> tuple[Job, ...]:
    """Return the jobs of an application (KeyError: its name is unknown); ``stages`` is for monsterQuery."""
    return {
        "streamSort": (streamsort.JOB,), "javaSort": (javasort.JOB,), "combiner": (combiner.JOB,),
        "monsterQuery": monsterquery.jobs(stages), "webdataScan": (webdatascan.JOB,), "webdataSort": (webdatasort.JOB,),
    }[name]  # fmt: skip
