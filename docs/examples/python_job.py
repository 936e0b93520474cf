"""The longest verse of each book: a job of plain functions. Run it, or: quoreduce run python_job.py:job TEXT OUT"""

import sys

from quoreduce import Job, run


def read(line: bytes):
    """``Ge1:1 In the beginning ...`` -> Ge, (length of the verse, place)."""
    place, _, verse = line.decode().partition(" ")
    book = place.rpartition(":")[0].rstrip("0123456789")
    if book:
        yield book, (len(verse), place)


def longest(book: str, verses: list):
    """Of (length, place) pairs, the greatest."""
    yield book, max(verses)


job = Job("longest-verse", map=read, reduce=longest, combine=longest)

if __name__ == "__main__":
    result = run(job, sys.argv[1], sys.argv[2], f=1)
    print(f"{result.records_out} books in {result.output}, executions: {result.executions}")
