"""What all commands share: where they print, their common options, JSON and a progress bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The node's settings.", envvar="DICOM_NODE_CONFIG")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
DEFAULT_CONFIG = Path("config.yaml")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, nothing in a pipe. Called with the part of 1 that is done."""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                   TimeRemainingColumn(), console=err, disable=quiet or not err.is_terminal)  # fmt: skip
    with bar:
        task = bar.add_task(label, total=1.0)
        yield lambda part: bar.update(task, completed=part)
