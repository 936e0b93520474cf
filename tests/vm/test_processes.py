"""Processes and file descriptors in a process that has many of them open."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator

import pytest

from quoreduce.machine import readable
from quoreduce.vm.processes import Process

MANY = 1100  # select() takes numbers below 1024


@pytest.fixture
def many_open() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * MANY), hard))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(MANY)]
    yield
    for fd in opened:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_descriptor_of_any_number_is_waited_for(many_open: None) -> None:
    reading, writing = os.pipe()
    assert min(reading, writing) > MANY
    assert not readable(reading, 0.0)
    os.write(writing, b"x")
    assert readable(reading, 0.0)
    os.close(reading)
    os.close(writing)


def test_the_end_of_a_process_is_waited_for(many_open: None) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        seen = Process.of(process.pid)
        assert not seen.wait(0.0)
        process.kill()
        assert seen.wait(10.0)
