"""The words of a correction: the source's grid, regions on it, what was drawn, what we had found, what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import CTSeries, Finding, Point, Volume
from dicom_node.results.measure import measure

Kind = Literal["seg", "sr", "rtstruct"]
# What reading a data set raises that lacks its attributes, or has other values in them than the standard's.
UNREADABLE = (ArithmeticError, AttributeError, LookupError, MemoryError, NotImplementedError, TypeError, ValueError)
# volume: all of its voxels. plane: its outline on one slice. numbers: sizes without a place.
Extent = Literal["volume", "plane", "numbers"]
# unreviewed: nothing says that the reader looked at it, so it is neither confirmed nor false.
Verdict = Literal["confirmed", "changed", "removed", "added", "unreviewed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGrid:
    """Where the voxels of the analysed series are. affine: (slice, row, column, 1) -> LPS mm.

    slices: (SOP Instance UID, frame or None) -> slice.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    frame_of_reference_uid: str
    slices: Mapping[tuple[str, int | None], int]

    @classmethod
    def of(cls, series: CTSeries) -> SourceGrid:
        return cls(
            shape=(len(series.images), series.rows, series.columns),
            affine=series.affine,
            frame_of_reference_uid=str(series.header.get("FrameOfReferenceUID") or ""),
            slices={(image.sop_instance_uid, image.frame): k for k, image in enumerate(series.images)},
        )

    @property
    def voxel_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_index(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) LPS mm -> (..., 3) fractional (slice, row, column)."""
        index: NDArray[np.float64] = (points_mm - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        return index

    def to_mm(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Voxels of the source's grid: a tight bool mask, and the index of its first corner."""

    mask: NDArray[np.bool_]
    corner: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.mask.ndim != 3 or self.mask.dtype != np.bool_ or not self.mask.any():
            raise ValueError("a Region needs a 3D bool mask with at least one voxel")

    @classmethod
    def of_voxels(cls, index: NDArray[np.int64]) -> Region:
        """index: (n, 3), n > 0; repetitions do not matter."""
        low, high = index.min(axis=0), index.max(axis=0) + 1
        mask = np.zeros(tuple(high - low), np.bool_)
        mask[tuple((index - low).T)] = True
        return cls(mask=mask, corner=(int(low[0]), int(low[1]), int(low[2])))

    @property
    def voxels(self) -> int:
        return int(self.mask.sum())

    def index(self) -> NDArray[np.int64]:
        """(n, 3) of its voxels."""
        index: NDArray[np.int64] = np.argwhere(self.mask) + np.array(self.corner)
        return index

    def shared(self, other: Region) -> int:
        """How many voxels both hold."""
        low = np.maximum(self.corner, other.corner)
        high = np.minimum(np.add(self.corner, self.mask.shape), np.add(other.corner, other.mask.shape))
        if (low >= high).any():
            return 0
        parts = []
        for region in (self, other):
            k, r, c = (slice(a - s, b - s) for a, b, s in zip(low, high, region.corner, strict=True))
            parts.append(region.mask[k, r, c])
        return int((parts[0] & parts[1]).sum())

    def on_slice(self, k: int) -> Region | None:
        """What of it lies in one slice."""
        index = self.index()
        index = index[index[:, 0] == k]
        return Region.of_voxels(index) if len(index) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """volume_mm3: None where only a plane was drawn."""

    volume_mm3: float | None
    long_axis_mm: float | None
    short_axis_mm: float | None


def sizes_of(region: Region, grid: SourceGrid, extent: Extent = "volume") -> Sizes:
    """By the very code that measures our findings."""
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_mm(np.array(region.corner, dtype=np.float64))
    crop = Volume(hu=np.zeros(region.mask.shape, np.int16), affine=affine)
    center = grid.to_mm(region.index().mean(axis=0))
    whole = Finding(
        mask=region.mask,
        corner=(0, 0, 0),
        center_mm=(float(center[0]), float(center[1]), float(center[2])),
        score=1.0,
        side=None,
    )
    measured = measure(whole, crop)
    return Sizes(
        volume_mm3=measured.volume_mm3 if extent == "volume" else None,
        long_axis_mm=measured.long_axis_mm,
        short_axis_mm=measured.short_axis_mm,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A nodule as the correction has it. name: number of the segment, ROI or group, never a text that somebody wrote.

    label: the Tracking Identifier, Segment Label or ROI Name where it is of our own form ("Nodule 3"), else "".
    contour: its voxels come from an outline, which another program may draw half a pixel wider.
    """

    name: str
    label: str
    tracking_uid: str
    extent: Extent
    region: Region | None
    sizes: Sizes
    contour: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """A finding that we sent. region: None where no Segmentation of ours is there any more."""

    number: int
    tracking_uid: str
    center_mm: Point
    sizes: Sizes
    region: Region | None

    @property
    def label(self) -> str:
        return f"Nodule {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What became of a finding, or a nodule that we missed (number None).

    dice: over all voxels, or on the one slice of a plane. drawn: the name in the correction. note: in words.
    """

    verdict: Verdict
    number: int | None
    drawn: str | None
    extent: Extent | None
    dice: float | None
    volume_mm3: float | None
    volume_change_percent: float | None
    long_axis_mm: float | None
    long_axis_change_mm: float | None
    center_mm: Point | None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in self.__dataclass_fields__}
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in numbers.items()}
        if self.center_mm is not None:
            rounded["center_mm"] = [round(value, 3) for value in self.center_mm]
        return rounded
