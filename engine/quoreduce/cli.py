"""The command line. Results go to stdout, everything else to stderr; an error is one line, never a traceback.

Heavy modules are imported by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from quoreduce import __version__, interrupts, terminal
from quoreduce.arguments import Parser
from quoreduce.errors import FaultsMasked, HostError, QuoreduceError, UsageError
from quoreduce.limits import NUMBERS, RECORDS
from quoreduce.printable import printable, printable_name

if TYPE_CHECKING:
    from quoreduce.job import Job
    from quoreduce.runtime.options import Options, Place, Result
    from quoreduce.runtime.session import Session

EXIT_CODES = """exit codes:
  0  ok
  2  usage or bad input
  3  faults were masked, and --strict was given (the output is right and published)
  4  no quorum, too few failure domains, or the machine or a core failed
  5  the job is not deterministic
  6  attestation: evidence is refused, or cannot be made
  130  interrupted; 143, 129  terminated by SIGTERM, SIGHUP
  141  nobody reads standard output any more"""
CHECK_SETTINGS = """settings:
  repeat   the same once more, in a new process         state    a second time in the same process
  order    tasks from the last to the first             digests  a replica that only digests, and stores nothing
  hash     another PYTHONHASHSEED                       threads  four threads for BLAS, OpenMP, MKL, numba, Polars
  place    another TZ, LC_ALL, current directory        cpu      an older CPU type for numpy, the C library, BLAS
  numba    kernels compiled for an older CPU type"""
DIAGNOSES_SHOWN = 10
CLEAN_HELP = (
    "delete what sessions that were killed left: stores of blocks and temporary files that bear our marker (what is left beside an "
    "output goes when a job writes there again)"
)
PUBLISHED = "the output had been published before"
FAULT_HELP = (
    "inject a fault: KIND:TARGET:COUNT[@REPLICA], e.g. flip:map:2, wrong:reduce:25%%, crash:all:1; kinds: flip wrong lie swap crash "
    "hang lose late wire slow; targets: map reduce all; REPLICA: first, last (default), any or a number; or stuck:DOMAIN, "
    "or bad:DOMAIN:PERCENT, e.g. bad:0:30%% (may be repeated)"
)


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = Parser(
        prog="quoreduce", description="Map/reduce whose every task runs f+1 times and is voted on by digest.",
        epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"quoreduce {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run_parser(commands)
    _stream_parser(commands)
    _resume_parser(commands)
    _check_parser(commands)
    verify = commands.add_parser("verify", help="recompute every digest of an output against its manifest")
    verify.add_argument("output", metavar="OUTPUT")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    validate = commands.add_parser("validate", help="check that an output is what the job promises (sort: order, count, checksum)")
    validate.add_argument("job", metavar="JOB", choices=["sort"])
    validate.add_argument("output", metavar="OUTPUT", help="output of the job, or a file of records")
    validate.add_argument("--input", nargs="*", metavar="INPUT", help="compare with these (default: those of the manifest, if they exist)")
    validate.add_argument("--json", action="store_true", help="print one JSON object")
    generate = commands.add_parser("generate", help="make data: a text with Zipf-like words, or 100-byte sort records")
    generate.add_argument("kind", choices=["text", "binary", "ascii", "teragen"], help="text; or records as gensort, gensort -a or TeraGen make")
    generate.add_argument("amount", metavar="AMOUNT", type=RECORDS, help="bytes of text (1 GB = 1000M, suffixes K M G), or number of records")
    generate.add_argument("file", metavar="FILE")
    generate.add_argument("--seed", type=NUMBERS["seed"], default=0, help="of the text (default 0)")
    generate.add_argument("--first", type=NUMBERS["first"], default=0, help="number of the first record (default 0)")
    generate.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    demo = commands.add_parser("demo", help="count a text and a generated one on Ray, plain and voted, with faults, and compare")
    demo.add_argument("--text", metavar="FILE", default=None, help="a text of your own (default: tests/data/kjv.txt if it is here)")
    demo.add_argument("--generated-mb", type=NUMBERS["generated_mb"], default=256, metavar="MB", help="size of the generated text (default 256)")
    demo.add_argument("--on", choices=["local", "ray"], default="ray", help="executor (default ray)")
    gridmix = commands.add_parser("gridmix", add_help=False, prefix_chars="\0", help="GridMix: generate its data, run its applications, report")
    gridmix.add_argument("arguments", nargs="*")  # options too, as they are: they are parsed where they are known
    attest = commands.add_parser("attest", add_help=False, prefix_chars="\0", help="attestation: prepare this machine, quote, verify, measure")
    attest.add_argument("arguments", nargs="*")
    simulate = commands.add_parser("simulate", add_help=False, prefix_chars="\0", help="the tracker on simulated nodes: one job, the slides' figures, calibration, validation")
    simulate.add_argument("arguments", nargs="*")
    suspects = commands.add_parser("suspects", add_help=False, prefix_chars="\0", help="cores and nodes that lost votes: list, test, clear")
    suspects.add_argument("arguments", nargs="*")
    chaos = commands.add_parser("chaos", add_help=False, prefix_chars="\0", help="jobs under load while machines, disks and networks fail: a table of what came of it")
    chaos.add_argument("arguments", nargs="*")
    vm = commands.add_parser("vm", add_help=False, prefix_chars="\0", help="trusted VM operations: launch, migrate, back up, terminate; the attack; a demo")
    vm.add_argument("arguments", nargs="*")
    doctor = commands.add_parser("doctor", help="show versions, cores, memory, shared memory, and whether Ray can be reached")
    doctor.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (default: RAY_ADDRESS)")
    doctor.add_argument("--deep", action="store_true", help="compare installed files and compiled kernels with their digests; exit 4 if one differs")
    doctor.add_argument("--store", metavar="DIR", help="look there, too, for what dead sessions left")
    doctor.add_argument("--clean", action="store_true", help=CLEAN_HELP)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def _run_parser(commands: Any) -> None:
    run = commands.add_parser(
        "run", help="run a job", epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s JOB INPUT... OUTPUT [OPTION...]",
        description="Run a job over inputs and write part-r-00000... and a manifest, _SUCCESS, to a new directory.",
    )  # fmt: skip
    run.add_argument("job", metavar="JOB", help="wordcount, sort, scan, FILE.py:NAME or MODULE:NAME")
    _scan_options(run)
    _run_options(run)


def _scan_options(command: argparse.ArgumentParser) -> None:
    scan = command.add_argument_group("scan")
    scan.add_argument("--starts-with", metavar="TEXT", help="keep the records that begin with TEXT, 1 to 64 bytes of UTF-8; required")
    scan.add_argument("--lines", action="store_true", help="the records are lines, of any length (default: 100 bytes each, as for sort)")


def _check_parser(commands: Any) -> None:
    check = commands.add_parser(
        "check", help="look for what makes a job's output differ from run to run, or from machine to machine",
        description="Run a job over a sample of its input under several settings, each in a process of its own, and compare every digest:\n"
        "exit 0 if all agree (which is no proof), 5 with the first differing record and the likely cause if not. Nothing is written.",
        epilog=CHECK_SETTINGS, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    check.add_argument("job", metavar="JOB", help="wordcount, sort, scan, stream (with --mapper and --reducer), FILE.py:NAME or MODULE:NAME")
    check.add_argument("paths", metavar="INPUT", nargs="+", help="files, directories, globs (quoted), .gz/.zst, URIs")
    check.add_argument("--settings", metavar="NAMES", help="with commas between, or all (default: all; numba only for jobs with kernels of their own)")
    check.add_argument("--sample-mb", type=NUMBERS["sample_mb"], default=16.0, metavar="MB", help="input to read, from all over it (default 16)")
    check.add_argument("--time-limit", type=NUMBERS["time_limit_s"], default=60.0, metavar="S", help="bound on the whole, in seconds (default 60)")
    check.add_argument("--reducers", type=NUMBERS["reducers"], metavar="N", help="number of parts (default: from the sample's size)")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    _scan_options(check)
    _command_options(check, required=False)


def _stream_parser(commands: Any) -> None:
    stream = commands.add_parser(
        "stream", help="run a job of two commands that read and write lines", epilog=EXIT_CODES,
        usage="%(prog)s --mapper CMD --reducer CMD INPUT... OUTPUT [OPTION...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Map with one command and reduce with another, as Hadoop streaming does: the mapper reads the lines of a split and\n"
        "writes lines KEY<TAB>VALUE; the reducer reads these sorted by key. Every replica runs the commands and is voted on.",
    )  # fmt: skip
    _command_options(stream, required=True)
    _run_options(stream)


def _command_options(parser: argparse.ArgumentParser, required: bool) -> None:
    command = parser.add_argument_group("commands" if required else "stream")
    command.add_argument("--mapper", required=required, metavar="CMD", help="split into words as a shell would, and run without a shell")
    command.add_argument("--reducer", required=required, metavar="CMD", help="the same; cat passes lines on as they are")
    command.add_argument("--shell", action="store_true", help="run both with sh -c: for pipes, variables and redirections")
    command.add_argument("--timeout", type=NUMBERS["timeout_s"], default=300.0, metavar="S", help="seconds that a command may take over one task (default 300)")
    command.add_argument("--input-format", choices=["lines", "sequence"], default="lines", help="sequence: SequenceFiles as lines KEY<TAB>VALUE")


def _resume_parser(commands: Any) -> None:
    resume = commands.add_parser(
        "resume", help="go on with a job that ran with --durable and was cut short", epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Take up a durable job whose driver was killed, or that was interrupted: what was agreed on is taken over from its\n"
        "journal, the rest is executed. Options are those of the first run, but for where it is to run now.",
    )  # fmt: skip
    resume.add_argument("output", metavar="OUTPUT", help="as it was named when the job was begun")
    resume.add_argument("--job", metavar="JOB", help="refuse to run anything but this job, as named for run (default: what your journal holds)")
    _place_options(resume, "as before", "as before")
    resume.add_argument("--json", action="store_true", help="print one JSON object")
    resume.add_argument("--quiet", action="store_true", help="no progress bar")


def _run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("paths", metavar="INPUT... OUTPUT", nargs="+", help="files, directories, globs (quoted), .gz/.zst, URIs; last: output")
    vote = run.add_argument_group("voting")
    vote.add_argument("-f", "--faults-tolerated", type=NUMBERS["f"], default=1, metavar="F", help="faulty replicas of a task to tolerate (default 1)")
    vote.add_argument("--mode", choices=["original", "basic", "bft"], default="bft", help="original: run once; basic: 2f+1 times; bft (default)")
    vote.add_argument("--digest", choices=["blake3", "fast", "checksum"], help="fast: for accidental faults only; checksum: --mode original only")
    vote.add_argument("--direct-input", action="store_true",
                      help="all replicas but the first f read the input past the page cache: slower, docs/inputs.md")  # fmt: skip
    vote.add_argument("--no-diagnose", action="store_true", help="do not find out what masked faults were (after the job, for up to 5 s)")
    vote.add_argument("--strict", action="store_true", help="exit 3 if faults were masked")
    for name, text in (
        ("deferred", "deferred execution: f+1 replicas first, not 2f+1"),
        ("tentative", "tentative reduce: start on the first copies of the map outputs"),
        ("digest-outputs", "digest outputs: store and ship one copy only"),
        ("tight-storage", "tight storage replication: write the output once, not three times"),
    ):
        vote.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=text)
    vote.add_argument("--no-spares", action="store_true", help="do not overtake slow executions by spare ones on idle workers")
    vote.add_argument("--deadline", type=NUMBERS["deadline_s"], metavar="S", help="kill a worker after S seconds over one task (default: adapts)")
    vote.add_argument("--attempts-max", type=NUMBERS["attempts_max"], metavar="N", help="bound on executions of one task (default 4(f+1)+8)")
    vote.add_argument("--suspects", action=argparse.BooleanOptionalAction, default=None, help="heed and update the record of suspects (default: if no --fault is given)")
    proof = run.add_argument_group("attestation (see quoreduce attest --help)")
    proof.add_argument("--attest", action="store_true", help="count votes only with evidence of what ran, and write a receipt, _RECEIPT.json")
    proof.add_argument("--backend", choices=["swtpm", "utpm"], help="TPM of each node; utpm: none, the root is software (default: the policy's)")
    proof.add_argument("--batch", choices=["none", "aggregate", "merkle"], help="how executions are quoted together (default merkle)")
    proof.add_argument("--batch-size", type=NUMBERS["batch_size"], metavar="N", help="executions in a batch at most (default 64)")
    proof.add_argument("--batch-ms", type=NUMBERS["batch_ms"], metavar="MS", help="how long a batch may wait (default 20)")
    proof.add_argument("--nonce", metavar="HEX", help="of a challenger, 32 bytes (default: random)")
    proof.add_argument("--policy", metavar="FILE", help="who may vote (default: the one of attest setup)")
    proof.add_argument("--state", metavar="DIR", help="folder of attest setup (default: QUOREDUCE_ATTEST, or in ~/.local/state)")
    _place_options(run, "ray with an address, else local", "one for each core")
    data = run.add_argument_group("data")
    data.add_argument("--reducers", type=NUMBERS["reducers"], metavar="N", help="number of output parts (default: from the input's size)")
    data.add_argument("--split-mb", type=NUMBERS["split_mb"], default=64.0, metavar="MB", help="split size in MB, may be a fraction (default 64)")
    data.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is an earlier output, or give up a durable job that was writing it")
    data.add_argument("--sync", action="store_true", help="force the output to disk before it is published, against loss of power")
    data.add_argument("--durable", action="store_true", help="keep a journal beside OUTPUT: quoreduce resume OUTPUT goes on if this is cut short")
    data.add_argument("--seed", type=NUMBERS["seed"], default=0, help="seed of the job's own randomness (default 0)")
    data.add_argument("--json", action="store_true", help="print one JSON object")
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    fault = run.add_argument_group("faults on demand")
    fault.add_argument("--fault", action="append", default=[], metavar="SPEC", help=FAULT_HELP)
    fault.add_argument("--fault-seed", type=NUMBERS["fault_seed"], default=0, metavar="N", help="which executions and bits are struck (default 0)")


def _place_options(command: argparse.ArgumentParser, on: str, workers: str) -> None:
    place = command.add_argument_group("where")
    place.add_argument("--on", choices=["inline", "local", "ray"], help=f"executor (default: {on})")
    place.add_argument("--inline", action="store_true", help="the same as --on inline: in this process, for debugging")
    place.add_argument("--workers", type=NUMBERS["workers"], metavar="N", help=f"default: {workers}")
    place.add_argument("--domain", choices=["core", "worker", "node", "rack"], help="what fails together (default: core; node on a cluster)")
    place.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (default: RAY_ADDRESS)")
    place.add_argument("--store", metavar="DIR", help="folder for map outputs (default: shared memory)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    interrupts.take()
    try:
        with interrupts.scope():
            return _checked(argv)
    finally:
        interrupts.give_back()


def _checked(argv: Sequence[str] | None) -> int:
    """Run a command; standard output that cannot be written is an error too, and a signal ends it through its clean-up."""
    try:
        with terminal.streams():
            return _main(argv)
    except terminal.OutputLost as lost:
        if lost.closed:
            return terminal.PIPE_CLOSED
        _complain(str(lost), lost)
        return HostError.exit_code
    except (KeyboardInterrupt, interrupts.Terminated) as error:
        return _ended_by_signal(error, argv is None)


def _main(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return int(_COMMANDS[arguments.command](arguments))
    except QuoreduceError as error:
        _complain(str(error), error)
        return error.exit_code
    except OSError as error:
        reason = f"{printable_name(error.filename)}: {error.strerror}" if error.filename else str(error)
        _complain(f"the machine failed: {reason}", error)
        return HostError.exit_code
    except Exception as error:
        if os.environ.get("QUOREDUCE_DEBUG") or isinstance(error, terminal.OutputLost):
            raise
        reason = f"{type(error).__name__}: {error}"
        _complain(f"internal error: {reason}; please report it (QUOREDUCE_DEBUG=1 shows where it is)", error)
        return QuoreduceError.exit_code


def _ended_by_signal(error: KeyboardInterrupt | interrupts.Terminated, for_good: bool) -> int:
    """Everything was left through its clean-up: say so. ``for_good``: the process is about to end."""
    if for_good:
        interrupts.ignore()
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else "terminated"
    with contextlib.suppress(OSError):  # the terminal may be gone
        _complain(text if PUBLISHED in getattr(error, "__notes__", ()) else f"{text}, nothing was published", error)
    return int(error.code) if isinstance(error, interrupts.Terminated) and isinstance(error.code, int) else 130


def _complain(text: str, error: BaseException) -> None:
    """Say what was wrong in one line, and what was noted about it."""
    with contextlib.suppress(OSError):
        print("quoreduce:", printable("; ".join((text, *getattr(error, "__notes__", ())))), file=sys.stderr)


def _run(a: argparse.Namespace) -> int:
    return _run_job(a, lambda: _named_job(a))


def _named_job(a: argparse.Namespace) -> Job:
    from quoreduce.jobs.find import find_job

    if a.job != "scan" and (a.starts_with is not None or a.lines):
        raise UsageError(f"--starts-with and --lines go with the job scan, not with {a.job}")
    return find_job(a.job) if a.starts_with is None else _scan(a)


def _check(a: argparse.Namespace) -> int:
    from quoreduce.report.check import check, print_report

    settings = () if a.settings is None else tuple(filter(None, a.settings.replace(" ", "").split(",")))
    report = check(
        _checked_job(a), a.paths, sample_mb=a.sample_mb, limit_s=a.time_limit, settings=settings, reducers=a.reducers,
        say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    return print_report(report, a.json)


def _checked_job(a: argparse.Namespace) -> Job:
    if a.job != "stream":
        if a.mapper is not None or a.reducer is not None:
            raise UsageError(f"--mapper and --reducer go with the job stream, not with {a.job}")
        return _named_job(a)
    if a.mapper is None or a.reducer is None:
        raise UsageError("the job stream needs --mapper and --reducer")
    return _stream_job(a)


def _stream_job(a: argparse.Namespace) -> Job:
    from quoreduce.jobs.streaming import stream_job

    return stream_job(a.mapper, a.reducer, shell=a.shell, timeout_s=a.timeout, input=a.input_format)


def _scan(a: argparse.Namespace) -> Job:
    from quoreduce.jobs.scan import scan_job

    return scan_job(os.fsencode(a.starts_with), input="lines" if a.lines else "records")


def _stream(a: argparse.Namespace) -> int:
    from quoreduce.jobs.streaming import deadline_s

    if a.deadline is None:
        a.deadline = deadline_s(a.timeout)
    return _run_job(a, lambda: _stream_job(a))


def _run_job(a: argparse.Namespace, make: Callable[[], Job]) -> int:
    from quoreduce.report.progress import progress_bar
    from quoreduce.runtime.session import Session

    if len(a.paths) < 2:
        raise UsageError("name at least one INPUT, and the OUTPUT last")
    place, options = _place(a), _options(a)
    job = make()
    with progress_bar(not a.quiet and sys.stderr.isatty()) as bar:
        session = Session(place, bar.say)
        with _true_of(session), session:
            result = session.run(job, a.paths[:-1], a.paths[-1], options, bar.update)
    return _report(result, a.json, a.strict)


@contextlib.contextmanager
def _true_of(session: Session) -> Iterator[None]:
    """A signal may come when the output is in place already."""
    try:
        yield
    except (KeyboardInterrupt, interrupts.Terminated) as error:
        if session.published is not None:
            error.add_note(PUBLISHED)
        raise


def _report(result: Result, as_json: bool, strict: bool) -> int:
    _print_result(result, as_json)
    if strict and result.faults.masked:
        raise FaultsMasked(f"{result.faults.masked} faults were masked; the output is right, and published")
    return 0


def _resume(a: argparse.Namespace) -> int:
    from quoreduce.report.progress import progress_bar
    from quoreduce.runtime.durable import reopen
    from quoreduce.runtime.session import Session

    now, named = _place(a), None
    if a.job is not None:
        from quoreduce.jobs.find import find_job
        from quoreduce.runtime.session import pickle_job

        named = pickle_job(find_job(a.job))
    with progress_bar(not a.quiet and sys.stderr.isatty()) as bar, reopen(a.output, named) as life:
        where = life.where(on=now.on, workers=now.workers, domain=now.domain, address=now.address, store=now.store)
        session = Session(where, bar.say)
        with _true_of(session), session:
            result = session.go_on(life, bar.update)
    if not a.json:
        print(f"resumed: {result.recovered} tasks were agreed on before, and taken over")
    return _report(result, a.json, life.options.strict)


def _place(a: argparse.Namespace) -> Place:
    from quoreduce.runtime.options import Place

    if a.inline and a.on not in (None, "inline"):
        raise UsageError(f"--inline and --on {a.on} contradict each other")
    return Place("inline" if a.inline else a.on, a.workers, a.domain, a.address, a.store)


def _options(a: argparse.Namespace) -> Options:
    from quoreduce.runtime.options import Attest, Options

    said = {
        "backend": a.backend, "batch": a.batch, "batch_size": a.batch_size, "batch_ms": a.batch_ms, "nonce": a.nonce, "policy": a.policy,
        "state": a.state,
    }  # fmt: skip
    given = {name: value for name, value in said.items() if value is not None}
    if given and not a.attest:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} goes with --attest")
    return Options(
        f=a.faults_tolerated, mode=a.mode, digest=a.digest, reducers=a.reducers, split_mb=a.split_mb, overwrite=a.overwrite, sync=a.sync,
        strict=a.strict, faults=tuple(a.fault), fault_seed=a.fault_seed, seed=a.seed, deferred=a.deferred, tentative=a.tentative,
        digest_outputs=a.digest_outputs, tight_storage=a.tight_storage, spares=not a.no_spares, deadline_s=a.deadline, attempts_max=a.attempts_max,
        attest=Attest(**given) if a.attest else None, durable=a.durable, diagnose=not a.no_diagnose, suspects=a.suspects,
        direct_input=a.direct_input,
    )  # fmt: skip


def _print_result(result: Result, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.as_dict()))
        return
    executions = " ".join(f"{kind} {n}" for kind, n in result.executions.items())
    size = f"{result.parts} parts, {result.records_out:,} records, {result.bytes_out:,} bytes"
    print(f"{printable_name(result.output)}: {size}, digest {result.digest[:16]}")
    print(
        f"{result.job}, {result.mode}, f={result.f} on {result.on}: {result.wall_s:.2f} s, {result.cpu_s:.2f} CPU s; executions: {executions} "
        f"({result.reexecutions} more than planned{f', {result.spares} spare' if result.spares else ''})"
    )
    if proof := result.attestation:
        print(
            f"attested by {proof['backend']}: {proof['leaves']} executions in {proof['batches']} batches of {proof['utpms']} µTPMs, nonce "
            f"{proof['nonce'][:16]}...; check it: quoreduce attest verify {printable_name(result.output)}"
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


def _verify(a: argparse.Namespace) -> int:
    from quoreduce.runtime.session import verify

    report = verify(a.output)
    if a.json:
        state = {"output": a.output, "ok": report.ok, "parts": len(report.manifest.parts), "problems": list(report.problems)}
        print(json.dumps(state))
    else:
        for problem in report.problems:
            print(printable(f"{a.output}/{problem}"))
        state_text = "ok" if report.ok else f"{len(report.problems)} problems"
        print(f"{printable_name(a.output)}: {len(report.manifest.parts)} parts, {report.manifest.digest_algorithm}: {state_text}")
    return 0 if report.ok else 2


def _validate(a: argparse.Namespace) -> int:
    from quoreduce.report.validate import validate_sort

    return validate_sort(a.output, a.input, a.json)


def _generate(a: argparse.Namespace) -> int:
    from quoreduce.report.generate import generate

    return generate(a.kind, a.amount, a.file, a.seed, a.first, a.overwrite)


def _demo(a: argparse.Namespace) -> int:
    from quoreduce.report.demo import demo

    return demo(a.text, a.generated_mb, a.on)


def _gridmix(a: argparse.Namespace) -> int:
    from quoreduce_gridmix.cli import main as gridmix

    return gridmix(a.arguments)


def _attest(a: argparse.Namespace) -> int:
    from quoreduce.report.attest import main as attest

    return attest(a.arguments)


def _simulate(a: argparse.Namespace) -> int:
    from quoreduce.report.simulate import main as simulate

    return simulate(a.arguments)


def _suspects(a: argparse.Namespace) -> int:
    from quoreduce.report.suspects import main as suspects

    return suspects(a.arguments)


def _vm(a: argparse.Namespace) -> int:
    from quoreduce.report.vm import main as vm

    return vm(a.arguments)


def _chaos(a: argparse.Namespace) -> int:
    from quoreduce.report.chaos import main as chaos

    return chaos(a.arguments)


def _doctor(a: argparse.Namespace) -> int:
    from quoreduce.report.doctor import doctor

    return doctor(a.address, a.json, clean=a.clean, store=a.store, deep=a.deep)


_COMMANDS = {
    "run": _run, "stream": _stream, "resume": _resume, "check": _check, "verify": _verify, "validate": _validate, "generate": _generate, "demo": _demo,
    "gridmix": _gridmix, "attest": _attest, "simulate": _simulate, "suspects": _suspects, "chaos": _chaos, "vm": _vm, "doctor": _doctor,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
