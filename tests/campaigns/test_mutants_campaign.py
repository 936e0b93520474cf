"""A tenth of the mutation campaign, or as much of it as comes in a minute; `QUOREDUCE_SEED` says which (1: of
tracker/).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("mutants.py")
MINUTES = 1.0  # besides about a minute in which all tests run once
SCORE = 80  # of a hundred mutants or two; of all of them 90 is the aim
UNSEEN = "def twice(n: int) -> int:\n    return 2 * n\n"


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CAMPAIGN), *arguments], capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.nightly
def test_most_mutants_of_a_sample_are_killed(says: Callable[[str], None]) -> None:
    """An even seed takes data/, an odd one tracker/; how far a run comes depends on the machine."""
    seed = os.environ.get("QUOREDUCE_SEED", "1")
    area = ("data", "tracker")[int(seed) % 2]  # one of them: all its tests run once before the first mutant
    done = campaign(
        "--modules", area, "--sample", "10%", "--seed", seed, "--minutes", str(MINUTES), "--score", str(SCORE)
    )
    says(f"mutants, QUOREDUCE_SEED={seed}:\n{done.stdout}")
    assert done.returncode == 0, f"QUOREDUCE_SEED={seed}\n{done.stdout}{done.stderr}"
    total = re.search(r"^\| all \| \d+ \| (\d+) \|", done.stdout, re.M)
    assert total
    assert int(total[1]) >= 20


def test_a_mutant_is_one_small_change_of_the_source_and_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CAMPAIGN.parent))
    from operators import mutants_of

    mutants = mutants_of("data/twice", UNSEEN)
    assert [mutant.name for mutant in mutants] == [
        "twice: return 2 * n => return None",
        "twice: return 2 * n => return 2 / n",
        "twice: return 2 * n => return 3 * n",
    ]
    assert mutants[1].source == UNSEEN.replace("*", "/")
    assert {mutant.lines for mutant in mutants} == {(2, 2)}
    assert not any(mutant.imported for mutant in mutants)


NO_MUTANTS = [
    '"""Documented."""\n',
    "import os\nfrom json import loads\n",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    x = 1\n",
    "def f(x: 'int | None') -> 'list[int]':\n    '''Say 1 + 1.'''\n",
    "def f(x):\n    raise ValueError(f'{x + 1} is wrong')\n",
    "class P(Protocol):\n    x = 1\n",
    "@dataclass(frozen=True, slots=True)\nclass C:\n    __slots__ = ('a',)\n",
]


@pytest.mark.parametrize("source", NO_MUTANTS)
def test_what_no_test_could_see_is_not_mutated(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CAMPAIGN.parent))
    from operators import mutants_of

    assert mutants_of("data/x", source) == []


MOUNTS = """
import os, pathlib, subprocess
log = next(path for path in (fd.resolve() for fd in pathlib.Path("/proc/self/fd").iterdir()) if path.name == "log")
left = log.with_name("left")
left.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(left)], check=os.geteuid() == 0)
os._exit(1)
"""
CONTROL = """
import sys
from mutants import *
os.chdir(ROOT)
source = (PACKAGE / "tracker" / "ledger.py").read_text()
score = Score()
run_campaign([
    Mutant("tracker/ledger", "leaves a mount", (1, 1), True, sys.argv[1]),
    Mutant("tracker/ledger", "nothing", (1, 1), True, source + "# a comment\\n"),
    Mutant("tracker/ledger", "executions", (1, 1), True, source.replace("sum(self.launched.values())", "0")),
    Mutant("tracker/ledger", "no module", (1, 1), True, "raise RuntimeError\\n"),
    Mutant("tracker/ledger", "no end", (1, 1), True, source.replace("self.refused += 1", "while True: pass")),
    Mutant("tracker/ledger", "eats memory", (1, 1), True, source.replace("self.refused += 1", "bytearray(1 << 40)")),
    Mutant("tracker/ledger", "no Python", (1, 1), True, "def"),
    Mutant("tracker/ledger", "seen by no test", (10**6, 10**6), False, source),
], 2, 9, score, print)
print({mutant.name: end for mutant, end in score.ends})
"""


@pytest.mark.nightly
def test_a_change_that_matters_is_killed_and_one_that_does_not_survives(tmp_path: Path) -> None:
    """Whatever a test that is killed leaves behind is gone, and does not kill the next mutant."""
    done = subprocess.run(
        [sys.executable, "-c", CONTROL, MOUNTS], capture_output=True, text=True, timeout=900, cwd=CAMPAIGN.parent,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert eval(done.stdout.splitlines()[-1]) == {
        "leaves a mount": "killed",
        "nothing": "survived", "executions": "killed", "no module": "killed", "no end": "killed",
        "eats memory": "killed", "no Python": "no Python",
        "seen by no test": "survived",
    }  # fmt: skip
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert list(tmp_path.glob("quoreduce-mutants-*")) == []
