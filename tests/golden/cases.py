"""One source that exists nowhere, and what can come of it: findings, none, no analysis, a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.comparison import Comparison, DoublingTime, NoduleChange, PriorExam, PriorNodule
from dicom_node.domain import CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.results.build import read, refuse
from dicom_node.results.reading import Reading, Refusal
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import chest_like, make_ct_series
from tests.fakes.findings import JOB, ball, ball_mask, detection_of

_SHAPE = (44, 64, 64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """reading or refusal: what the objects are made of. image_uids: of the source's Instances, feet to head."""

    name: str
    image_uids: tuple[str, ...]
    reading: Reading | None = None
    refusal: Refusal | None = None


def cases(folder: Path, header: Mapping[str, Any] | None = None) -> Iterator[Case]:
    """header: over that of the fakes."""
    series = read_series(make_ct_series(folder, hu=_hu(), header=header))
    volume = to_volume(series)
    solid = ball(volume, (20, 30, 26), 6.0, score=0.9, side="right")
    faint = ball(volume, (30, 22, 42), 4.0, score=0.6, side="left")
    yield _case("findings", series, read(series, volume, detection_of(solid, faint), **JOB))
    yield _case("none_found", series, read(series, volume, detection_of(), **JOB))
    yield Case(name="not_analysed", image_uids=series.sop_instance_uids, refusal=_refusal(series))
    compared: dict[str, Any] = {**JOB, "comparison": _comparison()}
    yield _case("compared", series, read(series, volume, detection_of(solid, faint), **compared))


def _hu() -> np.ndarray[Any, np.dtype[np.int16]]:
    """Lung with a solid ball and a faint one."""
    hu = chest_like(_SHAPE)
    space = Volume(hu=hu, affine=np.array([[0, 0, 0.7, 0], [0, 0.7, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1.0]]))
    hu[ball_mask(space, (20, 30, 26), 6.0)] = 30
    hu[ball_mask(space, (30, 22, 42), 4.0)] = -600
    return hu


def _case(name: str, series: CTSeries, reading: Reading) -> Case:
    return Case(name=name, image_uids=series.sop_instance_uids, reading=reading)


def _refusal(series: CTSeries) -> Refusal:
    rejected = SeriesRejected(Reason.SLICE_GAP, "gap of 5.0 mm after slice 12")
    instances = [(image.sop_class_uid, image.sop_instance_uid) for image in series.images]
    return refuse(series.header, instances, rejected, **JOB)


def _comparison() -> Comparison:
    """The first finding has grown, the second is new, and one is gone."""
    then = _prior("Nodule 1", 1, 500.0)
    grown = NoduleChange(
        number=1,
        change="grown",
        prior=then,
        volume_change_percent=80.0,
        doubling_time=DoublingTime(days=236.0, low=180.0, high=340.0),
    )
    new = NoduleChange(number=2, change="new", prior=None, volume_change_percent=None, doubling_time=None)
    gone = _prior("Nodule 2", 2, 120.0)
    return Comparison(
        outcome="compared",
        text="Compared with the CT of 2025-07-06, 180 days earlier.",
        prior=PriorExam(
            study_uid="1.2.826.0.1.3680043.8.498.2001",
            series_uid="1.2.826.0.1.3680043.8.498.2002",
            acquired_at=datetime(2025, 7, 6, 10, 0, 0),
            report_sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
            report_sop_instance_uid="1.2.826.0.1.3680043.8.498.2003",
            report_series_uid="1.2.826.0.1.3680043.8.498.2004",
            nodules=(then, gone),
        ),
        interval_days=180.0,
        quality={"lung overlap (Dice)": 0.97},
        changes=(grown, new),
        gone=(gone,),
    )


def _prior(identifier: str, number: int, volume_mm3: float) -> PriorNodule:
    return PriorNodule(
        tracking_identifier=identifier,
        tracking_uid=f"1.2.826.0.1.3680043.8.498.2010.{number}",
        center_mm=(-4.0, 0.0, -60.0),
        volume_mm3=volume_mm3,
        long_axis_mm=9.0,
        short_axis_mm=8.0,
        volume_error_mm3=30.0,
    )
