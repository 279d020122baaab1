"""The commands that package a model: export a bundle, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli.common import BundleOption


def add_to(app: typer.Typer) -> None:
    for command in (export, card):
        app.command()(command)


def export(
    run: Annotated[Path, typer.Option("--run", help="Folder that `train` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")],
    refinement: Annotated[Path | None, typer.Option("--refinement", help="Folder that `refine` wrote.")] = None,
    figures: Annotated[
        list[Path] | None, typer.Option("--figures", help="figures.json of an evaluation; may be repeated.")
    ] = None,
    version: Annotated[str | None, typer.Option("--model-version", help="Default: the recipe's.")] = None,
    operating_point: Annotated[
        float | None, typer.Option("--operating-point", min=0, max=1, help="Default: that of the figures.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Of the weights, such as Apache-2.0.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the size.")] = False,
) -> None:
    """Write a bundle that the node serves: weights, numbers, figures, and a card written from them.

    Example: python -m training export --run runs/small --refinement runs/refined --out bundle --half
    """
    from training.export import UNSTATED, run_export

    bundle = run_export(
        run, out, figures=figures or (), refinement=refinement, version=version, operating_point=operating_point,
        licence=licence or UNSTATED, half=half,
    )  # fmt: skip
    print(f"{bundle.folder}  {bundle.form.name} {bundle.form.version}  {bundle.sha256}")


def card(
    bundle: BundleOption,
    write: Annotated[bool, typer.Option("--write", help="Replace the bundle's MODEL_CARD.md.")] = False,
) -> None:
    """Print a bundle's model card as its files make it.

    Example: python -m training card --bundle dicom_node/data/models/lung_nodule_small
    """
    from training.card import run_card

    print(run_card(bundle, write=write), end="")
