"""IoU of marks with truths, scan by scan -> average precision and recall in 3D, by IoU threshold and by size.

The definition is COCO's as nnDetection and MONAI use it for volumes: IoU .10:.50:.05, at most 100 marks a scan, best
score first; each mark takes the free truth that it overlaps most, if the IoU reaches the threshold; precision is
made monotone and read at 101 recalls (0, 0.01 ... 1); average recall is what all kept marks reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.cases import DataProblem
from training.evaluation.intervals import LEVEL, SAMPLES, Bounds, draws, pair

IOUS_10_50 = tuple(round(0.10 + 0.05 * n, 2) for n in range(9))
IOUS_50_95 = tuple(round(0.50 + 0.05 * n, 2) for n in range(10))
MARKS_PER_SCAN = 100
RECALLS = np.linspace(0.0, 1.0, 101)
# LUNA16 lists nodules from 3 mm on; 6 and 8 mm are where guidance on incidental nodules changes.
SIZE_BINS_MM = (3.0, 6.0, 8.0, 15.0)

_IGNORED, _FALSE = -2, -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOverlap:
    """One scan. m marks, t truths; either may be none.

    iou: (m, t), 0 to 1. score: (m,). ignored: (m,), True where a mark lies in an ignored finding: hitting nothing, it
    counts neither way. diameter_mm: (t,), above 0.
    """

    iou: NDArray[np.float64]
    score: NDArray[np.float64]
    ignored: NDArray[np.bool_]
    diameter_mm: NDArray[np.float64]

    def __post_init__(self) -> None:
        m, t = len(self.score), len(self.diameter_mm)
        shapes = self.iou.shape, self.score.shape, self.ignored.shape, self.diameter_mm.shape
        if shapes != ((m, t), (m,), (m,), (t,)):
            raise ValueError(f"iou, score, ignored and diameter_mm of shapes {shapes} do not fit")
        if not (np.isfinite(self.score).all() and ((self.iou >= 0) & (self.iou <= 1)).all()):
            raise ValueError("a score that is not finite, or an IoU that is not within 0 to 1")
        if not (self.diameter_mm > 0).all():
            raise ValueError("each truth needs a diameter above 0 mm")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOverlap:
    """The truths of one size. Marks on truths of other sizes count neither way; a mark that hits nothing has no true
    size and counts as false in each bin, so that `map` of a bin is a lower bound. `mar` knows no false marks."""

    truths: int
    map: float
    mar: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapIntervals:
    """Over scans drawn with replacement: low, high."""

    samples: int
    level: float
    map: Bounds
    mar: Bounds
    ar_at_1fp: Bounds
    ap: dict[float, Bounds]
    ar: dict[float, Bounds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """All scans' kept marks, best score first. k thresholds, n marks.

    scan: (n,). score: (n,). truth: (k, n), the truth's place in `diameter_mm` (t,), or -1 for a false mark, or -2 for
    one that counts neither way. truth_scan: (t,), the scan of each truth. scans: how many there are.
    """

    thresholds: tuple[float, ...]
    scan: NDArray[np.int64]
    score: NDArray[np.float64]
    truth: NDArray[np.int64]
    truth_scan: NDArray[np.int64]
    diameter_mm: NDArray[np.float64]
    scans: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """ap, ar: IoU threshold -> 0 to 1; map, mar: their means. ar_at_1fp: mean over thresholds of the recall at one
    false mark a scan, linear between the steps. sizes: "3-6 mm" ... -> figures; sizes without a truth are left out.
    hits: each kept mark's fate, for curves and matches.
    """

    scans: int
    truths: int
    ap: dict[float, float]
    ar: dict[float, float]
    map: float
    mar: float
    ar_at_1fp: float
    sizes: dict[str, SizeOverlap]
    hits: Hits = field(repr=False)

    def interval(self, samples: int = SAMPLES, seed: int = 0, level: float = LEVEL) -> OverlapIntervals:
        """Bootstrap over scans; the same seed gives the same numbers."""
        truths = np.bincount(self.hits.truth_scan, minlength=self.scans)
        drawn = np.array([_figures(self.hits, times) for times in draws(truths, samples, seed)])
        return OverlapIntervals(
            samples=samples,
            level=level,
            map=pair(drawn[:, 0].mean(axis=1), level),
            mar=pair(drawn[:, 1].mean(axis=1), level),
            ar_at_1fp=pair(drawn[:, 2].mean(axis=1), level),
            ap={t: pair(drawn[:, 0, n], level) for n, t in enumerate(self.hits.thresholds)},
            ar={t: pair(drawn[:, 1, n], level) for n, t in enumerate(self.hits.thresholds)},
        )


def average_precision(
    scans: Sequence[ScanOverlap], thresholds: Sequence[float] = IOUS_10_50, max_per_scan: int = MARKS_PER_SCAN
) -> Overlap:
    """Marks of one score keep the order of the scans and of their rows, as in COCO. Raises DataProblem where no scan
    holds a truth."""
    hits = _match_all(scans, tuple(thresholds), max_per_scan)
    if not len(hits.diameter_mm):
        raise DataProblem("the scans hold no truth: precision and recall of nothing are no numbers")
    ap, ar, at_1fp = _figures(hits, np.ones(len(scans), dtype=np.int64))
    return Overlap(
        scans=len(scans),
        truths=len(hits.diameter_mm),
        ap=dict(zip(hits.thresholds, ap.tolist(), strict=True)),
        ar=dict(zip(hits.thresholds, ar.tolist(), strict=True)),
        map=float(ap.mean()),
        mar=float(ar.mean()),
        ar_at_1fp=float(at_1fp.mean()),
        sizes={name: _of_truths(hits, inside) for name, inside in size_bins(hits.diameter_mm).items()},
        hits=hits,
    )


def precision_recall(hits: Hits, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(recall, precision) down the marks at one of the thresholds, as they are: not made monotone."""
    truth = hits.truth[hits.thresholds.index(threshold)]
    found, false = np.cumsum(truth >= 0), np.cumsum(truth == _FALSE)
    counted = found + false > 0
    return found[counted] / len(hits.diameter_mm), found[counted] / (found + false)[counted]


