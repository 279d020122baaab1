"""CTSeries, Volume, Detection -> SEG and SR that belong together and have been checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from dicom_node.comparison import Comparison
from dicom_node.domain import CTSeries, Detection, Finding, ModelIdentity, Volume
from dicom_node.errors import SeriesRejected
from dicom_node.profiles import BUILT_IN_PROFILES, DEFAULT_PROFILE, ResultProfile
from dicom_node.results.headers import Origin
from dicom_node.results.measure import Measurement, measure
from dicom_node.results.objects import objects_for, refusals_for
from dicom_node.results.reading import Grounds, Made, Predecessor, Reading, Refusal
from dicom_node.results.references import Reference
from dicom_node.results.tracking import track

_DEFAULT = BUILT_IN_PROFILES[DEFAULT_PROFILE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What goes to one kind of destination for one analysed series.

    objects: in the order to send them.
    """

    reading: Reading
    objects: tuple[Made, ...]

    @property
    def seg(self) -> Dataset | None:
        """None where nothing was found, or where the profile has no SEG."""
        return self._first("seg")

    @property
    def sr(self) -> Dataset:
        found = self._first("sr")
        if found is None:
            raise ValueError("this profile has no TID 1500 report")
        return found

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return self.reading.measurements

    @property
    def tracking_uids(self) -> tuple[str, ...]:
        return tuple(item.uid for item in self.reading.tracking)

    def _first(self, kind: str) -> Dataset | None:
        return next((made.ds for made in self.objects if made.kind == kind), None)


def build_results(
    series: CTSeries,
    volume: Volume,
    detection: Detection,
    *,
    evidence: str,
    manifest_sha256: str,
    made_at: datetime,
    complete: bool = True,
    predecessor: Predecessor | None = None,
    comparison: Comparison | None = None,
    profile: ResultProfile = _DEFAULT,
) -> Results:
    """`read`, then the objects of one profile."""
    reading = read(
        series,
        volume,
        detection,
        evidence=evidence,
        manifest_sha256=manifest_sha256,
        made_at=made_at,
        complete=complete,
        predecessor=predecessor,
        comparison=comparison,
    )
    return Results(reading=reading, objects=build_objects(reading, profile))


def read(
    series: CTSeries,
    volume: Volume,
    detection: Detection,
    *,
    evidence: str,
    manifest_sha256: str,
    made_at: datetime,
    complete: bool = True,
    predecessor: Predecessor | None = None,
    predecessors: Mapping[str, Predecessor] | None = None,
    comparison: Comparison | None = None,
) -> Reading:
    """Measure and name the findings.

    evidence: why the series is held to be complete, e.g. "133 of 133 instances, contiguous; quiet time 10 s".
    complete: False after a forced time-out; the SR is then flagged PARTIAL.
    predecessor: the SR on an earlier state of the same series that this one replaces. predecessors: by name or kind
        of the new ones, where several are made.
    """
    origin = Origin(
        header=series.header,
        manifest_sha256=manifest_sha256,
        made_at=made_at,
        model=detection.model,
        words=evidence + "".join(series.left_out.values()) + (comparison.text if comparison else ""),
    )
    return Reading(
        series=series,
        volume=volume,
        detection=detection,
        measurements=tuple(measure(finding, volume) for finding in detection.findings),
        tracking=track(detection.findings, origin, comparison),
        origin=origin,
        grounds=Grounds(evidence=evidence, complete=complete, predecessor=predecessor, predecessors=predecessors or {}),
        comparison=comparison,
    )


def build_objects(reading: Reading, profile: ResultProfile) -> tuple[Made, ...]:
    """The objects of one profile, checked, in the order to send them. Equal arguments give equal bytes.

    Raises ResultError when the objects fail their own checks.
    """
    return tuple(each.made for each in objects_for(reading, {"": profile}))


def refuse(
    header: Dataset,
    instances: Iterable[tuple[str, str]],
    rejected: SeriesRejected,
    *,
    evidence: str,
    manifest_sha256: str,
    made_at: datetime,
    model: ModelIdentity | None = None,
    complete: bool = True,
    predecessor: Predecessor | None = None,
) -> Refusal:
    """What is said of a series that was not analysed, and why.

    header: any one Instance's header with its Study and Series Instance UIDs; no geometry is needed.
    instances: (SOP Class UID, SOP Instance UID) of each Instance of the series.
    model: the one that refused (NO_LUNG), if any did.

    Raises ResultError where the header lacks those UIDs: a report would belong nowhere.
    """
    origin = Origin(
        header=header,
        manifest_sha256=manifest_sha256,
        made_at=made_at,
        model=model,
        words=evidence + rejected.text,
    )
    references = tuple(
        Reference(sop_class_uid=sop_class, sop_instance_uid=sop_instance, series_uid=origin.series_uid)
        for sop_class, sop_instance in instances
        if sop_class and sop_instance
    )
    grounds = Grounds(evidence=evidence, complete=complete, predecessor=predecessor)
    return Refusal(rejected=rejected, instances=references, origin=origin, grounds=grounds)


def build_rejection(
    header: Dataset, instances: Iterable[tuple[str, str]], rejected: SeriesRejected, **job: Any
) -> Dataset:
    """`refuse`, then its checked TID 1500 report. Raises ResultError as `refuse` does."""
    refusal = refuse(header, instances, rejected, **job)
    [report] = refusals_for(refusal, {"": _DEFAULT})
    return report.made.ds


def finding_rows(
    findings: Sequence[Finding], measurements: Sequence[Measurement], tracking_uids: Sequence[str]
) -> list[dict[str, Any]]:
    """The findings as JSON values; `number` is the segment's number and that of "Nodule n"."""
    return [
        {
            "number": number,
            "tracking_uid": uid,
            "center_mm": [round(value, 3) for value in finding.center_mm],
            "volume_mm3": round(measurement.volume_mm3, 3),
            "long_axis_mm": round(measurement.long_axis_mm, 3),
            "short_axis_mm": round(measurement.short_axis_mm, 3),
            "mean_hu": round(measurement.mean_hu, 3),
            "side": finding.side,
            "score": round(finding.score, 6),
        }
        for number, (finding, measurement, uid) in enumerate(
            zip(findings, measurements, tracking_uids, strict=True), start=1
        )
    ]
