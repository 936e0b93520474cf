"""Real TPMs in software for the tests of this folder. Needs ``apt-get install -y --no-install-recommends swtpm
swtpm-tools``.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quoreduce.trust.swtpm import Swtpm, SwtpmSetup, setup


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> SwtpmSetup:
    """A state of swtpm, set up; tests that leave marks on a TPM take a copy (``state``)."""
    for program in ("swtpm", "swtpm_setup", "swtpm_localca"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install swtpm swtpm-tools)")
    return setup(tmp_path_factory.mktemp("swtpm") / "state")


@pytest.fixture
def state(made: SwtpmSetup, tmp_path: Path) -> Path:
    """A copy of the state, this test's own: the same TPM."""
    return Path(shutil.copytree(made.state, tmp_path / "state"))


@pytest.fixture
def start(made: SwtpmSetup) -> Iterator[Callable[..., Swtpm]]:
    """``start(scheme=, ek=, ...)`` runs swtpm on the shared state; it is stopped at the end of the test."""
    running: list[Swtpm] = []

    def run(**options: object) -> Swtpm:
        running.append(Swtpm(made.state, **options))
        return running[-1]

    yield run
    for one in running:
        one.close()


@pytest.fixture
def swtpm(start: Callable[..., Swtpm]) -> Swtpm:
    """A running swtpm."""
    return start()


@pytest.fixture
def listening(state: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """swtpm behind two Unix sockets, and its TCTI: (``swtpm:path=...``, its process)."""
    one, two = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with tempfile.TemporaryDirectory(prefix="t") as short, one, two:  # short: a socket's path has at most 107 bytes
        for server, name in ((one, "s"), (two, "s.ctrl")):
            server.bind(f"{short}/{name}")
            server.listen(8)  # before swtpm runs, so that nobody has to wait for it
        line = [
            "swtpm", "socket", "--tpm2", "--tpmstate", "dir=tpm", "--server", f"type=unixio,fd={one.fileno()}",
            "--ctrl", f"type=unixio,fd={two.fileno()}", "--flags", "not-need-init,startup-clear",
        ]  # fmt: skip
        process = subprocess.Popen(line, cwd=state, pass_fds=(one.fileno(), two.fileno()), stderr=subprocess.DEVNULL)
        one.close()
        two.close()
        try:
            yield f"swtpm:path={short}/s", process
        finally:
            process.kill()
            process.wait()
