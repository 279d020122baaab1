"""The commands that judge: evaluate a bundle, froc a submission, ceiling of human readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.errors import ConfigError
from training.cli.common import (
    BundleOption,
    DeviceOption,
    JsonOption,
    LayoutOption,
    SourceOption,
    Trouble,
    TroubleOption,
    UnlabelledOption,
    listed,
    typed_command,
)


def add_to(app: typer.Typer) -> None:
    for command in (evaluate, froc, ceiling):
        app.command()(command)


def evaluate(
    bundle: BundleOption,
    source: SourceOption,
    layout: LayoutOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for results, figures.json and report.html.")],
    subset: Annotated[
        list[int] | None, typer.Option("--subset", min=0, max=9, help="luna16: only this one; may be repeated.")
    ] = None,
    point_from: Annotated[
        Path | None, typer.Option("--point-from", help="--out of an evaluation on other scans: chooses the point.")
    ] = None,
    false_positives: Annotated[
        float | None, typer.Option("--false-positives", min=0, help="A scan, at the point to be chosen.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="That the bundle came from: says who was seen in training.")
    ] = None,
    refinement: Annotated[
        Path | None, typer.Option("--refinement", help="That the bundle's second stage came from.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    device: DeviceOption = "cpu",
    on_problem: TroubleOption = Trouble.REFUSE,
    unlabelled_negative: UnlabelledOption = False,
) -> None:
    """Judge a bundle on scans with truth, through the detector that the node serves, and write the report.

    Example: python -m training evaluate --bundle bundle --source composites/test --layout luna16 --out report
    """
    from dicom_node.model.bundle import load_bundle
    from training.evaluation.evaluate import run_evaluate
    from training.evaluation.report import headlines
    from training.export import check_origin
    from training.provenance import fold_of, seen_in_training

    listing = listed(source, layout, on_problem.value, unlabelled_negative)
    if subset:
        listing = replace(listing, scans=[scan for scan in listing.scans if scan.subset in subset])
        if not listing.scans:
            raise ConfigError(f"no scan in {source} is of subset {', '.join(map(str, subset))}")
    for line in (*listing.summary, *(f"left out: {name}: {why}" for name, why in listing.left_out.items())):
        print(line)
    if run is not None:
        check_origin(load_bundle(bundle), run, refinement)
    who = None if run is None else fold_of(run, listing.scans, refinement)
    made = run_evaluate(
        bundle, listing, out, command=typed_command(), device=device, workers=workers, on_problem=on_problem.value,
        point_from=point_from, false_positives_per_scan=false_positives, folds=None if who is None else [who],
        seen=None if run is None else seen_in_training(run, listing.scans),
    )  # fmt: skip
    for line in headlines(made):
        print(line)


def froc(
    submission: Annotated[Path, typer.Option("--submission", help="seriesuid,coordX,coordY,coordZ,probability")],
    annotations: Annotated[Path, typer.Option("--annotations", help="LUNA16's annotations.csv")],
    excluded: Annotated[Path, typer.Option("--excluded", help="LUNA16's annotations_excluded.csv")],
    seriesuids: Annotated[Path, typer.Option("--seriesuids", help="The scans, one a line.")],
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=0, help="Samples for 95 % intervals; 0: none.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Judge a submission as LUNA16's official script does: sensitivity at 1/8 to 8 false positives a scan, and CPM.

    Files may be gzipped.

    Example: python -m training froc --submission marks.csv --annotations annotations.csv
    --excluded annotations_excluded.csv --seriesuids seriesuids.csv --bootstrap 1000 --json
    """
    from training.evaluation.froc import run_froc

    print(run_froc(submission, annotations, excluded, seriesuids, bootstrap, as_json))


def ceiling(
    out: Annotated[Path | None, typer.Option("--out", help="JSON file; default: the one of this package.")] = None,
) -> None:
    """Measure what one of LIDC-IDRI's readers reaches against the others: the human ceiling beside each figure.

    Example: python -m training ceiling
    """
    from training.evaluation.ceiling import SHIPPED, run_ceiling

    print(run_ceiling(out or SHIPPED))
