"""swtpm: set up, started, stopped, locked, hung, dead, locked out."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from quoreduce.errors import AttestationError, EvidenceError, HostError, UsageError
from quoreduce.trust import commands, wire
from quoreduce.trust.chain import check_ek_chain
from quoreduce.trust.swtpm import Swtpm, exchange, read_setup, setup
from quoreduce.trust.tpm2 import certifies
from quoreduce.trust.wire import Quote

DEADLINE_S = 20.0
DIGEST = bytes(range(32))


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("ek", "kind"), [("ecc", wire.ALG_ECC), ("rsa", wire.ALG_RSA)])
def test_endorsement_key_has_a_certificate_of_the_states_own_ca(made, start, ek, kind):
    tpm = start(ek=ek)
    assert tpm.ek_public.kind == kind
    assert certifies(tpm.ek_certificate, tpm.ek_public)
    roots = [x509.load_pem_x509_certificate(root.encode()) for root in made.roots]
    check_ek_chain([tpm.ek_certificate, *made.intermediates], roots, datetime.now(UTC))


def test_set_up_writes_to_its_own_folder_only_and_keeps_keys_private(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(home))
    state = tmp_path / ("a folder, with a long name = " + "x" * 120) / "state"
    setup(state)
    assert list(home.iterdir()) == []
    assert {(state / name).stat().st_mode & 0o777 for name in ("", "ca", "tpm")} == {0o700}
    with Swtpm(state) as tpm:
        assert len(tpm.read([16])) == 1


def test_set_up_leaves_a_tpm_that_exists_alone(state):
    before = files(state)
    again = setup(state)
    assert files(state) == before
    assert again == read_setup(state)


def test_set_up_that_was_interrupted_is_done_again(state):
    (state / "setup-done").unlink()
    (state / "tpm" / "tpm2-00.permall").write_bytes(b"torn")
    setup(state)
    with Swtpm(state) as tpm:
        assert tpm.ek_certificate


def test_states_may_share_a_ca(made, tmp_path):
    other = setup(tmp_path / "other", ca=made.state / "ca")
    assert (other.roots, other.intermediates) == (made.roots, made.intermediates)
    assert not (tmp_path / "other" / "ca").exists()


def test_folder_without_a_tpm_says_how_to_make_one(tmp_path):
    with pytest.raises(HostError, match="holds no TPM: make one with `quoreduce attest setup`"):
        Swtpm(tmp_path)


def test_set_up_under_a_file_is_a_host_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot set up a TPM"):
        setup(tmp_path / "file" / "state")


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa"])
def test_the_same_tpm_makes_the_same_key_after_each_start(start, scheme):
    names = set()
    for _ in range(2):
        tpm = start(scheme=scheme)
        names.add(tpm.public.name())
        tpm.close()
    assert len(names) == 1


def test_two_tpms_make_different_keys(tmp_path, start):
    setup(tmp_path / "other")
    with Swtpm(tmp_path / "other") as other:
        assert other.public.name() != start().public.name()


def test_clock_is_safe_and_resets_are_counted_over_orderly_restarts(state):
    clocks = []
    for _ in range(3):
        with Swtpm(state) as tpm:
            clocks.append(Quote.decode(tpm.quote([16], b"").message).clock)
    assert all(clock.safe for clock in clocks)
    assert clocks[2].reset_count > clocks[1].reset_count > clocks[0].reset_count


def test_only_one_swtpm_runs_on_a_state(state):
    with Swtpm(state) as tpm:
        with pytest.raises(HostError, match="in use by another swtpm"):
            Swtpm(state)
        with pytest.raises(HostError, match="in use by another swtpm"):
            setup(state)
        tpm.extend(16, DIGEST)
    with Swtpm(state) as again:
        assert again.read([16]) == {16: bytes(32)}


def test_close_leaves_no_process_and_no_open_file(state):
    before = set(os.listdir("/proc/self/fd"))
    tpm = Swtpm(state)
    pid = tpm.pid
    tpm.close()
    assert not Path(f"/proc/{pid}").exists()
    assert set(os.listdir("/proc/self/fd")) == before


def test_tpm_that_was_closed_says_so(state):
    tpm = Swtpm(state)
    tpm.close()
    with pytest.raises(HostError, match="swtpm is gone: it was stopped"):
        tpm.extend(16, DIGEST)


def test_tpm_that_is_forgotten_is_stopped(state):
    tpm = Swtpm(state)
    pid = tpm.pid
    del tpm
    assert not Path(f"/proc/{pid}").exists()


def test_swtpm_ends_when_its_owner_is_killed(state):
    program = f"""
