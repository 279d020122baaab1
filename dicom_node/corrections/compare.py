"""What we found and what was drawn, on one grid -> a verdict on each of our findings and on each nodule that we missed.

Pairs: the same Tracking UID; else our label ("Nodule 3") on voxels that overlap; else the largest overlap. What of
ours has no pair is `removed` where the correction answers to ours as a whole, and `unreviewed` where nothing says so:
somebody who drew one nodule on the bare CT has not called the others false.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dicom_node.corrections.words import Compared, Drawn, Ours, Region, SourceGrid
from dicom_node.domain import Point

# From which Dice on a finding counts as left as it was. An outline that another program drew round the same voxels
# is off by up to half a pixel all round.
SAME = 0.98
SAME_CONTOUR = 0.85
# Less of the smaller one is a touch, no overlap.
OVERLAP = 0.1
# A mark without voxels, or against a finding whose voxels are gone, means the finding within whose radius it lies.
_LEAST_REACH_MM = 3.0


def compare(ours: Sequence[Ours], drawn: Sequence[Drawn], grid: SourceGrid, *, answers_ours: bool) -> list[Compared]:
    """answers_ours: the correction refers to our result (its Segmentation, report or Tracking UIDs), and is a whole."""
    pairs = _pairs(ours, drawn, grid)
    answers = answers_ours or any(_knows(ours[i], drawn[j]) for i, j in pairs.items())
    verdicts = [
        _paired(mine, drawn[pairs[i]], grid) if i in pairs else _alone(mine, drawn, answers=answers)
        for i, mine in enumerate(ours)
    ]
    missed = [each for j, each in enumerate(drawn) if j not in pairs.values() and each.region is not None]
    return [*verdicts, *(_added(each, grid) for each in missed)]


def _pairs(ours: Sequence[Ours], drawn: Sequence[Drawn], grid: SourceGrid) -> dict[int, int]:
    """Index of ours -> index of drawn, one to one, best evidence first."""
    graded = []
    for i, mine in enumerate(ours):
        for j, theirs in enumerate(drawn):
            grade = _grade(mine, theirs, grid)
            if grade > (0, 0.0):
                graded.append((grade, -i, -j))
    pairs: dict[int, int] = {}
    for _, i, j in sorted(graded, reverse=True):
        if -i not in pairs and -j not in pairs.values():
            pairs[-i] = -j
    return pairs


def _grade(mine: Ours, theirs: Drawn, grid: SourceGrid) -> tuple[int, float]:
    dice = _dice(mine, theirs)
    if theirs.tracking_uid and theirs.tracking_uid == mine.tracking_uid:
        return 3, dice or 0.0
    overlaps = dice is not None and dice > 0 if mine.region and theirs.region else _near(mine, theirs, grid)
    if overlaps and theirs.label == mine.label:
        return 2, dice or 0.0
    return (1, dice or 0.01) if overlaps else (0, 0.0)


def _knows(mine: Ours, theirs: Drawn) -> bool:
    """Whether what was drawn carries our name, so that whoever drew it had our result before him."""
    return theirs.tracking_uid == mine.tracking_uid or theirs.label == mine.label


def _near(mine: Ours, theirs: Drawn, grid: SourceGrid) -> bool:
    if theirs.region is None:
        return False
    reach = max(_LEAST_REACH_MM, (mine.sizes.long_axis_mm or 0.0) / 2)
    return float(np.linalg.norm(np.subtract(_center(theirs.region, grid), mine.center_mm))) <= reach


def _dice(mine: Ours, theirs: Drawn) -> float | None:
    """On the slice that was drawn, where it is only one."""
    if mine.region is None or theirs.region is None:
        return None
    of: Region | None = mine.region
    if theirs.extent == "plane":
        of = mine.region.on_slice(theirs.region.corner[0])
    if of is None:
        return 0.0
    return 2 * of.shared(theirs.region) / (of.voxels + theirs.region.voxels)


def _paired(mine: Ours, theirs: Drawn, grid: SourceGrid) -> Compared:
    dice = _dice(mine, theirs)
    volume = _change_percent(mine.sizes.volume_mm3, theirs.sizes.volume_mm3)
    long_axis = _difference(mine.sizes.long_axis_mm, theirs.sizes.long_axis_mm)
    if dice is not None:
        same = dice >= (SAME_CONTOUR if theirs.contour else SAME)
    else:
        same = (volume is None or abs(volume) < 1.0) and (long_axis is None or abs(long_axis) < 0.5)
    return Compared(
        verdict="confirmed" if same else "changed",
        number=mine.number,
        drawn=theirs.name,
        extent=theirs.extent,
        dice=dice,
        volume_mm3=theirs.sizes.volume_mm3,
        volume_change_percent=volume,
        long_axis_mm=theirs.sizes.long_axis_mm,
        long_axis_change_mm=long_axis,
        center_mm=mine.center_mm if theirs.region is None else _center(theirs.region, grid),
    )


def _alone(mine: Ours, drawn: Sequence[Drawn], *, answers: bool) -> Compared:
    """A finding that nothing was paired with. One that lies in another's outline was joined to it, which is no "no"."""
    within = next((each for each in drawn if _overlaps(mine, each)), None)
    return Compared(
        verdict="changed" if within is not None else "removed" if answers else "unreviewed",
        number=mine.number,
        drawn=None if within is None else within.name,
        extent=None,
        dice=None,
        volume_mm3=None,
        volume_change_percent=None,
        long_axis_mm=None,
        long_axis_change_mm=None,
        center_mm=mine.center_mm,
        note="" if within is None else f"joined to {within.name}, which is another finding",
    )


def _overlaps(mine: Ours, theirs: Drawn) -> bool:
    if mine.region is None or theirs.region is None:
        return False
    return mine.region.shared(theirs.region) >= OVERLAP * min(mine.region.voxels, theirs.region.voxels)


def _added(theirs: Drawn, grid: SourceGrid) -> Compared:
    assert theirs.region is not None  # noqa: S101  # the caller chose those
    return Compared(
        verdict="added",
        number=None,
        drawn=theirs.name,
        extent=theirs.extent,
        dice=None,
        volume_mm3=theirs.sizes.volume_mm3,
        volume_change_percent=None,
        long_axis_mm=theirs.sizes.long_axis_mm,
        long_axis_change_mm=None,
        center_mm=_center(theirs.region, grid),
    )


def _center(region: Region, grid: SourceGrid) -> Point:
    x, y, z = grid.to_mm(region.index().mean(axis=0)).tolist()
    return x, y, z


def _change_percent(before: float | None, after: float | None) -> float | None:
    return None if not before or after is None else 100.0 * (after - before) / before


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
