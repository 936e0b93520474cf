"""Why a job failed, in words: for people, from what the tracker has seen."""

from __future__ import annotations

from collections.abc import Mapping

from quoreduce.tracker.messages import Reason
from quoreduce.tracker.state import TaskState


def too_few(need: int, domains: int) -> str:
    """There are fewer than f+1 domains."""
    return f"{need} domains must agree on every output (f={need - 1}), and only {domains} are there."


def exhausted(state: TaskState, need: int, domains: int) -> tuple[Reason, str]:
    """A task was executed as often as it may be (R3), and `need` of the `domains` there are have not agreed."""
    reason = state.fruitless()
    if reason == "copies_lost":
        won = "its output was agreed on, and no copy of it could be made and read back"
        what = won if state.winner is not None else "nobody could read its inputs"
        return reason, f"{what}: {state.story()}."
    hint = (
        f" With {domains} domains, one that is wrong again and again cannot be outvoted; one more domain would mask it."
    ) * (domains <= need)
    if reason == "not_deterministic":
        hint = (
            " Domains contradicted themselves and never each other: the job's own code is not deterministic "
            "(quoreduce check looks for the cause)."
        )
    return reason, f"no {need} domains agreed on {state.story()}.{hint}"


def by_types(state: TaskState, cpu_types: Mapping[str, str]) -> str:
    """The output of a task depends on the type of CPU. `cpu_types`: by domain."""
    types = " and ".join(cpu_types[next(iter(candidate.domains))] for candidate in state.ballot.candidates)
    hint = "quoreduce check --settings cpu looks for the cause"
    why = f"domains with the same type of CPU agree, and those of different types ({types}) do not"
    return f"{why}: the job is not deterministic ({hint}). {state.story()}."
