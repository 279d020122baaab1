"""Finding on its Volume -> what a radiologist would measure: volume, long and short axis, CT number, outline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Finding, Point, Volume
from dicom_node.results.nodule_type import NoduleType, classify
from dicom_node.results.outline import Points, chord_across, convex_hull, longest_chord, pieces

PERCENTILES = (5, 25, 50, 75, 95)

# Volumes of stable nodules (mean 98 mm3) measured twice by one program differ by up to 27 % in 95 of 100 (Marchiano et
# al, Radiology 2009;251:919). For masks of that size that is a tenth of a voxel; docs/measurement.md has the sum.
BORDER_SD_VOXELS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A straight caliper. Ends as (slice, row, column) with fractions, and as LPS mm."""

    length_mm: float
    ends_index: tuple[Point, Point]
    ends_mm: tuple[Point, Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Numbers of one finding.

    volume_mm3: number of voxels times the volume of one voxel: a voxel counts as a whole or not at all, so that the
        number is that of the SEG's segment.
    volume_error_mm3: standard deviation of volume_mm3 when the same method measures the nodule again: the border
        moves in or out as a whole by BORDER_SD_VOXELS of a voxel.
    equivalent_diameter_mm: of the sphere with that volume.
    long_axis: longest diameter of one connected piece in any axial slice.
    short_axis: longest chord at right angles to it, in the same slice, of the piece's convex hull.
    slice_index: the slice of the long axis, the largest one; where slices tie, the one with more pixels.
    mean_hu, sd_hu: over all voxels of the mask (standard deviation of the population).
    percentiles_hu: of the mask's voxels, by PERCENTILES.
    box_mm: smallest box along the axes of the patient that holds all voxels whole, its two corners in LPS mm.
    nodule_type: by nodule_type.RULE; None where that leaves it open.
    contours: outlines of the mask's pieces in that slice, largest first; each (n, 2) of (column, row) in image
        coordinates of PS3.3 C.18.6.1.2 (the centre of the top left pixel is 0.5, 0.5), last point = first point.
    """

    voxels: int
    volume_mm3: float
    volume_error_mm3: float
    equivalent_diameter_mm: float
    long_axis: Axis
    short_axis: Axis
    slice_index: int
    mean_hu: float
    sd_hu: float
    percentiles_hu: Mapping[int, float]
    box_mm: tuple[Point, Point]
    nodule_type: NoduleType | None
    contours: tuple[NDArray[np.float64], ...]

    @property
    def long_axis_mm(self) -> float:
        return self.long_axis.length_mm

    @property
    def short_axis_mm(self) -> float:
        return self.short_axis.length_mm

    @property
    def mean_diameter_mm(self) -> int:
        """Mean of long and short axis to the nearest millimetre, halves up (Fleischner, Radiology 2017;284:228)."""
        return math.floor((self.long_axis_mm + self.short_axis_mm) / 2 + 0.5)


def measure(finding: Finding, volume: Volume) -> Measurement:
    """Measure a finding on the grid that it was found in."""
    mask = finding.mask
    voxels = int(mask.sum())
    volume_mm3 = voxels * volume.voxel_mm3
    diameter_mm = (6.0 * volume_mm3 / math.pi) ** (1 / 3)
    hu = volume.hu[finding.slices]
    inside = hu[mask].astype(np.float64)
    index, hull = _largest_slice(mask, volume)
    long_ends = longest_chord(hull)
    k, row, column = finding.corner
    shift = np.array([column, row], dtype=np.float64)
    return Measurement(
        voxels=voxels,
        volume_mm3=volume_mm3,
        volume_error_mm3=volume_error_mm3(mask, volume.voxel_mm3),
        equivalent_diameter_mm=diameter_mm,
        long_axis=_axis(long_ends, k + index, shift, volume),
        short_axis=_axis(chord_across(hull, *long_ends), k + index, shift, volume),
        slice_index=k + index,
        mean_hu=float(inside.mean()),
        sd_hu=float(inside.std()),
        percentiles_hu=dict(zip(PERCENTILES, np.percentile(inside, PERCENTILES).tolist(), strict=True)),
        box_mm=_box_mm(finding, volume),
        nodule_type=classify(hu, mask, diameter_mm),
        contours=tuple(piece.outline + shift for piece in pieces(mask[index])),
    )


def volume_error_mm3(mask: NDArray[np.bool_], voxel_mm3: float) -> float:
    """Standard deviation of a mask's volume, as a Measurement has it."""
    # A face of a voxel, moved by the voxel's own length, sweeps the voxel, whatever its direction. The staircase of
    # faces has half as much again as the surface that it follows (mean over directions of |nx| + |ny| + |nz|).
    padded = np.pad(mask, 1)
    faces = sum(int(np.count_nonzero(np.diff(padded, axis=axis))) for axis in range(3))
    return BORDER_SD_VOXELS * faces * (2 / 3) * voxel_mm3


def _box_mm(finding: Finding, volume: Volume) -> tuple[Point, Point]:
    low = np.array(finding.corner) - 0.5
    corners = volume.to_mm(np.array(list(np.ndindex(2, 2, 2))) * finding.mask.shape + low)
    return _point(corners.min(axis=0)), _point(corners.max(axis=0))


def _largest_slice(mask: NDArray[np.bool_], volume: Volume) -> tuple[int, Points]:
    """Index within the mask of the slice with the longest diameter, and the hull of its longest piece in mm."""
    pixel_mm = _pixel_mm(volume)
    areas = mask.sum(axis=(1, 2))
    candidates = [
        (_length(longest_chord(convex_hull(piece.corners * pixel_mm))), index, piece)
        for index in np.flatnonzero(areas).tolist()
        for piece in pieces(mask[index])
    ]
    best: tuple[tuple[float, int, int], Points] | None = None
    # No piece is longer than the hull of its pixels, so most of them need not be measured.
    for longest, index, piece in sorted(candidates, key=lambda candidate: candidate[0], reverse=True):
        if best is not None and longest < best[0][0]:
            break
        hull = convex_hull(piece.reach * pixel_mm)
        size = (round(_length(longest_chord(hull)), 6), int(areas[index]), -index)
        if best is None or size > best[0]:
            best = (size, hull)
    assert best is not None  # noqa: S101  # a Finding has at least one voxel
    return -best[0][2], best[1]


def _length(ends: tuple[Points, Points]) -> float:
    return float(np.linalg.norm(ends[1] - ends[0]))


def _pixel_mm(volume: Volume) -> Points:
    """Size of a pixel along (column, row)."""
    _, row_mm, column_mm = volume.spacing_mm
    return np.array([column_mm, row_mm])


def _axis(ends: tuple[Points, Points], slice_index: int, shift: Points, volume: Volume) -> Axis:
    """Ends in mm from the mask's own top left corner -> an Axis of the Volume."""
    # Pixel r covers r..r+1 in an outline, and its centre has the index r.
    column_row = np.stack(ends) / _pixel_mm(volume) + shift - 0.5
    index = np.concatenate([np.full((2, 1), slice_index), column_row[:, ::-1]], axis=1)
    return Axis(
        length_mm=_length(ends),
        ends_index=(_point(index[0]), _point(index[1])),
        ends_mm=(_point(volume.to_mm(index[0])), _point(volume.to_mm(index[1]))),
    )


def _point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])
