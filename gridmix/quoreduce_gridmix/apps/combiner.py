"""combiner: how often each token occurs in keys and values; the integer sum that reduces them combines them too.

It is the job ``wordcount``, except that records are lines, or pairs of a SequenceFile: these are counted as lines
``key<TAB>value``, which have the same tokens, since a tab separates them as a space does. Sums are 64 bits wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quoreduce import Job
from quoreduce.jobs.pairs import rows_of
from quoreduce.jobs.wordcount import map_words, reduce_counts


def map_tokens(data: Any, ctx: Any) -> Sequence[Any]:
    """Count the tokens of a split's records."""
    from quoreduce_kernels import pairs  # here: to declare the job takes no kernels

    if isinstance(data, np.ndarray):
        blocks = map_words(data, ctx)
        ctx.records_in = pairs.count_lines(data)
        return blocks
    rows = rows_of(data)
    text = np.empty(rows.key_bytes + rows.value_bytes + 2 * len(rows), np.uint8)
    list(pairs.text_chunks(rows, np.arange(len(rows), dtype=np.uint64), text))
    blocks = map_words(text, ctx)
    ctx.records_in = len(rows)
    return blocks


JOB = Job.of_blocks("combiner", map=map_tokens, reduce=reduce_counts)
SEQUENCE_JOB = Job.of_blocks("combiner", map=map_tokens, reduce=reduce_counts, input="sequence")
