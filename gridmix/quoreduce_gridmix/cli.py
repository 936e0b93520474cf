"""``quoreduce gridmix generate|run|report``. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quoreduce import terminal
from quoreduce.arguments import Parser, unknown_name
from quoreduce.errors import OutputError, UsageError
from quoreduce.limits import BYTES, NUMBERS, Numbers
from quoreduce.printable import printable_name

if TYPE_CHECKING:
    from quoreduce_gridmix.results import StudyResults
    from quoreduce_gridmix.runner import Study, Variant

SETS = ("varcompseq", "fixcompseq", "varinfltext")
APPS = ("streamSort", "javaSort", "combiner", "monsterQuery", "webdataScan", "webdataSort")
SIZES = ("small", "medium", "large")
MODES = ("original", "basic", "bft")
MODES_USUAL = ("original", "bft")
TABLE_WIDTH = 180
WIDE = 100  # columns of a terminal that has place for a bar


def parser() -> argparse.ArgumentParser:
    """Build the parser of the three commands."""
    top = Parser(
        prog="quoreduce gridmix",
        description="GridMix 2: its data, its six applications plain and voted in turn, "
        "and a report of what voting costs.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _generate_parser(commands)
    _run_parser(commands)
    report = commands.add_parser(
        "report", help="make a page of results: one HTML file, with figures as SVG, or SVG and PNG"
    )
    report.add_argument("results", metavar="JSON", nargs="+", help="what run --json printed, or OUT/gridmix.json")
    report.add_argument("--out", metavar="HTML", required=True, help="the page; its figures go beside it, as SVG")
    report.add_argument(
        "--figures", metavar="DIR", help="folder for figures instead, as SVG and PNG; needs quoreduce[png]"
    )
    report.add_argument("--overwrite", action="store_true", help="replace the page and its figures if they exist")
    return top


def _generate_parser(commands: Any) -> None:
    generate = commands.add_parser("generate", help="make the sets of data, DIR/SET: the same bytes for the same seed")
    generate.add_argument("directory", metavar="DIR")
    generate.add_argument("--set", choices=[*SETS, "all"], default="all", help="which set (default all)")
    generate.add_argument(
        "--bytes", type=BYTES, metavar="N",
        help="of keys and values of each set; K, M, G (default: 2 GiB, text 512 MiB)",
    )  # fmt: skip
    generate.add_argument("--parts", type=NUMBERS["part_files"], metavar="N", help="part files of a set (default 100)")
    generate.add_argument("--seed", type=NUMBERS["seed"], default=0, help="default 0")
    generate.add_argument(
        "--workers", type=NUMBERS["workers"], metavar="W", help="processes (default: one for each core)"
    )
    generate.add_argument("--overwrite", action="store_true", help="replace sets that exist")
    generate.add_argument("--quiet", action="store_true", help="no progress bar")


def _run_parser(commands: Any) -> None:
    run = commands.add_parser(
        "run", help="run applications, plain and voted in turn",
        description="Run applications on the data in DIR, all variants in turn, and compare outputs. Lists are "
                    "separated by commas. Results also go to OUT/gridmix.json.",
    )  # fmt: skip
    run.add_argument("directory", metavar="DIR", help="what generate made")
    run.add_argument(
        "out", metavar="OUT", help="folder for outputs (deleted once compared) and results; absent or empty"
    )
    what = run.add_argument_group("what")
    what.add_argument("--app", default="all", metavar="NAME,...", help=f"all (default), or some of {', '.join(APPS)}")
    what.add_argument("--size", metavar="SIZE,...", help="small (default), medium, large: 3, 30, 100 parts")
    what.add_argument(
        "--sweep", type=Numbers(NUMBERS["part_files"]), metavar="N,...",
        help="instead of sizes: the first N part files, for time against splits; see --split-mb",
    )  # fmt: skip
    what.add_argument("--mode", metavar="M,...", help="original, basic, bft (default: original,bft)")
    what.add_argument(
        "-f", "--faults-tolerated", type=Numbers(NUMBERS["f"]), default="1", metavar="F,...",
        help="faults to tolerate in a task (default 1)",
    )  # fmt: skip
    what.add_argument("--ablation", action="store_true", help="basic 2f+1, bft, and bft without each modification")
    what.add_argument("--stages", choices=["code", "readme"], default="code", help="of monsterQuery (default code)")
    how = run.add_argument_group("how")
    how.add_argument(
        "--repeat", type=NUMBERS["repeat"], default=5, metavar="N",
        help="measured runs of each variant (default 5); as many again at most for those that "
             "other processes disturbed",
    )  # fmt: skip
    how.add_argument(
        "--warm-up", type=NUMBERS["warm_up"], default=1, metavar="N", help="runs before that do not count (default 1)"
    )
    how.add_argument("--split-mb", type=NUMBERS["split_mb"], default=64.0, metavar="MB", help="default 64")
    how.add_argument(
        "--reducers", type=NUMBERS["reducers"], metavar="N",
        help="of every job (default: GridMix's for the size; sweep: for small)",
    )  # fmt: skip
    how.add_argument("--digest", choices=["blake3", "fast"], default="blake3", help="of voted runs; plain: checksums")
    where = run.add_argument_group("where")
    where.add_argument("--on", choices=["inline", "local", "ray"], default="ray", help="executor (default ray)")
    where.add_argument("--workers", type=NUMBERS["workers"], metavar="N", help="default: one for each core")
    where.add_argument(
        "--domain", choices=["core", "worker", "node", "rack"], help="what fails together (default core, or node)"
    )
    where.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (default: RAY_ADDRESS)")
    where.add_argument("--store", metavar="DIR", help="folder for map outputs (default: shared memory)")
    run.add_argument("--keep", action="store_true", help="keep the last output of each variant")
    run.add_argument("--overwrite", action="store_true", help="replace OUT if it has earlier results")
    run.add_argument("--json", action="store_true", help="print one JSON object")
    run.add_argument("--quiet", action="store_true", help="no progress")


def main(argv: Sequence[str]) -> int:
    """Run a command and return its exit code; errors are the caller's to print."""
    arguments = parser().parse_args(argv)
    return {"generate": _generate, "run": _run, "report": _report}[arguments.command](arguments)


