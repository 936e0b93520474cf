"""E(n): every link of its chain broken in turn, each refused with a reason of its own; and one quote for many
challenges.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace as changed
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from towers import AT, OPERATIONS, Environment, Maker, Tower, maker, policy, software_tower, tower

from quoreduce.errors import AttestationError, EvidenceError, HostError
from quoreduce.trust.eventlog import Event, encode_binary
from quoreduce.trust.evidence import LEVEL1_PCRS, Hardware, launch_log
from quoreduce.trust.merkle import leaf_hash
from quoreduce.trust.policy import Policy
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import Public, QuoteResponse, sized
from quoreduce.vm import evidence
from quoreduce.vm.attestor import SHARED_MAX, Challenge, TpmAttestor
from quoreduce.vm.evidence import Cache, Evidence, Measured, check, decode, encode
from quoreduce.vm.wire import EVIDENCE_BYTES_MAX

N, VMID, CONTENT, KEY = sha256(b"n").digest(), b"a virtual machin", b"an offer", sha256(b"key").digest()


@pytest.fixture(scope="module")
def server() -> Tower:
    return tower()


@pytest.fixture(scope="module")
def good(server: Tower) -> Evidence:
    session = server.session("launch")
    session.extend(1, KEY)
    return session.attest(N, VMID, CONTENT)


def found(made: Evidence, allowed: Policy | None = None, **other: Any) -> evidence.AttestedFacts:
    wanted = {"n": N, "operation": "launch", "vmid": VMID, "content": CONTENT, "at": AT, **other}
    return check(made, policy=allowed or policy(), **wanted)


def hardware(made: Evidence, **changes: Any) -> Evidence:
    """The evidence with other attributes of its hardware."""
    assert made.hardware is not None
    return replace(made, hardware=replace(made.hardware, **changes))


def quoted(made: Evidence, tpm: MicroTpm, pcrs: tuple[int, ...] = LEVEL1_PCRS) -> Evidence:
    """The evidence with a quote by this TPM, for the same challenge, and by its key."""
    quote = tpm.quote(pcrs, leaf_hash(evidence.leaf(N, CONTENT)))
    return hardware(made, message=quote.message, signature=quote.signature)


def logged(made: Evidence, *events: Event) -> Evidence:
    return replace(made, launch_log=encode_binary(events))


def inner(made: Evidence, quote: QuoteResponse) -> Evidence:
    return replace(made, message=quote.message, signature=quote.signature)


def test_evidence_says_who_speaks_and_what_was_measured(server: Tower) -> None:
    session = server.session("terminate")
    for pcr, data in ((1, KEY), (2, b"image"), (3, b"first report"), (3, b"second")):
        session.extend(pcr, data)
    made = decode(encode(session.attest(N, VMID, CONTENT)))
    said = found(made, operation="terminate")
    assert said == evidence.AttestedFacts(server.identity, server.environment.digest, KEY, b"image", b"second")
    assert said.server == server.tpm.public.name().hex()


def test_a_session_without_a_key_has_none(server: Tower) -> None:
    said = found(server.session("status").attest(N, VMID, CONTENT), operation="status")
    assert (said.session_key, said.image, said.report) == (b"", None, None)


def test_the_chain_of_the_ek_has_to_lead_to_a_ca_of_the_policy(good: Evidence) -> None:
    stranger = Maker("stranger")
    with pytest.raises(EvidenceError, match="no CA of the policy issued"):
        found(hardware(good, ek=stranger.chain()))
    for at in (AT - timedelta(days=2), AT + timedelta(days=366)):
        with pytest.raises(EvidenceError, match=r"not valid before|expired"):
            found(good, at=at)
    with pytest.raises(EvidenceError, match="one of a CA"):
        found(hardware(good, ek=maker().chain(ca=True)))
    with pytest.raises(EvidenceError, match="chain is broken"):
        found(hardware(good, ek=(b"junk",)))
    assert good.hardware is not None
    version_9 = good.hardware.ek[0].replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\x09", 1)
    with pytest.raises(EvidenceError, match="chain is broken"):
        found(hardware(good, ek=(version_9,)))


def test_the_registrar_has_to_have_bound_the_ak_to_the_ek(good: Evidence, server: Tower) -> None:
    with pytest.raises(EvidenceError, match="registrar has not bound"):
        found(hardware(good, enrolment=bytes(64)))
    with pytest.raises(EvidenceError, match="registrar has not bound"):  # another server's TPM, this server's AK
        found(hardware(good, ek=tower().chain))
    with pytest.raises(EvidenceError, match="registrar has not bound"):
        found(hardware(good, ak=sized(MicroTpm().public.encode())))
    with pytest.raises(EvidenceError, match="registrar has not bound"):
        found(hardware(good, enrolment=Maker().enrol(server.chain, server.tpm)))


def test_an_ak_that_signs_anything_is_none(good: Evidence) -> None:
    free = Public.of_key(MicroTpm().public.key(), attributes=1 << 18)
    with pytest.raises(EvidenceError, match="not a restricted signing key"):
        found(hardware(good, ak=sized(free.encode())))


def test_the_quote_has_to_be_of_the_ak_and_of_pcrs_17_and_19(good: Evidence, server: Tower) -> None:
    assert found(quoted(good, server.tpm)).server == server.identity
    with pytest.raises(EvidenceError, match="quote of the server's TPM: signature: it is not one of this message"):
        found(quoted(good, MicroTpm()))
    with pytest.raises(EvidenceError, match="quote of the server's TPM: the quote does not cover PCRs 17, 19"):
        found(quoted(good, server.tpm, (17,)))
    with pytest.raises(EvidenceError, match="quote of the server's TPM"):
        found(hardware(good, signature=b""))


def test_the_log_has_to_replay_to_the_quote(good: Evidence, server: Tower) -> None:
    """The document of an accepted environment, on a server that runs another one; a µTPM that it has not measured."""
    document, public = server.environment.document, Tower(maker(), server.environment)._micro.public.encode()
    with pytest.raises(EvidenceError, match="quote of the server's TPM: the quote is over other PCR values"):
        found(logged(good, *launch_log(document, (public,))))
    evil = tower("dump-guest-memory is allowed").session("launch").attest(N, VMID, CONTENT)
    with pytest.raises(EvidenceError, match="quote of the server's TPM: the quote is over other PCR values"):
        found(replace(evil, launch_log=good.launch_log))


def test_the_log_is_of_one_environment_and_one_micro_tpm(good: Evidence, server: Tower) -> None:
    document, public = server.environment.document, server._micro.public.encode()
    free = Public.of_key(server._micro.public.key(), attributes=1 << 18).encode()
    for events, reason in (
        (launch_log(document, ()), "names 0 µTPMs"),
        (launch_log(document, (public, public)), "names 2 µTPMs"),
        (launch_log(document, (free,)), "µTPM's key is not a restricted signing key"),
        ((Event.of(19, public),), "not one event of PCR 17"),
    ):
        with pytest.raises(EvidenceError, match=reason):
            found(logged(good, *events))


def test_the_environment_has_to_be_in_the_policy() -> None:
    made = tower("dump-guest-memory is allowed").session("launch").attest(N, VMID, CONTENT)
    with pytest.raises(AttestationError, match=r"environment, [0-9a-f]{64}, is not in the policy"):
        found(made)
    assert found(made, policy("dump-guest-memory is allowed")).session_key == b""


def test_an_environment_that_lists_no_tcoms_is_no_tve(good: Evidence) -> None:
    tpm, micro, document = MicroTpm(), MicroTpm(), b'{"format":"quoreduce environment 1"}'
    tpm.extend(17, sha256(document).digest())
    tpm.extend(19, sha256(micro.public.encode()).digest())
    chain = maker().chain()
    made = hardware(good, ek=chain, ak=sized(tpm.public.encode()), enrolment=maker().enrol(chain, tpm))
    made = logged(quoted(made, tpm), *launch_log(document, (micro.public.encode(),)))
    with pytest.raises(EvidenceError, match="lists no TCOMs"):
        found(made, maker().policy(sha256(document).hexdigest()))


def test_a_quote_that_was_made_for_another_challenge_is_stale(good: Evidence, server: Tower) -> None:
    later = server.session("launch").attest(sha256(b"later").digest(), VMID, CONTENT)
    with pytest.raises(EvidenceError, match="does not answer this challenge: it is stale"):
        found(replace(good, hardware=later.hardware))
    for change in ({"index": 1}, {"count": 2}, {"path": (bytes(32),)}):
        with pytest.raises(EvidenceError, match="does not answer this challenge"):
            found(replace(good, **change))


@pytest.mark.parametrize("other", [{"n": bytes(32)}, {"content": b"another offer"}])
def test_evidence_answers_one_challenge_with_one_content(good: Evidence, other: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match="does not answer this challenge"):
        found(good, **other)


def test_the_code_has_to_be_what_the_environment_lists_for_the_operation(good: Evidence) -> None:
    for made, operation in ((good, "terminate"), (good, "dance"), (replace(good, code=b"{}"), "launch")):
        with pytest.raises(EvidenceError, match=f"another TCOM, or none, for {operation}"):
            found(made, operation=operation)


def test_the_micro_tpms_quote_is_for_one_vm_and_one_operation(server: Tower) -> None:
    document, codes = server.environment.document, server.environment.codes
    assert codes["launch"] != codes["restore"]
    made = server.session("launch").attest(N, VMID, CONTENT)
    with pytest.raises(EvidenceError, match="for another challenge, operation, VM or message"):
        found(made, vmid=bytes(16))
    # an operation whose code is the same one
    same = codes["launch"]
    alike = Environment(document.replace(sha256(codes["restore"]).hexdigest().encode(),
                                         sha256(same).hexdigest().encode()),
                        {**codes, "restore": same})  # fmt: skip
    made = Tower(maker(), alike).session("launch").attest(N, VMID, CONTENT)
    with pytest.raises(EvidenceError, match="for another challenge, operation, VM or message"):
        found(made, maker().policy(alike.digest), operation="restore")


def test_two_sessions_cannot_be_spliced(good: Evidence, server: Tower) -> None:
    """The µTPM's quote of another session, whose session key its owner knows, in evidence of this one."""
    other = server.session("launch")
    other.extend(1, bytes(32))
    foreign = other.attest(N, bytes(16), CONTENT)
    for made in (
        replace(good, measured=(Measured(1, bytes(32)),)),
        replace(good, message=foreign.message, signature=foreign.signature),
        replace(good, measured=()),
        replace(good, measured=(*good.measured, Measured(2, b"image"))),
    ):
        with pytest.raises(EvidenceError, match="µTPM"):
            found(made)
    with pytest.raises(EvidenceError, match="quote of the µTPM: the quote is over other PCR values"):
        found(replace(good, measured=(Measured(1, bytes(32)),)))


