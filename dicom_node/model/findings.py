"""Slice detections -> 3D candidates -> Findings on the source grid. Pure and deterministic.

Boxes here are x1, y1, x2, y2 in edge coordinates of the 1 mm grid (grid voxel i covers [i, i + 1)).
Masks stay 28 x 28 probabilities in their boxes until a candidate is known to be reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import simple_itk, trilinear
from dicom_node.model.spec import MergeSpec

Floats = NDArray[np.float32]
FINE = 2  # mask samples for one grid voxel in plane


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceDetections:
    """What the network saw on one grid slice: boxes (n, 4), scores (n,), masks (n, 28, 28)."""

    index: int
    boxes: Floats
    scores: Floats
    masks: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Detections of rising slices that belong together: slices (n,), boxes (n, 4), scores (n,), masks (n, 28, 28)."""

    slices: NDArray[np.int64]
    boxes: Floats
    scores: Floats
    masks: Floats

    @property
    def box(self) -> NDArray[np.float64]:
        """(2, 3): lowest and highest edge as slice, row, column of the grid."""
        x1, y1 = self.boxes[:, :2].min(axis=0)
        x2, y2 = self.boxes[:, 2:].max(axis=0)
        return np.array([[self.slices[0], y1, x1], [self.slices[-1] + 1, y2, x2]], dtype=np.float64)

    @property
    def center(self) -> NDArray[np.float64]:
        """(3,): middle of the box as fractional (slice, row, column) of the grid's voxels."""
        return np.asarray(self.box.mean(axis=0) - 0.5)


def link(slices: Iterable[SliceDetections], spec: MergeSpec, step: int = 1) -> list[Candidate]:
    """Each detection continues at most one candidate of the slices before it, the best overlap first."""
    done: list[list[tuple[int, SliceDetections, int]]] = []
    live: list[list[tuple[int, SliceDetections, int]]] = []
    for found in sorted(slices, key=lambda s: s.index):
        reach = (spec.gap + 1) * step
        done += [t for t in live if found.index - t[-1][0] > reach]
        live = [t for t in live if found.index - t[-1][0] <= reach]
        last = np.array([t[-1][1].boxes[t[-1][2]] for t in live], dtype=np.float32).reshape(-1, 4)
        pairs = _pairs(last, found.boxes, spec)
        taken = {j for _, j in pairs}
        for i, j in pairs:
            live[i].append((found.index, found, j))
        live += [[(found.index, found, j)] for j in range(len(found.boxes)) if j not in taken]
    return [_candidate(track) for track in done + live]


def _pairs(last: Floats, boxes: Floats, spec: MergeSpec) -> list[tuple[int, int]]:
    """Which open candidate goes on with which box; each of them once."""
    iou = box_iou(last, boxes)
    apart = np.linalg.norm(_centers(last)[:, None] - _centers(boxes)[None], axis=-1)
    fits = (iou >= spec.link_iou) | (apart <= spec.link_mm)
    ranked = sorted((-iou[i, j], apart[i, j], i, j) for i, j in np.argwhere(fits & ((iou > 0) | (apart <= 1.0))))
    used_i: set[int] = set()
    used_j: set[int] = set()
    pairs = []
    for _, _, i, j in ranked:
        if i not in used_i and j not in used_j:
            used_i.add(i)
            used_j.add(j)
            pairs.append((int(i), int(j)))
    return pairs


def _candidate(track: list[tuple[int, SliceDetections, int]]) -> Candidate:
    return Candidate(
        slices=np.array([index for index, _, _ in track], dtype=np.int64),
        boxes=np.stack([found.boxes[j] for _, found, j in track]),
        scores=np.stack([found.scores[j] for _, found, j in track]),
        masks=np.stack([found.masks[j] for _, found, j in track]),
    )


def trim(candidate: Candidate, spec: MergeSpec) -> Candidate:
    """Without the weak slices at its two ends: a vessel that runs into a nodule is not part of it."""
    strong = np.flatnonzero(candidate.scores >= spec.trim * candidate.scores.max())
    keep = slice(int(strong[0]), int(strong[-1]) + 1)
    return replace(
        candidate,
        slices=candidate.slices[keep],
        boxes=candidate.boxes[keep],
        scores=candidate.scores[keep],
        masks=candidate.masks[keep],
    )


def score(candidate: Candidate, spec: MergeSpec, spacing_mm: float, step: int = 1) -> float:
    """0 to 1: the mean over the slices that a nodule as wide as this would show, less where it is longer than wide.

    A round nodule is about as long as wide: one slice alone is noise, and many more are a vessel.
    """
    slice_mm = step * spacing_mm
    widths = (candidate.boxes[:, 2:] - candidate.boxes[:, :2]).astype(np.float64) * spacing_mm
    width = max(float(np.median(np.sqrt(widths.prod(axis=1)))), spacing_mm)
    wanted = max(spec.least_slices, round(spec.length_part * width / slice_mm))
    best = np.sort(candidate.scores)[::-1][:wanted].astype(np.float64)
    length = float(candidate.slices[-1] - candidate.slices[0] + step) * spacing_mm
    full, zero = spec.elongation
    shape = float(np.clip((zero - length / width) / max(zero - full, 1e-6), 0, 1))
    return float(np.clip(best.sum() / wanted * shape, 0, 1))


