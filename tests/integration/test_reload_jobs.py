"""New settings in a process that runs workflows: the next run has them, one that began keeps its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from dicom_node.config import Config
from dicom_node.flow import Flow, Stopwatch
from dicom_node.roles import _Latest


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
