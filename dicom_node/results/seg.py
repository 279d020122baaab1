"""Findings -> one DICOM Segmentation (PS3.3 A.51), one segment a finding, in the source's geometry.

highdicom makes the headers, from which finding is in which slice; the pixels are painted here, frame by frame: its
input for findings that overlap is a mask of the whole volume a finding, gigabytes for some dozens of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal

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

Form = Literal["binary", "fractional", "labelmap"]
Frames = Literal["sparse", "full"]
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

# A voxel of ours is in a finding or not, which is an occupancy of 1 or 0. The values are no probabilities: the model's
# were thresholded, and its score is one number a finding.
FRACTIONAL_TYPE = "OCCUPANCY"
WHOLE_VOXEL = 255

# Three copies of the pixels live at a time: painted, in the data set, in the file.
MOST_PIXEL_BYTES = 1 << 30


def build_seg(reading: Reading, *, form: Form = "binary", frames: Frames = "sparse") -> Dataset:
    """One Segmentation Instance of all findings, segment n being finding n.

    form: labelmap becomes binary where findings overlap: a label map holds one segment a voxel (PS3.3 C.8.20.2.3), so
        one of the two would lose voxels, and its volume with them.
    frames: sparse leaves out frames that hold nothing of their segment (of any, in a label map). Some older viewers
        show sparse segments in the wrong place; full has a frame for each slice (and segment).

    Raises ValueError without findings: an empty Segmentation says nothing, and some viewers fail on it. ResultError
    where the frames would take more than MOST_PIXEL_BYTES.
    """
    series, findings, origin = reading.series, reading.findings, reading.origin
    if not findings:
        raise ValueError("no findings, so there is nothing to segment")
    overlap = _overlap(findings, series)
    if form == "labelmap" and overlap:
        form = "binary"
    slices = _slices(series, findings, frames)
    seg = _headers(reading, slices, form, frames)
    seg.SegmentsOverlap = "YES" if overlap else "NO"
    order = _sort_frames(seg, slices, with_segments=form != "labelmap")
    seg.Rows, seg.Columns = series.rows, series.columns
    seg.PixelData = _pixel_data(order, findings, series, form)
    images = [series.images[index] for index in slices]
    _copy_geometry(seg, series, images)
    _put_references(seg, series, images)
    _put_dimension_uid(seg, origin.uid(Kind.SEGMENTATION, "dimensions"))
    put_headers(seg, origin, Kind.SEGMENTATION, "Lung nodules")
    return seal(seg, origin, Kind.SEGMENTATION)


def _headers(reading: Reading, slices: list[int], form: Form, frames: Frames) -> Segmentation:
    """All but the pixels: of each image one pixel stands for the whole, set where a finding is in the slice."""
    series, origin = reading.series, reading.origin
    return Segmentation(
        source_images=[_geometry_of(series.images[index], index, series) for index in slices],
        pixel_array=_occupied(reading.findings, slices, form),
        segmentation_type=form.upper(),
        fractional_type=FRACTIONAL_TYPE,
        max_fractional_value=WHOLE_VOXEL,
        segment_descriptions=[
            _segment(number, finding, track, _algorithm(origin))
            for number, (finding, track) in enumerate(zip(reading.findings, reading.tracking, strict=True), start=1)
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
        omit_empty_frames=frames == "sparse",
        content_label="LUNG_NODULES",
        content_description=f"Lung nodules. {RESEARCH_USE}",
        content_creator_name=f"{MODEL_NAME}^",
    )


def _overlap(findings: Sequence[Finding], series: CTSeries) -> bool:
    steps = np.array([series.rows * series.columns, series.columns, 1])
    voxels = np.concatenate([(np.argwhere(finding.mask) + finding.corner) @ steps for finding in findings])
    return len(np.unique(voxels)) < len(voxels)


def _slices(series: CTSeries, findings: Sequence[Finding], frames: Frames) -> list[int]:
    if frames == "full":
        return list(range(len(series.images)))
    return sorted(set().union(*map(_slices_of, findings)))


def _slices_of(finding: Finding) -> set[int]:
    """Slices with a voxel of it: one in several pieces may leave some out."""
    return {finding.corner[0] + int(k) for k in np.flatnonzero(finding.mask.any(axis=(1, 2)))}


def _occupied(findings: Sequence[Finding], slices: list[int], form: Form) -> NDArray[np.uint8]:
    """(slice, 1, 1, finding): 1 where the finding is in the slice; (slice, 1, 1) of any finding for a label map."""
    held = [_slices_of(finding) for finding in findings]
    occupied = np.array([[k in of for of in held] for k in slices], np.uint8)[:, None, None, :]
    return occupied.max(axis=-1) if form == "labelmap" else occupied


def _pixel_data(order: Sequence[tuple[int, int]], findings: Sequence[Finding], series: CTSeries, form: Form) -> bytes:
    """The frames of `order`, each a segment's number (0: all of them) and a slice's index, packed as in PS3.5 8.1.1."""
    labels = np.dtype("<u2" if len(findings) > 255 else "u1") if form == "labelmap" else np.dtype("u1")
    size = series.rows * series.columns
    total = len(order) * size * labels.itemsize // (8 if form == "binary" else 1)
    if total > MOST_PIXEL_BYTES:
        raise ResultError(
            f"SEG: {len(order)} frames would take {total >> 20} MB of the {MOST_PIXEL_BYTES >> 20} MB allowed: "
            "set segmentation_frames to sparse"
        )
    frames = (_frame(segment, index, findings, series, labels, form) for segment, index in order)
    whole = _packed(frames) if form == "binary" else b"".join(frame.tobytes() for frame in frames)
    return whole + b"\0" * (len(whole) % 2)


def _frame(
    segment: int, index: int, findings: Sequence[Finding], series: CTSeries, dtype: np.dtype[Any], form: Form
) -> Pixels:
    """(row, column) of one slice."""
    frame: Pixels = np.zeros((series.rows, series.columns), dtype)
    drawn = [(segment, findings[segment - 1])] if segment else enumerate(findings, start=1)
    for number, finding in drawn:
        k, rows, columns = finding.slices
        if k.start <= index < k.stop:
            value = {"binary": 1, "fractional": WHOLE_VOXEL, "labelmap": number}[form]
            frame[rows, columns][finding.mask[index - k.start]] = value
    return frame


def _packed(frames: Iterable[Pixels]) -> bytes:
    """One bit a pixel without gaps, not even between frames; the first pixel is the lowest bit."""
    parts = []
    frames = iter(frames)
    while batch := list(islice(frames, 8)):  # eight frames of any size are a whole number of bytes
        parts.append(np.packbits(np.concatenate([frame.ravel() for frame in batch]), bitorder="little").tobytes())
    return b"".join(parts)


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
        "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PixelSpacing",
        "ImageOrientationPatient", "ImagePositionPatient", "PositionReferenceIndicator",
        "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    ):  # fmt: skip
        if keyword in header:
            source[keyword] = header[keyword]
    source.Rows = source.Columns = 1
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


def _sort_frames(seg: Dataset, slices: list[int], *, with_segments: bool) -> list[tuple[int, int]]:
    """By segment, then along the series; highdicom 0.28 goes the other way along it, from head to feet.

    Returns segment (0 in a label map) and index of the slice of each frame, in the new order.
    """
    frames = list(seg.PerFrameFunctionalGroupsSequence)
    places = [
        (int(frame.FrameContentSequence[0].DimensionIndexValues[0]) if with_segments else 0, _index_of(frame))
        for frame in frames
    ]
    # PS3.3 C.7.6.17.2: the index counts the positions that occur.
    rank = {index: number for number, index in enumerate(slices, start=1)}
    for frame, (segment, index) in zip(frames, places, strict=True):
        values = [segment, rank[index]] if with_segments else rank[index]
        frame.FrameContentSequence[0].DimensionIndexValues = values
    order = sorted(range(len(frames)), key=lambda number: places[number])
    seg.PerFrameFunctionalGroupsSequence = [frames[number] for number in order]
    return [places[number] for number in order]


def _put_dimension_uid(seg: Dataset, uid: str) -> None:
    """highdicom draws this UID at random."""
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
