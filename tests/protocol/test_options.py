"""Options that have a new name: the old one still works, and says what it is called now."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from quoreduce import Options
from quoreduce.commands.run import parser
from quoreduce.commands.running import _options


def test_the_keyword_spares_is_speculation() -> None:
    with pytest.warns(DeprecationWarning, match="called speculation now"):
        old = Options(spares=False)
    assert old == Options(speculation=False)
    assert Options().speculation


def test_copies_and_what_a_journal_holds_keep_the_choice() -> None:
    chosen = Options(speculation=False)
    assert not replace(chosen, f=2).speculation
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(chosen), type=Options) == chosen


@pytest.mark.parametrize(("option", "said"), [
    ("--no-speculation", ""), ("--no-spares", "--no-spares is called --no-speculation now"),
])  # fmt: skip
def test_the_option_no_spares_is_no_speculation(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not _options(parser().parse_args(["wordcount", "in", "out", option])).speculation
    err = capsys.readouterr().err
    assert (said in err) if said else err == ""
    assert _options(parser().parse_args(["wordcount", "in", "out"])).speculation
