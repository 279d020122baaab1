"""What a reader of training data gives: a Scan that is cheap to list, and the Case that reading it yields.

Everything is in LPS millimetres or on the scan's own grid; nothing here knows a file format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Point, Volume
from dicom_node.errors import DicomNodeError

MaskSource = Literal["contours", "voxels", "sphere"]
UNKNOWN_DIAMETER_MM = 10.0  # LUNA16: an excluded finding without a diameter counts as 10 mm


class DataProblem(DicomNodeError):
    """A scan or a list that can't be used. The text names the file and what to do, never a patient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodule:
    """One true nodule.

    center_mm, diameter_mm: as listed, or of the mask where there is no list.
    mask: bool (d, h, w), tight, on the scan's own grid; corner: index (slice, row, column) of mask[0, 0, 0].
    mask_from: "contours" (readers' outlines), "voxels" (a label image) or "sphere" (drawn from the list: no truth).
    readers: how many readers outlined it; None where nobody says.
    """

    name: str
    center_mm: Point
    diameter_mm: float
    mask: NDArray[np.bool_]
    corner: tuple[int, int, int]
    mask_from: MaskSource
    readers: int | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 3 or self.mask.dtype != np.bool_ or not self.mask.any():
            raise ValueError(f"nodule {self.name} needs a 3D bool mask with at least one voxel")
        if not self.diameter_mm > 0:
            raise ValueError(f"nodule {self.name}: diameter {self.diameter_mm} mm is none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A finding that is neither nodule nor background, as a ball. diameter_mm: -1 where unknown."""

    center_mm: Point
    diameter_mm: float

    @property
    def radius_mm(self) -> float:
        return (self.diameter_mm if self.diameter_mm > 0 else UNKNOWN_DIAMETER_MM) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A scan with its truth."""

    volume: Volume
    nodules: tuple[Nodule, ...]
    ignored: tuple[Ignored, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A scan that can be read. Listing scans reads no voxels.

    uid: SeriesInstanceUID, or a name where the format has none; unique in its source.
    patient: what splits keep together. subset: LUNA16's 0 to 9. composite: nodules were put in by us.
    files: what its cache entry depends on. truth: hash of its lists and contours, for the same reason.
    whole_chest: lungs can be looked for; False for crops, which are taken as they are.
    read: raises DataProblem.
    """

    uid: str
    patient: str
    subset: int | None
    composite: bool
    files: tuple[Path, ...]
    truth: str
    read: Callable[[], Case]
    whole_chest: bool = True
