"""The whole, with real processes, QEMU and TPMs: a VM's life, kills in the middle, servers not to be trusted, bad
input.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quoreduce.commands.vm.attack import new_key
from quoreduce.commands.vm.demo import CommandResult, Script, Site, console, found_in, key_parts, play
from quoreduce.vm import wire
from quoreduce.vm.agents.channel import Address
from quoreduce.vm.agents.manager import Manager
from quoreduce.vm.agents.post import Console, Letter
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.image import build
from quoreduce.vm.processes import living_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("qemu-system-x86_64", "swtpm", "swtpm_setup", "busybox")),
        reason="needs qemu-system-x86, swtpm, swtpm-tools, busybox-static",
    ),
]
SECRET = b"SECRET-4f1d7c2e9a"


@pytest.fixture(scope="module")
def pem() -> bytes:
    return new_key()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, pem: bytes) -> Path:
    return build(tmp_path_factory.mktemp("image") / "guest", plant=pem).path


class Relay(Manager):
    """The manager in this process: an insider may look at each letter, and keep it."""

    def __init__(self, site: Site) -> None:
        super().__init__(Address.parse(site.address), site.store, site.record)
        self.keep: Callable[[Letter, wire.Message], bool] = lambda letter, message: False
        threading.Thread(target=self.serve, daemon=True).start()

    def passes(self, message: Letter | Console) -> bool:
        return isinstance(message, Console) or not self.keep(message, wire.decode_message(message.body))


class Cloud:
    """A site with a relay that can be told to keep letters, two servers, and a user who trusts them."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder)
        self.relay = Relay(self.site)
        for name in ("s1", "s2"):
            self.site.server(name)
        self.policy = self.done("policy", "--state", str(folder / "s1")).out
        (folder / "policy.json").write_text(self.policy)
        self.done("trust", str(folder / "policy.json"))

    def done(self, *arguments: str) -> CommandResult:
        done = self.site.run(*arguments)
        assert done.code == 0, done.err
        return done

    def refused(self, *arguments: str, code: int = 6) -> str:
        done = self.site.run(*arguments)
        assert done.code == code, (done.code, done.err, done.out)
        assert "Traceback" not in done.err
        return done.err

    def vm(self, name: str) -> dict[str, str]:
        rows = json.loads(self.done("list", "--json").out)["vms"]
        found: dict[str, str] = next(row for row in rows if row["name"] == name)
        return found

    def empty(self, server: str) -> bool:
        """Whether no guest of a server's is left: no folder, no process."""
        run = self.site.memory / server
        return not guests_in(run) and not living_in(run)

    def close(self) -> None:
        self.relay.close()
        self.site.__exit__(None, None, None)


def guests_in(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.is_dir()]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    made = Cloud(tmp_path_factory.mktemp("cloud"))
    yield made
    made.close()


@pytest.fixture
def web(cloud: Cloud, image: Path) -> Iterator[str]:
    """A VM that runs on s1 and holds the secret; its id. Afterwards it is gone, wherever it was."""
    cloud.relay.keep = lambda letter, message: False
    cloud.done("launch", str(image), "web", "--server", "s1")
    vm = cloud.vm("web")["vm"]
    with console(cloud.site.guest("s1", vm)) as ask:
        ask(f"SECRET {SECRET.decode()}", "STORED")
    yield vm
    cloud.relay.keep = lambda letter, message: False
    if cloud.vm("web")["phase"] == "running":
        cloud.done("terminate", "web")
    assert cloud.empty("s1")
    assert cloud.empty("s2")
    (cloud.site.folder / "user" / "vms" / vm).unlink()  # a VM that has a backup keeps its name


def holds(cloud: Cloud, server: str, vm: str) -> bool:
    with console(cloud.site.guest(server, vm)) as ask:
        return ask("SHOW", "HELD") == f"HELD {SECRET.decode()}" and ask("DISK", "DISK ") == f"DISK {SECRET.decode()}"


