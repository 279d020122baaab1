"""Volumes on other grids: resampled, sampled at points, handed to SimpleITK and back. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume


def resample(volume: Volume, spacing_mm: float, air_hu: int, within_mm: NDArray[np.float64] | None = None) -> Volume:
    """The volume on an axis-aligned isotropic LPS grid (linear, int16), whatever its own directions.

    within_mm: (2, 3) lowest and highest x, y, z to cover; default: all voxel centres of the volume.
    What no voxel covers, and padding below `air_hu`, becomes air.
    """
    sitk = simple_itk()
    low, high = extent_mm(volume) if within_mm is None else within_mm
    size = [int(n) for n in np.floor((high - low) / spacing_mm + 1e-6).astype(int) + 1]
    source = to_image(volume.hu.clip(min=air_hu), volume.affine)
    image = sitk.Resample(
        source, size, sitk.Transform(), sitk.sitkLinear, [float(v) for v in low], [spacing_mm] * 3,
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], float(air_hu), sitk.sitkInt16,
    )  # fmt: skip
    return Volume(hu=sitk.GetArrayFromImage(image), affine=grid_affine(low, spacing_mm))


def grid_affine(origin_mm: NDArray[np.float64], spacing_mm: float) -> NDArray[np.float64]:
    """(slice, row, column, 1) -> LPS of an axis-aligned grid: slices along z, rows along y, columns along x."""
    affine = np.zeros((4, 4))
    affine[0, 2] = affine[1, 1] = affine[2, 0] = spacing_mm
    affine[:3, 3] = origin_mm
    affine[3, 3] = 1.0
    return affine


def extent_mm(volume: Volume) -> NDArray[np.float64]:
    """(2, 3): lowest and highest x, y, z of the volume's voxel centres."""
    ends = [(0, n - 1) for n in volume.hu.shape]
    corners = volume.to_mm(np.array(np.meshgrid(*ends), dtype=np.float64).reshape(3, -1).T)
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def to_image(array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """An array (slice, row, column) as SimpleITK image, in the same place in space."""
    image = simple_itk().GetImageFromArray(array)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = (affine[:3, :3] / spacing)[:, ::-1]  # ITK counts column, row, slice
    image.SetSpacing([float(s) for s in spacing[::-1]])
    image.SetDirection([float(d) for d in direction.ravel()])
    image.SetOrigin([float(o) for o in affine[:3, 3]])
    return image


def trilinear(array: NDArray[Any], index: NDArray[np.float64], outside: float) -> NDArray[np.float32]:
    """Values of a 3D array at (..., 3) fractional indices; beyond the array's voxel centres: `outside`."""
    shape = np.array(array.shape)
    inside = ((index > -0.5) & (index < shape - 0.5)).all(axis=-1)
    at = index.clip(0, shape - 1)
    low = np.floor(at).astype(np.int64)
    fraction = (at - low).astype(np.float32)
    flat, strides = np.ascontiguousarray(array).reshape(-1), (shape[1] * shape[2], shape[2], 1)
    value = np.zeros(index.shape[:-1], dtype=np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.ones_like(value)
        where = np.zeros(value.shape, dtype=np.int64)
        for axis, step in enumerate(corner):
            weight *= fraction[..., axis] if step else 1 - fraction[..., axis]
            where += np.minimum(low[..., axis] + step, shape[axis] - 1) * strides[axis]
        value += weight * flat[where]
    value[~inside] = outside
    return value


def simple_itk() -> Any:
    import SimpleITK  # not on every training machine: those read prepared caches

    return SimpleITK
