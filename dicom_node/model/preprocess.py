"""The one definition of the network's input: Volume -> 1 mm LPS grid -> windowed, upsampled slice stacks.

The detector, the trainer and the evaluator all call this module with a bundle's PreprocessSpec; the grid is made
by `grids.resample`.

Coordinates. A grid voxel i covers [i, i + 1) in edge coordinates, so its centre is i + 0.5. Model pixels
are edge coordinates times `upsampling`; boxes are x1, y1, x2, y2 in model pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dicom_node.model.spec import PreprocessSpec


def network_input(planes_hu: Tensor, spec: PreprocessSpec) -> Tensor:
    """(n, channels, H, W) HU on the grid -> (n, channels, H * up, W * up) float32, the HU window as 0..1."""
    x = windowed(planes_hu, spec)
    if spec.upsampling == 1:
        return x
    return functional.interpolate(x, scale_factor=spec.upsampling, mode="bilinear", align_corners=False)


def windowed(hu: Tensor, spec: PreprocessSpec) -> Tensor:
    """HU of any shape -> float32, the HU window as 0..1."""
    low, high = spec.hu_window
    return ((hu.to(torch.float32) - low) / (high - low)).clamp(0, 1)


def slice_stacks(grid: Tensor, centers: list[int], spec: PreprocessSpec) -> Tensor:
    """(D, H, W) HU grid -> (n, channels, H, W): each centre slice with its neighbours; air beyond the ends."""
    wanted = torch.tensor(centers)[:, None] + torch.tensor(spec.slice_offsets)[None, :]
    inside = (wanted >= 0) & (wanted < len(grid))
    stacks = grid[wanted.clamp(0, len(grid) - 1).to(grid.device)]
    stacks[(~inside).to(grid.device)] = spec.air_hu
    return stacks
