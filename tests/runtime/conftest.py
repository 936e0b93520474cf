"""Sessions that all tests of the engine share: starting workers costs more than most of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attesting import Root
from durables import SPLIT_MB, interrupted
from runs import WORDCOUNT, Runner, Sessions, coreutils, parts_of

from quoreduce import Options, Session
from quoreduce.commands.attest.command import worker_environment
from quoreduce.protocol.compile import ensure_kernels
from quoreduce.protocol.options import Place
from quoreduce.trust.measure import environment
from quoreduce.trust.node import setup_node

KJV_LINES = 400  # 25 kB or so


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """So that no test has to wait for that, or to see it said."""
    ensure_kernels()


def _sessions(stack: ExitStack, folder: Path) -> Sessions:
    opened: dict[tuple[str, int], Session] = {}
    warm = folder / "warm.txt"
    warm.write_text("warm up\n")

    def get(on: str, workers: int) -> Session:
        session = opened.get((on, workers))
        if session is None:
            session = opened[on, workers] = stack.enter_context(
                Session(Place(on, workers, "worker", store=str(folder / "store")))  # type: ignore[arg-type]
            )  # fmt: skip
            output = folder / f"{on}-{workers}"
            session.run(WORDCOUNT, [str(warm)], str(output), Options(f=min(1, workers - 1)))
        return session

    return get


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    """Sessions inline and on local processes, by (executor, workers)."""
    with ExitStack() as stack:
        yield _sessions(stack, tmp_path_factory.mktemp("sessions"))


@pytest.fixture(scope="session")
def actors(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    """Sessions on the one local Ray."""
    with ExitStack() as stack:
        yield _sessions(stack, tmp_path_factory.mktemp("ray-sessions"))


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Runner:
    """``run(executor, job, input, workers=2, **options)`` -> (result, parts)."""
    return Runner(lambda on, n: request.getfixturevalue("actors" if on == "ray" else "processes")(on, n), tmp_path)


@pytest.fixture(scope="session")
def verses(kjv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text: the beginning of the King James Version, with bytes in it that a text would not have."""
    path = tmp_path_factory.mktemp("verses") / "verses.txt"
    lines = kjv.read_bytes().split(b"\n")[:KJV_LINES]
    path.write_bytes(b"\n".join(lines) + b"\r\n\x00NUL \xff\xfe \t" + b"long" * 300 + b"\n\f no newline at the end")
    return path


@pytest.fixture(scope="session")
def verses_counted(verses: Path) -> list[tuple[bytes, int]]:
    """What coreutils count in the small text."""
    return coreutils(verses.read_bytes())


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 sort records, every third of which has a key that others have too."""
    from quoreduce_kernels.gensort import generate_records

    data = generate_records(0, 2000, "ascii").copy()
    data[::3, :9] = np.frombuffer(b"many-keys", np.uint8)
    path = tmp_path_factory.mktemp("records") / "records"
    path.write_bytes(data.tobytes())
    return path


@pytest.fixture(scope="session")
def records_sorted(records: Path) -> bytes:
    """The records in order of their keys; those with equal keys in the order of the input."""
    raw = records.read_bytes()
    return b"".join(sorted((raw[i : i + 100] for i in range(0, len(raw), 100)), key=lambda record: record[:10]))


@pytest.fixture(scope="session")
def environments() -> tuple[str, ...]:
    """Digests of the environments of this process, where the workers of ``inline`` are, and of a worker process."""
    return tuple(sha256(document).hexdigest() for document in (environment(), worker_environment()))


@pytest.fixture(scope="session")
def software(environments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Root:
    """µTPMs, which vouch for the workers of this machine."""
    state = tmp_path_factory.mktemp("software") / "state"
    return Root("utpm", state, setup_node(state, "utpm", environments))


@pytest.fixture
def sessions(request: pytest.FixtureRequest) -> Sessions:
    """``sessions(executor, workers=2)``: the shared ones."""
    return lambda on, n=2: request.getfixturevalue("actors" if on == "ray" else "processes")(on, n)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The path of an output, in a folder of its own."""
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "out"


@pytest.fixture
def expected(sessions: Sessions, verses: Path, tmp_path: Path) -> list[bytes]:
    """The parts of the small text's word count as durable jobs run it, without interruptions."""
    session = sessions("inline")
    session.run(WORDCOUNT, [str(verses)], str(tmp_path / "expected"), Options(reducers=3, split_mb=SPLIT_MB))
    return parts_of(tmp_path / "expected")


@pytest.fixture
def half_done(sessions: Sessions, verses: Path, out: Path) -> Session:
    """A session, and a durable job that was interrupted when all of its maps were agreed on and some of its reduces."""
    return interrupted(
        "half done", sessions("inline"), verses, out, lambda done: any(kind == "reduce" for kind, _ in done)
    )


@pytest.fixture
def one_mapped(sessions: Sessions, verses: Path, out: Path) -> Session:
    """The same, interrupted when a map or two were agreed on."""
    return interrupted("one mapped", sessions("inline"), verses, out, lambda done: len(done) > 0)