def test_the_micro_tpm_has_to_sign_and_all_four_registers(good: Evidence, server: Tower) -> None:
    wanted = evidence.nonce(N, "launch", VMID, CONTENT)
    with pytest.raises(EvidenceError, match="quote of the µTPM: signature: it is not one of this message"):
        found(inner(good, MicroTpm().quote(evidence.LEVEL2_PCRS, wanted)))
    with pytest.raises(EvidenceError, match="quote of the µTPM: the quote does not cover PCRs 0, 1, 2, 3"):
        found(inner(good, server._micro.instance().quote((0, 1), wanted)))


def test_a_session_has_one_key_and_one_image(server: Tower) -> None:
    for pcr in (1, 2):
        session = server.session("launch")
        session.extend(pcr, KEY)
        session.extend(pcr, bytes(32))
        with pytest.raises(EvidenceError, match="two keys, or two images"):
            found(session.attest(N, VMID, CONTENT))


def test_a_root_in_software_is_accepted_only_by_a_policy_that_says_so() -> None:
    server = software_tower()
    made = server.session("launch").attest(N, VMID, CONTENT)
    with pytest.raises(EvidenceError, match="backend utpm, which the policy does not accept"):
        found(made)
    allowed = Policy(environments=policy().environments, backends=("utpm",)).checked()
    assert found(made, allowed).server == server.identity
    with pytest.raises(EvidenceError, match="for another challenge"):  # there is no level 1 to say so
        found(made, allowed, n=bytes(32))
    with pytest.raises(EvidenceError, match="too much or too little"):
        found(replace(made, backend="swtpm"))