# -- matching ------------------------------------------------------------------------------------------


def match(iou: NDArray[np.float64], threshold: float, crowd: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """(m, t), marks best score first -> (m,): the truth each takes, or -1.

    crowd: (t,), truths that any number of marks may take, and only marks that find no other; COCO's rule.
    """
    taken = np.full(iou.shape[0], -1, dtype=np.int64)
    if not iou.size:
        return taken
    free = np.ones(iou.shape[1], dtype=bool) if crowd is None else ~crowd
    for mark in np.flatnonzero(iou.max(axis=1) >= threshold):
        truth = _most(iou[mark], free, threshold)
        if truth >= 0:
            free[truth] = False
        elif crowd is not None:
            truth = _most(iou[mark], crowd, threshold)
        taken[mark] = truth
    return taken


def _most(iou: NDArray[np.float64], allowed: NDArray[np.bool_], threshold: float) -> int:
    """The last of the allowed truths with the largest IoU, as COCO takes it; -1 below the threshold."""
    among = np.where(allowed, iou, -1.0)
    best = len(among) - 1 - int(among[::-1].argmax())
    return best if among[best] >= threshold else -1


def _match_all(scans: Sequence[ScanOverlap], thresholds: tuple[float, ...], max_per_scan: int) -> Hits:
    first = np.cumsum([0, *(len(scan.diameter_mm) for scan in scans)])
    orders = [np.argsort(-scan.score, kind="stable")[:max_per_scan] for scan in scans]
    fates = [
        np.array([_fates(scan, order, threshold, shift) for threshold in thresholds])
        for scan, order, shift in zip(scans, orders, first, strict=False)
    ]
    score = _joined([scan.score[order] for scan, order in zip(scans, orders, strict=True)])
    order = np.argsort(-score, kind="stable")
    numbers = np.arange(len(scans))
    return Hits(
        thresholds=thresholds,
        scan=np.repeat(numbers, [len(kept) for kept in orders])[order],
        score=score[order],
        truth=np.concatenate([np.zeros((len(thresholds), 0), dtype=np.int64), *fates], axis=1)[:, order],
        truth_scan=np.repeat(numbers, np.diff(first)),
        diameter_mm=_joined([scan.diameter_mm for scan in scans]),
        scans=len(scans),
    )


def _joined(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *parts])


