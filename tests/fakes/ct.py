"""Synthetic CT series written as DICOM files: any geometry, any header, no patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SUPINE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PRONE = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)

HEADER: dict[str, Any] = {
    "PatientName": "Phantom^Chest",
    "PatientID": "PHANTOM-1",
    "PatientBirthDate": "19700102",
    "PatientSex": "O",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1001",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.1002",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.1003",
    "StudyDate": "20260102",
    "StudyTime": "101112",
    "StudyID": "S1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Referring^Doctor",
    "StudyDescription": "Chest CT",
    "Modality": "CT",
    "Manufacturer": "Phantom makers",
    "SeriesNumber": 2,
    "SeriesDescription": "Lung 1.0",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "ConvolutionKernel": "B50f",
    "PatientPosition": "HFS",
    "PositionReferenceIndicator": "",
    "KVP": "120",
    "AcquisitionNumber": 1,
}


def make_ct_series(
    folder: Path,
    *,
    hu: NDArray[np.int16] | None = None,
    shape: tuple[int, int, int] = (44, 64, 64),
    spacing_mm: tuple[float, float, float] = (2.5, 0.7, 0.7),
    origin_mm: tuple[float, float, float] = (-22.4, -20.1, -110.5),
    orientation: Sequence[float] = SUPINE,
    header: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write one CT series, one file a slice, and return its paths, feet to head.

    hu: int16 (slice, row, column); default `chest_like(shape)`. spacing_mm: along (slice, row, column).
    origin_mm: LPS centre of voxel (0, 0, 0). header: attributes over `HEADER`; None leaves the attribute out.
    """
    volume = chest_like(shape) if hu is None else hu
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, pixels in enumerate(volume):
        position = np.array(origin_mm) + index * spacing_mm[0] * np.cross(row, column)
        ds = _slice(index, pixels, header or {})
        ds.PixelSpacing = [f"{spacing_mm[1]:.6g}", f"{spacing_mm[2]:.6g}"]
        ds.SliceThickness = f"{spacing_mm[0]:.6g}"
        ds.ImagePositionPatient = [f"{value:.6f}" for value in position]
        ds.ImageOrientationPatient = [f"{value:.10f}" for value in orientation]
        paths.append(folder / f"{index:04}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def chest_like(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.int16]:
    """Lung with noise inside a frame of soft tissue."""
    noise = np.random.default_rng(seed).normal(0.0, 20.0, shape)
    hu = np.full(shape, -850.0)
    margin = max(1, shape[1] // 10)
    hu[:, :margin], hu[:, -margin:], hu[:, :, :margin], hu[:, :, -margin:] = 40.0, 40.0, 40.0, 40.0
    return (hu + noise).astype(np.int16)


def _slice(index: int, pixels: NDArray[np.int16], header: Mapping[str, Any]) -> Dataset:
    attributes = {**HEADER, **header}
    ds = Dataset()
    # First: the texts below are encoded by it.
    if attributes.get("SpecificCharacterSet"):
        ds.SpecificCharacterSet = attributes.pop("SpecificCharacterSet")
    for keyword, value in attributes.items():
        if value is not None:
            setattr(ds, keyword, value)
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = attributes.get("SOPInstanceUID") or f"{ds.SeriesInstanceUID}.{index + 1}"
    ds.InstanceNumber = attributes.get("InstanceNumber") or index + 1
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "0", "HU"
    ds.PixelData = pixels.astype("<i2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds
