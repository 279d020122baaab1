"""A ScanResult -> the slices that show most of each true nodule, as 2D images with marks and truths cut there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.marks import ScanResult, key_slice, true_mask
from training.evaluation.slices2d import SliceImage


def slice_images(result: ScanResult) -> Iterator[SliceImage]:
    """The key slices of a scan's true masks, in a window that holds all that lies on the slice."""
    keys = [n.corner[0] + key_slice(n.mask) for n in result.nodules]
    for k in sorted({key for key, nodule in zip(keys, result.nodules, strict=True) if true_mask(nodule)}):
        cut = [(n, key != k or not true_mask(n)) for n, key in zip(result.nodules, keys, strict=True) if _shows(n, k)]
        marks = [mark for mark in result.marks if _shows(mark, k)]
        discs = [disc for ball in result.ignored if (disc := _disc(result, ball.center_mm, ball.radius_mm, k))]
        planes = [_plane(each, k) for each in (*marks, *(nodule for nodule, _ in cut))] + discs
        corners = np.array([corner for _, corner in planes])
        ends = corners + np.array([mask.shape for mask, _ in planes])
        low, high = corners.min(axis=0), ends.max(axis=0)
        masks = np.zeros((len(planes), *(high - low)), dtype=np.bool_)
        for window, (mask, _), (r, c) in zip(masks, planes, corners - low, strict=True):
            window[r : r + mask.shape[0], c : c + mask.shape[1]] = mask
        boxes = np.array([_box_of(mask) for mask in masks]).reshape(-1, 4)
        yield SliceImage(
            boxes=boxes[: len(marks)],
            scores=np.array([mark.score for mark in marks]),
            masks=masks[: len(marks)],
            truth_boxes=boxes[len(marks) :],
            truth_masks=masks[len(marks) :],
            truth_ignore=np.array([unsure for _, unsure in cut] + [True] * len(discs), dtype=np.bool_),
        )


def _shows(each: Any, k: int) -> bool:
    inside = 0 <= k - each.corner[0] < len(each.mask)
    return bool(inside and each.mask[k - each.corner[0]].any())


def _plane(each: Any, k: int) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    return each.mask[k - each.corner[0]], each.corner[1:]


def _disc(
    result: ScanResult, center_mm: Any, radius_mm: float, k: int
) -> tuple[NDArray[np.bool_], tuple[int, int]] | None:
    """Where a slice cuts a ball: (mask, row and column of its corner); None where no pixel's centre lies within."""
    to_index = np.linalg.inv(result.affine)
    middle = to_index[:3, :3] @ np.asarray(center_mm) + to_index[:3, 3]
    reach = np.ceil(radius_mm / np.linalg.norm(result.affine[:3, :3], axis=0)).astype(int) + 1
    low = np.maximum(np.floor(middle - reach).astype(int), 0)[1:]
    high = np.minimum(np.ceil(middle + reach).astype(int) + 1, result.shape)[1:]
    if (high <= low).any():
        return None
    index = np.stack(np.meshgrid([k], np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij"), axis=-1)
    apart = index @ result.affine[:3, :3].T + result.affine[:3, 3] - np.asarray(center_mm)
    mask = np.linalg.norm(apart, axis=-1)[0] < radius_mm
    return (mask, (int(low[0]), int(low[1]))) if mask.any() else None


def _box_of(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2, whole pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
