"""CTSeries, Volume, Detection -> SEG and SR that belong together and have been checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from dicom_node.domain import CTSeries, Detection, Finding, ModelIdentity, Volume
from dicom_node.errors import SeriesRejected
from dicom_node.results.check import check_results
from dicom_node.results.headers import Origin
from dicom_node.results.measure import Measurement, measure
from dicom_node.results.seg import build_seg
from dicom_node.results.sr import (
    Grounds,
    Predecessor,
    Reference,
    build_findings_report,
    build_none_found_report,
    build_not_analysed_report,
)
from dicom_node.results.tracking import track


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What goes back to the PACS for one analysed series.

    seg: None where nothing was found. measurements, tracking_uids: in the order of the Detection's findings.
    """

    seg: Dataset | None
    sr: Dataset
    measurements: tuple[Measurement, ...]
    tracking_uids: tuple[str, ...]

    @property
    def objects(self) -> tuple[Dataset, ...]:
        """In the order to send them: the SR refers to the SEG."""
        return (self.sr,) if self.seg is None else (self.seg, self.sr)


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
    omit_empty_frames: bool = True,
) -> Results:
    """Measure the findings and build the objects that report them.

    evidence: why the series is held to be complete, e.g. "133 of 133 instances, contiguous; quiet time 10 s".
    complete: False after a forced time-out; the SR is then flagged PARTIAL.
    predecessor: the SR on an earlier state of the same series that this one replaces.
    omit_empty_frames: sparse SEG frames; a setting of the destination.

    Equal arguments give equal bytes. Raises ResultError when the objects fail their own checks.
    """
    origin = Origin(
        header=series.header,
        manifest_sha256=manifest_sha256,
        made_at=made_at,
        model=detection.model,
        words=evidence + "".join(series.left_out.values()),
    )
    grounds = Grounds(evidence=evidence, complete=complete, predecessor=predecessor)
    tracking = track(detection.findings, origin)
    measurements = tuple(measure(finding, volume) for finding in detection.findings)
    if detection.findings:
        seg = build_seg(series, detection.findings, tracking, origin, omit_empty_frames=omit_empty_frames)
        sr = build_findings_report(series, detection, measurements, tracking, seg, origin, grounds)
    else:
        seg = None
        sr = build_none_found_report(series, detection, origin, grounds)
    check_results(seg, sr, series)
    return Results(seg=seg, sr=sr, measurements=measurements, tracking_uids=tuple(item.uid for item in tracking))


def build_rejection(
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
) -> Dataset:
    """The SR that says that a series was not analysed, and why.

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
    references = [
        Reference(sop_class_uid=sop_class, sop_instance_uid=sop_instance, series_uid=origin.series_uid)
        for sop_class, sop_instance in instances
    ]
    grounds = Grounds(evidence=evidence, complete=complete, predecessor=predecessor)
    return build_not_analysed_report(rejected, references, origin, grounds)


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
