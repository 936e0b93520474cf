"""Names that others chose reach no terminal as they are: escapes, turned text, line breaks, bytes that are no text."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce import terminal
from quoreduce.printable import printable, printable_lines, printable_name
from quoreduce.terminal import OutputLost, Stream

EVIL = "\x1b]0;owned\x07[red]\x9b31m\u202etxt\u2028\nquoreduce: all is well\udcff"
SHOWN = "\\u001b]0;owned\\u0007[red]\\u009b31m\\u202etxt\\u2028\\nquoreduce: all is well\\udcff"
MISSING = (
    ("verify", EVIL), ("run", "wordcount", EVIL, "out", "--inline"), ("run", f"{EVIL}.py:job", "in", "out", "--inline"),
    ("run", EVIL, "in", "out", "--inline"), ("attest", "verify", EVIL), ("validate", "sort", EVIL),
    ("gridmix", "run", EVIL, "out"),
    ("gridmix", "report", EVIL, "--out", "page"), ("resume", EVIL), ("check", "wordcount", EVIL),
    ("demo", "--text", EVIL),
    ("suspects", "--clear", EVIL), ("simulate", "run", "--calibration", EVIL), ("simulate", "run", "--job", EVIL),
    ("run", "wordcount", "in", "out", "--fault", EVIL),
    ("run", "wordcount", "in", "out", "--address", EVIL, "--on", "ray"),
    ("generate", "text", "1K", f"{EVIL}/file"), ("run", "wordcount", "in", "out", "--mode", EVIL),
    (EVIL,), ("verify", "out", EVIL),
    ("run", "wordcount", "in", "out", f"--{EVIL.replace(' ', '')}"),
    ("run", "wordcount", "in", "out", "--split-mb", EVIL),
    ("chaos", "--faults", EVIL),
    ("vm", "image", "out", "--plant", EVIL), ("check", "wordcount", "in", "--settings", EVIL),
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("to be or not to be\n")
    return tmp_path


def plain(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text)


@pytest.mark.parametrize(
    "words", MISSING, ids=lambda words: f"{words[0][:8].encode('ascii', 'ignore').decode()} {len(words)}"
)
def test_an_error_shows_no_name_as_it_is(words: tuple[str, ...], quoreduce: Callable[..., object], here: Path) -> None:
    code, stdout, stderr = quoreduce(*words)  # type: ignore[misc]
    assert code in (2, 4, 6)
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert plain(stderr)
    assert "internal error" not in stderr
    assert "]0;owned" in stderr


def test_what_is_found_in_an_output_is_shown_so(quoreduce: Callable[..., object], here: Path) -> None:
    name = os.fsencode(EVIL)
    out = os.fsencode(here) + b"/" + name
    assert quoreduce("run", "wordcount", "in", os.fsdecode(out), "--inline")[0] == 2  # type: ignore[index] - no UTF-8
    plain_name = EVIL.removesuffix("\udcff")
    code, stdout, _ = quoreduce("run", "wordcount", "in", plain_name, "--inline")  # type: ignore[misc]
    assert (code, plain(stdout)) == (0, True)
    assert stdout.startswith(f"{SHOWN.removesuffix(chr(92) + 'udcff')}: 1 parts")
    with open(os.path.join(os.fsencode(plain_name), name), "wb"):
        pass
    code, stdout, _ = quoreduce("verify", plain_name)  # type: ignore[misc]
    assert (code, stdout.count("\n"), plain(stdout)) == (2, 2, True)
    assert f"/{SHOWN}: not in the manifest\n" in stdout
    said = json.loads(quoreduce("verify", plain_name, "--json")[1])  # type: ignore[index]
    assert said["problems"] == [f"{EVIL}: not in the manifest"], "JSON is exact"


def test_what_a_job_says_of_itself_is_shown_so(quoreduce: Callable[..., object], here: Path) -> None:
    (here / "job.py").write_text(
        "from quoreduce import Job\n\ndef words(record):\n    raise ValueError('\\x1b[2J\\u202e' + record.decode())\n"
        "    yield\n\ndef add(key, values):\n    yield sum(values)\n\njob = Job('evil\\x1b[1m', words, add)\n"
    )
    code, stdout, stderr = quoreduce("run", "job.py:job", "in", "out", "--inline")  # type: ignore[misc]
    assert (code, stdout, stderr.count("\n"), plain(stderr)) == (2, "", 1, True)


@given(st.text(st.characters(), max_size=60))
def test_text_that_is_shown_can_be_printed_and_read_back(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    if not {"\\", '"'} & set(text):
        read = json.loads(f'"{shown}"')
        assert read.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")
    assert printable(shown) == shown
    assert printable_lines(text).count("\n") == text.count("\n")


def test_long_text_is_cut() -> None:
    assert len(printable("a" * 10**6)) < 4100
    assert len(printable_name("\x1b" * 10**6)) < 3100


def test_a_table_takes_no_name_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("name")
    table.add_row(printable_name("[red]a[/red]\x1b[1m :smile:"))
    terminal.print_table(table)
    assert "[red]a[/red]\\u001b[1m :smile:" in capsys.readouterr().out


def test_a_stream_shows_what_was_forgotten_and_a_console_has_its_colours() -> None:
    file = io.StringIO()
    stream = Stream(file, essential=True)
    print("name \x1b[31m\u202e\x9b", file=stream)
    stream.as_it_is().write("\x1b[1m")
    assert file.getvalue() == "name \\u001b[31m\\u202e\\u009b\n\x1b[1m"


def test_a_stream_that_is_essential_says_that_it_is_lost() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    Stream(Full(), essential=False).write("dropped")
    with pytest.raises(OutputLost, match="No space left on device"):
        Stream(Full(), essential=True).write("lost")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "loop"])
@pytest.mark.parametrize("name", ["_RECEIPT.json", "quote.msg", "_SUCCESS"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, name: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to would be read for ever."""
    odd = tmp_path / name
    make_odd(odd, kind)
    (tmp_path / "ak.tss").write_bytes(b"key")
    words = (
        ["verify", str(tmp_path)] if name == "_SUCCESS" else ["attest", "verify", str(tmp_path), "--nonce", "00" * 32]
    )
    check_refused(words, {"QUOREDUCE_ATTEST": state(tmp_path)})


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "loop"])
@pytest.mark.parametrize(
    "words",
    [("attest", "verify", "OUT", "--policy", "ODD"), ("simulate", "run", "--calibration", "ODD"),
     ("gridmix", "report", "ODD", "--out", "PAGE"), ("vm", "image", "PAGE", "--plant", "ODD"),
     ("attest", "quote", "--nonce", "00", "--measure", "ODD", "--out", "PAGE")],
    ids=" ".join,
)  # fmt: skip
def test_a_file_that_is_named_and_is_none_is_refused(kind: str, words: tuple[str, ...], tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    make_odd(odd, kind)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_RECEIPT.json").write_text("{}")
    names = {"ODD": str(odd), "OUT": str(tmp_path / "out"), "PAGE": str(tmp_path / "page")}
    check_refused([names.get(word, word) for word in words], {})


def make_odd(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)


def state(folder: Path) -> str:
    """A folder with a policy: what is verified is not to be refused for want of one."""
    policy = {
        "format": "quoreduce policy 1", "environments": ["00" * 32], "backends": ["utpm"],
    }  # fmt: skip
    (folder / "state").mkdir()
    (folder / "state" / "policy.json").write_text(json.dumps(policy))
    return str(folder / "state")


def check_refused(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quoreduce.cli", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode in (2, 6)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "regular file" in done.stderr or "symbolic links" in done.stderr or "holds neither" in done.stderr
