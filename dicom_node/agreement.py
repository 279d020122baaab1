"""Two models' findings on the same series -> which belong together, and how far the two agree, per pair and over time.

Pure: rows in, numbers out. Neither model is the truth here: every figure turns round when the two change places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dicom_node.domain import Point

# What the training's evaluation calls a hit, asked from both sides, since neither side is the truth.
RULE = (
    "Two findings are one where the distance of their centres is less than the radius of the larger "
    "(the rule of the LUNA16 evaluation, Setio et al. 2017, from both sides), one to one, nearest first"
)
# Bland and Altman 1986: where 95 of 100 differences lie, were they normally distributed.
LIMITS_SD = 1.96
WEEK_S = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodule:
    """A finding by its numbers. center_mm: LPS. diameter_mm: the longest axial one, as reports give it."""

    center_mm: Point
    diameter_mm: float
    volume_mm3: float
    score: float

    def __post_init__(self) -> None:
        if not (self.volume_mm3 > 0 and self.diameter_mm >= 0 and all(map(math.isfinite, self.center_mm))):
            raise ValueError("a Nodule needs a place, a volume above 0 and a diameter")

    @property
    def radius_mm(self) -> float:
        """Of a sphere of that volume."""
        return float((3 * self.volume_mm3 / (4 * math.pi)) ** (1 / 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One series. pairs: (first's, second's) that belong together."""

    pairs: tuple[tuple[Nodule, Nodule], ...]
    first_only: tuple[Nodule, ...]
    second_only: tuple[Nodule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Bland and Altman's figures of second minus first. low, high: limits of agreement, None under two pairs."""

    pairs: int
    bias: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Over several series. series_alike: of them, those in which each finding has its partner, or both found nothing.

    agreement: 2 x both / all findings of both, from 0 to 1; 1 where neither found anything.
    volume_percent: of the mean of the two, since differences of volume grow with it.
    """

    series: int
    series_alike: int
    both: int
    first_only: int
    second_only: int
    agreement: float
    diameter_mm: Spread
    volume_mm3: Spread
    volume_percent: Spread
    score: Spread


def nodule(row: Mapping[str, Any]) -> Nodule:
    """A finding's row, as results.build writes it."""
    x, y, z = (float(value) for value in row["center_mm"])
    return Nodule(
        center_mm=(x, y, z),
        diameter_mm=float(row["long_axis_mm"]),
        volume_mm3=float(row["volume_mm3"]),
        score=float(row["score"]),
    )


def compare(first: Sequence[Nodule], second: Sequence[Nodule]) -> Compared:
    """By RULE. Of equally near ones those more alike in volume, then in place, go first: so both orders agree."""
    near = sorted(
        (_nearness(one, other), i, j)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
        if math.dist(one.center_mm, other.center_mm) < max(one.radius_mm, other.radius_mm)
    )
    of_first: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in near:
        if i not in of_first and j not in taken:
            of_first[i] = j
            taken.add(j)
    return Compared(
        pairs=tuple((first[i], second[j]) for i, j in sorted(of_first.items())),
        first_only=tuple(one for i, one in enumerate(first) if i not in of_first),
        second_only=tuple(other for j, other in enumerate(second) if j not in taken),
    )


def _nearness(one: Nodule, other: Nodule) -> tuple[Any, ...]:
    """The smaller the nearer; the same from both sides."""
    values = [(each.center_mm, each.volume_mm3, each.diameter_mm, each.score) for each in (one, other)]
    distance = math.dist(one.center_mm, other.center_mm)
    return distance, abs(math.log(one.volume_mm3 / other.volume_mm3)), min(values), max(values)


def agreement(compared: Sequence[Compared]) -> Agreement:
    pairs = [pair for one in compared for pair in one.pairs]
    first_only = sum(len(one.first_only) for one in compared)
    second_only = sum(len(one.second_only) for one in compared)
    findings = 2 * len(pairs) + first_only + second_only
    return Agreement(
        series=len(compared),
        series_alike=sum(not one.first_only and not one.second_only for one in compared),
        both=len(pairs),
        first_only=first_only,
        second_only=second_only,
        agreement=2 * len(pairs) / findings if findings else 1.0,
        diameter_mm=spread(b.diameter_mm - a.diameter_mm for a, b in pairs),
        volume_mm3=spread(b.volume_mm3 - a.volume_mm3 for a, b in pairs),
        volume_percent=spread(200 * (b.volume_mm3 - a.volume_mm3) / (b.volume_mm3 + a.volume_mm3) for a, b in pairs),
        score=spread(b.score - a.score for a, b in pairs),
    )


def spread(differences: Iterable[float]) -> Spread:
    values = list(differences)
    if not values:
        return Spread(pairs=0, bias=None, low=None, high=None)
    bias = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(pairs=1, bias=bias, low=None, high=None)
    sd = math.sqrt(math.fsum((value - bias) ** 2 for value in values) / (len(values) - 1))
    return Spread(pairs=len(values), bias=bias, low=bias - LIMITS_SD * sd, high=bias + LIMITS_SD * sd)


def over_time(compared: Iterable[tuple[float, Compared]], period_s: float = WEEK_S) -> list[tuple[float, Agreement]]:
    """(begin of the period, agreement in it), oldest first; periods without a series are left out.

    compared: (seconds since the epoch, one series).
    """
    periods: dict[int, list[Compared]] = {}
    for at, one in compared:
        periods.setdefault(math.floor(at / period_s), []).append(one)
    return [(number * period_s, agreement(series)) for number, series in sorted(periods.items())]
