"""The command that goes all the way: from LUNA16 on disk to the table of the claims."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import training
from training.cli.common import (
    DeviceOption,
    JsonOption,
    RecipeOption,
    Trouble,
    TroubleOption,
    print_json,
    typed_command,
)

REFERENCE_RECIPE = Path(training.__file__).with_name("luna16.yaml")


def add_to(app: typer.Typer) -> None:
    app.command()(reproduce)


def reproduce(
    luna16: Annotated[Path, typer.Option("--luna16", help="LUNA16 as downloaded and unpacked.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for everything; goes on where it was stopped.")] = Path(
        "reproduction"
    ),
    recipe: RecipeOption = REFERENCE_RECIPE,
    fold: Annotated[int | None, typer.Option("--fold", min=0, max=9, help="Only this one; default: all ten.")] = None,
    device: DeviceOption = "cpu",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that prepare and read.")] = 2,
    on_problem: TroubleOption = Trouble.REFUSE,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it needs, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """From LUNA16 on disk to the table of the four claims. Says first what disk, time and memory it needs.

    Example: python -m training reproduce --luna16 LUNA16 --out reproduction --fold 0 --device cuda
    """
    from training.recipe import load_recipe
    from training.reproduce import EVERYTHING, Reproduction, told
    from training.reproduce import reproduce as run_all
    from training.team import join_team

    asked = Reproduction(
        luna16=luna16, out=out, recipe=load_recipe(recipe), folds=EVERYTHING if fold is None else (fold,),
        device=device, workers=workers, command=typed_command(), on_problem=on_problem.value,
    )  # fmt: skip
    with join_team(device) as team:
        rows = run_all(asked, team, say=lambda line: print(line, file=sys.stderr, flush=True), only_plan=plan)
    if as_json:
        print_json(rows)
    elif rows:
        print(told(rows))
