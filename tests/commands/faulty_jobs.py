"""Jobs that are not deterministic, each for one reason, and one that is."""

import datetime
import math
import os
import random
import time

import numpy as np

from quoreduce import Job

seen = 0
started = random.Random(5)


def words(line):
    for word in line.split():
        yield word, 1


def add(word, counts):
    yield word, sum(counts)


def first_of_set(line):
    """Only the line that begins with ``mark`` depends on the order of a set."""
    yield line[:8], list({word.decode() for word in line.split()}) if line.startswith(b"mark") else 1


def by_hash(line):
    for word in line.split():
        yield hash(word.decode()) % 7, 1


def tosses(line):
    yield line[:8], random.random()


def clock(key, values):
    yield key, time.time_ns()


def address(line):
    yield line[:8], id(object())


def process(line):
    yield line[:8], os.getpid()


def numbered(line):
    global seen
    seen += 1
    yield line[:8], seen


def seeded_once(line):
    yield line[:8], started.random()


def threads(line):
    yield b"threads", int(os.environ["NUMBA_NUM_THREADS"])


def today(line):
    yield datetime.date.today().isoformat(), 1


def here(line):
    yield os.getcwd(), 1


def numpy_exp(line):
    yield line[:8], np.exp(np.linspace(-3, 3, 5001)).tolist()


def c_exp(line):
    yield line[:8], [math.exp(i / 997) for i in range(-3000, 3000)]


def fails_elsewhere(line):
    if os.environ["PYTHONHASHSEED"] != "0":
        raise LookupError("not here")
    yield line[:8], 1


def dies_elsewhere(line):
    if os.environ["PYTHONHASHSEED"] != "0":
        os._exit(7)
    yield line[:8], 1


def always_fails(line):
    raise LookupError("never\nhere")


def by_seed(key, reducers):
    return hash(key) % reducers


def store_only(data, ctx):
    blocks = ctx.new_blocks(["u64"], [(1, [8])] * ctx.reducers)
    for block in blocks:
        block.numbers(0)[:] = int(ctx.store)
    return blocks


def totals(blocks, ctx):
    ctx.write(b"%d\n" % sum(int(block.numbers(0).sum()) for block in blocks), 1)


def last(key, values):
    yield key, values[-1]


fine = Job("fine", words, add, combine=add)
set_order = Job("set-order", first_of_set, last)
hash_of = Job("hash-of", by_hash, add)
hash_partition = Job("hash-partition", words, add, partition=by_seed)
random_numbers = Job("random-numbers", tosses, last)
a_clock = Job("a-clock", words, clock)
an_address = Job("an-address", address, last)
a_process = Job("a-process", process, last)
a_global = Job("a-global", numbered, last)
a_generator = Job("a-generator", seeded_once, last)
thread_count = Job("thread-count", threads, last)
the_date = Job("the-date", today, add)
the_folder = Job("the-folder", here, add)
numpy_math = Job("numpy-math", numpy_exp, last)
c_math = Job("c-math", c_exp, last)
an_error = Job("an-error", fails_elsewhere, last)
a_death = Job("a-death", dies_elsewhere, last)
hopeless = Job("hopeless", always_fails, last)
carrier_only = Job.of_blocks("carrier-only", map=store_only, reduce=totals)
