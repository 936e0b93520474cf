"""Every command of README.md and docs/, run as printed and in order: in a fresh checkout, and from an installed wheel.

Usage: python tests/campaigns/docs.py [README.md docs/guide/gridmix.md ...] [--mode checkout|wheel] [--list]

A block of shell commands is fenced as ``sh``; one fenced as ``console`` has commands after ``$ `` and, below each,
lines that it is to print in this order (``...`` stands for anything; times, dates, names of workers and long
hexadecimal numbers may differ). A block of Python under a heading that names a file is that file. HTML comments above a
block leave it out: ``<!-- not run: WHY -->`` always, ``<!-- nightly: WHY -->`` in CI; ``<!-- not run (COMMAND): WHY
-->`` only commands that begin so. ``# ... exit code 5`` behind a command says how it ends, if not with 0. What needs a
checkout (make, tests/, bench) is not run from a wheel. Each document begins in a new folder and a new home; its
commands run in one shell.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))
MODES = ("checkout", "wheel")
TIMEOUT_S = 6 * 3600.0  # of a document: campaigns take hours
COMMENT = re.compile(r"<!-- (not run|nightly)(?: \((.+?)\))?: (.+?) -->")
EXIT = re.compile(r"#.*\bexit code (\d+)\b")
CHECKOUT_ONLY = re.compile(r"(make|git|\.venv/bin/\S+|python3? (-m (venv|bench\.)|tests/|docs/)|\.ci/)")
CHANGES = re.compile(r"\.\.\.|[0-9.,]+ (?:CPU )?s\b|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC|[0-9a-fA-F]{20,}|\bworker\d+\b")
LIKE = (
    (r"\.\.\.", ".*"),
    (r"worker", r"worker\d+"),
    (r".* s$", r"[0-9.,]+ (?:CPU )?s\b"),
    (r".* UTC", r"[0-9: -]+ UTC"),
    ("", "[0-9a-fA-F]+"),
)
FIRST_WORDS = ("quoreduce", "make", "pip", "python", "python3", "sudo", "git", "tpm2_checkquote", "$")


@dataclass(slots=True)
class Command:
    """A command, and where it stands. ``left_out``: why it is not run; ``prints``: lines of its output."""

    document: str
    line: int
    text: str
    code: int = 0
    mark: str = ""
    left_out: str = ""
    prints: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Document:
    """What is to be run of a document, in order; and the files that it shows: name -> text."""

    name: str
    commands: list[Command]
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, the number of its first line, its lines, the comments and the heading above it."""

    language: str
    line: int
    lines: list[str]
    comments: list[tuple[str, str, str]]
    heading: str


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks of a document."""
    comments: list[tuple[str, str, str]] = []
    heading = language = ""
    inside: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if inside is None:
                language, inside, first = line[3:].strip(), [], number + 1
            else:
                yield Block(language, first, inside, comments, heading)
                inside, comments = None, []
        elif inside is not None:
            inside.append(line)
        elif found := COMMENT.findall(line):
            comments = [*comments, *((kind, prefix, why) for kind, prefix, why in found)]
        elif line.startswith("#"):
            heading, comments = line, []
        elif line.strip():
            comments = []


def read(name: str, text: str) -> Document:
    """Find the commands of a document."""
    document = Document(name, [], {})
    for block in blocks(text):
        if block.language == "python" and (file := re.search(r"`([\w-]+\.py)`", block.heading)):
            document.files[file[1]] = "\n".join(block.lines) + "\n"
        elif block.language in ("sh", "console"):
            for command in _commands(name, block):
                for kind, prefix, why in block.comments:
                    if command.text.startswith(prefix) and command.mark != "not run":
                        command.mark, command.left_out = kind, why
                document.commands.append(command)
    return document


def _commands(name: str, block: Block) -> Iterator[Command]:
    command: Command | None = None
    for number, line in enumerate(block.lines, block.line):
        if command is not None and command.text.endswith("\\"):
            command.text += f"\n{line}"
        elif block.language == "console" and not line.startswith("$ "):
            if command is not None:
                command.prints.append(line)
            continue
        else:
            if command is not None:
                yield command
            command = Command(name, number, line.removeprefix("$ "))
        code = EXIT.search(line)
        command.code = int(code[1]) if code else command.code
    if command is not None:
        yield command


def is_printed(expected: Sequence[str], output: str) -> str:
    """The first expected line that is not in the output, after those before it; empty if all are."""
    actual = iter(output.splitlines())
    for line in expected:
        pattern = re.compile(_pattern(line.rstrip()))
        if line.strip() and not any(pattern.fullmatch(one.rstrip()) for one in actual):
            return line
    return ""


def _pattern(line: str) -> str:
    found, end = "", 0
    for change in CHANGES.finditer(line):
        found += re.escape(line[end : change.start()])
        text, end = change[0], change.end()
        found += next(pattern for start, pattern in LIKE if re.match(start, text))
    return re.sub(r"(\\ )+", r"\\s+", found + re.escape(line[end:]))


def script(document: Document, mode: str, nightly: bool, folder: Path) -> tuple[str, list[Command]]:
    """A script for bash, and the commands in it; the n-th one's output goes to ``folder/n``, how it ended to
    ``folder/codes``.
    """
    lines = ["trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    chosen = []
    for command in document.commands:
        if (
            command.mark == "not run"
            or (command.mark == "nightly" and not nightly)
            or not command.text.split("#")[0].strip()
        ):
            continue
        if mode == "wheel" and CHECKOUT_ONLY.match(command.text.removeprefix("$ ")):
            continue
        number = len(chosen)
        chosen.append(command)
        lines += [
            f"{{ {command.text}\n}} >{folder}/{number} 2>&1 </dev/null",
            f"code=$?; echo $code $SECONDS >>{folder}/codes",
            f"[ $code -eq {command.code} ] || exit 99",
        ]  # fmt: skip
    return "\n".join(lines) + "\n", chosen


@contextmanager
def checkout() -> Iterator[Path]:
    """A folder with all that is tracked, as it is in the working tree."""
    folder = Path(tempfile.mkdtemp(prefix="docs-checkout-"))
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def installed() -> Iterator[Path]:
    """The folder of programs of an environment with our wheel in it; all else that it needs is that of this
    environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="docs-wheel-"))
    try:
        with checkout() as source:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
            build = [
                *pip,
                "wheel",
                "--no-deps",
                "--no-index",
                "--no-build-isolation",
                "--wheel-dir",
                str(folder),
                str(source),
            ]
            subprocess.run(build, check=True, capture_output=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        (wheel,) = folder.glob("*.whl")
        python = str(folder / "venv" / "bin" / "python")
        subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel)], check=True)
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        ours, theirs = (
            subprocess.run([p, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
            for p in (python, sys.executable)
        )
        (Path(ours) / "rest.pth").write_text(f"{theirs}\n")
        yield folder / "venv" / "bin"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Walked:
    """How a walk through a document ended: what went wrong, how many commands were run, and which were left out."""

    wrong: str
    run: int
    left_out: list[Command]
    took_s: list[float]


def walk(name: str, mode: str, programs: Path, source: Path, nightly: bool, cache: str | None = None) -> Walked:
    """Run what a document says, in a new home and a new folder: a copy of ``source`` in mode checkout, else an empty
    one.
    """
    document = read(name, (ROOT / name).read_text())
    top = Path(tempfile.mkdtemp(prefix="docs-"))
    try:
        home, work, said = top / "home", top / "work", top / "said"
        for folder in (home, said):
            folder.mkdir()
        if mode == "checkout":
            shutil.copytree(source, work)
        else:
            work.mkdir()
        for file, text in document.files.items():
            (work / file).write_text(text)
        text, chosen = script(document, mode, nightly, said)
        end = _bash(
            text,
            work,
            {
                "HOME": str(home),
                "PATH": f"{programs}:{os.environ['PATH']}",
                **({"QUOREDUCE_CACHE": cache} if cache else {}),
            },
        )
        codes = (
            [line.split() for line in (said / "codes").read_text().splitlines()] if (said / "codes").exists() else []
        )
        times = [float(second) for _, second in codes]
        left_out = [command for command in document.commands if command not in chosen]
        return Walked(
            _wrong(chosen, codes, said, end),
            len(codes),
            left_out,
            [b - a for a, b in zip([0.0, *times], times, strict=False)],
        )
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _bash(text: str, work: Path, env: dict[str, str]) -> int | None:
    """Run a script; None if it had to be killed."""
    keep = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("QUOREDUCE_", "PYTEST", "XDG_", "NUMBA_")) or k == "QUOREDUCE_CACHE"
    }
    process = subprocess.Popen(["bash", "-c", text], cwd=work, env={**keep, **env}, start_new_session=True)
    try:
        return process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wrong(chosen: list[Command], codes: list[list[str]], said: Path, end: int | None) -> str:
    """What went wrong first, in a few lines."""
    for n, command in enumerate(chosen):
        output = (said / str(n)).read_text(errors="replace") if (said / str(n)).exists() else ""
        where = f"{command.document}:{command.line}: {command.text}"
        if n >= len(codes):
            return (
                f"{where}\nhas not ended\n{output[-2000:]}"
                if end is None
                else f"{where}\nended the shell\n{output[-2000:]}"
            )
        if int(codes[n][0]) != command.code:
            return f"{where}\nended with {codes[n][0]}, not {command.code}\n{output[-2000:]}"
        if missing := is_printed(command.prints, output):
            return f"{where}\ndoes not print\n{missing}\nbut\n{output[-2000:]}"
    return ""


