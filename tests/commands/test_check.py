"""``quoreduce check`` finds what makes a job's output differ, names the record and the cause, and accuses no good
job.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quoreduce.cli import main
from quoreduce.commands.check.check import CheckFinding, Report, check
from quoreduce.commands.check.settings import NAMES, find_settings
from quoreduce.errors import HostError, InputError, JobError, UsageError
from quoreduce.job import Job
from quoreduce.jobs.find import find_job
from quoreduce.jobs.scan import scan_job
from quoreduce.protocol.compile import ensure_kernels
from quoreduce.protocol.port import cores

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "docs" / "examples"
FAULTY = HERE / "faulty_jobs.py"
SUMS = HERE / "float_sums.py"
FAST = ("repeat", "state", "order", "digests", "hash", "threads", "place", "cpu")


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    ensure_kernels()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Lines, each with a key of its own; the 40th alone begins with ``mark``."""
    path = tmp_path / "text.txt"
    lines = [f"k{i:06d} {i * 7919 % 1000} and so on" for i in range(80)]
    lines[40] = "mark0040 one two three four five six seven"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """One line, for jobs that take long over one."""
    path = tmp_path / "line.txt"
    path.write_text("one and only\n")
    return path


def faulty(name: str) -> Job:
    return find_job(f"{FAULTY}:{name}")


def found(name: str, text: Path, *settings: str) -> list[CheckFinding]:
    report = check(faulty(name), [str(text)], settings=settings or FAST, reducers=3)
    assert not report.left_out
    return report.findings


def only(name: str, text: Path, *settings: str) -> CheckFinding:
    (finding,) = found(name, text, *settings)
    return finding


def test_the_order_of_a_set_is_found_and_the_record_is_the_right_one(text: Path) -> None:
    finding = only("set_order", text)
    assert finding.setting == "hash"
    assert "hash order" in finding.cause
    assert "PYTHONHASHSEED=0" in finding.hidden
    assert finding.difference.key == "b'mark0040'"
    raw = text.read_bytes()
    splits = 8  # of ceil(size / 8) bytes each
    assert finding.difference.task == f"map {raw.index(b'mark') // -(-len(raw) // splits)}"
    assert finding.difference.record is not None
    assert "three" in finding.difference.reference
    assert sorted(eval(finding.difference.reference)) == sorted(eval(finding.difference.other))


@pytest.mark.parametrize("name", ["hash_of", "hash_partition"])
def test_hash_is_found_and_named(name: str, text: Path) -> None:
    finding = only(name, text, "repeat", "state", "hash")
    assert finding.setting == "hash"
    assert any("hash()" in hint and "faulty_jobs.py" in hint for hint in finding.hints)


@pytest.mark.parametrize(
    ("name", "hint", "task"),
    [
        ("random_numbers", "random numbers", "map 0"), ("a_clock", "a clock", "reduce 0"),
        ("an_address", "addresses", "map 0"),
        ("a_process", "numbers of processes", "map 0"),
    ],
)  # fmt: skip
def test_chance_is_told_from_settings(name: str, hint: str, task: str, text: Path) -> None:
    finding = only(name, text, "repeat", "state", "hash")
    assert finding.setting == "repeat"
    assert "under the same setting" in finding.cause
    assert [part for part in finding.hints if part.startswith(hint)]
    assert finding.difference.task == task
    assert finding.difference.reference != finding.difference.other


@pytest.mark.parametrize("name", ["a_global", "a_generator"])
def test_leaking_state_is_told_from_chance(name: str, text: Path) -> None:
    finding = only(name, text, "repeat", "state", "order")
    assert finding.setting == "state"
    assert "leaking state" in finding.cause


def test_a_global_that_is_assigned_is_pointed_at(text: Path) -> None:
    assert any("global in map (faulty_jobs.py:" in hint for hint in only("a_global", text, "state").hints)


def test_leaking_state_shows_in_the_order_of_tasks_too(text: Path) -> None:
    assert "leaking state" in only("a_global", text, "repeat", "order").cause


@pytest.mark.parametrize(
    ("name", "setting", "what", "cause"),
    [
        ("thread_count", "threads", "NUMBA_NUM_THREADS=4", "how many threads numba uses"),
        ("the_date", "place", "TZ=", "the time zone or the date"),
        ("the_folder", "place", "another current directory", "relative path"),
    ],
)  # fmt: skip
def test_of_several_changes_the_guilty_one_is_named(name: str, setting: str, what: str, cause: str, text: Path) -> None:
    finding = only(name, text, "repeat", setting)
    assert finding.setting == setting
    assert what in finding.what
    assert "," not in finding.what
    assert cause in finding.cause


