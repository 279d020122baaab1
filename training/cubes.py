"""Prepared scans + mined candidates -> cubes with labels: 1 shows a nodule in its middle, 0 does not.

Sample n of seed s is always the same. Geometry and CT intensity are varied in 3D; the cube itself is cut and
windowed by the detector's own functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dicom_node.model.preprocess import windowed
from dicom_node.model.refine import cut_cubes
from dicom_node.model.spec import PreprocessSpec
from training.augment import exact_frame, random_frame, vary_intensity
from training.cases import DataProblem
from training.mine import MinedCandidate, within
from training.prepared import PreparedScan
from training.recipe import CubeSampling

Array = NDArray[np.float64]
BRIGHT_HU = -400
WALL_MM = 2  # beyond the lung mask's edge: where a nodule at the pleura, and what looks like one, can be
CLEAR_MM = 6.0
DRAWS = 512
LEAST_SCORE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Positive:
    """center: fractional (slice, row, column); jitter: how far from it a cube may be centred, in voxels."""

    scan: int
    center: Array
    jitter: float


class CubeSampler:
    """Draws cubes of `edge` voxels from scans, whose candidates are looked up by uid."""

    def __init__(
        self,
        scans: Sequence[PreparedScan],
        mined: Mapping[str, Sequence[MinedCandidate]],
        edge: int,
        prep: PreprocessSpec,
        plan: CubeSampling,
    ) -> None:
        self.scans, self.edge, self.prep, self.plan = scans, edge, prep, plan
        self.hu, self.distance = [s.hu() for s in scans], [s.distance() for s in scans]
        self.taken = [_taken(s) for s in scans]
        self.positives = [p for i, s in enumerate(scans) for p in _positives(i, s, mined, plan)]
        self.false = [(i, c) for i, s in enumerate(scans) for c in mined.get(s.form.uid, ()) if c.kind == "false"]
        if not self.positives or not self.false:
            raise DataProblem(
                f"{len(scans)} scans: {len(self.positives)} places at nodules and {len(self.false)} false candidates; "
                "both are needed to learn from; mine more scans of this cache, or export the first stage alone"
            )
        scores = np.array([max(c.score, LEAST_SCORE) for _, c in self.false])
        self.false_weight = scores / scores.sum()

    def sample(self, seed: int, number: int) -> tuple[Tensor, float]:
        """((1, edge, edge, edge) float32 0..1, label)."""
        rng = np.random.default_rng([seed, number])
        kind = rng.random()
        if kind < self.plan.positive_share:
            chosen = self.positives[rng.integers(len(self.positives))]
            return self._cube(rng, chosen.scan, chosen.center + _in_ball(rng) * chosen.jitter), 1.0
        if kind < self.plan.positive_share + self.plan.mined_share:
            scan, candidate = self.false[rng.choice(len(self.false), p=self.false_weight)]
            return self._cube(rng, scan, self.scans[scan].to_index(np.array(candidate.center_mm))), 0.0
        scan = int(rng.integers(len(self.scans)))
        return self._cube(rng, scan, self._bright(rng, scan)), 0.0

    def _bright(self, rng: np.random.Generator, scan: int) -> Array:
        """A voxel of a vessel, a wall or the like, away from nodules and from what is ignored."""
        hu, distance, taken = self.hu[scan], self.distance[scan], self.taken[scan]
        for _ in range(100):
            at = rng.integers(0, hu.shape, size=(DRAWS, 3))
            k, r, c = at.T
            for point in at[(hu[k, r, c] > BRIGHT_HU) & (distance[k, r, c] <= WALL_MM)]:
                if not within(taken, self.scans[scan].to_mm(point.astype(np.float64))):
                    return np.asarray(point, dtype=np.float64)
        raise DataProblem(
            f"{self.scans[scan].folder}: no voxel above {BRIGHT_HU} HU in these lungs; leave the scan out"
        )

    def _cube(self, rng: np.random.Generator, scan: int, center: Array) -> Tensor:
        """Cut larger than needed, so that a turned cube holds no corner from outside of it."""
        plan = self.plan.augmentation
        if rng.random() < plan.exact_share:
            frame, cut = exact_frame(rng, plan.flips), self.edge
        else:
            frame = random_frame(rng, plan.tilt_deg, plan.turn_deg, plan.zoom, plan.flips)
            cut = self.edge + 2 * math.ceil(self.edge * (math.sqrt(3) * plan.zoom[1] - 1) / 2)
        hu = cut_cubes(self.hu[scan], center[None], cut, self.prep)[0].float()
        varied = vary_intensity(turned(hu, frame, self.edge)[0], plan, int(rng.integers(2**31)))
        return windowed(varied, self.prep)[None]


def turned(cube: Tensor, frame: Array, edge: int) -> Tensor:
    """(1, n, n, n) -> (1, edge, edge, edge): what lies at `frame @ offset` from the middle; n - edge must be even.

    Offsets are x, y, z, as the frame's: columns, rows, slices of the cube.
    """
    scale = (edge - 1) / (cube.shape[-1] - 1)
    theta = torch.zeros(1, 3, 4)
    theta[0, :, :3] = torch.from_numpy(frame).float() * scale
    grid = functional.affine_grid(theta, [1, 1, edge, edge, edge], align_corners=True)
    return functional.grid_sample(cube[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]


def _positives(
    number: int, scan: PreparedScan, mined: Mapping[str, Sequence[MinedCandidate]], plan: CubeSampling
) -> list[Positive]:
    """Nodules by their labels' centroids, and where the first network saw them."""
    middles = _centroids(scan)
    found = [
        Positive(
            scan=number,
            center=middles[n.number],
            jitter=min(plan.jitter_mm, 0.4 * n.diameter_mm) / scan.form.spacing_mm,
        )
        for n in scan.form.nodules
    ]
    hits = [c for c in mined.get(scan.form.uid, ()) if c.kind == "hit"]
    return found + [Positive(scan=number, center=scan.to_index(np.array(c.center_mm)), jitter=0.0) for c in hits]


def _centroids(scan: PreparedScan) -> dict[int, Array]:
    labels = scan.labels()
    at = np.argwhere(labels)
    numbers = labels[tuple(at.T)]
    missing = {n.number for n in scan.form.nodules} - set(numbers.tolist())
    if missing:
        raise DataProblem(f"{scan.folder / 'labels.npy'} lacks nodules {sorted(missing)}: run prepare again")
    return {n.number: at[numbers == n.number].mean(axis=0) for n in scan.form.nodules}


def _taken(scan: PreparedScan) -> Array:
    """(n, 4) x, y, z, radius: where no bright structure may be taken for a negative."""
    nodules = [(*n.center_mm, n.diameter_mm / 2 + CLEAR_MM) for n in scan.form.nodules]
    return np.array([*nodules, *scan.form.ignored], dtype=np.float64).reshape(-1, 4)


def _in_ball(rng: np.random.Generator) -> Array:
    """A point of the unit ball, uniformly."""
    direction = rng.normal(size=3)
    return np.asarray(direction / np.linalg.norm(direction) * rng.random() ** (1 / 3))
