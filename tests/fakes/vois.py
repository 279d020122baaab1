"""Nodules of simple shape in the form of the real crops."""

from __future__ import annotations

import numpy as np

from dicom_node.domain import Volume
from training.voi import FULL_MM, NONE_MM, Voi


def ball(radius_mm: float = 6.0, *, patient: str = "P1", subset: int = 0, hu: int = 40) -> Voi:
    """A solid ball in lung, with a few millimetres round it, 1 mm a voxel."""
    n = int(radius_mm + 6)
    axis = np.arange(-n, n + 1)
    distance = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1), axis=-1) - radius_mm
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = 1
    affine[:, 3] = -n, -n, -n, 1
    return Voi(
        name=f"{patient}_R_1",
        patient=patient,
        subset=subset,
        diameter_mm=2 * radius_mm,
        volume=Volume(hu=np.where(distance < 0, hu, -850).astype(np.int16), affine=affine),
        mask=distance < 0,
        blend=(255 * ((NONE_MM - distance) / (NONE_MM - FULL_MM)).clip(0, 1)).astype(np.uint8),
    )
