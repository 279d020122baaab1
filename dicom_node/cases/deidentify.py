"""A CT image -> the same pixels and geometry, and nothing that says whose they are (PS3.15 Annex E, Basic Profile).

The other way round than the table E.1-1: only the attributes named here are kept, all others go, private ones and what
the standard does not know yet among them. UIDs are replaced, dates are left out. Of words only those are kept that the
standard or scanners use, and of numbers only what is one; pixels are written anew, so that no comment in a codestream,
byte behind the image or plane in unused bits (PS3.5 8.1.1) goes along.
"""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from dicom_node.cases.pseudonyms import Pseudonyms
from dicom_node.errors import CaseRefused
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.metrics.catalogue import OTHER
from dicom_node.metrics.vocabulary import Acquisition, kernel_label, maker_label, model_label
from dicom_node.series.decode import decode_frame
from dicom_node.series.frames import open_frames

# What training reads, and what the CT Image IOD (PS3.3 A.3) needs to stay valid.
KEPT = (
    "Modality", "ImageType", "SliceThickness", "SpacingBetweenSlices", "KVP", "DataCollectionDiameter",
    "ReconstructionDiameter", "GantryDetectorTilt", "TableHeight", "RotationDirection", "ExposureTime",
    "XRayTubeCurrent", "Exposure", "ConvolutionKernel", "PatientPosition", "Manufacturer", "ManufacturerModelName",
    "AcquisitionNumber", "InstanceNumber", "SeriesNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "SliceLocation", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "SmallestImagePixelValue", "LargestImagePixelValue",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "BurnedInAnnotation", "BodyPartExamined",
)  # fmt: skip
REPLACED_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "PositionReferenceIndicator",
)  # fmt: skip
_TYPE_2 = ("KVP", "AcquisitionNumber", "InstanceNumber", "SeriesNumber", "Manufacturer")
_NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
METHOD = "dicom_node: kept attributes only, UIDs replaced, dates removed"  # LO: at most 64 characters
# Code strings by their terms: what is no such word was put there by somebody.
_TERMS = {
    "Modality": {"CT"},
    "ImageType": {
        "ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "LOCALIZER", "REFORMATTED", "MPR", "AVERAGE", "VOLUME",
        "HELIX", "HELICAL", "SEQUENCE", "SPI", "ADD", "SUB", "OTHER", "AIDR", "FBP",
    },
    "RotationDirection": {"CW", "CC"},
    "PatientPosition": {"HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL"},
    "PhotometricInterpretation": {"MONOCHROME1", "MONOCHROME2"},
    "RescaleType": {"HU", "HU_MOD", "US"},
    "LossyImageCompression": {"00", "01"},
    "LossyImageCompressionMethod": {"ISO_10918_1", "ISO_14495_1", "ISO_15444_1", "ISO_15444_15"},
    "BurnedInAnnotation": {"NO"},
    "BodyPartExamined": {"CHEST", "LUNG", "THORAX", "CHESTABDOMEN", "CHESTABDPELVIS", "NECKCHEST", "WHOLEBODY"},
}  # fmt: skip


def deidentified(path: Path, names: Pseudonyms, patient: str) -> Dataset:
    """A new data set under the pseudonym `patient`.

    Raises CaseRefused where pixels may show who it is, or for what is no single-frame CT image.
    """
    ds = pydicom.dcmread(path)
    if ds.SOPClassUID != CTImageStorage:
        raise CaseRefused("a multi-frame CT is not exported")
    if str(ds.get("BurnedInAnnotation") or "NO") != "NO" or str(ds.get("RecognizableVisualFeatures") or "NO") != "NO":
        raise CaseRefused("its pixels are said to show annotations or a face")
    clean = Dataset()
    clean.SOPClassUID = CTImageStorage
    for keyword in KEPT:
        if keyword in ds and (kept := _kept(keyword, ds[keyword].value)) is not None:
            clean[keyword] = DataElement(keyword, _vr(keyword, ds[keyword].VR), kept)
    if lacking := [keyword for keyword in _NEEDED if keyword not in clean]:
        raise CaseRefused(f"{lacking[0]} is no number")
    for keyword in REPLACED_UIDS:
        setattr(clean, keyword, names.uid(str(ds[keyword].value)))
    for keyword in (*EMPTY, *(k for k in _TYPE_2 if k not in clean)):
        setattr(clean, keyword, None if keyword in _TYPE_2 else "")
    if "BodyPartExamined" not in clean:
        clean.Laterality = ""  # type 2C: of a body part that may be a paired one
    if len(clean.get("ImageType") or ()) < 3:
        clean.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    put_identity(clean, patient)
    _put_pixels(clean, path)
    clean.file_meta = file_meta_of(clean, str(ExplicitVRLittleEndian))
    return clean


def _kept(keyword: str, value: Any) -> Any:
    """What of a value says nothing of anybody; None for nothing. The file may claim any VR for it, a text's too."""
    values = list(value) if isinstance(value, MultiValue) else [value]
    if (terms := _TERMS.get(keyword)) is not None:
        found = [str(v) for v in values if str(v) in terms]
    elif keyword == "Manufacturer":
        found = [maker for maker in (maker_label(str(values[0])),) if maker != OTHER]
    elif keyword == "ManufacturerModelName":
        found = values if model_label(str(value)) != OTHER else []
    elif keyword == "ConvolutionKernel":
        found = values if kernel_label(Acquisition(kernel="\\".join(map(str, values)))) != OTHER else []
    else:
        found = values if all(isinstance(v, Real) and math.isfinite(v) for v in values) else []
    return (found if len(found) > 1 else found[0]) if found else None


def _vr(keyword: str, claimed: str) -> str:
    """As the standard has it; of "US or SS" the one that the file claims."""
    told = dictionary_VR(keyword)
    return told if " " not in told else ("SS" if claimed == "SS" else "US")


def _put_pixels(clean: Dataset, path: Path) -> None:
    """Stored values of the one frame, as they are decoded for the model."""
    try:
        with open_frames(str(path)) as frames:
            stored = decode_frame(frames.read(1), frames.layout)
            bits, signed = frames.layout.bits_stored, frames.layout.signed
    except Exception as err:  # decoders raise whatever they like
        raise CaseRefused(f"an image can't be decoded ({type(err).__name__})") from err
    clean.BitsAllocated, clean.BitsStored, clean.HighBit = 16, bits, bits - 1
    clean.PixelRepresentation = int(signed)
    clean["PixelData"] = DataElement("PixelData", "OW", stored.astype("<i2" if signed else "<u2").tobytes())


def put_identity(ds: Dataset, patient: str) -> None:
    """The pseudonym, and that it is one (PS3.15 E.1.1)."""
    # The mark of an empty given name: without it some libraries take the name for one that was written wrongly.
    ds.PatientName, ds.PatientID = f"{patient}^", patient
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", METHOD
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    ds.DeidentificationMethodCodeSequence = [code]
    ds.LongitudinalTemporalInformationModified = "REMOVED"


def file_meta_of(ds: Dataset, transfer_syntax_uid: str) -> FileMetaDataset:
    """A new group 2: the received one names the application that sent the file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
