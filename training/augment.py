"""Random 3D geometry and CT intensity. Geometry is drawn before any slice is cut: planes are sampled through it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.recipe import Augmentation

Array = NDArray[np.float64]
SOFT_TISSUE_HU = 20.0


def random_frame(
    rng: np.random.Generator, tilt_deg: float, turn_deg: float, zoom: tuple[float, float], flips: bool = True
) -> Array:
    """(3, 3): rotation, flips and zoom, acting on LPS x, y, z. tilt: off the axial plane; turn: within it."""
    tilt_x, tilt_y = np.radians(rng.uniform(-tilt_deg, tilt_deg, 2))
    turn = math.radians(rng.uniform(-turn_deg, turn_deg))
    frame = _turn(2, turn) @ _turn(0, float(tilt_x)) @ _turn(1, float(tilt_y))
    flip = np.where(rng.random(3) < (0.5 if flips else 0.0), -1.0, 1.0)
    return np.asarray(frame * flip * math.exp(rng.uniform(math.log(zoom[0]), math.log(zoom[1]))))


def exact_frame(rng: np.random.Generator, flips: bool = True) -> Array:
    """(3, 3): flips and quarter turns about z, which move voxels onto voxels."""
    frame = np.eye(3)
    if flips:
        if rng.random() < 0.5:
            frame = frame[[1, 0, 2]]
        frame = frame * np.where(rng.random(3) < 0.5, -1.0, 1.0)
    return np.asarray(frame)


def _turn(axis: int, angle: float) -> Array:
    a, b = [i for i in range(3) if i != axis]
    turn = np.eye(3)
    turn[a, a] = turn[b, b] = math.cos(angle)
    turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
    return turn


def vary_intensity(planes_hu: Tensor, plan: Augmentation, seed: int) -> Tensor:
    """Other scanners: an offset, a softer kernel, contrast medium, noise. (channels, H, W) HU in and out."""
    chance = torch.Generator().manual_seed(seed)
    soften, contrast, stretch, noisy, noise = torch.rand(5, generator=chance).tolist()
    out = planes_hu + plan.offset_hu * torch.randn(1, generator=chance).item()
    if soften < plan.soften_share:
        out = _soften(out)
    if contrast < plan.contrast_share:
        factor = 0.7 + 1.3 * stretch
        out = torch.where(out > SOFT_TISSUE_HU, SOFT_TISSUE_HU + (out - SOFT_TISSUE_HU) * factor, out)
    if noisy < plan.noise_share:
        grain = torch.randn(out.shape, generator=chance).to(out.device)
        out = out + grain * (plan.noise_hu * noise)
    return out


def _soften(planes: Tensor) -> Tensor:
    """In plane, with the weights 1 2 1."""
    line = planes.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line[None, :])[None, None]
    padded = functional.pad(planes[:, None], (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernel)[:, 0]
