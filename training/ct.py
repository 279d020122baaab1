"""DICOM folder -> Volume, for training and evaluation (the node reads series through its own gate)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.domain import Volume
from dicom_node.model.preprocess import simple_itk


def read_ct(folder: Path) -> Volume:
    """The largest series below a folder, slices sorted along the normal by GDCM."""
    sitk = simple_itk()
    found = [
        names
        for sub in sorted({file.parent for file in folder.rglob("*.dcm")})
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(sub))
        if (names := sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(sub), uid))
    ]
    if not found:
        raise FileNotFoundError(f"no DICOM series below {folder}")
    return from_image(sitk.ReadImage(max(found, key=len), sitk.sitkInt16))


def from_image(image: Any) -> Volume:
    """A SimpleITK image as Volume: ITK counts column, row, slice."""
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = direction[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return Volume(hu=simple_itk().GetArrayFromImage(image).astype(np.int16), affine=affine)
