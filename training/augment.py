"""Random 3D geometry and CT intensity. Geometry is drawn before any slice is cut: planes are sampled through it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def random_frame(
    rng: np.random.Generator, tilt_deg: float, turn_deg: float, zoom: tuple[float, float], flips: bool = True
) -> Array:
    """(3, 3): rotation, flips and zoom, acting on LPS x, y, z. tilt: off the axial plane; turn: within it."""
    tilt_x, tilt_y = np.radians(rng.uniform(-tilt_deg, tilt_deg, 2))
    turn = math.radians(rng.uniform(-turn_deg, turn_deg))
    frame = _turn(2, turn) @ _turn(0, float(tilt_x)) @ _turn(1, float(tilt_y))
    flip = np.where(rng.random(3) < (0.5 if flips else 0.0), -1.0, 1.0)
    return np.asarray(frame * flip * math.exp(rng.uniform(math.log(zoom[0]), math.log(zoom[1]))))


def _turn(axis: int, angle: float) -> Array:
    a, b = [i for i in range(3) if i != axis]
    turn = np.eye(3)
    turn[a, a] = turn[b, b] = math.cos(angle)
    turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
    return turn


def vary_intensity(rng: np.random.Generator, planes_hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Other scanners: an offset, a softer kernel, contrast medium, noise. (channels, H, W) HU in and out."""
    out = planes_hu + np.float32(rng.normal(0, 12))
    if rng.random() < 0.3:
        out = _soften(out)
    if rng.random() < 0.3:
        out = np.where(out > 20, 20 + (out - 20) * rng.uniform(0.7, 2.0), out)
    if rng.random() < 0.5:
        out = out + rng.normal(0, rng.uniform(3, 35), out.shape)
    return out.astype(np.float32)


def _soften(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    for axis in (1, 2):
        planes = (0.25 * (np.roll(planes, 1, axis) + 2 * planes + np.roll(planes, -1, axis))).astype(np.float32)
    return planes
