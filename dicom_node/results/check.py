"""SEG and SR as they would be sent -> nothing, or ResultError with what is wrong. Reads the objects, trusts nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    SegmentationStorage,
)

from dicom_node.domain import RESEARCH_USE, CTSeries
from dicom_node.errors import ResultError

_IMAGE_CLASSES = (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    SegmentationStorage,
)
_VOLUME_TOLERANCE_MM3 = 0.01  # the SR has three decimals, PixelSpacing a decimal string's sixteen characters


def check_results(seg: Dataset | None, sr: Dataset, series: CTSeries) -> None:
    """Raises ResultError unless SEG and SR agree with each other and with their source."""
    objects = [sr] if seg is None else [seg, sr]
    _check_uids(objects, series)
    _check_references(objects, seg, series)
    for ds in objects:
        _require(RESEARCH_USE in ds.SeriesDescription, f"{ds.Modality}: SeriesDescription lacks {RESEARCH_USE!r}")
    stated = any(RESEARCH_USE in item.get("TextValue", "") for item in _items(sr))
    _require(stated, f"SR: its content lacks {RESEARCH_USE!r}")
    groups = [item for item in _items(sr) if _is(item, codes.DCM.MeasurementGroup.value)]
    if seg is None:
        _require(not groups, f"SR: {len(groups)} measurement groups, but there is no SEG")
    else:
        _check_findings(seg, groups)


def _check_uids(objects: list[Dataset], series: CTSeries) -> None:
    taken = {series.series_uid, *series.sop_instance_uids, *series.left_out}
    for ds in objects:
        _require(ds.StudyInstanceUID == series.study_uid, f"{ds.Modality}: belongs to another study")
        for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
            uid = str(ds[keyword].value)
            _require(uid not in taken, f"{ds.Modality}: {keyword} {uid} is taken")
            taken.add(uid)


def _check_references(objects: list[Dataset], seg: Dataset | None, series: CTSeries) -> None:
    known = set(series.sop_instance_uids) | ({str(seg.SOPInstanceUID)} if seg is not None else set())
    for ds in objects:
        # A predecessor lies outside the series on purpose.
        body = [
            element.value for element in ds if element.VR == "SQ" and element.keyword != "PredecessorDocumentsSequence"
        ]
        referenced = {
            str(item.ReferencedSOPInstanceUID)
            for sequence in body
            for item in _nested(sequence)
            if "ReferencedSOPInstanceUID" in item and item.get("ReferencedSOPClassUID") in _IMAGE_CLASSES
        }
        unknown = sorted(referenced - known)
        _require(not unknown, f"{ds.Modality}: refers to {len(unknown)} unknown Instances, the first is {unknown[:1]}")


def _check_findings(seg: Dataset, groups: list[Dataset]) -> None:
    """Each segment has voxels, one volume in the SR that follows from them, and at least one group with an outline."""
    voxels = _voxels_of_segments(seg)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    voxel_mm3 = float(np.prod([float(value) for value in measures.PixelSpacing])) * float(measures.SpacingBetweenSlices)
    uids = [str(segment.TrackingUID) for segment in seg.SegmentSequence]
    _require(len(set(uids)) == len(uids), "SEG: two segments have one Tracking UID")
    reported = [_tracking_uid(group) for group in groups]
    _require(set(reported) == set(uids), "SR: its Tracking UIDs are not those of the SEG")
    for segment in seg.SegmentSequence:
        number, uid = int(segment.SegmentNumber), str(segment.TrackingUID)
        count = voxels.get(number, 0)
        _require(count > 0, f"SEG: segment {number} is empty")
        volumes = [_volume_mm3(group) for group, of in zip(groups, reported, strict=True) if of == uid]
        stated = [value for value in volumes if value is not None]
        expected = count * voxel_mm3
        _require(
            len(stated) == 1 and abs(stated[0] - expected) <= _VOLUME_TOLERANCE_MM3 + 1e-6 * expected,
            f"SR: volume {stated} mm3 of segment {number}, whose {count} voxels make {expected:.3f} mm3",
        )
        _require(len(volumes) > len(stated), f"SR: segment {number} has no outline that a viewer could show")


def _voxels_of_segments(seg: Dataset) -> dict[int, int]:
    """Segment number -> set bits. Frames of a BINARY segmentation follow each other without padding (PS3.5 8.1.1)."""
    frames = int(seg.NumberOfFrames)
    size = int(seg.Rows) * int(seg.Columns)
    bits: NDArray[np.uint8] = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    counts = bits[: frames * size].reshape(frames, size).sum(axis=1)
    shared = seg.SharedFunctionalGroupsSequence[0]
    voxels: dict[int, int] = {}
    for frame, count in zip(seg.PerFrameFunctionalGroupsSequence, counts, strict=True):
        # highdicom keeps the segment of a SEG of one segment in the shared groups.
        where = frame if "SegmentIdentificationSequence" in frame else shared
        number = int(where.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        voxels[number] = voxels.get(number, 0) + int(count)
    return voxels


def _items(sr: Dataset) -> Iterator[Dataset]:
    """All content items below the root."""
    for item in sr.get("ContentSequence", ()):
        yield item
        yield from _items(item)


def _nested(sequence: list[Dataset]) -> Iterator[Dataset]:
    """All items of a sequence and of the sequences in them."""
    for item in sequence:
        yield item
        for element in item:
            if element.VR == "SQ":
                yield from _nested(element.value)


def _is(item: Dataset, code_value: str) -> bool:
    names = item.get("ConceptNameCodeSequence")
    return bool(names) and names[0].get("CodeValue") == code_value


def _tracking_uid(group: Dataset) -> str:
    for item in group.ContentSequence:
        if _is(item, codes.DCM.TrackingUniqueIdentifier.value):
            return str(item.UID)
    raise ResultError("SR: a measurement group has no Tracking Unique Identifier")


def _volume_mm3(group: Dataset) -> float | None:
    for item in group.ContentSequence:
        if _is(item, codes.SCT.Volume.value):
            return float(item.MeasuredValueSequence[0].NumericValue)
    return None


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ResultError(otherwise)
