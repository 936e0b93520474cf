"""Streaming: commands as mapper and reducer, voted on like any job; and everything that a command can do wrong."""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import poll, running

from quoreduce import Options, Result, Session, stream_job
from quoreduce.errors import JobError, NoQuorum, NotDeterministic, UsageError
from quoreduce.job import Job
from quoreduce.protocol.options import Place
from quoreduce_gridmix import apps

Sessions = Callable[[str], Session]

line = st.lists(st.sampled_from([b"a", b"B", b"key", b"\t", b" ", b"\xff", b"\0"]), max_size=6).map(b"".join)
lines = st.lists(line, min_size=1, max_size=60)


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with ExitStack() as stack:
        opened: dict[str, Session] = {}

        def get(on: str) -> Session:
            if on not in opened:
                opened[on] = stack.enter_context(Session(Place(on, 3, "worker")))  # type: ignore[arg-type]
            return opened[on]

        yield get


@pytest.fixture
def inline(sessions: Sessions) -> Session:
    return sessions("inline")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Some 60 kB: lines with keys that come again, without a last line feed."""
    path = tmp_path / "text"
    path.write_bytes(b"\n".join(b"key %d\tvalue %d" % (i * i % 97, i) for i in range(3000)))
    return path


def run(session: Session, job: Job, text: Path, **options: object) -> tuple[Result, list[bytes]]:
    parent = text.parent / f"run{time.monotonic_ns()}"
    try:
        result = session.run(job, [str(text)], str(parent / "out"), Options(**options))  # type: ignore[arg-type]
    except BaseException:
        assert not parent.exists() or os.listdir(parent) == [], "a job that failed publishes nothing"
        raise
    return result, [path.read_bytes() for path in sorted((parent / "out").glob("part-*"))]


COMMANDS = {
    "cat": ("cat", "cat"),
    "words": ("tr ' ' '\\n'", "uniq -c"),
    "rewrite": ("sed -e 's/key/k\\t/'", "sed -n p"),
    "nothing": ("true", "cat"),
    "to nothing": ("cat", "cat >/dev/null"),
    "no last line feed": ("cat; printf 'a\\tb'", "cat; printf end"),
}


WAYS = (
    {"mode": "original"},
    {"f": 0},
    {"f": 1},
    {"f": 2},
    {"mode": "basic", "f": 1},
    {"f": 1, "faults": ("wrong:map:1",)},
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(COMMANDS)), lines, st.integers(10, 300), st.integers(1, 3),
    st.sampled_from(WAYS),
)  # fmt: skip
def test_output_is_that_of_a_shell(
    inline: Session, tmp_path: Path, which: str, data: list[bytes], size: int, reducers: int, options: dict[str, object]
) -> None:
    mapper, reducer = COMMANDS[which]
    path = tmp_path / "text"
    path.write_bytes(b"\n".join(data) + b"\n")
    expected = slow.stream(slow.lines_of([path], size), mapper, reducer, reducers)
    result, parts = run(
        inline, stream_job(mapper, reducer, shell=True), path, split_mb=size / 1e6, reducers=reducers, **options
    )
    assert parts == expected.parts
    assert expected.counters.items() <= result.counters.items()


@pytest.mark.parametrize("options", [*WAYS, {"f": 1, "faults": ("flip:map:2", "crash:reduce:1")}])
def test_stream_sort_sorts(sessions: Sessions, text: Path, options: dict[str, object]) -> None:
    expected = slow.load(slow.pairs_of([text], 10_000), 100, 100, 3)
    for on in ("inline", "local"):
        result, parts = run(sessions(on), apps.jobs_of("streamSort")[0], text, split_mb=0.01, reducers=3, **options)
        assert parts == expected.parts
        assert expected.counters.items() <= result.counters.items()


def test_a_line_without_a_tab_is_a_key(inline: Session, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"b\na\r\n\nlast")
    assert run(inline, stream_job("cat", "cat"), path)[1] == [b"\t\na\t\nb\t\nlast\t\n"]


def test_words_are_split_as_a_shell_would_but_not_expanded(inline: Session, text: Path) -> None:
    _, (part,) = run(inline, stream_job("""printf '%s\\n' "one word" $HOME '*' """, "cat"), text)
    assert part == b"$HOME\t\n*\t\none word\t\n"


def test_sequence_files_are_fed_as_lines(inline: Session, tmp_path: Path) -> None:
    from quoreduce.data.sequencewriter import SequenceWriter

    data = [(b"key %d" % (i % 5), b"value %d" % i) for i in range(100)]
    out = bytearray()
    with SequenceWriter(out.extend, 1, block_bytes=200) as writer:
        for pair in data:
            writer.write(*pair)
    path = tmp_path / "text"
    path.write_bytes(bytes(out))
    result, (part,) = run(inline, stream_job("cat", "cat", input="sequence"), path)
    assert part == slow.text_of(sorted(data, key=lambda pair: pair[0]))
    assert result.counters["MAP_INPUT_RECORDS"] == 100


def test_a_command_may_leave_its_input_unread(inline: Session, text: Path) -> None:
    _, (part,) = run(inline, stream_job("head -n 1", "cat"), text)
    assert part == b"key 0\tvalue 0\n"
    _, (part,) = run(inline, stream_job("echo a", "cat"), text)
    assert part == b"a\t\n"


def test_a_command_sees_neither_our_python_nor_our_folder(inline: Session, text: Path, tmp_path: Path) -> None:
    job = stream_job('echo "$PYTHONPATH:$(pwd)"', "cat", shell=True, folder=str(tmp_path))
    assert run(inline, job, text)[1] == [b":%s\t\n" % str(tmp_path).encode()]


BIG = 5_000_000
PYTHON = f"{sys.executable} -S -c"
GREEDY = {
    "reads all, then writes": f"{PYTHON} 'import sys; d=sys.stdin.buffer.read(); sys.stdout.buffer.write(d)'",
    "writes much, then reads": f"{PYTHON} 'import sys; print(\"x\\n\" * {BIG // 2}, flush=True); sys.stdin.read()'",
    "closes its input": f"{PYTHON} 'import os; os.close(0); os.write(1, b\"done\\n\")'",
    "floods stderr, then reads": f'{PYTHON} \'import sys; sys.stderr.write("noise\\n" * {BIG}); '
    "print(len(sys.stdin.read()))'",
}


@pytest.mark.parametrize("which", sorted(GREEDY))
def test_no_command_brings_a_worker_to_a_halt(inline: Session, tmp_path: Path, which: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"some line\n" * (BIG // 10))
    _, parts = run(inline, stream_job(GREEDY[which], "wc -c", timeout_s=60), path, mode="original")
    assert int(parts[0].split()[0]) > 0


def test_a_flood_of_stderr_takes_no_memory(inline: Session, text: Path) -> None:
    run(inline, stream_job("cat", "cat"), text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(JobError, match="exit code 3"):
        run(inline, stream_job("head -c 300000000 /dev/zero >&2; exit 3", "cat", shell=True, timeout_s=60), text, f=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


BAD = {
    "fails": ("exit 3", "ended with exit code 3"),
    "fails and says why": ("echo first >&2; echo it is broken >&2; echo >&2; exit 1", "exit code 1.*it is broken"),
    "fails, saying something else each time": ("echo $$ >&2; exit 4", "exit code 4.*[0-9]"),
    "dies half-way": ("head -n 10; kill -9 $$", "was killed by SIGKILL"),
    "fails after writing": ("cat; exit 5", "ended with exit code 5"),
    "is not there": ("/nowhere/at/all", "exit code 127.*not found"),
    "hangs": ("sleep 1000", "did not end within 1 s"),
    "hangs after its output": ("cat; exec 1>&-; sleep 1000", "did not end within 1 s"),
    "leaves another behind with its output": ("sleep 1000 & exit 0", "did not end within 1 s"),
    "writes without end": ("yes", "wrote more than 1000000 bytes"),
}


@pytest.mark.parametrize("role", ["mapper", "reducer"])
@pytest.mark.parametrize("which", sorted(BAD))
def test_a_command_that_fails_is_named(inline: Session, text: Path, which: str, role: str) -> None:
    """The error names command, exit code and the last line of stderr; nothing is published; f+1 domains agree on it."""
    command, reason = BAD[which]
    pair = (command, "cat") if role == "mapper" else ("cat", command)
    timeout_s = 1 if "within 1 s" in reason else 60
    job = stream_job(*pair, shell=True, timeout_s=timeout_s, output_bytes_max=1_000_000)
    with pytest.raises(JobError, match=f"(?s){role} '.*' .*{reason}"):
        run(inline, job, text, f=1)


def test_a_command_that_cannot_be_started_is_named(sessions: Sessions, text: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"mapper '/nowhere/at/all' cannot be started: No such file.*: /nowhere/at/all"):
        run(sessions("local"), stream_job("/nowhere/at/all", "cat"), text)
    with pytest.raises(JobError, match="cannot be started: Permission denied"):
        run(inline := sessions("inline"), stream_job(str(tmp_path / "text"), "cat"), text)
    with pytest.raises(JobError, match=r"cannot be started: No such file.*nofolder"):
        run(inline, stream_job("cat", "cat", folder=str(tmp_path / "nofolder")), text)


def test_commands_that_are_none_are_refused() -> None:
    for mapper in ("", "  ", "'open", '""', "nul\0"):
        with pytest.raises(UsageError, match="mapper"):
            stream_job(mapper, "cat")
    with pytest.raises(UsageError, match="more than 0"):
        stream_job("cat", "cat", timeout_s=0)


def test_a_failure_in_one_replica_is_masked(inline: Session, text: Path, tmp_path: Path) -> None:
    """Only the first execution fails; the other replica and a third one outvote it."""
    job = stream_job(f"mkdir {tmp_path}/once 2>/dev/null && exit 9; cat", "cat", shell=True)
    result, (part,) = run(inline, job, text, f=1)
    assert part == slow.load(slow.pairs_of([text], 1 << 20), 100, 100, 1).parts[0]
    assert result.executions["map"] == 3


def test_a_command_that_is_not_deterministic_wins_no_vote(inline: Session, text: Path) -> None:
    with pytest.raises((NotDeterministic, NoQuorum)):
        run(inline, stream_job("od -An -N8 -tx8 /dev/urandom", "cat"), text, f=1, attempts_max=6)


@pytest.mark.parametrize("end", ["exit 0", "exit 1", "sleep 1000"])
def test_what_a_command_started_is_killed_with_it(inline: Session, text: Path, tmp_path: Path, end: str) -> None:
    pids = tmp_path / "pids"
    command = f"sleep 1000 >/dev/null 2>&1 & echo $! >>{pids}; {end}"
    job = stream_job(command, "cat", shell=True, timeout_s=1 if "sleep" in end else 60)
    if end == "exit 0":
        run(inline, job, text, f=1)
    else:
        with pytest.raises(JobError):
            run(inline, job, text, f=1)
    started = [int(pid) for pid in pids.read_text().split()]
    assert started
    poll(lambda: not any(running(pid) for pid in started), f"the end of {started}")


def test_commands_of_a_worker_that_is_killed_are_killed(text: Path, tmp_path: Path) -> None:
    """The driver kills a worker past its deadline, which has no time to kill anything itself."""
    pids = tmp_path / "pids"
    job = stream_job(f"echo $$ >>{pids}; sleep 1000 & echo $! >>{pids}; wait", "cat", shell=True)
    with Session(Place("local", 2, "worker")) as session, pytest.raises(NoQuorum):
        run(session, job, text, f=1, deadline_s=3, attempts_max=2)
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) >= 2
    poll(lambda: not any(running(pid) for pid in started), f"the end of {started}")


def test_no_pipe_stays_open(inline: Session, text: Path) -> None:
    run(inline, stream_job("cat", "cat"), text)
    gc.collect()
    before = os.listdir("/proc/self/fd")
    run(inline, stream_job("cat", "cat"), text)
    with pytest.raises(JobError):
        run(inline, stream_job("false", "cat"), text)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_stream_on_the_command_line(cli: Callable[..., tuple[int, str, str]], text: Path, tmp_path: Path) -> None:
    code, _, stderr = cli(
        "stream", "--mapper", "tr a-z A-Z", "--reducer", "cut -f 1 | uniq -c", "--shell", "--domain", "worker",
        "--workers", "2", "--reducers", "2", text, tmp_path / "out",
    )  # fmt: skip
    assert (code, stderr) == (0, "")
    expected = slow.stream(slow.lines_of([text], 1 << 30), "tr a-z A-Z", "cut -f 1 | uniq -c", 2)
    assert [path.read_bytes() for path in sorted((tmp_path / "out").glob("part-*"))] == expected.parts


def test_a_failure_on_the_command_line_is_one_line(
    cli: Callable[..., tuple[int, str, str]], text: Path, tmp_path: Path
) -> None:
    mapper = "sh -c 'echo out of paper >&2; exit 7'"
    code, _, stderr = cli("stream", "--mapper", mapper, "--reducer", "cat", "--on", "inline", text, tmp_path / "out")
    assert code == 2
    assert stderr.count("\n") == 1
    assert "exit code 7" in stderr
    assert "out of paper" in stderr
    assert not (tmp_path / "out").exists()