def test_a_tpm_cannot_be_passed_off_as_software(good: Evidence) -> None:
    allowed = Policy(environments=policy().environments, backends=("utpm",)).checked()
    with pytest.raises(EvidenceError, match="too much or too little"):
        found(replace(good, backend="utpm"), allowed)


@given(data=st.data())
def test_one_flipped_bit_anywhere_is_refused_with_a_typed_error(data: st.DataObject) -> None:
    raw = bytearray(ONE)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(AttestationError):
        found(decode(bytes(raw)))


ONE = encode(tower().session("launch").attest(N, VMID, CONTENT))


@given(raw=st.binary(max_size=200))
def test_junk_is_no_evidence(raw: bytes) -> None:
    with pytest.raises(EvidenceError, match="evidence: "):
        decode(raw)


def test_evidence_is_bounded() -> None:
    with pytest.raises(EvidenceError, match="over the bound"):
        decode(bytes(EVIDENCE_BYTES_MAX + 1))


def test_a_cache_gives_the_same_answers(good: Evidence, server: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = Cache(), server.session("launch").attest(N, VMID, CONTENT)
    assert found(good, cache=store) == found(good, cache=store) == found(good)
    for wrong, reason in (
        ({"n": bytes(32)}, "does not answer"), ({"operation": "backup"}, "another TCOM"),
        ({"vmid": bytes(16)}, "another challenge"),
        ({"at": AT + timedelta(days=400)}, "expired"), ({"allowed": policy("other")}, "not in the policy"),
    ):  # fmt: skip
        with pytest.raises(AttestationError, match=reason):
            found(good, cache=store, **wrong)
    elsewhere = tower()
    foreign_log = elsewhere.session("launch").attest(N, VMID, CONTENT).launch_log
    stranger = Maker("stranger").policy(server.environment.digest)
    for made, allowed, reason in (
        (replace(good, launch_log=foreign_log), policy(), "over other PCR values"),
        (hardware(other, enrolment=elsewhere.enrolled), policy(), "registrar has not bound"),
        (hardware(other, ek=elsewhere.chain), policy(), "registrar has not bound"),
        (hardware(other, ak=sized(elsewhere.tpm.public.encode())), policy(), "registrar has not bound"),
        (good, stranger, "no CA of the policy"),
        (other, stranger, "no CA of the policy"),
    ):
        with pytest.raises(AttestationError, match=reason):
            found(made, allowed, cache=store)
    chains: list[object] = []
    monkeypatch.setattr(evidence, "check_ek_chain", lambda *_: chains.append(1))
    found(good, cache=store)
    found(other, cache=store)
    assert not chains
    found(good, cache=Cache())
    assert chains


def test_a_cache_is_bounded(good: Evidence) -> None:
    store = Cache()
    for seconds in range(evidence.CACHE_MAX + 5):
        found(good, at=AT + timedelta(seconds=seconds), cache=store)
    assert len(store._servers) <= evidence.CACHE_MAX
    assert len(store._keys) <= evidence.CACHE_MAX


def test_many_challenges_share_one_quote_and_each_is_proved_by_itself() -> None:
    server = tower()
    sessions = [server.session("launch") for _ in range(5)]
    nonces = [os.urandom(32) for _ in sessions]
    wanted = [Challenge(one, n, VMID, n) for one, n in zip(sessions, nonces, strict=True)]
    made, store = server.attest_many(wanted), Cache()
    assert len({one.hardware for one in made}) == 1
    for one, n in zip(made, nonces, strict=True):
        assert found(one, n=n, content=n, cache=store).server == server.identity
    assert len(store._servers) == 1
    with pytest.raises(EvidenceError, match="does not answer"):
        found(made[0], n=nonces[1], content=nonces[1])


class Slow:
    """A TPM that is asked to quote, and does so when it may."""

    def __init__(self, tpm: MicroTpm) -> None:
        self._tpm, self.public = tpm, tpm.public
        self.asked, self.may = threading.Semaphore(0), threading.Semaphore(0)
        self.quotes = 0
        self.error: BaseException | None = None

    def quote(self, pcrs: Any, nonce: bytes) -> QuoteResponse:
        self.asked.release()
        assert self.may.acquire(timeout=30)
        self.quotes += 1
        if self.error is not None:
            raise self.error
        return self._tpm.quote(pcrs, nonce)


class Queue(list[Any]):
    """A list that says when something was added."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = threading.Semaphore(0)

    def append(self, one: Any) -> None:
        super().append(one)
        self.joined.release()


def slow_server() -> tuple[TpmAttestor, Slow]:
    made = tower()
    slow = Slow(made.tpm)
    environment = made.environment
    return TpmAttestor(
        "swtpm", slow, made._micro, environment.document, environment.codes, made.chain, made.enrolled
    ), slow


def ask(server: TpmAttestor, n: bytes, into: list[Any]) -> threading.Thread:
    """Ask from a thread of its own; evidence or the error goes ``into``."""

    def run() -> None:
        try:
            into.append(server.session("launch").attest(n, VMID, CONTENT))
        except AttestationError as error:
            into.append(error)
        except HostError as error:
            into.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def queue(server: TpmAttestor, slow: Slow, nonces: list[bytes], into: list[Any]) -> list[threading.Thread]:
    """One caller has the TPM quote; the others queue behind it."""
    threads = [ask(server, nonces[0], into)]
    assert slow.asked.acquire(timeout=30)
    server._waiting = queued = Queue()
    threads += [ask(server, n, into) for n in nonces[1:]]
    assert all(queued.joined.acquire(timeout=30) for _ in nonces[1:])
    return threads


def test_callers_that_wait_while_the_tpm_quotes_share_the_next_quote() -> None:
    server, slow = slow_server()
    nonces = [bytes([number] * 32) for number in range(6)]
    made: list[Evidence] = []
    threads = queue(server, slow, nonces, made)
    slow.may.release(2)
    for thread in threads:
        thread.join(30)
    assert slow.quotes == 2
    assert sorted(one.count for one in made) == [1, 5, 5, 5, 5, 5]
    accepted = [n for n in nonces for one in made if holds(one, n)]
    assert accepted == nonces


def holds(made: Evidence, n: bytes) -> bool:
    try:
        found(made, n=n)
    except AttestationError:
        return False
    return True


def test_a_tpm_that_fails_fails_all_who_wait_for_that_quote_and_the_next_one_is_made() -> None:
    server, slow = slow_server()
    slow.error = HostError("swtpm is gone")
    made: list[Any] = []
    threads = queue(server, slow, [bytes([number] * 32) for number in range(3)], made)
    slow.may.release(2)
    for thread in threads:
        thread.join(30)
    assert [str(one) for one in made] == ["swtpm is gone"] * 3
    slow.error = None
    slow.may.release()
    assert found(server.session("launch").attest(N, VMID, CONTENT)).server == server.identity


def test_a_quote_has_a_bound_on_its_challenges(server: Tower) -> None:
    session = server.session("launch")
    for count in (0, SHARED_MAX + 1):
        with pytest.raises(AttestationError, match=f"1 to {SHARED_MAX} challenges, not {count}"):
            server.attest_many([Challenge(session, N, VMID, CONTENT)] * count)


def test_a_session_extends_its_own_registers_only_and_not_without_end(server: Tower) -> None:
    session = server.session("launch")
    for pcr, data in ((0, b""), (4, b""), (16, b""), (1, bytes(evidence.DATA_BYTES_MAX + 1))):
        with pytest.raises(AttestationError, match=f"µPCR {pcr} cannot be extended"):
            session.extend(pcr, data)
    for _ in range(evidence.EVENTS_MAX):
        session.extend(3, b"report")
    with pytest.raises(AttestationError, match="after 4 events"):
        session.extend(3, b"report")


def test_an_operation_that_is_not_listed_cannot_begin(server: Tower) -> None:
    with pytest.raises(AttestationError, match=f"no TCOM for 'dance'; it has {', '.join(OPERATIONS)}"):
        server.session("dance")
    environment = server.environment
    with pytest.raises(AttestationError, match="lists other TCOMs"):
        Tower(maker(), changed(environment, codes={**environment.codes, "launch": b"{}"}))


def test_nonces_and_ids_have_their_lengths(server: Tower) -> None:
    for n, vmid in ((b"short", VMID), (N, b"short")):
        with pytest.raises(AttestationError, match="32 bytes and a VM's id 16"):
            server.session("launch").attest(n, vmid, CONTENT)


def test_hardware_is_hashable_so_that_a_cache_can_hold_it(good: Evidence) -> None:
    assert isinstance(good.hardware, Hardware)
    assert hash(decode(encode(good))) == hash(good)