def main(arguments: Sequence[str]) -> int:
    """Walk through documents and say what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", default=DOCUMENTS, help="default: README.md and all of docs/")
    parser.add_argument("--mode", choices=MODES, action="append", help="default: both")
    parser.add_argument("--ci", action="store_true", help="leave out what is nightly, as CI does")
    parser.add_argument("--list", action="store_true", help="only list what is not run, and why")
    a = parser.parse_args(arguments)
    if a.list:
        for name in a.documents:
            for c in read(name, (ROOT / name).read_text()).commands:
                if c.mark:
                    print(f"{c.mark}: {name}:{c.line}: {c.text}: {c.left_out}")
        return 0
    failed = 0
    with checkout() as source:
        for mode in a.mode or MODES:
            with programs_of(mode) as (programs, cache):
                for name in a.documents:
                    start = time.monotonic()
                    walked = walk(name, mode, programs, source, not a.ci, cache)
                    failed += bool(walked.wrong)
                    print(
                        f"{mode}: {name}: {walked.run} commands, "
                        f"{time.monotonic() - start:.0f} s {walked.wrong or 'ok'}",
                        flush=True,
                    )
    return int(failed > 0)


def cache_here() -> str:
    """The kernels that are compiled here."""
    return os.environ.get("QUOREDUCE_CACHE") or str(Path.home() / ".cache" / "quoreduce")


@contextmanager
def programs_of(mode: str) -> Iterator[tuple[Path, str | None]]:
    """Where the commands of a mode are, and its own cache of kernels if it needs one."""
    if mode == "checkout":
        yield Path(sys.executable).parent, cache_here()
        return
    with installed() as programs:
        yield programs, str(programs.parent / "kernels")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
