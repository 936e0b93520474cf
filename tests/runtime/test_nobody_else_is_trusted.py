"""What others can write is not believed: policies, the record of suspects, modules in the current directory."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quoreduce.driver import suspects
from quoreduce.driver.suspects import Book, Record
from quoreduce.errors import AttestationError, HostError, InputError
from quoreduce.trust.node import read_policy, setup_node

OTHER = 54321
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir(mode=0o700)
    setup_node(tmp_path / "state", "utpm", ["00" * 32])
    return tmp_path / "state" / "policy.json"


@pytest.fixture
def book(tmp_path: Path) -> Book:
    book = Book(tmp_path / "memory" / "suspects.json")
    book.change(lambda places: places.update({"host/core1": Record(lost=1)}), 0.0)
    return book


def test_a_policy_of_ones_own_is_read(policy: Path) -> None:
    assert read_policy(str(policy)).environments == ("00" * 32,)


@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_policy_that_others_may_write_is_refused(which: str, policy: Path) -> None:
    (policy if which == "file" else policy.parent).chmod(0o777)
    with pytest.raises(AttestationError, match="can be written by everybody, so it says what others want"):
        read_policy(str(policy))


@root
def test_a_policy_of_another_user_is_refused_and_so_is_his_folder(policy: Path) -> None:
    os.chown(policy, OTHER, -1)
    with pytest.raises(AttestationError, match=rf"belongs to another user \(uid {OTHER}\)"):
        read_policy(str(policy))
    os.chown(policy.parent, OTHER, -1)
    with pytest.raises(HostError, match="keys are not kept there"):
        setup_node(policy.parent, "utpm", ["00" * 32])


def test_the_record_of_suspects_is_private(book: Book) -> None:
    assert book.path.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in book.path.parent.iterdir()} == {0o600}
    assert list(book.read()) == ["host/core1"]


def test_a_record_that_others_may_write_is_not_believed(book: Book) -> None:
    book.path.chmod(0o666)
    with pytest.raises(InputError, match="can be written by everybody: delete it"):
        book.read()


@root
def test_a_record_of_another_user_is_not_believed(book: Book) -> None:
    os.chown(book.path, OTHER, -1)
    with pytest.raises(InputError, match=rf"belongs to another user \(uid {OTHER}\)"):
        book.read()


def test_a_record_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "suspects.json")
    with pytest.raises(InputError, match="cannot be read: it is a pipe"):
        Book(tmp_path / "suspects.json").read()


def test_a_lock_that_is_never_let_go_is_waited_for_no_longer_than_that(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "LOCK_WAIT_S", 0.1)
    with open(book.path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="has held its lock"):
            book.change(lambda places: None, time.time())


def test_a_module_in_the_current_directory_is_not_run(cli: Callable[..., Any], tmp_path: Path) -> None:
    """Workers would take it for a library: the directory may be anybody's, such as /tmp."""
    (tmp_path / "in").write_text("to be or not to be\n")
    for name in ("blake3", "msgspec", "numba", "cloudpickle", "quoreduce_kernels"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'mark')!r}, 'a').write(__name__)\nraise SystemExit(9)\n"
        )
    script = (
        "import sys; from quoreduce.cli import main; sys.exit(main(sys.argv[1:]))"  # as the installed command has it
    )
    words = ["run", "wordcount", "in", "out", "--on", "local", "--workers", "2", "--domain", "worker"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not (tmp_path / "mark").exists()
    assert done.returncode == 0, done.stderr