@pytest.mark.parametrize(
    ("name", "change", "cause"),
    [("numpy_math", "NPY_DISABLE", "numpy's exp"), ("c_math", "GLIBC_TUNABLES", "C library's exp")],
)
def test_math_that_depends_on_the_cpu_is_found_where_it_can_be_told(
    name: str, change: str, cause: str, text: Path
) -> None:
    (setting,) = find_settings(["cpu"])
    if not any(one.what.startswith(change) for one in setting.changes):
        pytest.skip("this machine's CPU has no features to take away")
    report = check(faulty(name), [str(text)], settings=("repeat", "cpu"))
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        if report.agreed:
            pytest.skip("old and new code agree on this CPU")
        change, cause = "GLIBC_TUNABLES", "C library's exp"  # without AVX-512 numpy's exp of float64 is the C library's
    (finding,) = report.findings
    assert change in finding.what
    assert cause in finding.cause


def test_linear_algebra_on_more_threads_is_found(line: Path) -> None:
    """A real sum by OpenBLAS: one thread adds in another order than two."""
    if len(cores()) < 2:
        pytest.skip("OpenBLAS uses as many threads as there are cores, and here is one")
    finding = check(
        find_job(f"{SUMS}:blas"), [str(line)], settings=("repeat", "threads"), reducers=1, limit_s=200
    ).findings[0]
    assert finding.what == "more threads: OPENBLAS_NUM_THREADS=4"
    assert "np.dot" in finding.cause
    assert float(finding.difference.reference) == pytest.approx(float(finding.difference.other), rel=1e-12)
    assert finding.difference.reference != finding.difference.other


@pytest.mark.nightly  # as other math is
def test_linear_algebra_for_another_cpu_is_found(line: Path) -> None:
    report = check(find_job(f"{SUMS}:blas"), [str(line)], settings=("repeat", "cpu"), limit_s=200)
    if report.agreed and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("old and new code are the same on this CPU")
    (finding,) = report.findings
    assert "OPENBLAS_CORETYPE" in finding.what
    assert "np.dot" in finding.cause


@pytest.mark.slow  # every process compiles it
def test_a_parallel_sum_of_numba_is_found(line: Path) -> None:
    (finding,) = check(
        find_job(f"{SUMS}:parallel"), [str(line)], settings=("threads",), reducers=1, limit_s=400
    ).findings
    assert finding.what == "more threads: NUMBA_NUM_THREADS=4"
    assert "prange" in finding.cause
    assert finding.difference.reference != finding.difference.other


def test_a_job_that_digests_something_else_than_it_stores_is_found(text: Path) -> None:
    finding = only("carrier_only", text, "repeat", "digests")
    assert finding.setting == "digests"
    assert "ctx.store" in finding.cause
    assert finding.hints


def test_an_error_in_one_setting_only_is_a_difference(text: Path) -> None:
    difference = only("an_error", text, "repeat", "hash").difference
    assert difference.reference == "succeeded"
    assert "LookupError: not here" in difference.other
    assert difference.record is None


def agreed(report: Report) -> bool:
    assert set(report.tried) == set(FAST)
    return report.agreed


def test_word_counts_agree(kjv: Path) -> None:
    assert agreed(check(find_job("wordcount"), [str(kjv)], sample_mb=1))


@pytest.mark.nightly  # as word counts do
def test_sorting_agrees(tmp_path: Path) -> None:
    path = tmp_path / "records"
    assert main(["generate", "ascii", "20000", str(path)]) == 0
    assert agreed(check(find_job("sort"), [str(path)], sample_mb=1))


@pytest.mark.nightly  # as word counts do
def test_scans_agree(kjv: Path) -> None:
    assert agreed(check(scan_job(b"Ge", input="lines"), [str(kjv)], sample_mb=0.5))


def test_plain_python_agrees(kjv: Path, text: Path) -> None:
    assert agreed(check(find_job(f"{EXAMPLES}/python_job.py:job"), [str(kjv)], sample_mb=0.5))
    assert agreed(check(faulty("fine"), [str(text)]))


@pytest.mark.nightly  # compiles for half a minute
def test_kernels_of_ones_own_agree_when_compiled_for_another_cpu(text: Path) -> None:
    report = check(find_job(f"{EXAMPLES}/kernel_job.py:job"), [str(text)])
    assert report.agreed
    assert "numba" in report.tried


def test_the_sample_is_bounded_and_from_all_over_the_input(kjv: Path) -> None:
    report = check(faulty("fine"), [str(kjv)], sample_mb=0.08, limit_s=3600, settings=("hash",))
    assert report.input_bytes == kjv.stat().st_size
    assert 0.05e6 < report.sample_bytes <= 0.08e6
    assert report.splits == 16


