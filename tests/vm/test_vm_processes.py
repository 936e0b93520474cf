"""Servers as real processes that are started otherwise than before, or twice, or where others' files are: nothing is
harmed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from quoreduce.commands.vm.demo import Site
from quoreduce.vm.image import build
from quoreduce.vm.processes import Process, living_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("qemu-system-x86_64", "swtpm", "swtpm_setup", "busybox")),
        reason="needs qemu-system-x86, swtpm, swtpm-tools, busybox-static",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A manager, a server s1, a user who trusts it, and a VM that runs there."""
    folder = tmp_path_factory.mktemp("site")
    with Site(folder) as made:
        made.manager()
        made.server("s1")
        (folder / "policy.json").write_text(done(made, "policy", "--state", str(folder / "s1")))
        done(made, "trust", str(folder / "policy.json"))
        done(made, "launch", str(build(folder / "image").path), "web", "--server", "s1")
        yield made


def done(site: Site, *arguments: str) -> str:
    ended = site.run(*arguments)
    assert ended.code == 0, ended.err
    return ended.out


def guest(site: Site) -> Path:
    return site.guest("s1", json.loads(done(site, "list", "--json"))["vms"][0]["vm"])


def processes(site: Site) -> list[Process]:
    """The VM's processes, as the server has written them down."""
    noted = json.loads((site.folder / "s1" / "guests" / guest(site).name).read_bytes())
    assert len(noted) == 2
    return [Process(**one) for one in noted]


def refused(site: Site, *options: str, state: str = "s1") -> str:
    """Start a server that must not start; what it says, in one line."""
    ended = site.run("server", "--state", str(site.folder / state), "--manager", site.address, *options)
    assert ended.code == 6, ended.err
    assert [line for line in ended.err.splitlines() if "quoreduce: " in line] == ended.err.splitlines()[-1:], ended.err
    assert "Traceback" not in ended.err
    return ended.err


def test_a_server_that_is_started_with_another_run_folder_says_of_no_vm_that_it_is_lost(site: Site) -> None:
    site.kill("s1")
    (site.memory / "other").mkdir(mode=0o700)
    said = refused(site, "--run", str(site.memory / "other"))
    assert f"VMs of this server live in {site.memory}/s1, not in {site.memory}/other: start it without --run" in said
    site.server("s1")
    assert "running" in done(site, "attest", "web")
    assert all(process.alive() for process in processes(site))


def test_a_second_server_on_the_same_run_folder_is_refused_and_the_vm_runs_on(site: Site) -> None:
    assert "in use by another process" in refused(site, "--run", str(site.memory / "s1"), state="s2")
    site.kill("s1")
    assert "is the run folder of another server" in refused(site, "--run", str(site.memory / "s1"), state="s2")
    site.server("s1")
    assert "running" in done(site, "attest", "web")


def test_a_foreign_folder_in_the_run_folder_is_named_and_nothing_is_begun(site: Site) -> None:
    photos = site.memory / "s1" / "photos"
    photos.mkdir()
    (photos / "one").write_bytes(b"precious")
    site.kill("s1")
    assert f"{photos} is not ours: move it away" in refused(site, "--run", str(site.memory / "s1"))
    assert (photos / "one").read_bytes() == b"precious"
    assert all(process.alive() for process in processes(site))
    shutil.rmtree(photos)
    site.server("s1")
    assert "running" in done(site, "attest", "web")


def test_a_server_whose_tpm_is_gone_ends_and_says_so(site: Site) -> None:
    for process in living_in(site.folder / "s1" / "swtpm"):
        os.kill(process.pid, signal.SIGKILL)
    asked = site.begin("resume", "web")
    assert site.processes["s1"].wait(30) == 6
    assert "its VMs go on: start the server again" in site.log("s1")[-1]
    site.server("s1")
    asked.communicate(timeout=60)
    assert "running" in done(site, "attest", "web")


def test_a_vm_whose_folder_was_deleted_is_ended_before_it_is_said_to_be_lost(site: Site) -> None:
    """The last one: there is no VM afterwards."""
    was = processes(site)
    site.kill("s1")
    shutil.rmtree(guest(site))
    site.server("s1")
    assert not any(process.alive() for process in was)
    assert "attests that web is gone there" in site.run("resume", "web").err
