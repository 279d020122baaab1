"""Candidates' cubes -> how much each looks like a nodule in 3D.

Slices can't tell a vessel that runs through them from a nodule; a cube of the 1 mm grid can.
The detector and the trainer both cut their cubes here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicom_node.model.spec import PreprocessSpec, RefinementSpec

Norm = Callable[[int], nn.Module]


def cut_cubes(hu: NDArray[np.int16], centers: NDArray[np.float64], edge: int, prep: PreprocessSpec) -> Tensor:
    """(D, H, W) HU on the grid, (n, 3) fractional (slice, row, column) -> (n, 1, edge, edge, edge) int16 HU.

    Whole voxels, no interpolation: the cube whose middle is nearest; air beyond the ends.
    """
    cubes = np.full((len(centers), edge, edge, edge), prep.air_hu, dtype=np.int16)
    firsts = np.floor(centers.reshape(-1, 3) - (edge - 1) / 2 + 0.5).astype(np.int64)
    for cube, first in zip(cubes, firsts, strict=True):
        low, high = first.clip(0, hu.shape), (first + edge).clip(0, hu.shape)
        to = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
        cube[to] = hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return torch.from_numpy(cubes)[:, None]


def fused(slice_score: float, logit: float, weight: float) -> float:
    """0 to 1: the geometric mean of what the slices and the cube say, by weight."""
    cube_score = 1 / (1 + math.exp(-min(max(logit, -50.0), 50.0)))
    return float(slice_score ** (1 - weight) * cube_score**weight)


class Refiner(nn.Module):
    """A small residual network. In: (n, 1, edge, edge, edge), the HU window as 0..1. Out: (n,) logits.

    Without `norm` each convolution has a bias: that is what a bundle holds. The trainer gives BatchNorm3d,
    and folds it into the convolutions when it is done.
    """

    def __init__(self, spec: RefinementSpec, norm: Norm | None = None) -> None:
        super().__init__()
        last, edge = spec.widths[-1], spec.cube
        for _ in spec.widths[1:]:
            edge = math.ceil(edge / 2)
        self.stem = convolution(1, spec.widths[0], norm)
        self.stages = nn.Sequential(*(Stage(a, b, norm) for a, b in pairwise(spec.widths)))
        # Each channel weighs the places of its map for itself: the candidate is in the middle, not anywhere.
        self.pool = nn.Conv3d(last, last, edge, groups=last)
        self.logit = nn.Linear(last, 1)

    def forward(self, cubes: Tensor) -> Tensor:
        x = self.stages(self.stem(cubes).relu())
        return torch.as_tensor(self.logit(self.pool(x).relu().flatten(1))[:, 0])


class Stage(nn.Module):
    """Half the edge, another width."""

    def __init__(self, channels: int, width: int, norm: Norm | None) -> None:
        super().__init__()
        self.first = convolution(channels, width, norm, stride=2)
        self.second = convolution(width, width, norm)
        self.shortcut = convolution(channels, width, norm, kernel=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x).relu()) + self.shortcut(x))


def convolution(channels: int, width: int, norm: Norm | None, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Padded, so that only the stride changes the edge."""
    layer = nn.Conv3d(channels, width, kernel, stride, padding=kernel // 2, bias=norm is None)
    return nn.Sequential(layer, norm(width)) if norm else nn.Sequential(layer)
