"""A CT image -> the same pixels and geometry, and nothing that says whose they are (PS3.15 Annex E, Basic Profile).

The other way round than the table E.1-1: only the attributes named here are kept, all others go, private ones and what
the standard does not know yet among them. UIDs are replaced, dates are left out.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage

from dicom_node.cases.pseudonyms import Pseudonyms
from dicom_node.errors import CaseRefused
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

# What training reads, and what the CT Image IOD (PS3.3 A.3) needs to stay valid.
KEPT = (
    "SOPClassUID", "Modality", "ImageType", "SliceThickness", "SpacingBetweenSlices", "KVP", "DataCollectionDiameter",
    "ReconstructionDiameter", "GantryDetectorTilt", "TableHeight", "RotationDirection", "ExposureTime",
    "XRayTubeCurrent", "Exposure", "ConvolutionKernel", "PatientPosition", "Manufacturer", "ManufacturerModelName",
    "AcquisitionNumber", "InstanceNumber", "SeriesNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "SliceLocation", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "SmallestImagePixelValue", "LargestImagePixelValue",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "BurnedInAnnotation", "BodyPartExamined", "PixelData",
)  # fmt: skip
REPLACED_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "PositionReferenceIndicator",
)  # fmt: skip
_TYPE_2 = ("KVP", "AcquisitionNumber", "InstanceNumber", "SeriesNumber", "Manufacturer")
METHOD = "dicom_node: kept attributes only, UIDs replaced, dates removed"  # LO: at most 64 characters
_TEXTS = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "ImageType")
_IDENTIFYING = ("PatientName", "PatientID", "AccessionNumber", "InstitutionName", "ReferringPhysicianName")


def deidentified(ds: Dataset, names: Pseudonyms) -> Dataset:
    """A new data set. Raises CaseRefused where pixels may show who it is, or for what is no single-frame CT image."""
    if ds.SOPClassUID != CTImageStorage:
        raise CaseRefused("a multi-frame CT is not exported")
    if str(ds.get("BurnedInAnnotation") or "NO") != "NO" or str(ds.get("RecognizableVisualFeatures") or "NO") != "NO":
        raise CaseRefused("its pixels are said to show annotations or a face")
    clean = Dataset()
    words = _words(ds)
    for keyword in KEPT:
        if keyword in ds and not (keyword in _TEXTS and _tells(str(ds[keyword].value), words)):
            clean[keyword] = ds[keyword]
    for keyword in REPLACED_UIDS:
        setattr(clean, keyword, names.uid(str(ds[keyword].value)))
    for keyword in (*EMPTY, *(k for k in _TYPE_2 if k not in clean)):
        setattr(clean, keyword, None if keyword in _TYPE_2 else "")
    if "BodyPartExamined" not in clean:
        clean.Laterality = ""  # type 2C: of a body part that may be a paired one
    if "ImageType" not in clean:
        clean.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    put_identity(clean, names.patient(identity_of(ds)))
    clean.file_meta = file_meta_of(clean, str(ds.file_meta.TransferSyntaxUID))
    return clean


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


def identity_of(header: Dataset) -> str:
    """What makes two studies those of one patient; the study, where the patient has no ID."""
    if not header.get("PatientID"):
        return f"study {header.StudyInstanceUID}"
    return "\\".join(str(header.get(k) or "").strip() for k in ("IssuerOfPatientID", "PatientID"))


def _words(ds: Dataset) -> set[str]:
    """What names the patient, in lower case: pieces of four characters and more."""
    texts = (str(ds.get(keyword) or "") for keyword in _IDENTIFYING)
    return {word for text in texts for word in re.split(r"[\W_]+", text.lower()) if len(word) >= 4}


def _tells(text: str, words: set[str]) -> bool:
    return any(word in text.lower() for word in words)
