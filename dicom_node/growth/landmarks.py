"""Two lungs and the affine map between them -> blocks of lung that were found again: how well the map holds, and where.

Lungs are softer than any affine map: with another breath the bases move by a centimetre and more against the apices.
Blocks of vessels that are looked for one by one say by how much. They say it independently of the registration, which
saw the whole, and they tell patients apart: of another's vessels hardly one looks the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.grids import simple_itk
from dicom_node.growth.registration import Affine, windowed
from dicom_node.lungs import Lungs

# In voxels of the lungs' 2 mm grid: blocks of 26 mm every 20 mm, looked for within 18 mm along each axis.
STRIDE = 10
HALF_BLOCK = 6
REACH = 9
# Standard deviation within a block, as a share of the window: without vessels nothing can be found again.
LEAST_TEXTURE = 0.05
LEAST_CORRELATION = 0.7
# By how much the best place must be better than any that is more than PEAK voxels away.
LEAST_LEAD = 0.08
PEAK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Landmarks:
    """Blocks of the current lungs that were looked for in the prior ones.

    points_mm: (n, 3) centres of the blocks that were found again, LPS mm of the current exam.
    away_mm: (n, 3) from there to where the affine map should have taken its point from.
    looked_for: how many blocks there were.
    """

    points_mm: NDArray[np.float64]
    away_mm: NDArray[np.float64]
    looked_for: int


def find_landmarks(current: Lungs, prior: Lungs, affine: Affine) -> Landmarks:
    image = windowed(current)
    here = simple_itk().GetArrayViewFromImage(image)
    there = _resampled(prior, image, affine)
    looked_for = 0
    found: list[tuple[NDArray[np.intp], NDArray[np.float64]]] = []
    for center in _centers(current, there):
        block = here[_box(center, HALF_BLOCK)]
        if block.std() < LEAST_TEXTURE:
            continue
        looked_for += 1
        offset = _best_offset(block, there[_box(center, HALF_BLOCK + REACH)])
        if offset is not None:
            found.append((center, offset))
    centers = np.array([center for center, _ in found], dtype=np.float64).reshape(-1, 3)
    offsets = np.array([offset for _, offset in found], dtype=np.float64).reshape(-1, 3)
    points = current.grid.to_mm(centers)
    return Landmarks(
        points_mm=points, away_mm=current.grid.to_mm(centers + offsets) - points, looked_for=looked_for
    )  # fmt: skip


def _resampled(prior: Lungs, reference: Any, affine: Affine) -> NDArray[np.float32]:
    """The prior exam on the grid of the current one; -1 where it has no voxel."""
    sitk = simple_itk()
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([float(v) for v in affine.matrix.ravel()])
    transform.SetTranslation([float(v) for v in affine.shift_mm])
    image = sitk.Resample(windowed(prior), reference, transform, sitk.sitkLinear, -1.0)
    return np.asarray(sitk.GetArrayFromImage(image), dtype=np.float32)


def _centers(current: Lungs, there: NDArray[np.float32]) -> NDArray[np.intp]:
    """Every STRIDE-th voxel of the lungs whose search region lies within the grid, and whose place the prior has."""
    border = HALF_BLOCK + REACH
    centers = np.argwhere(current.mask[::STRIDE, ::STRIDE, ::STRIDE]) * STRIDE
    inside = ((centers >= border) & (centers < np.array(there.shape) - border)).all(axis=1)
    return centers[inside & (there[tuple(centers.T)] >= 0)]


def _box(center: NDArray[np.intp], half: int) -> tuple[slice, ...]:
    return tuple(slice(int(c) - half, int(c) + half + 1) for c in center)


def _best_offset(block: NDArray[np.float32], region: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """(slice, row, column) from the region's middle to where it is most like the block; None where that is doubtful."""
    scores = _correlations(block, region)
    peak = np.array(np.unravel_index(int(scores.argmax()), scores.shape))
    best = scores[tuple(peak)]
    at_the_end = bool((peak == 0).any() or (peak == 2 * REACH).any())
    if best < LEAST_CORRELATION or at_the_end:
        return None
    away = np.indices(scores.shape) - peak[:, None, None, None]
    elsewhere = scores[(away**2).sum(axis=0) > PEAK**2]
    if best - elsewhere.max() < LEAST_LEAD:
        return None
    return peak - REACH + _vertex(scores, peak)


def _correlations(block: NDArray[np.float32], region: NDArray[np.float32]) -> NDArray[np.float64]:
    """Normalised correlation of the block with each place of the region: (2 * REACH + 1,) * 3."""
    pattern = block - block.mean()
    size = region.shape
    spectrum = np.fft.rfftn(region) * np.conj(np.fft.rfftn(pattern, s=size, axes=(0, 1, 2)))
    places = tuple(slice(n - m + 1) for n, m in zip(size, block.shape, strict=True))
    products = np.fft.irfftn(spectrum, s=size, axes=(0, 1, 2))[places]
    total, squares = (_box_sums(values, len(block)) for values in (region, region**2))
    spread = np.sqrt((squares - total**2 / block.size).clip(1e-6)) * np.sqrt((pattern**2).sum())
    scores: NDArray[np.float64] = products / spread
    return scores


def _box_sums(values: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Sums over each cube of `size` voxels."""
    sums = values.astype(np.float64)
    for axis in range(3):
        running = np.insert(sums.cumsum(axis=axis), 0, 0.0, axis=axis)
        upper, lower = np.split(running, [size], axis=axis)[1], np.split(running, [-size], axis=axis)[0]
        sums = upper - lower
    return sums


def _vertex(scores: NDArray[np.float64], peak: NDArray[np.intp]) -> NDArray[np.float64]:
    """Where between the voxels the peak lies: vertex of a parabola along each axis."""
    offset = np.zeros(3)
    for axis, step in enumerate(np.eye(3, dtype=np.intp)):
        before, at, after = (float(scores[tuple(peak + k * step)]) for k in (-1, 0, 1))
        bend = before - 2 * at + after
        offset[axis] = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return offset
