"""Pages of the documentation site that are made when it is built (``make docs``), and links that lead out of ``docs/``.

The command reference is made of the parsers of the commands.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "ARCHITECTURE.md": "design/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "README.md": "index.md",
}
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
SEQUENCE = re.compile(r"^```mermaid\nsequenceDiagram\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:class|meth|func|mod|data):(?=<code>)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files in ``docs/``: the command reference, and documents of the top folder."""
    pages = {"reference/commands.md": command_reference()}
    pages |= {page: (ROOT / name).read_text() for name, page in ROOT_PAGES.items()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links between documents, as they are in the repository, links between pages of the site."""
    here = page.file.src_uri
    source = next((name for name, made in ROOT_PAGES.items() if made == here), f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = ROOT_PAGES.get(path) or path.removeprefix("docs/")
        return f"]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(link, SEQUENCE.sub(lambda found: sequence_table(found[1]), markdown))


def sequence_table(diagram: str) -> str:
    """A sequence diagram as a table of its messages. The script that draws mermaid would have to come from
    elsewhere.
    """
    names: dict[str, str] = {}
    rows = ["| step | from | to | message |", "|---|---|---|---|"]
    for line in filter(str.strip, diagram.splitlines()):
        if named := re.fullmatch(r"\s*participant (\w+) as (.+)", line):
            names[named[1]] = named[2]
        elif sent := re.fullmatch(r"\s*(\w+)--?>>(\w+): (.+)", line):
            source, target, message = names[sent[1]], names[sent[2]], _text(sent[3])
            rows.append(f"| {len(rows) - 1} | {source} | {'-' if source == target else target} | {message} |")
        else:
            raise PluginError(f"a line of a sequence diagram is neither a participant nor a message: {line.strip()}")
    return "\n".join(rows)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Leave the names of roles out that docstrings give before names of ours."""
    return ROLE.sub("", html)


def parser_of(*words: str) -> argparse.ArgumentParser:
    """The parser that answers ``quoreduce WORDS --help``."""
    from quoreduce import cli

    parser = cli.parser_of(words[0]) if words else cli.parser()
    for word in words[1:]:
        parser = next(a.choices[word] for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return parser


def subcommands(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """The commands of a parser with what each does, in order."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [(choice.dest, choice.help or "") for action in found for choice in action._choices_actions]


def command_reference() -> str:
    """The page of all commands, as Markdown."""
    top = parser_of()
    lines = ["# Commands", "", "Made from the parsers of the commands. Each command prints the same with `--help`.", ""]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| [`quoreduce {name}`](#quoreduce-{name}) | {_text(text)} |" for name, text in subcommands(top)]
    lines += ["", *_epilog(top)]
    for name, _ in subcommands(top):
        lines += _described((name,), 2)
    return "\n".join(lines) + "\n"


def _described(words: tuple[str, ...], level: int) -> Iterator[str]:
    parser = parser_of(*words)
    yield from (f"{'#' * level} quoreduce {' '.join(words)}", "")
    usage = parser.format_usage().removeprefix("usage: ").strip()
    yield from ("```text", *(line.rstrip() for line in usage.splitlines()), "```", "")
    if parser.description:
        yield from (_text(parser.description), "")
    for group in parser._action_groups:
        actions = [
            a
            for a in group._group_actions
            if a.help is not argparse.SUPPRESS and not isinstance(a, argparse._HelpAction | argparse._SubParsersAction)
        ]
        if actions:
            yield from (f"| {_text(group.title or '')} | |", "|---|---|")
            yield from (f"| {_names(action)} | {_text(_help(parser, action))} |" for action in actions)
            yield ""
    if parser.epilog and not parser.epilog.startswith("exit codes"):
        yield from _epilog(parser)
    for name, _ in subcommands(parser):
        yield from _described((*words, name), level + 1)


def _epilog(parser: argparse.ArgumentParser) -> list[str]:
    return ["```text", *(parser.epilog or "").strip().splitlines(), "```", ""] if parser.epilog else []


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _names(action: argparse.Action) -> str:
    choices = "{" + ", ".join(map(str, action.choices)) + "}" if action.choices else ""
    value = action.metavar or choices or action.dest.upper()
    value = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return f"`{value}`"
    shown = ", ".join(action.option_strings)
    return f"`{shown}`" if action.nargs == 0 else f"`{shown} {value}`"


def _text(text: str) -> str:
    """Plain text for a cell of a table or a paragraph: nothing in it is markup."""
    plain = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", plain)
