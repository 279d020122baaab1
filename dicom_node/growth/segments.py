"""A Segmentation of ours -> where each segment's voxels lie in the patient, and how sure its volume is.

BINARY, FRACTIONAL and LABELMAP, sparse or full frames, in any transfer syntax that an archive may have made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from dicom_node.domain import Point
from dicom_node.errors import PriorUnusable
from dicom_node.results.measure import volume_error_mm3

_MOST_PIXELS = 2**33  # of all frames together: thirty segments in full frames of the largest series
_MOST_VOXELS = 2**26  # of the box round one segment
_BITS = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
_NEAR = 0.05  # of a voxel


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """center_mm: centroid, LPS mm. volume_mm3: a voxel counts by how much of it is occupied."""

    tracking_uid: str
    center_mm: Point
    volume_mm3: float
    volume_error_mm3: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Axes of the frames: unit vectors along a row and a column, the normal; spacing along (slice, row, column)."""

    along_row: NDArray[np.float64]
    along_column: NDArray[np.float64]
    normal: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]

    @property
    def voxel_mm3(self) -> float:
        return float(self.spacing_mm.prod())


def read_segments(segmentation: Dataset) -> dict[int, Segment]:
    """Segment number -> Segment. Raises PriorUnusable, and what a data set without its attributes raises."""
    grid = _grid(segmentation)
    uids = {int(item.SegmentNumber): str(item.get("TrackingUID") or "") for item in segmentation.SegmentSequence}
    voxels: dict[int, list[NDArray[np.float64]]] = {}
    for number, position, plane in _planes(segmentation):
        at = np.argwhere(plane)
        if len(at):
            exact = np.column_stack([np.full(len(at), position), at, plane[tuple(at.T)]])
            voxels.setdefault(number, []).append(exact)
    if not voxels.keys() <= uids.keys():
        raise PriorUnusable("the segmentation has pixels of segments without a description")
    origin = np.array(_position(segmentation.PerFrameFunctionalGroupsSequence[0]))
    return {
        number: _segment(np.concatenate(found), uids[number], grid, origin) for number, found in sorted(voxels.items())
    }


def _segment(found: NDArray[np.float64], tracking_uid: str, grid: _Grid, origin: NDArray[np.float64]) -> Segment:
    """found: (n, 4) slice, row and column from the first frame's first pixel, and the share that is occupied."""
    index = found[:, :3].round().astype(np.int64)
    low = index.min(axis=0)
    shape = index.max(axis=0) - low + 1
    if np.prod(shape.astype(float)) > _MOST_VOXELS:
        raise PriorUnusable("a segment is larger than a nodule can be")
    mask = np.zeros(tuple(shape), np.bool_)
    mask[tuple((index - low).T)] = True
    k, row, column = found[:, :3].mean(axis=0) * grid.spacing_mm
    center = origin + k * grid.normal + row * grid.along_column + column * grid.along_row
    return Segment(
        tracking_uid=tracking_uid,
        center_mm=(float(center[0]), float(center[1]), float(center[2])),
        volume_mm3=float(found[:, 3].sum()) * grid.voxel_mm3,
        volume_error_mm3=volume_error_mm3(mask, grid.voxel_mm3),
    )


def _grid(segmentation: Dataset) -> _Grid:
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    orientation = np.array([float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient])
    along_row, along_column = orientation[:3], orientation[3:]
    spacing = np.array([float(measures.SpacingBetweenSlices), *(float(v) for v in measures.PixelSpacing)])
    axes = np.stack([along_row, along_column])
    if orientation.shape != (6,) or not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise PriorUnusable("the segmentation's orientation is none")
    if spacing.shape != (3,) or not ((spacing > 0.01) & (spacing < 100)).all():
        raise PriorUnusable("the segmentation's spacing is none")
    return _Grid(
        along_row=along_row,
        along_column=along_column,
        normal=np.cross(along_row, along_column),
        spacing_mm=spacing,
    )


def _planes(segmentation: Dataset) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """(segment number, slices from the first frame, share of each pixel that is occupied) of each frame and segment."""
    kind = str(segmentation.SegmentationType)
    grid = _grid(segmentation)
    items = segmentation.PerFrameFunctionalGroupsSequence
    origin = np.array(_position(items[0]))
    whole = float(segmentation.MaximumFractionalValue) if kind == "FRACTIONAL" else 1.0
    for item, pixels in zip(items, frames_of(segmentation, kind), strict=True):
        away = np.array(_position(item)) - origin
        exact = float(away @ grid.normal) / grid.spacing_mm[0]
        beside = max(abs(float(away @ grid.along_row)), abs(float(away @ grid.along_column)))
        if abs(exact - round(exact)) > _NEAR or beside > _NEAR * grid.spacing_mm[1:].min():
            raise PriorUnusable("the segmentation's frames do not lie on one grid")
        if kind == "LABELMAP":
            for number in np.unique(pixels[pixels > 0]).tolist():
                yield int(number), round(exact), (pixels == number).astype(np.float32)
        else:
            yield _segment_of(item, segmentation), round(exact), pixels.astype(np.float32) / whole


def frames_of(segmentation: Dataset, kind: str) -> Iterator[NDArray[Any]]:
    """The frames one by one, as their pixels are: full frames of many segments would not fit into memory at once.

    kind: its SegmentationType. Raises PriorUnusable where there are fewer pixels than stated, or too many.
    """
    frames, rows, columns = (int(segmentation[k].value) for k in ("NumberOfFrames", "Rows", "Columns"))
    bits = int(segmentation.BitsAllocated)
    if bits not in _BITS.get(kind, ()) or min(frames, rows, columns) < 1 or frames * rows * columns > _MOST_PIXELS:
        raise PriorUnusable("the segmentation's pixels are of an unknown form or size")
    size = rows * columns
    if segmentation.file_meta.TransferSyntaxUID.is_compressed:
        for number in range(frames):
            yield _decoded(segmentation, number, (rows, columns))
        return
    data = np.frombuffer(segmentation.PixelData, {1: "u1", 8: "u1", 16: "<u2"}[bits])
    if data.size * 8 < frames * size * bits if bits == 1 else data.size < frames * size:
        raise PriorUnusable("the segmentation has fewer pixels than it states")
    for start in range(0, frames * size, size):
        if bits > 1:
            yield data[start : start + size].reshape(rows, columns)
        else:
            # Frames of one bit a pixel follow each other without padding (PS3.5 8.1.1).
            first = start // 8
            unpacked = np.unpackbits(data[first : (start + size + 7) // 8], bitorder="little")
            yield unpacked[start - first * 8 :][:size].reshape(rows, columns)


def _decoded(segmentation: Dataset, number: int, shape: tuple[int, int]) -> NDArray[Any]:
    try:
        pixels = pixel_array(segmentation, index=number)
    except Exception as err:  # decoders raise whatever they like
        raise PriorUnusable(f"the segmentation can't be decoded: {type(err).__name__}") from err
    if pixels.shape != shape:
        raise PriorUnusable("the segmentation decodes to another size than it states")
    return pixels


def _position(item: Dataset) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in item.PlanePositionSequence[0].ImagePositionPatient)
    return x, y, z


def _segment_of(item: Dataset, segmentation: Dataset) -> int:
    # highdicom keeps the segment of a SEG of one segment in the shared groups.
    where = item if "SegmentIdentificationSequence" in item else segmentation.SharedFunctionalGroupsSequence[0]
    return int(where.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
