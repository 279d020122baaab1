"""A nodule's crop, turned and zoomed -> the voxels of a scan's own grid, blended.

Two ways. By shape: the nodule and up to 3.5 mm round it fade into the new lung, where brighter tissue stays in
front; that works inside the lung and against its wall. With its own surroundings: the whole crop, fading at its sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import trilinear
from training.composites.sites import TISSUE_HU
from training.voi import FULL_MM, NONE_MM, Voi

Array = NDArray[np.float64]
Values = NDArray[np.float32]

FEATHER_MM = 4.0
# Bright tissue beside a nodule is a vessel or a wall of the old lung: it fades sooner than lung does.
TISSUE_NONE_MM = 2.0
LUNG_BELOW_HU = -700
AIR_HU = -980
LEAST_LUNG_VOXELS = 200
# Between this and TISSUE_HU the scan's own voxels go over from being replaced to staying in front.
FADES_FROM_HU = -750
# Linear interpolation averages away this much of the noise of what is pasted.
KEPT_NOISE = 0.6
NOISE_CLIP = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LungTexture:
    """How lung looks. hu: its median, None where there is too little of it. noise_hu: the noise's deviation."""

    hu: float | None
    noise_hu: float

    def interpolated(self) -> LungTexture:
        return LungTexture(hu=self.hu, noise_hu=KEPT_NOISE * self.noise_hu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """What is pasted. volume: its HU; weight: 0..1 and mask: bool on the same grid. center_mm: LPS, goes to the site.

    reach_mm: nothing beyond it has weight. lung: of the crop, once interpolated.
    behind: brighter tissue of the scan stays in front.
    """

    volume: Volume
    weight: Values
    mask: NDArray[np.bool_]
    center_mm: Array
    reach_mm: float
    lung: LungTexture
    behind: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A graft on the scan's grid, in a window of it. inside: share of each voxel that the graft's mask covers."""

    window: tuple[slice, slice, slice]
    points_mm: Array
    content: Values
    weight: Values
    inside: Values
    lung: LungTexture
    behind: bool


def graft_of(voi: Voi, *, own_surroundings: bool = False) -> Graft:
    """Half of the crops end at the nodule's first and last slice: one more slice there lets the weight run out."""
    affine = voi.volume.affine.copy()
    affine[:3, 3] = voi.volume.to_mm((-1.0, 0.0, 0.0))
    ends = ((1, 1), (0, 0), (0, 0))
    volume = Volume(hu=np.pad(voi.volume.hu, ends, mode="edge"), affine=affine)
    weight = np.pad(_side_weight(voi) if own_surroundings else _shape_weight(voi), ends)
    far = volume.to_mm(np.argwhere(weight > 0).astype(np.float64)) - voi.center_mm
    return Graft(
        volume=volume,
        weight=weight,
        mask=np.pad(voi.mask, ends),
        center_mm=voi.center_mm,
        reach_mm=float(np.linalg.norm(far, axis=1).max() + np.linalg.norm(volume.spacing_mm)),
        lung=texture_of(voi.volume.hu).interpolated(),
        behind=not own_surroundings,
    )


def _shape_weight(voi: Voi) -> Values:
    weight = voi.blend.astype(np.float32) / 255
    beside_mm = NONE_MM - weight * (NONE_MM - FULL_MM)
    sooner = ((TISSUE_NONE_MM - beside_mm) / (TISSUE_NONE_MM - FULL_MM)).clip(0, 1)
    foreign = (voi.volume.hu > TISSUE_HU) & ~voi.mask
    return np.where(foreign, np.minimum(weight, sooner), weight).astype(np.float32)


def _side_weight(voi: Voi) -> Values:
    """1 inside the crop, falling to 0 at its sides in plane; along z the crop is taken whole."""
    shape = voi.volume.hu.shape
    to_side = [
        np.minimum(np.arange(n), n - 1 - np.arange(n)) * s for n, s in zip(shape, voi.volume.spacing_mm, strict=True)
    ]
    nearest = np.minimum(to_side[1][:, None], to_side[2][None, :])
    return np.broadcast_to((nearest / FEATHER_MM).clip(0, 1), shape).astype(np.float32)


def place(graft: Graft, scan: Volume, center_mm: Array, frame: Array) -> Placed:
    """The graft with its centre at center_mm. frame: (3, 3), offsets in the scan -> offsets in the graft.

    Where the scan's slices are thicker than the graft's, several planes are averaged, as the scanner would.
    """
    zoom = float(np.linalg.norm(np.linalg.inv(frame), ord=2))
    planes = int(np.clip(np.ceil(scan.spacing_mm[0] / (graft.volume.spacing_mm[0] * zoom) - 0.2), 1, 3))
    window = window_round(scan, center_mm, graft.reach_mm * zoom + scan.spacing_mm[0] / 2)
    points = points_of(scan, window)
    step = scan.affine[:3, 0]
    totals = np.zeros((3, *points.shape[:-1]), dtype=np.float32)
    last = np.array(graft.volume.hu.shape) - 1
    for part in (np.arange(planes) + 0.5) / planes - 0.5:
        index = graft.volume.to_index(graft.center_mm + (points + part * step - center_mm) @ frame.T)
        totals[0] += trilinear(graft.volume.hu, index.clip(0, last), -1024)
        totals[1] += trilinear(graft.weight, index, 0)
        totals[2] += trilinear(graft.mask, index, 0)
    content, weight, inside = totals / np.float32(planes)
    return Placed(
        window=window,
        points_mm=points,
        content=content,
        weight=weight,
        inside=inside,
        lung=graft.lung,
        behind=graft.behind,
    )


def ball(scan: Volume, center_mm: Array, radius_mm: float) -> Placed:
    """A ball that fades over FEATHER_MM, without content: air."""
    window = window_round(scan, center_mm, radius_mm + FEATHER_MM)
    points = points_of(scan, window)
    beyond = np.linalg.norm(points - center_mm, axis=-1) - radius_mm
    weight = (1 - beyond / FEATHER_MM).clip(0, 1).astype(np.float32)
    empty = np.zeros_like(weight)
    lung = LungTexture(hu=None, noise_hu=0.0)
    return Placed(
        window=window, points_mm=points, content=empty - 1024, weight=weight, inside=empty, lung=lung, behind=True
    )


def sample(volume: Volume, points_mm: Array) -> Values:
    """HU at (..., 3) LPS mm; air beyond the volume."""
    return trilinear(volume.hu, volume.to_index(points_mm), -1024)


def window_round(scan: Volume, center_mm: Array, reach_mm: float) -> tuple[slice, slice, slice]:
    """The part of the scan's index space within reach of a point inside it."""
    middle, span = scan.to_index(center_mm), reach_mm / np.array(scan.spacing_mm)
    low = np.floor(middle - span).clip(0).astype(int)
    high = np.ceil(middle + span).clip(max=np.array(scan.hu.shape) - 1).astype(int) + 1
    k, r, c = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return k, r, c


def points_of(scan: Volume, window: tuple[slice, slice, slice]) -> Array:
    axes = (np.arange(s.start, s.stop) for s in window)
    return scan.to_mm(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float64))


