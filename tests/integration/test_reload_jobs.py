"""New settings in a process that runs workflows, and its end: who waits for whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dicom_node import roles
from dicom_node.config import Config
from dicom_node.flow import Flow, Stopwatch
from dicom_node.roles import _Latest, join_all, told_to_stop


@dataclass(frozen=True)
class Told:
    """Stands for a Flow: each workflow tells which routes it saw at its start and at its end."""

    config: Config
    said: list[tuple[int, int]]
    during: Callable[[], None]
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def workflows(self) -> Mapping[str, Any]:
        return {"assemble": self.assemble}

    def assemble(self, run: Any) -> None:
        at_start = len(self.config.routes)
        self.during()
        self.said.append((at_start, len(self.config.routes)))


def test_a_route_added_live_is_seen_by_the_next_series_and_not_by_one_that_runs(
    node_config: Callable[..., Config],
) -> None:
    models = {"m": {"bundle": "builtin:lung_nodule_small"}}
    old = node_config(models=models)
    new = node_config(models=models, routes=[{"name": "all", "model": "m"}])
    said: list[tuple[int, int]] = []
    reloads = [lambda: latest.take_over(new)]

    def during() -> None:
        if reloads:
            reloads.pop()()

    latest = _Latest(lambda config: cast(Flow, Told(config, said, during)), lambda _config: [], old)
    stopwatch, assemble = latest.flow.stopwatch, latest.workflows()["assemble"]
    assemble(cast(Any, SimpleNamespace()))
    assemble(cast(Any, SimpleNamespace()))
    assert said == [(0, 0), (1, 1)]
    assert latest.flow.stopwatch is stopwatch, "a hung analysis is still seen"


@dataclass
class Busy:
    """Stands for a part that is in the middle of something when it is told to stop."""

    told: list[float] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    heard: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.begun.set()

    def stop(self, wait_s: float) -> None:
        self.told.append(wait_s)
        self.heard.set()
        self.done.wait(wait_s)


def test_all_parts_hear_of_the_end_at_once_and_share_one_deadline() -> None:
    parts = [Busy() for _ in range(4)]
    ending = told_to_stop(parts, 60)
    assert all(part.heard.wait(10) for part in parts)
    start = time.monotonic()
    assert join_all(ending, 0.5) == ending
    assert time.monotonic() - start < 4 * 0.5
    for part in parts:
        part.done.set()
    assert join_all(ending, 10) == []


def test_a_reload_does_not_wait_for_a_part_that_is_busy_and_the_end_of_the_process_does(
    node_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "_HANDOVER_S", 0.05)
    config, parts = node_config(), [Busy(), Busy()]
    made = iter(parts)
    latest = _Latest(lambda config: cast(Flow, Told(config, [], lambda: None)), lambda _config: [next(made)], config)
    latest.start(config)
    latest.take_over(config)
    assert parts[1].begun.is_set()
    assert parts[0].told[0] > config.work.drain_s, "its pull of hours is not cut off from what it announces to"
    ending = latest.told_to_stop(config.work.drain_s)
    parts[1].done.set()
    assert len(join_all(ending, 0.1)) == 1
    parts[0].done.set()
    assert join_all(ending, 10) == []
