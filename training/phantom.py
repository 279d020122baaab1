"""A chest of simple shapes: body, two lungs, windpipe, table. For tests and smoke runs, never for figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume

AIR, LUNG, TISSUE = -1000, -850, 40
HALF_LUNG_MM = np.array([33.0, 42.0, 45.0])
LUNG_CENTERS_MM = {"left": np.array([42.0, 0.0, 0.0]), "right": np.array([-42.0, 0.0, 0.0])}


def chest(
    spacing_mm: tuple[float, float, float] = (2.0, 1.5, 1.5),
    nodules: tuple[tuple[float, float, float, float], ...] = (),
    flips: tuple[int, int, int] = (1, 1, 1),
    seed: int = 0,
) -> Volume:
    """About 200 x 140 x 120 mm round the origin. nodules: x, y, z, radius in mm. flips: sign of each index's way."""
    half = np.array([60.0, 70.0, 100.0])  # z, y, x
    counts = np.floor(2 * half / spacing_mm).astype(int) + 1
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for axis, lps in enumerate((2, 1, 0)):
        affine[lps, axis] = spacing_mm[axis] * flips[axis]
        affine[lps, 3] = -flips[axis] * spacing_mm[axis] * (counts[axis] - 1) / 2
    empty = Volume(hu=np.zeros(tuple(counts), dtype=np.int16), affine=affine)
    point = empty.to_mm(np.stack(np.meshgrid(*(np.arange(n) for n in counts), indexing="ij"), axis=-1))
    hu = np.full(tuple(counts), AIR, dtype=np.float32)
    hu[((point[..., :2] / (90.0, 60.0)) ** 2).sum(axis=-1) < 1] = TISSUE
    hu[np.abs(point[..., 1] - 66) < 2] = 100
    for side in LUNG_CENTERS_MM:
        hu[in_lung(point, side)] = LUNG
    hu[np.linalg.norm(point[..., :2] - (0.0, -10.0), axis=-1) < 5] = AIR
    hu += np.random.default_rng(seed).normal(0, 15, hu.shape)
    for x, y, z, radius in nodules:
        hu[np.linalg.norm(point - (x, y, z), axis=-1) < radius] = TISSUE
    return Volume(hu=hu.round().astype(np.int16), affine=affine)


def in_lung(point_mm: NDArray[np.float64], side: str) -> NDArray[np.bool_]:
    """(..., 3) LPS mm -> whether the phantom's lung on that side holds it."""
    return np.asarray((((point_mm - LUNG_CENTERS_MM[side]) / HALF_LUNG_MM) ** 2).sum(axis=-1) < 1)
