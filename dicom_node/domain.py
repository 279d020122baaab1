"""The words of the project: Volume, CTSeries, Finding, Detection. Pure data, valid when built.

Axes. Arrays are indexed (slice, row, column). An affine maps (slice, row, column, 1) to patient
coordinates in LPS millimetres (x to the left, y to the back, z to the head; PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a machine that only trains has no pydicom
    from pydicom.dataset import Dataset

RESEARCH_USE = "Research use, not for diagnosis"

Side = Literal["left", "right"]
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """CT numbers on a regular grid.

    hu: int16, shape (slices, rows, columns), Hounsfield units rounded to integers.
    affine: float64, shape (4, 4), (slice, row, column, 1) -> LPS mm, centre of the voxel.
    """

    hu: NDArray[np.int16]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.dtype != np.int16 or self.hu.size == 0:
            raise ValueError(f"a Volume needs a non-empty 3D int16 array, not {self.hu.dtype}{self.hu.shape}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError("a Volume needs a finite 4 x 4 affine")
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise ValueError("the affine of a Volume must be invertible")

    @property
    def spacing_mm(self) -> Point:
        """Distance between neighbours along (slice, row, column)."""
        s = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(s[0]), float(s[1]), float(s[2])

    @property
    def voxel_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_mm(self, index: NDArray[np.float64] | Point) -> NDArray[np.float64]:
        """(..., 3) indices (slice, row, column), fractions allowed -> (..., 3) LPS mm."""
        i = np.asarray(index, dtype=np.float64)
        return i @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, point_mm: NDArray[np.float64] | Point) -> NDArray[np.float64]:
        """(..., 3) LPS mm -> (..., 3) fractional indices (slice, row, column)."""
        p = np.asarray(point_mm, dtype=np.float64)
        return (p - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One nodule candidate on the grid of the Volume it was found in.

    mask: bool, shape (d, h, w), at least one voxel set, tight: no empty face.
    corner: index (slice, row, column) of mask[0, 0, 0] in the Volume.
    center_mm: centroid of the mask, LPS mm.
    score: 0 to 1, as the model's bundle defines it.
    side: the lung it lies in or nearest to; None where the lungs could not be told apart.
    """

    mask: NDArray[np.bool_]
    corner: tuple[int, int, int]
    center_mm: Point
    score: float
    side: Side | None

    def __post_init__(self) -> None:
        if self.mask.ndim != 3 or self.mask.dtype != np.bool_ or not self.mask.any():
            raise ValueError("a Finding needs a 3D bool mask with at least one voxel")
        if not 0.0 <= self.score <= 1.0:
            raise ValueError(f"score {self.score} is not within 0 to 1")
        if min(self.corner) < 0:
            raise ValueError(f"corner {self.corner} lies outside the volume")

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Where the mask lies in its Volume: `volume.hu[finding.slices]` has the mask's shape."""
        k, r, c = self.corner
        d, h, w = self.mask.shape
        return slice(k, k + d), slice(r, r + h), slice(c, c + w)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model made a result: what the SR and the SEG say about their origin.

    parameters: the bundle's numbers that shaped the result (operating point, merging), flat, JSON values.
    """

    name: str
    version: str
    bundle_sha256: str
    operating_point: float
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LungDistance:
    """Where the lungs are, as the Detector found them: all that is kept of them.

    distance_mm: float32, shape (slices, rows, columns), to the lungs, negative inside; on a grid of its own.
    affine: of that grid, as in Volume. margin_mm: how far from the lungs a finding's centre may lie.
    """

    distance_mm: NDArray[np.float32]
    affine: NDArray[np.float64]
    margin_mm: float

    def at(self, points_mm: NDArray[np.float64]) -> NDArray[np.float32]:
        """(..., 3) LPS mm -> mm to the lungs at the nearest point of the grid; `step_mm` is how wrong that can be."""
        index = (points_mm - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        shape = np.array(self.distance_mm.shape)
        k, r, c = np.moveaxis(index.round().clip(0, shape - 1).astype(np.int64), -1, 0)
        beyond = ((index < -1) | (index > shape)).any(axis=-1)
        return np.where(beyond, np.float32(np.inf), self.distance_mm[k, r, c])

    @property
    def step_mm(self) -> float:
        """The diagonal of the grid's cell."""
        return float(np.linalg.norm(self.affine[:3, :3].sum(axis=1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What `Detector.detect` saw in one Volume.

    findings: at or above the operating point, highest score first.
    analysed: half-open range of the Volume's slices that the network looked at (lung plus margin).
    timings_s: seconds of each stage ("lung", "resample", "network", "refine", "link").
    lungs: None where no detector looked for them: findings that somebody else drew.
    """

    findings: tuple[Finding, ...]
    analysed: tuple[int, int]
    model: ModelIdentity
    timings_s: dict[str, float]
    lungs: LungDistance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CTImage:
    """One axial CT image, by its header alone: an Instance, or a frame of one.

    frame: its number in a multi-frame Instance, from 1; None in a single-frame one.
    header: the data set without PixelData, as read (its character set still that of the file); for a frame, with
        the attributes of its functional groups among them.
    position_mm: ImagePositionPatient. projection_mm: its projection on the series' normal.
    """

    path: str
    sop_instance_uid: str
    header: Dataset
    position_mm: Point
    projection_mm: float
    frame: int | None = None

    @property
    def sop_class_uid(self) -> str:
        return str(self.header.SOPClassUID)


@dataclass(frozen=True, slots=True, kw_only=True)
class CTSeries:
    """Axial images of one series that passed the geometry gate, sorted along the normal, feet to head.

    left_out: SOP Instance UID, of a frame with its number -> why it is no part of the volume (a localizer ...).
    lossy: how images were compressed with loss, in words; None where none was.
    """

    images: tuple[CTImage, ...]
    affine: NDArray[np.float64]
    rows: int
    columns: int
    left_out: dict[str, str]
    lossy: str | None = None

    @property
    def header(self) -> Dataset:
        """The header of the first image in order: for what all images share."""
        return self.images[0].header

    @property
    def study_uid(self) -> str:
        return str(self.header.StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        return str(self.header.SeriesInstanceUID)

    @property
    def sop_instance_uids(self) -> tuple[str, ...]:
        """Of the Instances, each once, in the order of their images."""
        return tuple(dict.fromkeys(image.sop_instance_uid for image in self.images))

    @property
    def spacing_mm(self) -> Point:
        s = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(s[0]), float(s[1]), float(s[2])
