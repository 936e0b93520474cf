"""Jobs of users, good and bad, as the command line finds them: user_jobs.py:NAME."""

import os
import random
import sys

from quoreduce import Job


def words(line):
    for word in line.split():
        yield word, 1


def add(word, counts):
    yield word, sum(counts)


def raising(line):
    if b"oops" in line:
        raise LookupError("no such thing\nin two lines")
    yield line, 1


def raising_late(key, values):
    if key == b"be":
        raise ZeroDivisionError("division by zero")
    yield key, 1


def leaving(line):
    sys.exit(3)


def odd_message(line):
    raise ValueError(os.fsdecode(b"\xff\xfe"))


good = Job("good", words, add)
map_raises = Job("map-raises", raising, add)
reduce_raises = Job("reduce-raises", words, raising_late)
leaves = Job("leaves", leaving, add)
odd = Job("odd", odd_message, add)
tosses_in_map = Job("tosses", lambda line: [(line, random.random())], lambda key, values: [(key, sum(values))])
tosses_in_reduce = Job("tosses", words, lambda key, values: [(key, random.random())])
unsorted_set = Job("set", lambda line: [(b"k", set(line.split()))], add)
not_a_job = 3
