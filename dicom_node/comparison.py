"""What came of the look at the patient's earlier CT: earlier nodules, and how each finding changed. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from dicom_node.domain import Point

Change = Literal["new", "grown", "stable", "shrunk"]
Outcome = Literal["compared", "no_prior", "no_prior_result", "not_registered", "not_available"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorNodule:
    """A nodule as our earlier report and segmentation have it. center_mm: LPS mm of the earlier CT's own frame."""

    tracking_identifier: str
    tracking_uid: str
    center_mm: Point
    volume_mm3: float
    long_axis_mm: float
    short_axis_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorExam:
    """The earlier CT series and the report on it that findings are compared with."""

    study_uid: str
    series_uid: str
    acquired_at: datetime
    report_sop_class_uid: str
    report_sop_instance_uid: str
    report_series_uid: str
    nodules: tuple[PriorNodule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoublingTime:
    """Volume doubling time in days; negative where the nodule shrinks, None where a bound is infinite.

    low, high: 95 % interval that follows from the uncertainty of both volumes.
    """

    days: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoduleChange:
    """What became of one finding, `number` from 1. prior, the differences and doubling_time: None for a new one."""

    number: int
    change: Change
    prior: PriorNodule | None
    volume_change_percent: float | None
    doubling_time: DoublingTime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The statement about growth that a report makes.

    text: one English sentence, without patient data, that says what was compared or why nothing was.
    interval_days: from the earlier CT to this one. quality: figures of the registration, by name with unit.
    changes: one for each finding, in their order, where outcome is compared; else empty.
    gone: earlier nodules inside this CT that no finding answers to.
    not_covered: earlier nodules outside what this CT shows.
    """

    outcome: Outcome
    text: str
    prior: PriorExam | None = None
    interval_days: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    changes: tuple[NoduleChange, ...] = ()
    gone: tuple[PriorNodule, ...] = ()
    not_covered: tuple[PriorNodule, ...] = ()

    def __post_init__(self) -> None:
        if (self.outcome == "compared") != (self.prior is not None and self.interval_days is not None):
            raise ValueError("a comparison names its earlier exam and the interval, and nothing else does")
        if [change.number for change in self.changes] != list(range(1, len(self.changes) + 1)):
            raise ValueError("changes follow the findings' numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorFiles:
    """The earlier CT as files: its images, our report on it and the segmentation, None where nothing was found then."""

    images: tuple[Path, ...]
    report: Path
    segmentation: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoPrior:
    """Why there is no earlier CT to compare with. text: one English sentence, without patient data."""

    outcome: Literal["no_prior", "no_prior_result", "not_available"]
    text: str
