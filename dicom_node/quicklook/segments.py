"""SEG of any form -> the voxels of each segment on the grid of the CT series that it lies on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

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
    for frame, plane in zip(seg.PerFrameFunctionalGroupsSequence, _planes(seg), strict=True):
        index = _slice_of(frame, series)
        for number, mask in _segments_of(seg, frame, plane):
            if mask.any():
                masks[number][index] = masks[number].get(index, False) | mask
    # Number 0 is the background of a label map (PS3.3 C.8.20.2.3).
    described = [each for each in seg.SegmentSequence if int(each.SegmentNumber) > 0]
    return tuple(_segment(each, masks[int(each.SegmentNumber)]) for each in described)


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


def _planes(seg: Dataset) -> Iterator[NDArray[np.generic]]:
    """The frames as stored, one by one: full frames of many segments would take gigabytes at once."""
    rows, columns, bits = int(seg.Rows), int(seg.Columns), int(seg.BitsAllocated)
    size = rows * columns
    for number in range(int(seg.NumberOfFrames)):
        if seg.file_meta.TransferSyntaxUID.is_compressed:  # an archive may have done that
            yield pixel_array(seg, index=number)
        elif bits == 1:
            # Frames of one bit follow each other without padding (PS3.5 8.1.1).
            first, end = number * size // 8, -(-(number + 1) * size // 8)
            packed = np.frombuffer(seg.PixelData, np.uint8, count=end - first, offset=first)
            unpacked = np.unpackbits(packed, bitorder="little")[number * size - first * 8 :]
            yield unpacked[:size].reshape(rows, columns)
        else:
            dtype = np.dtype("u1" if bits == 8 else "<u2")
            at = number * size * dtype.itemsize
            yield np.frombuffer(seg.PixelData, dtype, count=size, offset=at).reshape(rows, columns)


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
