"""Scans drawn again and again -> low and high of a figure. One rule for every interval of an evaluation.

Scans are drawn with replacement, as many as there are; a scan drawn twice counts twice. A draw is kept as how often
each scan came up, so that a curve sorted once serves all draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Bounds = tuple[float, float]

SAMPLES, LEVEL = 1000, 0.95


def draws(truths_per_scan: NDArray[np.int64], samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """`samples` times: how often each scan was drawn, int64 (scans,). Draws that hold no truth are drawn again:
    a sensitivity of nothing is no number. Raises ValueError where no scan has a truth or no sample is wanted."""
    if samples < 1:
        raise ValueError(f"an interval needs at least one sample, not {samples}")
    if not truths_per_scan.any():
        raise ValueError("no scan holds a truth: there is nothing to draw")
    rng = np.random.default_rng(seed)
    scans = len(truths_per_scan)
    made = 0
    while made < samples:
        times = np.bincount(rng.integers(scans, size=scans), minlength=scans)
        if times @ truths_per_scan:
            made += 1
            yield times


def bounds(values: NDArray[np.float64], level: float = LEVEL) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(samples, ...) -> low and high, each (...): the order statistics that LUNA16's own script takes, floor(p n)."""
    if not 0 < level < 1:
        raise ValueError(f"a level of {level} is not between 0 and 1")
    count = len(values)
    tail = (1 - level) / 2
    ranked = np.sort(values, axis=0)
    # Float noise must not move a rank: (1 - 0.95) / 2 * 1000 is 25.000000000000021.
    low, high = (math.floor(round(part * count, 6)) for part in (tail, 1 - tail))
    return ranked[low], ranked[min(high, count - 1)]


def pair(values: NDArray[np.float64], level: float = LEVEL) -> Bounds:
    """`bounds` of one figure, (samples,)."""
    low, high = bounds(values, level)
    return float(low), float(high)