def _fates(scan: ScanOverlap, order: NDArray[np.int64], threshold: float, shift: int) -> NDArray[np.int64]:
    truth = match(scan.iou[order], threshold)
    missed = np.where(scan.ignored[order], _IGNORED, _FALSE)
    return np.where(truth >= 0, truth + shift, missed)


# -- figures -------------------------------------------------------------------------------------------


def _figures(hits: Hits, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """(3, k): AP, AR and recall at one false mark a scan, at each threshold; each scan taken `times` (scans,) times."""
    weight, truths = times[hits.scan], int(times[hits.truth_scan].sum())
    found = np.cumsum(np.where(hits.truth >= 0, weight, 0), axis=1)
    false = np.cumsum(np.where(hits.truth == _FALSE, weight, 0), axis=1)
    ends = np.append(np.diff(hits.score) != 0, True)[: len(hits.score)]
    figures = [
        (area(f, n, truths), f[-1] / truths if len(f) else 0.0, _at_1fp(f[ends], n[ends], truths, hits.scans))
        for f, n in zip(found, false, strict=True)
    ]
    return np.array(figures, dtype=np.float64).T


def area(found: NDArray[np.int64], false: NDArray[np.int64], truths: int) -> float:
    """COCO's average precision. found, false: (n,), totals down the marks, best score first."""
    if not len(found):
        return 0.0
    recall = found / truths
    precision = found / np.maximum(found + false, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(at < len(recall), envelope[np.minimum(at, len(recall) - 1)], 0.0).mean())


def _at_1fp(found: NDArray[np.int64], false: NDArray[np.int64], truths: int, scans: int) -> float:
    return float(np.interp(1.0, np.append(0.0, false / scans), np.append(0.0, found / truths)))


def size_bins(diameter_mm: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    """Which diameters fall into each bin; bins without any are left out. Below the first limit is in the first bin."""
    number = np.maximum(np.searchsorted(SIZE_BINS_MM, diameter_mm, side="right") - 1, 0)
    names = [f"{low:g}-{high:g} mm" for low, high in pairwise(SIZE_BINS_MM)] + [f"{SIZE_BINS_MM[-1]:g} mm and more"]
    return {name: number == n for n, name in enumerate(names) if (number == n).any()}


def _of_truths(hits: Hits, inside: NDArray[np.bool_]) -> SizeOverlap:
    found = np.cumsum((hits.truth >= 0) & inside[np.maximum(hits.truth, 0)], axis=1)
    false = np.cumsum(hits.truth == _FALSE, axis=1)
    truths = int(inside.sum())
    recalls = found[:, -1] / truths if found.shape[1] else np.zeros(len(found))
    return SizeOverlap(
        truths=truths,
        map=float(np.mean([area(f, n, truths) for f, n in zip(found, false, strict=True)])),
        mar=float(recalls.mean()),
    )


# -- IoU -----------------------------------------------------------------------------------------------


def box_iou_3d(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2, 3) and (m, 2, 3) boxes of low and high corners, in one unit and one order of axes -> (n, m)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not ((a[:, 1] > a[:, 0]).all() and (b[:, 1] > b[:, 0]).all()):
        raise ValueError("a box whose high corner is not above its low one")
    low, high = np.maximum(a[:, None, 0], b[None, :, 0]), np.minimum(a[:, None, 1], b[None, :, 1])
    common = np.clip(high - low, 0.0, None).prod(axis=-1)
    volumes = [(box[:, 1] - box[:, 0]).prod(axis=-1) for box in (a, b)]
    iou: NDArray[np.float64] = common / (volumes[0][:, None] + volumes[1][None] - common)
    return iou


def mask_iou(
    a: NDArray[np.bool_], a_corner: tuple[int, int, int], b: NDArray[np.bool_], b_corner: tuple[int, int, int]
) -> float:
    """Two masks on one grid, each with the index of its [0, 0, 0] -> 0 to 1; 0 where both are empty."""
    low = np.maximum(a_corner, b_corner)
    high = np.minimum(np.add(a_corner, a.shape), np.add(b_corner, b.shape))
    total = int(a.sum()) + int(b.sum())
    if (high <= low).any() or not total:
        return 0.0
    parts = [mask[tuple(slice(*span) for span in zip(low - c, high - c, strict=True))]
             for mask, c in ((a, np.array(a_corner)), (b, np.array(b_corner)))]  # fmt: skip
    common = int((parts[0] & parts[1]).sum())
    return common / (total - common)
