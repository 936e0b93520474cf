"""The documentation site: it is built without a warning, asks nobody else for anything, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from quoreduce import __all__ as public_names
from quoreduce.cli import main

ROOT = Path(__file__).parents[2]
TOOLS = ("mkdocs", "material", "mkdocstrings_handlers")
TIMEOUT_S = 300
pytestmark = pytest.mark.xdist_group("site")  # it is built once
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The site, built strictly: a link or an anchor that leads nowhere is an error."""
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip("mkdocs-material and mkdocstrings are not installed: make docs, or make venv-all")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(site: Path, page: str) -> str:
    return (site / page).read_text()


class Loads(HTMLParser):
    """What a browser fetches for a page by itself, and what would make scripts fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.drawn: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev"):
            return
        if (url := values.get(LOADED.get(tag, ""))) is not None:
            self.fetched.append(url)
        if "mermaid" in (values.get("class") or "").split():  # the theme's script would fetch mermaid from elsewhere
            self.drawn.append(tag)


def test_no_page_loads_a_script_a_style_sheet_or_a_picture_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        found = Loads()
        found.feed(page.read_text())
        assert found.fetched, page
        assert not [url for url in found.fetched if re.match(r"([a-z]+:)?//", url)], page
        assert not found.drawn, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?([a-z]+:)?//", sheet.read_text()), sheet


def test_an_external_script_would_be_found() -> None:
    found = Loads()
    found.feed(
        '<link rel="stylesheet" href="//cdn/x.css"><script src="https://cdn/x.js"></script><pre class="mermaid">'
    )
    assert found.fetched == ["//cdn/x.css", "https://cdn/x.js"]
    assert found.drawn == ["pre"]


def test_every_command_and_option_is_in_the_command_reference(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = text_of(site, "reference/commands.html")
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z]+) {2,}", capsys.readouterr().out, re.MULTILINE)
    assert "run" in commands
    for command in commands:
        assert f">quoreduce {command}<" in page
    for words in (["run"], ["vm", "launch"], ["attest", "verify"], ["simulate", "run"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
        section = page[page.index(f">quoreduce {' '.join(words)}<") :]
        assert options
        assert not [option for option in options if option not in section], words


def test_a_sequence_diagram_is_a_table_of_its_messages(site: Path) -> None:
    source = (ROOT / "docs" / "design" / "vm-protocols.md").read_text()
    page = text_of(site, "design/vm-protocols.html")
    messages = re.findall(r"^    \w+--?>>\w+: (.+)$", source, re.MULTILINE)
    assert len(messages) > 40
    assert "sequenceDiagram" not in page
    assert not [message for message in messages if f"<td>{escape(message, quote=False)}</td>" not in page]


def test_every_public_name_is_in_the_python_reference(site: Path) -> None:
    page = text_of(site, "reference/api.html")
    assert not [name for name in public_names if name != "__version__" and f'id="quoreduce.{name}"' not in page]


def test_every_variable_of_ours_is_on_the_page_of_variables() -> None:
    page = (ROOT / "docs" / "reference" / "environment.md").read_text()
    sources = [path for top in ("engine", "kernels", "gridmix", "bench") for path in (ROOT / top).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r"\b(?:QUOREDUCE|XDG)_[A-Z_]+\b", path.read_text())}
    assert "QUOREDUCE_CACHE" in read
    assert sorted(name for name in read if f"`{name}`" not in page) == []


def test_every_rfc_that_is_cited_is_among_the_references() -> None:
    page = (ROOT / "docs" / "reference" / "references.md").read_text()
    files = [path for top in ("engine", "kernels", "gridmix", "docs") for path in (ROOT / top).rglob("*.*")]
    texts = [path.read_text() for path in files if path.suffix in (".py", ".md")]
    cited = {number for text in texts for number in re.findall(r"RFC ?(\d{4})", text)}
    assert "9162" in cited
    assert sorted(number for number in cited if f"/rfc{number})" not in page) == []


def test_every_document_of_docs_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 15
    assert not [page for page in pages if f": {page}\n" not in listed]


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", readme)
    assert len(links) > 10
    assert not [link for link in links if not link.startswith("https://") and not (ROOT / link).is_file()]
