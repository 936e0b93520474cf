"""A TPM 2.0 behind the port, with any transport: the socket of swtpm, or a device.

The attestation key (AK) is a restricted signing primary key of the endorsement hierarchy, so the same TPM makes the
same AK after each start. At most three objects are in the TPM at a time (the slots that a TPM must have): the AK, a
storage key and a sealed secret.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeAlias

from quoreduce.errors import AttestationError, EvidenceError, HostError, UsageError
from quoreduce.trust import commands, wire
from quoreduce.trust.commands import TpmResponse
from quoreduce.trust.port import SCHEMES, SECRET_BYTES_MAX
from quoreduce.trust.wire import PcrSelection, Public, QuoteResponse, TpmReader, sized

Transmit: TypeAlias = Callable[[bytes], bytes]  # a command in, its response out; HostError if none comes

# NV indices of EK certificates, in order of preference (TCG EK Credential Profile 2.5, 2.2.1.4): each with the template
# of a key that no persistent handle holds; the P-384 key is always persistent on swtpm
_CERTIFICATES: Final = {
    "ecc": ((0x01C00016, None), (0x01C0000A, commands.EK_P256)),
    "rsa": ((0x01C00002, commands.EK_RSA),),
}
_NV_CHUNK_BYTES: Final = 512  # any TPM reads this many at once
_CERTIFICATE_BYTES_MAX: Final = 8192
_QUOTE_TRIES: Final = 16
_SENDS: Final = 5  # of one command: a TPM asks for it again, say after the first use of a key since its start
_RANDOM_BYTES: Final = 32  # of one GetRandom: any TPM gives so many
_SESSION_NONCE_BYTES: Final = 16


class _Ek(NamedTuple):
    """The endorsement key: a persistent handle, or the template to make it from; public area; certificate, DER."""

    source: int | Public
    public: Public
    certificate: bytes


class Tpm2:
    """A TPM 2.0 that started up; owns its AK in it until :meth:`close`.

    Args:
        transmit: sends one command and returns its response.
        name: the backend's.
        scheme: of the AK: ecdsa (P-256) or rsassa (2048 bits).
        ek: which endorsement key certifies it: ecc or rsa.

    Raises:
        UsageError: an unknown scheme or kind of EK.
        AttestationError, HostError: as of the port.
    """

    modelled: Final = False

    def __init__(self, transmit: Transmit, name: str, scheme: str = "ecdsa", ek: str = "ecc") -> None:
        check_kinds(scheme, ek)
        self.name = name
        self._transmit = transmit
        self._ek_kind = ek
        self._ek_found: _Ek | None = None
        self._extend_heads = [commands.extend_head(pcr) for pcr in range(wire.PCRS)]
        self._lock = threading.RLock()
        made = self._send(commands.create_primary(wire.RH_ENDORSEMENT, commands.AK_TEMPLATES[scheme]), handle=True)
        self._ak = made.handle
        self.public = Public.decode(made.parameters.sized())

    def extend(self, pcr: int, digest: bytes) -> None:
        """Set ``pcr`` to SHA-256(its value, ``digest``); ``digest`` has 32 bytes."""
        if len(digest) != 32:
            raise EvidenceError(f"a SHA-256 PCR is extended with 32 bytes, not {len(digest)}")
        self._send(self._extend_heads[_checked(pcr)] + digest)

    def read(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Return the values of these PCRs, 32 bytes each."""
        wanted = sorted({_checked(pcr) for pcr in pcrs})
        values: dict[int, bytes] = {}
        with self._lock:
            while left := [pcr for pcr in wanted if pcr not in values]:
                found = commands.read_pcr_read(self._send(commands.pcr_read(PcrSelection.sha256(*left))).parameters)
                if not found or not found.keys() <= set(left):
                    raise AttestationError(f"the TPM gives no values of PCRs {left}: is its SHA-256 bank active?")
                values.update(found)
        return values

    def reset(self, pcr: int) -> None:
        """Set PCR 16 or 23 to zeros; the others are refused."""
        self._send(commands.pcr_reset(_checked(pcr)))

    def quote(self, pcrs: Sequence[int], nonce: bytes) -> QuoteResponse:
        """Sign the values of ``pcrs`` and ``nonce``; read and quoted again if a PCR was extended in between."""
        if len(nonce) > wire.NONCE_BYTES_MAX:
            raise UsageError(f"a nonce has at most {wire.NONCE_BYTES_MAX} bytes, not {len(nonce)}")
        selection = PcrSelection.sha256(*pcrs)
        command = commands.quote(self._ak, selection, nonce)
        for _ in range(_QUOTE_TRIES):
            with self._lock:
                values = self.read(pcrs)
                message, signature = commands.read_quote(self._send(command).parameters)
            wire.Signature.decode(signature)
            quoted = wire.Quote.decode(message)
            if quoted.selection != selection:
                raise AttestationError(f"the TPM quotes {quoted.selection.banks}, asked for {selection.banks}")
            if quoted.pcr_digest == wire.pcr_digest([values[pcr] for pcr in sorted(values)]):
                return QuoteResponse(message, signature, values)
        raise AttestationError(
            f"PCRs {sorted(set(pcrs))} changed during each of {_QUOTE_TRIES} quotes: who else extends them?"
        )

    def random(self, size: int) -> bytes:
        """Return ``size`` random bytes."""
        found = b""
        while len(found) < size:
            more = self._send(commands.get_random(min(size - len(found), _RANDOM_BYTES))).parameters.sized(
                _RANDOM_BYTES
            )
            if not more:
                raise HostError("the TPM gives no random bytes")
            found += more
        return found

    def seal(self, secret: bytes, pcrs: Sequence[int]) -> bytes:
        """Return a blob from which only this TPM gives ``secret`` (1 to 128 bytes), while ``pcrs`` are as now."""
        if not 0 < len(secret) <= SECRET_BYTES_MAX:
            raise UsageError(f"a sealed secret has 1 to {SECRET_BYTES_MAX} bytes, not {len(secret)}")
        selection = PcrSelection.sha256(*pcrs)
        with self._lock, self._loaded(commands.create_primary(wire.RH_OWNER, commands.STORAGE)) as storage:
            values = self.read(pcrs)
            template = commands.sealed_template(commands.pcr_policy(selection, [values[pcr] for pcr in sorted(values)]))
            private, public = commands.read_create(self._send(commands.create(storage, secret, template)).parameters)
        return selection.encode() + sized(private) + sized(public)

    def unseal(self, blob: bytes) -> bytes:
        """Return the secret of a blob; refused if its PCRs changed, or it is another TPM's or tampered with."""
        reader = TpmReader(blob, "sealed blob")
        selection, private, public = PcrSelection.decode(reader), reader.sized(), reader.sized()
        reader.end()
        with (
            self._lock,
            self._loaded(commands.create_primary(wire.RH_OWNER, commands.STORAGE)) as storage,
            self._loaded(commands.load(storage, private, public)) as sealed,
            self._policy_session(wire.ALG_SHA256) as session,
        ):
            self._send(commands.policy_pcr(session, selection))
            return self._send(commands.unseal(sealed, commands.policy(session))).parameters.sized(SECRET_BYTES_MAX)

    @property
    def ek_public(self) -> Public:
        """The public area of the EK."""
        return self._ek().public

    @property
    def ek_certificate(self) -> bytes:
        """The EK's certificate, X.509, DER."""
        return self._ek().certificate

    def activate(self, credential: bytes, encrypted_secret: bytes) -> bytes:
        """Open a credential that was made for this EK and this AK; refused if it was made for another pair."""
        with self._lock, self._ek_handle() as ek, self._ek_authorization() as authorization:
            command = commands.activate_credential(self._ak, ek, authorization, credential, encrypted_secret)
            return self._send(command).parameters.sized(wire.DIGEST_BYTES_MAX)

    def close(self) -> None:
        """Take the AK out of the TPM; the caller closes the transport."""
        with self._lock:
            handle, self._ak = self._ak, 0
            if handle:
                self._send(commands.flush(handle))

    def _send(self, command: bytes, *, handle: bool = False) -> TpmResponse:
        with self._lock:
            response = self._transmit(command)
            for _ in range(_SENDS - 1):
                if commands.response_code(response) not in commands.SEND_AGAIN:
                    break
                response = self._transmit(command)
        return commands.answer(command, response, handle=handle)

    @contextmanager
    def _loaded(self, command: bytes) -> Iterator[int]:
        """Run a command that returns the handle of an object or session; take it out of the TPM at the end."""
        handle = self._send(command, handle=True).handle
        try:
            yield handle
        finally:
            self._send(commands.flush(handle))

    @contextmanager
    def _policy_session(self, hash_alg: int) -> Iterator[int]:
        """Start a policy session, for one command; it is taken out of the TPM if that command is not sent or is
        refused.
        """
        nonce = self.random(_SESSION_NONCE_BYTES)
        session = self._send(commands.start_policy_session(nonce, hash_alg), handle=True).handle
        try:
            yield session  # the TPM ends it with the command that it authorizes
        except AttestationError:
            self._send(commands.flush(session))
            raise

    @contextmanager
    def _ek_authorization(self) -> Iterator[bytes]:
        """Give what authorizes the EK: its empty password if it takes one, or the policy of the default templates."""
        public = self._ek().public
        if public.attributes & wire.USER_WITH_AUTH:
            yield commands.EMPTY
            return
        with self._policy_session(public.name_alg) as session:
            self._send(commands.policy_secret_endorsement(session))
            yield commands.policy(session)

    @contextmanager
    def _ek_handle(self) -> Iterator[int]:
        source = self._ek().source
        if isinstance(source, int):
            yield source
        else:
            with self._loaded(commands.create_primary(wire.RH_ENDORSEMENT, source)) as handle:
                yield handle

    def _ek(self) -> _Ek:
        """Find the EK: the certificate in the TPM, and the key that it certifies."""
        with self._lock:
            self._ek_found = self._ek_found or self._find_ek()
            return self._ek_found

    def _find_ek(self) -> _Ek:
        for index, template in _CERTIFICATES[self._ek_kind]:
            if (certificate := self._nv_certificate(index)) is None:
                continue
            sources: list[int | Public] = [*self._persistent_handles(), *([template] if template else [])]
            for source in sources:
                public = self._public_of(source)
                if public is not None and certifies(certificate, public):
                    return _Ek(source, public, certificate)
        raise AttestationError(f"the TPM has no {self._ek_kind} endorsement key with a certificate")

    def _nv_certificate(self, index: int) -> bytes | None:
        try:
            size = commands.read_nv_size(self._send(commands.nv_read_public(index)).parameters)
        except commands.TpmRefusal as refusal:
            if refusal.reason == "HANDLE":
                return None  # no such index
            raise
        if size > _CERTIFICATE_BYTES_MAX:
            raise EvidenceError(
                f"the EK certificate at {index:#x} has {size} bytes, more than {_CERTIFICATE_BYTES_MAX}"
            )
        data = b""
        while len(data) < size:
            part = min(_NV_CHUNK_BYTES, size - len(data))
            data += self._send(commands.nv_read(index, len(data), part)).parameters.sized(part)
        return _without_padding(data)

    def _persistent_handles(self) -> list[int]:
        return commands.read_handles(self._send(commands.get_persistent_handles()).parameters)

    def _public_of(self, source: int | Public) -> Public | None:
        """Read the public area of a persistent key, or of the key that a template makes; None if its kind is
        unknown here.
        """
        if isinstance(source, Public):
            made = self._send(commands.create_primary(wire.RH_ENDORSEMENT, source), handle=True)
            self._send(commands.flush(made.handle))
            return Public.decode(made.parameters.sized())
        area = self._send(commands.read_public(source)).parameters.sized()
        try:
            return Public.decode(area)
        except EvidenceError:
            return None


def check_kinds(scheme: str, ek: str) -> None:
    """Raise UsageError for an unknown scheme of AK or kind of EK."""
    if scheme not in SCHEMES:
        raise UsageError(f"unknown signature scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if ek not in _CERTIFICATES:
        raise UsageError(f"unknown kind of endorsement key {ek!r}: choose one of {', '.join(_CERTIFICATES)}")


def certifies(certificate: bytes, public: Public) -> bool:
    """Tell whether an X.509 certificate (DER) is for the key of this public area. Raises EvidenceError if either is
    malformed.
    """
    if public.kind == wire.ALG_KEYEDHASH:
        return False
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(certificate).public_key() == public.key()
    except (ValueError, TypeError) as error:
        raise EvidenceError(f"EK certificate: {error}") from error


def _checked(pcr: int) -> int:
    if not 0 <= pcr < wire.PCRS:
        raise EvidenceError(f"PCRs are 0..{wire.PCRS - 1}, not {pcr}")
    return pcr


def _without_padding(data: bytes) -> bytes:
    """Return the first DER SEQUENCE: an NV index may be larger than the certificate in it."""
    if len(data) >= 4 and data[:2] == b"\x30\x82":
        return data[: 4 + int.from_bytes(data[2:4], "big")]
    return data
