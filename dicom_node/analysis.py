"""One series as a straight line: files -> CTSeries -> Volume -> Detection -> what destinations get, each stage timed.

Called by the node's workflow and by `infer` alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pydicom.dataset import Dataset

from dicom_node.comparison import Comparison, NoPrior, PriorFiles
from dicom_node.config import GateConfig
from dicom_node.domain import Detection, ModelIdentity, Volume
from dicom_node.errors import SeriesRejected
from dicom_node.metrics.vocabulary import Acquisition
from dicom_node.prior_reading import compared
from dicom_node.profiles import ResultProfile
from dicom_node.results.build import finding_rows, read, refuse
from dicom_node.results.masks import packed
from dicom_node.results.montage import render_finding, to_png
from dicom_node.results.objects import Addressed, objects_for, refusals_for
from dicom_node.results.part10 import to_bytes
from dicom_node.results.reading import Predecessor, Reading
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
    predecessors: Mapping[str, Predecessor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """A finished DICOM object as the bytes of its Part 10 file.

    kind: one of profiles.KINDS. name: its file's, without suffix; no other object of the series has it.
    destinations: who gets it.
    """

    kind: str
    name: str
    destinations: frozenset[str]
    sop_instance_uid: str
    sop_class_uid: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLook:
    """What another model makes of the same input. findings, pictures: as in Analysis. masks: results.masks' bytes."""

    findings: Sequence[dict[str, Any]]
    pictures: Mapping[str, bytes]
    masks: bytes
    model: ModelIdentity
    timings_s: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """objects: in the order to send them. pictures: file name -> PNG. findings: as JSON has them. made_on: the CT."""

    objects: Sequence[ResultFile]
    pictures: Mapping[str, bytes]
    findings: Sequence[dict[str, Any]]
    model: ModelIdentity
    timings_s: Mapping[str, float]
    made_on: Acquisition
    comparison: Comparison | None = None


def analyse(
    paths: Sequence[Path | str],
    detector: Detector,
    limits: GateConfig,
    origin: Origin,
    profiles: Mapping[str, ResultProfile],
    *,
    promoted_over: str | None = None,
    prior: PriorFiles | NoPrior | None = None,
    progress: Callable[[float], None] | None = None,
) -> Analysis:
    """The whole job on the files of one series. Raises SeriesRejected, UnreadableInstance, ResultError.

    profiles: of each destination.
    promoted_over: the model that the settings name, where a promotion put this one in its place.
    prior: the earlier CT to compare with, or why there is none; None where nobody wants a comparison.
    """
    timings: dict[str, float] = {}
    reading = _read(paths, detector, limits, origin, timings, promoted_over, progress)
    if prior is not None:
        with _timed(timings, "compare"):
            reading = compared(reading, prior, limits)
    with _timed(timings, "results"):
        objects = [_file(each) for each in objects_for(reading, profiles)]
    with _timed(timings, "pictures"):
        pictures = _pictures(reading)
    return Analysis(
        objects=objects,
        pictures=pictures,
        findings=_rows(reading),
        model=reading.model,
        timings_s=timings,
        made_on=_made_on(reading.series.images[0].header),
        comparison=reading.comparison,
    )


def second_look(
    paths: Sequence[Path | str],
    detector: Detector,
    limits: GateConfig,
    origin: Origin,
    *,
    progress: Callable[[float], None] | None = None,
) -> SecondLook:
    """The way of `analyse` up to the findings, and no DICOM object of them. Raises as `analyse` does."""
    timings: dict[str, float] = {}
    reading = _read(paths, detector, limits, origin, timings, None, progress)
    with _timed(timings, "pictures"):
        pictures = _pictures(reading)
    return SecondLook(
        findings=_rows(reading),
        pictures=pictures,
        masks=packed(reading.findings, reading.volume),
        model=reading.model,
        timings_s=timings,
    )


def identity_row(model: ModelIdentity) -> dict[str, str]:
    """Which model it was, as rows keep it."""
    return {"name": model.name, "version": model.version, "bundle_sha256": model.bundle_sha256}


def _read(
    paths: Sequence[Path | str],
    detector: Detector,
    limits: GateConfig,
    origin: Origin,
    timings: dict[str, float],
    promoted_over: str | None,
    progress: Callable[[float], None] | None,
) -> Reading:
    """Files -> what a model saw, measured and named. Adds each stage's seconds to `timings`."""
    with _timed(timings, "read"):
        series = read_series(paths, limits)
    with _timed(timings, "volume"):
        volume = to_volume(series)
    detection = detector.detect(volume, progress=progress)
    if promoted_over is not None:
        parameters = {**detection.model.parameters, "route.promoted_over": promoted_over}
        detection = replace(detection, model=replace(detection.model, parameters=parameters))
    timings |= detection.timings_s
    with _timed(timings, "measure"):
        return read(
            series,
            volume,
            detection,
            evidence=origin.evidence,
            manifest_sha256=origin.manifest_sha256,
            made_at=origin.made_at,
            complete=origin.complete,
            predecessors=origin.predecessors,
        )


def _rows(reading: Reading) -> list[dict[str, Any]]:
    return finding_rows(reading.findings, reading.measurements, [track.uid for track in reading.tracking])


def rejection(
    headers: Sequence[Dataset], rejected: SeriesRejected, origin: Origin, profiles: Mapping[str, ResultProfile]
) -> list[ResultFile]:
    """The objects that say why a series was not analysed. Raises ResultError where there is no study to put them in."""
    refusal = refuse(
        headers[0],
        [(str(h.get("SOPClassUID") or ""), str(h.get("SOPInstanceUID") or "")) for h in headers],
        rejected,
        evidence=origin.evidence,
        manifest_sha256=origin.manifest_sha256,
        made_at=origin.made_at,
        complete=origin.complete,
    )
    return [_file(each) for each in refusals_for(refusal, profiles)]


def _file(each: Addressed) -> ResultFile:
    ds = each.made.ds
    return ResultFile(
        kind=each.made.kind,
        name=each.made.name,
        destinations=each.destinations,
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        data=to_bytes(ds),
    )


def _pictures(reading: Reading) -> dict[str, bytes]:
    shown = enumerate(zip(reading.findings, reading.measurements, strict=True), start=1)
    return {f"finding_{n}.png": to_png(render_finding(reading.volume, f, m, n)) for n, (f, m) in shown}


def _made_on(header: Dataset) -> Acquisition:
    manufacturer, model, kernel = (
        _text(header.get(name)) for name in ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel")
    )
    return Acquisition(manufacturer=manufacturer, model=model, kernel=kernel)


def _text(value: object) -> str:
    """A kernel may have several values: `I70f` and its strength `3` are one name."""
    values = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    return "\\".join(str(each) for each in values if each is not None)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start
