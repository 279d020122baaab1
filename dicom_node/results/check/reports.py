"""Measurement groups of a report -> whether their numbers are those of the segments, and each finding has its groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage

from dicom_node.results.check import content
from dicom_node.results.check.segments import Segment
from dicom_node.results.reading import Reading

_VOLUME_TOLERANCE_MM3 = 0.01  # the SR has three decimals, PixelSpacing a decimal string's sixteen characters
_GROUP = codes.DCM.MeasurementGroup.value
_TRACKING_UID = codes.DCM.TrackingUniqueIdentifier.value
_VOLUME = codes.SCT.Volume.value

Segmentations = Mapping[str, Mapping[int, Segment]]  # by SOP Instance UID


def report_faults(sr: Dataset, segmentations: Segmentations, reading: Reading) -> Iterator[str]:
    """Any report names findings by their own UIDs only; one of measurement groups has all of them, with volumes."""
    meant = {tracking.uid for tracking in reading.tracking}
    named = {str(item.get("UID")) for item in content.items(sr) if content.concept(item)[0] == _TRACKING_UID}
    if named - meant - _earlier(reading):
        yield "its Tracking UIDs are not those of the findings"
    if sr.SOPClassUID != Comprehensive3DSRStorage:
        return
    groups = [item for item in content.items(sr) if content.concept(item)[0] == _GROUP]
    by_uid: dict[str, list[Dataset]] = {}
    for group in groups:
        by_uid.setdefault(_tracking_uid(group), []).append(group)
    if set(by_uid) - (_earlier(reading) - meant) != meant:  # a nodule known from before keeps its UID
        yield "its measurement groups are not those of the findings"
        return
    for number, tracking in enumerate(reading.tracking, start=1):
        yield from _finding_faults(number, by_uid[tracking.uid], segmentations, reading)


def _earlier(reading: Reading) -> set[str]:
    """Nodules of the earlier exam, which a comparison may speak of."""
    prior = reading.comparison.prior if reading.comparison else None
    return {nodule.tracking_uid for nodule in prior.nodules} if prior else set()


def _finding_faults(
    number: int, groups: list[Dataset], segmentations: Segmentations, reading: Reading
) -> Iterator[str]:
    """One group has the volume, of the segment that it refers to; one has an outline, which viewers jump to and draw."""
    stated = [(group, volume) for group in groups for volume in _volumes_mm3(group)]
    if len(stated) != 1:
        yield f"finding {number} has {len(stated)} volumes"
    for group, volume_mm3 in stated:
        for uid, segment_number in _referenced_segments(group):
            segment = segmentations.get(uid, {}).get(segment_number)
            if segment is None or segment_number != number:
                yield f"finding {number} refers to segment {segment_number}"
        seen = [segments[number].volume_mm3 for segments in segmentations.values() if number in segments]
        seen = seen or [float(reading.findings[number - 1].mask.sum()) * reading.volume.voxel_mm3]
        for expected in seen:
            if abs(volume_mm3 - expected) > _VOLUME_TOLERANCE_MM3 + 1e-6 * expected:
                yield f"volume {volume_mm3:.3f} mm3 of finding {number}, whose voxels make {expected:.3f} mm3"
    if not any(_has_outline(group) for group in groups):
        yield f"finding {number} has no outline that a viewer could show"
    sides = {"left": codes.SCT.Left.value, "right": codes.SCT.Right.value}
    side = reading.findings[number - 1].side
    said = {
        str(code.CodeValue)
        for group in groups
        for item in content.items(group)
        for code in item.get("ConceptCodeSequence", ())
        if content.concept(item)[0] == codes.SCT.Laterality.value
    }
    if said - ({sides[side]} if side else set()):
        yield f"finding {number} is said to lie on another side"


def _tracking_uid(group: Dataset) -> str:
    for item in content.items(group):
        if content.concept(item)[0] == _TRACKING_UID:
            return str(item.get("UID"))
    return ""


def _volumes_mm3(group: Dataset) -> list[float]:
    """Of the group's own numbers: what lies below them (an earlier volume, a change) is another's."""
    return [
        float(item.MeasuredValueSequence[0].NumericValue)
        for item in group.ContentSequence
        if item.get("ValueType") == "NUM" and content.concept(item)[0] == _VOLUME and item.get("MeasuredValueSequence")
    ]


def _referenced_segments(group: Dataset) -> Iterator[tuple[str, int]]:
    for item in content.items(group):
        for reference in item.get("ReferencedSOPSequence", ()):
            if "ReferencedSegmentNumber" in reference:
                value = reference.ReferencedSegmentNumber
                for number in value if hasattr(value, "__iter__") else (value,):
                    yield str(reference.ReferencedSOPInstanceUID), int(number)


def _has_outline(group: Dataset) -> bool:
    """An Image Region of the group itself: a caliper's ends lie below a number, where viewers do not look."""
    return any(
        item.get("ValueType") in ("SCOORD", "SCOORD3D") and len(item.get("GraphicData") or ()) >= 4
        for item in group.ContentSequence
    )
