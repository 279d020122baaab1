"""Real nodules + real lungs -> composites: slices to learn from, and whole volumes to be evaluated on.

Two ways to put a nodule in. "masked": the nodule and 1 to 3.5 mm round it blend into the new lung, where
bright tissue of the lung stays in front; that works inside the lung and against its wall. "patch": the whole
crop with the nodule's own surroundings, wall and vessels, feathered at its sides. Both leave traces, so
the same traces are also left round nothing (distractors): the network must not learn them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.model.lungs import find_lungs
from dicom_node.model.preprocess import resample, trilinear
from dicom_node.model.spec import PreprocessSpec
from training.augment import random_frame, vary_intensity
from training.voi import Voi

Array = NDArray[np.float64]
Planes = NDArray[np.float32]
BACKGROUND_MARGIN_MM = 30.0
FEATHER_MM = 4.0
LEAST_WIDTH_MM = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A lung to put nodules into.

    grid: 1 mm LPS. distance_mm: int8, to the lungs, negative inside. ignore: (n, 4) x, y, z, radius of
    what may be a nodule and must be learned neither way.
    """

    grid: Volume
    distance_mm: NDArray[np.int8]
    ignore: Array
    inside: NDArray[np.int32]
    wall: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """planes_hu: (channels, H, W). masks: (n, H, W) float32 0..1, the middle plane. ignore: (m, 4) x1, y1, x2, y2."""

    planes_hu: Planes
    masks: Planes
    ignore: Array


def make_background(volume: Volume, ignore: Array, prep: PreprocessSpec) -> Background:
    lungs = find_lungs(volume, prep.air_hu)
    grid = resample(volume, prep.spacing_mm, prep.air_hu, lungs.box_mm(BACKGROUND_MARGIN_MM))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.hu.shape), indexing="ij"), axis=-1)
    distance = lungs.distance_at(grid.to_mm(index.astype(np.float64))).clip(-100, 100).astype(np.int8)
    return background_from(grid, distance, ignore)


def background_from(grid: Volume, distance_mm: NDArray[np.int8], ignore: Array) -> Background:
    inside = np.argwhere(distance_mm < -1).astype(np.int32)
    wall = np.argwhere((distance_mm <= 0) & (distance_mm > -6)).astype(np.int32)
    return Background(grid=grid, distance_mm=distance_mm, ignore=ignore, inside=inside, wall=wall)


