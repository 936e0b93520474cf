"""``quoreduce vm``: without QEMU and swtpm, with wrong arguments, with nothing there: one line that says what to do."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quoreduce.commands.vm.command import main
from quoreduce.commands.vm.operators import owners_of
from quoreduce.commands.vm.options import parser
from quoreduce.errors import QuoreduceError, UsageError, VmError
from quoreduce.vm import boot, wire
from quoreduce.vm.agents.folder import StateFolder
from quoreduce.vm.agents.start import listed_owners
from quoreduce.vm.agents.user import own_id
from quoreduce.vm.user_record import LeftCopy, Vm, encode_vm

COMMANDS = (
    "image", "server", "manager", "policy", "measure", "trust", "launch", "attest", "migrate", "backup", "restore",
    "terminate",
    "resume", "list", "insider", "attack", "demo", "update", "key",
)  # fmt: skip
POLICY = {
    "format": "quoreduce policy 1", "environments": ["ab" * 32], "backends": ["utpm"], "roots": [],
    "registrar": "cd" * 32,
}  # fmt: skip


@pytest.fixture
def vm(cli: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``vm("list")`` runs ``quoreduce vm list`` with a folder of its own and an empty PATH: QEMU and swtpm are not
    there.
    """
    env = {"QUOREDUCE_VM": str(tmp_path / "user"), "PATH": str(tmp_path / "nothing"), "QUOREDUCE_VM_MANAGER": ""}
    return lambda *arguments: cli("vm", *arguments, env=env, cwd=tmp_path)


def test_every_command_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            parser().parse_args([command, "--help"])
        assert caught.value.code == 0
        assert len(capsys.readouterr().out) > 100


INSTALL = "sudo apt-get install qemu-system-x86 seabios swtpm swtpm-tools"


def test_without_qemu_and_swtpm_it_is_said_what_to_install(vm: Callable[..., Any], tmp_path: Path) -> None:
    ended = vm("attack")
    assert ended.code == 6
    assert INSTALL in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [("demo",), ("server", "--state", "s1", "--manager", "unix:m"), ("policy", "--state", "s1"), ("measure",)],
    ids=lambda arguments: arguments[0],
)
def test_a_server_looks_for_programs_on_a_path_of_its_own(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "PATH", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VmError, match=INSTALL):
        main(arguments)
    assert not any(tmp_path.iterdir())


def test_the_policy_of_no_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quoreduce.vm.agents.site.check_programs", lambda path: None)
    with pytest.raises(UsageError, match="is no server's folder: start the server once"):
        main(["policy", "--state", str(tmp_path)])


def test_without_apt_or_busybox_no_image_is_built(vm: Callable[..., Any], tmp_path: Path) -> None:
    ended = vm("image", "out", "--kernel", sys.executable)
    assert ended.code in (2, 6)
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("manager", "tcp:10.1.1.1:80"), 2, "unix:PATH or tcp:127.0.0.1:PORT"),
        (("manager", "unix:no/such/folder/m"), 2, "cannot listen"),
        (("attest",), 2, "name the manager"),
        (("attest", "--manager", "unix:m"), 6, "nobody answers"),
        (("launch", "image", "web", "--server", "s1", "--manager", "unix:m"), 6, "nobody answers"),
        (("launch", "image", "web", "--server", "s1", "--memory-mb", "1"), 2, "use a whole number of MiB from 16"),
        (("trust", "none.json"), 2, "cannot read none.json"),
        (("insider", "s1", "not-hex", "stop", "--manager", "unix:m"), 2, "no VM's id"),
        (("insider", "s1", "0" * 32, "stop", "nonsense", "--manager", "unix:m"), 2, "not a JSON object"),
        (("insider", "s1", "0" * 32, "stop", "[]", "--manager", "unix:m"), 2, "JSON object"),
        (("insider", "s1", "0" * 32, "stop", "--manager", "unix:m"), 6, "nobody answers"),
        (("image", ".", "--plant", "none.pem"), 2, "exists"),
        (("image", "out", "--plant", "none.pem"), 2, "cannot read none.pem"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    vm: Callable[..., Any], arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended = vm(*arguments)
    assert (ended.code, ended.stdout) == (code, "")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_user_begins_with_no_vms_and_a_folder_of_his_own(vm: Callable[..., Any], tmp_path: Path) -> None:
    assert "no VMs yet" in vm("list").stdout
    assert json.loads(vm("list", "--json").stdout) == {"vms": []}
    assert not (tmp_path / "user").exists()  # to look makes nothing
    assert vm("attest", "--manager", "unix:m").code == 6
    assert stat.S_IMODE((tmp_path / "user").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "user" / "keys").stat().st_mode) == 0o600