def suppress(candidates: list[Candidate], scores: list[float], spec: MergeSpec) -> list[tuple[Candidate, float]]:
    """Best first; a candidate whose 3D box overlaps a better one is dropped."""
    order = best_first(candidates, scores)
    boxes = np.array([c.box for c in candidates]).reshape(-1, 2, 3)
    kept: list[int] = []
    for i in order:
        if (_iou_3d(boxes[i], boxes[kept]) <= spec.nms_iou).all():
            kept.append(i)
    return [(candidates[i], scores[i]) for i in kept]


def best_first(candidates: list[Candidate], scores: list[float]) -> list[int]:
    """Their order by score; equal scores by place, so that the order they came in plays no part."""
    return sorted(range(len(candidates)), key=lambda i: (-scores[i], *candidates[i].box.ravel()))


def mask_on(
    volume: Volume, grid: Volume, candidate: Candidate, threshold: float, step: int = 1
) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
    """(tight mask, corner) on the volume's own voxels: its largest piece, and never empty.

    step: distance of the slices that were looked at; the outermost masks reach half of it further.
    """
    low, high = candidate.box
    soft = _probabilities(candidate, low, high)
    origin = np.array([low[0], np.floor(low[1]), np.floor(low[2])])
    at = _voxels_within(volume, grid, low - step, high + step)
    index = grid.to_index(volume.to_mm(at.astype(np.float64)))
    half = np.array([0.0, 0.5, 0.5])
    fine = (index + half - origin) * np.array([1, FINE, FINE]) - half
    caps = (fine[..., 0] > -step / 2) & (fine[..., 0] < len(soft) - 1 + step / 2)
    fine[..., 0] = np.where(caps, fine[..., 0].clip(0, len(soft) - 1), fine[..., 0])
    mask = _largest_piece(trilinear(soft, fine, 0.0) >= threshold)
    if not mask.any():
        # Slices so thick that none passes through the mask: the voxel nearest to its middle stands for it.
        middle = np.linalg.norm(index - ((low + high) / 2 - 0.5), axis=-1)
        mask[np.unravel_index(middle.argmin(), mask.shape)] = True
    inner = np.argwhere(mask)
    first, last = inner.min(axis=0), inner.max(axis=0) + 1
    corner = at[0, 0, 0] + first
    tight = mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    return tight, (int(corner[0]), int(corner[1]), int(corner[2]))


def _probabilities(candidate: Candidate, low: NDArray[np.float64], high: NDArray[np.float64]) -> Floats:
    """The candidate's masks side by side on a grid of FINE samples a voxel in plane; missing slices between two."""
    y0, x0 = np.floor(low[1:]).astype(int)
    rows, columns = (np.ceil(high[1:]).astype(int) - (y0, x0)) * FINE
    y = y0 + (np.arange(rows) + 0.5) / FINE
    x = x0 + (np.arange(columns) + 0.5) / FINE
    seen = np.stack([_paste(m, b, y, x) for m, b in zip(candidate.masks, candidate.boxes, strict=True)])
    wanted = np.arange(candidate.slices[0], candidate.slices[-1] + 1)
    after = np.searchsorted(candidate.slices, wanted)
    before = np.maximum(after - (candidate.slices[after] > wanted), 0)
    span = np.maximum(candidate.slices[after] - candidate.slices[before], 1)
    share = ((wanted - candidate.slices[before]) / span)[:, None, None].astype(np.float32)
    return np.asarray(seen[before] * (1 - share) + seen[after] * share, dtype=np.float32)


def _paste(mask: Floats, box: Floats, y: NDArray[np.float64], x: NDArray[np.float64]) -> Floats:
    """Probabilities of a box at edge coordinates y, x; 0 outside the box."""
    size = mask.shape[0]
    v = (y - box[1]) / max(float(box[3] - box[1]), 1e-3) * size - 0.5
    u = (x - box[0]) / max(float(box[2] - box[0]), 1e-3) * size - 0.5
    index = np.stack([np.zeros((len(v), len(u))), *np.meshgrid(v, u, indexing="ij")], axis=-1)
    return trilinear(mask[None].astype(np.float32), index, 0.0)


def _voxels_within(
    volume: Volume, grid: Volume, low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(d, h, w, 3) indices of the volume's voxels that a box of the grid can hold; at least one."""
    ends = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T
    corners = volume.to_index(grid.to_mm(ends - (0.0, 0.5, 0.5)))
    last = np.array(volume.hu.shape) - 1
    first = np.floor(corners.min(axis=0)).clip(0, last).astype(int)
    final = np.ceil(corners.max(axis=0)).clip(0, last).astype(int)
    axes = (np.arange(a, b + 1) for a, b in zip(first, final, strict=True))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    sitk = simple_itk()
    pieces = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    return np.asarray(sitk.GetArrayFromImage(sitk.RelabelComponent(pieces)) == 1)


def box_iou(a: Floats, b: Floats) -> Floats:
    """(n, 4), (m, 4) -> (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=-1) for box in (a, b))
    return np.asarray(shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-6), dtype=np.float32)


def _iou_3d(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, 3), (n, 2, 3) -> (n,)."""
    shared = (np.minimum(box[1], others[:, 1]) - np.maximum(box[0], others[:, 0])).clip(min=0).prod(axis=1)
    union = (box[1] - box[0]).prod() + (others[:, 1] - others[:, 0]).prod(axis=1) - shared
    return np.asarray(shared / np.maximum(union, 1e-6))


def _centers(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, :2] + boxes[:, 2:]) / 2, dtype=np.float32)
