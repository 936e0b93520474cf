"""The model of a hardware TPM: published latencies added up, never waited for, always labelled."""

from __future__ import annotations

import time

import pytest

from quoreduce.errors import AttestationError, UsageError
from quoreduce.trust.modelled import CHIPS, DEFAULT_CHIP, ModelledTpm
from quoreduce.trust.wire import Quote


@pytest.mark.parametrize("chip", CHIPS)
def test_time_is_the_sum_of_the_published_latencies(chip):
    tpm = ModelledTpm(chip)
    for _ in range(30):
        tpm.extend(16, bytes(32))
    tpm.quote([16], b"")
    tpm.quote([16], b"")
    assert tpm.elapsed_ms == 30 * CHIPS[chip].extend_ms + 2 * CHIPS[chip].quote_ms


def test_nobody_waits_for_the_modelled_time():
    tpm = ModelledTpm("infineon-1.2-polling")
    started = time.monotonic()
    for _ in range(10_000):
        tpm.extend(16, bytes(32))
    assert tpm.elapsed_ms == 1_170_000
    assert time.monotonic() - started < 60


def test_published_latencies_are_within_what_was_published():
    assert {chip.extend_ms for chip in CHIPS.values()} <= {3.0, 7.0, 20.0, 40.0, 117.0}
    assert {1000 / chip.quote_ms for chip in CHIPS.values()} == {2.0, 5.0}
    assert CHIPS[DEFAULT_CHIP].quote_ms == 500.0


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_every_chip_names_its_source_and_is_labelled_modelled(chip):
    assert chip.source
    assert chip.label.startswith(f"modelled: {chip.name}, ")
    assert ModelledTpm(chip.name).modelled


def test_clock_of_its_quotes_is_the_modelled_one():
    tpm = ModelledTpm("stm-2.0")
    clocks = []
    for _ in range(3):
        tpm.extend(16, bytes(32))
        clocks.append(Quote.decode(tpm.quote([16], b"").message).clock.clock_ms)
    assert clocks == [7, 514, 1021]


def test_refused_command_takes_no_time():
    tpm = ModelledTpm()
    with pytest.raises(AttestationError):
        tpm.extend(24, bytes(32))
    with pytest.raises(AttestationError):
        tpm.quote([16], bytes(65))
    assert tpm.elapsed_ms == 0


def test_unknown_chip_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"TPM 'atmel': choose one of infineon-1.2-polling, "):
        ModelledTpm("atmel")
