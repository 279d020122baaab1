"""Marks and truths on key slices -> 2D average precision of boxes and of masks, COCO's definition.

A truth's key slice is the one where it is largest; an image is a slice that is the key slice of at least one truth.
One category, all areas, at most 100 marks an image, IoU .50:.95:.05 with .50 apart, 101 recalls. Other truths that the
slice cuts, and ignored findings, are given as ignored truths: COCO's crowd.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.cases import DataProblem
from training.evaluation.overlap import area, match

MARKS_PER_IMAGE = 100
# As COCO writes them, so that a ratio of whole pixel counts falls on the same side.
IOUS_50_95 = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceImage:
    """One image. m marks, t truths; either may be none.

    boxes, truth_boxes: (m, 4), (t, 4), x1, y1, x2, y2 in pixels, x1 <= x2. scores: (m,).
    masks, truth_masks: bool (m, h, w), (t, h, w), all in one window; a crop will do, pixels outside it hold nothing.
    truth_ignore: (t,), marks on these count neither way.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    masks: NDArray[np.bool_]
    truth_boxes: NDArray[np.float64]
    truth_masks: NDArray[np.bool_]
    truth_ignore: NDArray[np.bool_]

    def __post_init__(self) -> None:
        m, t = len(self.scores), len(self.truth_ignore)
        if (self.boxes.shape, self.truth_boxes.shape) != ((m, 4), (t, 4)):
            raise ValueError(f"boxes {self.boxes.shape}, {self.truth_boxes.shape} for {m} marks and {t} truths")
        window = self.masks.shape[1:]
        if (self.masks.shape, self.truth_masks.shape) != ((m, *window), (t, *window)) or len(window) != 2:
            raise ValueError(f"masks {self.masks.shape}, {self.truth_masks.shape} for {m} marks and {t} truths")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score that is not finite")
        for boxes in (self.boxes, self.truth_boxes):
            if not (boxes[:, 2:] >= boxes[:, :2]).all():
                raise ValueError("a box whose end lies before its start")


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceAP:
    """ap50: at IoU .50. ap: mean over .50:.95. truths: without the ignored ones."""

    images: int
    truths: int
    box_ap50: float
    box_ap: float
    segm_ap50: float
    segm_ap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matched:
    """One image's kept marks, best score first. found, false: bool (thresholds, marks)."""

    score: NDArray[np.float64]
    found: NDArray[np.bool_]
    false: NDArray[np.bool_]


def slice_ap(images: Iterable[SliceImage]) -> SliceAP:
    """Images are read one by one, so that a generator need not hold them all. Raises DataProblem where none holds a
    truth that is not ignored."""
    boxes, masks, truths = [], [], 0
    for image in images:
        order = np.argsort(-image.scores, kind="stable")[:MARKS_PER_IMAGE]
        crowd = image.truth_ignore
        boxes.append(_matched(_box_iou(image.boxes[order], image.truth_boxes, crowd), image.scores[order], crowd))
        masks.append(_matched(_mask_iou(image.masks[order], image.truth_masks, crowd), image.scores[order], crowd))
        truths += int((~crowd).sum())
    if not truths:
        raise DataProblem("no slice holds a truth: precision of nothing is no number")
    box, segm = _aps(boxes, truths), _aps(masks, truths)
    return SliceAP(
        images=len(boxes),
        truths=truths,
        box_ap50=float(box[0]),
        box_ap=float(box.mean()),
        segm_ap50=float(segm[0]),
        segm_ap=float(segm.mean()),
    )


def _matched(iou: NDArray[np.float64], score: NDArray[np.float64], crowd: NDArray[np.bool_]) -> _Matched:
    truth = np.array([match(iou, threshold, crowd) for threshold in IOUS_50_95])
    on_crowd = (truth >= 0) & np.append(crowd, False)[truth]
    return _Matched(score=score, found=(truth >= 0) & ~on_crowd, false=truth < 0)


def _aps(images: list[_Matched], truths: int) -> NDArray[np.float64]:
    """(thresholds,)."""
    order = np.argsort(-np.concatenate([image.score for image in images]), kind="stable")
    found = np.cumsum(np.concatenate([image.found for image in images], axis=1)[:, order], axis=1)
    false = np.cumsum(np.concatenate([image.false for image in images], axis=1)[:, order], axis=1)
    return np.array([area(f, n, truths) for f, n in zip(found, false, strict=True)])


def _box_iou(a: NDArray[np.float64], b: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(m, 4) and (t, 4) -> (m, t)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0.0, None).prod(axis=-1)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(axis=-1) for box in (a, b))
    return _ratio(common, area_a, area_b, crowd)


def _mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(m, h, w) and (t, h, w) -> (m, t)."""
    flat_a, flat_b = (mask.reshape(len(mask), mask.shape[1] * mask.shape[2]).astype(np.float32) for mask in (a, b))
    common = (flat_a @ flat_b.T).astype(np.float64)  # whole numbers below 2**24: exact
    return _ratio(common, flat_a.sum(axis=1, dtype=np.float64), flat_b.sum(axis=1, dtype=np.float64), crowd)


def _ratio(
    common: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Of a crowd a mark need not cover all: COCO divides by the mark alone."""
    union = np.where(crowd[None], a[:, None], a[:, None] + b[None] - common)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