def _generate(a: argparse.Namespace) -> int:
    from quoreduce_gridmix import data

    kinds = data.KINDS if a.set == "all" else (a.set,)
    for kind in kinds:
        with _bytes_bar(kind, not a.quiet and sys.stderr.isatty()) as progress:
            made = data.generate(
                kind, Path(a.directory) / kind, data.NBYTES_USUAL[kind] if a.bytes is None else a.bytes,
                parts=data.PARTS_USUAL if a.parts is None else a.parts, seed=a.seed, workers=a.workers,
                progress=progress, overwrite=a.overwrite,
            )  # fmt: skip
        stored = sum(part.nbytes for part in made.parts)
        records = sum(part.records for part in made.parts)
        print(f"{printable_name(made.path)}: {len(made.parts)} parts, {records:,} records, {stored:,} bytes")
    return 0


@contextmanager
def _bytes_bar(kind: str, visible: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how many bytes of a set are made."""
    if not visible:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    out = terminal.console(errors=True)
    columns = [TextColumn(kind), DownloadColumn(), TimeRemainingColumn()]
    if out.width >= WIDE:
        columns[1:1] = [BarColumn(), TransferSpeedColumn()]
    with Progress(*columns, console=out, refresh_per_second=8) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _run(a: argparse.Namespace) -> int:
    from quoreduce import Place, Session
    from quoreduce_gridmix import runner

    study = _study(a)
    sets = runner.find_sets(a.directory, tuple(dict.fromkeys(app.kind for app in study.apps)), study.sizes)
    place = Place(a.on, a.workers, a.domain, a.address, a.store)
    out = _claim(a.out, a.directory, a.overwrite)

    def say(text: str) -> None:
        if not a.quiet:
            print(text, file=sys.stderr, flush=True)

    with Session(place, say) as session:
        results = runner.run_study(study, sets, out, session, say)
    encoded = results.encode()
    _write(out / runner.RESULTS, encoded)
    if a.json:
        sys.stdout.write(encoded.decode())
    else:
        print_table(results)
    return 0


def _study(a: argparse.Namespace) -> Study:
    from quoreduce_gridmix import runner

    names = APPS if a.app == "all" else _listed(a.app, None, "--app")
    return runner.Study(
        apps=runner.applications(names, a.stages), sizes=_sizes(a), variants=_variants(a),
        repeat=a.repeat, warm_up=a.warm_up, split_mb=a.split_mb, digest=a.digest, reducers=a.reducers, keep=a.keep,
    )  # fmt: skip


def _sizes(a: argparse.Namespace) -> tuple[str, ...]:
    from quoreduce_gridmix.data import SWEEP

    if a.sweep is None:
        return _listed("small" if a.size is None else a.size, SIZES, "--size")
    if a.size is not None:
        raise UsageError("--sweep and --size contradict each other: leave out one of them")
    return tuple(dict.fromkeys(f"{SWEEP}{count}" for count in a.sweep))


def _variants(a: argparse.Namespace) -> tuple[Variant, ...]:
    from quoreduce_gridmix import runner

    fs = list(dict.fromkeys(a.faults_tolerated))
    if not a.ablation:
        return runner.compared(fs, MODES_USUAL if a.mode is None else _listed(a.mode, MODES, "--mode"))
    if a.mode is not None:
        raise UsageError("--ablation chooses the modes itself: leave out --mode")
    return tuple(dict.fromkeys(variant for f in fs for variant in runner.ablation(f)))


def _listed(text: str, known: Sequence[str] | None, option: str) -> tuple[str, ...]:
    """Split at commas; raise UsageError if there is nothing, or something that is not ``known``."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = [name for name in names if known is not None and name not in known]
    if wrong:
        raise UsageError(f"{option} {text!r}: {unknown_name(wrong[0], known or ())}, several with commas between")
    if not names:
        raise UsageError(f"{option} {text!r}: use one or more of {', '.join(known or ['...'])}, with commas between")
    return names


def _claim(out: str, directory: str, overwrite: bool) -> Path:
    """Make the folder for outputs, with an empty file of results that says whose it is."""
    from quoreduce_gridmix.runner import RESULTS

    path, inputs = Path(os.path.abspath(out)), Path(os.path.abspath(directory))
    if path == inputs or path in inputs.parents or inputs in path.parents:
        raise OutputError(f"{out} and the data in {directory} lie in one another: choose another output")
    try:
        names = os.listdir(path) if path.exists() else []
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}; choose another output") from error
    if names and not (overwrite and RESULTS in names):
        raise OutputError(
            f"{out} exists: use --overwrite to replace it"
            if RESULTS in names
            else f"{out} is not empty: choose another output"
        )
    _write(path / RESULTS, b"{}\n")
    return path


