"""`python -m training`: parse, call the library, print. Exit code 0, 1 (it failed, and why) or 2 (called wrongly)."""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dicom_node.domain import RESEARCH_USE
from dicom_node.errors import ConfigError, DicomNodeError

if TYPE_CHECKING:
    from training.prepared import PreparedScan
    from training.readers import Listing, OnProblem

app = typer.Typer(
    help=f"Train, judge and package a nodule model. {RESEARCH_USE}.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Layout(StrEnum):
    """How a folder of training data is laid out."""

    LUNA16 = "luna16"
    DICOM = "dicom"
    NIFTI = "nifti"


class Trouble(StrEnum):
    """What to do with a scan that can't be used."""

    REFUSE = "refuse"
    SKIP = "skip"


CacheOption = Annotated[Path, typer.Option("--cache", help="Folder that `prepare` wrote.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda:N.")]
TroubleOption = Annotated[
    Trouble, typer.Option("--on-problem", help="A broken or missing file: refuse to go on, or skip it and list it.")
]


class EventFormatter(logging.Formatter):
    """The event and its numbers on one line."""

    def format(self, record: logging.LogRecord) -> str:
        known = logging.makeLogRecord({}).__dict__
        extra = {k: v for k, v in record.__dict__.items() if k not in known and k not in ("message", "asctime")}
        extra.pop("action", None)
        numbers = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in extra.items())
        return " ".join([self.formatTime(record, "%H:%M:%S"), record.getMessage(), *numbers])


def main() -> NoReturn:
    """Entry point of `python -m training`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        app()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except DicomNodeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


# -- data ------------------------------------------------------------------------------------------


@app.command()
def prepare(
    source: Annotated[Path, typer.Option("--source", help="Folder of the data.")],
    layout: Annotated[Layout, typer.Option("--layout", help="luna16: as downloaded; dicom: series with SEG labels.")],
    cache: CacheOption,
    recipe: Annotated[Path, typer.Option("--recipe", help="Its preprocessing numbers shape the cache.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 2,
    on_problem: TroubleOption = Trouble.REFUSE,
) -> None:
    """Resample scans to the grid the network sees, crop them to the lungs, and keep them with their labels.

    Example: python -m training prepare --source LUNA16 --layout luna16 --cache cache --recipe training/luna16.yaml
    """
    from training.prepare import prepare as write_cache
    from training.recipe import load_recipe

    prep = load_recipe(recipe).preprocessing
    listing = _list(source, layout, on_problem.value)
    for line in listing.summary:
        print(line)
    index = write_cache(
        listing.scans, cache, prep, workers=workers, on_problem=on_problem.value, left_out=listing.left_out,
        report=lambda p: print(
            f"{p.done}/{p.of}  {p.uid}  " + (p.problem or f"{p.size_mb:.0f} MB  {p.seconds:.0f} s"), flush=True
        ),
    )  # fmt: skip
    for name, why in index.left_out.items():
        print(f"left out: {name}: {why}")
    print(f"{len(index.keys)} scans in {cache}, {len(index.left_out)} left out")


def _list(source: Path, layout: Layout, on_problem: OnProblem) -> Listing:
    from training.readers.luna16 import list_luna16

    return list_luna16(source, on_problem=on_problem)


# -- train -----------------------------------------------------------------------------------------


@app.command()
def train(
    recipe: Annotated[Path, typer.Option("--recipe", help="YAML: training/small.yaml, training/luna16.yaml.")],
    cache: CacheOption,
    # Not --run: torchrun takes it for the beginning of an option of its own.
    out: Annotated[Path, typer.Option("--out", help="Folder of checkpoints and curves; a run there goes on.")],
    fold: Annotated[
        int | None, typer.Option("--fold", min=0, max=9, help="LUNA16 subset to keep for the test.")
    ] = None,
    hard: Annotated[
        Path | None, typer.Option("--hard", help="Folder that `mine` wrote: known false candidates.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda; torchrun gives each process its own.")] = "cpu",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that read beside each training one.")] = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of each process.")] = None,
    stop_after: Annotated[
        float | None, typer.Option("--stop-after", help="Minutes; end with a checkpoint, go on later.")
    ] = None,
) -> None:
    """Train a recipe's network on prepared scans; the same command goes on where a stopped run ended.

    Without --fold every scan of the cache is learned from.

    Example: python -m training train --recipe training/small.yaml --cache cache --out runs/small
    Example: torchrun --nproc-per-node 4 -m training train --recipe training/luna16.yaml --cache cache --out runs/f0
    --fold 0 --device cuda --workers 4
    """
    import torch

    from training.prepared import open_prepared
    from training.recipe import load_recipe
    from training.team import join_team
    from training.train import Job, stop_when
    from training.train import train as run_training

    if threads is not None:
        torch.set_num_threads(threads)
    numbers = load_recipe(recipe)
    learn, validation = _parts(open_prepared(cache, numbers.preprocessing), fold)
    job = Job(
        recipe=numbers, scans=learn, validation=validation, hard_mm=_hard(hard), run=out, workers=workers
    )  # fmt: skip
    with join_team(device) as team:
        done = run_training(job, team, stop_when(stop_after))
    if team.leads:
        print(f"{done} of {numbers.optimisation.steps} steps in {out}")


def _parts(scans: list[PreparedScan], number: int | None) -> tuple[list[PreparedScan], list[PreparedScan]]:
    if number is None:
        return scans, []
    from training.folds import fold

    parts = fold(scans, number)
    return list(parts.train), list(parts.validation)


def _hard(folder: Path | None) -> dict[str, Any]:
    import numpy as np

    if folder is None:
        return {}
    from training.mine import read_candidates

    mined = read_candidates(folder)
    return {uid: np.array([c.center_mm for c in found if c.kind == "false"]) for uid, found in mined.items()}
