"""References to Instances by study and series, as reports, selections and presentation states have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_node.domain import CTImage, CTSeries


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One Instance somewhere in the study."""

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str


def reference_to(ds: Dataset) -> Reference:
    return Reference(sop_class_uid=ds.SOPClassUID, sop_instance_uid=ds.SOPInstanceUID, series_uid=ds.SeriesInstanceUID)


def references_of(series: CTSeries) -> list[Reference]:
    """Each Instance once, however many of its frames were looked at."""
    references = (
        Reference(
            sop_class_uid=image.sop_class_uid, sop_instance_uid=image.sop_instance_uid, series_uid=series.series_uid
        )
        for image in series.images
    )
    return list(dict.fromkeys(references))


def study_item(study_uid: str, references: Sequence[Reference]) -> Dataset:
    """References by study, series and Instance (PS3.3 C.17.2.1)."""
    by_series: dict[str, list[Dataset]] = {}
    for reference in references:
        instance = Dataset()
        instance.ReferencedSOPClassUID = reference.sop_class_uid
        instance.ReferencedSOPInstanceUID = reference.sop_instance_uid
        by_series.setdefault(reference.series_uid, []).append(instance)
    study = Dataset()
    study.StudyInstanceUID = study_uid
    study.ReferencedSeriesSequence = []
    for series_uid, instances in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = series_uid
        series.ReferencedSOPSequence = instances
        study.ReferencedSeriesSequence.append(series)
    return study


def image_items(images: Sequence[CTImage]) -> list[Dataset]:
    """A reference to each Instance, once, and to those of its frames that are among `images` (PS3.3 10.3)."""
    frames: dict[tuple[str, str], list[int]] = {}
    for image in images:
        of = frames.setdefault((image.sop_class_uid, image.sop_instance_uid), [])
        if image.frame is not None:
            of.append(image.frame)
    items = []
    for (sop_class, uid), numbers in frames.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        if numbers:
            item.ReferencedFrameNumber = sorted(numbers)
        items.append(item)
    return items
