"""A campaign: its stages one after the other, each in a process of its own, and a look at what they left behind."""

from __future__ import annotations

import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from quoreduce.chaos import jobs
from quoreduce.chaos.monkey import sweep_clocks, wait_until_gone
from quoreduce.chaos.plan import STAGES, chosen_by, kinds_of, parse_job
from quoreduce.chaos.stage import MARKER, Orders
from quoreduce.chaos.tally import Campaign, JobOutcome
from quoreduce.errors import one_line

STALL_S = 120.0
GONE_S = 20.0
SETUPS_MOST = 3  # times that a stage is set up, or set up again in its middle, in vain
LOG_LINES = 5
ROOT_CHARS_MOST = 16  # Ray's sockets are in there, and their names have 107 characters at most


def run_campaign(
    seed: int, minutes: float, kinds: Sequence[str], on: str, jobs_most: int | None, only: str | None,
    say: Callable[[str], None]
) -> Campaign:  # fmt: skip
    """Run a campaign and return what was seen.

    Args:
        seed: decides which faults strike when.
        minutes: for all stages, their starting included (but each has at least half of its share for jobs).
        kinds: of faults.
        on: ``local``, ``ray`` or ``all``.
        jobs_most: end a stage after its share of so many jobs.
        only: ``STAGE:NUMBER``, to run one job again.
        say: is told how it goes.
    """
    root = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="qr-chaos-", dir=root if len(root) <= ROOT_CHARS_MOST else "/tmp"))
    campaign = Campaign(seed, minutes, tuple(kinds), folder=str(folder))
    start = time.monotonic()
    try:
        say("making inputs, and the right outputs of all jobs ...")
        inputs = jobs.make_inputs(folder)
        references = jobs.references(inputs, folder)
        one = parse_job(only) if only else None
        chosen = [stage for stage in STAGES.values() if (stage.name == one[0] if one else chosen_by(on, stage.name))]
        total = sum(stage.share for stage in chosen)
        for stage in chosen:
            if not kinds_of(stage.name, kinds):
                continue
            share = stage.share / total
            most = None if jobs_most is None else max(1, round(jobs_most * share))
            orders = Orders(
                stage.name, seed, minutes * 60 * share, list(kinds), str(folder / stage.name), inputs, references,
                one[1] if one else None, most,
            )  # fmt: skip
            say(f"{stage.name}: {stage.text}; {orders.seconds:.0f} s ...")
            _run_stage(orders, campaign, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    campaign.wall_s = time.monotonic() - start
    return campaign


@dataclass(slots=True)
class _StageProgress:
    """The state of a stage, from the lines that it has written so far.

    ``job``: the job that runs; ``next``: the number of the first that was not begun yet. ``setting_up``: the stage
    starts its workers, Ray, or new nodes in the place of lost ones. ``ready_at``: when it was ready.
    """

    job: dict[str, Any] = field(default_factory=dict)
    next: int = 0
    setting_up: bool = True
    ready_at: float | None = None

    def note(self, line: dict[str, Any]) -> None:
        """Follow the stage by a line that it says."""
        if "begin" in line:
            self.job, self.next = line, _number(line) + 1
        elif "record" in line:
            self.job = {}
        if "set_up" in line:
            self.setting_up = line["set_up"] == "begun"
            if not self.setting_up:
                self.ready_at = self.ready_at or time.monotonic()


def _run_stage(orders: Orders, campaign: Campaign, say: Callable[[str], None]) -> None:
    """Run a stage. If its workers or its Ray do not start that is counted, and tried again, but not for ever."""
    failed = 0
    while True:
        folder = Path(orders.folder)
        (folder / "ray").mkdir(parents=True)
        heard = _StageProgress(next=orders.first)
        try:
            why = _run_once(orders, heard, campaign, say)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if why is None:
            return
        failed += 1
        campaign.setups_failed += 1
        say(f"{orders.stage}: set-up {failed} failed, which is no job: {why}")
        if failed == SETUPS_MOST:
            campaign.not_set_up[orders.stage] = why
            return
        spent_s = time.monotonic() - heard.ready_at if heard.ready_at else 0.0
        orders = replace(orders, first=heard.next, seconds=max(0.0, orders.seconds - spent_s))
        if _over(orders):
            return


def _over(orders: Orders) -> bool:
    """Whether no job is left to do of those that have to be done."""
    if orders.only is not None or orders.most is not None:
        return orders.first >= (1 if orders.only is not None else orders.most or 0)
    return orders.seconds == 0 and orders.first >= STAGES[orders.stage].jobs_least


def _run_once(orders: Orders, heard: _StageProgress, campaign: Campaign, say: Callable[[str], None]) -> str | None:
    """Run a stage. A stage that writes nothing for STALL_S seconds is killed, which is a finding if a job ran.

    Returns why it could not be set up, if it could not.
    """
    marker = f"{MARKER}={secrets.token_hex(8)}"
    log = Path(orders.folder) / "log"
    stage = _begin(orders, marker, log)
    start = time.time()
    try:
        for line in _lines(stage):
            heard.note(line)
            _hear(line, orders.stage, campaign, say)
        code = stage.wait(GONE_S)
    except (queue.Empty, subprocess.TimeoutExpired):
        code = None
    except BaseException:
        _end(stage)
        wait_until_gone(marker, 0.0)
        raise
    why = None
    if code != 0:
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        last = one_line(" | ".join(lines))
        if heard.setting_up:
            why = last or (f"nothing was heard for {STALL_S:.0f} s" if code is None else f"exit code {code}")
        else:
            _failed(orders.stage, heard.job, code, last, campaign, say)
        _end(stage)
    orphans = wait_until_gone(marker, GONE_S if code == 0 else 0.0)
    sweep_clocks(start)
    if code == 0:
        campaign.orphans += len(orphans)
    if orphans and code == 0:
        say(f"{orders.stage}: {len(orphans)} processes were left behind")
    return why


def _begin(orders: Orders, marker: str, log: Path) -> subprocess.Popen[str]:
    """Start a stage and give it its orders."""
    name, _, value = marker.partition("=")
    environment = {
        **os.environ, name: value, "PYTHONPATH": os.pathsep.join(sys.path),
        "QUOREDUCE_CHAOS_MOUNTS": os.readlink("/proc/self/ns/mnt"),
        # A Ray cluster writes its address to the folder ray/ in there, which it does not make; and the address of a
        # user's own Ray, which is in $TMPDIR/ray, must not be overwritten.
        "RAY_TMPDIR": orders.folder,
    }  # fmt: skip
    with open(log, "wb") as errors:
        stage = subprocess.Popen(
            _command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            env=environment,
        )  # fmt: skip
    assert stage.stdin is not None
    try:
        stage.stdin.write(json.dumps(asdict(orders)))
        stage.stdin.close()
    except BrokenPipeError:
        pass  # it has ended, which will be seen
    return stage


def _command() -> list[str]:
    """The stage; as root in a mount name space of its own, so that its small disk is gone with it."""
    command = [sys.executable, "-P", "-m", "quoreduce.chaos.stage"]
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return command
    tried = subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False)
    return ["unshare", "--mount", *command] if tried.returncode == 0 else command


