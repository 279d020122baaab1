"""Two lungs and their alignment -> figures of how well they lie on each other, and whether that is good enough.

None of the figures is what the registration sought. The gates are wide for one patient's two exams and closed to two
patients' (docs/growth.md has the figures that they were set by).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dicom_node.grids import trilinear
from dicom_node.growth.alignment import Alignment
from dicom_node.lungs import GRID_MM, Lungs

LEAST_COMMON_ML = 300.0
LEAST_DICE = 0.8
LEAST_FOUND_PERCENT = 12.0
LARGEST_DISAGREEMENT_MM = 3.0
SCALE = (0.7, 1.4)
LARGEST_TURN_DEGREES = 45.0
# Round the lungs: where one exam has lung and the other has none must count against the overlap.
_RIM_MM = 20.0


def figures(current: Lungs, prior: Lungs, alignment: Alignment) -> dict[str, float]:
    """By name with unit. Lungs are compared where both exams have voxels."""
    index = np.argwhere(current.distance_mm <= _RIM_MM)
    points = alignment.affine(current.grid.to_mm(index.astype(np.float64)))
    there = prior.grid.to_index(points)
    common = ((there >= 0) & (there <= np.array(prior.mask.shape) - 1)).all(axis=1)
    index, there = index[common], there[common]
    here_mask = current.mask[tuple(index.T)]
    there_mask = prior.mask[tuple(there.round().astype(np.intp).T)]
    both = here_mask & there_mask
    surface = np.abs(current.distance_mm[tuple(index.T)]) < GRID_MM
    scales, degrees = _scales_and_turn(alignment.affine.matrix)
    found, disagreement = _landmarks(alignment)
    return {
        "lung in common [mL]": float(both.sum()) * GRID_MM**3 / 1000,
        "lung overlap, Dice": float(2 * both.sum() / max(1, here_mask.sum() + there_mask.sum())),
        "lung correlation": _correlation(
            current.grid.hu[tuple(index[both].T)], trilinear(prior.grid.hu, there[both], 0.0)
        ),
        "lung surfaces apart, median [mm]": float(
            np.median(np.abs(trilinear(prior.distance_mm, there[surface], 0.0))) if surface.any() else np.inf
        ),
        "landmarks found [%]": found,
        "landmarks disagree, median [mm]": disagreement,
        "smallest scale": float(scales.min()),
        "largest scale": float(scales.max()),
        "turn [degrees]": degrees,
    }


def fault(quality: Mapping[str, float]) -> str | None:
    """Why the alignment can't be trusted, in words; None where it can."""
    if quality["lung in common [mL]"] < LEAST_COMMON_ML:
        return f"the two CTs have {quality['lung in common [mL]']:.0f} mL of lung in common"
    if quality["lung overlap, Dice"] < LEAST_DICE:
        return f"the lungs overlap by {quality['lung overlap, Dice']:.2f} (Dice) only"
    if quality["landmarks found [%]"] < LEAST_FOUND_PERCENT:
        return f"{quality['landmarks found [%]']:.0f} % of the lungs' landmarks were found again"
    if quality["landmarks disagree, median [mm]"] > LARGEST_DISAGREEMENT_MM:
        return f"neighbouring landmarks disagree by {quality['landmarks disagree, median [mm]']:.1f} mm"
    if not SCALE[0] <= quality["smallest scale"] <= quality["largest scale"] <= SCALE[1]:
        return "one chest would have to be larger than the other than breathing can make it"
    if quality["turn [degrees]"] > LARGEST_TURN_DEGREES:
        return f"one chest would have to be turned by {quality['turn [degrees]']:.0f} degrees"
    return None


def _correlation(here: NDArray[np.int16], there: NDArray[np.float32]) -> float:
    """Of CT numbers inside both lungs, cut off where bone and metal begin."""
    if len(here) < 2:
        return 0.0
    return float(np.corrcoef(here.clip(-1000, 200), there.clip(-1000, 200))[0, 1])


def _landmarks(alignment: Alignment) -> tuple[float, float]:
    """Percent of landmarks found, and how far one lies from where its neighbours say, in the median."""
    landmarks = alignment.landmarks
    count = len(landmarks.points_mm)
    percent = 100.0 * count / max(1, landmarks.looked_for)
    if count < 3:
        return percent, float("inf")
    apart = np.linalg.norm(landmarks.points_mm[:, None] - landmarks.points_mm[None], axis=-1)
    nearest = np.argsort(apart, axis=1, kind="stable")[:, 1:7]
    expected = np.median(landmarks.away_mm[nearest], axis=1)
    return percent, float(np.median(np.linalg.norm(landmarks.away_mm - expected, axis=1)))


def _scales_and_turn(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Stretch along the principal axes, and the angle of the rotation that is left (polar decomposition)."""
    left, scales, right = np.linalg.svd(matrix)
    cosine = (np.trace(left @ right) - 1) / 2
    return scales, float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
