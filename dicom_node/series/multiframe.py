"""InstanceFile -> one Image a frame, each with a header as a single-frame CT has it (PS3.3 A.38, A.70, C.7.6.16)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from dicom_node.errors import Reason, SeriesRejected
from dicom_node.series import values
from dicom_node.series.codestream import Wavelet
from dicom_node.series.headers import InstanceFile
from dicom_node.series.shown import shown

MULTIFRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

# Functional group -> the attributes of it that the gate, the routes and the results ask for. Only these: a group
# must not be able to replace an identifier.
_GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTImageFrameTypeSequence": (
        "FrameType", "PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique",
    ),
    "CTReconstructionSequence": ("ConvolutionKernel", "ConvolutionKernelGroup", "ReconstructionDiameter"),
    "CTXRayDetailsSequence": ("KVP", "FilterType"),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt",),
    "CTExposureSequence": ("ExposureTimeInms", "XRayTubeCurrentInmA", "ExposureInmAs", "CTDIvol"),
}  # fmt: skip
_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
# What a converter kept of the single frames (PS3.3 C.7.6.16.2.25 and .26); it fills in and replaces nothing.
_CONVERTED = ("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence")
_NOT_OF_ONE_FRAME = tuple(Tag(keyword) for keyword in (_SHARED, _PER_FRAME, "NumberOfFrames"))
_IMAGE_TYPE, _FRAME_TYPE = Tag("ImageType"), Tag("FrameType")

_Elements = dict[BaseTag, Any]  # DataElements, which a Dataset may hold parsed or not


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image, whether it has a file of its own or is a frame of one.

    frame: its number within the file, from 1; None for a single-frame instance.
    header: for a frame, the attributes of its functional groups stand among those of the instance.
    """

    path: str
    header: Dataset
    frame: int | None = None
    wavelet: Wavelet | None = None

    @property
    def name(self) -> str:
        uid = str(self.header.get("SOPInstanceUID"))
        return uid if self.frame is None else f"{uid} frame {self.frame}"


def split(files: Collection[InstanceFile]) -> list[Image]:
    """Each image of `files`. Raises SeriesRejected where a file or a concatenation has not the frames it claims."""
    _check_concatenations(f.header for f in files if f.header.get("ConcatenationUID"))
    return [image for file in files for image in images_in(file)]


def images_in(file: InstanceFile) -> Iterator[Image]:
    """Raises SeriesRejected where NumberOfFrames and the functional groups differ."""
    header = file.header
    if header.get("SOPClassUID") not in MULTIFRAME:
        yield Image(path=file.path, header=header, wavelet=file.wavelet)
        return
    groups = _items(header, _PER_FRAME)
    if values.integer(header, "NumberOfFrames", -1) != len(groups) or not groups:
        claimed = shown("NumberOfFrames", values.values(header.get("NumberOfFrames")))
        raise SeriesRejected(
            Reason.FRAMES_MISSING, f"NumberOfFrames is {claimed}, and {len(groups)} frames are described"
        )
    common: _Elements = {element.tag: element for element in header if element.tag not in _NOT_OF_ONE_FRAME}
    for shared in _items(header, _SHARED)[:1]:
        common = _merged(common, shared)
    for number, group in enumerate(groups, start=1):
        frame = Dataset(_merged(common, group))
        frame.file_meta = header.file_meta
        yield Image(path=file.path, header=frame, frame=number, wavelet=file.wavelet)


def _items(header: Dataset, keyword: str) -> list[Dataset]:
    found = header.get(keyword)
    return list(found) if isinstance(found, Sequence) else []


def _merged(elements: _Elements, group: Dataset) -> _Elements:
    """`elements` with what the functional groups of one item say."""
    merged = dict(elements)
    for sequence, keywords in _GROUPS.items():
        for item in _items(group, sequence)[:1]:
            merged |= {item[k].tag: item[k] for k in keywords if k in item}
    for sequence in _CONVERTED:
        for item in _items(group, sequence)[:1]:
            merged = {element.tag: element for element in item} | merged
    if _FRAME_TYPE in merged:
        merged[_IMAGE_TYPE] = DataElement(_IMAGE_TYPE, "CS", merged[_FRAME_TYPE].value)
    return merged


def _check_concatenations(parts: Iterable[Dataset]) -> None:
    """That no part of a concatenation (PS3.3 C.7.6.16.2.2.4) is missing, as far as its parts tell."""
    of: dict[str, list[Dataset]] = defaultdict(list)
    for part in parts:
        of[values.text(part.ConcatenationUID)].append(part)
    for members in of.values():
        there = sorted(values.integer(part, "InConcatenationNumber", -1) for part in members)
        told = {values.integer(part, "InConcatenationTotalNumber", 0) for part in members}
        total = max(told) or there[-1]
        if len(told) > 1 or there != list(range(1, total + 1)):
            raise SeriesRejected(
                Reason.FRAMES_MISSING,
                f"a concatenation of {total} parts has {len(set(there))} here: send the series again",
            )
