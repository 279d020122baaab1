"""Objects as they would be sent -> nothing, or ResultError with what is wrong. Reads the objects, trusts nothing.

Two questions. Is each object what PS3.3 asks of its SOP Class (`modules`, `content`, `segments.form_faults`)? And does
it say what was seen: does a reader of the SEG find the findings' very voxels, near the lungs, does the SR state their
volumes, do references lead somewhere, is it this patient's? The texts name attributes, UIDs and numbers, no patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydicom.dataset import Dataset

from dicom_node.errors import ResultError
from dicom_node.logs import describe
from dicom_node.results.check import content, modules, pictures, reports, segments
from dicom_node.results.check.conditions import SEGMENTATIONS
from dicom_node.results.check.segments import Segment, Unreadable
from dicom_node.results.check.source import (
    Source,
    identity_faults,
    made_instances,
    reference_faults,
    source_of,
    source_of_refusal,
    uid_faults,
)
from dicom_node.results.reading import Made, Reading, Refusal

_MOST_TOLD = 5


def check_objects(objects: Sequence[Made], reading: Reading) -> None:
    """Raises ResultError unless all objects of one analysed series may leave, alone and together."""
    _refuse(_unfit(objects, source_of(reading)))
    _refuse(_untrue(objects, reading))


def check_refusal(objects: Sequence[Made], refusal: Refusal) -> None:
    """The same for the objects that say why a series was not analysed."""
    _refuse(_unfit(objects, source_of_refusal(refusal)))
    _refuse(f"{made.kind}: marks findings" for made in objects if made.ds.SOPClassUID in SEGMENTATIONS)


def _refuse(faults: Iterable[str]) -> None:
    try:
        told = list(dict.fromkeys(faults))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as err:
        # What the first rules ask for is there. So this is an object that no reader can make sense of.
        raise ResultError(f"the objects can't be read: {describe(err)}") from err
    if told:
        more = f"; and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
        raise ResultError("; ".join(told[:_MOST_TOLD]) + more)


def _unfit(objects: Sequence[Made], source: Source) -> Iterator[str]:
    """What needs no look at what was found."""
    whole = [made for made in objects if made.ds.get("SOPInstanceUID")]
    yield from (f"{made.kind}: SOPInstanceUID is missing" for made in objects if made not in whole)
    yield from uid_faults(whole, source)
    known = {**source.instances, **source.earlier, **made_instances(whole)}
    for made in whole:
        yield from (f"{made.kind}: {fault}" for fault in modules.faults(made.ds))
        yield from (f"{made.kind}: {fault}" for fault in content.faults(made.ds))
        yield from (f"{made.kind}: {fault}" for fault in segments.form_faults(made.ds))
        yield from (f"{made.kind}: {fault}" for fault in identity_faults(made.ds, source))
        yield from (f"{made.kind}: {fault}" for fault in reference_faults(made.ds, known, source))
        yield from (f"{made.kind}: {fault}" for fault in pictures.capture_faults(made.ds))
        yield from (f"{made.kind}: {fault}" for fault in pictures.document_faults(made.ds))


def _untrue(objects: Sequence[Made], reading: Reading) -> Iterator[str]:
    """Meaning. Comes after `_unfit`, so that what an object must have is there."""
    seen: dict[str, Mapping[int, Segment]] = {}
    for made in objects:
        if made.ds.SOPClassUID in SEGMENTATIONS:
            yield from (f"{made.kind}: {fault}" for fault in _segmentation_faults(made.ds, reading, seen))
    for made in objects:
        if made.ds.Modality == "SR":
            yield from (f"{made.kind}: {fault}" for fault in reports.report_faults(made.ds, seen, reading))
            yield from (f"{made.kind}: {fault}" for fault in pictures.outline_faults(made.ds, reading))
        yield from (f"{made.kind}: {fault}" for fault in pictures.presentation_faults(made.ds, reading))


def _segmentation_faults(seg: Dataset, reading: Reading, seen: dict[str, Mapping[int, Segment]]) -> Iterator[str]:
    """Adds what was read to `seen`, by the SEG's UID."""
    try:
        found = segments.read_segments(seg, reading)
    except Unreadable as err:
        yield str(err)
        return
    seen[str(seg.SOPInstanceUID)] = found
    yield from segments.image_faults(seg, reading)
    yield from segments.segment_faults(found, seg, reading)
