"""Composites -> a folder in LUNA16's own layout, and the command that makes one from the shared data.

subsetK/<uid>.mhd, .raw     a scan on its own grid, cropped to the lungs with 30 mm round them
annotations.csv             seriesuid, coordX, coordY, coordZ, diameter_mm of the visible part of each nodule
annotations_excluded.csv    the background's own findings and nodules shrunken to 2 to 3 mm
masks/<uid>.nii.gz          uint8 on the scan's grid: row number (1...) of the scan's nodules in annotations.csv
sources.csv                 what was put where, the unlisted traces too
composites.json             Form; written last, so that a folder without it is not complete
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import RESEARCH_USE
from dicom_node.grids import simple_itk, to_image
from training.cases import DataProblem
from training.composites.backgrounds import Background, read_background
from training.composites.scan import Composite, compose_scan
from training.voi import Voi, load_vois, split

log = logging.getLogger(__name__)

Part = Literal["train", "test"]
BACKGROUNDS: dict[Part, tuple[str, ...]] = {"train": ("LIDC-IDRI-0002", "C3N-00247"), "test": ("LIDC-IDRI-0001",)}
OWN_SURROUNDINGS: dict[Part, float] = {"train": 0.25, "test": 0.0}
FORM_FILE = "composites.json"
# Nodules that found no place wait for the next scan of their subset, on top of its own.
MOST_NODULES = 100
NOTE = f"Composites: real nodules blended into real lungs. No scan of a person. {RESEARCH_USE}."
LISTS = {
    "annotations.csv": ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"),
    "annotations_excluded.csv": ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"),
    "sources.csv": ("seriesuid", "row", "what", "site", "source", "coordX", "coordY", "coordZ", "diameter_mm"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was written. left_over: nodules for which no place was found."""

    scans: int
    nodules: int
    excluded: int
    traces: int
    left_over: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One scan to come: which lung, which nodules, under which name."""

    number: int
    uid: str
    background: Background
    subset: int
    vois: tuple[Voi, ...]


def compose_part(data: Path, out: Path, part: Part, *, scans: int, nodules_per_scan: int, seed: int) -> Summary:
    """The shared data's nodules into its lungs: "train" learns from subsets 0 to 7, "test" holds subset 8.

    Raises DataProblem.
    """
    learn, held_out = split(load_vois(data))
    return compose(
        backgrounds=[read_background(data, name) for name in BACKGROUNDS[part]],
        nodules=learn if part == "train" else held_out,
        out=out,
        scans=scans,
        nodules_per_scan=nodules_per_scan,
        seed=seed,
        tag=part,
        own_surroundings=OWN_SURROUNDINGS[part],
    )


def compose(
    *,
    backgrounds: Sequence[Background],
    nodules: Sequence[Voi],
    out: Path,
    scans: int,
    nodules_per_scan: int,
    seed: int,
    tag: str,
    own_surroundings: float = 0.0,
) -> Summary:
    """Writes the folder; the same arguments give the same bytes. A scan of subset K holds nodules of subset K only.

    tag: joins the background's name as the scan's patient, so that no split parts two scans of one lung.
    Raises DataProblem where `out` holds something already.
    """
    if not 0 < nodules_per_scan <= MOST_NODULES:
        raise DataProblem(f"{nodules_per_scan} nodules a scan: give 1 to {MOST_NODULES}, their masks are uint8 labels")
    if out.exists() and any(out.iterdir()):
        raise DataProblem(f"{out} is not empty: composites go to a folder of their own; give another or remove it")
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in LISTS}
    forms: dict[str, dict[str, object]] = {}
    left_over: list[Voi] = []
    traces = 0
    for plan in plans(backgrounds, nodules, scans, nodules_per_scan, seed, tag):
        waiting = [v for v in left_over if v.subset == plan.subset]
        left_over = [v for v in left_over if v.subset != plan.subset]
        made = compose_scan(
            plan.background,
            [*plan.vois, *waiting],
            backgrounds,
            np.random.default_rng([seed, plan.number]),
            own_surroundings=own_surroundings,
        )
        left_over += made.left_over
        traces += len(made.traces)
        masks = _write_scan(out, plan, made)
        _list(rows, plan.uid, made)
        forms[plan.uid] = {"patient": f"{plan.background.name} {tag}", "subset": plan.subset, "masks": masks}
        log.info("composite written", extra={"action": "compose", "scan": plan.number, "nodules": len(made.nodules)})
    _write_lists(out, rows, forms, seed)
    counts = {name: len(rows[name]) for name in LISTS}
    return Summary(
        scans=len(forms),
        nodules=counts["annotations.csv"],
        excluded=counts["annotations_excluded.csv"],
        traces=traces,
        left_over=len(left_over),
    )


def plans(
    backgrounds: Sequence[Background], nodules: Sequence[Voi], scans: int, nodules_per_scan: int, seed: int, tag: str
) -> Iterator[Plan]:
    """Subsets and backgrounds take turns; each subset's nodules are dealt from a shuffled deck, again and again."""
    subsets = sorted({v.subset for v in nodules})
    if not subsets or not backgrounds:
        raise DataProblem("composites need at least one nodule and one background")
    split(nodules)  # refuses subset 9
    decks = {
        s: _dealt([v for v in nodules if v.subset == s], np.random.default_rng([seed, 1 << 20, s])) for s in subsets
    }
    for number in range(scans):
        subset = subsets[number // len(backgrounds) % len(subsets)]
        yield Plan(
            number=number,
            uid=made_up_uid(seed, tag, number),
            background=backgrounds[number % len(backgrounds)],
            subset=subset,
            vois=tuple(next(decks[subset]) for _ in range(nodules_per_scan)),
        )


def _dealt(vois: list[Voi], rng: np.random.Generator) -> Iterator[Voi]:
    while True:
        for i in rng.permutation(len(vois)):
            yield vois[i]


def made_up_uid(seed: int, tag: str, number: int) -> str:
    """A UID that no series has (PS3.5 B.2: 2.25 and a 128-bit number)."""
    digest = hashlib.sha256(f"composite {tag} {seed} {number}".encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _write_scan(out: Path, plan: Plan, made: Composite) -> str:
    """Returns the masks' file, relative to out."""
    sitk = simple_itk()
    labels: NDArray[np.uint8] = np.zeros(made.volume.hu.shape, dtype=np.uint8)
    for number, inserted in enumerate(made.nodules, start=1):
        nodule = inserted.nodule
        window = tuple(slice(c, c + n) for c, n in zip(nodule.corner, nodule.mask.shape, strict=True))
        labels[window][nodule.mask] = number
    masks = f"masks/{plan.uid}.nii.gz"
    for file, array, packed in (
        (out / f"subset{plan.subset}" / f"{plan.uid}.mhd", made.volume.hu, False),
        (out / masks, labels, True),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(to_image(array, made.volume.affine), str(file), packed, 1)
    return masks


def _list(rows: dict[str, list[tuple[object, ...]]], uid: str, made: Composite) -> None:
    for row, inserted in enumerate(made.nodules, start=1):
        nodule = inserted.nodule
        place = (*nodule.center_mm, nodule.diameter_mm)
        rows["annotations.csv"].append((uid, *place))
        rows["sources.csv"].append((uid, row, "nodule", inserted.kind, nodule.name, *place))
    excluded = [(f, "own", "") for f in made.own] + [(s.finding, "shrunken", s.source) for s in made.shrunken]
    for row, (finding, site, source) in enumerate(excluded, start=1):
        place = (*finding.center_mm, finding.diameter_mm)
        rows["annotations_excluded.csv"].append((uid, *place))
        rows["sources.csv"].append((uid, row, "excluded", site, source, *place))
    for row, trace in enumerate(made.traces, start=1):
        center = (float(v) for v in trace.center_mm)
        rows["sources.csv"].append((uid, row, "unlisted", trace.kind, "", *center, 2 * trace.radius_mm))


def _write_lists(
    out: Path, rows: dict[str, list[tuple[object, ...]]], forms: dict[str, dict[str, object]], seed: int
) -> None:
    for name, header in LISTS.items():
        with (out / name).open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            table.writerows(rows[name])
    form = {"composite": True, "note": NOTE, "seed": seed, "scans": forms}
    (out / FORM_FILE).write_text(json.dumps(form, indent=1, sort_keys=True) + "\n")


def read_form(folder: Path) -> dict[str, Any]:
    """composites.json. Raises DataProblem where the folder is not a complete set of composites."""
    try:
        form: dict[str, Any] = json.loads((folder / FORM_FILE).read_text())
    except FileNotFoundError as err:
        raise DataProblem(f"{folder / FORM_FILE} is missing: compose the set again, it was not finished") from err
    except ValueError as err:
        raise DataProblem(f"{folder / FORM_FILE} is not JSON: compose the set again") from err
    return form
