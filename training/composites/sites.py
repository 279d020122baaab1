"""Lungs -> where a nodule of a given radius may sit: in the parenchyma, at the wall, at a vessel.

Vessels are what is brighter than lung, joined over some length, and nowhere thick: walls, hila and consolidations
go away by their inner radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import resample, simple_itk, to_image, trilinear
from dicom_node.lungs import GRID_MM, Lungs

Array = NDArray[np.float64]
Kind = Literal["parenchyma", "wall", "vessel"]

SHARES: dict[Kind, float] = {"parenchyma": 0.40, "wall": 0.35, "vessel": 0.25}
TISSUE_HU = -500
VESSEL_GRID_MM = 1.0
VESSEL_RADIUS_MM = 4.0
LEAST_VESSEL_MM3 = 150.0
# Lung is seldom below -930 HU over some volume, unless it is emphysema, which is no place for nodules either.
AIRWAY_BELOW_HU = -940
LEAST_AIRWAY_MM3 = 1000.0
FAR_MM = 100.0
THIN_MM = 2.0
# The lungs' grid knows no finer distance.
LEAST_DEEP_MM = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """Points inside the lungs.

    points_mm: (n, 3) LPS. deep_mm: from the lungs' surface. vessel_mm: to a vessel's edge, negative inside it.
    airway_mm: to the windpipe. vessels: bool on an axis-aligned grid of VESSEL_GRID_MM, first voxel at origin_mm.
    """

    points_mm: Array
    deep_mm: NDArray[np.float32]
    vessel_mm: NDArray[np.float32]
    airway_mm: NDArray[np.float32]
    vessels: NDArray[np.bool_]
    origin_mm: Array

    def in_vessel(self, points_mm: Array) -> NDArray[np.bool_]:
        """(..., 3) LPS mm -> whether the next voxel belongs to a vessel, its soft edge too."""
        index = (points_mm - self.origin_mm)[..., ::-1] / VESSEL_GRID_MM
        return trilinear(self.vessels, index, 0) > 0

    def fitting(self, kind: Kind, radius_mm: float) -> NDArray[np.intp]:
        """Numbers of the points where a ball of that radius would be of this kind; none, where nothing fits."""
        deep, vessel = self.deep_mm, self.vessel_mm
        if kind == "wall":
            fits = (deep > 0.3 * radius_mm) & (deep < max(0.9 * radius_mm, LEAST_DEEP_MM))
        elif kind == "vessel":
            fits = (deep > radius_mm + 1) & (vessel > 0.4 * radius_mm) & (vessel < max(0.9 * radius_mm, LEAST_DEEP_MM))
        else:
            # Hardly any place is further than 5 mm from each vessel.
            fits = (deep > radius_mm + 2) & (vessel > min(radius_mm + 1, 5.0))
        return np.flatnonzero(fits & self.clear_of_airways(radius_mm))

    def deeper_than(self, deep_mm: float, radius_mm: float) -> NDArray[np.intp]:
        return np.flatnonzero((self.deep_mm > deep_mm) & self.clear_of_airways(radius_mm))

    def clear_of_airways(self, radius_mm: float) -> NDArray[np.bool_]:
        return self.airway_mm > radius_mm + 1

    def on_vessels(self) -> NDArray[np.intp]:
        """Numbers of the points in thin vessels, away from the wall."""
        return np.flatnonzero(
            (self.vessel_mm < 0) & (self.vessel_mm > -THIN_MM) & (self.deep_mm > 2 * VESSEL_RADIUS_MM)
        )


def find_sites(volume: Volume, lungs: Lungs) -> Sites:
    points = lungs.grid.to_mm(np.argwhere(lungs.mask).astype(np.float64))
    grid = resample(volume, VESSEL_GRID_MM, -1024, lungs.box_mm(2.0))
    vessels = find_vessels(grid, lungs)
    to_vessel = signed_distance_mm(vessels, VESSEL_GRID_MM)
    return Sites(
        points_mm=points,
        # The distance is 0 at the centres of the outermost voxels.
        deep_mm=-lungs.distance_at(points) + np.float32(GRID_MM / 2),
        vessel_mm=trilinear(to_vessel, grid.to_index(points), FAR_MM),
        airway_mm=trilinear(signed_distance_mm(find_airways(lungs), GRID_MM), lungs.grid.to_index(points), FAR_MM),
        vessels=vessels,
        origin_mm=grid.affine[:3, 3],
    )


def find_vessels(grid: Volume, lungs: Lungs) -> NDArray[np.bool_]:
    """bool on an isotropic grid: thin bright tissue inside the lungs."""
    sitk = simple_itk()
    tissue = (grid.hu > TISSUE_HU) & (lung_distance_mm(lungs, grid) < -2)
    spacing = grid.spacing_mm[0]
    core = -signed_distance_mm(tissue, spacing) > VESSEL_RADIUS_MM
    if core.any():
        tissue &= signed_distance_mm(core, spacing) > VESSEL_RADIUS_MM + 1
    parts = sitk.ConnectedComponent(sitk.GetImageFromArray(tissue.astype(np.uint8)), True)
    least = int(LEAST_VESSEL_MM3 / spacing**3)
    kept = sitk.RelabelComponent(parts, minimumObjectSize=least)
    return np.asarray(sitk.GetArrayFromImage(kept) > 0)


def lung_distance_mm(lungs: Lungs, grid: Volume) -> NDArray[np.float32]:
    """To the lungs, negative inside, at every voxel of a grid; FAR_MM beyond the lungs' own grid."""
    sitk = simple_itk()
    distance = to_image(lungs.distance_mm, lungs.grid.affine)
    resampled = sitk.Resample(distance, to_image(grid.hu, grid.affine), sitk.Transform(), sitk.sitkLinear, FAR_MM)
    return np.asarray(sitk.GetArrayFromImage(resampled), dtype=np.float32)


def find_airways(lungs: Lungs) -> NDArray[np.bool_]:
    """bool on the lungs' grid: the windpipe and what else holds a lot of plain air. The lungs' mask takes it in."""
    sitk = simple_itk()
    smooth = sitk.GetArrayFromImage(sitk.Mean(sitk.GetImageFromArray(lungs.grid.hu.astype(np.float32)), [1, 1, 1]))
    air = (smooth < AIRWAY_BELOW_HU) & lungs.mask
    parts = sitk.ConnectedComponent(sitk.GetImageFromArray(air.astype(np.uint8)))
    kept = sitk.RelabelComponent(parts, minimumObjectSize=int(LEAST_AIRWAY_MM3 / GRID_MM**3))
    return np.asarray(sitk.GetArrayFromImage(kept) > 0)


def signed_distance_mm(mask: NDArray[np.bool_], spacing_mm: float) -> NDArray[np.float32]:
    """To the mask on an isotropic grid, negative inside; FAR_MM everywhere where the mask is empty."""
    if not mask.any():
        return np.full(mask.shape, FAR_MM, dtype=np.float32)
    sitk = simple_itk()
    image = to_image(mask.astype(np.uint8), np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])[[2, 1, 0, 3]])
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.asarray(sitk.GetArrayFromImage(distance), dtype=np.float32)
