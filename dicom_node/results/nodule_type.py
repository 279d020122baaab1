"""CT numbers of a finding's voxels -> solid, part-solid or ground glass, by a rule with a name.

The limits were chosen on 904 nodules of LIDC-IDRI; docs/measurement.md has the procedure and how often it is right.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

# The lower end of the mediastinal window (level 40, width 400): solid is what that window still shows.
SOLID_HU = -160
SOLID_SHARE = 0.25
PART_SOLID_SHARE = 0.05
# Below, the border's partial volume darkens the whole nodule. A bright inside is still solid, a dark one may be
# anything (Fleischner Society, Radiology 2017;284:228: part-solid cannot be told under 6 mm).
SMALLEST_MM = 6.0
RULE = (
    f"share of voxels above {SOLID_HU} HU, a pixel inside the outline and further: at least {SOLID_SHARE:.0%} solid, "
    f"at least {PART_SOLID_SHARE:.0%} part-solid, else ground glass; under {SMALLEST_MM:g} mm equivalent diameter "
    "solid or undetermined"
)


class NoduleType(StrEnum):
    SOLID = "solid"
    PART_SOLID = "part-solid"
    GROUND_GLASS = "ground glass"


def classify(hu: NDArray[np.int16], mask: NDArray[np.bool_], equivalent_diameter_mm: float) -> NoduleType | None:
    """By RULE. hu, mask: (slices, rows, columns). None: undetermined."""
    share = float((hu[inside(mask)] > SOLID_HU).mean())
    if share >= SOLID_SHARE:
        return NoduleType.SOLID
    if equivalent_diameter_mm < SMALLEST_MM:
        return None
    return NoduleType.PART_SOLID if share >= PART_SOLID_SHARE else NoduleType.GROUND_GLASS


def inside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels whose four neighbours in the slice belong to the mask too; the whole mask where there are none."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    beside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    inner = mask & beside
    return inner if inner.any() else mask
