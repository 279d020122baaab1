"""What came of the look at the patient's earlier CT: earlier nodules, and how each finding changed. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from dicom_node.domain import Point

# Limits of agreement of repeated volumetry are about a quarter of the volume, so guidelines count a change from there
# on (British Thoracic Society, Thorax 2015;70:ii1; Fleischner Society, Radiology 2017;285:584).
SIGNIFICANT_CHANGE_PERCENT = 25.0
RULE = (
    f"Grown or shrunk: the volume changed by {SIGNIFICANT_CHANGE_PERCENT:g} % or more, and by more than the 95 % "
    "uncertainty of both volumes; else stable. New: the earlier CT shows the place without a nodule."
)

Change = Literal["new", "grown", "stable", "shrunk", "not_judged"]
Outcome = Literal["compared", "no_prior", "no_prior_result", "not_registered", "not_available"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorNodule:
    """A nodule as our earlier report and segmentation have it. center_mm: LPS mm of the earlier CT's own frame.

    volume_error_mm3: standard deviation of the volume; 0 where nothing is known of it.
    """

    tracking_identifier: str
    tracking_uid: str
    center_mm: Point
    volume_mm3: float
    long_axis_mm: float
    short_axis_mm: float
    volume_error_mm3: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorExam:
    """The earlier CT series and the report on it that findings are compared with.

    acquired_at: on the scanner's own clock, without a time zone.
    """

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
    """What became of one finding, `number` from 1.

    change: not_judged where nothing can be said: the earlier CT does not show the place, shows tissue there that
        nobody marked, was made within a day, or holds two nodules of which either may be this one.
    prior: the same nodule then; None for a new one, and where none can be named.
    doubling_time: None without a prior, within a day, and where the two volumes are equal.
    note: one English sentence with the reason of not_judged; else empty.
    """

    number: int
    change: Change
    prior: PriorNodule | None
    volume_change_percent: float | None
    doubling_time: DoublingTime | None
    note: str = ""

    def __post_init__(self) -> None:
        measured = self.prior is not None and self.volume_change_percent is not None
        if self.change in ("grown", "stable", "shrunk") and not measured:
            raise ValueError(f"{self.change} needs an earlier nodule and the difference")
        if self.change == "new" and self.prior is not None:
            raise ValueError("a new nodule has no earlier one")
        if (self.change == "not_judged") != bool(self.note):
            raise ValueError("what is not judged has its reason, and nothing else does")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The statement about growth that a report makes.

    text: one English sentence, without patient data, that says what was compared or why nothing was.
    interval_days: from the earlier CT to this one. quality: figures of the registration, by name with unit.
    changes: one for each finding, in their order, where outcome is compared; else empty.
    gone: earlier nodules without a finding now, at whose place this CT shows lung.
    unmarked: earlier nodules without a finding now, though this CT still shows tissue at their place.
    not_covered: earlier nodules outside what this CT shows.
    """

    outcome: Outcome
    text: str
    prior: PriorExam | None = None
    interval_days: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    changes: tuple[NoduleChange, ...] = ()
    gone: tuple[PriorNodule, ...] = ()
    unmarked: tuple[PriorNodule, ...] = ()
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