def _write(path: Path, text: bytes) -> None:
    from quoreduce.data.commit import output_errors

    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


def print_table(results: StudyResults) -> None:
    """Print medians, spreads and ratios to plain, and their geometric means over the applications."""
    terminal.print_table(_grid(results), TABLE_WIDTH)
    applications = len({run.app for run in results.runs})
    print(f"{applications} application{'s' * (applications != 1)}: all runs of each wrote the same bytes.")


def _grid(results: StudyResults) -> Any:
    from rich.table import Table

    from quoreduce_gridmix.results import PLAIN, cells, compare, geometric_mean, variants

    setting, table = results.setting, cells(results.runs)
    grid = Table(
        title=f"GridMix on {setting.on}, {setting.workers} workers: medians ± half the distance of the quartiles; "
        "ratios are medians of pairs",
        title_justify="left",
    )
    for name in ("application", "size", "variant"):
        grid.add_column(name, no_wrap=True)
    for name in ("splits", "runs", "clean", "time s", "time ratio", "CPU s", "CPU ratio", "executions", "MB stored"):
        grid.add_column(name, justify="right", no_wrap=True)
    ratios = {
        (c.other.app, c.other.size, name): c for name in variants(results.runs) for c in compare(table, PLAIN, name)
    }
    last = None
    for key, cell in table.items():
        if last not in (None, key[:2]):
            grid.add_section()
        last, found = key[:2], ratios.get(key) if cell.variant != PLAIN else None
        grid.add_row(
            cell.app, cell.size, cell.variant, str(cell.splits), str(len(cell.runs)), str(cell.clean), str(cell.wall),
            str(found.wall) if found else "", str(cell.cpu), str(found.cpu) if found else "",
            f"{cell.amount(lambda run: sum(run.executions.values())):.0f}",
            f"{cell.amount(lambda run: run.bytes.stored) / 1e6:,.1f}",
        )  # fmt: skip
    for size in dict.fromkeys(cell.size for cell in table.values()):
        last = last or (size, "")
        for name in variants(results.runs):
            part = [c for c in compare(table, PLAIN, name) if c.base.size == size]
            if name != PLAIN and len(part) > 1:
                if last is not None:
                    grid.add_section()
                last = None
                wall, cpu = geometric_mean(c.wall.median for c in part), geometric_mean(c.cpu.median for c in part)
                grid.add_row("geometric mean", size, name, "", "", "", "", f"{wall:.2f}", "", f"{cpu:.2f}", "", "")
    return grid


def _report(a: argparse.Namespace) -> int:
    from quoreduce_gridmix.report import write_report
    from quoreduce_gridmix.results import read_results

    figures = None if a.figures is None else Path(a.figures)
    for path in write_report([read_results(name) for name in a.results], Path(a.out), a.overwrite, figures):
        print(path)
    return 0
