"""The commands that learn: train the detector, mine its candidates, refine by a second stage on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dicom_node.errors import ConfigError
from training.cli.common import (
    BundleOption,
    CacheOption,
    DeviceOption,
    FoldOption,
    JsonOption,
    RecipeOption,
    parts_of_fold,
    print_json,
    typed_command,
)


def add_to(app: typer.Typer) -> None:
    for command in (train, mine, refine):
        app.command()(command)


def train(
    recipe: RecipeOption,
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

    from training.prepared import open_prepared, read_index
    from training.provenance import record
    from training.recipe import load_recipe
    from training.team import join_team
    from training.train import Job, stop_when
    from training.train import train as run_training

    if threads is not None:
        torch.set_num_threads(threads)
    numbers = load_recipe(recipe)
    learn, validation = parts_of_fold(open_prepared(cache, numbers.preprocessing), fold)
    job = Job(
        recipe=numbers, scans=learn, validation=validation, hard_mm=_hard(hard), run=out, workers=workers
    )  # fmt: skip
    with join_team(device) as team:
        if team.leads:
            left_out = len(read_index(cache).left_out)
            record(out, numbers, learn, validation, command=typed_command(), device=device, left_out=left_out)
        done = run_training(job, team, stop_when(stop_after))
    if team.leads:
        print(f"{done} of {numbers.optimisation.steps} steps in {out}")


def _hard(folder: Path | None) -> dict[str, Any]:
    import numpy as np

    if folder is None:
        return {}
    from training.mine import read_candidates

    mined = read_candidates(folder)
    return {uid: np.array([c.center_mm for c in found if c.kind == "false"]) for uid, found in mined.items()}


def mine(
    bundle: BundleOption,
    cache: CacheOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for what the bundle takes for nodules.")],
    scans: Annotated[int | None, typer.Option("--scans", min=1, help="So many, spread over the cache.")] = None,
    fold: FoldOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Collect a bundle's candidates on prepared scans: the false ones are what the next model learns from.

    Example: python -m training mine --bundle bundle --cache cache --out mined
    """
    from dicom_node.model.bundle import load_bundle
    from training.mine import mine as mine_scans
    from training.mine import spread
    from training.prepared import open_prepared

    model = load_bundle(bundle)
    learn, validation = parts_of_fold(open_prepared(cache, model.form.preprocessing), fold)
    found = mine_scans(model, [*spread(learn, scans), *validation], out, device=device)
    print(", ".join(f"{number} {kind}" for kind, number in sorted(found.items())))


def refine(
    recipe: RecipeOption,
    cache: CacheOption,
    mined: Annotated[Path, typer.Option("--mined", help="Folder that `mine` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the second stage; a run there goes on.")],
    fold: FoldOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train the 3D stage that looks again at each candidate, as the recipe's `refinement` says.

    Example: python -m training refine --recipe training/small.yaml --cache cache --mined mined --out runs/refined
    """
    from training.prepared import open_prepared
    from training.recipe import load_recipe
    from training.refine import refine as refine_candidates
    from training.refine import told

    numbers = load_recipe(recipe)
    if numbers.refinement is None:
        raise ConfigError(f"{recipe} has no `refinement`: its bundle has one stage only")
    learn, validation = parts_of_fold(open_prepared(cache, numbers.preprocessing), fold)
    network, learning = numbers.refinement.network, numbers.refinement.learning
    summary = refine_candidates(
        learn, mined, out, numbers.preprocessing, network, learning, validation=validation, device=device,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    if as_json:
        print_json(summary)
        return
    for line in told(summary):
        print(line)
