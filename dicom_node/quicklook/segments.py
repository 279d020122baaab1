"""SEG of any form -> the voxels of each segment on the grid of the CT series that it lies on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.domain import CTSeries
from dicom_node.errors import ResultError
from dicom_node.results.palette import colour

Mask2D = NDArray[np.bool_]
_TOLERANCE = 0.1  # of the distance between slices


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """colour: #RRGGBB. masks: index of a slice -> its voxels (row, column), at least one set."""

    number: int
    label: str
    tracking_uid: str
    colour: str
    masks: Mapping[int, Mask2D]


def read_segments(seg: Dataset, series: CTSeries) -> tuple[Segment, ...]:
    """By number; a segment without a voxel has no masks. Raises ResultError where SEG and series do not fit."""
    if (int(seg.Rows), int(seg.Columns)) != (series.rows, series.columns):
        raise ResultError("the segmentation has another matrix than the images")
    masks: dict[int, dict[int, Mask2D]] = {int(each.SegmentNumber): {} for each in seg.SegmentSequence}
    pixels = _pixels(seg)
    for frame, plane in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        index = _slice_of(frame, series)
        for number, mask in _segments_of(seg, frame, plane):
            if mask.any():
                masks[number][index] = masks[number].get(index, False) | mask
    return tuple(_segment(each, masks[int(each.SegmentNumber)]) for each in seg.SegmentSequence)


def _segment(item: Dataset, masks: Mapping[int, Mask2D]) -> Segment:
    number = int(item.SegmentNumber)
    lab = item.get("RecommendedDisplayCIELabValue")
    rgb = None if lab is None else CIELabColor.from_dicom_value(list(lab)).to_rgb()
    return Segment(
        number=number,
        label=str(item.SegmentLabel),
        tracking_uid=str(item.get("TrackingUID") or ""),
        colour=colour(number) if rgb is None else "#{:02X}{:02X}{:02X}".format(*rgb),
        masks=masks,
    )


def _pixels(seg: Dataset) -> NDArray[np.generic]:
    """(frame, row, column) as stored. Frames of one bit follow each other without padding (PS3.5 8.1.1)."""
    shape = int(seg.NumberOfFrames), int(seg.Rows), int(seg.Columns)
    count = int(np.prod(shape))
    if seg.BitsAllocated == 1:
        packed = np.frombuffer(seg.PixelData, np.uint8)
        return np.unpackbits(packed, bitorder="little", count=count).reshape(shape)
    return np.frombuffer(seg.PixelData, np.uint8 if seg.BitsAllocated == 8 else "<u2", count=count).reshape(shape)


def _segments_of(seg: Dataset, frame: Dataset, plane: NDArray[np.generic]) -> list[tuple[int, Mask2D]]:
    if seg.SegmentationType == "LABELMAP":
        known = {int(each.SegmentNumber) for each in seg.SegmentSequence}
        return [(number, plane == number) for number in np.unique(plane).tolist() if number in known]
    shared = seg.SharedFunctionalGroupsSequence[0]
    where = frame if "SegmentIdentificationSequence" in frame else shared
    number = int(where.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    # FRACTIONAL: half of a voxel or more. BINARY: 1 of 1.
    half = int(seg.get("MaximumFractionalValue", 1)) / 2
    return [(number, plane.astype(np.int64) >= max(half, 1))]


def _slice_of(frame: Dataset, series: CTSeries) -> int:
    position = np.array([float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient])
    normal = series.affine[:3, 0] / series.spacing_mm[0]
    projections = np.array([image.projection_mm for image in series.images])
    away = np.abs(projections - float(position @ normal))
    if away.min() > _TOLERANCE * series.spacing_mm[0]:
        raise ResultError("a frame of the segmentation lies on no image of the series")
    return int(away.argmin())
