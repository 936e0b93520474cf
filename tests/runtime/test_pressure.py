"""What the machine keeps from workers is told as that: no core, no memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import WORDCOUNT, left_in, poll

from quoreduce import Options, Session, pressure
from quoreduce.driver import hostfaults as hostfaults_module
from quoreduce.errors import HostError
from quoreduce.pressure import MemoryKills, waited_s
from quoreduce.protocol.options import Place

KILLED = -signal.SIGKILL


def test_a_process_that_shares_its_core_has_waited_for_it() -> None:
    core = min(os.sched_getaffinity(0))
    spin = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
    both = [subprocess.Popen(spin), subprocess.Popen(spin)]
    try:
        poll(lambda: min(waited_s(one.pid) for one in both) > 0.2, "two processes on one core to wait for each other")
    finally:
        for one in both:
            one.kill()
            one.wait()
    assert waited_s(both[0].pid) == 0.0, "it is gone"


@pytest.mark.parametrize(
    ("groups", "name"),
    [
        ("0::/a/b\n", "a/b/memory.events"),
        ("0::/a/b\n", "memory.events"),
        ("4:memory:/a\n0::/\n", "memory/a/memory.oom_control"),
        ("4:cpu,memory:/a\n", "memory/memory.oom_control"),
        ("4:cpu:/a\n", None),
        ("nonsense\n", None),
    ],
)
def test_the_counter_is_that_of_the_own_control_group(
    groups: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(groups)
    counter = proc / "vmstat" if name is None else root / name
    counter.parent.mkdir(parents=True, exist_ok=True)
    counter.write_text("low 0\noom_kill 3\n")
    monkeypatch.setattr(pressure, "PROC", proc)
    monkeypatch.setattr(pressure, "CGROUPS", root)
    kills = MemoryKills()
    assert not kills.struck(KILLED), "nobody was killed for that since it looked"
    counter.write_text("low 0\noom_kill 5\n")
    assert not kills.struck(13)
    assert not kills.struck(None)
    assert [kills.struck(KILLED) for _ in range(3)] == [True, True, False]
    assert kills.limit() == ""
    (counter.parent / "memory.limit_in_bytes").write_text("67108864\n")
    assert kills.limit() == ", which its control group limits to 67 MB"
    counter.unlink()
    assert not kills.struck(KILLED)


def test_a_task_whose_workers_are_killed_for_memory_ends_the_job_and_says_so(
    verses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a gzip bomb in a control group: SIGKILL from the kernel, whose counter is here one that every look finds
    higher.
    """
    monkeypatch.setattr(hostfaults_module.MemoryKills, "_count", lambda self: getattr(self, "_seen", 0) + 1)
    packed = tmp_path / "bomb.gz"
    packed.write_bytes(subprocess.run(["gzip", "-c", str(verses)], capture_output=True, check=True).stdout)
    with Session(Place("local", 2, "worker")) as session:
        executor = session._executor
        assert executor is not None
        submit = executor.submit

        def kill_who_maps(worker: str, raw: bytes) -> None:
            submit(worker, raw)
            if b"bomb.gz" in raw:
                os.kill(executor._processes[worker].process.pid, signal.SIGKILL)  # type: ignore[attr-defined]

        monkeypatch.setattr(executor, "submit", kill_who_maps)
        why = r"map 0: \S*bomb.gz may decompress to more .*: memory ran out.* 3 times: use --store DIR"
        with pytest.raises(HostError, match=why):
            session.run(WORDCOUNT, [str(packed)], str(tmp_path / "outputs" / "out"), Options())
    assert left_in(tmp_path / "outputs") == []
