"""The parts that ``run``, ``stream`` and ``resume`` share: options of a job, its run, and the printed result."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from quoreduce import interrupts
from quoreduce.arguments import OldName
from quoreduce.commands.exits import PUBLISHED
from quoreduce.errors import FaultsMasked, UsageError
from quoreduce.limits import NUMBERS
from quoreduce.printable import printable, printable_name

if TYPE_CHECKING:
    from quoreduce.driver.result import Result
    from quoreduce.job import Job
    from quoreduce.protocol.options import Options, Place
    from quoreduce.runtime.session import Session

DIAGNOSES_SHOWN = 10
FAULT_HELP = (
    "inject a fault: KIND:TARGET:COUNT[@REPLICA], e.g. flip:map:2, wrong:reduce:25%%, crash:all:1; kinds: flip wrong "
    "lie swap crash hang lose late wire slow; targets: map reduce all; REPLICA: first, last (default), any or a "
    "number; or stuck:DOMAIN, or bad:DOMAIN:PERCENT, e.g. bad:0:30%% (may be repeated)"
)
MODIFICATIONS = (
    ("deferred", "deferred execution: f+1 replicas first, not 2f+1"),
    ("tentative", "tentative reduce: start on the first copies of the map outputs"),
    ("digest-outputs", "digest outputs: store and ship one copy only"),
    ("tight-storage", "tight storage replication: write the output once, not three times"),
)


def run_options(command: argparse.ArgumentParser) -> None:
    """Add inputs and output, and all options of a job."""
    command.add_argument(
        "paths", metavar="INPUT... OUTPUT", nargs="+",
        help="files, directories, globs (quoted), .gz/.zst, URIs; last: output",
    )  # fmt: skip
    _voting_options(command)
    _attestation_options(command)
    place_options(command, "ray with an address, else local", "one for each core")
    _data_options(command)
    fault = command.add_argument_group("faults on demand")
    fault.add_argument("--fault", action="append", default=[], metavar="SPEC", help=FAULT_HELP)
    fault.add_argument(
        "--fault-seed", type=NUMBERS["fault_seed"], default=0, metavar="N",
        help="which executions and bits are struck (default 0)",
    )  # fmt: skip


def _voting_options(command: argparse.ArgumentParser) -> None:
    vote = command.add_argument_group("voting")
    vote.add_argument(
        "-f", "--faults-tolerated", type=NUMBERS["f"], default=1, metavar="F",
        help="faulty replicas of a task to tolerate (default 1)",
    )  # fmt: skip
    vote.add_argument(
        "--mode", choices=["original", "basic", "bft"], default="bft",
        help="original: run once; basic: 2f+1 times; bft (default)",
    )  # fmt: skip
    vote.add_argument(
        "--digest", choices=["blake3", "fast", "checksum"],
        help="fast: for accidental faults only; checksum: --mode original only",
    )  # fmt: skip
    vote.add_argument(
        "--direct-input", action="store_true",
        help="all replicas but the first f read the input past the page cache: slower, docs/guide/inputs.md",
    )  # fmt: skip
    vote.add_argument(
        "--no-diagnose", action="store_true",
        help="do not find out what masked faults were (after the job, for up to 5 s)",
    )  # fmt: skip
    vote.add_argument(
        "--assurance", choices=["strict", "checked"], default="strict",
        help="strict: each task is executed f+1 times (default); checked: once, and checked f times, where the job has "
        "a check, docs/guide/assurance.md",
    )  # fmt: skip
    vote.add_argument("--strict", action="store_true", help="exit 3 if faults were masked")
    for name, text in MODIFICATIONS:
        vote.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=text)
    vote.add_argument(
        "--no-speculation", action="store_true",
        help="do not overtake slow executions by speculative attempts on idle workers",
    )  # fmt: skip
    vote.add_argument("--no-spares", action=OldName, dest="no_speculation", const="--no-speculation")
    vote.add_argument(
        "--deadline", type=NUMBERS["deadline_s"], metavar="S",
        help="kill a worker after S seconds over one task (default: adapts)",
    )  # fmt: skip
    vote.add_argument(
        "--attempts-max", type=NUMBERS["attempts_max"], metavar="N",
        help="bound on executions of one task (default 4(f+1)+8)",
    )  # fmt: skip
    vote.add_argument(
        "--suspects", action=argparse.BooleanOptionalAction, default=None,
        help="heed and update the record of suspects (default: if no --fault is given)",
    )  # fmt: skip


def _attestation_options(command: argparse.ArgumentParser) -> None:
    proof = command.add_argument_group("attestation (see quoreduce attest --help)")
    proof.add_argument(
        "--attest", action="store_true",
        help="count votes only with evidence of what ran, and write a receipt, _RECEIPT.json",
    )  # fmt: skip
    proof.add_argument(
        "--backend", choices=["swtpm", "utpm"],
        help="TPM of each node; utpm: none, the root is software (default: the policy's)",
    )  # fmt: skip
    proof.add_argument(
        "--batch", choices=["none", "aggregate", "merkle"], help="how executions are quoted together (default merkle)"
    )
    proof.add_argument(
        "--batch-size", type=NUMBERS["batch_size"], metavar="N", help="executions in a batch at most (default 64)"
    )
    proof.add_argument(
        "--batch-ms", type=NUMBERS["batch_ms"], metavar="MS", help="how long a batch may wait (default 20)"
    )
    proof.add_argument("--nonce", metavar="HEX", help="of a challenger, 32 bytes (default: random)")
    proof.add_argument("--policy", metavar="FILE", help="who may vote (default: the one of attest setup)")
    proof.add_argument(
        "--state", metavar="DIR", help="folder of attest setup (default: QUOREDUCE_ATTEST, or in ~/.local/state)"
    )


def place_options(command: argparse.ArgumentParser, on: str, workers: str) -> None:
    """Add where a job runs. ``on``, ``workers``: what help says of their defaults."""
    place = command.add_argument_group("where")
    place.add_argument("--on", choices=["inline", "local", "ray"], help=f"executor (default: {on})")
    place.add_argument("--inline", action="store_true", help="the same as --on inline: in this process, for debugging")
    place.add_argument("--workers", type=NUMBERS["workers"], metavar="N", help=f"default: {workers}")
    place.add_argument(
        "--domain", choices=["core", "worker", "node", "rack"],
        help="what fails together (default: core; node on a cluster)",
    )  # fmt: skip
    place.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (default: RAY_ADDRESS)")
    place.add_argument("--store", metavar="DIR", help="folder for map outputs (default: shared memory)")


def _data_options(command: argparse.ArgumentParser) -> None:
    data = command.add_argument_group("data")
    data.add_argument(
        "--reducers", type=NUMBERS["reducers"], metavar="N",
        help="number of output parts (default: from the input's size)",
    )  # fmt: skip
    data.add_argument(
        "--split-mb", type=NUMBERS["split_mb"], default=64.0, metavar="MB",
        help="split size in MB, may be a fraction (default 64)",
    )  # fmt: skip
    data.add_argument(
        "--overwrite", action="store_true",
        help="replace OUTPUT if it is an earlier output, or give up a durable job that was writing it",
    )  # fmt: skip
    data.add_argument(
        "--sync", action="store_true", help="force the output to disk before it is published, against loss of power"
    )
    data.add_argument(
        "--durable", action="store_true",
        help="keep a journal beside OUTPUT: quoreduce resume OUTPUT resumes a job that is cut short",
    )  # fmt: skip
    data.add_argument("--seed", type=NUMBERS["seed"], default=0, help="seed of the job's own randomness (default 0)")
    data.add_argument("--json", action="store_true", help="print one JSON object")
    data.add_argument("--quiet", action="store_true", help="no progress bar")


def run_job(a: argparse.Namespace, make: Callable[[], Job]) -> int:
    """Run the job that ``make`` makes as the options say, print the result, and return the exit code."""
    from quoreduce.commands.progress import progress_bar
    from quoreduce.runtime.session import Session

    if len(a.paths) < 2:
        raise UsageError("name at least one INPUT, and the OUTPUT last")
    place, options = chosen_place(a), _options(a)
    job = make()
    with progress_bar(not a.quiet and sys.stderr.isatty()) as bar:
        session = Session(place, bar.say)
        with published_or_not(session), session:
            result = session.run(job, a.paths[:-1], a.paths[-1], options, bar.update)
    return report(result, a.json, a.strict)


@contextlib.contextmanager
def published_or_not(session: Session) -> Iterator[None]:
    """A signal may come when the output is in place already: note that on what it raises."""
    try:
        yield
    except (KeyboardInterrupt, interrupts.Terminated) as error:
        if session.published is not None:
            error.add_note(PUBLISHED)
        raise


def chosen_place(a: argparse.Namespace) -> Place:
    """Return where the job runs; UsageError."""
    from quoreduce.protocol.options import Place

    if a.inline and a.on not in (None, "inline"):
        raise UsageError(f"--inline and --on {a.on} contradict each other")
    return Place("inline" if a.inline else a.on, a.workers, a.domain, a.address, a.store)


def _options(a: argparse.Namespace) -> Options:
    from quoreduce.protocol.options import Attest, Options

    said = {
        "backend": a.backend, "batch": a.batch, "batch_size": a.batch_size, "batch_ms": a.batch_ms, "nonce": a.nonce,
        "policy": a.policy, "state": a.state,
    }  # fmt: skip
    given = {name: value for name, value in said.items() if value is not None}
    if given and not a.attest:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} goes with --attest")
    return Options(
        f=a.faults_tolerated, mode=a.mode, digest=a.digest, reducers=a.reducers, split_mb=a.split_mb,
        overwrite=a.overwrite, sync=a.sync, assurance=a.assurance, strict=a.strict, faults=tuple(a.fault),
        fault_seed=a.fault_seed, seed=a.seed, deferred=a.deferred, tentative=a.tentative,
        digest_outputs=a.digest_outputs,
        tight_storage=a.tight_storage, speculation=not a.no_speculation, deadline_s=a.deadline,
        attempts_max=a.attempts_max, attest=Attest(**given) if a.attest else None, durable=a.durable,
        diagnose=not a.no_diagnose,
        suspects=a.suspects, direct_input=a.direct_input,
    )  # fmt: skip


def report(result: Result, as_json: bool, strict: bool) -> int:
    """Print the result of a job and return 0. Raises FaultsMasked if ``strict`` forbids what it masked."""
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        _print_result(result)
    if strict and result.faults.masked:
        raise FaultsMasked(f"{result.faults.masked} faults were masked; the output is right, and published")
    return 0


def _print_result(result: Result) -> None:
    executions = " ".join(f"{kind} {n}" for kind, n in result.executions.items())
    size = f"{result.parts} parts, {result.records_out:,} records, {result.bytes_out:,} bytes"
    print(f"{printable_name(result.output)}: {size}, digest {result.digest[:16]}")
    speculative = f", {result.spares} speculative" if result.spares else ""
    checks = " ".join(f"{kind} {n}" for kind, n in result.checks.items())
    print(
        f"{result.job}, {result.mode}, f={result.f} on {result.on}: {result.wall_s:.2f} s, {result.cpu_s:.2f} CPU s; "
        f"executions: {executions} ({result.reexecutions} more than planned{speculative})"
    )
    if result.assurance == "checked":
        print(f"checks: {checks or 'none'} ({result.rejected} rejected); tasks checked: {result.checked}")
    if proof := result.attestation:
        print(
            f"attested by {proof['backend']}: {proof['leaves']} executions in {proof['batches']} batches of "
            f"{proof['utpms']} µTPMs, nonce {proof['nonce'][:16]}...; check it: "
            f"quoreduce attest verify {printable_name(result.output)}"
        )
    count = result.faults
    if count.injected or count.detected:
        print(f"faults: {count.injected} injected, {count.detected} detected, {count.masked} masked")
    for diagnosis in result.diagnoses[:DIAGNOSES_SHOWN]:
        print(f"  {printable(diagnosis.line())}")
    more = len(result.diagnoses[DIAGNOSES_SHOWN:]) + result.diagnoses_more
    if more:
        print(f"  {more} more (--json has the first {len(result.diagnoses)})")
    for name, suspect in result.suspects.items():
        print(printable(f"suspect {name}: {suspect}"))
