"""A request that Ray loses while an actor starts: another actor is started, and no domain is lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from quoreduce.errors import HostError
from quoreduce.protocol.options import Place
from quoreduce.protocol.port import WorkerInfo
from quoreduce.runtime import ray as ray_module
from quoreduce.runtime.ray import STARTS_MAX, RayExecutor, _Actor


class GetTimeoutError(Exception):
    """As Ray's."""


class Flaky(RayExecutor):
    """Without Ray: the first ``failures`` actors do not answer."""

    def __init__(self, failures: int, cause: Exception | None = None) -> None:
        super().__init__(Place("ray"))
        self.failures = failures
        self.cause = cause or ConnectionError()
        self.created: list[str] = []
        self.killed: list[str] = []
        self.ends: list[float] = []
        self._ray = SimpleNamespace(
            exceptions=SimpleNamespace(GetTimeoutError=GetTimeoutError),
            kill=lambda handle, no_restart: self.killed.append(handle),
        )
        self._dead["w3.0"] = _Actor("w3.0", WorkerInfo("w3.0", "worker3", "node"), "node", 7)

    def _alive_nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "node", "NodeManagerAddress": "127.0.0.1", "Resources": {"CPU": 3.0}}]

    def _create(self, index: int, node_id: str, number: int) -> _Actor:
        name = f"w{index}.{len(self.created) + 1}"
        self.created.append(name)
        return _Actor(name, WorkerInfo(name, f"worker{index}", node_id), node_id, number)

    def _settle(self, actor: _Actor, end: float) -> _Actor:
        self.ends.append(end)
        if len(self.created) <= self.failures:
            raise HostError("a Ray actor did not start") from self.cause
        return actor


@pytest.mark.parametrize("failures", range(STARTS_MAX))
def test_another_actor_takes_its_place(failures: int) -> None:
    executor = Flaky(failures)
    info = executor.replace("w3.0")
    assert info is not None
    assert info.domain == "worker3"
    assert executor.killed == executor.created[:-1], "those that did not answer are not left running"


def test_not_for_ever() -> None:
    executor = Flaky(1000)
    assert executor.replace("w3.0") is None
    assert len(executor.created) == STARTS_MAX


def test_what_took_too_long_is_not_tried_again() -> None:
    executor = Flaky(1000, GetTimeoutError())
    assert executor.replace("w3.0") is None
    assert len(executor.created) == 1


def test_all_actors_have_one_deadline_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start at the same time: a hundred that hang are not waited for a hundred times."""
    monkeypatch.setattr(ray_module, "_join", lambda address, namespace, swept: False)
    executor = Flaky(0)
    assert len(executor.start()) == 3
    assert len(executor.ends) == 3
    assert len(set(executor.ends)) == 1
