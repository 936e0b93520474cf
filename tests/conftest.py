"""What all tests share: one Ray, the command line, the text, golden files; and the rule that CI skips nothing.

``--nightly`` runs the tests marked ``nightly`` too, and lets campaigns try more cases. Environment: ``CI`` makes
hypothesis repeat the same examples; ``QUOREDUCE_REQUIRE_ALL=1`` makes a test fail that would be skipped.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import settings

from quoreduce.protocol.compile import use_kernels

TESTS = Path(__file__).parent
REQUIRE_ALL = "QUOREDUCE_REQUIRE_ALL"
NIGHTLY = "QUOREDUCE_NIGHTLY"
LEFT_OUT = pytest.StashKey[dict[str, str]]()
FIRST = ("kernels", "data", "tracker")  # what the rest stands on
CLI_TIMEOUT_S = 180.0
NAMED_BYTES = 16  # of a parameter: longer ones are not named after what they say
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

settings.register_profile("here", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

use_kernels()  # tests and workers share the compiled kernels
SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
for number, handler in SIGNALS.items():
    signal.signal(
        number, handler
    )  # in a shell's background, or under nohup, they are ignored; by all that are started too
os.environ.pop("RAY_ADDRESS", None)  # a developer's cluster is not what is under test


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden; then review git diff")
    parser.addoption(
        "--nightly", action="store_true", help="run tests marked nightly too, and more cases of each campaign"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("nightly"):
        os.environ[NIGHTLY] = "1"  # modules read it when they are imported


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run tests of what others stand on first, and those that need Ray last; whoever asks for the cluster needs Ray."""
    if not config.getoption("nightly"):
        left_out = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        if item.get_closest_marker("ray") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("ray"))
    if os.environ.get("PYTEST_XDIST_WORKER"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (_shares_ray(item), item.path not in slow))
    else:
        items.sort(key=lambda item: (item.get_closest_marker("ray") is not None, _rank(item.path)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """What is drawn anew in each process (a key, a signature, a compressed file) gets no name of its own."""
    drawn = (isinstance(val, bytes) and len(val) > NAMED_BYTES) or (isinstance(val, int) and abs(val) >= 1 << 64)
    return argname if drawn else None


def _shares_ray(item: pytest.Item) -> bool:
    """Whether the test uses the one Ray of the session; one with a Ray of its own names another group."""
    group = item.get_closest_marker("xdist_group")
    return group is not None and group.args == ("ray",)


def _rank(path: Path) -> int:
    folder = path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else ""
    return FIRST.index(folder) if folder in FIRST else len(FIRST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: each file is one process's; what needs Ray is too, after all else: there is one Ray. Long files
    begin.
    """
    from xdist.scheduler import LoadGroupScheduling

    class Scheduling(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            group = super()._split_scope(nodeid)
            return str(group) if group == "ray" else nodeid.split("::", 1)[0]

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if why := dict(item.user_properties).get("left out"):
            item.config.stash.setdefault(LEFT_OUT, {})[item.nodeid] = str(why)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = session.config.stash.get(LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash.setdefault(LEFT_OUT, {}).update(getattr(node, "workeroutput", {}).get("left out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tests that were left out, and why; and what campaigns report (fixture ``says``)."""
    left_out = config.stash.get(LEFT_OUT, {})
    if left_out:
        terminalreporter.section(f"{len(left_out)} TESTS LEFT OUT: make venv-all, and a JDK", yellow=True)
    for name, reason in left_out.items():
        terminalreporter.write_line(f"{name}: {reason}")
    reports = [
        report for found in terminalreporter.stats.values() for report in found if isinstance(report, pytest.TestReport)
    ]
    for report in sorted(reports, key=lambda report: report.nodeid):
        for name, text in report.user_properties if report.when == "call" else ():
            if name == "says":
                terminalreporter.write_line(str(text))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))


def _refuse_skip(report: Report) -> Report:
    """Turn a skip into a failure that gives its reason, if all tests are required. (An expected failure stays one.)"""
    if os.environ.get(REQUIRE_ALL) == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_ALL}=1 allows no skips. {reason}"
    return report


@pytest.fixture(autouse=True)
def _nobody_is_suspected(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each test has a record of suspects of its own, which does not exist yet; never that of the user's home."""
    monkeypatch.setenv("QUOREDUCE_STATE", str(tmp_path_factory.getbasetemp() / f"state-{secrets.token_hex(6)}"))


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def cli() -> Callable[..., Ended]:
    """``cli("run", "wordcount", text, out)`` runs the command line as its own process: (exit code, stdout, stderr)."""

    def run(
        *arguments: object,
        timeout_s: float = CLI_TIMEOUT_S,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Ended:
        command = [sys.executable, "-m", "quoreduce.cli", *map(str, arguments)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
                cwd=cwd, env={**os.environ, **(env or {})},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"{' '.join(command)}: not finished after {timeout_s:g} s; stderr so far: {error.stderr!r}")
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module ``ray``, connected to the one local Ray of this session, which ``--on ray`` in this process uses too.

    A test that needs another cluster, or none, runs in a process of its own.
    """
    importlib.import_module("quoreduce.runtime.ray")  # sets Ray's environment, which counts only before:
    import ray

    if "PYTEST_XDIST_WORKER" in os.environ:  # the group of tests on Ray is one process's
        (tmp_path_factory.getbasetemp().parent / "ray").touch(exist_ok=False)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def kjv() -> Path:
    """The King James Version: 4.4 MB of text, one verse a line."""
    return TESTS / "data" / "kjv.txt"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden("a/b.json", text)`` asserts that ``tests/golden/a/b.json`` says this, or writes it
    (``--update-golden``).
    """

    def check(name: str, text: str) -> None:
        path = TESTS / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
            return
        wanted = path.read_bytes().decode() if path.exists() else ""
        difference = difflib.unified_diff(wanted.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
        if text != wanted:
            pytest.fail("\n".join([*difference, "meant? pytest --update-golden, then review git diff"]))

    return check