import sys
from pathlib import Path
from quoreduce.trust.swtpm import Swtpm
tpm = Swtpm(Path({str(state)!r}))
print(tpm.pid, flush=True)
sys.stdin.read()
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with owner:
        pid = int(owner.stdout.readline())
        assert not ended(pid)
        owner.kill()
    deadline = time.monotonic() + DEADLINE_S
    while not ended(pid):
        assert time.monotonic() < deadline, f"swtpm {pid} outlives its owner"
    with Swtpm(state) as tpm:
        tpm.extend(16, DIGEST)


@pytest.mark.parametrize(
    ("option", "message"), [("scheme", "unknown signature scheme 'sm2'"), ("ek", "endorsement key 'sm2'")]
)
def test_unknown_algorithm_is_the_callers_error(state, option, message):
    with pytest.raises(UsageError, match=message):
        Swtpm(state, **{option: "sm2"})


@pytest.mark.parametrize("program", ["swtpm", "swtpm_setup", "swtpm_localca"])
def test_missing_program_says_what_to_install(state, tmp_path, monkeypatch, program):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"swtpm", "swtpm_setup", "swtpm_localca"} - {program}:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(HostError, match=f"{program} is not installed.* apt-get install swtpm swtpm-tools"):
        Swtpm(state) if program == "swtpm" else setup(tmp_path / "new")


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo no seccomp here >swtpm.log; exit 1", "swtpm is gone: .*no seccomp here"), ("exit 0", "swtpm is gone"),
     ("head -c 10 >/dev/null <&$5; printf 0123456789 >&$5; exec cat <&$5", "bytes, where 10 to 4096 can be")],
    ids=["fails", "ends", "babbles"],
)  # fmt: skip
def test_swtpm_that_does_not_serve_is_reported_and_lets_go_of_the_state(state, tmp_path, monkeypatch, script, message):
    fake = tmp_path / "swtpm"
    # its arguments: socket --tpm2 --tpmstate STATE --fd FD ...
    fake.write_text(f'#!/bin/bash\nset -- 0 0 0 0 "$6"\n{script}\n')
    fake.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises((HostError, EvidenceError), match=message):
            Swtpm(state, timeout_s=1.0)
    with Swtpm(state) as tpm:
        tpm.extend(16, DIGEST)


def test_set_up_that_fails_says_where_to_look(tmp_path, monkeypatch):
    for name in ("swtpm", "swtpm_setup", "swtpm_localca"):
        (tmp_path / name).write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match=r"swtpm_setup failed; .*setup.log says why. not today"):
        setup(tmp_path / "state")