def test_a_vms_whole_life_with_nothing_of_it_seen_by_the_relay(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        script = Script(site, quiet=True)
        downtime = play(script, site, None)
        assert 0 < downtime < 10_000
        assert float(str(script.steps[-1]["at_s"])) < 120
        assert site.record.stat().st_size > 100 << 20  # the search was over something: image, state, backup, and back
        assert not list(site.memory.rglob("*.bin"))


def test_the_search_finds_the_secret_where_it_must_be(cloud: Cloud, web: str, pem: bytes) -> None:
    ram = cloud.site.guest("s1", web) / "ram.bin"
    assert found_in([SECRET], [ram]) == [str(ram)]
    assert found_in(key_parts(pem), [ram]) == [str(ram)]


@pytest.mark.nightly  # test_vm_campaign has it in its schedules
def test_a_source_that_is_killed_after_it_let_go_gets_the_vm_back_or_gives_it_up(cloud: Cloud, web: str) -> None:
    """The Commit never leaves: the record says released, and the destination has not heard of it."""
    killed = threading.Event()

    def keep(letter: Letter, message: wire.Message) -> bool:
        if isinstance(message, wire.SealedMessage) and letter.sender == "s1" and not killed.is_set():
            cloud.site.kill("s1")
            killed.set()
            return True
        return False

    cloud.relay.keep = keep
    moving = cloud.site.begin("migrate", "web", "--to", "s2")
    assert killed.wait(60)
    assert b'"released"' in (cloud.site.folder / "s1" / "vms" / web).read_bytes()
    moving.send_signal(signal.SIGINT)
    moving.wait(20)
    cloud.site.server("s1")
    said = cloud.refused("resume", "web")
    assert "runs on server" in said
    assert cloud.vm("web")["server"] == "s1"
    assert holds(cloud, "s1", web)
    assert cloud.empty("s2")


def kill_the_destination_when_it_is_prepared(cloud: Cloud) -> None:
    """Begin a migration to s2, kill s2 when it says Prepared, and end the user's command."""
    killed = threading.Event()

    def keep(letter: Letter, message: wire.Message) -> bool:
        if isinstance(message, wire.SealedMessage) and letter.sender == "s2" and not killed.is_set():
            cloud.site.kill("s2")
            killed.set()
        return False

    cloud.relay.keep = keep
    moving = cloud.site.begin("migrate", "web", "--to", "s2")
    assert killed.wait(60)
    moving.send_signal(signal.SIGINT)
    moving.wait(20)


def test_a_destination_that_is_killed_when_it_is_prepared_never_runs_the_vm(cloud: Cloud, web: str) -> None:
    kill_the_destination_when_it_is_prepared(cloud)
    cloud.site.server("s2")
    assert "runs on server" in cloud.refused("resume", "web")
    assert b'"aborted"' in (cloud.site.folder / "s2" / "vms" / web).read_bytes()
    assert cloud.vm("web")["server"] == "s1"
    assert holds(cloud, "s1", web)


@pytest.mark.nightly  # test_vm_campaign has it in its schedules
def test_a_destination_that_is_gone_for_good_is_abandoned_and_never_runs_the_vm_later(cloud: Cloud, web: str) -> None:
    kill_the_destination_when_it_is_prepared(cloud)
    cloud.done("resume", "web", "--abandon")
    assert holds(cloud, "s1", web)
    cloud.site.server("s2")  # it was not gone after all
    cloud.site.wait("s2", "ended; ")
    assert "running" in cloud.done("attest", "web").out
    assert b'"aborted"' in (cloud.site.folder / "s2" / "vms" / web).read_bytes()
    assert holds(cloud, "s1", web)


def test_a_vm_that_was_lost_where_it_was_runs_once_wherever_it_goes_next(cloud: Cloud, web: str) -> None:
    """Lost at s1, restored at s2, refused by s1, which still knows it as lost: it runs at s2, and nowhere else."""
    cloud.done("backup", "web")
    guest = cloud.site.guest("s1", web)
    for process in living_in(guest):
        os.kill(process.pid, signal.SIGKILL)
    cloud.site.wait("s1", "the VM is lost here")
    assert "is gone there" in cloud.refused("resume", "web")
    cloud.done("restore", "web", "--server", "s2")
    assert "runs on server" in cloud.refused("migrate", "web", "--to", "s1")
    assert cloud.vm("web")["phase"] == "running"
    assert "may run" in cloud.refused("restore", "web", "--server", "s1")
    assert "is overwritten" in cloud.done("resume", "web").out
    assert cloud.empty("s1")
    cloud.done("migrate", "web", "--to", "s1")
    assert holds(cloud, "s1", web)
    assert cloud.empty("s2")


@pytest.mark.nightly  # half a minute of waiting for who will never answer
def test_a_source_that_never_hears_that_the_vm_arrived_is_ended_with_it(cloud: Cloud, web: str) -> None:
    """The relay keeps what servers attest to each other."""
    cloud.relay.keep = lambda letter, message: (
        isinstance(message, wire.AttestedMessage) and len(letter.to) == 68 and _receipt(message)
    )
    cloud.done("migrate", "web", "--to", "s2")
    assert holds(cloud, "s2", web)
    assert cloud.vm("web")["left"] == ["s1"]
    assert not cloud.empty("s1")
    assert "not attested to be overwritten on s1" in cloud.done("list").out
    said = cloud.done("terminate", "web").out
    assert said.count("overwr") == 2
    assert cloud.vm("web")["left"] == []
    assert cloud.empty("s1")
    assert cloud.empty("s2")


def _receipt(message: wire.AttestedMessage) -> bool:
    return isinstance(wire.decode_said(message.content), wire.VmReceipt | wire.Status)


@pytest.mark.nightly  # half a minute of waiting for who will never answer
def test_a_destination_that_dies_after_it_took_over_is_given_up(cloud: Cloud, web: str) -> None:
    cloud.relay.keep = lambda letter, message: (
        isinstance(message, wire.AttestedMessage) and len(letter.to) == 68 and _receipt(message)
    )
    cloud.done("migrate", "web", "--to", "s2")
    cloud.site.kill("s2")
    cloud.done("resume", "web", "--abandon")
    assert holds(cloud, "s1", web)
    assert cloud.vm("web")["left"] == ["s2"]
    cloud.relay.keep = lambda letter, message: False
    cloud.site.server("s2")  # it was not gone after all, and has it too: resume ends it there
    assert "is overwritten" in cloud.done("resume", "web").out
    assert holds(cloud, "s1", web)
    assert cloud.empty("s2")


def test_who_is_not_on_a_servers_list_launches_nothing(cloud: Cloud, image: Path, tmp_path: Path) -> None:
    (tmp_path / "owners").write_text("0" * 32 + " vms=1 mb=512\n")
    cloud.site.server("s5", "--owners", str(tmp_path / "owners"))
    try:
        said = cloud.refused("launch", str(image), "other", "--server", "s5")
        assert "was not started" in said
        assert any("list of owners" in line for line in cloud.site.log("s5"))
        assert cloud.empty("s5")
    finally:
        cloud.site.end("s5")


@pytest.mark.nightly  # half a minute of waiting for who will never answer
def test_a_server_whose_tpm_died_ends_its_vms_and_they_are_restored_elsewhere(cloud: Cloud, image: Path) -> None:
    cloud.site.server("s6")
    cloud.done("launch", str(image), "moved", "--server", "s6")
    cloud.done("backup", "moved")
    cloud.site.kill("s6")
    cloud.site.server("s6", "--new-tpm")
    try:
        cloud.site.wait("s6", "ended; ")
        assert cloud.empty("s6")
        cloud.done("restore", "moved", "--server", "s1", "--declare-lost")
        cloud.refused("terminate", "moved", "--timeout", "200")  # s6 as it was cannot attest any more
        assert cloud.vm("moved")["phase"] == "terminated"
        assert cloud.empty("s1")
    finally:
        cloud.site.end("s6")


def test_a_server_that_is_killed_takes_its_running_vm_up_again(cloud: Cloud, web: str) -> None:
    cloud.site.kill("s1")
    cloud.site.server("s1")
    assert "running" in cloud.done("attest", "web").out
    assert holds(cloud, "s1", web)


@pytest.mark.nightly  # test_vm_measure refuses it without a guest
def test_a_destination_whose_broker_allows_dumps_is_refused(cloud: Cloud, web: str) -> None:
    cloud.site.server("s3", "--allow-dump")
    try:
        said = cloud.refused("migrate", "web", "--to", "s3")
        assert "runs on server" in said
        assert any("environment" in line for line in cloud.site.log("s1") if "migration failed" in line)
        assert cloud.vm("web")["server"] == "s1"
        assert holds(cloud, "s1", web)
        assert not guests_in(cloud.site.memory / "s3")
    finally:
        cloud.site.end("s3")


def test_what_a_vm_left_after_termination_does_not_hold_its_secrets(cloud: Cloud, web: str, pem: bytes) -> None:
    cloud.done("backup", "web")
    assert cloud.vm("web")["read_back"] == cloud.vm("web")["backup"] > 0
    cloud.done("terminate", "web")
    assert cloud.empty("s1")
    places = [
        cloud.site.record,
        cloud.site.store,
        cloud.site.folder / "s1",
        cloud.site.folder / "s2",
        cloud.site.memory,
    ]
    assert found_in([SECRET, *key_parts(pem)], places) == []


@pytest.mark.parametrize(
    ("cut", "reason"),
    [(0, "0 bytes"), (10, "cut"), (100_000, "cut"), (-1, "cut")],
    ids=["empty", "head", "half", "last"],
)
def test_a_truncated_image_is_refused_before_anything_is_started(
    cloud: Cloud, image: Path, tmp_path: Path, cut: int, reason: str
) -> None:
    broken = tmp_path / "image"
    broken.write_bytes(image.read_bytes()[:cut])
    assert reason in cloud.refused("launch", str(broken), "broken", "--server", "s1", code=2)
    assert cloud.empty("s1")


def test_a_guest_that_never_boots_is_told_and_nothing_of_it_stays(cloud: Cloud, image: Path, tmp_path: Path) -> None:
    good = Bundle.decode(image.read_bytes())
    broken = tmp_path / "image"
    broken.write_bytes(Bundle(good.kernel, b"this is no initrd", good.cmdline).encode())
    said = cloud.refused("launch", str(broken), "broken", "--server", "s1")
    assert "was not started" in said
    assert any("GUEST-READY" in line for line in cloud.site.log("s1"))
    assert cloud.empty("s1")


def test_unknown_names_are_said_with_those_that_there_are(cloud: Cloud, image: Path) -> None:
    assert "no VM nobody" in cloud.refused("migrate", "nobody", "--to", "s2", code=2)
    assert "no server s9" in cloud.refused("launch", str(image), "lonely", "--server", "s9")
    assert "s1, s2" in cloud.refused("launch", str(image), "lonely", "--server", "s9")
    assert "in use" in cloud.refused("manager", cloud.site.address, code=2)
    assert "in use" in cloud.refused(
        "server", "--state", str(cloud.site.folder / "s1"), "--manager", cloud.site.address
    )


def test_servers_of_a_site_that_the_user_does_not_trust_get_nothing(cloud: Cloud, image: Path, tmp_path: Path) -> None:
    other = json.loads(cloud.policy)
    other["registrar"] = "00" * 32
    (tmp_path / "other.json").write_text(json.dumps(other))
    user = ("--state", str(tmp_path / "user"))
    cloud.done("trust", str(tmp_path / "other.json"), *user)
    (tmp_path / "owners").write_text(cloud.done("key", "show", *user).out)
    cloud.site.server("s7", "--owners", str(tmp_path / "owners"))
    try:
        assert "is refused: the registrar" in cloud.refused("launch", str(image), "web", "--server", "s7", *user)
        assert cloud.empty("s7")
    finally:
        cloud.site.end("s7")


def test_a_full_file_system_is_said_and_nothing_stays(cloud: Cloud, image: Path) -> None:
    run = cloud.site.memory / "s4"
    run.mkdir(mode=0o700)
    line = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "full", str(run)]
    mounted = subprocess.run(line, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount here")
    try:
        cloud.site.server("s4")
        said = cloud.refused("launch", str(image), "big", "--server", "s4")
        assert "was not started" in said
        assert any("no space" in line for line in cloud.site.log("s4"))
        assert not guests_in(run)
        cloud.site.end("s4")
    finally:
        subprocess.run(["umount", "-l", str(run)], check=True)
