"""Makes evidence (:mod:`quoreduce.vm.evidence`): a server's TPM, its µTPM, and an instance of that for each TCOM.

A TPM in software signs about a hundred quotes a second, a chip two: so all waiting challenges share the next quote.
While one caller's thread has the TPM quote, others queue; the next one takes all that queued, as the leaves of one
Merkle tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Final, Literal, NamedTuple, Protocol

from quoreduce.errors import AttestationError, HostError, QuoreduceError
from quoreduce.trust.evidence import KEYS_PCR, LEVEL1_PCRS, Hardware
from quoreduce.trust.merkle import Tree
from quoreduce.trust.node import SCHEME, TURN_S, read_enrolment
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.wire import Public, QuoteResponse, sized
from quoreduce.vm.evidence import (
    CODE,
    DATA_BYTES_MAX,
    EVENTS_MAX,
    LEVEL2_PCRS,
    REPORT,
    SESSION_KEY,
    Evidence,
    Measured,
    leaf,
    level1_log,
    listed_codes,
    nonce,
)

SHARED_MAX: Final = 4096  # challenges under one quote


class Challenge(NamedTuple):
    """What :meth:`TpmAttestor.attest_many` answers: a session, the nonce n (32 bytes), the VM's id (16 bytes), the
    content.
    """

    session: TcomInstance
    n: bytes
    vmid: bytes
    content: bytes


class Quoting(Protocol):
    """A server's TPM as far as it is used here: launched, PCR 19 extended by the µTPM's public area."""

    @property
    def public(self) -> Public:
        """The public area of the AK."""

    def quote(self, pcrs: Sequence[int], nonce: bytes) -> QuoteResponse:
        """Sign the values of ``pcrs`` and ``nonce``."""


class TcomInstance:
    """A TCOM's instance of the µTPM (:class:`quoreduce.vm.evidence.TcomTpm`): code in µPCR 0. For one thread at a
    time.
    """

    def __init__(self, attestor: TpmAttestor, micro: MicroTpm, operation: str, code: bytes) -> None:
        self._attestor, self._micro, self.operation, self._code = attestor, micro, operation, code
        self._measured: list[Measured] = []
        micro.extend(CODE, sha256(code).digest())

    def extend(self, pcr: int, data: bytes) -> None:
        """Extend SHA-256 of ``data`` into µPCR 1, 2 or 3. Raises AttestationError for another, too long data, or too
        many extends.
        """
        if not SESSION_KEY <= pcr <= REPORT or len(data) > DATA_BYTES_MAX or len(self._measured) == EVENTS_MAX:
            raise AttestationError(
                f"µPCR {pcr} cannot be extended by {len(data)} bytes after {len(self._measured)} events"
            )
        self._micro.extend(pcr, sha256(data).digest())
        self._measured.append(Measured(pcr, data))

    def attest(self, n: bytes, vmid: bytes, content: bytes) -> Evidence:
        """Make E(n) for ``content``; it shares the server's quote with others that wait."""
        return self._attestor.attest_many([Challenge(self, n, vmid, content)])[0]

    def _quote(self, challenge: Challenge) -> tuple[QuoteResponse, bytes, tuple[Measured, ...]]:
        wanted = nonce(challenge.n, self.operation, challenge.vmid, challenge.content)
        return self._micro.quote(LEVEL2_PCRS, wanted), self._code, tuple(self._measured)


@dataclass(slots=True)
class _Waiting:
    """The leaves of one caller, and the result: the quote, and for each leaf index, count and path; or an error."""

    leaves: list[bytes]
    hardware: Hardware | None = None
    places: list[tuple[int, int, tuple[bytes, ...]]] = field(default_factory=list)
    error: QuoreduceError | None = None
    done: bool = False