def test_swtpm_that_hangs_is_a_host_error_in_time_and_is_killed(state):
    tpm = Swtpm(state, timeout_s=0.5)
    tpm.extend(16, DIGEST)
    os.kill(tpm.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(HostError, match=r"swtpm did not answer TPM2_PCR_Extend within 0.5 s"):
        tpm.extend(16, DIGEST)
    with pytest.raises(HostError, match="swtpm is gone"):  # a late answer must not be taken for another command's
        tpm.read([16])
    tpm.close()
    assert time.monotonic() - started < 10
    assert not Path(f"/proc/{tpm.pid}").exists()
    with Swtpm(state) as again:
        again.extend(16, DIGEST)


def test_swtpm_that_was_killed_is_a_host_error(state):
    tpm = Swtpm(state)
    os.kill(tpm.pid, signal.SIGKILL)
    with pytest.raises(HostError, match="swtpm is gone"):
        tpm.quote([16], b"")
    tpm.close()


def test_server_that_never_answers_is_a_timeout():
    near, far = socket.socketpair()
    near.settimeout(0.05)
    with near, far, pytest.raises(TimeoutError):
        exchange(near, commands.get_random(8))


def test_response_in_pieces_is_put_together():
    near, far = socket.socketpair()
    near.settimeout(DEADLINE_S)
    whole = struct.pack(">HII", 0x8001, 300, 0) + bytes(290)

    def serve() -> None:
        far.recv(4096)
        for at in range(0, 300, 7):
            far.sendall(whole[at : at + 7])

    server = threading.Thread(target=serve)
    with near, far:
        server.start()
        assert exchange(near, commands.get_random(8)) == whole
        server.join()


def lock_out(tpm: Swtpm) -> None:
    """Fail an authorization once too often."""
    rh_lockout = 0x4000000A
    tpm._send(
        commands.build("DictionaryAttackParameters", [rh_lockout], struct.pack(">III", 1, 1000, 1000), [commands.EMPTY])
    )
    attributes = wire.FIXED_TPM | wire.FIXED_PARENT | wire.USER_WITH_AUTH
    template = wire.Public(wire.ALG_KEYEDHASH, wire.ALG_SHA256, attributes, b"", None, wire.ALG_NULL, 0, (b"",))
    sensitive = wire.sized(wire.sized(b"password") + wire.sized(b"secret"))
    with tpm._loaded(commands.create_primary(wire.RH_OWNER, commands.STORAGE)) as storage:
        area = sensitive + wire.sized(template.encode()) + wire.sized(b"") + bytes(4)
        made = tpm._send(commands.build("Create", [storage], area, [commands.EMPTY]))
        with (
            tpm._loaded(commands.load(storage, *commands.read_create(made.parameters))) as sealed,
            pytest.raises(AttestationError, match="TPM_RC_AUTH_FAIL"),
        ):
            tpm._send(commands.unseal(sealed, commands.password(b"guess")))


def test_tpm_in_lockout_still_quotes_and_what_it_refuses_is_a_host_error_that_says_so(state):
    """Nothing of ours has an authorization that could be guessed; others' keys are refused."""
    with Swtpm(state) as tpm:
        lock_out(tpm)
        with pytest.raises(HostError, match=r"the TPM is in lockout .* refuses TPM2_Unseal"):
            lock_out(tpm)
        tpm.extend(16, DIGEST)
        tpm.quote([16], b"")
        assert tpm.unseal(tpm.seal(b"secret", [16])) == b"secret"


def test_slots_and_sessions_of_the_tpm_do_not_run_out(swtpm):
    blob = swtpm.seal(b"secret", [16])
    for _ in range(20):
        assert swtpm.unseal(blob) == b"secret"
        with pytest.raises(AttestationError):
            swtpm.activate(bytes(66), bytes(102))
    swtpm.extend(16, DIGEST)
    for _ in range(20):
        with pytest.raises(AttestationError, match="TPM_RC_POLICY_FAIL"):
            swtpm.unseal(blob)
    swtpm.quote([16], b"")


def test_quote_whose_pcrs_were_extended_meanwhile_is_made_again(swtpm):
    plain, extended_once = swtpm._transmit, []

    def meddle(command: bytes) -> bytes:
        if commands.command_name(command) == "TPM2_Quote" and not extended_once:
            extended_once.append(plain(commands.pcr_extend(16, DIGEST)))
        return plain(command)

    swtpm._transmit = meddle
    quoted = swtpm.quote([16], b"")
    assert extended_once
    assert Quote.decode(quoted.message).pcr_digest == wire.pcr_digest([quoted.values[16]])


def test_quote_gives_up_when_pcrs_never_hold_still(swtpm):
    plain = swtpm._transmit

    def meddle(command: bytes) -> bytes:
        if commands.command_name(command) == "TPM2_Quote":
            plain(commands.pcr_extend(16, DIGEST))
        return plain(command)

    swtpm._transmit = meddle
    with pytest.raises(AttestationError, match=r"PCRs \[16\] changed during each of 16 quotes"):
        swtpm.quote([16], b"")


def test_threads_may_share_a_tpm(swtpm):
    errors = []

    def work() -> None:
        try:
            for _ in range(20):
                swtpm.extend(16, DIGEST)
                quoted = swtpm.quote([16], b"")
                assert Quote.decode(quoted.message).pcr_digest == wire.pcr_digest([quoted.values[16]])
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


OWNER = """
import os, signal, sys
from pathlib import Path
from quoreduce.trust.swtpm import Swtpm

tpm = Swtpm(Path(sys.argv[1]))
for i in range(20):
    tpm.quote([16], bytes([i]))
print(tpm.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_owners_that_are_killed_leave_neither_a_process_nor_a_lockout(state: Path) -> None:
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", OWNER, str(state)], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        pid = int(done.stdout)
        deadline = time.monotonic() + DEADLINE_S
        while not ended(pid) and time.monotonic() < deadline:
            os.sched_yield()
        assert ended(pid)
    with Swtpm(state) as tpm:
        assert tpm.quote([16], b"still").message
