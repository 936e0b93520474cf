"""What the tests of attested jobs share: who vouches for workers, one small job, and a session to meddle with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from meddling import Meddler, Said
from runs import WORDCOUNT, left_in, parts_of

from quoreduce import Options, Result, Session
from quoreduce.data.digest import Digester
from quoreduce.protocol import wire
from quoreduce.protocol.options import Attest
from quoreduce.runtime.session import verify
from quoreduce.trust.evidence import KINDS
from quoreduce.trust.policy import Policy
from quoreduce.trust.receipt import Receipt, decode_receipt
from quoreduce.trust.verifier import Verification, verify_receipt

MAPS, REDUCES = 6, 3
SPLIT_MB = 0.005
TASKS = {"split_mb": SPLIT_MB, "reducers": REDUCES}
EVIL = "worker1"
NONCE = sha256(b"a challenger's").hexdigest()


@dataclass(frozen=True)
class Root:
    """What vouches for the workers of this machine."""

    backend: Any
    state: Path
    policy: Policy

    def attest(self, **changes: Any) -> Attest:
        return Attest(**({"backend": self.backend, "state": str(self.state)} | changes))

    def verify(self, result: Result, **changes: Any) -> Verification:
        output = Path(result.output)
        known: dict[str, Any] = {
            "policy": self.policy,
            "now": datetime.now(UTC),
            "manifest": (output / "_SUCCESS").read_bytes(),
        }
        return verify_receipt((output / "_RECEIPT.json").read_bytes(), **(known | changes))

    def accepted(self, result: Result, **changes: Any) -> Receipt:
        """The receipt, if a verifier accepts it."""
        verdict = self.verify(result, **changes)
        assert verdict.accepted, verdict.as_text()
        return decode_receipt((Path(result.output) / "_RECEIPT.json").read_bytes())


def part_digests(result: Result) -> dict[str, str]:
    """The digests of the parts as they lie there, by name."""
    digester = Digester("blake3")
    return {path.name: digester.file(path).hex() for path in sorted(Path(result.output).glob("part-*"))}


def losers(receipt: Receipt) -> dict[tuple[str, int], int]:
    """Executions whose output lost the vote, by task."""
    return {(KINDS[entry.kind], entry.index): len(entry.leaves) for entry in receipt.tasks if not entry.agreed}


def leaves(receipt: Receipt) -> int:
    """How many executions a receipt lists."""
    return sum(len(entry.leaves) for entry in receipt.tasks)


def run_meddled(
    both: tuple[Session, Meddler], text: Path, folder: Path, root: Root, **options: Any
) -> tuple[Result, list[bytes]]:
    """Run the job attested, in a session to meddle with: (result, parts)."""
    attest = options.pop("attest", root.attest())
    output = folder / "out"
    try:
        result = both[0].run(WORDCOUNT, [str(text)], str(output), Options(**TASKS, attest=attest, **options))
    except BaseException:
        assert left_in(folder) == [], "a job that failed leaves nothing (R8)"
        raise
    assert left_in(folder) == ["out"]
    assert verify(str(output)).ok
    return result, parts_of(output)


def said_by_evil(
    kind: type[wire.Reply], change: Callable[[Any], Sequence[Said]]
) -> Callable[[str, wire.Reply], Sequence[Said]]:
    """Let ``change`` alter what one worker says in replies of one kind."""
    return lambda worker, reply: change(reply) if worker.startswith(EVIL) and isinstance(reply, kind) else [reply]


def flipped(data: bytes, at: int = -1) -> bytes:
    """The same with one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)
