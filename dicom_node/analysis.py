"""One series as a straight line: files -> CTSeries -> Volume -> Detection -> SEG, SR and pictures, each stage timed.

Called by the node's workflow and by `infer` alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pydicom.dataset import Dataset

from dicom_node.comparison import Comparison, NoPrior, PriorFiles
from dicom_node.config import GateConfig
from dicom_node.domain import Detection, ModelIdentity, Volume
from dicom_node.errors import SeriesRejected
from dicom_node.results.build import Results, build_rejection, build_results, finding_rows
from dicom_node.results.montage import render_finding, to_png
from dicom_node.results.part10 import to_bytes
from dicom_node.results.reading import Predecessor
from dicom_node.series import read_series, to_volume


class Detector(Protocol):
    """What finds nodules in a Volume; `dicom_node.model.detector.Detector` is one."""

    @property
    def identity(self) -> ModelIdentity: ...

    def detect(self, volume: Volume, *, progress: Callable[[float], None] | None = None) -> Detection: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a result says about where it comes from. The same origin and series give the same bytes.

    manifest_sha256: the set of instances. made_at: content date and time. evidence: why the series counts as
    complete, one line. complete: False where it was taken at the time limit.
    predecessor: study, series and instance UID of the report this one follows.
    """

    manifest_sha256: str
    made_at: datetime
    evidence: str
    complete: bool
    predecessor: tuple[str, str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """A finished DICOM object as the bytes of its Part 10 file."""

    sop_instance_uid: str
    sop_class_uid: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """objects: "seg" (where there are findings) and "sr". pictures: file name -> PNG. findings: as JSON has them."""

    objects: Mapping[str, ResultFile]
    pictures: Mapping[str, bytes]
    findings: Sequence[dict[str, Any]]
    model: ModelIdentity
    timings_s: Mapping[str, float]
    comparison: Comparison | None = None


def analyse(
    paths: Sequence[Path | str],
    detector: Detector,
    limits: GateConfig,
    origin: Origin,
    *,
    prior: PriorFiles | NoPrior | None = None,
    progress: Callable[[float], None] | None = None,
) -> Analysis:
    """The whole job on the files of one series. Raises SeriesRejected, UnreadableInstance, ResultError.

    prior: the earlier CT to compare with, or why there is none; None where nobody wants a comparison.
    """
    timings: dict[str, float] = {}
    with _timed(timings, "read"):
        series = read_series(paths, limits)
    with _timed(timings, "volume"):
        volume = to_volume(series)
    detection = detector.detect(volume, progress=progress)
    timings |= detection.timings_s
    with _timed(timings, "results"):
        results = build_results(
            series,
            volume,
            detection,
            evidence=origin.evidence,
            manifest_sha256=origin.manifest_sha256,
            made_at=origin.made_at,
            complete=origin.complete,
            predecessor=_predecessor(origin),
        )
        objects = {made.kind: _file(made.ds) for made in results.objects}
    with _timed(timings, "pictures"):
        pictures = _pictures(volume, detection, results)
    return Analysis(
        objects=objects,
        pictures=pictures,
        findings=finding_rows(detection.findings, results.measurements, results.tracking_uids),
        model=detection.model,
        timings_s=timings,
    )


def rejection(headers: Sequence[Dataset], rejected: SeriesRejected, origin: Origin) -> ResultFile:
    """The report that says why a series was not analysed. Raises ResultError where there is no study to put it in."""
    instances = [(str(h.get("SOPClassUID") or ""), str(h.get("SOPInstanceUID") or "")) for h in headers]
    report = build_rejection(
        headers[0],
        instances,
        rejected,
        evidence=origin.evidence,
        manifest_sha256=origin.manifest_sha256,
        made_at=origin.made_at,
        complete=origin.complete,
        predecessor=_predecessor(origin),
    )
    return _file(report)


def _predecessor(origin: Origin) -> Predecessor | None:
    if origin.predecessor is None:
        return None
    study_uid, series_uid, sop_instance_uid = origin.predecessor
    return Predecessor(study_uid=study_uid, series_uid=series_uid, sop_instance_uid=sop_instance_uid)


def _file(ds: Dataset) -> ResultFile:
    return ResultFile(sop_instance_uid=str(ds.SOPInstanceUID), sop_class_uid=str(ds.SOPClassUID), data=to_bytes(ds))


def _pictures(volume: Volume, detection: Detection, results: Results) -> dict[str, bytes]:
    shown = enumerate(zip(detection.findings, results.measurements, strict=True), start=1)
    return {f"finding_{n}.png": to_png(render_finding(volume, found, measured, n)) for n, (found, measured) in shown}


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start
