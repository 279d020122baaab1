"""Readings and Refusals of the fake CT: what every kind of result object is made from."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dicom_node.comparison import Comparison, DoublingTime, NoduleChange, PriorExam, PriorNodule
from dicom_node.domain import CTSeries, Finding, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.results.build import read, refuse
from dicom_node.results.reading import Reading, Refusal
from tests.fakes.findings import JOB, ball, detection_of


def two_balls(volume: Volume) -> tuple[Finding, Finding]:
    return ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right")


def reading_of(series: CTSeries, volume: Volume, *findings: Finding, **job: Any) -> Reading:
    return read(series, volume, detection_of(*findings), **{**JOB, **job})


def refusal_of(series: CTSeries) -> Refusal:
    return refuse(
        series.header,
        [(image.sop_class_uid, image.sop_instance_uid) for image in series.images],
        SeriesRejected(Reason.SLICE_GAP, "a gap of 5.0 mm after slice 12"),
        **JOB,
    )


def compared(changes: int) -> Comparison:
    """The first finding has grown, the others are new, one earlier nodule is gone."""
    earlier = PriorNodule(
        tracking_identifier="Nodule 1",
        tracking_uid="2.25.77",
        center_mm=(0.0, 0.0, 0.0),
        volume_mm3=100.0,
        long_axis_mm=6.1,
        short_axis_mm=5.2,
    )
    exam = PriorExam(
        study_uid="1.2.3.1",
        series_uid="1.2.3.2",
        acquired_at=datetime(2025, 1, 2),
        report_sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        report_sop_instance_uid="1.2.3.3",
        report_series_uid="1.2.3.4",
        nodules=(earlier,),
    )
    time = DoublingTime(days=182.3, low=150.1, high=240.2)
    grown = NoduleChange(number=1, change="grown", prior=earlier, volume_change_percent=163.6, doubling_time=time)
    new = [
        NoduleChange(number=number, change="new", prior=None, volume_change_percent=None, doubling_time=None)
        for number in range(2, changes + 1)
    ]
    return Comparison(
        outcome="compared",
        text="Compared with our report on the CT of 2025-01-02",
        prior=exam,
        interval_days=365.0,
        changes=(grown, *new),
        gone=(earlier,),
    )
