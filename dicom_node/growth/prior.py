"""An earlier report of ours and its Segmentation, as they come from an archive -> PriorExam, or PriorUnusable.

Nothing is believed because it is said twice: what the SR states has to follow from the SEG's voxels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from dicom_node.comparison import PriorExam, PriorNodule
from dicom_node.errors import PriorUnusable
from dicom_node.growth.segments import Segment, read_segments
from dicom_node.identity import MANUFACTURER, MODEL_NAME
from dicom_node.logs import describe

_CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_MOST_ITEMS = 100_000
_TOLERANCE_MM3 = 0.01  # the SR has three decimals
_TOLERANCE = 1e-4
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
# A time that is not given lies in the middle of its day: the interval is then wrong by half a day at most.
_NOON = "120000"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """What a TID 1411 group of ours states."""

    identifier: str
    uid: str
    segment: int
    segmentation: str
    volume_mm3: float
    long_axis_mm: float
    short_axis_mm: float


def is_ours(header: Dataset) -> bool:
    """Whether this node made the object, by its General Equipment module alone (PS3.3 C.7.5.1)."""
    return (header.get("Manufacturer"), header.get("ManufacturerModelName")) == (MANUFACTURER, MODEL_NAME)


def acquired_at(header: Dataset) -> datetime | None:
    """When the image of a header was acquired, on the scanner's own clock; None where it does not say.

    The first of these that is a date: AcquisitionDateTime, AcquisitionDate, SeriesDate, StudyDate, with its own time;
    without one, noon. ContentDate is not asked: it may be that of a reconstruction, years later.
    """
    for keyword in ("AcquisitionDateTime", "AcquisitionDate", "SeriesDate", "StudyDate"):
        text = str(header.get(keyword) or "").strip()
        if keyword != "AcquisitionDateTime":
            text += str(header.get(keyword.replace("Date", "Time")) or "").strip()
        moment = _moment(text)
        if moment is not None:
            return moment
    return None


def _moment(text: str) -> datetime | None:
    """DT, or DA and TM as one, to the second (PS3.5 6.2). An offset from UTC is left out, as dates have none."""
    digits = re.match(r"\d*", text.replace(":", ""))
    assert digits is not None  # noqa: S101  # it matches anything
    if len(digits[0]) < 8:
        return None
    date, time = digits[0][:8], digits[0][8:14]
    try:
        return datetime.strptime(date + (time.ljust(6, "0") if len(time) >= 2 else _NOON), "%Y%m%d%H%M%S")
    except ValueError:  # the date may be good though the time is none, as in a leap second
        return _moment(date) if time else None


def read_prior(report: Dataset, segmentation: Dataset | None, image: Dataset | None = None) -> PriorExam:
    """The earlier exam with its nodules.

    segmentation: None where the report marks nothing. image: header of an image of the earlier series, which knows when
    it was acquired; without it the report's StudyDate is taken, which is that of the images.

    Raises PriorUnusable.
    """
    try:
        return _read(report, segmentation, image)
    except PriorUnusable:
        raise
    except _UNREADABLE as err:
        raise PriorUnusable(f"the earlier report can't be read: {describe(err)}") from err


def _read(report: Dataset, segmentation: Dataset | None, image: Dataset | None) -> PriorExam:
    _require(is_ours(report), "the earlier report was not made by this software")
    _require(report.SOPClassUID == Comprehensive3DSRStorage, "the earlier report is no Comprehensive 3D SR")
    _require_analysed(report)
    study_uid, series_uid = _source(report)
    groups = [_group(item) for item in _items(report) if _is_volumetric_group(item)]
    _require(
        groups or not any(_named(item, codes.DCM.MeasurementGroup) for item in _items(report)),
        "the earlier report has no volumes",
    )
    nodules: tuple[PriorNodule, ...] = ()
    if groups:
        _require(segmentation is not None, "the earlier report marks nodules, and its segmentation is not there")
        assert segmentation is not None  # noqa: S101  # said above
        _require_belongs(segmentation, groups, study_uid, series_uid)
        segments = read_segments(segmentation)
        _require(sorted(segments) == sorted(group.segment for group in groups), "report and segmentation disagree")
        nodules = tuple(_nodule(group, segments[group.segment]) for group in groups)
    return PriorExam(
        study_uid=study_uid,
        series_uid=series_uid,
        acquired_at=_time_of(report, image, series_uid),
        report_sop_class_uid=str(report.SOPClassUID),
        report_sop_instance_uid=_uid(report.SOPInstanceUID),
        report_series_uid=_uid(report.SeriesInstanceUID),
        nodules=nodules,
    )


def _time_of(report: Dataset, image: Dataset | None, series_uid: str) -> datetime:
    _require(
        image is None or image.get("SeriesInstanceUID") == series_uid,
        "the image is none of the earlier report's series",
    )
    stated = Dataset()
    for keyword in ("StudyDate", "StudyTime"):  # its SeriesDate is that of the report
        setattr(stated, keyword, report.get(keyword) or "")
    moment = (acquired_at(image) if image is not None else None) or acquired_at(stated)
    if moment is None:
        raise PriorUnusable("the earlier exam has no date")
    return moment


def _require_analysed(report: Dataset) -> None:
    summaries = [
        item.ConceptCodeSequence[0]
        for item in _items(report)
        if _named(item, codes.DCM.CADProcessingAndFindingsSummary)
    ]
    analysed = (codes.cid6047.AllAlgorithmsSucceededWithFindings, codes.cid6047.AllAlgorithmsSucceededWithoutFindings)
    _require(
        len(summaries) == 1 and any(summaries[0].CodeValue == code.value for code in analysed),
        "the earlier report is on a series that was not analysed",
    )


def _source(report: Dataset) -> tuple[str, str]:
    """Study and series of the images that the report is about (PS3.3 C.17.2.1)."""
    series = {
        (_uid(study.StudyInstanceUID), _uid(series.SeriesInstanceUID))
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        if any(instance.ReferencedSOPClassUID in _CT_CLASSES for instance in series.ReferencedSOPSequence)
    }
    _require(len(series) == 1, f"the earlier report is about {len(series)} CT series")
    ((study_uid, series_uid),) = series
    _require(report.StudyInstanceUID == study_uid, "the earlier report lies in another study than its images")
    return study_uid, series_uid


def _require_belongs(segmentation: Dataset, groups: Sequence[_Group], study_uid: str, series_uid: str) -> None:
    _require(is_ours(segmentation), "the earlier segmentation was not made by this software")
    meant = {group.segmentation for group in groups}
    _require(meant == {str(segmentation.SOPInstanceUID)}, "the segmentation is not the one that the report refers to")
    _require(segmentation.StudyInstanceUID == study_uid, "report and segmentation lie in different studies")
    sources = [str(item.SeriesInstanceUID) for item in segmentation.ReferencedSeriesSequence]
    _require(sources == [series_uid], "report and segmentation are of different series")


def _nodule(group: _Group, segment: Segment) -> PriorNodule:
    _require(segment.tracking_uid == group.uid, f"{group.identifier}: Tracking UIDs of report and segmentation differ")
    _require(
        abs(segment.volume_mm3 - group.volume_mm3) <= _TOLERANCE_MM3 + _TOLERANCE * group.volume_mm3,
        f"{group.identifier}: {group.volume_mm3:.3f} mm3 in the report, {segment.volume_mm3:.3f} mm3 in its segment",
    )
    return PriorNodule(
        tracking_identifier=group.identifier,
        tracking_uid=group.uid,
        center_mm=segment.center_mm,
        volume_mm3=group.volume_mm3,
        long_axis_mm=group.long_axis_mm,
        short_axis_mm=group.short_axis_mm,
        volume_error_mm3=segment.volume_error_mm3,
    )


def _is_volumetric_group(item: Dataset) -> bool:
    return _named(item, codes.DCM.MeasurementGroup) and any(
        _named(child, codes.DCM.ReferencedSegment) for child in item.get("ContentSequence", ())
    )


def _group(item: Dataset) -> _Group:
    segment = _only(item, codes.DCM.ReferencedSegment).ReferencedSOPSequence[0]
    identifier = str(_only(item, codes.DCM.TrackingIdentifier).TextValue)
    # It comes back in our own reports and lists.
    _require(bool(re.fullmatch(r"Nodule \d{1,6}", identifier)), "a Tracking Identifier is none of ours")
    return _Group(
        identifier=identifier,
        uid=_uid(_only(item, codes.DCM.TrackingUniqueIdentifier).UID),
        segment=int(segment.ReferencedSegmentNumber),
        segmentation=_uid(segment.ReferencedSOPInstanceUID),
        volume_mm3=_number(item, codes.SCT.Volume, codes.UCUM.CubicMillimeter),
        long_axis_mm=_number(item, codes.SCT.LongAxis, codes.UCUM.Millimeter),
        short_axis_mm=_number(item, codes.SCT.ShortAxis, codes.UCUM.Millimeter),
    )


def _number(group: Dataset, name: Code, unit: Code) -> float:
    measured = _only(group, name).MeasuredValueSequence[0]
    value = float(measured.NumericValue)
    _require(measured.MeasurementUnitsCodeSequence[0].CodeValue == unit.value, f"{name.meaning} is not in {unit.value}")
    _require(math.isfinite(value) and value > 0, f"{name.meaning} is {value}")
    return value


def _only(group: Dataset, name: Code) -> Dataset:
    found: list[Dataset] = [child for child in group.ContentSequence if _named(child, name)]
    _require(len(found) == 1, f"a measurement group has {len(found)} items {name.meaning}")
    return found[0]


def _named(item: Dataset, name: Code) -> bool:
    names = item.get("ConceptNameCodeSequence")
    return bool(names) and (names[0].get("CodeValue"), names[0].get("CodingSchemeDesignator")) == (
        name.value,
        name.scheme_designator,
    )


def _items(report: Dataset) -> Iterator[Dataset]:
    """All content items below the root, without recursion: how deep they lie is the sender's choice."""
    waiting = list(report.get("ContentSequence") or ())
    for _ in range(_MOST_ITEMS):
        if not waiting:
            return
        item = waiting.pop()
        waiting += item.get("ContentSequence") or ()
        yield item
    raise PriorUnusable(f"the earlier report has more than {_MOST_ITEMS} content items")


def _uid(value: object) -> str:
    uid = UID(str(value))
    _require(uid.is_valid, "a UID is none")
    return str(uid)


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise PriorUnusable(otherwise)