def _lines(stage: subprocess.Popen[str]) -> Any:
    """The lines that a stage says, as objects; queue.Empty if it is silent for too long."""
    said: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert stage.stdout is not None
        for line in stage.stdout:
            said.put(line)
        said.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (line := said.get(timeout=STALL_S)) is not None:
        yield json.loads(line)


def _hear(line: dict[str, Any], stage: str, campaign: Campaign, say: Callable[[str], None]) -> None:
    if "record" in line:
        record = JobOutcome(**line["record"])
        campaign.records.append(record)
        if record.outcome not in ("right", "warm"):
            say(f"{stage}:{record.number} {record.job} f={record.f} {record.faults}: {record.outcome} {record.error}")
    if "note" in line:
        say(line["note"])
    if "not_run" in line:
        campaign.not_run[line["not_run"]] = line["note"]
    if line.get("left"):
        campaign.files_left += len(line["left"])
        say(f"{stage}: files left behind: {line['left'][:LOG_LINES]}")


def _failed(
    stage: str, job: dict[str, Any], code: int | None, last: str, campaign: Campaign, say: Callable[[str], None]
) -> None:  # fmt: skip
    """A stage that hangs, or dies, is a finding, of the job that ran if one did."""
    number = _number(job)
    outcome = "hang" if code is None else "untyped"
    kinds = dict.fromkeys(job.get("kinds", ()), 0)
    error = f"exit code {code}: {last}"
    campaign.records.append(JobOutcome(stage, number, job.get("job", ""), 1, outcome, kinds, error=error))
    say(f"{stage}:{number}: {outcome}: {last}")


def _number(job: dict[str, Any]) -> int:
    """The number of a job that was begun, -1 if none was."""
    return int(str(job.get("begin", ":-1")).partition(":")[2])


def _end(stage: subprocess.Popen[str]) -> None:
    """Kill a stage and what shares its process group."""
    if stage.poll() is None:
        os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
