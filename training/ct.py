"""Image files -> Volumes and label arrays, through SimpleITK."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import simple_itk
from training.cases import DataProblem

GEOMETRY_TOLERANCE_MM = 0.01
CHUNK = 2**22
NIFTI1_HEADER = 348  # bytes, as its first number says in the file's own byte order


def read_image(path: Path) -> Volume:
    """One file of HU: .mhd, .nii.gz, .nrrd ... Raises DataProblem."""
    return from_image(_read(path))


def read_labels(path: Path, volume: Volume) -> NDArray[Any]:
    """The integers of a label image on the volume's grid. Raises DataProblem."""
    image = _read(path)
    labels: NDArray[Any] = simple_itk().GetArrayFromImage(image)
    if labels.shape != volume.hu.shape:
        raise DataProblem(f"{path} has shape {labels.shape}, its scan {volume.hu.shape}")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in labels.shape]), dtype=np.float64).reshape(3, -1).T
    off = corners @ (affine_of(image) - volume.affine)[:3, :3].T + (affine_of(image) - volume.affine)[:3, 3]
    if np.abs(off).max() > GEOMETRY_TOLERANCE_MM:
        raise DataProblem(f"{path} lies up to {np.abs(off).max():.2f} mm off its scan: draw it on the scan's own grid")
    if not np.issubdtype(labels.dtype, np.integer):
        if (labels != np.rint(labels)).any():
            raise DataProblem(f"{path} holds fractions, labels are whole numbers")
        labels = labels.astype(np.int64)
    return labels


def from_image(image: Any) -> Volume:
    """A SimpleITK image as Volume; numbers are rounded and held within int16."""
    values = simple_itk().GetArrayFromImage(image)
    if values.dtype != np.int16:
        values = np.clip(np.rint(values), -32768, 32767).astype(np.int16)
    return Volume(hu=values, affine=affine_of(image))


def affine_of(image: Any) -> NDArray[np.float64]:
    """(slice, row, column, 1) -> LPS mm: ITK counts column, row, slice."""
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = direction[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return affine


def _read(path: Path) -> Any:
    if path.suffix == ".gz":
        _check_gzip(path)
    elif path.suffix == ".nii":
        _check_nifti(path)
    try:
        image = simple_itk().ReadImage(str(path))
    except RuntimeError as err:  # what SimpleITK raises for anything; its text quotes source files
        raise DataProblem(f"{path} can't be read as an image: fetch it again") from err
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise DataProblem(f"{path} is no 3D image of one number a voxel")
    return image


def _check_gzip(path: Path) -> None:
    """Raises DataProblem where the file is cut short: ITK would give zeros for what is missing, and no error."""
    try:
        with gzip.open(path) as file:
            while file.read(CHUNK):
                pass
    except (OSError, EOFError, zlib.error) as err:
        raise DataProblem(f"{path} can't be read to its end: fetch it again") from err


def _check_nifti(path: Path) -> None:
    """Raises DataProblem where a plain NIfTI-1 file is shorter than its header says: ITK would not complain."""
    try:
        with path.open("rb") as file:
            header = file.read(NIFTI1_HEADER)
        order = next((o for o in "<>" if struct.unpack_from(f"{o}i", header)[0] == NIFTI1_HEADER), None)
        if order is None:
            return
        count, *sizes = struct.unpack_from(f"{order}8h", header, 40)  # dim
        (bits,), (offset,) = struct.unpack_from(f"{order}h", header, 72), struct.unpack_from(f"{order}f", header, 108)
        whole = path.stat().st_size >= offset + math.prod(sizes[:count]) * bits / 8
    except (OSError, struct.error):
        whole = False
    if not whole:
        raise DataProblem(f"{path} can't be read to its end: fetch it again")