class TpmAttestor:
    """A server's root. Threads may share it.

    Args:
        backend: of its TPM.
        tpm: launched already, as :class:`Quoting` says; None: a root in software only, for which nobody vouches.
        micro: the µTPM, of this process.
        document: the TVE document.
        codes: the TCOM documents that it lists, by operation.
        ek: the chain of the EK's certificate, DER;
        enrolment: the registrar's signature. Empty without a TPM.

    Raises:
        EvidenceError: the TVE document is malformed.
        AttestationError: the codes are not those that it lists.
    """

    def __init__(
        self,
        backend: Literal["utpm", "swtpm", "tpm2"],
        tpm: Quoting | None,
        micro: MicroTpm,
        document: bytes,
        codes: Mapping[str, bytes],
        ek: tuple[bytes, ...] = (),
        enrolment: bytes = b"",
    ) -> None:
        if listed_codes(document) != {name: sha256(code).hexdigest() for name, code in codes.items()}:
            raise AttestationError("the TVE document lists other TCOMs than those given: measure both together")
        self._backend, self._tpm, self._micro, self._codes = backend, tpm, micro, dict(codes)
        self._ek, self._enrolment = ek, enrolment
        self._log = level1_log(document, micro.public)
        self._ak = sized(tpm.public.encode()) if tpm else b""
        self.identity: str = (tpm or micro).public.name().hex()
        self._waiting: list[_Waiting] = []
        self._guard, self._turn = Lock(), Lock()  # of the list; of the TPM

    def session(self, operation: str) -> TcomInstance:
        """Begin a TCOM in an instance of its own. Raises AttestationError for an operation that the environment does
        not list.
        """
        code = self._codes.get(operation)
        if code is None:
            raise AttestationError(
                f"the environment lists no TCOM for {operation!r}; it has {', '.join(self._codes) or 'none'}"
            )
        return TcomInstance(self, self._micro.instance(), operation, code)

    def attest_many(self, challenges: Sequence[Challenge]) -> list[Evidence]:
        """Answer all these challenges under one quote of the server's TPM, at most SHARED_MAX.

        Raises:
            AttestationError: too many, a nonce or id of a wrong length, or a TPM refuses.
            HostError: the TPM does not answer.
        """
        if not 1 <= len(challenges) <= SHARED_MAX:
            raise AttestationError(f"one quote answers 1 to {SHARED_MAX} challenges, not {len(challenges)}")
        inner = [one.session._quote(one) for one in challenges]
        mine = _Waiting([leaf(one.n, one.content) for one in challenges])
        if self._tpm is None:
            mine.places = [(0, 1, ())] * len(inner)
        else:
            self._share(self._tpm, mine)
        return [
            Evidence(self._backend, self._log, mine.hardware, *place, code, measured, quoted.message, quoted.signature)
            for (quoted, code, measured), place in zip(inner, mine.places, strict=True)
        ]

    def close(self) -> None:
        """Forget the µTPM's key."""
        self._micro.close()

    def _share(self, tpm: Quoting, mine: _Waiting) -> None:
        """Wait for the TPM; have it quote for all that wait by then, unless another thread has done so for us."""
        with self._guard:
            self._waiting.append(mine)
        with self._turn:
            while not mine.done:
                with self._guard:
                    batch = _first(self._waiting)
                    del self._waiting[: len(batch)]
                self._answer(tpm, batch)
        if mine.error is not None:
            raise mine.error

    def _answer(self, tpm: Quoting, batch: Sequence[_Waiting]) -> None:
        error: QuoreduceError | None = HostError("the quote of the server's TPM was interrupted: ask again")
        try:
            tree = Tree([leaf for one in batch for leaf in one.leaves])
            quoted = tpm.quote(LEVEL1_PCRS, tree.root)
            hardware = Hardware(self._ek, self._ak, self._enrolment, quoted.message, quoted.signature)
            paths = tree.proofs()
            places = iter([(index, len(paths), path) for index, path in enumerate(paths)])
            for one in batch:
                one.hardware, one.places = hardware, list(islice(places, len(one.leaves)))
            error = None
        except QuoreduceError as raised:
            error = raised
        finally:
            for one in batch:
                one.error, one.done = error, True


class SwtpmAttestor(TpmAttestor):
    """A server whose TPM is swtpm, enrolled by :func:`quoreduce.trust.node.setup_node`; it also plays the CPU's late
    launch.

    Make it in a thread that lives as long as it is used, because swtpm ends with that thread. It locks the TPM.

    Args:
        state: the node's state folder.
        document, codes: see :class:`TpmAttestor`.

    Raises:
        HostError: swtpm is missing, the folder holds no enrolled TPM, or another process uses it.
    """

    def __init__(self, state: Path, document: bytes, codes: Mapping[str, bytes]) -> None:
        from quoreduce.trust.swtpm import Swtpm

        enrolment = read_enrolment(state, "swtpm")
        micro = MicroTpm()
        self._swtpm = tpm = Swtpm(state / "swtpm", SCHEME, wait_s=TURN_S)
        try:
            tpm.launch(document)
            tpm.extend_launched(KEYS_PCR, sha256(micro.public.encode()).digest())
            super().__init__(
                "swtpm", tpm, micro, document, codes, (tpm.ek_certificate, *enrolment.chain), enrolment.signature
            )
        except BaseException:
            tpm.close()
            raise

    def close(self) -> None:
        """Forget the µTPM's key and stop swtpm; may be called again."""
        super().close()
        self._swtpm.close()


class SoftwareAttestor(TpmAttestor):
    """A server without a TPM: nobody vouches for it, and its name lasts as long as the process.

    For machines without swtpm; only policies that accept the backend ``utpm`` accept it. Arguments as of
    :class:`TpmAttestor`.
    """

    def __init__(self, document: bytes, codes: Mapping[str, bytes]) -> None:
        super().__init__("utpm", None, MicroTpm(), document, codes)


def _first(waiting: Iterable[_Waiting]) -> list[_Waiting]:
    """The first ones, up to SHARED_MAX leaves."""
    taken, leaves = [], 0
    for one in waiting:
        leaves += len(one.leaves)
        if leaves > SHARED_MAX:
            break
        taken.append(one)
    return taken
