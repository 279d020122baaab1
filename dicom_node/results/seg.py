"""Findings -> one DICOM Segmentation (PS3.3 A.51): BINARY, one segment a finding, in the source's geometry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, PixelMeasuresSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage

from dicom_node.domain import RESEARCH_USE, CTImage, CTSeries, Finding, ModelIdentity
from dicom_node.errors import ResultError
from dicom_node.identity import MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION
from dicom_node.results.headers import SERIES_NUMBER, TYPE_2, Kind, Origin, put_headers
from dicom_node.results.palette import colour
from dicom_node.results.part10 import PLACEHOLDER, seal
from dicom_node.results.reading import Reading
from dicom_node.results.tracking import LATERALITY, Tracking

LabelMap = NDArray[np.uint8] | NDArray[np.uint16]


def build_seg(reading: Reading, *, omit_empty_frames: bool = True) -> Dataset:
    """One Segmentation Instance of all findings, segment n being finding n.

    omit_empty_frames: leave out frames that hold nothing of their segment. Some older viewers show sparse
        segments in the wrong place; without it the object has segments times slices frames.

    Raises ValueError without findings: an empty Segmentation says nothing, and some viewers fail on it.
    """
    series, findings, tracking, origin = reading.series, reading.findings, reading.tracking, reading.origin
    if not findings:
        raise ValueError("no findings, so there is nothing to segment")
    slices = _slices(series, findings, only_occupied=omit_empty_frames)
    images = [series.images[index] for index in slices]
    seg = Segmentation(
        source_images=[_geometry_of(image, index, series) for index, image in zip(slices, images, strict=True)],
        pixel_array=_pixels(series, findings, slices),
        segmentation_type="BINARY",
        segment_descriptions=[
            _segment(number, finding, track, _algorithm(origin))
            for number, (finding, track) in enumerate(zip(findings, tracking, strict=True), start=1)
        ],
        series_instance_uid=PLACEHOLDER,
        series_number=SERIES_NUMBER[Kind.SEGMENTATION],
        sop_instance_uid=PLACEHOLDER,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SOFTWARE_VERSION,
        pixel_measures=_pixel_measures(series),
        omit_empty_frames=omit_empty_frames,
        content_label="LUNG_NODULES",
        content_description=f"Lung nodules. {RESEARCH_USE}",
        content_creator_name=f"{MODEL_NAME}^",
    )
    _copy_geometry(seg, series, images)
    _sort_frames(seg, series)
    _put_references(seg, series, images)
    _put_dimension_uid(seg, origin.uid(Kind.SEGMENTATION, "dimensions"))
    put_headers(seg, origin, Kind.SEGMENTATION, "Lung nodules")
    return seal(seg, origin, Kind.SEGMENTATION)


def _slices(series: CTSeries, findings: Sequence[Finding], *, only_occupied: bool) -> list[int]:
    if not only_occupied:
        return list(range(len(series.images)))
    return sorted({index for finding in findings for index in range(*finding.slices[0].indices(len(series.images)))})


def _pixels(series: CTSeries, findings: Sequence[Finding], slices: list[int]) -> LabelMap:
    """Label map (slice, row, column) with the findings' numbers; where findings overlap, one mask a finding."""
    place = {index: position for position, index in enumerate(slices)}
    dtype = np.uint8 if len(findings) <= 255 else np.uint16
    labels = np.zeros((len(slices), series.rows, series.columns), dtype)
    for number, finding in enumerate(findings, start=1):
        window = _window(labels, finding, place)
        if window[finding.mask].any():
            return _stacked(labels.shape, findings, place)
        window[finding.mask] = number
    return labels


def _stacked(shape: tuple[int, ...], findings: Sequence[Finding], place: dict[int, int]) -> NDArray[np.uint8]:
    """Masks (slice, row, column, finding): much larger than a label map, but each voxel may have several."""
    masks = np.zeros((*shape, len(findings)), np.uint8)
    for position, finding in enumerate(findings):
        _window(masks[..., position], finding, place)[finding.mask] = 1
    return masks


def _window(array: NDArray[Any], finding: Finding, place: dict[int, int]) -> NDArray[Any]:
    """View of `array` that the finding's mask covers. A finding's slices are neighbours in `place` too."""
    k, rows, columns = finding.slices
    start = place[k.start]
    return array[start : start + len(finding.mask), rows, columns]


