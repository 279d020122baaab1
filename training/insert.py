"""Held-out nodules into a whole held-out scan: composites for judging the product's own path, with their truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.model.lungs import Lungs, find_lungs
from dicom_node.model.preprocess import trilinear
from training.augment import random_frame
from training.compose import blend
from training.voi import Voi

Array = NDArray[np.float64]
APART_MM = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """An inserted nodule: mask (d, h, w) with its corner in the composite; diameter_mm of a ball of its volume."""

    name: str
    mask: NDArray[np.bool_]
    corner: tuple[int, int, int]
    center_mm: Array
    diameter_mm: float


def compose_volume(
    scan: Volume, vois: list[Voi], keep_clear: Array, seed: int, tries: int = 200
) -> tuple[Volume, list[Truth]]:
    """The scan with the nodules blended into its lungs, half of them at the wall; the same seed, the same bits.

    keep_clear: (n, 4) x, y, z, radius in mm of places where nothing may be put.
    """
    rng = np.random.default_rng(seed)
    lungs = find_lungs(scan)
    inside = lungs.grid.to_mm(np.argwhere(lungs.mask).astype(np.float64))
    deep = -lungs.distance_at(inside)
    composite = Volume(hu=scan.hu.copy(), affine=scan.affine)
    busy, truths = keep_clear.copy(), []
    for voi in sorted(vois, key=lambda v: -v.diameter_mm):
        radius = voi.diameter_mm / 2
        for attempt in range(tries):
            fits = (deep > 0.3 * radius) & (deep < radius + 1) if attempt % 2 else deep > radius + 2
            center = inside[rng.choice(np.flatnonzero(fits))]
            if (np.linalg.norm(busy[:, :3] - center, axis=1) > busy[:, 3] + radius + APART_MM).all():
                break
        else:
            continue
        truth = _insert(composite, voi, center, random_frame(rng, 25, 180, (0.95, 1.05)), lungs)
        if truth is not None:
            truths.append(truth)
            busy = np.concatenate([busy, [[*center, radius]]])
    return composite, truths


def _insert(composite: Volume, voi: Voi, center: Array, frame: Array, lungs: Lungs) -> Truth | None:
    """Writes into the composite's voxels; None where too little of the nodule is inside the lung."""
    solid = voi.volume.to_mm(np.argwhere(voi.blend > 0).astype(np.float64)) - voi.center_mm
    reach = float(np.linalg.norm(solid, axis=1).max()) * 1.1
    middle, span = composite.to_index(center), reach / np.array(composite.spacing_mm)
    low = np.floor(middle - span).clip(0).astype(int)
    high = np.ceil(middle + span).clip(max=np.array(composite.hu.shape) - 1).astype(int) + 1
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    axes = (np.arange(a, b) for a, b in zip(low, high, strict=True))
    points = composite.to_mm(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float64))
    index = voi.volume.to_index(voi.center_mm + (points - center) @ frame.T)
    content = trilinear(voi.volume.hu, index.clip(0, np.array(voi.volume.hu.shape) - 1), -1024)
    weight = trilinear(voi.blend, index, 0) / np.float32(255)
    nodule = trilinear(voi.mask, index, 0) >= 0.5
    visible = nodule & (lungs.distance_at(points) <= 1)
    if visible.sum() < max(1, 0.6 * nodule.sum()):
        return None
    there = composite.hu[window].astype(np.float32)
    composite.hu[window] = blend(there, content, weight, behind=True).round().astype(np.int16)
    return _truth(composite, voi.name, visible, low)


def _truth(composite: Volume, name: str, visible: NDArray[np.bool_], low: NDArray[np.int64]) -> Truth:
    where = np.argwhere(visible)
    first, last = where.min(axis=0), where.max(axis=0) + 1
    corner = low + first
    return Truth(
        name=name,
        mask=visible[tuple(slice(a, b) for a, b in zip(first, last, strict=True))],
        corner=(int(corner[0]), int(corner[1]), int(corner[2])),
        center_mm=composite.to_mm(where.mean(axis=0) + low),
        diameter_mm=float((6 * visible.sum() * composite.voxel_mm3 / np.pi) ** (1 / 3)),
    )