def test_what_is_trusted_is_what_was_named_last(vm: Callable[..., Any], tmp_path: Path) -> None:
    def policy(name: str, **changes: object) -> str:
        (tmp_path / name).write_text(json.dumps({**POLICY, **changes}))
        return name

    one, two = policy("one"), policy("two", environments=["ef" * 32])
    assert json.loads(vm("trust", one, two, "--json").stdout)["environments"] == ["ab" * 32, "ef" * 32]
    assert json.loads(vm("trust", two, "--json").stdout)["environments"] == ["ef" * 32]
    ended = vm("trust", one, policy("other", registrar="00" * 32))
    assert ended.code == 2
    assert "different sites" in ended.stderr
    assert vm("trust", policy("none", environments=[])).code == 6


def test_broken_keys_of_a_user_are_said(vm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "keys").write_bytes(os.urandom(64))
    ended = vm("attest", "--manager", "unix:m")
    assert ended.code == 2
    assert "holds no keys of a user" in ended.stderr


def test_a_users_id_is_shown_and_goes_with_the_keys(vm: Callable[..., Any], tmp_path: Path) -> None:
    user = vm("key", "show").stdout.strip()
    assert len(user) == 32
    assert vm("key", "show").stdout.strip() == user
    exported = vm("key", "export", "mine")
    assert exported.code == 0
    assert user in exported.stdout
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
    imported = json.loads(vm("key", "import", "mine", "--state", "other", "--json").stdout)
    assert (imported["user"], imported["vms"]) == (user, 0)
    again = vm("key", "import", "mine", "--state", "other")
    assert again.code == 2
    assert "has keys already" in again.stderr


def test_a_list_of_owners_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUOREDUCE_VM", str(tmp_path / "user"))
    (tmp_path / "owners").write_text("alice\n")
    with pytest.raises(UsageError, match=r"owners: line 1: 'alice' is no user's id"):
        owners_of(str(tmp_path / "owners"))
    with pytest.raises(QuoreduceError, match="missing"):
        owners_of(str(tmp_path / "missing"))


def test_without_a_list_a_server_serves_whoever_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUOREDUCE_VM", str(tmp_path / "user"))
    owners = listed_owners(*owners_of(None))
    with StateFolder(tmp_path / "user"):  # a command that runs
        user = own_id(tmp_path / "user")
    assert owners.quota(user).vms > 0
    with pytest.raises(VmError):
        owners.quota("0" * 32)
    assert f"serves user {user} alone" in capsys.readouterr().err


def test_a_copy_that_is_left_is_listed(vm: Callable[..., Any], tmp_path: Path) -> None:
    one = Vm(
        b"v" * 16,
        "web",
        b"",
        wire.Spec(),
        bytes(32),
        1,
        "running",
        "000b" + "1" * 64,
        left=(LeftCopy("000b" + "2" * 64, 1),),
    )
    with StateFolder(tmp_path / "user") as folder:
        folder.write("vms/" + (b"v" * 16).hex(), encode_vm(one))
    assert "not attested to be overwritten on 000b22222222: resume it" in vm("list").stdout
    assert json.loads(vm("list", "--json").stdout)["vms"][0]["left"] == ["000b22222222"]


def test_the_list_is_there_while_another_command_holds_the_folder(vm: Callable[..., Any], tmp_path: Path) -> None:
    record = Vm(b"v" * 16, "web", b"", wire.Spec(), bytes(32), 1, "launching", peer="000b" + "11" * 32)
    with StateFolder(tmp_path / "user") as folder:
        folder.write("vms/" + record.vmid.hex(), encode_vm(record))
        assert "in use by another process" in vm("attest", "--manager", "unix:m").stderr
        ended = vm("list", "--json")
    assert ended.code == 0, ended.stderr
    assert [(row["name"], row["phase"]) for row in json.loads(ended.stdout)["vms"]] == [("web", "launching")]
