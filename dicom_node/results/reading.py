"""What was seen in one series, or why nothing was looked at: all that the objects which report it are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydicom.dataset import Dataset

from dicom_node.comparison import Comparison
from dicom_node.domain import CTSeries, Detection, Finding, ModelIdentity, Volume
from dicom_node.errors import SeriesRejected
from dicom_node.results.headers import Origin
from dicom_node.results.measure import Measurement
from dicom_node.results.references import Reference
from dicom_node.results.tracking import Tracking


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """The report that this one replaces."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What the statement of a report rests on.

    evidence: why the node holds the series to be complete, e.g. "133 of 133 instances, contiguous".
    complete: False where the node gave up waiting: the report is flagged PARTIAL.
    predecessor: the report on the same series that this one replaces.
    predecessors: where several are made, those that they replace, by name or kind of the new ones.
    """

    evidence: str
    complete: bool = True
    predecessor: Predecessor | None = None
    predecessors: Mapping[str, Predecessor] = field(default_factory=dict)

    def for_report(self, kind: str, form: str) -> Grounds:
        """The same with the predecessor of one report: of its form, else any of its kind, else the common one."""
        old = self.predecessors.get(name_of(kind, form)) or self.predecessors.get(kind) or self.predecessor
        return replace(self, predecessor=old)

    def allows(self, sop_instance_uid: str) -> bool:
        """Whether a report may name this one as replaced."""
        known = [*self.predecessors.values(), *([self.predecessor] if self.predecessor else [])]
        return any(old.sop_instance_uid == sop_instance_uid for old in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One analysed series. measurements, tracking: of the Detection's findings, in their order.

    comparison: None where nobody asked for one.
    """

    series: CTSeries
    volume: Volume
    detection: Detection
    measurements: tuple[Measurement, ...]
    tracking: tuple[Tracking, ...]
    origin: Origin
    grounds: Grounds
    comparison: Comparison | None = None

    def __post_init__(self) -> None:
        count = len(self.detection.findings)
        if not count == len(self.measurements) == len(self.tracking):
            raise ValueError("each finding has one measurement and one name")
        if self.comparison is not None and len(self.comparison.changes) not in (0, count):
            raise ValueError("a comparison speaks of all findings or of none")

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.detection.findings

    @property
    def model(self) -> ModelIdentity:
        return self.detection.model


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One series that was not analysed. instances: each Instance of it, as far as known; no geometry is needed."""

    rejected: SeriesRejected
    instances: tuple[Reference, ...]
    origin: Origin
    grounds: Grounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A finished object.

    kind: one of profiles.KINDS, for ledger and lists. form: in what it differs from others of its kind that may be
    made of the same series; empty for the usual one.
    """

    kind: str
    ds: Dataset
    form: str = ""

    @property
    def name(self) -> str:
        """Its file's name without suffix: seg, seg_full, sr ... No other object of the series has it."""
        return name_of(self.kind, self.form)


def name_of(kind: str, form: str) -> str:
    return f"{kind}_{form}" if form else kind
