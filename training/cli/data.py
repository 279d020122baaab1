"""The commands that make data to learn from: prepare, compose, truth."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.cli.common import (
    CacheOption,
    JsonOption,
    LayoutOption,
    RecipeOption,
    SourceOption,
    Trouble,
    TroubleOption,
    UnlabelledOption,
    listed,
    print_json,
)


class Part(StrEnum):
    """Which composites."""

    TRAIN = "train"
    TEST = "test"


def add_to(app: typer.Typer) -> None:
    for command in (prepare, compose, truth):
        app.command()(command)


def prepare(
    source: SourceOption,
    layout: LayoutOption,
    cache: CacheOption,
    recipe: RecipeOption,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 2,
    on_problem: TroubleOption = Trouble.REFUSE,
    unlabelled_negative: UnlabelledOption = False,
) -> None:
    """Resample scans to the grid the network sees, crop them to the lungs, and keep them with their labels.

    Example: python -m training prepare --source LUNA16 --layout luna16 --cache cache --recipe training/luna16.yaml
    """
    from training.prepare import prepare as write_cache
    from training.recipe import load_recipe

    prep = load_recipe(recipe).preprocessing
    listing = listed(source, layout, on_problem.value, unlabelled_negative)
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


def compose(
    data: Annotated[Path, typer.Option("--data", help="Folder with nodule_voi, chest_ct and luna16.")],
    out: Annotated[Path, typer.Option("--out", help="New folder, in LUNA16's own layout.")],
    part: Annotated[Part, typer.Option("--part", help="train: subsets 0 to 7; test: subset 8 in a lung never seen.")],
    scans: Annotated[int, typer.Option("--scans", min=1, help="How many.")] = 4,
    nodules: Annotated[int, typer.Option("--nodules", min=1, help="In each scan, at most.")] = 24,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed, the same bytes.")] = 1,
    montage: Annotated[Path | None, typer.Option("--montage", help="PNG file of some of them, with outlines.")] = None,
) -> None:
    """Write composites: real nodules blended into real lungs, with true masks. No scan of a person.

    Example: python -m training compose --data shared/data --out composites/test --part test --scans 4 --seed 8
    """
    from training.composites.write import compose_part

    made = compose_part(data, out, part.value, scans=scans, nodules_per_scan=nodules, seed=seed)
    print(
        f"composites in {out}: {made.scans} scans, {made.nodules} nodules, {made.excluded} excluded findings, "
        f"{made.traces} unlisted traces; no place for {made.left_over} nodules"
    )
    if montage is not None:
        from training.composites.montage import write_montage

        write_montage(out, montage)


def truth(
    lists: Annotated[Path, typer.Option("--lists", help="Folder of annotations.csv and its companions.")],
    as_json: JsonOption = False,
) -> None:
    """Count LUNA16's lists, and how many nodules have readers' outlines in LIDC-IDRI. Needs no volume.

    Example: python -m training truth --lists LUNA16
    """
    from training.readers.truth import truth_report

    report = truth_report(lists)
    if as_json:
        print_json(asdict(report))
        return
    for line in report.lines():
        print(line)
