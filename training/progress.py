"""What a run tells while it goes: TensorBoard always, a bar with the time left on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from training.recipe import Recipe

log = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"


class Progress:
    """A context: opens its writers on entry, closes them whatever happens."""

    def __init__(self, run: Path, recipe: Recipe, first: int, quiet: bool) -> None:
        self._run, self._recipe, self._first, self._quiet = run, recipe, first, quiet
        self._writer: Any = None
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._quiet:
            return self
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: what a killed run wrote after its last checkpoint is hidden, not drawn twice.
        self._writer = SummaryWriter(str(self._run / TENSORBOARD), purge_step=self._first + 1)
        self._started = time.monotonic()
        if sys.stderr.isatty():
            self._bar, self._task = _bar(self._recipe, self._first)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=numbers["total"])
        if self._writer is None or step % self._recipe.keeping.log_every:
            return
        for name, value in numbers.items():
            self._writer.add_scalar(f"training/{name}", value, step)
        if self._bar is None:
            steps = self._recipe.optimisation.steps
            per_step = (time.monotonic() - self._started) / (step - self._first)
            told = {"step": step, "of": steps, "left_s": round(per_step * (steps - step)), **numbers}
            log.info("step", extra={"action": "step", **told})

    def validated(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(f"validation/{name}", value, step)
            log.info("validated", extra={"action": "validated", "step": step, **numbers})


def _bar(recipe: Recipe, first: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    loss = TextColumn("loss {task.fields[loss]:.3f}")
    columns = TextColumn(recipe.name), BarColumn(), MofNCompleteColumn(), loss
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    return bar, bar.add_task("steps", total=recipe.optimisation.steps, completed=first, loss=float("nan"))