def _geometry_of(image: CTImage, index: int, series: CTSeries) -> Dataset:
    """What highdicom needs of a source image and no more: it refuses headers that lack or bend the rest.

    Each image stands as a single-frame Instance named after its index, so that frames of one multi-frame Instance
    can be told apart; `_put_references` puts the true references in place.
    """
    header = image.header
    if not header.get("FrameOfReferenceUID"):
        raise ResultError(f"source image {image.sop_instance_uid} has no FrameOfReferenceUID: no segmentation")
    source = Dataset()
    for keyword in TYPE_2:
        setattr(source, keyword, "")
    for keyword in (
        "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns",
        "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "PositionReferenceIndicator",
        "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    ):  # fmt: skip
        if keyword in header:
            source[keyword] = header[keyword]
    source.SOPInstanceUID = _stand_in(index)
    source.SliceThickness = _slice_thickness_mm(series)
    source.SOPClassUID = CTImageStorage
    source.Modality = "CT"
    return source


def _stand_in(index: int) -> str:
    return f"2.25.{index}"


def _index_of(frame: Dataset) -> int:
    """The index of the image that a frame was drawn on, by the name that `_geometry_of` gave it."""
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    return int(str(source.ReferencedSOPInstanceUID).removeprefix("2.25."))


def _put_references(seg: Dataset, series: CTSeries, images: list[CTImage]) -> None:
    """References to the true Instances, and to the frame of a multi-frame one (PS3.3 10.3)."""
    frames = list(seg.PerFrameFunctionalGroupsSequence)
    # All indices first: highdicom lets frames of one slice share the item that is changed here.
    for frame, index in zip(frames, [_index_of(frame) for frame in frames], strict=True):
        image = series.images[index]
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPClassUID = image.sop_class_uid
        source.ReferencedSOPInstanceUID = image.sop_instance_uid
        if image.frame is not None:
            source.ReferencedFrameNumber = image.frame
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = _instances(images, with_frames=False)
    seg.SourceImageSequence = _instances(images, with_frames=True)


def _instances(images: list[CTImage], *, with_frames: bool) -> list[Dataset]:
    """A reference to each Instance, once, and to those of its frames that are among `images`."""
    frames: dict[tuple[str, str], list[int]] = {}
    for image in images:
        of = frames.setdefault((image.sop_class_uid, image.sop_instance_uid), [])
        if image.frame is not None:
            of.append(image.frame)
    references = []
    for (sop_class, uid), numbers in frames.items():
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, uid
        if numbers and with_frames:
            reference.ReferencedFrameNumber = sorted(numbers)
        references.append(reference)
    return references


def _slice_thickness_mm(series: CTSeries) -> float:
    return float(series.header.get("SliceThickness") or series.spacing_mm[0])


def _segment(
    number: int, finding: Finding, tracking: Tracking, algorithm: AlgorithmIdentificationSequence
) -> SegmentDescription:
    segment = SegmentDescription(
        segment_number=number,
        segment_label=tracking.identifier,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_id=tracking.identifier,
        tracking_uid=tracking.uid,
        anatomic_regions=[codes.SCT.Lung],
        display_color=CIELabColor.from_string(colour(number)),
    )
    if finding.side is not None:
        region = segment.AnatomicRegionSequence[0]
        region.AnatomicRegionModifierSequence = [CodedConcept.from_code(LATERALITY[finding.side])]
    return segment


def _algorithm(origin: Origin) -> AlgorithmIdentificationSequence:
    model = _model(origin)
    return AlgorithmIdentificationSequence(
        name=model.name[:64],
        version=model.version[:64],
        family=codes.cid7162.ArtificialIntelligence,
        source=MANUFACTURER,
        parameters={"bundle_sha256": model.bundle_sha256, "operating_point": f"{model.operating_point:g}"},
    )


def _model(origin: Origin) -> ModelIdentity:
    if origin.model is None:
        raise ValueError("a segmentation needs the identity of its model")
    return origin.model


def _pixel_measures(series: CTSeries) -> PixelMeasuresSequence:
    header = series.header
    spacing_mm = series.spacing_mm
    measures = PixelMeasuresSequence(
        pixel_spacing=spacing_mm[1:],
        slice_thickness=_slice_thickness_mm(series),
        spacing_between_slices=spacing_mm[0],
    )
    measures[0].PixelSpacing = header.PixelSpacing
    return measures


def _copy_geometry(seg: Dataset, series: CTSeries, images: list[CTImage]) -> None:
    """Position and orientation with the source's very digits: viewers join frames to images by them."""
    # Again: highdicom 0.28 takes SpacingBetweenSlices out where the occupied slices are not neighbours.
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = _pixel_measures(series)
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = images[0].header.ImageOrientationPatient
    for frame in seg.PerFrameFunctionalGroupsSequence:
        source = series.images[_index_of(frame)].header
        frame.PlanePositionSequence[0].ImagePositionPatient = source.ImagePositionPatient


def _sort_frames(seg: Dataset, series: CTSeries) -> None:
    """By segment, then along the series; highdicom 0.28 goes the other way along it, from head to feet."""
    frames = list(seg.PerFrameFunctionalGroupsSequence)
    slices = [_index_of(frame) for frame in frames]
    segments = [int(frame.FrameContentSequence[0].DimensionIndexValues[0]) for frame in frames]
    order = sorted(range(len(frames)), key=lambda number: (segments[number], slices[number]))
    # PS3.3 C.7.6.17.2: the index counts the positions that occur.
    rank = {index: number for number, index in enumerate(sorted(set(slices)), start=1)}
    for frame, segment, index in zip(frames, segments, slices, strict=True):
        frame.FrameContentSequence[0].DimensionIndexValues = [segment, rank[index]]
    seg.PerFrameFunctionalGroupsSequence = [frames[number] for number in order]
    seg.PixelData = _permuted(seg.PixelData, order, frame_bits=series.rows * series.columns)


def _permuted(pixels: bytes, order: list[int], *, frame_bits: int) -> bytes:
    """Frames of one bit a pixel, packed without gaps (PS3.5 8.1.1), in another order."""
    packed = np.frombuffer(pixels, np.uint8)
    if frame_bits % 8 == 0:
        size = frame_bits // 8
        return packed[: len(order) * size].reshape(-1, size)[order].tobytes() + b"\0" * (len(order) * size % 2)
    bits = np.unpackbits(packed, bitorder="little", count=len(order) * frame_bits).reshape(-1, frame_bits)
    whole = np.packbits(bits[order], bitorder="little").tobytes()
    return whole + b"\0" * (len(whole) % 2)


def _put_dimension_uid(seg: Dataset, uid: str) -> None:
    """highdicom draws this UID at random."""
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
