"""Whether a file is this user's alone, and so are the folders above it as far as others could put another in its
place.
"""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from quoreduce import ownership
from quoreduce.ownership import why_foreign, why_foreign_fd, why_foreign_itself

OTHER = 54321
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir(mode=0o755)
    path.write_bytes(b"")
    path.chmod(0o600)
    return path


def of_fd(path: Path, ours_only: bool = True) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return why_foreign_fd(fd, ours_only)
    finally:
        os.close(fd)


def test_a_file_of_ours_in_a_folder_of_ours(file: Path) -> None:
    assert why_foreign(file) == of_fd(file) == of_fd(file.parent) == ""


@root
@pytest.mark.parametrize(
    ("mode", "why"), [(0o602, "everybody"), (0o666, "everybody"), (0o620, "the group"), (0o1777, "everybody")]
)
def test_a_file_that_others_may_write(file: Path, mode: int, why: str) -> None:
    os.chown(file, -1, OTHER)
    file.chmod(mode)
    assert why_foreign(file).startswith("can be written by " + why)
    assert of_fd(file) == why_foreign(file)


@root
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o772])
def test_a_folder_in_which_others_may_put_another_file(file: Path, mode: int) -> None:
    os.chown(file.parent, -1, OTHER)
    file.parent.chmod(mode)
    assert why_foreign(file).startswith(f"its folder {file.parent} can be written by ")
    assert of_fd(file) == why_foreign_itself(file) == "", "that is not asked of an open file"


def test_a_folder_like_tmp_is_good_enough(file: Path) -> None:
    file.parent.chmod(0o1777)
    assert why_foreign(file) == ""


def test_a_group_of_the_user_alone_is_no_group_of_others(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many systems make one for each user, and let it write what he makes."""
    me = pwd.getpwuid(os.geteuid())
    file.chmod(0o660)
    members: list[str] = []
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((me.pw_name, "x", gid, members)))
    assert why_foreign(file) == ""
    members.append("mallory")
    assert why_foreign(file).startswith("can be written by the group")
    members.clear()
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("users", "x", gid, members)))
    assert why_foreign(file) == "can be written by the group users"


@root
def test_a_file_of_another_user(file: Path) -> None:
    os.chown(file, OTHER, -1)
    assert why_foreign(file) == of_fd(file) == of_fd(file, False) == f"belongs to another user (uid {OTHER})"


@root
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_folder_of_another_user(file: Path, mode: int) -> None:
    """He can rename what is in it, sticky or not."""
    os.chown(file.parent, OTHER, -1)
    file.parent.chmod(mode)
    assert why_foreign(file) == f"its folder {file.parent} belongs to another user (uid {OTHER})"


def test_what_is_roots_is_trusted_where_that_is_enough(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    ownership._overflow_uid.cache_clear()
    owner = os.stat(file).st_uid
    assert why_foreign(file) != ""
    if owner == 0:
        assert why_foreign(file, ours_only=False) == ""


def test_a_link_is_looked_at_itself(file: Path) -> None:
    link = file.parent / "link"
    link.symlink_to("/etc/passwd")
    assert why_foreign(link) == why_foreign_itself(link) == "is a symbolic link"
    with pytest.raises(FileNotFoundError):
        why_foreign_itself(file.parent / "none")
