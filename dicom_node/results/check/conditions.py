"""When a conditional attribute (type 1C, 2C) or module is required: the conditions of PS3.3 that our objects can meet.

Each takes the item that the attribute belongs to and the whole data set. A keyword alone is for every place; with its
sequence in front, for that sequence. What has no line here is never asked for, only looked at where it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydicom.dataset import Dataset
from pydicom.uid import (
    GrayscaleSoftcopyPresentationStateStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

Condition = Callable[[Dataset, Dataset], bool]

LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"  # pydicom 3.0 does not name it
SEGMENTATIONS = (str(SegmentationStorage), LABEL_MAP_STORAGE)
_MULTI_FRAME_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."
_CLOSED = ("CIRCLE", "ELLIPSE")


def _always(_item: Dataset, _root: Dataset) -> bool:
    return True


def _with(keyword: str) -> Condition:
    return lambda item, _: keyword in item


def _without(*keywords: str) -> Condition:
    return lambda item, _: not any(keyword in item for keyword in keywords)


def _equal(keyword: str, value: str) -> Condition:
    return lambda item, _: item.get(keyword) == value


def is_capture(root: Dataset) -> bool:
    uid = str(root.SOPClassUID)
    return uid == SecondaryCaptureImageStorage or uid.startswith(_MULTI_FRAME_CAPTURE)


def _several_frames(_item: Dataset, root: Dataset) -> bool:
    return int(root.get("NumberOfFrames") or 1) > 1


def _in_functional_groups(item: Dataset, root: Dataset) -> bool:
    return "DimensionIndexPointer" in item and item.DimensionIndexPointer not in root


def _is_closed(item: Dataset, _root: Dataset) -> bool:
    points = list(item.get("GraphicData") or ())
    return item.get("GraphicType") in _CLOSED or (len(points) > 4 and points[:2] == points[-2:])


def _grayscale_frames(_item: Dataset, root: Dataset) -> bool:
    return root.get("PhotometricInterpretation") == "MONOCHROME2" and int(root.get("BitsStored") or 0) > 1


def _is_state(_item: Dataset, root: Dataset) -> bool:
    return bool(root.SOPClassUID == GrayscaleSoftcopyPresentationStateStorage)


def _rescaled(item: Dataset, root: Dataset) -> bool:
    """A state on CT has the Modality LUT of its images (C.11.1)."""
    if _is_state(item, root):
        return "ModalityLUTSequence" not in item
    return is_capture(root) and _grayscale_frames(item, root)


_palette = _equal("PhotometricInterpretation", "PALETTE COLOR")
_fractional = _equal("SegmentationType", "FRACTIONAL")

ATTRIBUTES: Mapping[str, Condition] = {
    # PS3.3 8.8 Code Sequence Macro
    "CodeValue": _without("LongCodeValue", "URNCodeValue"),
    "CodingSchemeDesignator": lambda item, _: "CodeValue" in item or "LongCodeValue" in item,
    "MappingResource": _with("ContextIdentifier"),
    "ContextGroupVersion": _with("ContextIdentifier"),
    # C.7.6.3 Image Pixel, C.7.6.1 General Image
    "PixelData": _always,
    "PlanarConfiguration": lambda item, _: int(item.get("SamplesPerPixel") or 1) > 1,
    "RedPaletteColorLookupTableDescriptor": _palette,
    "GreenPaletteColorLookupTableDescriptor": _palette,
    "BluePaletteColorLookupTableDescriptor": _palette,
    "RedPaletteColorLookupTableData": _palette,
    "GreenPaletteColorLookupTableData": _palette,
    "BluePaletteColorLookupTableData": _palette,
    # C.7.6.1.1.1; in a Source Image Sequence it has a condition of its own, which nothing here meets.
    "PatientOrientation": lambda item, root: is_capture(root) and "ReferencedSOPInstanceUID" not in item,
    # C.7.3.1: may be of a paired part, as nobody says otherwise. That is how dciodvfy reads it, too.
    "Laterality": lambda item, root: root.SOPClassUID not in SEGMENTATIONS and "BodyPartExamined" not in item,
    # C.8.20.2 Segmentation Image, C.8.20.3, C.7.6.16, C.7.6.17
    "MaximumFractionalValue": _fractional,
    "SegmentationFractionalType": _fractional,
    "SegmentAlgorithmName": lambda item, _: item.get("SegmentAlgorithmType") != "MANUAL",
    "TrackingID": _with("TrackingUID"),
    "TrackingUID": _with("TrackingID"),
    "PerFrameFunctionalGroupsSequence": _always,
    "DimensionIndexSequence": _always,
    "DimensionIndexValues": lambda _, root: "DimensionIndexSequence" in root,
    "FunctionalGroupPointer": _in_functional_groups,
    "PixelMeasuresSequence.PixelSpacing": _always,
    "PixelMeasuresSequence.SliceThickness": _always,
    "PixelMeasuresSequence.SpacingBetweenSlices": _always,  # ours: a reader needs it for the size of a voxel
    "DerivationCodeSequence": _always,
    "SourceImageSequence.PurposeOfReferenceCodeSequence": _always,
    "PlanePositionSequence.ImagePositionPatient": _always,
    "PlaneOrientationSequence.ImageOrientationPatient": _always,
    "InConcatenationNumber": _with("ConcatenationUID"),
    "ReferencedSeriesSequence": lambda _, root: root.SOPClassUID in SEGMENTATIONS,
    # C.17.2 SR Document General
    "VerifyingObserverSequence": _equal("VerificationFlag", "VERIFIED"),
    "PersonName": _equal("ObserverType", "PSN"),
    "DeviceUID": _equal("ObserverType", "DEV"),
    # C.8.6.3 SC Multi-frame Image, C.8.6.4, C.7.6.5 Cine
    "FrameIncrementPointer": _several_frames,
    "FrameTime": lambda _, root: root.get("FrameIncrementPointer") == 0x00181063,
    "PageNumberVector": lambda _, root: root.get("FrameIncrementPointer") == 0x00182001,
    "FrameLabelVector": lambda _, root: root.get("FrameIncrementPointer") == 0x00182002,
    "SliceLocationVector": lambda _, root: root.get("FrameIncrementPointer") == 0x00182005,
    "PresentationLUTShape": lambda item, root: (
        _grayscale_frames(item, root) if is_capture(root) else "PresentationLUTSequence" not in item
    ),
    "RescaleSlope": _rescaled,
    "RescaleIntercept": _rescaled,
    "RescaleType": _rescaled,
    "PixelSpacingCalibrationDescription": _with("PixelSpacingCalibrationType"),
    # C.10.4 Displayed Area, C.10.5 Graphic Annotation, C.11.8 Softcopy VOI LUT, C.11.11 to C.11.13
    "PresentationPixelSpacing": _without("PresentationPixelAspectRatio"),
    "PresentationPixelMagnificationRatio": _equal("PresentationSizeMode", "MAGNIFY"),
    "GraphicObjectSequence": _without("TextObjectSequence", "CompoundGraphicSequence"),
    "GraphicObjectSequence.GraphicFilled": _is_closed,
    "BoundingBoxTopLeftHandCorner": _without("AnchorPoint"),
    "BoundingBoxBottomRightHandCorner": _with("BoundingBoxTopLeftHandCorner"),
    "BoundingBoxAnnotationUnits": _with("BoundingBoxTopLeftHandCorner"),
    "BoundingBoxTextHorizontalJustification": _with("BoundingBoxTopLeftHandCorner"),
    "AnchorPointAnnotationUnits": _with("AnchorPoint"),
    "AnchorPointVisibility": _with("AnchorPoint"),
    "WindowCenter": lambda item, root: "VOILUTSequence" not in item and item is not root,
    "WindowWidth": _with("WindowCenter"),
    "RecommendedViewingMode": _with("MaskSubtractionSequence"),
    "ShutterPresentationValue": _with("ShutterShape"),
    # C.24.2 Encapsulated Document: ours are made of images
    "SourceInstanceSequence": _always,
}

# Modules of usage C or U, by their names in `standard`.
MODULES: Mapping[str, Condition] = {
    "frame-of-reference": lambda _, root: root.SOPClassUID in SEGMENTATIONS,
    "common-instance-reference": lambda _, root: root.SOPClassUID in SEGMENTATIONS,
    "palette-color-lookup-table": _palette,
    "icc-profile": lambda item, root: root.SOPClassUID in SEGMENTATIONS and _palette(item, root),
    "cine": lambda _, root: root.get("FrameIncrementPointer") == 0x00181063,
    "sc-multi-frame-vector": _several_frames,
    "graphic-layer": _with("GraphicAnnotationSequence"),
    "modality-lut": _is_state,
    "general-equipment": _always,  # ours say who made them
}
