"""Nodules of simple shape in the form of the real crops."""

from __future__ import annotations

import numpy as np

from dicom_node.domain import Volume
from training.voi import FULL_MM, NONE_MM, Voi


def ball(radius_mm: float = 6.0, *, patient: str = "P1", subset: int = 0, spacing_mm: float = 1.0) -> Voi:
    """A solid ball in lung, with a few millimetres round it."""
    n = int((radius_mm + 6) / spacing_mm)
    axis = np.arange(-n, n + 1) * spacing_mm
    distance = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1), axis=-1) - radius_mm
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = spacing_mm
    affine[:, 3] = -n * spacing_mm, -n * spacing_mm, -n * spacing_mm, 1
    return Voi(
        name=f"{patient}_R_1",
        patient=patient,
        subset=subset,
        diameter_mm=2 * radius_mm,
        volume=Volume(hu=np.where(distance < 0, 40, -850).astype(np.int16), affine=affine),
        mask=distance < 0,
        blend=(255 * ((NONE_MM - distance) / (NONE_MM - FULL_MM)).clip(0, 1)).astype(np.uint8),
    )
