"""What all commands of training share: their options, JSON, and the command as it was typed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.prepared import PreparedScan
    from training.readers import Listing, OnProblem


class Layout(StrEnum):
    """How a folder of training data is laid out."""

    LUNA16 = "luna16"
    DICOM = "dicom"
    NIFTI = "nifti"
    NIFTI_CROPS = "nifti-crops"


class Trouble(StrEnum):
    """What to do with a scan that can't be used."""

    REFUSE = "refuse"
    SKIP = "skip"


CacheOption = Annotated[Path, typer.Option("--cache", help="Folder that `prepare` wrote.")]
SourceOption = Annotated[Path, typer.Option("--source", help="Folder of the data.")]
LayoutOption = Annotated[
    Layout,
    typer.Option(
        "--layout",
        help="luna16: as downloaded, or composites; dicom: CT series with Segmentations; nifti: images and labels, "
        "-crops: of nodules, not of whole chests.",
    ),
]
UnlabelledOption = Annotated[
    bool, typer.Option("--unlabelled-negative", help="dicom: a series without Segmentation holds no nodule.")
]
RecipeOption = Annotated[Path, typer.Option("--recipe", help="YAML: training/small.yaml, training/luna16.yaml.")]
FoldOption = Annotated[
    int | None,
    typer.Option("--fold", min=0, max=9, help="LUNA16 subset kept for the test; the one before it validates."),
]
BundleOption = Annotated[Path, typer.Option("--bundle", help="Folder of a model bundle.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda:N.")]
TroubleOption = Annotated[
    Trouble, typer.Option("--on-problem", help="A broken or missing file: refuse to go on, or skip it and list it.")
]


def typed_command() -> str:
    """This very command, for a run's record. Of a path only its end: the rest tells of a machine, or of a patient."""
    words = (re.sub(r"[^=]*/(?=.)", "", word.rstrip("/")) for word in sys.argv[1:])
    return shlex.join(["python", "-m", "training", *words])


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def listed(source: Path, layout: Layout, on_problem: OnProblem, unlabelled: bool) -> Listing:
    if layout is Layout.LUNA16:
        from training.readers.luna16 import list_luna16

        return list_luna16(source, on_problem=on_problem)
    if layout is Layout.DICOM:
        from training.readers.dicom_seg import list_dicom_seg

        return list_dicom_seg(source, on_problem=on_problem, unlabelled="negative" if unlabelled else "skip")
    from training.readers.nifti import list_nifti

    return list_nifti(source, on_problem=on_problem, whole_chest=layout is not Layout.NIFTI_CROPS)


def parts_of_fold(scans: list[PreparedScan], number: int | None) -> tuple[list[PreparedScan], list[PreparedScan]]:
    if number is None:
        return scans, []
    from training.folds import fold

    parts = fold(scans, number)
    return list(parts.train), list(parts.validation)
