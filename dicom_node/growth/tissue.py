"""A place in a CT -> whether the CT shows it, and whether something dense is there. No mask is asked: a nodule that
nobody marked is there all the same.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import trilinear

STEP_MM = 0.75
# Of the nodule's radius: inside it even where the place is a little off.
CORE = 0.7
SHELL_MM = (3.0, 8.0)
# How far round a mapped place the other CT is searched, in its standard deviations and at most.
REACH_SD = 1.5
LONGEST_REACH_MM = 4.0
# The part of a nodule's contrast to the lung round it from where on something counts as the nodule's like.
LIKENESS = 0.5


def covers(volume: Volume, point_mm: NDArray[np.float64], margin_mm: float) -> bool:
    """Whether the volume has voxels all round the place, not padding of one value."""
    index = volume.to_index(point_mm)
    margin = margin_mm / np.array(volume.spacing_mm)
    last = np.array(volume.hu.shape) - 1
    if (index - margin < 0).any() or (index + margin > last).any():
        return False
    box = tuple(slice(int(i), int(i) + 2) for i in np.minimum(np.floor(index - 0.5).clip(0), last - 1))
    near = volume.hu[box]
    return near.size < 2 or bool(near.min() != near.max())


def shows_the_like(
    volume: Volume,
    point_mm: NDArray[np.float64],
    sd_mm: float,
    *,
    model: Volume,
    center_mm: NDArray[np.float64],
    radius_mm: float,
) -> bool:
    """Whether `volume` has, at or near the place, something as dense as the nodule that `model` has at `center_mm`."""
    core = _ball(max(CORE * radius_mm, STEP_MM))
    shell = _ball(radius_mm + SHELL_MM[1])
    shell = shell[np.linalg.norm(shell, axis=1) >= radius_mm + SHELL_MM[0]]
    nodule = float(_sample(model, center_mm + core).mean())
    # The lower quarter: walls and vessels in the shell are not the lung.
    lung = float(np.percentile(_sample(model, center_mm + shell), 25))
    shifts = _ball(min(REACH_SD * sd_mm, LONGEST_REACH_MM))
    means = _sample(volume, point_mm + shifts[:, None] + core).mean(axis=1)
    return float(means.max()) > lung + LIKENESS * (nodule - lung)


def _ball(radius_mm: float) -> NDArray[np.float64]:
    """(n, 3) points in mm that fill a ball round the origin."""
    half = math.floor(radius_mm / STEP_MM)
    steps = np.arange(-half, half + 1) * STEP_MM
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    inside: NDArray[np.float64] = points[np.linalg.norm(points, axis=1) <= radius_mm + 1e-9]
    return inside


def _sample(volume: Volume, points_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    return trilinear(volume.hu, volume.to_index(points_mm), -1000.0)
