"""Two lungs and the affine map between them -> small blocks of vessels, found again: how well the map holds, and where not.

Lungs are softer than any affine map: with another breath the bases move by a centimetre and more against the apices.
Blocks of lung that are looked for one by one say by how much, and say it independently of what the registration sought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dicom_node.grids import to_image
from dicom_node.growth.registration import WINDOW_HU, Affine
from dicom_node.lungs import GRID_MM, Lungs

STRIDE = 8  # voxels of the lungs' 2 mm grid between the centres of blocks
HALF_BLOCK = 6
REACH = 9
# Standard deviation within a block, as a share of the window: without vessels nothing can be found again.
LEAST_TEXTURE = 0.05
LEAST_CORRELATION = 0.7
LEAST_LEAD = 0.08
# A place is moved by what the blocks round it were moved by.
NEIGHBOURHOOD_MM = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Landmarks:
    """Blocks of the current lungs that were looked for in the prior ones.

    points_mm: (n, 3) centres of the blocks that were found again, LPS mm of the current exam.
    away_mm: (n, 3) where their content lies, after the affine map, from there.
    looked_for: how many blocks there were.
    """

    points_mm: NDArray[np.float64]
    away_mm: NDArray[np.float64]
    looked_for: int


def find_landmarks(current: Lungs, prior: Lungs, affine: Affine) -> Landmarks:
    there, covered = _resampled(prior, current, affine)
    here = _windowed(current)
    centers, offsets = [], []
    looked_for = 0
    for center in _centers(current, covered):
        block = here[tuple(slice(c - HALF_BLOCK, c + HALF_BLOCK + 1) for c in center)]
        if block.std() < LEAST_TEXTURE:
            continue
        looked_for += 1
        reach = HALF_BLOCK + REACH
        offset = _best_offset(block, there[tuple(slice(c - reach, c + reach + 1) for c in center)])
        if offset is not None:
            centers.append(center)
            offsets.append(offset)
    at = np.array(centers, dtype=np.float64).reshape(-1, 3)
    steps = np.array(offsets, dtype=np.float64).reshape(-1, 3)
    return Landmarks(
        points_mm=current.grid.to_mm(at), away_mm=steps[:, ::-1] * GRID_MM, looked_for=looked_for
    )


def _windowed(lungs: Lungs) -> NDArray[np.float32]:
    low, high = WINDOW_HU
    return ((lungs.grid.hu.clip(low, high) - low) / (high - low)).astype(np.float32)


def _resampled(prior: Lungs, current: Lungs, affine: Affine) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The prior exam on the grid of the current one, and which voxels of it the prior exam has."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([float(v) for v in affine.matrix.ravel()])
    transform.SetTranslation([float(v) for v in affine.shift_mm])
    reference = to_image(current.mask.astype(np.uint8), current.grid.affine)
    image = to_image(_windowed(prior), prior.grid.affine)
    moved = sitk.GetArrayFromImage(sitk.Resample(image, reference, transform, sitk.sitkLinear, -1.0))
    return moved, moved >= 0


def _centers(current: Lungs, covered: NDArray[np.bool_]) -> NDArray[np.intp]:
    border = HALF_BLOCK + REACH
    centers = np.argwhere(current.mask[::STRIDE, ::STRIDE, ::STRIDE]) * STRIDE
    inside = ((centers >= border) & (centers < np.array(covered.shape) - border)).all(axis=1)
    return centers[inside & covered[tuple(centers.T)]]


def _best_offset(block: NDArray[np.float32], region: NDArray[np.float32]) -> NDArray[np.float64] | None:
    scores = _correlations(block, region)
    peak = np.array(np.unravel_index(int(scores.argmax()), scores.shape))
    best = scores[tuple(peak)]
    if best < LEAST_CORRELATION or (peak == 0).any() or (peak == 2 * REACH).any():
        return None
    away = np.linalg.norm(np.indices(scores.shape).T[..., ::-1] - peak, axis=-1) if False else None
    grid = np.indices(scores.shape).reshape(3, -1).T
    far = ((grid - peak) ** 2).sum(axis=1).reshape(scores.shape) > 16
    if best - scores[far].max() < LEAST_LEAD:
        return None
    return peak - REACH + _vertex(scores, peak)


def _correlations(block: NDArray[np.float32], region: NDArray[np.float32]) -> NDArray[np.float64]:
    """Normalised correlation of the block with each place of the region: (2 * REACH + 1,) * 3."""
    pattern = block - block.mean()
    size = region.shape
    spectrum = np.fft.rfftn(region) * np.conj(np.fft.rfftn(pattern, s=size))
    places = tuple(n - m + 1 for n, m in zip(size, block.shape, strict=True))
    products = np.fft.irfftn(spectrum, s=size)[tuple(slice(n) for n in places)]
    total, squares = (_box_sums(values, block.shape[0]) for values in (region, region**2))
    spread = np.sqrt((squares - total**2 / block.size).clip(1e-6)) * np.sqrt((pattern**2).sum())
    scores: NDArray[np.float64] = products / spread
    return scores


def _box_sums(values: NDArray[Any], size: int) -> NDArray[np.float64]:
    sums = values.astype(np.float64)
    for axis in range(3):
        running = np.insert(sums.cumsum(axis=axis), 0, 0.0, axis=axis)
        sums = running.take(range(size, running.shape[axis]), axis) - running.take(range(running.shape[axis] - size), axis)
    return sums


def _vertex(scores: NDArray[np.float64], peak: NDArray[np.intp]) -> NDArray[np.float64]:
    """Where between the voxels the peak lies: vertex of a parabola along each axis."""
    offset = np.zeros(3)
    for axis in range(3):
        step = np.eye(3, dtype=np.intp)[axis]
        before, at, after = (scores[tuple(peak + k * step)] for k in (-1, 0, 1))
        bend = before - 2 * at + after
        offset[axis] = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return offset
