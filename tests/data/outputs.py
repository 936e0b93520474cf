"""Outputs that tests of data/ write, and what they find in a folder."""

import re
from pathlib import Path

import pytest

from quoreduce.data.commit import OutputDir, UriOutput
from quoreduce.errors import OutputError

NEW, OLD = b'{"new": 1}', b'{"old": 1}'


def write(output: OutputDir | UriOutput, part: int, attempt: int, content: bytes) -> None:
    Path(output.attempt_path(part, attempt)).write_bytes(content)


def run(path: Path, contents: list[bytes], manifest: bytes = NEW, overwrite: bool = False, job_id: str = "job") -> None:
    """Do what a driver does: attempts of two replicas, one of each published, then the manifest."""
    output = OutputDir(str(path), overwrite, [], job_id)
    for part, content in enumerate(contents):
        write(output, part, 0, b"a losing attempt")
        write(output, part, 1, content)
        output.publish(part, 1)
    output.finish(manifest)


def contents_of(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir()}


def refused(path: object, overwrite: bool = False, inputs: tuple[object, ...] = (), job_id: str = "job") -> str:
    with pytest.raises(OutputError) as caught:
        OutputDir(str(path), overwrite, [str(one) for one in inputs], job_id)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def make(path: Path, kind: str) -> None:
    """Put something at ``path``."""
    if kind == "file":
        path.write_text("precious")
    elif kind == "link":
        (path.parent / "elsewhere").mkdir()
        path.symlink_to("elsewhere")
    elif kind == "broken":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    if kind in ("full", "parts", "foreign", "nested"):
        (path / "part-r-00000").write_bytes(b"old")
    if kind in ("full", "foreign", "nested", "deep"):
        (path / "_SUCCESS").write_bytes(OLD)
    if kind == "foreign":
        (path / "thesis.tex").write_text("precious")
    if kind == "linked":
        (path.parent / "thesis.tex").write_text("precious")
        (path / "part-r-00000").symlink_to(path.parent / "thesis.tex")
    if kind == "underscore":
        (path / "_private").write_text("precious")
    if kind == "nested":
        (path / "part-r-00001").mkdir()
    if kind == "deep":
        (path / "_private").mkdir()
        (path / "_private" / "thesis.tex").write_text("precious")


def named(trail: list[str]) -> list[str]:
    return [re.sub(r"\.[0-9a-f]{8}\.tmp$", ".HEX.tmp", name) for name in trail]


def cut_short(path: Path, contents: list[bytes], job_id: str = "job") -> None:
    """Leave what a durable job leaves whose driver was killed; the last part was not published yet."""
    output = OutputDir(str(path), False, [], job_id)
    output.journal_path.write_bytes(b"journal")
    (Path(output.blocks_path(0)) / "map").write_bytes(b"block")
    for part, content in enumerate(contents):
        write(output, part, 1, content)
    for part in range(len(contents) - 1):
        output.publish(part, 1)
    output.release()
    output.abort()


def uri_output(tmp_path: Path, overwrite: bool = False, inputs: tuple[str, ...] = ()) -> UriOutput:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return UriOutput(f"file://{tmp_path}/out", overwrite, inputs, "job", tmp_path / "scratch")
