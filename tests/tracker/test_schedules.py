"""Random schedules, looked at closely. Whether they end right is asked of many more in tests/campaigns."""

from __future__ import annotations

from schedule import Schedule, run


def test_invariants_hold_after_every_event() -> None:
    for seed in range(100_000, 100_400):
        run(seed, checked=True)


def test_the_same_events_give_the_same_commands() -> None:
    """The tracker has no clock and no randomness of its own."""
    for seed in range(50):
        transcripts = []
        for _ in range(2):
            schedule = Schedule(seed)
            schedule.cluster.transcript = []
            schedule.run()
            transcripts.append(schedule.cluster.transcript)
        assert transcripts[0] == transcripts[1]
