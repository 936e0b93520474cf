"""``quoreduce attest``: prepare this machine, quote, verify what others attest, measure what it costs."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quoreduce.arguments import Parser
from quoreduce.errors import AttestationError, HostError, InputError, OutputError, UsageError
from quoreduce.limits import NUMBERS, Numbers
from quoreduce.printable import printable_name
from quoreduce.reading import close_quietly, open_regular, read_file

if TYPE_CHECKING:
    from quoreduce.trust.eventlog import Event
    from quoreduce.trust.node import Backend
    from quoreduce.trust.port import Tpm
    from quoreduce.trust.verifier import Verification

MEASURE = "import sys; from quoreduce.trust.measure import environment; sys.stdout.buffer.write(environment())"
MEASURE_TIMEOUT_S = 60
QUOTE_FILES = ("ak.pem", "ak.tss", "quote.msg", "quote.sig", "quote.pcrs", "eventlog.bin")
FILE_BYTES_MAX = 64 << 20
STATE_HELP = "folder of setup (default: QUOREDUCE_ATTEST, or in ~/.local/state)"


def parser() -> argparse.ArgumentParser:
    """Build the parser of all of its commands."""
    top = Parser(
        prog="quoreduce attest",
        description="Evidence of what ran: quotes of a TPM, receipts of jobs. See docs/guide/attestation.md.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _setup_parser(commands)
    _quote_parser(commands)
    verify = commands.add_parser(
        "verify", help="check the receipt of an output, or a folder with a quote, whoever wrote it"
    )
    verify.add_argument(
        "target", metavar="OUTPUT|DIR", help="an attested output, or a folder with quote.msg, quote.sig, ak.pem"
    )
    verify.add_argument("--policy", metavar="FILE", help="of receipts: what is trusted (default: the one of setup)")
    verify.add_argument("--nonce", metavar="HEX", help="that it has to answer; a quote needs one")
    verify.add_argument("--state", metavar="DIR", help=STATE_HELP)
    verify.add_argument(
        "--no-parts", action="store_true", help="do not read the parts: the receipt and the manifest only"
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    bench = commands.add_parser(
        "bench", help="measure what attesting a task costs: modelled hardware, swtpm, µTPM; batches"
    )
    bench.add_argument(
        "--tasks", type=NUMBERS["tasks"], default=4096, metavar="N",
        help="for each figure (default 4096; slow ones get fewer)",
    )  # fmt: skip
    bench.add_argument(
        "--sizes", type=Numbers(NUMBERS["batch"]), default="1,16,64,256,1024", metavar="N,...",
        help="of batches (default 1,16,64,256,1024)",
    )  # fmt: skip
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def _setup_parser(commands: Any) -> None:
    setup = commands.add_parser(
        "setup", help="prepare this machine: its TPM, enrolled, and a policy that allows its environment",
        description="Makes a software TPM with a certified endorsement key, enrols its attestation key, measures the "
        "environment that workers of this installation have, and writes policy.json. Repeat it when the "
        "installation changes.",
    )  # fmt: skip
    setup.add_argument(
        "--backend", choices=["swtpm", "utpm"], help="default: swtpm if installed; utpm: a root in software"
    )
    setup.add_argument(
        "--environment", action="append", default=[], metavar="HEX", help="allow this one too (may be repeated)"
    )
    setup.add_argument("--state", metavar="DIR", help=STATE_HELP)
    setup.add_argument("--json", action="store_true", help="print one JSON object")


def _quote_parser(commands: Any) -> None:
    quote = commands.add_parser(
        "quote", help="quote PCRs, as files that tpm2_checkquote reads",
        description="Writes ak.pem, ak.tss, quote.msg, quote.sig, quote.pcrs and eventlog.bin. A µTPM is made for the "
        "quote: the environment is in its PCR 0, files to be measured in PCR 16. swtpm launches the environment "
        "(PCR 17). A device is quoted as it is.",
    )  # fmt: skip
    quote.add_argument(
        "--pcrs", type=Numbers(NUMBERS["pcr"]), default="0,16", metavar="N,...",
        help="of the SHA-256 bank (default 0,16)",
    )  # fmt: skip
    quote.add_argument("--nonce", required=True, metavar="HEX", help="1 to 64 bytes")
    quote.add_argument(
        "--scheme", choices=["ecdsa", "rsassa"], default="ecdsa", help="of the key: P-256 (default) or RSA-2048"
    )
    quote.add_argument("--backend", choices=["utpm", "swtpm", "tpm2", "modelled"], default="utpm", help="default utpm")
    quote.add_argument("--device", metavar="TCTI", help="of backend tpm2 (default device:/dev/tpmrm0)")
    quote.add_argument(
        "--measure", action="append", default=[], metavar="FILE",
        help="extend the hash of this file into PCR 16 (repeatable)",
    )  # fmt: skip
    quote.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    quote.add_argument("--state", metavar="DIR", help=STATE_HELP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    a = parser().parse_args(argv)
    return {"setup": _setup, "quote": _quote, "verify": _verify, "bench": _bench}[a.command](a)


def _setup(a: argparse.Namespace) -> int:
    from quoreduce.trust.node import setup_node, state_folder

    state = state_folder(a.state)
    backend: Backend = a.backend or ("swtpm" if shutil.which("swtpm") and shutil.which("swtpm_setup") else "utpm")
    document = worker_environment()
    environment = hashlib.sha256(document).hexdigest()
    policy = setup_node(state, backend, list(dict.fromkeys([environment, *a.environment])))
    known = {
        "state": str(state), "backend": backend, "policy": str(state / "policy.json"), "environment": environment,
        "document": json.loads(document), "environments": list(policy.environments),
    }  # fmt: skip
    if a.json:
        print(json.dumps(known))
        return 0
    print(f"environment  {environment}")
    print(f"backend      {backend}" + _advice(backend, a.backend))
    count = len(policy.environments)
    print(f"policy       {printable_name(known['policy'])} ({count} environment{'s' * (count > 1)})")
    print("next         quoreduce run JOB INPUT... OUTPUT --attest; quoreduce attest verify OUTPUT")
    return 0


def _advice(backend: str, asked: str | None) -> str:
    if backend == "swtpm" or asked:
        return ""
    return (
        ": a root in software only, because swtpm is not installed (Debian, Ubuntu: apt-get install swtpm swtpm-tools)"
    )


def worker_environment() -> bytes:
    """The document of the environment that a worker has on this machine. Raises HostError if it cannot be measured."""
    from quoreduce.protocol.compile import ensure_kernels
    from quoreduce.protocol.port import worker_env

    ensure_kernels(lambda text: print(text, file=sys.stderr))
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", MEASURE], env={**os.environ, **worker_env(), "PYTHONPATH": path},
            capture_output=True, timeout=MEASURE_TIMEOUT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"cannot measure the environment: {error}") from error
    return done.stdout


def _quote(a: argparse.Namespace) -> int:
    from quoreduce.trust.eventlog import encode_binary
    from quoreduce.trust.wire import PcrSelection, encode_pcrs_file, sized

    pcrs = sorted(set(a.pcrs))
    nonce = _hex(a.nonce, 1, 64)
    out = Path(a.out)
    if out.exists():
        raise OutputError(f"the folder {out} exists; choose another")
    tpm, events = _quoted_tpm(a)
    try:
        quoted = tpm.quote(pcrs, nonce)
        public = tpm.public
    finally:
        tpm.close()
    log = encode_binary([event for event in events if event.pcr in pcrs])
    contents = (
        public.pem(), sized(public.encode()), quoted.message, quoted.signature,
        encode_pcrs_file(PcrSelection.sha256(*pcrs), quoted.values), log,
    )  # fmt: skip
    _write_folder(out, dict(zip(QUOTE_FILES, contents, strict=True)))
    label = " (modelled: a µTPM plays it)" * tpm.modelled
    print(f"{printable_name(out)}: quote of {tpm.name}{label} over PCRs {', '.join(map(str, pcrs))}; check it:")
    print(f"quoreduce attest verify {out} --nonce {nonce.hex()}")
    print(
        f"tpm2_checkquote -u {out}/ak.pem -m {out}/quote.msg -s {out}/quote.sig -f {out}/quote.pcrs -g sha256"
        f" -q {nonce.hex()}"
    )
    return 0


def _quoted_tpm(a: argparse.Namespace) -> tuple[Tpm, list[Event]]:
    """The TPM to be quoted, and the events that were extended into it just now."""
    from quoreduce.trust.eventlog import Event
    from quoreduce.trust.evidence import CODE_PCR, ENVIRONMENT_PCR
    from quoreduce.trust.measure import environment

    files = [Event.of(16, _hash_of(name)) for name in a.measure]
    if a.backend == "swtpm":
        from quoreduce.trust.node import state_folder
        from quoreduce.trust.swtpm import Swtpm

        swtpm = Swtpm(state_folder(a.state) / "swtpm", a.scheme)
        swtpm.launch(environment())
        return _extended(swtpm, files), [Event.of(ENVIRONMENT_PCR, environment()), *files]
    if a.backend == "tpm2":
        from quoreduce.trust.device import DEVICE, DeviceTpm

        return _extended(DeviceTpm(a.device or DEVICE, a.scheme), files), files
    if a.backend == "modelled":
        from quoreduce.trust.modelled import DEFAULT_CHIP, ModelledTpm

        tpm: Tpm = ModelledTpm(DEFAULT_CHIP, a.scheme)
    else:
        from quoreduce.trust.utpm import MicroTpm

        tpm = MicroTpm(a.scheme)
    events = [Event.of(CODE_PCR, environment()), *files]
    return _extended(tpm, events), events


def _extended(tpm: Tpm, events: Sequence[Event]) -> Tpm:
    for event in events:
        tpm.extend(event.pcr, event.digest)
    return tpm


def _hash_of(name: str) -> bytes:
    """The measured data of a file: its name and its hash, as canonical JSON."""
    from quoreduce.trust.measure import canonical

    try:
        with open(open_regular(name), "rb") as file:
            return canonical(
                {"file": os.path.basename(name), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            )
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error


def _write_folder(out: Path, contents: dict[str, bytes]) -> None:
    """Write a folder, whole or not at all."""
    staging = out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")
    made = False
    try:
        staging.mkdir(parents=True)
        made = True
        for name, data in contents.items():
            (staging / name).write_bytes(data)
        staging.rename(out)
    except OSError as error:
        if made:
            shutil.rmtree(staging, ignore_errors=True)
        raise OutputError(f"cannot write {out}: {error.strerror}; choose another folder") from error


def _verify(a: argparse.Namespace) -> int:
    from quoreduce.data.commit import RECEIPT

    target = Path(a.target)
    if _holds(target, RECEIPT):
        verdict = _verify_output(a, target)
    elif _holds(target, "quote.msg"):
        verdict = _verify_quote(a, target)
    else:
        raise InputError(
            f"{target} holds neither {RECEIPT}, as an attested output does, nor quote.msg: nothing to verify"
        )
    print(verdict.as_json() if a.json else verdict.as_text(), end="")
    if not verdict.accepted:
        raise AttestationError(f"{target}: refused: {verdict.reason}")
    return 0


def _holds(folder: Path, name: str) -> bool:
    try:
        return os.path.lexists(folder / name)
    except ValueError:  # a NUL in the name
        return False


def _verify_output(a: argparse.Namespace, output: Path) -> Verification:
    from quoreduce.data.commit import RECEIPT
    from quoreduce.data.staging import SUCCESS
    from quoreduce.trust.node import read_policy, state_folder
    from quoreduce.trust.verifier import verify_receipt

    policy = read_policy(a.policy or str(state_folder(a.state) / "policy.json"))
    nonce = None if a.nonce is None else _hex(a.nonce, 32, 32)
    receipt, manifest = _read(output / RECEIPT), _read(output / SUCCESS)
    parts = None if a.no_parts else _part_digests(output)
    return verify_receipt(receipt, manifest, policy, datetime.now(UTC), nonce, parts)


def _part_digests(output: Path) -> dict[str, str]:
    """The BLAKE3 of each part on disk, in hex, by name."""
    from quoreduce.data.digest import Digester

    digester = Digester("blake3")
    try:
        names = sorted(name for name in os.listdir(output) if not name.startswith(("_", ".")))
        for name in names:
            close_quietly(open_regular(output / name))
        return {name: digester.file(output / name).hex() for name in names}
    except OSError as error:
        raise InputError(f"cannot read {error.filename or output}: {error.strerror}") from error


def _verify_quote(a: argparse.Namespace, folder: Path) -> Verification:
    from quoreduce.trust.verifier import verify_quote

    if a.nonce is None:
        raise UsageError("a quote answers a nonce: name it with --nonce HEX")
    key = next((folder / name for name in ("ak.tss", "ak.pem") if _holds(folder, name)), None)
    if key is None:
        raise InputError(f"{folder} has neither ak.tss nor ak.pem, the key that signed the quote")
    optional = [_read(folder / name) if _holds(folder, name) else None for name in ("quote.pcrs", "eventlog.bin")]
    return verify_quote(
        _read(key), _read(folder / "quote.msg"), _read(folder / "quote.sig"), _hex(a.nonce, 1, 64), *optional
    )


def _read(path: Path) -> bytes:
    return read_file(path, FILE_BYTES_MAX)


def _bench(a: argparse.Namespace) -> int:
    from quoreduce.commands.attest.bench import run_bench

    return run_bench(a.tasks, list(a.sizes), a.json, None)


def _hex(text: str, least: int, most: int) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if not least <= len(found) <= most:
        size = f"{least}" if least == most else f"{least} to {most}"
        raise UsageError(f"--nonce {text!r}: use {size} bytes in hexadecimal")
    return found
