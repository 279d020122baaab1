"""Finding and its numbers -> the measurement groups of a TID 1500 report.

Up to three groups a finding, of one Tracking Identifier and Unique Identifier: the nodule as a volume, which is its
segment (TID 1411); its outline on its largest slice (TID 1410), which viewers jump to and draw; the two calipers there
with their ends (TID 1501: it is TID 300, and no ROI's TID 1419, that has a place for coordinates). The first five
numbers are those that OHIF writes beside the outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.comparison import NoduleChange
from dicom_node.domain import CTImage
from dicom_node.results import quantities, sr_codes
from dicom_node.results.measure import Axis, Measurement
from dicom_node.results.narrative import change_of
from dicom_node.results.reading import Reading
from dicom_node.results.sr_content import Item, Relationship, line, number, outline, rounded, text
from dicom_node.results.tracking import LATERALITY

_MM, _MM3 = codes.UCUM.Millimeter, codes.UCUM.CubicMillimeter
_HU, _DAY = codes.UCUM.HounsfieldUnit, codes.UCUM.Day


def groups_of(reading: Reading, finding_number: int, seg: Dataset | None) -> list[Item]:
    """All groups of one finding, which is segment `finding_number` of `seg`, if there is one."""
    numbers = _numbers(reading, finding_number)
    if seg is None:
        return [_planar(reading, finding_number, numbers), _calipers(reading, finding_number)]
    measured = reading.measurements[finding_number - 1]
    return [
        _volumetric(reading, finding_number, numbers, seg),
        _planar(reading, finding_number, _axes(measured)),
        _calipers(reading, finding_number),
    ]


def _volumetric(reading: Reading, finding_number: int, numbers: Sequence[sr.Measurement], seg: Dataset) -> Item:
    # Not ReferencedSegment.from_segmentation: in highdicom 0.28 it fails on a SEG of one segment.
    segment = sr.ReferencedSegment(
        sop_class_uid=seg.SOPClassUID,
        sop_instance_uid=seg.SOPInstanceUID,
        segment_number=finding_number,
        source_series=sr.SourceSeriesForSegmentation(reading.series.series_uid),
    )
    made = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(reading, finding_number),
        referenced_segment=segment,
        finding_type=codes.SCT.Nodule,
        finding_sites=[_site(reading, finding_number)],
        measurements=numbers,
        qualitative_evaluations=_qualities(reading, finding_number),
    )
    return _with_texts(made, reading, finding_number)


def _planar(reading: Reading, finding_number: int, numbers: Sequence[sr.Measurement]) -> Item:
    """It has what is said of the whole finding only where there is no volumetric group to say it."""
    measured = reading.measurements[finding_number - 1]
    alone = len(numbers) > 2
    made = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(reading, finding_number),
        referenced_region=sr.ImageRegion(
            graphic_type=sr.GraphicTypeValues.POLYLINE,
            graphic_data=outline(measured.contours[0]),
            source_image=_source(_image(reading, finding_number)),
        ),
        finding_type=codes.SCT.Nodule,
        finding_sites=[_site(reading, finding_number)],
        measurements=numbers,
        qualitative_evaluations=_qualities(reading, finding_number) if alone else None,
    )
    return _with_texts(made, reading, finding_number) if alone else cast(Item, made[0])


def _calipers(reading: Reading, finding_number: int) -> Item:
    made = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(reading, finding_number),
        finding_type=codes.SCT.Nodule,
        finding_sites=[_site(reading, finding_number)],
        measurements=_axes(reading.measurements[finding_number - 1], drawn_on=_image(reading, finding_number)),
    )
    return cast(Item, made[0])


def _tracking(reading: Reading, finding_number: int) -> sr.TrackingIdentifier:
    name = reading.tracking[finding_number - 1]
    return sr.TrackingIdentifier(uid=name.uid, identifier=name.identifier)


def _image(reading: Reading, finding_number: int) -> CTImage:
    return reading.series.images[reading.measurements[finding_number - 1].slice_index]


def _source(image: CTImage) -> sr.SourceImageForRegion:
    return sr.SourceImageForRegion(
        referenced_sop_class_uid=image.sop_class_uid,
        referenced_sop_instance_uid=image.sop_instance_uid,
        referenced_frame_numbers=None if image.frame is None else [image.frame],
    )


def _site(reading: Reading, finding_number: int) -> sr.FindingSite:
    side = reading.findings[finding_number - 1].side
    return sr.FindingSite(anatomic_location=codes.SCT.Lung, laterality=LATERALITY[side] if side else None)


def _numbers(reading: Reading, finding_number: int) -> list[sr.Measurement]:
    measured = reading.measurements[finding_number - 1]
    change = change_of(reading, finding_number)
    mean, *others = _attenuations(measured)
    return [
        sr.Measurement(
            name=codes.SCT.Volume,
            value=rounded(measured.volume_mm3),
            unit=_MM3,
            method=codes.DCM.SumOfSegmentedVoxelMethodForVolume,
        ),
        *_axes(measured),
        sr.Measurement(
            name=codes.SCT.Diameter,
            value=measured.mean_diameter_mm,
            unit=_MM,
            derivation=codes.SCT.Mean,
            method=sr_codes.MEAN_OF_AXES,
        ),
        mean,
        sr.Measurement(name=sr_codes.VOLUME_SD, value=rounded(measured.volume_error_mm3), unit=_MM3),
        *([] if change is None else _changes(change, reading)),
        *others,
        sr.Measurement(
            name=codes.SCT.Diameter,
            value=rounded(measured.equivalent_diameter_mm),
            unit=_MM,
            method=sr_codes.EQUAL_SPHERE,
        ),
        _score(reading, finding_number),
    ]


def _axes(measured: Measurement, *, drawn_on: CTImage | None = None) -> list[sr.Measurement]:
    return [
        sr.Measurement(
            name=name,
            value=rounded(axis.length_mm),
            unit=_MM,
            referenced_coordinates=None if drawn_on is None else [_coordinates(axis, drawn_on)],
        )
        for name, axis in ((codes.SCT.LongAxis, measured.long_axis), (codes.SCT.ShortAxis, measured.short_axis))
    ]


def _coordinates(axis: Axis, image: CTImage) -> sr.CoordinatesForMeasurement:
    return sr.CoordinatesForMeasurement(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=line(axis),
        source_image=_source(image),
        purpose=codes.DCM.Path,
    )


def _attenuations(measured: Measurement) -> list[sr.Measurement]:
    """The mean first."""
    values = [
        (codes.SCT.Mean, measured.mean_hu),
        (codes.SCT.StandardDeviation, measured.sd_hu),
        *((sr_codes.PERCENTILES[rank], hu) for rank, hu in sorted(measured.percentiles_hu.items())),
    ]
    return [
        sr.Measurement(name=codes.DCM.AttenuationCoefficient, value=rounded(hu), unit=_HU, derivation=derivation)
        for derivation, hu in values
    ]


def _score(reading: Reading, finding_number: int) -> sr.Measurement:
    score = reading.findings[finding_number - 1].score
    made = sr.Measurement(name=sr_codes.SCORE, value=rounded(score), unit=codes.UCUM.NoUnits)
    threshold = number(
        sr_codes.OPERATING_POINT, reading.model.operating_point, codes.UCUM.NoUnits, Relationship.INFERRED_FROM
    )
    made[0].ContentSequence = sr.ContentSequence([threshold])
    return made


def _changes(change: NoduleChange, reading: Reading) -> list[sr.Measurement]:
    """Against the earlier CT. Bounds of the doubling time that are infinite are left out."""
    prior, time = change.prior, change.doubling_time
    interval_days = None if prior is None or reading.comparison is None else reading.comparison.interval_days
    values = (
        (sr_codes.VOLUME_CHANGE, change.volume_change_percent, codes.UCUM.Percent),
        (sr_codes.DOUBLING_TIME, None if time is None else time.days, _DAY),
        (sr_codes.DOUBLING_TIME_LOW, None if time is None else time.low, _DAY),
        (sr_codes.DOUBLING_TIME_HIGH, None if time is None else time.high, _DAY),
        (sr_codes.EARLIER_VOLUME, None if prior is None else prior.volume_mm3, _MM3),
        (sr_codes.EARLIER_LONG_AXIS, None if prior is None else prior.long_axis_mm, _MM),
        (sr_codes.EARLIER_SHORT_AXIS, None if prior is None else prior.short_axis_mm, _MM),
        (sr_codes.INTERVAL, interval_days, _DAY),
    )
    return [
        sr.Measurement(name=name, value=rounded(value), unit=unit) for name, value, unit in values if value is not None
    ]


def _qualities(reading: Reading, finding_number: int) -> list[sr.QualitativeEvaluation]:
    measured = reading.measurements[finding_number - 1]
    change = change_of(reading, finding_number)
    kind = measured.nodule_type
    values = [(sr_codes.TEXTURE, sr_codes.UNDETERMINED if kind is None else sr_codes.NODULE_TYPE[kind])]
    if change is not None:
        values.append((codes.DCM.QualitativeDifference, sr_codes.CHANGE[change.change]))
    return [sr.QualitativeEvaluation(name, value) for name, value in values]


def _with_texts(made: sr.ContentSequence, reading: Reading, finding_number: int) -> Item:
    """The group with what highdicom 0.28 has no argument for: evaluations in words (TID 1410, row 13)."""
    low, high = reading.measurements[finding_number - 1].box_mm
    box = f"{quantities.position(low)} to {quantities.position(high)} (patient coordinates, LPS)"
    texts = [text(sr_codes.BOUNDING_BOX, box)]
    change = change_of(reading, finding_number)
    if change is not None and change.note:
        texts.append(text(sr_codes.NOT_JUDGED, change.note))
    group = made[0]
    group.ContentSequence = sr.ContentSequence([*group.ContentSequence, *texts])
    return cast(Item, group)
