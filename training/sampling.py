"""Prepared scans -> Draws: which scan, which place, which turn in space. Numbers only; voxels come in `slices`.

Draw n of seed s is always the same, whatever was drawn before: a resumed run sees what an unbroken one would
have seen, and any number of processes share one stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.augment import exact_frame, random_frame
from training.cases import DataProblem
from training.prepared import PreparedNodule, PreparedScan
from training.recipe import Augmentation, Sampling

Array = NDArray[np.float64]
LUNG_TRIES = 200
WITHIN_CROP = 0.3  # a crop's aim lies at most this part of its side off its centre


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One slice to be cut. center_mm: LPS of the crop's middle; frame: (3, 3) turns, flips and zooms the
    crop's x, y, z (in grid steps) onto LPS directions.

    number: seeds what is random further on (noise).
    """

    scan: PreparedScan
    center_mm: Array
    frame: Array
    number: int


class Sampler:
    """Draws crops, half of them at nodules (`Sampling.positive_share`), some of the rest at hard places."""

    def __init__(
        self,
        scans: Sequence[PreparedScan],
        sampling: Sampling,
        augmentation: Augmentation,
        hard_mm: Mapping[str, Array],
        seed: int,
    ) -> None:
        """hard_mm: scan uid -> (n, 3) places. Raises DataProblem where there is nothing to draw from."""
        if not scans:
            raise DataProblem("no scan to train on: look at the cache's index.json for what was left out")
        self._scans, self._sampling, self._augmentation, self._seed = list(scans), sampling, augmentation, seed
        self._nodules = [(scan, nodule) for scan in self._scans for nodule in scan.form.nodules]
        if not self._nodules and sampling.positive_share > 0:
            raise DataProblem("no nodule in any scan to train on: set sampling.positive_share to 0 if that is meant")
        weight = np.array([sampling.large_weight if n.diameter_mm > sampling.large_mm else 1 for _, n in self._nodules])
        self._weight = weight / max(weight.sum(), 1)
        self._hard = [
            (scan, np.asarray(place, dtype=np.float64)) for scan in self._scans for place in _hard_of(scan, hard_mm)
        ]
        self._whole = [scan for scan in self._scans if scan.form.whole_chest] or self._scans

    def draw(self, number: int) -> Draw:
        rng = np.random.default_rng([self._seed, number])
        scan, aim = self._aim(rng)
        plan = self._augmentation
        side = self._sampling.crop_mm
        if rng.random() < plan.exact_share:
            frame = exact_frame(rng, plan.flips)
            # A voxel's centre, so that planes are the grid's own.
            aim = scan.to_mm(scan.to_index(aim).round())
            shift = rng.integers(-int(side * WITHIN_CROP), int(side * WITHIN_CROP) + 1, 2).astype(np.float64)
        else:
            frame = random_frame(rng, plan.tilt_deg, plan.turn_deg, plan.zoom, plan.flips)
            shift = rng.uniform(-WITHIN_CROP, WITHIN_CROP, 2) * side
        off = frame @ np.array([*shift, 0.0]) * scan.form.spacing_mm
        return Draw(scan=scan, center_mm=aim + off, frame=frame, number=number)

    def _aim(self, rng: np.random.Generator) -> tuple[PreparedScan, Array]:
        if self._nodules and rng.random() < self._sampling.positive_share:
            scan, nodule = self._nodules[rng.choice(len(self._nodules), p=self._weight)]
            return scan, _inside(rng, nodule)
        if self._hard and rng.random() < self._sampling.hard_share:
            scan, place = self._hard[rng.integers(len(self._hard))]
            return scan, np.asarray(place + rng.uniform(-1, 1, 3))
        return _somewhere(rng, self._whole[rng.integers(len(self._whole))])


def _hard_of(scan: PreparedScan, hard_mm: Mapping[str, Array]) -> list[Array]:
    """Excluded findings are hard, too: their own voxels are ignored, what surrounds them is background."""
    return [*hard_mm.get(scan.form.uid, np.zeros((0, 3))), *(np.array(ball[:3]) for ball in scan.form.ignored)]


def _inside(rng: np.random.Generator, nodule: PreparedNodule) -> Array:
    """A place at some height of the nodule: all its slices are learned from, not only the widest."""
    height = rng.uniform(-0.45, 0.45) * nodule.diameter_mm
    x, y, z = nodule.center_mm
    return np.array([x, y, z + height])


def _somewhere(rng: np.random.Generator, scan: PreparedScan) -> tuple[PreparedScan, Array]:
    distance = scan.distance()
    for _ in range(LUNG_TRIES):
        index = rng.integers(0, distance.shape)
        if distance[tuple(index)] <= 0:
            break
    return scan, scan.to_mm(index.astype(np.float64))


def ball_on_plane(center_mm: Array, radius_mm: float, draw: Draw) -> tuple[float, float, float] | None:
    """Where the draw's middle plane cuts a ball: (x, y, radius) in grid steps off the crop's middle, or None."""
    to_mm = draw.frame * draw.scan.form.spacing_mm
    x, y, z = np.linalg.solve(to_mm, np.asarray(center_mm) - draw.center_mm)
    radius = radius_mm / float(np.cbrt(abs(np.linalg.det(to_mm))))
    if abs(z) >= radius:
        return None
    return float(x), float(y), math.sqrt(radius**2 - z**2)