class SliceComposer:
    """Draws training samples. The same (seed, number) gives the same sample, whatever came before."""

    def __init__(self, backgrounds: list[Background], vois: list[Voi], prep: PreprocessSpec, size: int) -> None:
        self.backgrounds, self.vois, self.prep, self.size = backgrounds, vois, prep, size
        diameter = np.array([v.diameter_mm for v in vois])
        # Large nodules are rare (8 % are over 15 mm) and are the ones nobody may miss.
        weight = np.select([diameter > 15, diameter > 10, diameter > 4.5], [5.0, 2.5, 1.0], 0.8)
        self.weight = weight / weight.sum()
        half = (size - 1) / 2
        z, y, x = np.meshgrid(
            np.array(prep.slice_offsets, dtype=np.float64) * prep.spacing_mm,
            (np.arange(size) - half) * prep.spacing_mm,
            (np.arange(size) - half) * prep.spacing_mm,
            indexing="ij",
        )
        self.local_mm = np.stack([x, y, z], axis=-1)
        self.middle = prep.slice_offsets.index(0)

    def sample(self, seed: int, number: int) -> Sample:
        rng = np.random.default_rng([seed, number])
        background = self.backgrounds[rng.integers(len(self.backgrounds))]
        where = background.wall if rng.random() < 0.45 else background.inside
        center = background.grid.to_mm(where[rng.integers(len(where))].astype(np.float64))
        points = self.local_mm @ random_frame(rng, 10, 20, (0.85, 1.2)).T + center
        index = background.grid.to_index(points)
        planes = trilinear(background.grid.hu, index, self.prep.air_hu)
        distance = trilinear(background.distance_mm, index[self.middle], 100.0)
        ignore = _spheres_on_plane(background.ignore, points[self.middle])
        planes, masks, unsure = self._insert_all(rng, planes, distance)
        return Sample(
            planes_hu=vary_intensity(rng, planes),
            masks=np.stack(masks) if masks else np.zeros((0, self.size, self.size), np.float32),
            ignore=np.concatenate([ignore, np.array(unsure).reshape(-1, 4)]),
        )

    def _insert_all(
        self, rng: np.random.Generator, planes: Planes, distance: Planes
    ) -> tuple[Planes, list[Planes], list[tuple[float, ...]]]:
        taken = np.zeros((self.size, self.size), bool)
        masks: list[Planes] = []
        unsure: list[tuple[float, ...]] = []
        for _ in range(rng.poisson(0.6)):
            planes, _, _ = self._insert(rng, planes, distance, taken, nothing=True)
        for _ in range(rng.choice(4, p=[0.25, 0.35, 0.25, 0.15])):
            planes, mask, sure = self._insert(rng, planes, distance, taken, nothing=False)
            if mask is None or mask.max() < 0.5:
                continue
            if sure:
                masks.append(mask)
            else:
                unsure.append(box_of(mask))
        return planes, masks, unsure

    def _insert(
        self, rng: np.random.Generator, planes: Planes, distance: Planes, taken: NDArray[np.bool_], nothing: bool
    ) -> tuple[Planes, Planes | None, bool]:
        """(planes with one more nodule, its mask on the middle plane, whether the mask can be trusted)."""
        voi = self.vois[rng.choice(len(self.vois), p=self.weight)]
        patch = rng.random() < 0.35
        frame = random_frame(rng, 8 if patch else 25, 180, (0.8, 1.25))
        at = self._place(rng, distance, taken, voi.diameter_mm / 2, patch)
        if at is None:
            return planes, None, False
        extent = np.abs(voi.volume.to_mm(np.argwhere(voi.mask).astype(np.float64)) - voi.center_mm).max(axis=0)
        depth = np.array([0, 0, rng.uniform(-1, 1) * extent[2]])
        window = _window(at, _reach(voi, patch), self.size)
        offset = (self.local_mm[window] - self.local_mm[self.middle, at[0], at[1]] + depth) @ frame.T
        index = voi.volume.to_index(voi.center_mm + offset)
        weight = _patch_weight(voi, index) if patch else trilinear(voi.blend, index, 0) / np.float32(255)
        content = self._nothing(rng, patch)[window] if nothing else self._content(voi, index)
        out, mask = planes.copy(), np.zeros((self.size, self.size), np.float32)
        out[window] = blend(planes[window], content, weight, behind=not patch)
        mask[window[1:]] = trilinear(voi.mask, index[self.middle], 0)
        visible = mask if patch else mask * (distance <= 1)
        taken[window[1:]] |= weight[self.middle] > 0
        sure = not _on_edge(mask) and _width(visible) >= LEAST_WIDTH_MM and visible.sum() > 0.6 * mask.sum()
        return out, visible, sure

    def _content(self, voi: Voi, index: Array) -> Planes:
        return trilinear(voi.volume.hu, index.clip(0, np.array(voi.volume.hu.shape) - 1), self.prep.air_hu)

    def _nothing(self, rng: np.random.Generator, patch: bool) -> Planes:
        """Other lung, for a distractor; without its vessels where they would be cut to a nodule's shape."""
        other = self.backgrounds[rng.integers(len(self.backgrounds))]
        center = other.grid.to_mm(other.inside[rng.integers(len(other.inside))].astype(np.float64))
        points = self.local_mm @ random_frame(rng, 10, 180, (0.85, 1.2)).T + center
        content = trilinear(other.grid.hu, other.grid.to_index(points), self.prep.air_hu)
        return content if patch else content.clip(max=-700)

    def _place(
        self, rng: np.random.Generator, distance: Planes, taken: NDArray[np.bool_], radius: float, patch: bool
    ) -> tuple[int, int] | None:
        """A free pixel in the lung; every second masked nodule lies within its radius of the wall."""
        deep = -distance
        at_wall = not patch and rng.random() < 0.5
        allowed = (deep > 0.25 * radius) & (deep < 1.1 * radius + 1) if at_wall else deep > min(radius, 8.0)
        grown = taken.copy()
        reach = int(radius) + 4
        for shift in (-reach, reach):
            grown |= np.roll(taken, shift, 0) | np.roll(taken, shift, 1)
        rim = max(3, min(reach, self.size // 4))
        allowed[:rim] = allowed[-rim:] = False
        allowed[:, :rim] = allowed[:, -rim:] = False
        spots = np.argwhere(allowed & ~grown)
        if not len(spots):
            return None
        row, column = spots[rng.integers(len(spots))]
        return int(row), int(column)


def _reach(voi: Voi, patch: bool) -> int:
    """Pixels from the nodule's centre beyond which nothing changes, at the largest zoom."""
    inside = np.argwhere(np.ones_like(voi.mask) if patch else voi.blend > 0).astype(np.float64)
    ends = np.array([inside.min(axis=0), inside.max(axis=0)])
    return int(1.3 * np.linalg.norm(voi.volume.to_mm(ends) - voi.center_mm, axis=1).max()) + 2


def _window(at: tuple[int, int], reach: int, size: int) -> tuple[slice, slice, slice]:
    rows, columns = (slice(max(0, i - reach), min(size, i + reach + 1)) for i in at)
    return slice(None), rows, columns


def blend(planes: Planes, content: Planes, weight: Planes, behind: bool) -> Planes:
    """Content over planes by weight. behind: where the planes are brighter tissue, they stay in front."""
    mixed = planes + weight * (content - planes)
    if not behind:
        return mixed
    return np.where((planes > -500) & (content < planes), planes, mixed)


def _patch_weight(voi: Voi, index: Array) -> Planes:
    """1 inside the crop, falling to 0 at its sides; along z the crop is taken as it is."""
    shape, spacing = np.array(voi.volume.hu.shape), np.array(voi.volume.spacing_mm)
    to_side = (np.minimum(index, shape - 1 - index) * spacing)[..., 1:].min(axis=-1)
    in_depth = np.minimum(index, shape - 1 - index)[..., 0] * spacing[0] > -3.0
    return np.asarray((to_side / FEATHER_MM).clip(0, 1) * in_depth, dtype=np.float32)


def _spheres_on_plane(spheres: Array, plane_mm: Array) -> Array:
    """(n, 4) spheres -> (m, 4) boxes x1, y1, x2, y2 of those that the plane cuts."""
    boxes = [
        box_of(cut.astype(np.float32))
        for x, y, z, radius in spheres
        if (cut := np.linalg.norm(plane_mm - (x, y, z), axis=-1) < radius).any()
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def box_of(mask: Planes) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 in pixel edges of what is at least 0.5 (of anything set, where nothing is)."""
    rows, columns = np.nonzero(mask >= min(0.5, float(mask.max())))
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def _width(mask: Planes) -> float:
    if mask.max() < 0.5:
        return 0.0
    x1, y1, x2, y2 = box_of(mask)
    return min(x2 - x1, y2 - y1)


def _on_edge(mask: Planes) -> bool:
    return bool(max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) >= 0.5)