def blended(there: Values, placed: Placed, scan_lung: LungTexture) -> Values:
    """The scan's HU in the window with the graft, whose lung and noise are brought to the scan's."""
    content, weight = (
        _with_noise(there, _with_lung(there, placed), placed.lung.noise_hu, scan_lung.noise_hu),
        placed.weight,
    )
    if placed.behind:
        # By degrees, or vessels would lose their soft edges.
        stays = ((there - FADES_FROM_HU) / (TISSUE_HU - FADES_FROM_HU)).clip(0, 1)
        weight = np.where(placed.content < there, weight * (1 - stays), weight)
    return np.asarray(there + weight * (content - there), dtype=np.float32)


def _with_lung(there: Values, placed: Placed) -> Values:
    """The graft's lung as dense as the lung that was there; its tissue stays as it is."""
    around = there[there < TISSUE_HU]
    if placed.lung.hu is None or not around.size:
        return placed.content
    share = ((TISSUE_HU - placed.content) / (TISSUE_HU - LUNG_BELOW_HU)).clip(0, 1)
    return np.asarray(placed.content + share * (np.median(around) - placed.lung.hu), dtype=np.float32)


def _with_noise(there: Values, content: Values, own_hu: float, scan_hu: float) -> Values:
    """Missing noise is that of the lung that was there; what is too much comes off the graft's own."""
    limit = NOISE_CLIP * max(own_hu, scan_hu)
    if own_hu < scan_hu:
        found = np.where(there < LUNG_BELOW_HU, texture(there).clip(-limit, limit), 0)
        found = np.sqrt(1 - (own_hu / scan_hu) ** 2) * found
        return np.asarray(content + found, dtype=np.float32)
    if own_hu > scan_hu:
        too_much = (1 - scan_hu / own_hu) * texture(content).clip(-limit, limit)
        return np.asarray(content - too_much, dtype=np.float32)
    return content


def texture(hu: NDArray[Any]) -> Values:
    """What differs from the mean of the four neighbours in plane, scaled to keep white noise's deviation."""
    padded = np.pad(hu.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return np.asarray((padded[:, 1:-1, 1:-1] - around / 4) / np.sqrt(1.25), dtype=np.float32)


def texture_of(hu: NDArray[np.int16], lung: NDArray[np.bool_] | None = None) -> LungTexture:
    """lung: where it is known; else what is as dark as lung. Noise by the median, so that vessels don't count."""
    values = np.abs(texture(hu))
    among = (hu < TISSUE_HU) & (hu > AIR_HU) if lung is None else lung
    enough = among.sum() >= LEAST_LUNG_VOXELS
    return LungTexture(
        hu=float(np.median(hu[among])) if enough else None,
        noise_hu=float(1.4826 * np.median(values[among & (hu < LUNG_BELOW_HU)] if enough else values)),
    )
