"""A scan as if it had been made on another day: moved, breathed, cropped, on another grid, with other noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Point, Volume
from dicom_node.grids import simple_itk, to_image
from dicom_node.lungs import Lungs


def motion(
    *, degrees: Point = (0.0, 0.0, 0.0), scale: Point = (1.0, 1.0, 1.0), shift_mm: Point = (0.0, 0.0, 0.0)
) -> NDArray[np.float64]:
    """(4, 4): turns about x, y, z, scales, then shifts; about the origin."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix[:3, :3] = turn @ matrix[:3, :3]
    matrix[:3, :3] = matrix[:3, :3] @ np.diag(scale)
    matrix[:3, 3] = shift_mm
    return matrix


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The other scan, and where each of its points came from.

    breath_mm: largest displacement of the lungs towards the feet, at their lower end; the chest wall stays.
    """

    volume: Volume
    matrix: NDArray[np.float64]
    center_mm: NDArray[np.float64]
    breath_mm: float = 0.0
    lungs: Lungs | None = field(default=None, repr=False)

    def source_mm(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) points of this scan -> the points of the first scan that they show."""
        return _source(points_mm, self.matrix, self.center_mm, self.breath_mm, self.lungs)

    def place_of(self, source_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) points of the first scan -> where this one shows them."""
        points = source_mm.copy()
        for _ in range(40):
            points += (source_mm - self.source_mm(points)) @ np.linalg.inv(self.matrix[:3, :3]).T
        return points


def _source(
    points_mm: NDArray[np.float64],
    matrix: NDArray[np.float64],
    center_mm: NDArray[np.float64],
    breath_mm: float,
    lungs: Lungs | None,
) -> NDArray[np.float64]:
    moved = (points_mm - center_mm) @ matrix[:3, :3].T + center_mm + matrix[:3, 3]
    if breath_mm and lungs is not None:
        low, high = lungs.box_mm(0.0)[:, 2]
        depth = ((high - moved[:, 2]) / (high - low)).clip(0, 1.2)
        weight = (1 - lungs.distance_at(moved).clip(0, 40) / 40).astype(np.float64)
        moved[:, 2] += breath_mm * depth**2 * weight
        moved[:, 1] += 0.3 * breath_mm * depth * weight * np.sin(moved[:, 0] / 60)
    return moved


def moved(
    volume: Volume,
    matrix: NDArray[np.float64],
    *,
    spacing_mm: Point,
    lungs: Lungs | None = None,
    breath_mm: float = 0.0,
    z_mm: tuple[float, float] | None = None,
    noise_hu: float = 0.0,
    seed: int = 0,
    shift_hu: float = 0.0,
) -> Moved:
    """`volume` seen through `matrix` (about its centre). spacing_mm: (slice, row, column) of the new grid.

    z_mm: what the new grid covers of the volume's length, as fractions from the feet; default: all.
    """
    center_mm = volume.to_mm((np.array(volume.hu.shape) - 1) / 2)
    size_mm = np.array(volume.spacing_mm) * (np.array(volume.hu.shape) - 1)
    low = volume.to_mm((0.0, 0.0, 0.0))
    start, end = z_mm or (0.0, 1.0)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm
    affine[:3, 3] = low + np.array([0.0, 0.0, start * size_mm[0]])
    affine[3, 3] = 1.0
    lengths = size_mm * [end - start, 1.0, 1.0]
    shape = tuple(int(n) for n in np.floor(lengths / spacing_mm) + 1)
    sitk = simple_itk()
    # The displacement on a coarse grid is smooth enough to be sampled at 6 mm.
    coarse = 6.0
    field_shape = tuple(int(n) for n in np.ceil(lengths / coarse) + 2)
    field_affine = affine.copy()
    field_affine[:3, :3] = np.fliplr(np.eye(3)) * coarse
    index = np.stack(np.meshgrid(*(np.arange(n) for n in field_shape), indexing="ij"), -1).reshape(-1, 3)
    points = index @ field_affine[:3, :3].T + field_affine[:3, 3]
    away = (_source(points, matrix, center_mm, breath_mm, lungs) - points).reshape(*field_shape, 3)
    displacement = sitk.GetImageFromArray(away, isVector=True)
    displacement.SetSpacing([coarse] * 3)
    displacement.SetOrigin([float(v) for v in field_affine[:3, 3]])
    image = sitk.Resample(
        to_image(volume.hu, volume.affine), [int(n) for n in shape[::-1]],
        sitk.DisplacementFieldTransform(sitk.Cast(displacement, sitk.sitkVectorFloat64)), sitk.sitkLinear,
        [float(v) for v in affine[:3, 3]], [float(v) for v in spacing_mm[::-1]],
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], -1024.0, sitk.sitkFloat32,
    )  # fmt: skip
    hu = sitk.GetArrayFromImage(image)
    hu += np.random.default_rng(seed).normal(shift_hu, noise_hu, hu.shape).astype(np.float32)
    return Moved(
        volume=Volume(hu=hu.round().astype(np.int16), affine=affine),
        matrix=matrix, center_mm=center_mm, breath_mm=breath_mm, lungs=lungs,
    )  # fmt: skip
