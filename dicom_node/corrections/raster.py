"""Outlines -> the voxels of a slice whose centres lie inside, by the even-odd rule.

So holes drawn as a second outline, and outlines that reach theirs over a bridge ("keyholes", PS3.3 C.8.8.6.3), stay
open.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 2_000_000


def fill(outline: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """outline: (n, 2) of (row, column), pixel centres at whole numbers, closed by itself. -> bool (rows, columns)."""
    rows, columns = shape
    inside = np.zeros(shape, np.bool_)
    start, end = outline, np.roll(outline, -1, axis=0)
    first = max(0, int(np.ceil(outline[:, 0].min())))
    last = min(rows - 1, int(np.floor(outline[:, 0].max())))
    for row in range(first, last + 1):
        # Half-open, so that a corner on the row counts once.
        crossing = (start[:, 0] <= row) != (end[:, 0] <= row)
        a, b = start[crossing], end[crossing]
        at = np.sort(a[:, 1] + (row - a[:, 0]) / (b[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1]))
        for left, right in zip(at[::2], at[1::2], strict=True):
            low, high = max(0, int(np.ceil(left))), min(columns - 1, int(np.ceil(right)) - 1)
            if low <= high:
                inside[row, low : high + 1] ^= True
    return inside


def voxels(outlines: Sequence[tuple[int, NDArray[np.float64]]], shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """(slice, (n, 2) of row and column) of each outline -> (m, 3) voxels inside an odd number of them."""
    found = []
    for k in sorted({k for k, _ in outlines}):
        inside = np.zeros(shape[1:], np.bool_)
        for of, outline in outlines:
            if of == k and len(outline) > 2:
                inside ^= fill(outline, shape[1:])
        at = np.argwhere(inside)
        found.append(np.column_stack([np.full(len(at), k), at]))
    return np.concatenate(found) if found else np.zeros((0, 3), np.int64)


def ellipse(ends: NDArray[np.float64], points: int = 90) -> NDArray[np.float64]:
    """(4, d): ends of the major, then of the minor axis (PS3.3 C.18.6.1.2) -> its outline, (points, d)."""
    center = ends.mean(axis=0)
    major, minor = (ends[1] - ends[0]) / 2, (ends[3] - ends[2]) / 2
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)[:, None]
    outline: NDArray[np.float64] = center + np.cos(turn) * major + np.sin(turn) * minor
    return outline
