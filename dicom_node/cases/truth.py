"""An examined correction -> what a case teaches: nodules, hard negatives, and places that are neither.

Confirmed, changed and added nodules with voxels are positives; findings that the reader struck out are hard negatives;
what nobody looked at, and what has a place but no voxels, is neither nodule nor background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dicom_node.corrections import Compared, Drawn, Ours, Region
from dicom_node.domain import RESEARCH_USE
from dicom_node.reviews import Examined

LAYOUT = 1
_LEAST_DIAMETER_MM = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """positives: (why, voxels), in the order of their segments from 1. The others: as the note has them."""

    positives: tuple[tuple[str, Region], ...]
    hard_negatives: tuple[dict[str, Any], ...]
    ignored: tuple[dict[str, Any], ...]


def truth_of(seen: Examined) -> Truth:
    drawn = {each.name: each for each in seen.drawn}
    ours = {each.number: each for each in seen.ours}
    positives: list[tuple[str, Region]] = []
    negatives: list[dict[str, Any]] = []
    ignored: list[dict[str, Any]] = []
    for verdict in seen.verdicts:
        if verdict.note:  # its voxels are part of another positive
            continue
        mine = None if verdict.number is None else ours[verdict.number]
        theirs = None if verdict.drawn is None else drawn.get(verdict.drawn)
        region = _region(verdict, mine, theirs)
        if region is not None:
            positives.append((verdict.verdict, region))
        elif verdict.verdict == "removed":
            negatives.append(_ball(verdict, mine, "removed"))
        else:
            ignored.append(_ball(verdict, mine, f"{verdict.verdict}, no voxels" if theirs else "unreviewed"))
    return Truth(positives=tuple(positives), hard_negatives=tuple(negatives), ignored=tuple(ignored))


def _region(verdict: Compared, mine: Ours | None, theirs: Drawn | None) -> Region | None:
    if theirs is None:
        return None
    if theirs.extent == "volume" and theirs.region is not None:
        return theirs.region
    # The reader measured what we had outlined, and agreed.
    return mine.region if verdict.verdict == "confirmed" and mine is not None else None


def _ball(verdict: Compared, mine: Ours | None, why: str) -> dict[str, Any]:
    sizes = [verdict.long_axis_mm, None if mine is None else mine.sizes.long_axis_mm, _LEAST_DIAMETER_MM]
    center = verdict.center_mm or (0.0, 0.0, 0.0)
    diameter = max(size for size in sizes if size is not None)
    return {"center_mm": [round(v, 3) for v in center], "diameter_mm": round(diameter, 3), "why": why}


def note_of(truth: Truth, *, series_uid: str, patient: str, part: str, seen: Examined) -> dict[str, Any]:
    """case.json. Places are LPS mm of the exported CT."""
    return {
        "layout": LAYOUT,
        "series_instance_uid": series_uid,
        "patient": patient,
        "part": part,
        "positives": [
            {
                "segment": number,
                "why": why,
                "volume_mm3": round(region.voxels * seen.grid.voxel_mm3, 3),
                "center_mm": [round(v, 3) for v in seen.grid.to_mm(region.index().mean(axis=0)).tolist()],
                "diameter_mm": round((6 * region.voxels * seen.grid.voxel_mm3 / math.pi) ** (1 / 3), 3),
            }
            for number, (why, region) in enumerate(truth.positives, start=1)
        ],
        "hard_negatives": list(truth.hard_negatives),
        "ignored": list(truth.ignored),
        "rule": "positives: segments of truth.dcm; hard_negatives: background; ignored: neither nodule nor background",
        "notice": RESEARCH_USE,
    }
