"""``quoreduce simulate run|slides|calibrate|validate``: jobs on simulated clusters.

Every figure is *simulated*, and says so; calibrate's are measured, and validate's are both.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from quoreduce.arguments import OldName, Parser
from quoreduce.errors import HostError, InputError, NoQuorum, NotDeterministic, OutputError, TooFewDomains, UsageError
from quoreduce.limits import NUMBERS, Numbers
from quoreduce.reading import read_file
from quoreduce.sim import USUAL, Calibration, Load, Outcome, Shape, parse_fault, simulate
from quoreduce.sim.faults import KINDS
from quoreduce.sim.simulation import TASKS_MAX
from quoreduce.sim.slides import slides

CALIBRATION_BYTES_MAX = 1 << 20
FAULTS_HELP = "faults:\n" + "\n".join(f"  {kind:13} {text}" for kind, text in KINDS.items())


def parser() -> argparse.ArgumentParser:
    """Build the parser of the four commands."""
    top = Parser(
        prog="quoreduce simulate",
        description="The real tracker on simulated nodes, in virtual time. See docs/design/simulator.md.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="simulate one job", epilog=FAULTS_HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Simulate one job; the same seed gives the same transcript.",
    )  # fmt: skip
    run.add_argument("--nodes", type=NUMBERS["nodes"], default=10, metavar="N", help="default 10")
    run.add_argument(
        "--slots", type=NUMBERS["slots"], default=2, metavar="N",
        help="executions that a node runs at a time (default 2)",
    )  # fmt: skip
    run.add_argument("--rack", type=NUMBERS["nodes"], default=20, metavar="N", help="nodes in a rack (default 20)")
    run.add_argument("--domain", choices=["node", "rack"], default="node", help="what fails together (default node)")
    run.add_argument(
        "--speeds", type=Numbers(NUMBERS["speed"]), default="1", metavar="X,...",
        help="of CPU types, which nodes have in turn (default 1)",
    )  # fmt: skip
    run.add_argument("--job", default="wordcount", help="a job of the calibration (default wordcount)")
    run.add_argument("--maps", type=NUMBERS["simulated_tasks"], default=100, metavar="M", help="default 100")
    run.add_argument("--reduces", type=NUMBERS["simulated_tasks"], default=10, metavar="R", help="default 10")
    run.add_argument("--split-mb", type=NUMBERS["split_mb"], default=64.0, metavar="MB", help="default 64")
    run.add_argument("-f", "--faults-tolerated", type=NUMBERS["f"], default=1, metavar="F", help="default 1")
    run.add_argument("--mode", choices=["original", "basic", "bft"], default="bft", help="default bft")
    run.add_argument("--seed", type=NUMBERS["seed"], default=0, help="default 0")
    run.add_argument("--faults", nargs="+", default=[], metavar="KIND:AMOUNT[:DETAIL]", help="see below")
    run.add_argument(
        "--no-speculation", action="store_true",
        help="do not overtake slow executions by speculative attempts on idle slots",
    )  # fmt: skip
    run.add_argument("--no-spares", action=OldName, dest="no_speculation", const="--no-speculation")
    run.add_argument("--calibration", metavar="FILE", help="that calibrate wrote (default: round figures)")
    run.add_argument("--json", action="store_true", help="print one JSON object")
    pages = commands.add_parser("slides", help="repeat the slides' figures and FTMR's sweep, beside what was published")
    pages.add_argument("--seed", type=NUMBERS["seed"], default=0, help="default 0")
    pages.add_argument("--calibration", metavar="FILE", help="that calibrate wrote (default: round figures)")
    pages.add_argument("--json", action="store_true", help="print one JSON object")
    pages.add_argument("--out", metavar="HTML", help="write a page with charts")
    calibrate = commands.add_parser("calibrate", help="measure this machine: about a minute")
    calibrate.add_argument(
        "--mb", type=NUMBERS["calibration_mb"], default=32, metavar="MB",
        help="of data for each kind of job (default 32)",
    )  # fmt: skip
    calibrate.add_argument("--out", metavar="FILE", help="write the calibration there (default: print it)")
    check = commands.add_parser(
        "validate", help="simulated against measured times of jobs on this machine: some minutes"
    )
    check.add_argument(
        "--mb", type=NUMBERS["calibration_mb"], default=48, metavar="MB", help="of data to calibrate with (default 48)"
    )
    check.add_argument("--calibration", metavar="OUT", help="write the calibration there, too")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def main(arguments: Sequence[str]) -> int:
    """Run a command and return the exit code, that of a job which ended like the simulated one."""
    a = parser().parse_args(arguments)
    return {"run": _run, "slides": _slides, "calibrate": _calibrate, "validate": _validate}[a.command](a)


def _run(a: argparse.Namespace) -> int:
    if a.maps + a.reduces > TASKS_MAX:
        raise UsageError(f"at most {TASKS_MAX:,} tasks are simulated")
    calibration, faults = _read(a.calibration), [parse_fault(text) for text in a.faults]
    shape = Shape(a.nodes, a.slots, a.rack, a.domain, speeds=a.speeds)
    load = Load(a.job, calibration.job(a.job), a.maps, a.reduces, a.split_mb * 1e6)
    gc.disable()  # nothing is garbage before the end, and looking for it takes a third of the time
    try:
        out = simulate(shape, load, calibration, a.faults_tolerated, a.mode, faults, a.seed, not a.no_speculation)
    finally:
        gc.enable()
    print(json.dumps(out.as_dict()) if a.json else describe(out))
    return {
        "done": 0, "no_quorum": NoQuorum.exit_code, "too_few_domains": TooFewDomains.exit_code,
        "not_deterministic": NotDeterministic.exit_code, "copies_lost": HostError.exit_code,
    }.get(out.end, 1) if not out.violations else 1  # fmt: skip


def describe(out: Outcome) -> str:
    """Describe the result of a simulated job in a few lines."""
    executions = " ".join(f"{kind} {n}" for kind, n in out.executions.items())
    injected = ", ".join(f"{kind} {n}" for kind, n in out.injected.items()) or "none"
    lines = [
        f"simulated: {out.job}, {out.mode}, f={out.f}, {out.nodes} nodes, {out.maps} maps, {out.reduces} reduces, "
        f"seed {out.seed}",
        f"{out.end}: {out.makespan_s:.2f} virtual s, {out.cpu_s:.2f} CPU s; executions: {executions} "
        f"({out.reexecutions} more than planned{f', {out.spares} speculative' if out.spares else ''})",
        f"faults injected: {injected}; lost votes: {out.lost_votes}; tests: {out.tests}; "
        f"suspects: {', '.join(out.suspects) or 'nobody'}; quarantined: {', '.join(out.quarantined) or 'nobody'}",
    ]
    if out.message:
        lines.append(out.message)
    if out.beyond_model:
        lines.append(f"the model is broken ({out.beyond_model}): no promise is made of the output")
    if out.wrong_outputs:
        lines.append(f"WRONG: {out.wrong_outputs} agreed outputs are not the true ones")
    lines += [f"AGAINST THE RULES: {violation}" for violation in out.violations]
    return "\n".join([*lines, f"transcript {out.transcript}"])


def _slides(a: argparse.Namespace) -> int:
    if a.out and Path(a.out).exists():
        raise OutputError(f"{a.out} exists: choose another name, or delete it")
    found = slides(_read(a.calibration), a.seed)
    from quoreduce.commands.simulate.page import page, table

    if a.out:
        _write(a.out, page(found))
    print(json.dumps(found.as_dict()) if a.json else table(found))
    return 0


def _calibrate(a: argparse.Namespace) -> int:
    from quoreduce.commands.simulate.calibrate import calibrate

    text = calibrate(a.mb, lambda said: print(said, file=sys.stderr)).encode()
    if a.out:
        _write(a.out, text)
        print(f"{a.out}: use it with simulate run|slides --calibration {a.out}")
    else:
        print(text, end="")
    return 0


def _validate(a: argparse.Namespace) -> int:
    from quoreduce.commands.simulate.validate import table, validate

    found = validate(a.mb, lambda said: print(said, file=sys.stderr))
    if a.calibration:
        _write(a.calibration, found.calibration.encode())
    print(json.dumps(found.as_dict()) if a.json else table(found))
    return 0 if found.holds else 1


def _read(file: str | None) -> Calibration:
    if file is None:
        return USUAL
    try:
        return Calibration.decode(read_file(Path(file), CALIBRATION_BYTES_MAX).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no calibration: {error}") from error


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error}") from error
