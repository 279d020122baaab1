"""CT -> where the lungs are: a mask on a 2 mm grid, the distance to it, and which side is which.

The mask gates candidates by distance; it never multiplies voxels, so that a nodule at the pleura keeps
its surroundings. Thresholds and connected components only: it must work where nobody trained anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Side, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.grids import resample, simple_itk, to_image, trilinear

GRID_MM = 2.0
AIR_BELOW_HU = -400
LEAST_LUNG_ML = 150.0
# Bowel gas and room air sit at -1000 HU, lung between -950 (emphysema) and -500.
LUNG_MEDIAN_HU = (-960, -500)
CLOSING_MM = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lungs:
    """mask, left: bool on the grid; distance_mm: to the mask, negative inside; sides_known: left can be trusted."""

    mask: NDArray[np.bool_]
    distance_mm: NDArray[np.float32]
    left: NDArray[np.bool_]
    sides_known: bool
    grid: Volume

    def distance_at(self, point_mm: NDArray[np.float64]) -> NDArray[np.float32]:
        """(..., 3) LPS mm -> mm to the lungs, negative inside; far from the grid: infinite."""
        return trilinear(self.distance_mm, self.grid.to_index(point_mm), np.inf)

    def within_reach(self, center_mm: NDArray[np.float64], radius_mm: float, margin_mm: float) -> bool:
        """Whether a ball's centre lies within the margin of the lungs, or the ball touches them. The margin alone
        would not do: a large nodule at the pleura is no air, so the mask's edge runs along its inner side."""
        return float(self.distance_at(center_mm)) <= max(margin_mm, radius_mm)

    def side_at(self, point_mm: NDArray[np.float64]) -> Side | None:
        if not self.sides_known:
            return None
        k, r, c = (int(v) for v in self.grid.to_index(point_mm).round().clip(0, np.array(self.left.shape) - 1))
        return "left" if self.left[k, r, c] else "right"

    def box_mm(self, margin_mm: float) -> NDArray[np.float64]:
        """(2, 3): lowest and highest x, y, z of the lungs, with a margin."""
        index = np.argwhere(self.mask).astype(np.float64)
        ends = self.grid.to_mm(np.stack([index.min(axis=0), index.max(axis=0)]))
        return np.stack([ends.min(axis=0) - margin_mm, ends.max(axis=0) + margin_mm])


def find_lungs(volume: Volume, air_hu: int = -1024) -> Lungs:
    """Raises SeriesRejected(NO_LUNG) where nothing looks like a lung."""
    grid = resample(volume, GRID_MM, air_hu)
    air = _largest_lungs(_inner_air(grid.hu < AIR_BELOW_HU), grid)
    left, sides_known = _sides(air, grid)
    mask = _close(air & left) | _close(air & ~left) if sides_known else _close(air)
    mask = _fill_slices(mask)
    return Lungs(
        mask=mask, distance_mm=_distance_mm(mask), left=left, sides_known=sides_known, grid=grid
    )  # fmt: skip


def _inner_air(air: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Air that no slice joins to its own edge: the room, and air under the table, are not inside a body."""
    sitk = simple_itk()
    inner = np.zeros_like(air)
    for k, plane in enumerate(air):
        framed = np.pad(plane, 1, constant_values=True).astype(np.uint8)
        labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(framed)))
        inner[k] = plane & (labels != labels[0, 0])[1:-1, 1:-1]
    return inner


def _largest_lungs(air: NDArray[np.bool_], grid: Volume) -> NDArray[np.bool_]:
    """The largest body of lung-like air, and a second one where the lungs do not touch."""
    sitk = simple_itk()
    labels_image = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(air.astype(np.uint8))), True)
    labels = sitk.GetArrayFromImage(labels_image)
    counts = np.bincount(labels.ravel())[1:6]
    lungs = np.zeros_like(air)
    largest = 0
    for label, count in enumerate(counts, start=1):
        part = labels == label
        lung_like = LUNG_MEDIAN_HU[0] <= np.median(grid.hu[part]) <= LUNG_MEDIAN_HU[1]
        if lung_like and count >= 0.15 * largest:
            lungs |= part
            largest = max(largest, int(count))
    volume_ml = float(lungs.sum()) * GRID_MM**3 / 1000
    if volume_ml < LEAST_LUNG_ML:
        raise SeriesRejected(
            Reason.NO_LUNG, f"{volume_ml:.0f} mL look like lung; at least {LEAST_LUNG_ML:.0f} mL are needed"
        )
    return lungs


def _sides(air: NDArray[np.bool_], grid: Volume) -> tuple[NDArray[np.bool_], bool]:
    """(left, known): every voxel of the grid goes to the nearer lung; the patient's left is +x."""
    sitk = simple_itk()
    depth = -_distance_mm(air)
    for shrink_mm in (1.0, 3.0, 5.0, 8.0, 12.0):
        core = sitk.GetImageFromArray((depth > shrink_mm).astype(np.uint8))
        labels = sitk.GetArrayFromImage(sitk.RelabelComponent(sitk.ConnectedComponent(core), True))
        counts = np.bincount(labels.ravel(), minlength=3)
        if counts[2] >= 0.25 * counts[1] > 0:
            x = [grid.to_mm(np.argwhere(labels == label).mean(axis=0))[0] for label in (1, 2)]
            first, second = (_distance_mm(labels == label) for label in (1, 2))
            return (first <= second if x[0] > x[1] else second < first), True
    return np.zeros_like(air), False


def _close(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Closing by distance: takes in vessels and nodules up to 2 x CLOSING_MM wide at the pleura."""
    pad = int(np.ceil(CLOSING_MM / GRID_MM)) + 1
    held = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(int(h[0]), int(h[-1]) + 1) for h in held)
    grown = _distance_mm(np.pad(mask[box], pad)) <= CLOSING_MM
    closed = mask.copy()
    closed[box] |= (-_distance_mm(grown) > CLOSING_MM)[(slice(pad, -pad),) * 3]
    return closed


def _fill_slices(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    sitk = simple_itk()
    filled = [sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(p.astype(np.uint8)))) for p in mask]
    return np.asarray(np.stack(filled) > 0)


def _distance_mm(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Signed Euclidean distance to the mask on the 2 mm grid, negative inside."""
    sitk = simple_itk()
    image: Any = to_image(mask.astype(np.uint8), np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])[[2, 1, 0, 3]])
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.asarray(sitk.GetArrayFromImage(distance), dtype=np.float32)
