"""2D mask -> its pieces and their outlines; points -> convex hull, longest chord, longest chord across it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Corner = tuple[int, int]
_DEEPEST = 0.25
_SMOOTHING_STEPS = 30

Mask2D = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One 8-connected piece of a mask. Points are (column, row); pixel (r, c) covers c..c+1 and r..r+1.

    corners: (m, 2) pixel corners along its border, one step of length 1 after the other, clockwise on the screen.
    area: pixels inside the border, holes among them.
    """

    corners: Points
    area: float

    @property
    def outline(self) -> Points:
        """(n, 2), closed (last point equal to the first), clockwise, through the middles of the pixels' outer edges.

        It holds the centre of every pixel of the piece and of no pixel around it.
        """
        middles, _ = self._edges()
        before, after = np.roll(middles, 1, axis=0) - middles, np.roll(middles, -1, axis=0) - middles
        bends = middles[cross(before, after) != 0]
        return np.concatenate([bends, bends[:1]])

    @property
    def reach(self) -> Points:
        """(m, 2) points that span the piece for measuring, one beneath each outer edge.

        Pixels count as set where the *object* covers their centre, so their centres span too little and their edges
        too much. The points lie at most a quarter of a pixel inside the edge, where they make the smoothest line:
        docs/measurement.md has the errors of lengths taken between them.
        """
        middles, inwards = self._edges()
        return middles + _depths(middles, inwards)[:, None] * inwards

    def _edges(self) -> tuple[Points, Points]:
        """Middle and unit normal of each outer edge."""
        steps = np.roll(self.corners, -1, axis=0) - self.corners
        return self.corners + steps / 2, np.stack([-steps[:, 1], steps[:, 0]], axis=-1)


def pieces(mask: Mask2D) -> list[Piece]:
    """The 8-connected pieces of a 2D mask, largest first; holes are not looked at."""
    loops = [np.array(loop, dtype=np.float64) for loop in _edge_loops(mask)]
    found = [Piece(corners=loop, area=_signed_area(loop)) for loop in loops]
    return sorted((piece for piece in found if piece.area > 0), key=lambda piece: piece.area, reverse=True)


def _edge_loops(mask: Mask2D) -> list[list[tuple[int, int]]]:
    """Loops of pixel corners (column, row) along the mask's edges, the mask on the right hand.

    On the screen (rows downwards) outer loops run clockwise, loops round holes the other way.
    """
    steps = _edge_steps(mask)
    loops = []
    # From the top: the topmost corner that is left is never one where two pixels touch.
    for corner in sorted(steps, key=lambda corner: (corner[1], corner[0])):
        while corner in steps:
            loops.append(_follow(steps, corner))
    return loops


def _edge_steps(mask: Mask2D) -> dict[Corner, list[Corner]]:
    """Corner -> the steps of length 1 that leave it along an edge of the mask."""
    padded = np.pad(mask, 1)
    steps: dict[Corner, list[Corner]] = {}
    for neighbour, start, step in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # nothing above: along the top edge to the right
        (padded[1:-1, 2:], (1, 0), (0, 1)),  # nothing to the right: down the right edge
        (padded[2:, 1:-1], (1, 1), (-1, 0)),  # nothing below: along the bottom edge to the left
        (padded[1:-1, :-2], (0, 1), (0, -1)),  # nothing to the left: up the left edge
    ):
        for row, column in np.argwhere(mask & ~neighbour).tolist():
            steps.setdefault((column + start[0], row + start[1]), []).append(step)
    return steps


def _follow(steps: dict[Corner, list[Corner]], first: Corner) -> list[Corner]:
    """Take one loop out of `steps`. Where pixels touch by a corner only, turn left: they stay one piece."""
    loop: list[Corner] = []
    corner, heading = first, (0, 0)
    while not loop or corner != first:
        choices = steps[corner]
        left = (heading[1], -heading[0])
        heading = left if left in choices else choices[0]
        choices.remove(heading)
        if not choices:
            del steps[corner]
        loop.append(corner)
        corner = (corner[0] + heading[0], corner[1] + heading[1])
    return loop


