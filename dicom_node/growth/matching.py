"""Nodules then and now, as places with sizes -> which is which, one to one, and where that can't be told.

A pair costs minus the logarithm of its likelihood: squared distance over its variance, so that two near nodules that
were both moved by the same amount are not swapped, and the logarithm of the ratio of volumes. The cheapest assignment
of all is taken; where another partner would cost hardly more, nobody knows, and that is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Standard deviations between two places of one nodule.
REACH_SD = 3.0
# Centroids of one nodule's outlines, drawn on two CTs, and of one that grew to a side; per mm of both radii together.
SD_PER_RADIUS = 0.2
LOG_RATIO_SD = 1.2
# More than measurement, and less than the fastest growth that is known, explain. Infection and cancers at their
# fastest double in about 20 days.
LARGEST_RATIO = 8.0
FASTEST_DOUBLING_DAYS = 20.0
# What a nodule without a partner costs: more than the dearest pair, so that pairs come first.
ALONE = 12.0
# Another partner that is a tenth as likely, or more, leaves it open.
DOUBT = math.log(10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A nodule where the current CT has it or would have it. sd_mm: of the place, along one axis."""

    point_mm: NDArray[np.float64]
    volume_mm3: float
    sd_mm: float = 0.0

    @property
    def radius_mm(self) -> float:
        return float((3 * self.volume_mm3 / (4 * math.pi)) ** (1 / 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """pairs: finding -> earlier nodule, by index. doubtful: finding -> the earlier nodules that it may be."""

    pairs: dict[int, int]
    doubtful: dict[int, tuple[int, ...]]


def match(findings: Sequence[Place], earlier: Sequence[Place], interval_days: float) -> Matches:
    costs = np.array([[_cost(now, then, interval_days) for then in earlier] for now in findings])
    costs = costs.reshape(len(findings), len(earlier))
    best, pairs = _cheapest(costs)
    doubtful: dict[int, set[int]] = {}
    for finding, nodule in pairs.items():
        without = costs.copy()
        without[finding, nodule] = np.inf
        total, others = _cheapest(without)
        if total - best >= DOUBT:
            continue
        changed = {f: n for f, n in others.items() if pairs.get(f) != n}
        for of, instead in changed.items():
            doubtful.setdefault(of, set()).add(instead)
        if changed:
            doubtful.setdefault(finding, set()).add(nodule)
    return Matches(
        pairs={finding: nodule for finding, nodule in pairs.items() if finding not in doubtful},
        doubtful={finding: tuple(sorted(nodules)) for finding, nodules in sorted(doubtful.items())},
    )


def _cost(now: Place, then: Place, interval_days: float) -> float:
    """Infinite where the two can't be one nodule."""
    variance = then.sd_mm**2 + (SD_PER_RADIUS * (now.radius_mm + then.radius_mm)) ** 2
    squared = float(((now.point_mm - then.point_mm) ** 2).sum()) / variance if variance < math.inf else math.inf
    ratio = abs(math.log(now.volume_mm3 / then.volume_mm3))
    largest = math.log(LARGEST_RATIO) + math.log(2) * max(0.0, interval_days) / FASTEST_DOUBLING_DAYS
    if squared > REACH_SD**2 or ratio > largest:
        return math.inf
    return min(squared / 2 + (ratio / LOG_RATIO_SD) ** 2 / 2, ALONE - 1)


def _cheapest(costs: NDArray[np.float64]) -> tuple[float, dict[int, int]]:
    """Total and pairs of the cheapest assignment of rows to columns; a row may stay alone at the price ALONE."""
    rows, columns = costs.shape
    # A column of its own for each row, to stay alone in; what is impossible costs more than that.
    alone = np.where(np.eye(rows, dtype=np.bool_), ALONE, 10 * ALONE)
    table = np.concatenate([np.minimum(costs, 10 * ALONE), alone], axis=1)
    chosen = _hungarian(table)
    total = float(sum(table[row, column] for row, column in enumerate(chosen)))
    return total, {row: column for row, column in enumerate(chosen) if column < columns}


def _hungarian(table: NDArray[np.float64]) -> list[int]:
    """The column of each row in the cheapest assignment (Kuhn and Munkres, by shortest augmenting paths).

    table: (rows, columns), finite, rows <= columns.
    """
    rows, columns = table.shape
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns + 1)  # potentials; index 0 is a row or column of none
    row_of = np.zeros(columns + 1, dtype=np.intp)
    for row in range(1, rows + 1):
        row_of[0], column = row, 0
        least, came_from = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=np.intp)
        used = np.zeros(columns + 1, np.bool_)
        while row_of[column]:
            used[column] = True
            slack = table[row_of[column] - 1] - of_row[row_of[column]] - of_column[1:]
            better = ~used[1:] & (slack < least[1:])
            least[1:][better], came_from[1:][better] = slack[better], column
            following = int(np.where(used, np.inf, least).argmin())
            step = least[following]
            of_row[row_of[used]] += step
            of_column[used] -= step
            least[~used] -= step
            column = following
        while column:
            row_of[column] = row_of[came_from[column]]
            column = int(came_from[column])
    chosen = [0] * rows
    for column in range(1, columns + 1):
        if row_of[column]:
            chosen[int(row_of[column]) - 1] = column - 1
    return chosen
