"""A Segmentation -> the voxels of each of its nodules on the source's grid: BINARY, FRACTIONAL or LABELMAP.

Frames are placed by their own position and orientation, so order, cropping and flipped axes do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.corrections.words import Drawn, Region, SourceGrid, sizes_of
from dicom_node.errors import CorrectionUnusable
from dicom_node.growth.segments import frames_of
from dicom_node.nodules import MOST_MM3, Marks, marks, own_label

OFF_GRID = 0.1  # parts of a voxel


def read_segmentation(ds: Dataset, grid: SourceGrid, only: int | None = None) -> list[Drawn]:
    """The nodules that it marks; what else it says it has is left aside (`nodules.marks`).

    only: the number of the one segment that is wanted.

    Raises CorrectionUnusable, PriorUnusable (its pixels), and what a data set without its attributes raises.
    """
    foreign = str(ds.get("FrameOfReferenceUID") or "") not in ("", grid.frame_of_reference_uid)
    if foreign:
        raise CorrectionUnusable("it lies in another frame of reference than the CT")
    segments = {int(s.SegmentNumber): s for s in ds.SegmentSequence if int(s.SegmentNumber) > 0}
    wanted = {n: kind for n, s in segments.items() if (kind := marks(s)) != "other" and only in (None, n)}
    found = _voxels(ds, grid, wanted)
    return [_drawn(number, segments[number], Region.of_voxels(index), grid) for number, index in sorted(found.items())]


def _drawn(number: int, segment: Dataset, region: Region, grid: SourceGrid) -> Drawn:
    return Drawn(
        name=f"segment {number}",
        label=own_label(segment.get("TrackingID") or "") or own_label(segment.get("SegmentLabel") or ""),
        tracking_uid=str(segment.get("TrackingUID") or ""),
        extent="volume",
        region=region,
        sizes=sizes_of(region, grid),
    )


def _voxels(ds: Dataset, grid: SourceGrid, wanted: Mapping[int, Marks]) -> dict[int, NDArray[np.int64]]:
    """wanted: by the number of the segment. One that may be anything and is larger than a nodule is left aside."""
    kind = str(ds.SegmentationType)
    least = 0.5 * float(ds.MaximumFractionalValue) if kind == "FRACTIONAL" else 1
    found: dict[int, list[NDArray[np.int64]]] = {}
    counts: dict[int, int] = {}
    for frame, pixels in zip(ds.PerFrameFunctionalGroupsSequence, frames_of(ds, kind), strict=True):
        if kind == "LABELMAP":
            present = set(np.unique(pixels).tolist()) & set(wanted)
            marked = [(n, pixels == n) for n in sorted(present)]
        else:
            number = int(_group(ds, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            marked = [(number, pixels >= least)] if number in wanted else []
        for number, mask in marked:
            at = np.argwhere(mask)
            counts[number] = counts.get(number, 0) + len(at)
            if counts[number] * grid.voxel_mm3 > MOST_MM3:
                if wanted[number] == "vague":
                    found.pop(number, None)
                    continue
                raise CorrectionUnusable(f"segment {number} is larger than a nodule can be")
            if len(at):
                found.setdefault(number, []).append(_on_grid(at, _affine(ds, frame), grid, number))
    return {number: np.unique(np.concatenate(parts), axis=0) for number, parts in found.items()}


def _on_grid(at: NDArray[np.int64], affine: NDArray[np.float64], grid: SourceGrid, number: int) -> NDArray[np.int64]:
    exact = grid.to_index(np.column_stack([at, np.ones(len(at))]) @ affine.T)
    index: NDArray[np.int64] = np.rint(exact).astype(np.int64)
    if not np.isfinite(exact).all() or np.abs(exact - index).max() > OFF_GRID:
        raise CorrectionUnusable(f"segment {number} is not on the CT's grid: save it in the geometry of the CT")
    if (index < 0).any() or (index >= grid.shape).any():
        raise CorrectionUnusable(f"segment {number} reaches beyond the CT")
    return index


def _group(ds: Dataset, frame: Dataset, name: str) -> Dataset:
    """A functional group of a frame, or the one that all frames share."""
    for place in (frame, *ds.get("SharedFunctionalGroupsSequence", ())):
        if place.get(name):
            group: Dataset = place[name].value[0]
            return group
    raise CorrectionUnusable(f"a frame has no {name}")


def _affine(ds: Dataset, frame: Dataset) -> NDArray[np.float64]:
    """(row, column, 1) -> LPS mm, shape (3, 3). PS3.3 C.7.6.2.1.1."""
    position = [float(v) for v in _group(ds, frame, "PlanePositionSequence").ImagePositionPatient]
    orientation = _group(ds, frame, "PlaneOrientationSequence").ImageOrientationPatient
    row, column = np.array([float(v) for v in orientation]).reshape(2, 3)
    between_rows, between_columns = _group(ds, frame, "PixelMeasuresSequence").PixelSpacing
    return np.stack([column * float(between_rows), row * float(between_columns), np.array(position)], axis=1)