def test_the_sample_of_a_slow_job_is_made_smaller(kjv: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nfrom quoreduce import Job\njob = Job('slow', lambda line: time.sleep(0.01), lambda k, v: [])\n"
    )
    report = check(find_job(f"{slow}:job"), [str(kjv)], settings=("hash",), limit_s=24)
    assert report.agreed
    assert 0 < report.sample_bytes < 100_000
    assert 1 <= report.splits <= 4, "fewer on a busy machine"


def test_a_job_that_takes_too_long_is_an_error_that_says_what_to_do(text: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nfrom quoreduce import Job\njob = Job('slow', lambda line: time.sleep(9), lambda k, v: [])\n"
    )
    with pytest.raises(HostError, match="--time-limit"):
        check(find_job(f"{slow}:job"), [str(text)], limit_s=2)


def test_a_setting_under_which_the_worker_dies_is_left_out_and_said(text: Path) -> None:
    report = check(faulty("a_death"), [str(text)], settings=("repeat", "hash"))
    assert report.agreed
    assert list(report.tried) == ["repeat"]
    assert "died" in report.left_out["hash"]
    with pytest.raises(HostError, match=r"no setting could be tried: hash: .* died"):
        check(faulty("a_death"), [str(text)], settings=("hash",))


def test_advice_is_about_the_options_of_check(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run has --split-mb; the size of a check's splits follows from its sample."""
    monkeypatch.setattr("quoreduce.data.splits.SPLITS_MAX", 4)
    with pytest.raises(InputError, match=r"over 4 splits; use a larger --sample-mb$"):
        check(faulty("fine"), [str(text)], sample_mb=0.0002)


def test_what_cannot_be(text: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"hopeless: map 0: map failed at record 0 .* LookupError: never"):
        check(faulty("hopeless"), [str(text)])
    with pytest.raises(UsageError, match="there is no 'moon': use repeat"):
        check(faulty("fine"), [str(text)], settings=("moon",))
    with pytest.raises(UsageError, match="sample"):
        check(faulty("fine"), [str(text)], sample_mb=0)
    with pytest.raises(UsageError, match="reducers"):
        check(faulty("fine"), [str(text)], reducers=0)
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="nothing in the input"):
        check(faulty("fine"), [str(tmp_path / "empty")])


def test_nothing_is_left_behind(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    found("a_clock", text, "repeat")
    assert list(temporary.iterdir()) == []


def test_the_command_says_what_it_found(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{FAULTY}:set_order", str(text), "--settings", "repeat,hash"]) == 5
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("set-order is not deterministic: map ")
    for word in ("key b'mark0040'", "PYTHONHASHSEED=1", "hash order", "tried: repeat, hash"):
        assert word in said.out
    assert main(["check", f"{FAULTY}:fine", str(text), "--settings", "hash"]) == 0
    assert "no proof" in capsys.readouterr().out


def test_the_command_as_json(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{FAULTY}:random_numbers", str(text), "--settings", "repeat", "--json"]) == 5
    state = json.loads(capsys.readouterr().out)
    assert state["deterministic"] is False
    assert state["findings"][0]["difference"]["task"] == "map 0"
    assert main(["check", "scan", "--starts-with", "k", "--lines", str(text), "--settings", "order", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deterministic"] is True


def test_the_command_checks_jobs_of_two_commands(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashing = "python3 -c 'import sys; [print(hash(line)) for line in sys.stdin]'"
    bounds = ("--reducers", "1", "--time-limit", "200")
    by_hash = ("check", "stream", "--mapper", hashing, "--reducer", "cat", str(line), "--settings", "hash")
    assert main([*by_hash, *bounds]) == 5
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("stream is not deterministic: map 0")
    assert "PYTHONHASHSEED=1" in said.out
    shell = ("check", "stream", "--mapper", "tr a-z A-Z | sort", "--reducer", "cat", "--shell", str(line))
    assert main([*shell, "--settings", "repeat,place", *bounds]) == 0
    assert "no proof" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("stream",), "stream needs --mapper and --reducer"),
        (("stream", "--mapper", "cat"), "stream needs --mapper and --reducer"),
        (("wordcount", "--mapper", "cat", "--reducer", "cat"), "go with the job stream, not with wordcount"),
        (("stream", "--mapper", "", "--reducer", "cat"), "the mapper is no command"),
    ],
)
def test_commands_go_with_stream_and_stream_with_commands(
    arguments: tuple[str, ...], says: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments, str(text)]) == 2
    assert says in capsys.readouterr().err


def test_help_names_every_setting_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    said = capsys.readouterr().out
    for word in (
        *NAMES,
        "--settings",
        "--sample-mb",
        "--time-limit",
        "--reducers",
        "--starts-with",
        "--mapper",
        "--json",
    ):
        assert word in said


def test_errors_are_one_line(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{FAULTY}:hopeless", str(text)]) == 2
    assert main(["check", "wordcount", "/no/such/file"]) == 2
    assert main(["check", "wordcount", str(text), "--starts-with", "a"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 3
