"""CT numbers of a finding's voxels -> solid, part-solid or ground glass, by a rule with a name."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

SOLID_HU = -300.0
RULE = "share of voxels above -300 HU: at least 0.6 solid, at least 0.1 part-solid, else ground glass"


class NoduleType(StrEnum):
    SOLID = "solid"
    PART_SOLID = "part-solid"
    GROUND_GLASS = "ground glass"


def classify(hu: NDArray[np.float64]) -> NoduleType:
    """By RULE, over all voxels of the mask."""
    share = float((hu > SOLID_HU).mean())
    if share >= 0.6:
        return NoduleType.SOLID
    return NoduleType.PART_SOLID if share >= 0.1 else NoduleType.GROUND_GLASS
