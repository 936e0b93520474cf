"""A sample of the kills of VM operations; and that the campaign would see what it looks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from vm_kills import ENDS, OPERATIONS, VICTIMS, Campaign, Case, Copies, Wrong, draw, judge_words, table

SAMPLE = (
    Case("backup", "server", True, 0.6, True),
    Case("migrate", "QEMU", False, 0.7, True),
)  # fmt: skip


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    if any(shutil.which(name) is None for name in ("qemu-system-x86_64", "swtpm", "swtpm_setup", "busybox")):
        pytest.skip("needs qemu-system-x86, swtpm, swtpm-tools, busybox-static")
    made = Campaign(tmp_path_factory.mktemp("kills"))
    yield made
    made.close()


@pytest.mark.slow
def test_a_vm_has_one_place_whatever_is_killed(campaign: Campaign, says: Callable[[str], None]) -> None:
    for case in SAMPLE if os.environ.get("CI") else SAMPLE[:1]:
        campaign.one(case)
    says(f"VM kills: {table(campaign.tally).splitlines()[-1]}")


def test_it_would_see_words_that_do_not_help() -> None:
    case = SAMPLE[0]
    judge_words(case, 6, "", "quoreduce: nothing came: find out with `quoreduce vm resume NAME`\n")
    for code, err, match in ((6, "quoreduce: no\n", "what to do"), (6, "resume\nresume\n", "one line"),
                             (1, "resume\n", "exit 1"),
                             (-9, "", "exit -9"), (6, "Traceback\n", "traceback")):  # fmt: skip
        with pytest.raises(Wrong, match=match):
            judge_words(case, code, "", err)


@pytest.mark.slow
def test_it_would_see_a_vm_that_is_lost_and_a_secret(campaign: Campaign) -> None:
    with pytest.raises(Wrong, match="it is lost in the end"):
        campaign._judge(SAMPLE[0], "lost")
    with campaign.site.record.open("ab") as record:
        record.write(b"..." + campaign._secrets[0] + b"...")
    with pytest.raises(Wrong, match="a secret is in"):
        campaign._search()


def test_it_would_see_two_copies() -> None:
    with Copies(lambda server: True) as copies:
        while copies.samples < 2:
            pass
    assert copies.double
    seen = iter([True, True, False] * 100)  # it moved between two looks
    with Copies(lambda server: next(seen)) as copies:
        while copies.samples < 2:
            pass
    assert not copies.double


def test_each_operation_meets_each_victim() -> None:
    cases = [draw(0, number) for number in range(len(VICTIMS) * len(OPERATIONS))]
    assert {(case.operation, case.victim) for case in cases} == {
        (one, other) for one in OPERATIONS for other in VICTIMS
    }
    assert draw(0, 7) == draw(0, 7)
    assert set(ENDS) == set(OPERATIONS)
