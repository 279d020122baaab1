"""CT series, Volume, Segmentation and report -> one Scene: what a reader sees of each finding, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.domain import CTSeries, Finding, Side, Volume
from dicom_node.quicklook.report import Report, Reported, read_report
from dicom_node.quicklook.segments import Segment, read_segments
from dicom_node.results.outline import pieces
from dicom_node.results.palette import colour

_SIDES: Mapping[str, Side] = {"left": "left", "right": "right"}
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One finding. outlines: slice -> closed lines, (n, 2) of (column, row) in image coordinates. key_slice: where
    it is largest; None where nothing tells its place. mark: its voxels; None where there is no segmentation."""

    number: int
    label: str
    colour: str
    reported: Reported | None
    outlines: Mapping[int, Sequence[Points]]
    key_slice: int | None
    mark: Finding | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """report: None where none was there. volume: None where the images form none."""

    series_uid: str
    volume: Volume | None
    report: Report | None
    shown: tuple[Shown, ...]
    notes: tuple[str, ...] = ()


def compose(series: CTSeries, volume: Volume, sr: Dataset | None, seg: Dataset | None) -> Scene:
    """Raises ResultError where the segmentation does not lie on the series."""
    report = None if sr is None else read_report(sr)
    segments = () if seg is None else read_segments(seg, series)
    shown = _from_report(report, segments, series, volume) if report else _from_segments(segments, volume)
    notes = []
    if report is not None and report.segmentation_uid is not None and seg is None:
        notes.append("The segmentation that the report refers to is not here: outlines are those of the report alone.")
    if report is None:
        notes.append("There is no measurement report here (TID 1500)" + ("." if seg is None else ": no numbers."))
    return Scene(series_uid=series.series_uid, volume=volume, report=report, shown=tuple(shown), notes=tuple(notes))


def _from_report(report: Report, segments: Sequence[Segment], series: CTSeries, volume: Volume) -> list[Shown]:
    by_uid = {segment.tracking_uid: segment for segment in segments}
    return [
        _shown(number, found, by_uid.get(found.tracking_uid), series, volume)
        for number, found in enumerate(report.findings, start=1)
    ]


def _from_segments(segments: Sequence[Segment], volume: Volume) -> list[Shown]:
    return [_segmented(segment.number, None, segment, volume) for segment in segments if segment.masks]


def _shown(number: int, found: Reported, segment: Segment | None, series: CTSeries, volume: Volume) -> Shown:
    if segment is not None and segment.masks:
        return _segmented(segment.number, found, segment, volume)
    images = {(image.sop_instance_uid, image.frame): index for index, image in enumerate(series.images)}
    outlines: dict[int, list[Points]] = {}
    for drawn in found.drawn:
        index = images.get((drawn.sop_instance_uid, drawn.frame))
        if index is not None:
            outlines.setdefault(index, []).append(drawn.points)
    return Shown(
        number=number,
        label=found.identifier,
        colour=colour(number),
        reported=found,
        outlines=outlines,
        key_slice=next(iter(outlines), None),
        mark=None,
    )


def _segmented(number: int, found: Reported | None, segment: Segment, volume: Volume) -> Shown:
    largest = max(segment.masks, key=lambda index: (int(segment.masks[index].sum()), -index))
    return Shown(
        number=number,
        label=found.identifier if found else segment.label,
        colour=segment.colour,
        reported=found,
        outlines={index: [p.outline for p in pieces(mask)] for index, mask in sorted(segment.masks.items())},
        key_slice=largest,
        mark=_mark(found, segment, volume),
    )


def _mark(found: Reported | None, segment: Segment, volume: Volume) -> Finding:
    """The segment's voxels as a Finding; a report that gives no score counts as 0, which pictures do not tell."""
    low, high = min(segment.masks), max(segment.masks) + 1
    whole = np.zeros((high - low, *volume.hu.shape[1:]), np.bool_)
    for index, mask in segment.masks.items():
        whole[index - low] = mask
    rows, columns = np.flatnonzero(whole.any(axis=(0, 2))), np.flatnonzero(whole.any(axis=(0, 1)))
    mask = whole[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    corner = (low, int(rows[0]), int(columns[0]))
    x, y, z = volume.to_mm(np.argwhere(mask).mean(axis=0) + np.array(corner)).tolist()
    return Finding(
        mask=mask,
        corner=corner,
        center_mm=(x, y, z),
        score=(found.score if found and found.score is not None else 0.0),
        side=_SIDES.get(found.side or "") if found else None,
    )
