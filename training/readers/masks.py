"""Label arrays -> Nodules: for formats that have masks but no list."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import simple_itk
from training.cases import Nodule

Mask = NDArray[np.bool_]
Corner = tuple[int, int, int]
Labelling = Literal["components", "values"]


def nodules_of(labels: NDArray[Any], volume: Volume, uid: str, labelling: Labelling) -> tuple[Nodule, ...]:
    """Every connected piece (corners count) of a label image, or every value that it holds, as one nodule."""
    if labelling == "components":
        sitk = simple_itk()
        image = sitk.ConnectedComponent(sitk.GetImageFromArray((labels > 0).astype(np.uint8)), True)
        labels = sitk.GetArrayFromImage(image)
    values = np.unique(labels[labels > 0]).tolist()
    return tuple(nodule_of(labels == value, (0, 0, 0), volume, f"{uid}/{value}") for value in values)


def nodule_of(mask: Mask, corner: Corner, volume: Volume, name: str) -> Nodule:
    """A nodule by its mask alone: centre and diameter are the mask's."""
    mask, corner = tight(mask, corner)
    x, y, z = (float(v) for v in volume.to_mm(np.argwhere(mask).mean(axis=0) + corner))
    return Nodule(
        name=name,
        center_mm=(x, y, z),
        diameter_mm=float((6 * mask.sum() * volume.voxel_mm3 / np.pi) ** (1 / 3)),
        mask=mask,
        corner=corner,
        mask_from="voxels",
    )


def tight(mask: Mask, corner: Corner) -> tuple[Mask, Corner]:
    """Without its empty faces. A mask with no voxel stays as it is."""
    held = np.argwhere(mask)
    if not len(held):
        return mask, corner
    low, high = held.min(axis=0), held.max(axis=0) + 1
    k, r, c = (int(start + n) for start, n in zip(corner, low, strict=True))
    return mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].copy(), (k, r, c)