def _depths(middles: Points, inwards: Points) -> NDArray[np.float64]:
    """How far inside its edge each point of a closed line lies, in pixels, for the line that bends least.

    Least sum of squared second differences with each depth within 0 and _DEEPEST: projected gradient steps with
    Nesterov's momentum. 16 bounds the curvature of that sum: no row of its matrix (1, -4, 6, -4, 1) adds up to more.
    Five neighbours a point, not a matrix: matrices would go to a library with threads of its own.
    """
    near = (np.arange(len(middles))[:, None] + np.arange(-2, 3)) % len(middles)
    bending = np.array([1.0, -4.0, 6.0, -4.0, 1.0]) / 16
    curvature = bending * (inwards[near] * inwards[:, None]).sum(axis=-1)
    slope = ((bending[:, None] * middles[near]).sum(axis=1) * inwards).sum(axis=-1)
    depth = ahead = np.full(len(middles), _DEEPEST)
    momentum = 1.0
    for _ in range(_SMOOTHING_STEPS):
        nearer = np.minimum(np.maximum(ahead - (curvature * ahead[near]).sum(axis=1) - slope, 0.0), _DEEPEST)
        grown = (1.0 + math.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = nearer + (momentum - 1.0) / grown * (nearer - depth)
        depth, momentum = nearer, grown
    return depth


def _signed_area(loop: Points) -> float:
    """Positive where an open loop runs clockwise on the screen."""
    return float(cross(loop, np.roll(loop, -1, axis=0)).sum() / 2)


def cross(a: Points, b: Points) -> NDArray[np.float64]:
    """z component of the cross product of 2D vectors."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def convex_hull(points: Points) -> Points:
    """Corners of the convex hull of (n, 2) points, anticlockwise (Andrew's monotone chain)."""
    ordered = sorted({(x, y) for x, y in points.tolist()})
    if len(ordered) < 3:
        return np.array(ordered)
    lower, upper = _chain(ordered), _chain(ordered[::-1])
    return np.array(lower[:-1] + upper[:-1])


def _chain(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    chain: list[tuple[float, float]] = []
    for x, y in points:
        while len(chain) >= 2:
            (x0, y0), (x1, y1) = chain[-2:]
            if (x1 - x0) * (y - y1) - (y1 - y0) * (x - x1) > 0:
                break
            chain.pop()
        chain.append((x, y))
    return chain


def longest_chord(hull: Points) -> tuple[Points, Points]:
    """The two corners of a convex hull that lie farthest apart."""
    distance = np.linalg.norm(hull[:, None] - hull[None], axis=-1)
    a, b = np.unravel_index(int(distance.argmax()), distance.shape)
    return hull[a], hull[b]


def chord_across(hull: Points, a: Points, b: Points) -> tuple[Points, Points]:
    """The longest chord of a convex hull at right angles to the line a-b.

    The length of such chords is a concave, piecewise linear function of where they cross a-b, with its bends at
    the hull's corners: the longest one passes through a corner.
    """
    length = float(np.linalg.norm(b - a))
    if length == 0.0:
        return a, b
    along = (b - a) / length
    across = np.array([-along[1], along[0]])
    frame = np.stack([(hull - a) @ along, (hull - a) @ across], axis=-1)
    best = (0.0, 0.0, 0.0)
    for position in frame[:, 0]:
        low, high = _crossings(frame, float(position))
        if high - low > best[2] - best[1]:
            best = (float(position), low, high)
    position, low, high = best
    return a + position * along + low * across, a + position * along + high * across


def _crossings(polygon: Points, x: float) -> tuple[float, float]:
    """Lowest and highest y where the line at `x` meets a convex polygon."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    low_x, high_x = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    met = (low_x <= x) & (x <= high_x)
    start, end = start[met], end[met]
    run = end[:, 0] - start[:, 0]
    t = np.where(run == 0, 0.0, (x - start[:, 0]) / np.where(run == 0, 1.0, run))
    y = start[:, 1] + t * (end[:, 1] - start[:, 1])
    y = np.concatenate([y, start[run == 0, 1], end[run == 0, 1]])
    return float(y.min()), float(y.max())
