"""README.md and docs/ as printed: what is short is run here, the rest by tests/campaigns/docs.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docs
import pytest

from quoreduce.cli import main

IN_CHECKOUT = (
    "docs/guide/attestation.md", "docs/guide/determinism.md", "docs/guide/durable.md", "docs/guide/stragglers.md",
    "docs/guide/suspects.md", "docs/guide/chaos.md", "docs/design/campaigns.md", "docs/design/simulator.md",
)  # fmt: skip
FROM_WHEEL = (
    "README.md", "docs/tutorial.md",
    *(pytest.param(name, marks=pytest.mark.nightly) for name in ("docs/guide/batch-jobs.md", "docs/guide/ci.md")),
)  # fmt: skip
NOT_RUN_MOST, NIGHTLY_MOST = 20, 50  # commands
ROOT = docs.ROOT


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    with docs.checkout() as folder:
        yield folder


@pytest.fixture(scope="module")
def wheel() -> Iterator[Path]:
    with docs.installed() as programs:
        yield programs


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_CHECKOUT)
def test_the_commands_of_a_page_run_in_a_fresh_checkout(name: str, source: Path) -> None:
    with docs.programs_of("checkout") as (programs, cache):
        walked = docs.walk(name, "checkout", programs, source, nightly=False, cache=cache)
    assert not walked.wrong, walked.wrong
    assert walked.run > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_WHEEL)
def test_what_a_newcomer_reads_runs_from_an_installed_wheel(name: str, wheel: Path, source: Path) -> None:
    """In an empty folder, with nothing but what was installed; with --nightly kernels are compiled, as on the first
    use.
    """
    cache = str(wheel.parent / "kernels") if os.environ.get("QUOREDUCE_NIGHTLY") else docs.cache_here()
    walked = docs.walk(name, "wheel", wheel, source, nightly=False, cache=cache)
    assert not walked.wrong, walked.wrong
    assert walked.run >= 5


def test_the_wheel_has_the_modules_of_the_three_packages_and_nothing_else(wheel: Path) -> None:
    (path,) = wheel.parent.parent.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        names = {name: opened.read(name) for name in opened.namelist() if ".dist-info/" not in name}
    tops = {"quoreduce": "engine", "quoreduce_kernels": "kernels", "quoreduce_gridmix": "gridmix"}
    tracked = subprocess.run(
        ["git", "ls-files", *tops.values()], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name.partition("/")[2] for name in tracked if (ROOT / name).is_file()}
    assert {name for name in names if name.split("/")[0] in tops} == set(names)
    assert ours <= set(names)
    assert all((ROOT / tops[name.split("/")[0]] / name).read_bytes() == content for name, content in names.items())


def test_what_is_left_out_is_bounded_and_says_why(says: Callable[[str], None]) -> None:
    commands = [
        c for name in docs.DOCUMENTS for c in docs.read(name, (ROOT / name).read_text()).commands if c.text.strip()
    ]
    not_run, nightly = ([c for c in commands if c.mark == mark] for mark in ("not run", "nightly"))
    assert len(not_run) <= NOT_RUN_MOST
    assert len(nightly) <= NIGHTLY_MOST
    assert all(len(c.left_out.split()) >= 2 for c in (*not_run, *nightly))
    says(
        f"docs: {len(commands)} commands; {len(nightly)} are run by tests/campaigns/docs.py only, "
        f"{len(not_run)} are not run:"
    )
    for c in not_run:
        says(f"  {c.document}:{c.line}: {c.text.splitlines()[0][:70].strip()}: {c.left_out}")


@pytest.mark.parametrize("name", docs.DOCUMENTS)
def test_every_command_stands_in_a_block_that_is_run(name: str) -> None:
    """None in a block of another kind, or in one that is indented only."""
    text = (ROOT / name).read_text()
    for block in docs.blocks(text):
        if block.language not in ("sh", "console", "text", "yaml", "python", "json", "mermaid"):
            commands = [
                line
                for line in block.lines
                if line.split(" ")[0] in docs.FIRST_WORDS and not line.startswith("quoreduce: ")
            ]
            assert not commands, f"{name}:{block.line}: fence it as sh or console"
    indented = re.findall(
        rf"^    ({'|'.join(map(re.escape, docs.FIRST_WORDS))}) .*$", re.sub(r"(?ms)^```.*?^```", "", text), re.MULTILINE
    )
    assert not indented


INLINE = re.compile(r"`([^`\n]+)`")
MODULE = re.compile(r"python3? -m (bench[\w.]*)")


def inline(prefix: str) -> list[tuple[str, str]]:
    """(document, command) of all commands within text that begin so."""
    found = []
    for name in docs.DOCUMENTS:
        text = re.sub(r"(?ms)^```.*?^```", "", (ROOT / name).read_text())
        found += [(name, text) for text in INLINE.findall(text) if re.match(rf"(?:\.venv/bin/)?{prefix}", text)]
    return found


def test_targets_of_make_and_scripts_that_are_named_in_text_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = inline("make ")
    assert named
    for document, command in named:
        assert command.split()[1] in targets, f"{document}: {command}"
        if base := re.search(r"BASE=(\S+)", command):
            assert re.fullmatch(r"HEAD(~\d+)?", base[1]), f"{document}: {base[1]} names no commit of every checkout"
    for document, command in inline("python"):
        words = command.split()
        if module := MODULE.search(command):
            path = ROOT / module[1].replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{document}: {command}"
        elif len(words) > 1 and words[1].endswith(".py") and "/" in words[1]:
            assert (ROOT / words[1]).is_file(), f"{document}: {command}"


def test_options_of_commands_that_are_named_in_text_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    helps: dict[tuple[str, ...], str] = {}
    for document, command in inline("quoreduce "):
        words = [word for word in command.split()[1:] if re.fullmatch(r"[a-z]+|--[a-z-]+", word)]
        verbs = tuple(word for word in words[:2] if not word.startswith("--"))[
            : 2 if words[:1] in (["simulate"], ["vm"], ["attest"], ["gridmix"]) else 1
        ]
        if not verbs:
            continue
        if verbs not in helps:
            with pytest.raises(SystemExit) as left:
                main([*verbs, "--help"])
            helps[verbs] = capsys.readouterr().out
            assert left.value.code == 0, f"{document}: {command}"
        for option in (word for word in words if word.startswith("--") and word != "--help"):
            assert re.search(rf"{option}\b", helps[verbs]), f"{document}: {command}: no {option}"


def walked(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nightly: bool = False) -> docs.Walked:
    """A walk through a document of this text."""
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    return docs.walk("page.md", "wheel", Path(sys.executable).parent, tmp_path, nightly)


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ("```sh\ntrue\n```", ""),
        ("```sh\nfalse\n```", "ended with 1, not 0"),
        ("```sh\nfalse   # exit code 1\n```", ""),
        ("```sh\nexit 3\n```", "ended the shell"),
        ("```sh\ntest -e left || touch left; test ! -e /nowhere\n```", ""),
        ("```sh\nX=1\n```\n```sh\ntest $X = 1\n```", ""),
        ("```sh\nprintf '%s' \\\n  a >b\ntest $(cat b) = a\n```", ""),
        ("```sh\nsleep 1000 &\n```", ""),
        ("<!-- not run: it is wrong -->\n```sh\nfalse\n```", ""),
        ("<!-- nightly: it is wrong -->\n```sh\nfalse\n```", ""),
        ("<!-- not run (false): it is wrong -->\n```sh\nfalse\ntrue\n```", ""),
        ("<!-- not run (true): it is right -->\n```sh\nfalse\ntrue\n```", "ended with 1"),
        ("```text\nfalse\n```", ""),
        ("### A file: `one.py`\n```python\nprint(7)\n```\n```console\n$ python one.py\n7\n```", ""),
        ("```console\n$ echo 1 a; echo 3.2 s, abc\n1 a\n4.71 s, ...\n```", ""),
        ("```console\n$ echo 1 a; echo 2 b\n2 b\n1 a\n```", "does not print\n1 a"),
        ("```console\n$ echo digest 35d5afa8a1d7e2b7\ndigest 35d5afa8a1d7e2b8\n```", "does not print"),
    ],
)
def test_a_walk_finds_what_is_wrong(block: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = walked(f"# Page\n\n{block}\n", tmp_path, monkeypatch).wrong
    assert wrong in said
    assert bool(wrong) == bool(said)


def test_a_command_that_is_never_run_is_not_run_in_a_nightly_block_either() -> None:
    text = "<!-- not run (sudo): installs -->\n<!-- nightly: long -->\n```sh\nsudo apt-get\nls\n```\n"
    for comments in (text, "\n".join([*text.splitlines()[1::-1], *text.splitlines()[2:]])):
        assert [command.mark for command in docs.read("page", comments).commands] == ["not run", "nightly"]


def test_nightly_commands_are_run_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<!-- nightly: it is long -->\n```sh\nfalse\n```\n"
    assert "ended with 1" in walked(page, tmp_path, monkeypatch, nightly=True).wrong
