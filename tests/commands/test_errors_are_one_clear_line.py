"""Bad input, bad jobs, bad flags, full disks: the right exit code, one clear line, nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quoreduce.cli import main

JOBS = Path(__file__).parent / "user_jobs.py"
TIMEOUT_S = 120

Command = Callable[..., Any]


def nothing_written(out: Path) -> bool:
    return os.listdir(out.parent) == []


@pytest.mark.parametrize("where", [("--inline",), ("--on", "local", "--workers", "2", "--domain", "worker")])
def test_a_job_that_raises(where: tuple[str, ...], quoreduce: Command, text: Path, out: Path) -> None:
    """f+1 domains raise the same: the job's own error, with the record and the split."""
    text.write_text("fine\n" * 10 + "oops\n")
    ended = quoreduce("run", f"{JOBS}:map_raises", text, out, "--split-mb", "0.00003", *where)
    assert ended.code == 2
    assert ended.error.startswith("map 1: map failed at record 4 of split 1: LookupError: ")
    assert "no such thing" in ended.error
    assert nothing_written(out)


def test_a_reduce_that_raises_names_the_key(quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", f"{JOBS}:reduce_raises", text, out)
    assert ended.code == 2
    assert "reduce failed at key b'be': ZeroDivisionError: division by zero" in ended.error
    assert nothing_written(out)


@pytest.mark.parametrize(
    ("name", "says"), [("leaves", "SystemExit: 3"), ("odd", "??"), ("unsorted_set", "a set has no order")]
)
def test_a_job_that_fails_in_an_odd_way(name: str, says: str, quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", f"{JOBS}:{name}", text, out)
    assert ended.code == 2
    assert says in ended.error
    assert nothing_written(out)


@pytest.mark.parametrize("name", ["tosses_in_map", "tosses_in_reduce"])
@pytest.mark.parametrize("where", [("--inline",), ("--on", "local", "--workers", "2", "--domain", "worker")])
def test_a_job_that_is_not_deterministic(
    name: str, where: tuple[str, ...], quoreduce: Command, text: Path, out: Path
) -> None:
    """R11: before a domain is accused, non-determinism is ruled out."""
    ended = quoreduce("run", f"{JOBS}:{name}", text, out, *where)
    assert ended.code == 5
    assert "the job's own code is not deterministic" in ended.error
    assert nothing_written(out)


@pytest.mark.parametrize(
    ("name", "says"),
    [("wordcout",
      "unknown job 'wordcout': did you mean wordcount? use wordcount, sort, scan, FILE.py:NAME or MODULE:NAME"),
     (f"{JOBS}:nobody", "has no 'nobody'; its jobs are good, "), (f"{JOBS}:not_a_job", "is not a quoreduce.Job"),
     ("missing.py:job", "no such file: missing.py"), ("no_such_module:job", "No module named 'no_such_module'")],
)  # fmt: skip
def test_an_unknown_job(name: str, says: str, quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", name, text, out)
    assert ended.code == 2
    assert says in ended.error
    assert nothing_written(out)


def test_a_job_file_that_does_not_load(quoreduce: Command, text: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("from quoreduce import Job\njob = Job(\n")
    ended = quoreduce("run", f"{tmp_path}/broken.py:job", text, out)
    assert ended.code == 2
    assert "cannot load" in ended.error
    assert "SyntaxError" in ended.error


@pytest.mark.parametrize(
    ("words", "says"),
    [(("scan",), "scan needs to know what to keep: --starts-with TEXT"),
     (("scan", "--lines"), "scan needs to know what to keep: --starts-with TEXT"),
     (("scan", "--starts-with", ""), "what records start with has 1 to 64 bytes, not 0"),
     (("scan", "--starts-with", "\u00e4" * 33), "what records start with has 1 to 64 bytes, not 66"),
     (("scan", "--lines", "--starts-with", "a\nb"), "a line holds no line feed, so it cannot start with one"),
     (("wordcount", "--starts-with", "~"), "--starts-with and --lines go with the job scan, not with wordcount"),
     (("sort", "--lines"), "--starts-with and --lines go with the job scan, not with sort")],
)  # fmt: skip
def test_a_scan_without_a_prefix_and_a_prefix_without_a_scan(
    words: tuple[str, ...], says: str, quoreduce: Command, text: Path, out: Path
) -> None:
    ended = quoreduce("run", words[0], text, out, *words[1:])
    assert ended.code == 2
    assert says in ended.error
    assert nothing_written(out)


@pytest.mark.parametrize(
    ("flags", "says"),
    [(("--fault", "flip"), "--fault 'flip': use KIND:TARGET:COUNT"),
     (("--digest", "checksum"), "votes need a digest"), (("--inline", "--on", "local"), "contradict each other"),
     (("--domain", "core"), "inline has domains in name only"), (("--attempts-max", "1"), "attempts")],
)  # fmt: skip
def test_a_flag_that_cannot_be(flags: tuple[str, ...], says: str, quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", "wordcount", text, out, *flags)
    assert ended.code == 2
    assert says in ended.error
    assert nothing_written(out)


@pytest.mark.parametrize(
    "words",
    [("run", "wordcount", "in", "out", "--mode", "raft"), ("run",), ("walk",),
     ("run", "wordcount", "-f", "two", "i", "o"), ()],
)  # fmt: skip
def test_what_the_parser_refuses(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(words)
    assert leave.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "error: " in said.err.splitlines()[-1]


def test_one_path_is_too_few(quoreduce: Command, text: Path) -> None:
    ended = quoreduce("run", "wordcount", text)
    assert ended.code == 2
    assert ended.error == "name at least one INPUT, and the OUTPUT last"


def test_too_few_domains(quoreduce: Command, text: Path, out: Path) -> None:
    """R1: f=2 on two workers is refused before anything is read, with what would help."""
    ended = quoreduce("run", "wordcount", text, out, "-f", "2", "--workers", "2")
    assert ended.code == 4
    assert "f=2 needs 3 failure domains, there are 2 (worker0, worker1)" in ended.error
    assert "use more machines or cores, a smaller -f, or --domain worker --workers" in ended.error
    assert nothing_written(out)


def test_too_few_cores(quoreduce: Command, text: Path, out: Path) -> None:
    """Workers that share a core are one domain, however many there are."""
    cores = len(os.sched_getaffinity(0))
    ended = quoreduce("run", "wordcount", text, out, "-f", min(cores, 16), "--workers", 2 * cores, "--on", "local")
    assert ended.code == 4
    assert f"needs {min(cores, 16) + 1} failure domains" in ended.error


def test_no_quorum(quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", "wordcount", text, out, "--workers", "2", "--fault", "stuck:worker0")
    assert ended.code == 4
    assert "one more domain would mask it" in ended.error
    assert nothing_written(out)


def test_strict(quoreduce: Command, text: Path, out: Path) -> None:
    """Exit 3: the output is right and published; only the machine wants a look."""
    ended = quoreduce("run", "wordcount", text, out, "--strict", "--fault", "flip:map:1", "--json")
    assert ended.code == 3
    assert json.loads(ended.stdout)["faults"] == {"injected": 1, "detected": 1, "masked": 1}
    assert ended.stderr == "quoreduce: 1 faults were masked; the output is right, and published\n"
    assert quoreduce("verify", out).code == 0


def test_strict_without_faults(quoreduce: Command, text: Path, out: Path) -> None:
    assert quoreduce("run", "wordcount", text, out, "--strict").code == 0


@pytest.mark.parametrize("name", ["missing", "missing/*.txt", "text.txt/below"])
def test_a_missing_input(name: str, quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", "wordcount", text.parent / name, out)
    assert ended.code == 2
    assert str(text.parent / name) in ended.error
    assert nothing_written(out)


def test_a_directory_without_files(quoreduce: Command, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "empty" / "_hidden").write_text("not read")
    ended = quoreduce("run", "wordcount", tmp_path / "empty", out)
    assert ended.code == 2
    assert "has no input files" in ended.error
    assert nothing_written(out)


def without_privilege() -> list[str]:
    """A command in front of which root may read no more than its files' modes say."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and there is no setpriv to take that away")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def test_an_unreadable_input(text: Path, out: Path) -> None:
    text.chmod(0)
    command = [
        *without_privilege(),
        sys.executable,
        "-m",
        "quoreduce.cli",
        "run",
        "wordcount",
        str(text),
        str(out),
        "--inline",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"quoreduce: cannot read {text}: Permission denied\n"
    assert nothing_written(out)


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped"])
def test_a_corrupt_gz(damage: str, quoreduce: Command, text: Path, out: Path) -> None:
    raw = gzip.compress(text.read_bytes())
    broken = {"cut": raw[:-9], "garbage": b"not gz", "flipped": raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:]}[damage]
    path = text.with_suffix(".gz")
    path.write_bytes(broken)
    ended = quoreduce("run", "wordcount", path, out)
    assert ended.code == 2
    assert str(path) in ended.error
    assert nothing_written(out)


def test_records_of_another_size(quoreduce: Command, tmp_path: Path, out: Path) -> None:
    (tmp_path / "records").write_bytes(bytes(250))
    ended = quoreduce("run", "sort", tmp_path / "records", out)
    assert ended.code == 2
    assert "has 250 bytes, not a multiple of 100" in ended.error
    assert nothing_written(out)


def test_an_output_inside_the_input(quoreduce: Command, text: Path) -> None:
    ended = quoreduce("run", "wordcount", text.parent, text.parent / "out")
    assert ended.code == 2
    assert "lies inside the input" in ended.error
    assert os.listdir(text.parent) == [text.name]


def test_an_output_that_is_the_input(quoreduce: Command, text: Path) -> None:
    before = text.read_bytes()
    ended = quoreduce("run", "wordcount", text, text, "--overwrite")
    assert ended.code == 2
    assert "is also an input" in ended.error
    assert text.read_bytes() == before


def test_an_output_that_exists(quoreduce: Command, text: Path, out: Path) -> None:
    assert quoreduce("run", "wordcount", text, out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    text.write_text("other words\n")
    ended = quoreduce("run", "wordcount", text, out)
    assert ended.code == 2
    assert "exists; choose another, or replace it with --overwrite" in ended.error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert quoreduce("run", "wordcount", text, out, "--overwrite").code == 0
    assert (out / "part-r-00000").read_bytes() == b"other\t1\nwords\t1\n"
    assert os.listdir(out.parent) == ["out"]


def test_an_overwrite_that_fails_keeps_the_old_output(quoreduce: Command, text: Path, out: Path) -> None:
    assert quoreduce("run", "wordcount", text, out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    ended = quoreduce("run", f"{JOBS}:tosses_in_map", text, out, "--overwrite")
    assert ended.code == 5
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert os.listdir(out.parent) == ["out"]


def test_a_directory_that_no_job_wrote_is_not_overwritten(quoreduce: Command, text: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    ended = quoreduce("run", "wordcount", text, out, "--overwrite")
    assert ended.code == 2
    assert "'thesis.tex'" in ended.error
    assert (out / "thesis.tex").read_text() == "years of work"


def with_small_disk(mount: Path, kib: int, *arguments: object) -> tuple[int, str, str, list[str]]:
    """Run a command with a small tmpfs at ``mount``, seen by nobody else; (code, stdout, stderr, files left on it)."""
    mount.mkdir(exist_ok=True)
    left = mount.with_name("left-on-disk")
    script = (
        'mount -t tmpfs -o size="$1"k none "$2" || exit 99; disk=$2 left=$3; shift 3; '
        '"$@"; code=$?; find "$disk" -mindepth 1 >"$left"; exit $code'
    )
    command = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else [])]
    command += ["sh", "-c", script, "sh", str(kib), str(mount), str(left), sys.executable, "-m", "quoreduce.cli"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )  # fmt: skip
    if not left.exists():
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    return done.returncode, done.stdout, done.stderr, left.read_text().splitlines()


@pytest.mark.parametrize("where", [("--inline",), ("--on", "local", "--domain", "worker", "--workers", "2")])
@pytest.mark.parametrize("full", ["store", "output"])
def test_a_full_disk(full: str, where: tuple[str, ...], text: Path, out: Path, tmp_path: Path) -> None:
    """Exit 2 or 4 and one line; what was written so far is gone, from the store and from beside the output."""
    text.write_text(" ".join(f"word{i}" for i in range(40_000)))
    disk = tmp_path / "disk"
    output, store = (out, disk) if full == "store" else (disk / "out", tmp_path / "store")
    code, stdout, stderr, left = with_small_disk(
        disk, 2048 if full == "store" else 128, "run", "wordcount", text, output, "--store", store, "--split-mb",
        "0.05", "--reducers", "2", *where,
    )  # fmt: skip
    assert code in (2, 4), stderr
    assert stdout == ""
    assert stderr.startswith("quoreduce: no space")
    assert stderr.count("\n") == 1
    assert left == []
    assert nothing_written(out)
    if full == "output":
        assert os.listdir(store) == []


def test_a_store_that_cannot_be_made(quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", "wordcount", text, out, "--store", text / "below")
    assert ended.code == 4
    assert "cannot make a folder for blocks" in ended.error
    assert nothing_written(out)


def test_an_output_on_a_path_that_cannot_be_made(quoreduce: Command, text: Path, out: Path) -> None:
    (out.parent / "file").touch()
    ended = quoreduce("run", "wordcount", text, out.parent / "file" / "out")
    assert ended.code == 2
    assert "cannot write" in ended.error
