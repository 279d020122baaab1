"""Single-frame CT files -> Enhanced CT files of the same images: one, or the parts of a concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import EnhancedCTImageStorage

SERIES_UID = "1.2.826.0.1.3680043.8.498.2002"
_COPIED = (
    "SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
    "Manufacturer", "SeriesNumber", "SeriesDescription", "PatientPosition", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)  # fmt: skip


def make_enhanced_ct(
    paths: Sequence[Path],
    folder: Path,
    *,
    parts: int = 1,
    fragments: int = 1,
    offset_table: bool = True,
    change: Callable[[Dataset], None] | None = None,
) -> list[Path]:
    """Write the images of `paths` as Enhanced CT, their frames in an order that is not that of the body.

    Frames keep the transfer syntax and the very bytes of their files; `fragments` cuts each compressed frame.
    change: the last word on each file's data set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slices = [pydicom.dcmread(path) for path in paths]
    order = np.random.default_rng(5).permutation(len(slices))
    written, offset = [], 0
    for number, share in enumerate(np.array_split(order, parts), start=1):
        ds = _instance([slices[index] for index in share], number, fragments, offset_table)
        if parts > 1:
            ds.ConcatenationUID, ds.InConcatenationNumber = f"{SERIES_UID}.9", number
            ds.InConcatenationTotalNumber, ds.ConcatenationFrameOffsetNumber = parts, offset
            ds.SOPInstanceUIDOfConcatenationSource = f"{SERIES_UID}.8"
        if change is not None:
            change(ds)
        offset += len(share)
        written.append(folder / f"enhanced_{number}.dcm")
        ds.save_as(written[-1], enforce_file_format=True)
    return written


def make_legacy_ct(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write the images of `paths` as one Legacy Converted Enhanced CT, by highdicom."""
    folder.mkdir(parents=True, exist_ok=True)
    converted = LegacyConvertedEnhancedCTImage(
        [pydicom.dcmread(path) for path in paths],
        series_instance_uid=SERIES_UID,
        series_number=3,
        sop_instance_uid=f"{SERIES_UID}.1",
        instance_number=1,
    )
    path = folder / "legacy.dcm"
    converted.save_as(path)
    return [path]


def _instance(slices: Sequence[Dataset], number: int, fragments: int, offset_table: bool) -> Dataset:
    first = slices[0]
    ds = Dataset()
    for keyword in _COPIED:
        if keyword in first:
            ds[keyword] = first[keyword]
    ds.Modality, ds.SOPClassUID = "CT", EnhancedCTImageStorage
    ds.SeriesInstanceUID, ds.SOPInstanceUID = SERIES_UID, f"{SERIES_UID}.{number}"
    ds.InstanceNumber, ds.NumberOfFrames = number, len(slices)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.ContentDate, ds.ContentTime = "20260102", "101112"
    ds.SharedFunctionalGroupsSequence = [_shared(first)]
    ds.PerFrameFunctionalGroupsSequence = [_frame(image, place) for place, image in enumerate(slices, start=1)]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = first.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta = meta
    if meta.TransferSyntaxUID.is_compressed:
        frames = [next(generate_frames(image.PixelData, number_of_frames=1)) for image in slices]
        ds.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=offset_table)
        ds["PixelData"].VR = "OB"
    else:
        ds.PixelData = b"".join(image.PixelData for image in slices)
        ds["PixelData"].VR = "OW"
    return ds


def _group(**attributes: object) -> list[Dataset]:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return [item]


def _shared(image: Dataset) -> Dataset:
    shared = Dataset()
    shared.PlaneOrientationSequence = _group(ImageOrientationPatient=image.ImageOrientationPatient)
    shared.PixelMeasuresSequence = _group(
        PixelSpacing=image.PixelSpacing, SliceThickness=image.get("SliceThickness", "2.5")
    )
    shared.CTImageFrameTypeSequence = _group(
        FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
    )
    shared.CTReconstructionSequence = _group(ConvolutionKernel=image.get("ConvolutionKernel", "STANDARD"))
    shared.CTXRayDetailsSequence = _group(KVP=image.get("KVP", "120"))
    return shared


def _frame(image: Dataset, place: int) -> Dataset:
    frame = Dataset()
    frame.PlanePositionSequence = _group(ImagePositionPatient=image.ImagePositionPatient)
    frame.FrameContentSequence = _group(StackID="1", InStackPositionNumber=place, FrameAcquisitionNumber=1)
    frame.PixelValueTransformationSequence = _group(
        RescaleSlope=image.get("RescaleSlope", "1"),
        RescaleIntercept=image.get("RescaleIntercept", "0"),
        RescaleType="HU",
    )
    return frame
